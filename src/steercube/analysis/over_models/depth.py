"""Where in the network steering works best: depth of the selected layers, and of trainings.

Depth is layer / number of layers, the study's definition. A model's typical depth is the mean over
its concepts of the depth of the best layer.
"""

from dataclasses import replace

import numpy as np
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.contrasts import two_sample_t
from steercube.analysis.over_models.means import (
    HIGH,
    LOW,
    level_of,
    swept_models,
    t_over_models,
)
from steercube.analysis.per_cell.bootstrap import centroid
from steercube.estimate import Estimate

SAME_LAYER = "the same layer in nearly every resample"


def typical_depths(cells: xr.Dataset) -> xr.DataArray:
    """Mean over concepts of each model's best depth, fraction of its blocks, dims (model)."""
    best = best_depths(cells)
    return best.sel(model=swept_models(cells)).mean("concept")


def best_depths(cells: xr.Dataset) -> xr.DataArray:
    """Depth of every selected layer: layer / number of layers, dims (model, concept)."""
    return cells["selected_layer"] / cells["n_layers"]


def depth_centroids(cells: xr.Dataset) -> xr.DataArray:
    """Centroid of each curve of delta over the swept layers, fraction of depth (model, concept).

    Its definition is `steercube.analysis.per_cell.bootstrap.centroid`.
    """
    delta = cells["estimate"].sel(estimand="delta", drop=True).fillna(0.0)
    return xr.apply_ufunc(
        centroid,
        delta,
        cells["depth"].fillna(0.0),
        input_core_dims=[["layer"], ["layer"]],
        vectorize=True,
    )


def selection_interval(cells: xr.Dataset, model: str, concept: str) -> Estimate:
    """Depth of one best layer, and the depths between which resamples select theirs.

    A selection that hardly ever moves has no interval, and a reason: depth comes in steps of one
    layer, so its error is not zero.
    """
    value = float(best_depths(cells).sel(model=model, concept=concept))
    n_items = int(cells["n_items"].sel(concept=concept))
    frequency = cells["selection_frequency"].sel(model=model, concept=concept).values
    if not np.isfinite(value):
        return Estimate.undefined("no layer was selected")
    depth = cells["depth"].sel(model=model).values
    cumulative = np.cumsum(frequency[frequency > 0])
    tail = (1 - level_of(cells)) / 2
    ends = np.minimum(np.searchsorted(cumulative, [tail, 1 - tail]), len(cumulative) - 1)
    low, high = depth[frequency > 0][ends]
    if low == high:
        return Estimate(value, over="items", n=n_items, reason=SAME_LAYER)
    return Estimate(value, low=float(low), high=float(high), over="items", n=n_items)


def model_depth(cells: xr.Dataset, *, model: str) -> Estimate:
    """Typical best depth of one model, its interval over items; `span` is that of its concepts.

    Concepts share no item, so the variances of their selections under resampling add.
    """
    best = best_depths(cells).sel(model=model)
    best = best[best.notnull()]
    frequency = cells["selection_frequency"].sel(model=model, concept=best["concept"])
    depth = cells["depth"].sel(model=model).fillna(0)
    mean = (frequency * depth).sum("layer")
    variance = float((frequency * (depth - mean) ** 2).sum())
    margin = stats.norm.ppf((1 + level_of(cells)) / 2) * np.sqrt(variance) / len(best)
    margin = margin if margin > 0 else np.nan
    value = float(best.mean())
    return Estimate(
        value,
        low=value - margin,
        high=value + margin,
        over="items",
        n=int(cells["n_items"].sel(concept=best["concept"]).sum()),
        span=(float(best.min()), float(best.max())),
        reason="" if margin > 0 else SAME_LAYER,
    )


def training_depth(cells: xr.Dataset, *, training: str) -> Estimate:
    """Mean over a training's models of their typical best depth; `span` is their range.

    The `reason` gives the range of single (model, concept) cells, which is wider.
    """
    depths = typical_depths(cells)
    estimate = t_over_models(
        depths,
        xr.full_like(depths, np.nan),
        groups=cells["training"],
        group=training,
        level=level_of(cells),
    )
    single = best_depths(cells).where(cells["training"] == training)
    if not np.isfinite(estimate.value):
        return estimate
    spread = f"single cells run from {float(single.min()):.0%} to {float(single.max()):.0%}"
    return replace(estimate, reason=f"{spread}; {estimate.reason}".rstrip("; "))


def depth_difference(cells: xr.Dataset, *, low: str = LOW, high: str = HIGH) -> Estimate:
    """Typical best depth of training `high` minus that of `low`, fraction of depth.

    Two-sample t over models with one sd for both trainings, n_models - 2 degrees of freedom (two
    models say too little of their own spread); `p_value` by permutation. With a
    `reason` where every model of one training has more blocks than every model of the other:
    then training and number of blocks cannot be told apart.
    """
    depths = typical_depths(cells)
    labels = cells["training"].sel(model=depths["model"]).values
    if not {low, high} <= set(labels):
        return Estimate.undefined(f"needs models of both trainings, {low!r} and {high!r}")
    compared = np.isin(labels, (low, high))
    depths, labels = depths[compared], labels[compared]
    found = two_sample_t(depths.values, labels == high, level=level_of(cells))
    blocks = cells["n_layers"].sel(model=depths["model"]).values
    for more, fewer in ((high, low), (low, high)):
        if blocks[labels == more].min() >= blocks[labels == fewer].max() and np.ptp(blocks):
            reason = f"no {more} model has fewer blocks than any {fewer} one"
            if blocks[labels == more].min() > blocks[labels == fewer].max():
                reason = f"every {more} model has more blocks than every {fewer} one"
            return replace(found, reason=reason)
    return found
