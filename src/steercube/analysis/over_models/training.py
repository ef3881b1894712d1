r"""Does training change the effect, and does scale? Every method beside the others.

Each row says what its method takes as random, because that decides its interval: over items alone
it knows nothing of other models. The primary row is the posterior of
`steercube.analysis.over_models.posterior` with training and scale; all estimates are full RL minus
distilled, of effects less their optimism.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.contrasts import two_sample_t
from steercube.analysis.over_models.means import HIGH, LOW, level_of, root_of, t_quantile
from steercube.analysis.over_models.nuts import Sampled, failed_gates, gates_text
from steercube.analysis.over_models.posterior import (
    OUTCOMES,
    PRIOR,
    TERMS,
    CellEffects,
    Posterior,
    cell_effects,
    compared_models,
    fit,
    fitted_to,
    primary_terms,
    why_not,
)
from steercube.analysis.over_models.reml import Reml, reml_of_cells
from steercube.analysis.per_cell.estimands import ESTIMANDS
from steercube.streams import stream

N_RESAMPLES = 10_000
MAX_ASSIGNMENTS = 20_000
"""Beyond so many ways to give out the labels, that many are drawn at random."""

GRID = "hierarchical, exact"
NUTS = "hierarchical, NUTS"
REML = "REML, cells"
PERMUTATION = "permutation of labels"
BOOTSTRAP, MEANS = "bootstrap", "t over model means"
BY_DESIGN = (BOOTSTRAP, MEANS, PERMUTATION)
ENOUGH_TO_RESAMPLE = 3
"""Models of a training from which their spread can be resampled without being understated much."""
UNDERSTATED = "understates how models differ"
ITEM_OUTCOME = "cohens_d"
MAX_APART = 0.1
"""Posterior sds between the estimates of fits that agree."""

BOTH = "training and scale"
ALONE = "training"
BLOCKS = "training and number of blocks"
"""Depth may follow the number of blocks, so that is held fixed too, on log10 as size is."""

ADJUSTED = {BOTH: TERMS, ALONE: ("training",)}
ITEMS, CONCEPTS, MODELS = "items", "items, concepts", "items, concepts, models"
WITHOUT_CONCEPTS = "items, models"


@dataclass(frozen=True)
class TrainingEffect:
    """b_training of one outcome by one method; NaN with its `reason`.

    Other fits of the primary model are compared with the exact one: `apart` is the distance of the
    estimates in its posterior sds, `width` the ratio of the intervals, and `agrees` says whether
    the one is within MAX_APART and the other within t / z, by which a t interval on the models'
    degrees of freedom may exceed one that knows the sd.
    """

    outcome: str
    method: str
    takes_as_random: str
    adjusted: str = ALONE
    estimate: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan
    probability_negative: float = np.nan
    probability_negligible: float = np.nan
    bayes_factor: float = np.nan
    least_p: float = np.nan
    apart: float = np.nan
    width: float = np.nan
    agrees: str = ""
    level: float = np.nan
    negligible: float = np.nan
    n_models: int = 0
    mc_error: float = np.nan
    """Standard error of a sampled estimate; NaN where nothing is sampled."""
    diagnostics: str = ""
    reason: str = ""


def training_effects(
    cells: xr.Dataset, *, sampled: Mapping[str, Sampled] | None = None
) -> list[TrainingEffect]:
    """Every outcome by every method; `sampled` are NUTS fits of the model of cells by outcome."""
    rows: list[TrainingEffect] = []
    for outcome in OUTCOMES:
        try:
            effects = cell_effects(cells, outcome)
        except ValueError as error:
            rows.append(TrainingEffect(outcome, GRID, MODELS, BOTH, reason=str(error)))
            continue
        found = by_method(effects, level=level_of(cells), seed=int(cells.attrs["seed"]))
        if sampled and outcome in sampled:
            found.append(_nuts(effects, sampled[outcome]))
        if outcome == ITEM_OUTCOME:
            found += _of_items(cells)
        if outcome not in ESTIMANDS:
            of_blocks = cell_effects(cells, outcome, scale="n_layers")
            found.append(_exact(of_blocks, TERMS, BLOCKS, level_of(cells)))
        compared = _compared(effects, found, level_of(cells))
        rows += [replace(row, negligible=effects.negligible) for row in compared]
    return [replace(row, level=level_of(cells)) for row in rows]


def _compared(
    effects: CellEffects, rows: list[TrainingEffect], level: float
) -> Iterator[TrainingEffect]:
    """The rows, with how far the fits of the primary model lie from the exact one."""
    terms = primary_terms(effects)
    adjusted = next((name for name, of in ADJUSTED.items() if of == terms), "")
    exact = fit(effects, terms=terms) if adjusted else None
    primary = next((r for r in rows if r.method == GRID and r.adjusted == adjusted), None)
    df = len(np.unique(effects.model)) - 1 - len(terms)
    limit = t_quantile(level, df) / stats.norm.ppf((1 + level) / 2)
    for row in rows:
        same = row.adjusted == adjusted and row.method not in (GRID, *BY_DESIGN)
        if exact is None or primary is None or not same or not np.isfinite(row.low):
            yield row
            continue
        apart = abs(row.estimate - primary.estimate) / exact.spread("training")
        width = (row.high - row.low) / (primary.high - primary.low)
        agrees = apart <= MAX_APART and 1 / limit <= width <= limit
        yield replace(row, apart=apart, width=width, agrees="yes" if agrees else "no")


def by_method(
    effects: CellEffects, *, level: float, seed: int, n_resamples: int = N_RESAMPLES
) -> list[TrainingEffect]:
    """Every method that needs no more than the cells' effects."""
    rows = list(_by_design(effects, level, seed, n_resamples))
    for adjusted, terms in ADJUSTED.items():
        rows.append(_exact(effects, terms, adjusted, level))
        rows.append(_reml(effects, terms, adjusted, level))
    return rows


def difference(
    table: np.ndarray, high: np.ndarray, models: np.ndarray, concepts: np.ndarray
) -> np.ndarray:
    r"""Mean over concepts of the difference of the trainings' means, weighted; dims (...).

    $\hat b = \sum_c k_c (\bar y_{Hc} - \bar y_{Lc}) / \sum_c k_c$ over the concepts that models of
    both trainings ran, so that a cell that was never run changes the concepts' weight only.
    `table` (..., model, concept) with NaN where not run, `high` (model,) true for full RL,
    `models` (..., model) and `concepts` (..., concept) how often each counts.
    """
    ran = np.isfinite(table) * models[..., None]
    filled = np.where(np.isfinite(table), table, 0.0)
    side = [high.astype(float), 1.0 - high]
    counts = [np.einsum("...mc,m->...c", ran, of) for of in side]
    sums = [np.einsum("...mc,m->...c", ran * filled, of) for of in side]
    both = (counts[0] > 0) & (counts[1] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.where(both, sums[0] / counts[0] - sums[1] / counts[1], 0.0)
        return (apart * concepts).sum(-1) / (both * concepts).sum(-1)


def _by_design(
    effects: CellEffects, level: float, seed: int, n_resamples: int
) -> Iterator[TrainingEffect]:
    """What the design says without a model of effects: bootstraps, t over models, permutation."""
    if reason := why_not(effects, ()) or _one_sided(effects):
        yield TrainingEffect(effects.outcome, BOOTSTRAP, ITEMS, reason=reason)
        return
    table, high = _table(effects), effects.predictors["training"] > 0
    n_models = len(table)
    ones = np.ones(n_models), np.ones(table.shape[1])
    estimate = float(difference(table, high, *ones))
    if not np.isfinite(estimate):
        reason = "no concept was run by models of both trainings"
        yield TrainingEffect(effects.outcome, BOOTSTRAP, ITEMS, reason=reason)
        return
    for takes, draws in _bootstraps(effects, table, high, seed, n_resamples).items():
        if reason := _alone(takes, high):
            yield TrainingEffect(
                effects.outcome, BOOTSTRAP, takes, estimate=estimate, n_models=n_models,
                reason=reason,
            )  # fmt: skip
            continue
        low, high_end = np.quantile(draws[np.isfinite(draws)], [(1 - level) / 2, (1 + level) / 2])
        yield TrainingEffect(
            effects.outcome, BOOTSTRAP, takes, estimate=estimate, low=float(low),
            high=float(high_end), n_models=n_models,
            diagnostics=_bootstrap_note(takes, high),
        )  # fmt: skip
    means = adjusted_means(table)
    if means is None:
        reason = "models and concepts are not linked: what one ran, too few others ran"
        yield TrainingEffect(effects.outcome, MEANS, "models", reason=reason)
    else:
        t = two_sample_t(means, high, level=level)
        yield TrainingEffect(
            effects.outcome, MEANS, "models", estimate=t.value, low=t.low, high=t.high,
            n_models=n_models, diagnostics=f"degrees of freedom: {n_models - 2}", reason=t.reason,
        )  # fmt: skip
    p, floor = permutation(table, high, stream("training labels", seed=seed))
    yield TrainingEffect(
        effects.outcome, PERMUTATION, "labels of models", estimate=estimate, p_value=p,
        least_p=floor, n_models=n_models, diagnostics=f"the least possible p is {floor:.4g}",
    )  # fmt: skip


def _one_sided(effects: CellEffects) -> str:
    both = "training" in effects.predictors
    return "" if both else f"needs models of both trainings, {LOW!r} and {HIGH!r}"


def _table(effects: CellEffects) -> np.ndarray:
    table = np.full((len(effects.models), len(effects.concepts)), np.nan)
    table[effects.model, effects.concept] = effects.value
    return table


def adjusted_means(table: np.ndarray) -> np.ndarray | None:
    """Model means as if all had run every concept: least squares of model + concept, dims (model).

    The plain means where nothing is missing; None where the cells do not link every model.
    """
    model, concept = np.nonzero(np.isfinite(table))
    n_models, n_concepts = table.shape
    design = np.hstack([np.eye(n_models)[model], np.eye(n_concepts)[concept]])
    solution = np.linalg.lstsq(design, table[model, concept], rcond=None)[0]
    ran = np.isfinite(table).any(axis=0)
    if np.linalg.matrix_rank(design) < n_models + int(ran.sum()) - 1:
        return None
    return solution[:n_models] + solution[n_models:][ran].mean()


def _fewest(high: np.ndarray) -> int:
    """Models of the training that has fewer."""
    return int(min(high.sum(), (~high).sum()))


def _alone(takes: str, high: np.ndarray) -> str:
    """Why models cannot be resampled: drawn from one alone, they are that one every time."""
    if takes in (ITEMS, CONCEPTS) or _fewest(high) > 1:
        return ""
    return "one training has one model, so resampling models says nothing of others like it"


def _bootstrap_note(takes: str, high: np.ndarray) -> str:
    """That so few models of a training, resampled, make too narrow an interval; else nothing."""
    if takes in (ITEMS, CONCEPTS) or _fewest(high) >= ENOUGH_TO_RESAMPLE:
        return ""
    return f"{UNDERSTATED}: {_fewest(high)} models of one training, resampled"


def _bootstraps(
    effects: CellEffects, table: np.ndarray, high: np.ndarray, seed: int, n_resamples: int
) -> dict[str, np.ndarray]:
    """Draws of the difference with items, then concepts, then models too drawn anew.

    Items enter by their sampling covariance, the joint item bootstrap's; models are drawn within
    their training. The error of the items is in the effects already where concepts are drawn too,
    which widens, and few concepts or models drawn with replacement vary too little, which narrows.
    """
    rng = stream(f"bootstrap of training in {effects.outcome}", seed=seed)
    n_models, n_concepts = table.shape
    errors = np.zeros((n_resamples, n_models, n_concepts))
    for c in range(n_concepts):
        at = np.flatnonzero(effects.concept == c)
        factor = root_of(effects.covariance[np.ix_(at, at)])
        errors[:, effects.model[at], c] = rng.standard_normal((n_resamples, len(at))) @ factor.T
    concepts = rng.multinomial(n_concepts, np.full(n_concepts, 1 / n_concepts), n_resamples)
    models = np.ones((n_resamples, n_models))
    for side in (high, ~high):
        n = int(side.sum())
        models[:, side] = rng.multinomial(n, np.full(n, 1 / n), n_resamples)
    every = np.ones((1, n_models)), np.ones((1, n_concepts))
    if n_concepts == 1:
        return {
            ITEMS: difference(table + errors, high, *every),
            WITHOUT_CONCEPTS: difference(table + errors, high, models, every[1]),
        }
    return {
        ITEMS: difference(table + errors, high, *every),
        CONCEPTS: difference(table + errors, high, every[0], concepts),
        MODELS: difference(table + errors, high, models, concepts),
    }


def permutation(
    table: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Two-sided p of `difference` over every way to give out the labels, and the least possible p.

    With more than MAX_ASSIGNMENTS ways, over so many random ones and the one found; ways in which
    no concept was run by both sides are left out. The null is that models are exchangeable: that
    neither training nor anything that goes with it, such as size, makes a difference.
    """
    n, k = len(high), int(high.sum())
    exact = comb(n, k) <= MAX_ASSIGNMENTS
    if exact:
        marked = np.zeros((comb(n, k), n), bool)
        for row, chosen in enumerate(combinations(range(n), k)):
            marked[row, list(chosen)] = True
    else:
        marked = rng.permuted(np.tile(high, (MAX_ASSIGNMENTS, 1)), axis=1)
        marked[0] = high
    ones = np.ones(n), np.ones(table.shape[1])
    drawn = np.abs([difference(table, labels, *ones) for labels in marked])
    observed = abs(float(difference(table, high, *ones)))
    if not np.isfinite(observed):
        return np.nan, np.nan
    defined = np.isfinite(drawn)
    p = float(np.mean(drawn[defined] >= observed - 1e-12 * max(1.0, observed)))
    floor = (2 if exact and 2 * k == n else 1) / int(defined.sum())
    return p, floor


def _exact(
    effects: CellEffects, terms: Sequence[str], adjusted: str, level: float
) -> TrainingEffect:
    if reason := why_not(effects, terms):
        return TrainingEffect(effects.outcome, GRID, _random(effects), adjusted, reason=reason)
    posterior, notes = fit(effects, terms=terms), f"prior: {PRIOR}{_notes(effects, terms)}"
    return TrainingEffect(
        effects.outcome, GRID, _random(effects), adjusted, **summary(posterior, level),
        n_models=len(np.unique(effects.model)), diagnostics=notes,
    )  # fmt: skip


def _random(effects: CellEffects) -> str:
    return MODELS if len(np.unique(effects.concept)) > 1 else WITHOUT_CONCEPTS


def _notes(effects: CellEffects, terms: Sequence[str]) -> str:
    """What a reader of the exact interval should know of these cells."""
    notes = []
    if len(np.unique(effects.model)) < len(terms) + 3:
        notes.append("one degree of freedom between models: mostly the prior on sd_model")
    if effects.left_out:
        notes.append(f"without a usable effect: {', '.join(effects.left_out)}")
    return "".join(f"; {note}" for note in notes)


def summary(posterior: Posterior, level: float, name: str = "training") -> dict[str, Any]:
    """Median, interval and what a reader asks of one slope's posterior."""
    return {
        "estimate": posterior.quantile(name, 0.5),
        "low": posterior.quantile(name, (1 - level) / 2),
        "high": posterior.quantile(name, (1 + level) / 2),
        "probability_negative": posterior.cdf(name, 0.0),
        "probability_negligible": posterior.within(name, posterior.effects.negligible),
        "bayes_factor": posterior.bayes_factor(name),
    }


def _reml(
    effects: CellEffects, terms: Sequence[str], adjusted: str, level: float
) -> TrainingEffect:
    if reason := why_not(effects, terms):
        return TrainingEffect(effects.outcome, REML, _random(effects), adjusted, reason=reason)
    n_models = len(np.unique(effects.model))
    try:
        found = reml_of_cells(effects, terms=terms)
    except ValueError as error:
        return TrainingEffect(effects.outcome, REML, _random(effects), adjusted, reason=str(error))
    return TrainingEffect(
        effects.outcome, REML, _random(effects), adjusted, **t_interval(found, n_models, level),
        n_models=n_models, diagnostics=_boundary(found),
    )  # fmt: skip


def t_interval(found: Reml, n_models: int, level: float, name: str = "training") -> dict[str, Any]:
    """Estimate and t interval with as many degrees of freedom as models remain after the terms."""
    half = t_quantile(level, n_models - len(found.coefficients)) * found.standard_errors[name]
    value = found.coefficients[name]
    return {"estimate": value, "low": value - half, "high": value + half}


def _boundary(found: Reml) -> str:
    if not found.at_boundary:
        return "no variance at its boundary"
    return f"at its boundary 0, so that the interval is too narrow: {', '.join(found.at_boundary)}"


def _nuts(effects: CellEffects, sampled: Sampled) -> TrainingEffect:
    terms = primary_terms(effects)
    adjusted = BOTH if terms == TERMS else ALONE
    exact = fit(effects, terms=terms)
    diagnostics = gates_text(sampled, exact)
    problems = failed_gates(sampled, exact)
    if problems or "training" not in terms:
        reason = f"failed its gates: {'; '.join(problems)}" if problems else _one_sided(effects)
        return TrainingEffect(effects.outcome, NUTS, MODELS, adjusted, diagnostics=diagnostics,
                      reason=reason)  # fmt: skip
    row = sampled.summary["training"]
    return TrainingEffect(
        effects.outcome, NUTS, MODELS, adjusted, estimate=row["median"], low=row["low"],
        high=row["high"], probability_negative=row["negative"],
        n_models=len(np.unique(effects.model)), mc_error=row["mcse_mean"],
        diagnostics=diagnostics,
    )  # fmt: skip


def _of_items(cells: xr.Dataset) -> Iterator[TrainingEffect]:
    """The fits of single items that the cells keep, of Cohen's d."""
    outcome, n_models = ITEM_OUTCOME, len(compared_models(cells))
    if not {"item_fit_of", "item_fit_value"} <= set(cells.variables):
        reason = "the cells keep no fit of single items; `steercube analyze` makes it from the cube"
        yield TrainingEffect(outcome, "items", MODELS, BOTH, reason=reason)
        return
    if cells["item_fit_of"].item() != fitted_to(cells):
        reason = "the cells keep fits of other models, trainings or concepts"
        yield TrainingEffect(outcome, "items", MODELS, BOTH, reason=reason)
        return
    terms = primary_terms(cell_effects(cells))
    adjusted = next((name for name, of in ADJUSTED.items() if of == terms), "scale")
    for fit_name in cells["item_fit"].values:
        found = cells.sel(item_fit=fit_name)
        ends = {name: float(found[f"item_fit_{name}"].sel(item_term="training"))
                for name in ("value", "low", "high")}  # fmt: skip
        yield TrainingEffect(
            outcome, str(fit_name), MODELS, adjusted, estimate=ends["value"], low=ends["low"],
            high=ends["high"], n_models=n_models, diagnostics=found["item_fit_diagnostics"].item(),
            reason=found["item_fit_problem"].item(),
        )  # fmt: skip
