r"""Stage one of generation: from each item's answers to rates, curves and what noise does to them.

Notation: item i answers validly with the share $v_i^s$ at strength s, and of its valid answers the
share $m_i^s$ matches. The rate at a layer is $g^s = \sum w_i v_i^s m_i^s / \sum w_i v_i^s$ and its
curve over layers $g^{+1} - g^{-1}$; the logit curve is the mean shift, as in `effects`. Items that
are drawn, halved or flipped are the same for both curves and for all layers.
"""

from dataclasses import dataclass

import numpy as np

from steercube.analysis.curves import Array, correlation, fisher_z, spearman_brown
from steercube.analysis.resample import MAX_UNDEFINED


@dataclass(frozen=True)
class Answers:
    """Shares of one (model, concept) at strengths -1 and +1: dims (strength, layer, item)."""

    valid: Array
    match: Array

    @property
    def matching(self) -> Array:
        """Valid and matching, v m; 0 where nothing is valid."""
        return np.where(self.valid > 0, self.valid * self.match, 0.0)


def generation_curve(answers: Answers, weights: Array) -> Array:
    """g at +1 minus g at -1, dims (..., layer), for weights (..., item); NaN if none is valid."""
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (
            (weights @ matching.T) / (weights @ valid.T)
            for matching, valid in zip(answers.matching, answers.valid, strict=True)
        )
    return high - low


def logit_curve(shift: Array, weights: Array) -> Array:
    """Mean shift (nats), dims (..., layer), of `shift` (layer, item) under weights (..., item)."""
    return (weights @ shift.T) / weights.sum(axis=-1)[..., None]


@dataclass(frozen=True)
class CurveAgreement:
    """r of the two curves, its interval and the error of its Fisher z, over items."""

    r: float
    low: float
    high: float
    z_error: float


def agreement_over_items(
    answers: Answers, shift: Array, resamples: Array, confidence_level: float
) -> CurveAgreement:
    """r of logit and generation curve, with the basic bootstrap interval of Fisher's z over items.

    Noise of items pulls r towards 0, in a resample once more; so the interval is reflected,
    z - (z* - z), which takes that much off again. NaN where r is undefined in more than
    MAX_UNDEFINED of the resamples. What is left of the noise is what `disattenuated` is for.
    """
    everyone = np.ones(shift.shape[-1])
    r = float(correlation(logit_curve(shift, everyone), generation_curve(answers, everyone)))
    star = fisher_z(
        correlation(logit_curve(shift, resamples), generation_curve(answers, resamples))
    )
    defined = np.isfinite(star)
    if not np.isfinite(r) or (~defined).mean() > MAX_UNDEFINED:
        return CurveAgreement(r, np.nan, np.nan, np.nan)
    z, tail = fisher_z(np.array(r)), (1 - confidence_level) / 2
    low, high = np.tanh(2 * z - np.quantile(star[defined], [1 - tail, tail]))
    return CurveAgreement(r, float(low), float(high), float(star[defined].std(ddof=1)))


def split_half_reliability(of_half: Array, of_other: Array) -> float:
    """Spearman-Brown reliability of a curve from its two halves, dims (split, layer) each.

    The mean over splits of the halves' correlation, stepped up to all items; below 0 where the
    halves disagree. NaN where it is undefined in more than MAX_UNDEFINED of the splits.
    """
    r = correlation(of_half, of_other)
    defined = np.isfinite(r)
    if (~defined).mean() > MAX_UNDEFINED:
        return np.nan
    return float(spearman_brown(r[defined].mean()))


@dataclass(frozen=True)
class BestLayer:
    """The largest value of the generation curve, and what selection does to it.

    `index` of the layer, its `value`; `expected_under_null`, what the largest value would average
    without an effect; `p_value`, how often it would be as large; `split_half`, the mean of what one
    half of the items shows at the layer that the other half selects.
    """

    index: int
    value: float
    expected_under_null: float
    p_value: float
    split_half: float


def best_layer(answers: Answers, halves: Array, flips: Array) -> BestLayer | None:
    """The best generation layer with its null and its cross-validated value; None if undefined.

    Without an effect an item's answers at +1 and -1 are exchangeable, at all layers together; so
    the null exchanges them for items drawn at random. `halves` are 0 and 1 (split, item), `flips`
    -1 and +1 (draw, item).
    """
    curve = generation_curve(answers, np.ones(halves.shape[-1]))
    if not np.isfinite(curve).all():
        return None
    index = int(curve.argmax())
    largest = _flipped_curves(answers, flips).max(axis=-1)
    chosen = np.nan_to_num(generation_curve(answers, halves), nan=-np.inf).argmax(axis=-1)
    other = generation_curve(answers, 1 - halves)[np.arange(len(halves)), chosen]
    at_least = largest >= curve[index] - 1e-12
    return BestLayer(
        index,
        float(curve[index]),
        expected_under_null=float(np.nanmean(largest)),
        p_value=float((1 + at_least.sum()) / (1 + len(flips))),
        split_half=float(np.nanmean(other)) if np.isfinite(other).any() else np.nan,
    )


def _flipped_curves(answers: Answers, flips: Array) -> Array:
    """Curves (draw, layer) with +1 and -1 exchanged for the items whose flip is -1."""
    low, high = zip(answers.matching, answers.valid, strict=True)
    kept, swapped = (1 + flips) / 2, (1 - flips) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        at_high = (kept @ high[0].T + swapped @ low[0].T) / (kept @ high[1].T + swapped @ low[1].T)
        at_low = (kept @ low[0].T + swapped @ high[0].T) / (kept @ low[1].T + swapped @ high[1].T)
    return at_high - at_low
