"""Where in the network steering works best: depths of selected layers, by model and training.

Depth is layer / number of layers, the study's definition. A model's typical depth is the mean over
its concepts of the depth of the best layer.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from steercube.analysis.over_models.means import t_over_models
from steercube.analysis.per_cell.bootstrap import centroid
from steercube.analysis.view import Study
from steercube.estimate import Estimate, normal_quantile

SAME_LAYER = "the same layer in nearly every resample"


def typical_depths(study: Study) -> xr.DataArray:
    """Mean over concepts of each model's best depth, fraction of its blocks, dims (model)."""
    return best_depths(study).sel(model=study.models).mean("concept")


def best_depths(study: Study) -> xr.DataArray:
    """Depth of every selected layer: layer / number of layers, dims (model, concept)."""
    return study.cells["selected_layer"] / study.cells["n_layers"]


def depth_centroids(study: Study) -> xr.DataArray:
    """Centroid of each curve of delta over the swept layers, fraction of depth (model, concept).

    Defined in `bootstrap.centroid`.
    """
    delta = study.cells["estimate"].sel(estimand="delta", drop=True).fillna(0.0)
    return xr.apply_ufunc(
        centroid,
        delta,
        study.cells["depth"].fillna(0.0),
        input_core_dims=[["layer"], ["layer"]],
        vectorize=True,
    )


def selection_interval(study: Study, model: str, concept: str) -> Estimate:
    """Depth of one best layer, with the percentile interval of the depths that resamples select.

    If nearly all resamples select one layer, there is a reason instead of an interval: depth comes
    in steps of one layer, so its error is not zero.
    """
    at = {"model": model, "concept": concept}
    value = float(best_depths(study).sel(at))
    if not np.isfinite(value):
        return Estimate.undefined("no layer was selected")
    n_items = int(study.cells["n_items"].sel(concept=concept))
    frequency = study.cells["selection_frequency"].sel(at).values
    depth = study.cells["depth"].sel(model=model).values[frequency > 0]
    cumulative = np.cumsum(frequency[frequency > 0])
    tail = (1 - study.level) / 2
    ends = np.minimum(np.searchsorted(cumulative, [tail, 1 - tail]), len(cumulative) - 1)
    low, high = depth[ends]
    if low == high:
        return Estimate(value, over="items", n=n_items, reason=SAME_LAYER)
    return Estimate(value, low=float(low), high=float(high), over="items", n=n_items)


def model_depth(study: Study, *, model: str) -> Estimate:
    """Typical best depth of one model, its interval over items; `span` is over its concepts.

    Concepts share no item, so the variances of their selections under resampling add.
    """
    best = best_depths(study).sel(model=model)
    best = best[best.notnull()]
    frequency = study.cells["selection_frequency"].sel(model=model, concept=best["concept"])
    depth = study.cells["depth"].sel(model=model).fillna(0)
    mean = (frequency * depth).sum("layer")
    variance = float((frequency * (depth - mean) ** 2).sum())
    half = normal_quantile(study.level) * np.sqrt(variance) / len(best)
    return Estimate.around(
        float(best.mean()),
        half if half > 0 else np.nan,
        over="items",
        n=int(study.cells["n_items"].sel(concept=best["concept"]).sum()),
        span=(float(best.min()), float(best.max())),
        reason="" if half > 0 else SAME_LAYER,
    )


def training_depth(study: Study, *, training: str) -> Estimate:
    """Mean over a training's models of their typical best depth; `span` is their range.

    The `reason` gives the range of single (model, concept) cells, which is wider.
    """
    depths = typical_depths(study)
    estimate = t_over_models(
        depths,
        xr.full_like(depths, np.nan),
        groups=study.cells["training"],
        group=training,
        level=study.level,
    )
    if not np.isfinite(estimate.value):
        return estimate
    single = best_depths(study).where(study.cells["training"] == training)
    spread = f"single cells run from {float(single.min()):.0%} to {float(single.max()):.0%}"
    return replace(estimate, reason=f"{spread}; {estimate.reason}".rstrip("; "))
