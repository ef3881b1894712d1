r"""Every defensible way to compute the training difference, and what the labels have to do with it.

A specification is a choice of denominator, layer, items, concepts, models and aggregation. Its
effect is the mean of the full RL models minus that of the distilled, as a share of the mean over
the models of the specification, so that specifications in nats and in sds share a scale.

Specifications share the same data, so how many of them agree in sign is no evidence. The test is
joint: the labels are given to the models in every possible way, the whole curve is computed each
time, and the median over the curve is compared (Simonsohn, Simmons & Nelson 2020, Nature Human
Behaviour 4, with the exact distribution). Its p cannot be under one over the number of ways. The
null is that models are exchangeable: that neither training nor what goes with it, such as size,
matters. It is given twice, for specifications that differ and for all of the crossing, as the
weights of specifications are a choice too.

The same relative depth for all models is no way to choose a layer here: where trainings differ in
the depth of their best layers, it measures that. Its median stands beside the others'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.over_models.depth import best_depths
from steercube.analysis.over_models.means import HIGH, LOW, best_effects, complete_concepts
from steercube.analysis.over_models.posterior import compared_models, predictors_of
from steercube.streams import stream

DENOMINATORS = (
    *("delta", "cohens_d", "within_letter_d"),
    *("glass_delta_negative", "glass_delta_baseline", "d_z"),
)
LAYERS = (
    "largest delta",
    "largest delta, less optimism",
    "largest of the denominator's own",
    "one layer for a model's concepts",
)
SAME_DEPTH = "the same depth for all"
ITEMS = ("all", "valid")
AGGREGATIONS = ("mean", "median", "mean, size held fixed")
MAX_WAYS = 1_000
"""Beyond so many ways to give out the labels, that many at random: each has a whole curve."""

CHOICES = ("denominator", "layer", "items", "concepts", "models", "aggregation")


class Median(NamedTuple):
    """Median effect of some specifications, its exact p, the least possible p, their number."""

    value: float
    p_value: float
    least_p: float
    n: int


@dataclass(frozen=True)
class Multiverse:
    """The specifications with their effects, medians by name (DISTINCT is the headline's), shares.

    `shares` are those of the variance of effects that each choice explains by itself.
    """

    table: pd.DataFrame
    medians: dict[str, Median]
    shares: dict[str, float]
    reason: str = ""

    @classmethod
    def undefined(cls, reason: str) -> "Multiverse":
        """No specification, and why."""
        return cls(pd.DataFrame(), {}, {}, reason)


DISTINCT, CROSSED = "median of distinct specifications", "median of all combinations"


def multiverse(cells: xr.Dataset) -> Multiverse:
    """Every specification that differs from the others, in order of effect, and the joint test."""
    names = compared_models(cells)
    high = cells["training"].sel(model=names).values == HIGH
    if "training" not in predictors_of(cells, names):
        return Multiverse.undefined(f"needs models of both trainings, {LOW!r} and {HIGH!r}")
    labels = _labellings(high, stream("labels of the multiverse", seed=cells.attrs["seed"]))
    table, curves = _crossing(cells, names, labels, LAYERS)
    if not len(table) or not table["effect"].notna().any():
        return Multiverse.undefined(
            "no set of models and concepts has an average of both trainings"
        )
    distinct = (
        ~pd.DataFrame(curves.round(9))
        .assign(denominator=table["denominator"], layer=table["layer"], models=table["models"])
        .duplicated()
        .to_numpy()
    )
    same_depth = _crossing(cells, names, labels, (SAME_DEPTH,))[1]
    of_layer = table["layer"].to_numpy()
    parts = {DISTINCT: curves[distinct], CROSSED: curves}
    parts |= {f"median, {name}": curves[distinct & (of_layer == name)] for name in LAYERS}
    parts |= {f"median, {SAME_DEPTH}": same_depth}
    mirrored = bool(2 * high.sum() == len(high))
    # Rounded before it is sorted, so that another processor's last digit changes no order.
    shown = table[distinct].dropna(subset="effect").round({"effect": 6})
    return Multiverse(
        shown.sort_values("effect", kind="stable").reset_index(drop=True),
        {name: _median(of, mirrored=mirrored) for name, of in parts.items()},
        _variance_shares(table.dropna(subset="effect")),
    )


def _crossing(
    cells: xr.Dataset, names: list[str], labels: np.ndarray, layers: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Every combination with an effect under some labelling; its effects, dims (choice, way)."""
    of_models, of_concepts = _model_sets(cells, names), _concept_sets(cells)
    log_size = np.log10(cells["n_params"].sel(model=names).values)
    rows, curves = [], []
    for (denominator, layer, items), table in _tables(cells, names, layers).items():
        for (concepts, columns), (models, kept) in product(of_concepts.items(), of_models.items()):
            for aggregation in AGGREGATIONS:
                curve = _effects(table[:, columns], kept, labels, log_size, aggregation)
                if np.isfinite(curve).any():
                    choice = (denominator, layer, items, concepts, models, aggregation)
                    rows.append((*choice, int(kept.sum()), curve[0]))
                    curves.append(curve)
    found = pd.DataFrame(rows, columns=[*CHOICES, "n_models", "effect"])
    return found, np.array(curves).reshape(len(rows), len(labels))


def _median(curves: np.ndarray, *, mirrored: bool) -> Median:
    """Median over specifications under the real labels, and the share of ways that reach it.

    Each way has the specifications that are defined under it. With as many models of each training
    (`mirrored`) the opposite labels give the same size.
    """
    if not np.isfinite(curves[:, :1]).any():
        return Median(np.nan, np.nan, np.nan, 0)
    asked = np.isfinite(curves).any(axis=0)
    medians = np.nanmedian(curves[:, asked], axis=0)
    reached = np.abs(medians) >= abs(medians[0]) - 1e-12
    n = int(np.isfinite(curves[:, 0]).sum())
    return Median(float(medians[0]), float(reached.mean()), (1 + mirrored) / len(medians), n)


def _labellings(high: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ways to give out the labels, dims (way, model); the first is the real one."""
    n, k = len(high), int(high.sum())
    if comb(n, k) > MAX_WAYS:
        drawn = rng.permuted(np.tile(high, (MAX_WAYS - 1, 1)), axis=1)
        return np.concatenate([high[None], drawn])
    ways = np.array([np.isin(np.arange(n), chosen) for chosen in combinations(range(n), k)])
    first = (ways == high).all(axis=1)
    return np.concatenate([ways[first], ways[~first]])


def _model_sets(cells: xr.Dataset, names: list[str]) -> dict[str, np.ndarray]:
    sets = {"all": np.full(len(names), True)}
    dense = cells["architecture"].sel(model=names).values == "dense"
    if not dense.all():
        sets["dense only"] = dense
    for at, name in enumerate(names):
        sets[f"without {name}"] = np.arange(len(names)) != at
    return {name: kept for name, kept in sets.items() if kept.sum() >= 3}


def _concept_sets(cells: xr.Dataset) -> dict[str, np.ndarray]:
    concepts = [str(c) for c in cells["concept"].values]
    sets = {"all": np.arange(len(concepts))}
    complete = complete_concepts(cells)
    if 0 < len(complete) < len(concepts):
        sets["run by every model"] = np.flatnonzero(np.isin(concepts, complete))
    for at, concept in enumerate(concepts):
        rest = np.delete(np.arange(len(concepts)), at)
        if len(rest) and not any(np.array_equal(rest, kept) for kept in sets.values()):
            sets[f"without {concept}"] = rest
    return sets


def _tables(
    cells: xr.Dataset, names: list[str], layers: Sequence[str]
) -> dict[tuple[str, str, str], np.ndarray]:
    """Effects (model, concept) of each choice of denominator, layer and items."""
    some_invalid = bool((cells["n_valid_items"] < cells["n_items"]).any())
    found = {}
    for denominator, layer, items in product(
        DENOMINATORS, layers, ITEMS if some_invalid else ITEMS[:1]
    ):
        table = _effects_at(cells, names, denominator, layer, valid=items == "valid")
        if np.isfinite(table).any():
            found[denominator, layer, items] = table
    return found


def _effects_at(
    cells: xr.Dataset, names: list[str], denominator: str, layer: str, *, valid: bool
) -> np.ndarray:
    prefix = "valid_selected" if valid else "selected"
    if layer.startswith("largest delta"):
        table = best_effects(cells, denominator, models=names, field=f"{prefix}_estimate")
        if layer == "largest delta, less optimism" and f"{prefix}_optimism" in cells:
            field = f"{prefix}_optimism"
            table = table - best_effects(cells, denominator, models=names, field=field)
        return table.values
    every = _of_layers(cells, valid).sel(model=names)
    delta = every.sel(estimand="delta")
    if layer == "largest of the denominator's own":
        return every.sel(estimand=denominator).max("layer").transpose("model", "concept").values
    if layer == "one layer for a model's concepts":
        swept_by_all = delta.where(delta.notnull().sum("concept") == _n_run(delta))
        mean = swept_by_all.mean("concept")
        at = mean.fillna(-np.inf).argmax("layer")
    else:
        typical = float(best_depths(cells).sel(model=names).mean())
        apart: xr.DataArray = abs(cells["depth"].sel(model=names) - typical)
        at = apart.where(delta.notnull().any("concept"), np.inf).argmin("layer")
    return every.sel(estimand=denominator).isel(layer=at).transpose("model", "concept").values


def _of_layers(cells: xr.Dataset, valid: bool) -> xr.DataArray:
    if not valid or "valid_estimate" not in cells:
        return cells["estimate"]
    all_valid = cells["n_valid_items"] == cells["n_items"]
    return cells["estimate"].where(all_valid, cells["valid_estimate"])


def _n_run(delta: xr.DataArray) -> xr.DataArray:
    return delta.notnull().any("layer").sum("concept")


def _effects(
    table: np.ndarray,
    kept: np.ndarray,
    labels: np.ndarray,
    log_size: np.ndarray,
    aggregation: str,
) -> np.ndarray:
    """The relative difference under each labelling, dims (way,); NaN where a side is empty."""
    table, size, high = table[kept], log_size[kept], labels[:, kept]
    ran = np.isfinite(table).any(axis=1)
    if not ran.any():
        return np.full(len(labels), np.nan)
    table, size, high = table[ran], size[ran], high[:, ran]
    average = np.nanmedian if aggregation == "median" else np.nanmean
    means = average(table, axis=1)
    n_high = high.sum(axis=1)
    n_low = high.shape[1] - n_high
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = high @ means / n_high - ~high @ means / n_low
        if aggregation == "mean, size held fixed":
            apart = _held_fixed(means, size, high)
        effect = apart / abs(means.mean())
    return np.where((n_high > 0) & (n_low > 0) & np.isfinite(effect), effect, np.nan)


def _held_fixed(means: np.ndarray, size: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Coefficient of the label in least squares of the means on label and size (Frisch-Waugh)."""
    centred = size - size.mean()
    label = high - high.mean(axis=1, keepdims=True)
    left = label - np.outer(label @ centred, centred) / (centred @ centred)
    norm = np.einsum("wm,wm->w", left, left)
    return np.where(norm > 1e-9, left @ means / norm, np.nan)


def _variance_shares(table: pd.DataFrame) -> dict[str, float]:
    """Share of the variance of effects that each choice explains by itself (eta squared).

    Over the full crossing of the choices; what is left is their interplay.
    """
    total = float(table["effect"].var(ddof=0))
    if not total > 0:
        return {}
    shares = {}
    for choice in CHOICES:
        groups = table.groupby(choice, sort=False)["effect"]
        between = float((groups.size() * (groups.mean() - table["effect"].mean()) ** 2).sum())
        shares[choice] = between / len(table) / total
    return shares | {"interplay": 1 - sum(shares.values())}
