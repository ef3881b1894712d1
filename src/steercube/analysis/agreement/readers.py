r"""Readers of generated answers: where two differ, and rates corrected for a reader's errors.

`readers` prints the confusion matrices that the cells hold. `corrected` asks what published changes
would have been, had the answers been read by the second reader: the first one's rates and its
confusion matrix, of answers that both read, give the distribution of what the answers really were.

What it is wrong for: answers unlike those of the matrix. A reader errs on a form of answer, and how
often a model answers in that form depends on the prompt; so each row names the answers that its
matrix is of. The study's reader errs by letter, which published rates do not tell, so a push
towards a letter is taken for a change of the match. Where the truth is known, in the study's later
sweeps, corrected changes lie no nearer to it than published ones; what is gained is an interval
that holds it.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from steercube.analysis.agreement.generation import generation_delta, is_counted, of_pair
from steercube.analysis.view import Study
from steercube.cells import LETTERS_READ, READERS, compared_strengths
from steercube.estimate import Estimate, percentile_ends
from steercube.measures import PUBLISHED, READ

Array = np.ndarray
Row = tuple[dict[str, Any], Estimate]
A, B, NONE = LETTERS_READ
N_DRAWS = 2_000
MIN_SWEEPS, SWEEPS_PER_ANSWER = 40, 2
"""Sweeps of the sampler before a draw is taken: it moves the more slowly the more answers there
are, and the less a reader's answers say."""
PRIOR, PRIOR_OF_ERRORS = 1 / 2, 1 / 3
"""Dirichlet priors: Jeffreys' of shares; of a reader's errors Perks', one answer in all."""
CENSUS = "a census of the answers"
SWEEP, OF_RUN = "a later sweep of the same model", "the runs without a layer"


def readers(study: Study) -> list[Row]:
    """How two readers read the same answers, for each model, concept and direction.

    `read alike` is the share of answers for which both have the same letter, or none. `misread` is
    the share that the other one read as the other letter, of those that one read as `read_as`.
    """
    rows: list[Row] = []
    labels = ["reading", "reading_other", "concept", "direction", "model"]
    order = list(map(str, study.cells["model"].values))
    table = study.records[READERS]
    place = table["model"].map(lambda name: order.index(name) if name in order else len(order))
    for names, counts in table.iloc[place.argsort(kind="stable")].groupby(labels, sort=False):
        at = dict(zip(labels, names, strict=True)) | {"read_as": "", "read_as_other": ""}
        same = counts.loc[counts["read_as"] == counts["read_as_other"], "n"].sum()
        rows.append((at | {"statistic": "read alike"}, _share(same, counts["n"].sum())))
        for letter, other in ((A, B), (B, A)):
            of = counts[counts["read_as"] == letter]
            swapped = of.loc[of["read_as_other"] == other, "n"].sum()
            wrong = at | {"read_as": letter, "read_as_other": other, "statistic": "misread"}
            rows.append((wrong, _share(swapped, of["n"].sum())))
    return rows


def _share(count: float, n: float) -> Estimate:
    if not n:
        return Estimate.undefined("no answer was read so")
    return Estimate(float(count / n), n=int(n), reason=CENSUS)


def corrected(study: Study) -> list[Row]:
    """Published changes of answers, corrected for the errors of the reader that read them.

    For each model and concept with published rates of a known number of answers, at the layer of
    the largest published change: a row for each confusion matrix of that model and concept, of the
    sweep's own answers and of a run with the same vector. The interval is over answers of the rates
    and items of the matrix, whose answers to one item count as one; the layer is taken for given.
    """
    rows: list[Row] = []
    if "generation_n_prompts" not in study.cells:
        return rows
    for concept, model, published in _published(study):
        rates = _counts(study, concept, model, published["layer"])
        for direction, confusion in _matrices(study, concept, model):
            rng = study.stream(f"corrected {concept}/{model}/{direction}")
            star = corrected_change(rates[0], rates[1], confusion, rng)
            low, high = percentile_ends(star, study.level)
            labels = {
                **{"concept": concept, "model": model, "layer": published["layer"]},
                "matrix_of": OF_RUN if direction else SWEEP,
                **{"n_matrix": round(confusion.sum()), "published": published["change"]},
            }
            n = int(rates[0].sum())
            value = float(np.median(star))
            rows.append((labels, Estimate(value, low=low, high=high, over="answers", n=n)))
    return rows


def corrected_change(
    low: Array, high: Array, confusion: Array, rng: np.random.Generator, *, n_draws: int = N_DRAWS
) -> Array:
    r"""Draws of the change of the rate of matching answers, as the reference would have read them.

    `low` and `high` are counts of answers that a reader read as matching, as not, and as none;
    `confusion` counts of other answers by the reference (rows) and that reader (columns), in that
    order. With p the shares of what the answers are and C the reader's errors given that, the
    counts are multinomial with shares p C. C has the posterior of `confusion` alone. Drawn by
    allocating each count to what the answers may have been, in turn with p. In simulation
    (`calibration/answers.csv`) the interval covers 94 to 99%, and more where rates are near 0 or 1.
    """
    of_errors = rng.standard_gamma(confusion + PRIOR_OF_ERRORS, (n_draws, 3, 3))
    of_errors /= of_errors.sum(axis=-1, keepdims=True)
    shares = [_true_shares(counts, of_errors, rng) for counts in (low, high)]
    at_low, at_high = (drawn[:, 0] / (drawn[:, 0] + drawn[:, 1]) for drawn in shares)
    change: Array = at_high - at_low
    return change


def _true_shares(counts: Array, of_errors: Array, rng: np.random.Generator) -> Array:
    """A draw of p (draw, 3) for each draw of the errors (draw, 3, 3)."""
    shares = np.full(of_errors.shape[:2], 1 / 3)
    for _ in range(max(MIN_SWEEPS, SWEEPS_PER_ANSWER * int(counts.sum()))):
        came_from = shares[:, :, None] * of_errors
        came_from /= came_from.sum(axis=1, keepdims=True)
        allocated = sum(
            rng.multinomial(int(count), came_from[:, :, read]) for read, count in enumerate(counts)
        )
        shares = rng.standard_gamma(allocated + PRIOR)
        shares /= shares.sum(axis=-1, keepdims=True)
    return shares


def _published(study: Study) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Concept, model, and the largest published change with its layer."""
    delta = generation_delta(study.cells)
    for concept in study.concepts:
        for model in map(str, study.cells["model"].values):
            own = delta.sel(model=model, concept=concept)
            n = of_pair(study, "generation_n_prompts", model, concept)
            if own.notnull().any() and n > 0 and not is_counted(study, model, concept):
                best = own.isel(layer=int(own.fillna(-np.inf).argmax("layer")))
                yield concept, model, {"layer": float(best["layer"]), "change": float(best)}


def _counts(study: Study, concept: str, model: str, layer: float) -> list[Array]:
    """Published answers that match, do not, and have no letter, at both compared strengths."""
    at = {"model": model, "concept": concept, "layer": layer}
    n = round(of_pair(study, "generation_n_prompts", model, concept))
    cell = study.cells.sel(at)
    rates = cell["generation_rate"].dropna("strength")
    valid = _denominators(rates.values, float(cell["generation_valid_rate"]), n)
    counts = []
    for end in compared_strengths(study.cells):
        number = rates.indexes["strength"].get_loc(end)
        n_valid = int(valid[number])
        n_match = round(n_valid * float(rates[number]))
        counts.append(np.array([n_match, n_valid - n_match, n - n_valid]))
    return counts


def _denominators(rates: Array, valid_rate: float, n: int) -> Array:
    """How many of n answers were valid behind each rate, if that share of all of them was.

    Of the whole numbers that make every rate a fraction and add up, those most alike; if there are
    none, the same share of each.
    """
    possible = [[m for m in range(1, n + 1) if abs(r * m - round(r * m)) < 1e-6] for r in rates]
    total = round(valid_rate * n * len(rates))
    fitting = [chosen for chosen in product(*possible) if sum(chosen) == total]
    if not fitting:
        return np.full(len(rates), round(valid_rate * n))
    return np.array(min(fitting, key=np.var))


def _matrices(study: Study, concept: str, model: str) -> Iterator[tuple[str, Array]]:
    """Items by what the reference and the published reader made of their answers, by direction."""
    table = study.records[READERS]
    of = table[(table["concept"] == concept) & (table["model"] == model)]
    of = of[of["direction"].isin(["", concept])]
    of = of[(of["reading"] == READ) & (of["reading_other"] == PUBLISHED)]
    for direction, counts in of.groupby("direction"):
        matrix = np.zeros((3, 3))
        for row in counts.itertuples():
            place = _state(row.read_as, row.letter), _state(row.read_as_other, row.letter)
            matrix[place] += row.n
        yield str(direction), matrix * counts["n_items"].iloc[0] / matrix.sum()


def _state(read: Any, letter: Any) -> int:
    """0 for a match, 1 for the other letter, 2 for none."""
    return 2 if read == NONE else int(read != letter)
