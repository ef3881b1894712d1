r"""Generated answers from the cells: rates, curves over layers, and the largest of them.

A rate is the published one of a (model, concept), else counted from the responses in the cube; both
may be there, and then the responses are usually many more. The largest change over layers is never
shown without what it would be if steering did nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.means import level_of, mean_of_models
from steercube.analysis.per_cell.estimands import BASELINE, NEGATIVE, POSITIVE
from steercube.estimate import Estimate

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
UPPER_BOUND = "at most: its null, from rates alone, is a lower bound"
"""Said of an excess over a null that leaves out a part of the noise."""
MIN_LAYERS = 4
"""Fewest layers that make a curve with a shape."""
MIN_ITEMS = 10
"""Fewest items of which a bootstrap distribution says anything; below, statistics are NaN."""


def generation_delta(cells: xr.Dataset, rate: str = "generation_rate") -> xr.DataArray:
    """Generation rate at +1 minus that at -1, without the dimension strength."""
    return cells[rate].sel(strength=POSITIVE) - cells[rate].sel(strength=NEGATIVE)


def is_counted(cells: xr.Dataset, model: str, concept: str) -> bool:
    """Whether the generation rate was counted from responses that are all in the cube."""
    if "response_match_rate" not in cells:
        return False
    at = {"model": model, "concept": concept}
    rate, counted = (cells[n].sel(at) for n in ("generation_rate", "response_match_rate"))
    return bool(counted.notnull().any() and rate.equals(counted.rename(rate.name)))


def has_other_responses(cells: xr.Dataset, model: str, concept: str) -> bool:
    """Whether responses are known beside a published rate that was not counted from them."""
    at = {"model": model, "concept": concept}
    known = "response_r" in cells and bool(cells["response_r"].sel(at).notnull())
    return known and not is_counted(cells, model, concept)


def layer_curves(
    cells: xr.Dataset,
    *,
    concept: str,
    models: Sequence[str] | None,
    rate: str = "generation_rate",
) -> Curves:
    """(logit delta, generation delta) over the layers where a model has both, by model.

    Beside a curve counted from responses stands the logit curve of the items that answered.
    """
    if rate not in cells or concept not in cells["concept"]:
        return {}
    order = ("model", "layer")
    of_concept = cells.sel(concept=concept)
    delta = of_concept["estimate"].sel(estimand="delta", drop=True)
    if "answered_delta" in cells:
        counted = xr.DataArray(
            [
                rate != "generation_rate" or is_counted(cells, model, concept)
                for model in cells["model"].values
            ],
            dims="model",
        )
        delta = of_concept["answered_delta"].where(counted, delta)
    logit = delta.transpose(*order).values
    generation = generation_delta(of_concept, rate).transpose(*order).values
    curves = {}
    for model, *pair in zip(map(str, cells["model"].values), logit, generation, strict=True):
        both = np.isfinite(pair).all(axis=0)
        if (models is None or model in models) and both.sum() >= MIN_LAYERS:
            curves[model] = (pair[0][both], pair[1][both])
    return curves


def shaped_curves(
    cells: xr.Dataset,
    *,
    concept: str,
    models: Sequence[str] | None,
    rate: str = "generation_rate",
) -> Curves:
    """Those of `layer_curves` that vary in both measures: a flat one has no shape to agree with."""
    curves = layer_curves(cells, concept=concept, models=models, rate=rate)
    return {m: pair for m, pair in curves.items() if all(np.ptp(curve) > 0 for curve in pair)}


def best_generation(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Mean over models of the largest generation delta over layers, t over models.

    `expected_under_null` is what that maximum would average if steering did nothing: rates of
    few answers, maximised over many layers, hold much noise. `corrected` is the mean of what one
    half of the items shows at the layer that the other half selects, where items are known.
    """
    best, null, halves = _best_and_null(cells, concept, models)
    if not len(best):
        return Estimate.undefined("no generation sweep of this concept")
    always = {"reason": "a maximum exceeds 0 without any effect"} if len(best) > 1 else {}
    return mean_of_models(
        best,
        level_of(cells),
        corrected=float(np.mean(halves)),
        expected_under_null=float(np.mean(null)),
        **always,
    )


def best_generation_excess(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Mean over models of the largest generation delta less its expectation under no effect.

    Where only rates were published that expectation is a lower bound, and so the excess an upper
    one, which its `reason` then says: see `expected_maximum`. t over models.
    """
    best, null, _ = _best_and_null(cells, concept, models)
    known = np.isfinite(null)
    if not known.any():
        return Estimate.undefined("what the maximum would be under no effect is not known")
    found = mean_of_models((best - null)[known], level_of(cells))
    names = np.array(list(layer_curves(cells, concept=concept, models=models)))[known]
    if all(is_counted(cells, model, concept) for model in names):
        return found
    reasons = [UPPER_BOUND, *([found.reason] if found.reason else [])]
    return replace(found, reason="; ".join(reasons))


def _best_and_null(
    cells: xr.Dataset, concept: str, models: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest delta, its expectation under no effect and its held-out value, by model."""
    curves = layer_curves(cells, concept=concept, models=models)
    best = np.array([generation.max() for _, generation in curves.values()])
    null = np.array([expected_maximum(cells, concept=concept, model=model) for model in curves])
    halves = np.array(
        [
            float(cells["best_response_split_half"].sel(model=m, concept=concept))
            if is_counted(cells, m, concept)
            else np.nan
            for m in curves
        ]
    )
    return best, null, halves


def best_generation_layer(cells: xr.Dataset, *, concept: str, model: str) -> Estimate:
    """The layer with the largest generation delta, the first of equals.

    Which layer it is has no interval here; `best_response` and `expected_maximum` say what the
    largest delta is worth.
    """
    delta = generation_delta(cells).sel(model=model, concept=concept)
    if not delta.notnull().any():
        return Estimate.undefined("no generation sweep of this concept")
    best = float(delta["layer"][int(delta.fillna(-np.inf).argmax("layer"))])
    return Estimate(best, n=int(delta.notnull().sum()), reason="chosen among n layers")


def best_response(cells: xr.Dataset, *, concept: str, model: str) -> Estimate:
    """Largest delta of the responses over layers, beside its null and its cross-validated value.

    `p_value` and `expected_under_null` exchange +1 and -1 for random items, at all layers together;
    `corrected` is one half's value at the layer that the other half selects.
    """
    at = {"model": model, "concept": concept}
    if "best_response_delta" not in cells or cells["best_response_delta"].sel(at).isnull():
        return Estimate.undefined("the answers of single items are not known")
    name = "best_response_{}".format
    return Estimate(
        float(cells[name("delta")].sel(at)),
        n=int(cells["n_response_items"].sel(at)),
        corrected=float(cells[name("split_half")].sel(at)),
        p_value=float(cells[name("p")].sel(at)),
        expected_under_null=float(cells[name("null")].sel(at)),
        reason="one maximum over layers has no interval of its own",
    )


def expected_maximum(cells: xr.Dataset, *, concept: str, model: str) -> float:
    """Expected largest generation delta over layers if nothing were added at either strength.

    From the items where their answers are known (see `best_response`). Where only rates are, the
    sweep measured its unsteered rate anew at every layer, so differences of two of those are what
    noise alone does to a delta. With F their distribution over all ordered pairs and L layers, the
    largest of L such differences has the distribution F^L. That is the noise of sampling answers
    again; a useless direction of the same norm would do more, so it is a lower bound. NaN where
    fewer than two baselines were measured, so that nothing is known of them.
    """
    if is_counted(cells, model, concept):
        return best_response(cells, concept=concept, model=model).expected_under_null
    if BASELINE not in cells["strength"]:
        return np.nan
    baseline = cells["generation_rate"].sel(model=model, concept=concept, strength=BASELINE).values
    baseline = baseline[np.isfinite(baseline)]
    first, second = np.triu_indices(len(baseline), k=1)
    apart = baseline[first] - baseline[second]
    if not len(apart):
        return np.nan
    differences = np.sort(np.concatenate([apart, -apart]))
    cumulative = (np.arange(1, len(differences) + 1) / len(differences)) ** len(baseline)
    return float(differences @ np.diff(cumulative, prepend=0.0))


def generation(cells: xr.Dataset) -> pd.DataFrame:
    """Generated answers of every layer and strength: how many are valid, and how many match.

    `match_rate` is the share of matching among the `n_valid`; both shares with Wilson's interval
    over responses. A rate that was only published has no interval, and its validity is pooled over
    strengths, so that `n_valid` is their mean, rounded. An item's repeats count as responses of
    their own, so with repeats the intervals are too narrow.
    """
    tables = []
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
            low, high = wilson(count.to_numpy(), counted_n, level_of(cells))
            table[f"{name}_low"], table[f"{name}_high"] = low, high
        for name in ("n_responses", "n_valid"):
            table[name] = table[name].astype("Int64")
    return table


def _long(source: str, columns: Mapping[str, xr.DataArray]) -> pd.DataFrame:
    """Columns by model, concept, layer and strength, where there is any answer."""
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
