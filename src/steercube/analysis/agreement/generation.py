r"""Generated answers from the cells: rates, curves over layers, and the largest change.

A rate of a (model, concept) is the published one, else counted from the responses in the cube; if
both exist, the responses are usually many more. The largest change over layers is always shown with
its expectation if steering did nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.means import mean_of_models
from steercube.analysis.per_cell.changes import VALID
from steercube.analysis.per_cell.estimands import BASELINE
from steercube.analysis.per_cell.responses import MIN_LAYERS
from steercube.analysis.view import Study, kept
from steercube.cells import CHANGES, compared_strengths
from steercube.estimate import Estimate, Student
from steercube.measures import GENERATION_MATCH, READ

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
UPPER_BOUND = "at most: its null, from rates alone, is a lower bound"
"""Reason given with an excess over a null that leaves out part of the noise."""
ONE_MAXIMUM = "one maximum over layers has no interval of its own"


def generation_delta(cells: xr.Dataset, rate: str = "generation_rate") -> xr.DataArray:
    """Generation rate at the high compared strength minus that at the low one, without strength."""
    low, high = (
        cells[rate].reindex(strength=[end]).isel(strength=0, drop=True)
        for end in compared_strengths(cells)
    )
    return high - low


@kept
def is_counted(study: Study, model: str, concept: str) -> bool:
    """Whether the generation rate was counted from responses that are all in the cube."""
    if "response_match_rate" not in study.cells:
        return False
    at = {"model": model, "concept": concept}
    rate, counted = (study.cells[n].sel(at) for n in ("generation_rate", "response_match_rate"))
    return bool(counted.notnull().any() and rate.equals(counted.rename(rate.name)))


@kept
def has_other_responses(study: Study, model: str, concept: str) -> bool:
    """Whether responses are known beside a published rate that was not counted from them."""
    known = "response_r" in study.cells and np.isfinite(
        of_pair(study, "response_r", model, concept)
    )
    return known and not is_counted(study, model, concept)


def of_pair(study: Study, name: str, model: str, concept: str) -> float:
    """A variable of the cells for one (model, concept); NaN where the cells lack it."""
    if name not in study.cells:
        return np.nan
    return float(study.cells[name].sel(model=model, concept=concept))


def layer_curves(
    study: Study,
    *,
    concept: str,
    models: Sequence[str] | None = None,
    rate: str = "generation_rate",
) -> Curves:
    """(logit delta, generation delta) over the layers where a model has both, by model.

    A curve counted from responses comes with the logit curve of the items that have responses.
    """
    every = _layer_curves(study, concept, rate)
    return {model: pair for model, pair in every.items() if models is None or model in models}


@kept
def _layer_curves(study: Study, concept: str, rate: str) -> Curves:
    cells = study.cells
    if rate not in cells or concept not in study.concepts:
        return {}
    names, order = [str(m) for m in cells["model"].values], ("model", "layer")
    of_concept = cells.sel(concept=concept)
    delta = of_concept["estimate"].sel(estimand="delta", drop=True)
    if "answered_delta" in cells:
        counted = [rate != "generation_rate" or is_counted(study, m, concept) for m in names]
        answered = of_concept["answered_delta"]
        delta = answered.where(xr.DataArray(counted, dims="model"), delta)
    logit = delta.transpose(*order).values
    generation = generation_delta(of_concept, rate).transpose(*order).values
    curves = {}
    for model, *pair in zip(names, logit, generation, strict=True):
        both = np.isfinite(pair).all(axis=0)
        if both.sum() >= MIN_LAYERS:
            curves[model] = (pair[0][both], pair[1][both])
    return curves


def shaped_curves(
    study: Study,
    *,
    concept: str,
    models: Sequence[str] | None = None,
    rate: str = "generation_rate",
) -> Curves:
    """The `layer_curves` that vary in both measures: a flat one has no correlation."""
    curves = layer_curves(study, concept=concept, models=models, rate=rate)
    return {m: pair for m, pair in curves.items() if all(np.ptp(curve) > 0 for curve in pair)}


def best_generation(study: Study, *, concept: str, models: Sequence[str] | None = None) -> Estimate:
    """Mean over models of the largest generation delta over layers, t over models.

    `expected_under_null` is the mean of that maximum if steering did nothing: rates of few answers,
    maximised over many layers, contain much noise. `corrected` is the mean delta on one half of the
    items at the layer selected on the other half, if items are known.
    """
    best, null, halves = _best_and_null(study, concept, models)
    if not len(best):
        return Estimate.undefined("no generation sweep of this concept")
    always = {"reason": "a maximum exceeds 0 without any effect"} if len(best) > 1 else {}
    return mean_of_models(
        best,
        study.level,
        corrected=float(np.mean(halves)),
        expected_under_null=float(np.mean(null)),
        **always,
    )


def best_generation_excess(
    study: Study, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Mean over models of the largest generation delta less its expectation under no effect.

    If only rates were published that expectation is a lower bound, so the excess is an upper bound,
    as its `reason` says: see `expected_maximum`. t over models.
    """
    best, null, _ = _best_and_null(study, concept, models)
    known = np.isfinite(null)
    if not known.any():
        return Estimate.undefined("what the maximum would be under no effect is not known")
    excess = mean_of_models((best - null)[known], study.level)
    names = np.array(list(layer_curves(study, concept=concept, models=models)))[known]
    if all(is_counted(study, str(model), concept) for model in names):
        return excess
    reasons = [UPPER_BOUND, *([excess.reason] if excess.reason else [])]
    return replace(excess, reason="; ".join(reasons))


def _best_and_null(
    study: Study, concept: str, models: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest delta, its expectation under no effect and its held-out value, by model."""
    curves = layer_curves(study, concept=concept, models=models)
    best = [generation.max() for _, generation in curves.values()]
    null = [expected_maximum(study, concept=concept, model=model) for model in curves]
    halves = [
        of_pair(study, "best_response_split_half", model, concept)
        if is_counted(study, model, concept)
        else np.nan
        for model in curves
    ]
    return np.array(best), np.array(null), np.array(halves)


def best_generation_layer(study: Study, *, concept: str, model: str) -> Estimate:
    """The layer with the largest generation delta, the first of ties.

    It has no interval; `best_response` and `expected_maximum` show how much of the largest delta is
    noise.
    """
    delta = generation_delta(study.cells).sel(model=model, concept=concept)
    if not delta.notnull().any():
        return Estimate.undefined("no generation sweep of this concept")
    best = float(delta["layer"][int(delta.fillna(-np.inf).argmax("layer"))])
    return Estimate(best, n=int(delta.notnull().sum()), reason="chosen among n layers")


def best_response(study: Study, *, concept: str, model: str) -> Estimate:
    """Largest delta of the responses over layers, with its null and its held-out value.

    `p_value` and `expected_under_null` exchange +1 and -1 for random items, at all layers together;
    `corrected` is the value on one half of the items at the layer selected on the other.
    """

    def value_of(name: str) -> float:
        return of_pair(study, name, model, concept)

    if np.isnan(value_of("best_response_delta")):
        return Estimate.undefined("the answers of single items are not known")
    return Estimate(
        value_of("best_response_delta"),
        n=int(value_of("n_response_items")),
        corrected=value_of("best_response_split_half"),
        p_value=value_of("best_response_p"),
        expected_under_null=value_of("best_response_null"),
        reason=ONE_MAXIMUM,
    )


def best_response_excess(study: Study, *, concept: str, model: str) -> Estimate:
    """The largest delta of the responses less its mean if +1 and -1 are exchanged for random items.

    Student's t, its error the sd of the largest delta over resamples of the items. In simulated
    sweeps of 40 and 100 items the interval covers the mean excess of such sweeps in 95 to 99%. It
    is too wide where steering does little, as the largest of many resampled deltas varies more than
    that of the sample. The excess itself is 0 without an effect, and less than a real effect, as
    what chance gives is taken off in full: `best_response` has the value held out.
    """
    of_largest = best_response(study, concept=concept, model=model)
    if np.isnan(of_largest.expected_under_null):
        return Estimate.undefined(of_largest.reason)
    error = of_pair(study, "best_response_error", model, concept)
    excess = of_largest.value - of_largest.expected_under_null
    known = Student(excess, error, of_largest.n - 1)
    return Estimate.of(known, study.level, over="items", n=of_largest.n, p_value=of_largest.p_value)


def validity_at_best(study: Study, *, concept: str, model: str) -> Estimate:
    """The change of the share of valid answers at the best layer for answers.

    Between the compared strengths, on the same items (`per_cell.changes`); which of the two breaks
    answers, or mends them, the changes from strength zero say. That layer was chosen by the match.
    """
    layer = of_pair(study, "best_response_layer", model, concept)
    if CHANGES not in study.records or np.isnan(layer):
        return Estimate.undefined("the answers of single items are not known")
    table, ends = study.records[CHANGES], compared_strengths(study.cells)
    labels = {
        **{"outcome": VALID, "measure": GENERATION_MATCH.name, "direction": ""},
        **{"model": model, "concept": concept, "layer": layer},
        **dict(zip(("low_strength", "high_strength"), ends, strict=True)),
    }
    at = np.all([table[name] == label for name, label in labels.items()], axis=0)
    of = table[at & table["reading"].isin([READ, ""])]
    if len(of) != 1:
        return Estimate.undefined("these strengths were not compared")
    row = of.iloc[0]
    low, high = float(row["change_low"]), float(row["change_high"])
    return Estimate(float(row["change"]), low=low, high=high, over="items", n=int(row["n_items"]))


def expected_maximum(study: Study, *, concept: str, model: str) -> float:
    """Expected largest generation delta over layers if nothing were added at either strength.

    From the items if their answers are known (see `best_response`). If only rates are, the sweep
    measured its unsteered rate again at every layer, so differences of two of those show what noise
    alone does to a delta. With F their distribution over all ordered pairs and L layers, the
    largest of L such differences has the distribution F^L. That is only the noise of sampling
    answers again; a useless direction of the same norm would do more, so it is a lower bound. NaN
    if fewer than two baselines were measured.
    """
    if is_counted(study, model, concept):
        return best_response(study, concept=concept, model=model).expected_under_null
    if BASELINE not in study.cells["strength"]:
        return np.nan
    baseline = (
        study.cells["generation_rate"].sel(model=model, concept=concept, strength=BASELINE).values
    )
    baseline = baseline[np.isfinite(baseline)]
    first, second = np.triu_indices(len(baseline), k=1)
    gaps = baseline[first] - baseline[second]
    if not len(gaps):
        return np.nan
    differences = np.sort(np.concatenate([gaps, -gaps]))
    cumulative = (np.arange(1, len(differences) + 1) / len(differences)) ** len(baseline)
    return float(differences @ np.diff(cumulative, prepend=0.0))


def generation(study: Study) -> pd.DataFrame:
    """Generated answers of every layer and strength: how many are valid, and how many match.

    `match_rate` is the share of matching among the `n_valid`; both shares with Wilson's interval
    over responses. A rate that was only published has no interval, and its validity is pooled over
    strengths, so that `n_valid` is their mean, rounded. An item's repeats count as responses of
    their own, so with repeats the intervals are too narrow.
    """
    cells, tables = study.cells, []
    if "generation_valid_rate" in cells:
        valid = cells["generation_valid_rate"]
        rate = cells["generation_rate"].where(valid.notnull())
        published = {"valid_rate": valid, "match_rate": rate}
        if "generation_n_prompts" in cells:
            published = {"n_responses": cells["generation_n_prompts"]} | published
        tables.append(_long("published", published))
    if "n_responses" in cells:
        counted = {
            "n_responses": cells["n_responses"],
            "valid_rate": cells["response_valid_rate"],
            "match_rate": cells["response_match_rate"],
        }
        tables.append(_long("counted", counted))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables).reset_index(drop=True)
    if "n_responses" in table:
        n_valid = (table["n_responses"] * table["valid_rate"]).round()
        counts = {
            "valid_rate": (n_valid, table["n_responses"]),
            "match_rate": ((n_valid * table["match_rate"]).round(), n_valid),
        }
        table.insert(table.columns.get_loc("n_responses") + 1, "n_valid", n_valid)
        for name, (count, n) in counts.items():
            counted_n = n.where(table["source"] == "counted").to_numpy()
            low, high = wilson(count.to_numpy(), counted_n, study.level)
            table[f"{name}_low"], table[f"{name}_high"] = low, high
        for name in ("n_responses", "n_valid"):
            table[name] = table[name].astype("Int64")
    return table


def _long(source: str, columns: Mapping[str, xr.DataArray]) -> pd.DataFrame:
    """The arrays as a long table: a row per model, concept, layer and strength with answers."""
    bare = {name: column.reset_coords(drop=True) for name, column in columns.items()}
    order = ["model", "concept", "layer", "strength"]
    frame = xr.Dataset(bare).to_dataframe(dim_order=order).reset_index()
    frame.insert(len(order), "source", source)
    return frame[frame["valid_rate"].notna()]


def wilson(count: np.ndarray, n: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a share, count / n; NaN where n is 0 or unknown."""
    z = stats.norm.ppf((1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = count / n
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
