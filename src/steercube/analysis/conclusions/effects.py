"""The tables of effects: at the best layer of each (model, concept), and at every layer.

The best layer of a (model, concept) is the one with the largest delta, by the study's definition.
It says nothing of layers that were not run: where a gap or the end of the sweep is beside it, the
largest delta of the network may lie there. And it says nothing of a vector that steers the wrong
way, whose largest delta is a small one, at whichever layer does least. Both are flagged from the
cells' layers, so they are known of cells of any age.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from steercube.analysis.agreement.generation import generation_delta
from steercube.analysis.conclusions.multiplicity import holm
from steercube.analysis.over_models.depth import selection_interval
from steercube.analysis.per_cell.estimands import ESTIMANDS, Effect
from steercube.analysis.per_cell.steers import ALPHA, MIN_OF_A_LETTER, NO, UNKNOWN, YES
from steercube.analysis.view import Study
from steercube.cells import OF_THE_VECTOR, REASONS, unrecorded_estimands

GAP = 1.5
"""How many times the usual distance between swept layers makes a gap: more than the rounding of
layers that were chosen by their depth does, less than one layer left out."""

FIRST, LAST, GAP_BESIDE = "first swept", "last swept", "beside a gap"
FIRST_BLOCK, LAST_BLOCK = "first block", "last block"
ONLY = "only layer swept"
OPEN = (FIRST, LAST, GAP_BESIDE, ONLY)
"""Flags of a layer beside which the network goes on where nothing was run."""

OTHER_WAY = "steers the other way"
MORE_OTHER_WAY = "moves more the other way"
ONE_ITEM, FEW_ITEMS = "one item carries it", "a few items carry it"
INFLUENCE = "influence"
NO_TEST = "the cells hold no such test; make them again from the cube with `steercube analyze`"
FEW_OF_A_LETTER = f"fewer than {MIN_OF_A_LETTER} items of a letter"


def effects(study: Study) -> pd.DataFrame:
    """Best layer of each (model, concept) with every estimand there.

    The columns of an estimand begin with its name; `effects_long` has a row for each instead. Rows
    that were never run say why and hold no number; the others say which estimands the cells lack.
    `steers` is the verdict of a test over all layers (`per_cell/steers.py`), not of the interval at
    the best one. What is beside that layer is in `layer_flag`; `largest_cohens_d` is Cohen's d
    where |delta| is largest, with its sign, and `direction_flag` says whether that is the other
    way. `influence` is what Cohen's d at the best layer changes by if the one item is left out that
    changes it most, `influential_item`; `influence_flag` says whether d rests on it, or on a few.
    """
    steered = steering(study)
    rows = [
        _pair(study, steered, model, concept)
        for model in study.models
        for concept in study.concepts
    ]
    table = pd.DataFrame(rows).astype({"layer": "Int64", "largest_cohens_d_layer": "Int64"})
    # A copy holds its columns together; pandas warns who adds one to over a hundred single ones.
    return table.copy()


def _pair(study: Study, steered: pd.DataFrame, model: str, concept: str) -> dict[str, Any]:
    cell = study.cells.sel(model=model, concept=concept)
    of_layers = cell["estimate"]
    cell = cell[[n for n in cell.data_vars if str(n).startswith("selected_")]]
    layer, depth = float(cell["selected_layer"]), selection_interval(study, model, concept)
    row: dict[str, Any] = {
        "model": model,
        "concept": concept,
        "training": cell["training"].item(),
        "layer": layer if np.isnan(layer) else int(layer),
        "depth": depth.value,
        "depth_low": depth.low,
        "depth_high": depth.high,
        "depth_reason": depth.reason,
        "n": int(cell["n_items"]),
    }
    for name in ESTIMANDS:
        row |= _selected_columns(cell.sel(estimand=name), name)
    row |= _steering_columns(steered, model, concept)
    row |= _influence_columns(cell, row)
    row |= _selection_columns(of_layers, layer, row["steers_other_way"])
    lacking = ", ".join(_unrecorded(study.cells))
    not_recorded = f"not recorded: {lacking}" if lacking else ""
    return row | {"reason": _reason_text(cell.sel(estimand="cohens_d")) or not_recorded}


def _selected_columns(cell: xr.Dataset, name: str) -> dict[str, float]:
    estimate, optimism = float(cell["selected_estimate"]), float(cell["selected_optimism"])
    return {
        name: estimate,
        f"{name}_low": float(cell["selected_low"]),
        f"{name}_high": float(cell["selected_high"]),
        f"{name}_optimism": optimism,
        f"{name}_corrected": estimate - optimism,
        f"{name}_se": float(cell["selected_se"]),
        f"{name}_split_half": float(cell["selected_split_half"]),
    }


def _influence_columns(cell: xr.Dataset, row: Mapping[str, Any]) -> dict[str, Any]:
    """What one item changes of Cohen's d; `row` has every estimand of the pair."""
    change, item = np.nan, ""
    if "selected_influence" in cell:
        change = float(cell["selected_influence"])
        item = str(cell["selected_influential_item"].item())
    d, robust = (Effect(row[name], row[f"{name}_se"]) for name in ("cohens_d", "trimmed_d"))
    return {
        INFLUENCE: change,
        "influential_item": item,
        "influence_flag": influence_flag(change, d, robust),
    }


def influence_flag(change: float, d: Effect, robust: Effect) -> str:
    """Whether one item, or a few, carry Cohen's d: empty, or in words.

    "one item carries it" where leaving the item out changes d by more than half of its value, and
    by more than its standard error; "a few items carry it" where one does not, but the trimmed d
    has another sign, or is more than twice or less than half as large, and is farther from d than
    both standard errors together. The standard errors keep effects near 0 from being flagged, which
    any item doubles. Of samples of 20 to 100 items from normal distributions, whatever their d,
    fewer than 1% are flagged; of 10 items, about 7%.

    >>> influence_flag(1.2, Effect(0.35, 0.2), Effect(1.5, 0.2))
    'one item carries it'
    """
    if abs(change) > max(abs(d.value) / 2, d.se):
        return ONE_ITEM
    ratio = robust.value / d.value if d.value else np.inf
    is_apart = abs(robust.value - d.value) > d.se + robust.se
    return FEW_ITEMS if is_apart and not 0.5 <= ratio <= 2 else ""


def _unrecorded(cells: xr.Dataset) -> list[str]:
    """What cells of an older steercube lack, of the columns of `effects`."""
    lacking = unrecorded_estimands(cells)
    return lacking if "selected_influence" in cells else [*lacking, INFLUENCE]


def _reason_text(cell: xr.Dataset) -> str:
    reason = int(cell["selected_reason"])
    return "" if not reason else next(n for n, v in REASONS.items() if v == reason)


def effects_long(study: Study) -> pd.DataFrame:
    """A row for every estimand of each (model, concept) at its best layer, dims as columns.

    `value` with its 95% interval over items [`low`, `high`], `standard_error` and `units`; `n`
    items. The best layer is the one with the largest delta, so a value is too large by its
    `optimism`; `corrected` is without it, and `split_half` is selected on one half of the items and
    estimated on the other. The interval covers the selection. NaN has its `reason`.
    """
    cells = study.cells
    columns = {
        **{"layer": "selected_layer", "value": "selected_estimate", "low": "selected_low"},
        **{"high": "selected_high", "standard_error": "selected_se"},
        **{"optimism": "selected_optimism", "split_half": "selected_split_half"},
        **{"n": "n_items", "units": "estimand_units", "reason": "selected_reason"},
    }
    estimands = [name for name in ESTIMANDS if name in cells.indexes["estimand"]]
    order = {"model": study.models, "concept": study.concepts, "estimand": estimands}
    bare = xr.Dataset({name: cells[of].reset_coords(drop=True) for name, of in columns.items()})
    dims = tuple(order)
    frame = bare.sel(order).to_dataframe(dim_order=dims).reset_index()
    frame["corrected"] = frame["value"] - frame["optimism"]
    frame["reason"] = frame["reason"].map({code: name for name, code in REASONS.items() if code})
    frame["reason"] = frame["reason"].fillna("")
    frame["layer"] = frame["layer"].astype("Int64")
    ends = ("value", "low", "high", "standard_error", "optimism", "corrected", "split_half", "n")
    return frame[[*dims, "units", "layer", *ends, "reason"]]


def steering(study: Study) -> pd.DataFrame:
    """Whether each pair that was run steers, indexed by (model, concept).

    `steers` is yes, no or unknown, then with its `steers_reason`; `p_steers` the p-value of the
    pair alone, `p_steers_holm` corrected for all pairs of these cells; `steers_other_way` and its
    p-values say the same of the opposite direction.
    """
    cells = study.cells
    run = cells["selected_layer"].sel(model=study.models).transpose("model", "concept")
    pairs = run.to_series().dropna().index
    found = pd.DataFrame(index=pairs)
    for direction, name in {"steers": "steers_p", "steers_other_way": "steers_other_way_p"}.items():
        p = np.full(len(pairs), np.nan)
        if name in cells:
            p = cells[name].transpose("model", "concept").to_series().loc[pairs].to_numpy()
        corrected = holm(p)
        verdict = np.where(corrected <= ALPHA, YES, NO).astype(object)
        found[direction] = np.where(np.isnan(corrected), UNKNOWN, verdict)
        found[f"p_{direction}"] = p
        found[f"p_{direction}_holm"] = corrected
    why = FEW_OF_A_LETTER if "steers_p" in cells else NO_TEST
    found["steers_reason"] = np.where(found["steers"] == UNKNOWN, why, "")
    return found


def _steering_columns(steered: pd.DataFrame, model: str, concept: str) -> dict[str, Any]:
    """What the test over layers says of a pair; empty where it was never run."""
    if (model, concept) in steered.index:
        return steered.loc[(model, concept)].to_dict()
    return {name: np.nan if name.startswith("p_") else "" for name in steered}


def _selection_columns(of_layers: xr.DataArray, best: float, other_way: str) -> dict[str, Any]:
    delta = of_layers.sel(estimand="delta")
    largest = largest_effect(delta, of_layers.sel(estimand="cohens_d"))
    swept = delta["layer"].values[delta.notnull().values]
    return {
        "layer_flag": layer_flag(swept, best, int(of_layers["n_layers"])),
        "largest_cohens_d": largest.effect,
        "largest_cohens_d_layer": largest.layer,
        "direction_flag": direction_flag(largest, other_way),
    }


def layer_flag(swept: np.ndarray, best: float, n_layers: int) -> str:
    """What the best of the swept layers has beside it; empty where its neighbours were swept too.

    At either end of the sweep it is the first or last layer swept or, where the network itself ends
    there, its first or last block.

    >>> layer_flag(np.array([4, 5, 6, 10, 11]), 6, 12)
    'beside a gap'
    >>> layer_flag(np.array([4, 5, 6, 10, 11]), 11, 12)
    'last block'
    """
    if not np.isfinite(best):
        return ""
    if len(swept) == 1:
        return ONLY
    distance = np.diff(swept)
    at = int(np.searchsorted(swept, best))
    beside = distance[max(at - 1, 0) : at + 1]
    flags = {
        FIRST_BLOCK if best == 0 else FIRST: at == 0,
        LAST_BLOCK if best == n_layers - 1 else LAST: at == len(swept) - 1,
        GAP_BESIDE: bool((beside > GAP * np.median(distance)).any()),
    }
    return ", ".join(flag for flag, holds in flags.items() if holds)


class Largest(NamedTuple):
    """The layer with the largest |delta|, Cohen's d there, and whether it is the other way."""

    layer: float
    effect: float
    other_way: bool


def largest_effect(delta: xr.DataArray, cohens_d: xr.DataArray) -> Largest:
    """Of one (model, concept): Cohen's d, with its sign, where |delta| is largest over layers.

    NaN where no layer was run. `other_way` says that the most negative delta is the larger one.
    """
    run = np.flatnonzero(delta.notnull())
    if not len(run):
        return Largest(np.nan, np.nan, False)
    at = run[int(np.abs(delta.values[run]).argmax())]
    return Largest(float(delta["layer"][at]), float(cohens_d[at]), bool(delta[at] < 0))


def direction_flag(largest: Largest, steers_other_way: str) -> str:
    """Empty, or that the largest effect is away from the matching answer.

    "steers the other way" where a test has shown it, "moves more the other way" where no test did:
    among noise about half of all largest effects are negative.
    """
    if not largest.other_way:
        return ""
    return OTHER_WAY if steers_other_way == YES else MORE_OTHER_WAY


def layer_effects(study: Study) -> pd.DataFrame:
    """Every layer of every (model, concept): main estimands, with pointwise t intervals.

    The intervals take the layer as given; for the layer that was selected use `effects`.
    """
    cells = study.cells
    run = cells["estimate"].sel(estimand="delta").notnull()
    half = stats.t.ppf((1 + study.level) / 2, cells["n_items"].values - 1)
    columns: dict[str, xr.DataArray] = {"depth": cells["depth"]}
    for name in ("delta", "cohens_d", "within_letter_d", "letter_shift"):
        estimate = cells["estimate"].sel(estimand=name, drop=True)
        margin = cells["standard_error"].sel(estimand=name, drop=True) * xr.DataArray(
            half, dims="concept"
        )
        columns |= {name: estimate, f"{name}_low": estimate - margin}
        columns[f"{name}_high"] = estimate + margin
    columns["selection_frequency"] = cells["selection_frequency"]
    columns |= {name: cells[name] for name in OF_THE_VECTOR if name in cells}
    if "generation_rate" in cells:
        columns["generation_delta"] = generation_delta(cells)
        if "generation_valid_rate" in cells:
            columns["generation_valid_rate"] = cells["generation_valid_rate"]
        run = run | columns["generation_delta"].notnull()
    bare = {name: column.reset_coords(drop=True) for name, column in columns.items()}
    order = ["model", "concept", "layer"]
    ds = xr.Dataset(bare).assign(run=run.reset_coords(drop=True))
    by_size = cells["model"].values[np.argsort(cells["n_params"].values, kind="stable")]
    frame = ds.sel(model=by_size).to_dataframe(dim_order=order).reset_index()
    return frame[frame["run"]].drop(columns="run").reset_index(drop=True)
