r"""The joint item bootstrap, with the layer selected again in every resample.

Items are the sampling unit. Within a concept one draw of items serves every model, layer and
strength, because all were measured on the same items; concepts share no items and are resampled
independently.

What it is for: an effect at a layer selected on the same items. Its apparent value is too large
(optimism, Efron 1983), and the percentile interval of the re-selected maximum undercovers. So the
interval studentises the error after selection:

    t* = (T*(L*) - T_F(L*)) / se*(L*),    interval = T(L) - se(L) [t*_{1-a/2}, t*_{a/2}],

where L* is the layer selected in the resample and L in the sample, T the sample's value, se the
closed-form standard error, and T_F the value in the population that resamples are drawn from: the
sample repeated infinitely often, whose variances have n in the denominator. The mean of
T*(L*) - T_F(L*) is the optimism: the bias from selection and small samples. The interval covers the
effect at the selected layer, not the largest effect of all layers.

If the second-best layer is close, resamples show a large optimism although the sample itself gained
little by selection, and the upper end of this interval alone is too low (coverage down to 89-91% in
the worst cells of the study's shape). So each end is the wider of this one and that with layer L.

What it is wrong for: anything that should generalise over models or concepts. These intervals
hold models and concepts fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from steercube.analysis.per_cell.estimands import ESTIMANDS, Array, Effect, Estimand, Samples

N_RESAMPLES = 10_000
N_SPLITS = 500
CONFIDENCE_LEVEL = 0.95
_RESAMPLES_AT_ONCE = 1_000


def resample_weights(n_items: int, n_resamples: int, rng: np.random.Generator) -> Array:
    """How often each item is drawn in each resample, dims (resample, item)."""
    shares = np.full(n_items, 1 / n_items)
    return rng.multinomial(n_items, shares, size=n_resamples).astype(float)


def half_weights(n_items: int, n_splits: int, rng: np.random.Generator) -> Array:
    """Indicators of a random half of the items in each split, dims (split, item)."""
    order = rng.permuted(np.tile(np.arange(n_items), (n_splits, 1)), axis=1)
    return (order < n_items // 2).astype(float)


def deltas(samples: Samples, weights: Array) -> Array:
    """Delta of each layer under each resample's weights, dims (resample, layer), in nats."""
    return np.einsum("ri,li->rl", weights, samples.shift) / weights.sum(axis=-1, keepdims=True)


def centroid(delta: Array, depth: Array) -> Array:
    r"""Depth centroid of the effect: $\sum_l z_l \max(0, \delta_l) / \sum_l \max(0, \delta_l)$.

    `delta` (..., layer) and `depth` (layer,), z in fractions of the model's depth; result (...),
    NaN where no layer has a positive delta. Only swept layers count, so it is deeper where only
    late layers were swept.
    """
    weight = np.maximum(delta, 0)
    with np.errstate(invalid="ignore"):
        return weight @ depth / weight.sum(axis=-1)


def at_layers(estimand: Estimand, samples: Samples, layers: Array, weights: Array) -> Effect:
    """The estimand of each resample at its layer in `layers`, dims (resample,)."""
    value, se = np.full(len(layers), np.nan), np.full(len(layers), np.nan)
    for layer in np.unique(layers):
        at_layer = replace(samples, values=samples.values[layer])
        resamples = np.flatnonzero(layers == layer)
        for batch in np.array_split(resamples, -(-len(resamples) // _RESAMPLES_AT_ONCE)):
            value[batch], se[batch] = estimand(at_layer, weights[batch])
    return Effect(value, se)


@dataclass(frozen=True)
class Selected:
    """One estimand at the selected layer, and its error in each resample (resample,)."""

    apparent: float
    se: float
    optimism: float
    low: float
    high: float
    split_half: float
    error: Array


class SelectedCell(NamedTuple):
    """Selection in one (model, concept): index and frequencies of layers, and every estimand.

    In each resample, `chosen` is the index of the selected layer and `delta` that of every layer.
    """

    layer: int
    frequency: Array
    effects: dict[str, Selected]
    chosen: Array
    delta: Array


def select_and_estimate(
    samples: Samples,
    selecting: Samples | None = None,
    *,
    resamples: Array,
    halves: Array,
    estimands: Mapping[str, Estimand] = ESTIMANDS,
    confidence_level: float = CONFIDENCE_LEVEL,
) -> SelectedCell:
    """Every estimand at the layer with the largest delta, with its optimism and interval.

    `samples.values` has dims (layer, strength, item); `resamples` (resample, item) and `halves`
    (split, item) are shared by the models of a concept. `selecting` has another measure's samples
    of the same layers and items, whose delta then selects the layer.
    """
    ones, by = np.ones(len(samples.letter)), selecting or samples
    layer = int(deltas(by, ones[None]).argmax())
    delta = deltas(by, resamples)
    chosen = delta.argmax(axis=-1)
    chosen_by_half = deltas(by, halves).argmax(axis=-1)
    effects = {}
    for name, estimand in estimands.items():
        value, se = estimand(samples, ones)
        population = estimand(samples, _INFINITE_COPIES * ones).value
        star = at_layers(estimand, samples, chosen, resamples)
        error = _difference(star.value, population[chosen])
        fixed = _at_fixed_layer(estimand, samples, layer, resamples, star, chosen)
        low, high = studentised_interval(
            float(value[layer]),
            float(se[layer]),
            [_ratio(error, star.se), _ratio(_difference(fixed.value, population[layer]), fixed.se)],
            confidence_level,
        )
        other_half = at_layers(estimand, samples, chosen_by_half, 1 - halves).value
        effects[name] = Selected(
            apparent=float(value[layer]),
            se=float(se[layer]),
            optimism=_mean_of_finite(error),
            low=low,
            high=high,
            split_half=_mean_of_finite(other_half),
            error=error,
        )
    frequency = np.bincount(chosen, minlength=len(samples.values)) / len(chosen)
    return SelectedCell(layer, frequency, effects, chosen, delta)


def _at_fixed_layer(
    estimand: Estimand,
    samples: Samples,
    layer: int,
    resamples: Array,
    star: Effect,
    chosen: Array,
) -> Effect:
    """The estimand at one layer in every resample; taken from `star` where it was chosen."""
    others = np.flatnonzero(chosen != layer)
    value, se = star.value.copy(), star.se.copy()
    if len(others):
        same_layer = np.full(len(others), layer)
        value[others], se[others] = at_layers(estimand, samples, same_layer, resamples[others])
    return Effect(value, se)


def _difference(star: Array, value: Array) -> Array:
    # Without spread both values are infinite, and their difference is undefined.
    with np.errstate(invalid="ignore"):
        return star - value


def _ratio(error: Array, se: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return error / se


_INFINITE_COPIES = 1e4
"""Weight of each item that stands for infinite repetition; its relative error is 1 / (n 1e4)."""

MAX_UNDEFINED = 0.01
"""Share of resamples in which a statistic may be undefined before its interval is refused."""


def studentised_interval(
    value: float, se: float, pivots: Sequence[Array], confidence_level: float
) -> tuple[float, float]:
    """Bootstrap-t interval value - se [t*_{1-a/2}, t*_{a/2}], the widest ends over `pivots` t*.

    NaN, never of zero width, where the statistic has no spread or is undefined in more than
    MAX_UNDEFINED of the resamples. Source: Efron & Tibshirani 1993, eq. 12.19.
    """
    undefined = [~np.isfinite(pivot) for pivot in pivots]
    if not (np.isfinite(value) and se > 0) or max(u.mean() for u in undefined) > MAX_UNDEFINED:
        return np.nan, np.nan
    tail = (1 - confidence_level) / 2
    ends = [
        np.quantile(pivot[~u], [tail, 1 - tail]) for pivot, u in zip(pivots, undefined, strict=True)
    ]
    low_t, high_t = min(low for low, _ in ends), max(high for _, high in ends)
    return value - se * float(high_t), value - se * float(low_t)


def _mean_of_finite(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) >= (1 - MAX_UNDEFINED) * len(values) else np.nan


def error_covariance(errors: Sequence[Array | None]) -> Array:
    """Covariance (model, model) of errors in the same resamples; NaN for models without errors."""
    present = [i for i, error in enumerate(errors) if error is not None]
    covariance = np.full((len(errors), len(errors)), np.nan)
    if present:
        table = np.stack([errors[i] for i in present])  # type: ignore[misc]
        usable = table[:, np.isfinite(table).all(axis=0)]
        if usable.shape[1] >= (1 - MAX_UNDEFINED) * table.shape[1]:
            covariance[np.ix_(present, present)] = np.atleast_2d(np.cov(usable))
    return covariance
