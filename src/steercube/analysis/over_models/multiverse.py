r"""Every defensible way to compute a contrast of models, and a joint test of its labels.

A specification is a choice of denominator, layer, items, concepts, models and aggregation. Its
effect is the mean of the contrast's `high` models minus that of its `low` ones, as a share of the
mean over the models of the specification, so that specifications in nats and in sds share a scale.

Specifications share the same data, so how many of them agree in sign is no evidence. The test is
joint: the labels are assigned to the models in every possible way, the whole specification curve is
computed each time, and its median is compared (Simonsohn, Simmons & Nelson 2020, Nature Human
Behaviour 4, with the exact distribution). Its p cannot be under one over the number of assignments.
The null is that models are exchangeable: that neither the label nor anything confounded with it,
such as size, matters. It is given twice, for distinct specifications and for all combinations, as
the weights of specifications are a choice too.

The same relative depth for all models is not among the choices of layer: if the labels differ in
the depth of their best layers, it measures that. Its median is given separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.over_models.depth import best_depths
from steercube.analysis.over_models.permute import assignments
from steercube.analysis.view import Study, kept

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
"""Above this many assignments of labels, as many are drawn at random: each needs a curve."""

CHOICES = ("denominator", "layer", "items", "concepts", "models", "aggregation")


class Median(NamedTuple):
    """Median effect of some specifications, its p, the smallest possible p, and their number."""

    value: float
    p_value: float
    smallest_p: float
    n: int


@dataclass(frozen=True)
class Multiverse:
    """Specifications with their effects, medians by name (DISTINCT is the headline), and `shares`.

    `shares` are the parts of the variance of effects that each choice explains by itself.
    """

    table: pd.DataFrame
    medians: dict[str, Median]
    shares: dict[str, float]
    reason: str = ""

    @classmethod
    def undefined(cls, reason: str) -> "Multiverse":
        """A multiverse without specifications, and the reason why."""
        return cls(pd.DataFrame(), {}, {}, reason)


DISTINCT, CROSSED = "median of distinct specifications", "median of all combinations"


@kept
def multiverse(study: Study) -> Multiverse:
    """Every distinct specification, in order of effect, and the joint test."""
    names = study.compared
    if not study.has_contrast:
        return Multiverse.undefined(study.needs_contrast)
    high = study.is_high(names)
    labels = assignments(high, study.stream("labels of the multiverse"), limit=MAX_WAYS)
    table, curves = _crossing(study, labels, LAYERS)
    if not len(table) or not table["effect"].notna().any():
        return Multiverse.undefined("no set of models and concepts has an average of both labels")
    distinct = (
        ~pd.DataFrame(curves.round(9))
        .assign(denominator=table["denominator"], layer=table["layer"], models=table["models"])
        .duplicated()
        .to_numpy()
    )
    same_depth = _crossing(study, labels, (SAME_DEPTH,))[1]
    layer_choice = table["layer"].to_numpy()
    parts = {DISTINCT: curves[distinct], CROSSED: curves}
    parts |= {f"median, {name}": curves[distinct & (layer_choice == name)] for name in LAYERS}
    parts |= {f"median, {SAME_DEPTH}": same_depth}
    mirrored = bool(2 * high.sum() == len(high)) and len(labels) < MAX_WAYS
    # Rounded before sorting, so that the order does not depend on a processor's last digit.
    shown = table[distinct].dropna(subset="effect").round({"effect": 6})
    return Multiverse(
        shown.sort_values("effect", kind="stable").reset_index(drop=True),
        {name: _median(chosen, mirrored=mirrored) for name, chosen in parts.items()},
        _variance_shares(table.dropna(subset="effect")),
    )


def specifications(study: Study) -> pd.DataFrame:
    """The table of every specification, or why there is none."""
    curve = multiverse(study)
    return pd.DataFrame([{"reason": curve.reason}]) if curve.reason else curve.table


def multiverse_summary(study: Study) -> pd.DataFrame:
    """Medians of all specifications with their joint p; the share of variance of each choice."""
    curve = multiverse(study)
    if curve.reason:
        return pd.DataFrame([{"reason": curve.reason}])
    medians = [{"statistic": name} | m._asdict() for name, m in curve.medians.items()]
    shares = [{"statistic": f"share of variance: {k}", "value": v} for k, v in curve.shares.items()]
    return pd.DataFrame([*medians, *shares])


def _crossing(
    study: Study, labels: np.ndarray, layers: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Every combination that has an effect, and the effects, dims (combination, assignment)."""
    model_sets, concept_sets = _model_sets(study), _concept_sets(study)
    log_size = np.log10(study.facts("n_params", study.compared))
    rows, curves = [], []
    for (denominator, layer, items), table in _tables(study, layers).items():
        for (concepts, chosen), (models, used) in product(concept_sets.items(), model_sets.items()):
            for aggregation in AGGREGATIONS:
                curve = _effects(table[:, chosen], used, labels, log_size, aggregation)
                if np.isfinite(curve).any():
                    choice = (denominator, layer, items, concepts, models, aggregation)
                    rows.append((*choice, int(used.sum()), curve[0]))
                    curves.append(curve)
    combinations = pd.DataFrame(rows, columns=[*CHOICES, "n_models", "effect"])
    return combinations, np.array(curves).reshape(len(rows), len(labels))


def _median(curves: np.ndarray, *, mirrored: bool) -> Median:
    """Median over specifications under the real labels, and the share of assignments that reach it.

    Each assignment has the specifications that are defined under it. With equally many models of
    both labels (`mirrored`), swapping the labels gives the same size.
    """
    if not np.isfinite(curves[:, :1]).any():
        return Median(np.nan, np.nan, np.nan, 0)
    defined = np.isfinite(curves).any(axis=0)
    medians = np.nanmedian(curves[:, defined], axis=0)
    reached = np.abs(medians) >= abs(medians[0]) - 1e-12
    n = int(np.isfinite(curves[:, 0]).sum())
    return Median(float(medians[0]), float(reached.mean()), (1 + mirrored) / len(medians), n)


def _model_sets(study: Study) -> dict[str, np.ndarray]:
    names = study.compared
    sets = {"all": np.full(len(names), True)}
    dense = study.facts("architecture", names) == "dense"
    if not dense.all():
        sets["dense only"] = dense
    for at, name in enumerate(names):
        sets[f"without {name}"] = np.arange(len(names)) != at
    return {name: kept for name, kept in sets.items() if kept.sum() >= 3}


def _concept_sets(study: Study) -> dict[str, np.ndarray]:
    concepts, complete = study.concepts, study.complete_concepts()
    sets = {"all": np.arange(len(concepts))}
    if 0 < len(complete) < len(concepts):
        sets["run by every model"] = np.flatnonzero(np.isin(concepts, complete))
    for at, concept in enumerate(concepts):
        rest = np.delete(np.arange(len(concepts)), at)
        if len(rest) and not any(np.array_equal(rest, kept) for kept in sets.values()):
            sets[f"without {concept}"] = rest
    return sets


def _tables(study: Study, layers: Sequence[str]) -> dict[tuple[str, str, str], np.ndarray]:
    """Effects (model, concept) of each choice of denominator, layer and items."""
    tables = {}
    items_of = ITEMS if study.some_items_are_invalid else ITEMS[:1]
    for denominator, layer, items in product(DENOMINATORS, layers, items_of):
        table = _effects_at(study, denominator, layer, valid=items == "valid")
        if np.isfinite(table).any():
            tables[denominator, layer, items] = table
    return tables


def _effects_at(study: Study, denominator: str, layer: str, *, valid: bool) -> np.ndarray:
    prefix, names = "valid_selected" if valid else "selected", study.compared
    if layer.startswith("largest delta"):
        table = study.best(denominator, models=names, of=f"{prefix}_estimate")
        if layer == "largest delta, less optimism" and f"{prefix}_optimism" in study.cells:
            table = table - study.best(denominator, models=names, of=f"{prefix}_optimism")
        return table.values
    estimates = _layer_estimates(study, valid).sel(model=names)
    delta = estimates.sel(estimand="delta")
    if layer == "largest of the denominator's own":
        return estimates.sel(estimand=denominator).max("layer").transpose("model", "concept").values
    if layer == "one layer for a model's concepts":
        swept_by_all = delta.where(delta.notnull().sum("concept") == _n_run(delta))
        mean = swept_by_all.mean("concept")
        at = mean.fillna(-np.inf).argmax("layer")
    else:
        typical = float(best_depths(study).sel(model=names).mean())
        distance: xr.DataArray = abs(study.cells["depth"].sel(model=names) - typical)
        at = distance.where(delta.notnull().any("concept"), np.inf).argmin("layer")
    return estimates.sel(estimand=denominator).isel(layer=at).transpose("model", "concept").values


def _layer_estimates(study: Study, valid: bool) -> xr.DataArray:
    cells = study.cells
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
    """The relative difference, dims (assignment,); NaN where a label has no model."""
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
        difference = high @ means / n_high - ~high @ means / n_low
        if aggregation == "mean, size held fixed":
            difference = _held_fixed(means, size, high)
        effect = difference / abs(means.mean())
    return np.where((n_high > 0) & (n_low > 0) & np.isfinite(effect), effect, np.nan)


def _held_fixed(means: np.ndarray, size: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Coefficient of the label in least squares of the means on label and size (Frisch-Waugh)."""
    centred = size - size.mean()
    label = high - high.mean(axis=1, keepdims=True)
    residual = label - np.outer(label @ centred, centred) / (centred @ centred)
    norm = np.einsum("wm,wm->w", residual, residual)
    return np.where(norm > 1e-9, residual @ means / norm, np.nan)


def _variance_shares(table: pd.DataFrame) -> dict[str, float]:
    """Share of the variance of effects that each choice explains by itself (eta squared).

    Over all combinations of the choices; the rest is their interaction, "interplay".
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
