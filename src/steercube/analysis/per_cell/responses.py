r"""Stage one of generated answers: from each item's answers to rates, and curves with their noise.

Notation: at strength s a share $v_i^s$ of item i's answers is valid, and a share $m_i^s$ of those
matches. The rate at a layer is $g^s = \sum w_i v_i^s m_i^s / \sum w_i v_i^s$ and its curve over
layers $g^{+1} - g^{-1}$; the logit curve is the mean shift, `estimands.delta`. Resamples, halves
and flips of items are the same for both curves and for all layers.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from steercube.analysis.agreement.curves import Array, correlation, fisher_z, spearman_brown
from steercube.analysis.per_cell.bootstrap import MAX_UNDEFINED

MIN_LAYERS = 4
"""Fewest layers for which the shape of a curve is meaningful."""
MAX_SHAPELESS = 0.1
"""Largest share of resamples without variance beyond noise before an interval is refused."""


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
    """Two correlations of the curves, each with its interval over items.

    `r` is of the curves as measured, and estimates r for as many other items: noise pulls it
    towards 0. `z_error` is the error of its Fisher z. `noise_free` estimates r of the curves that
    infinitely many items would give.
    """

    r: float
    low: float
    high: float
    z_error: float
    noise_free: float
    noise_free_low: float
    noise_free_high: float


def agreement_over_items(
    answers: Answers, shift: Array, resamples: Array, confidence_level: float
) -> CurveAgreement:
    r"""r of logit and generation curve, as measured and corrected for noise from the items.

    With $S_{xx}, S_{yy}, S_{xy}$ the sums of squares and products over layers, around the curves'
    means, and N the mean increase in each by resampling (the noise, including what both curves
    share):

        r = S_xy / sqrt(S_xx S_yy),     interval  tanh(z -+ q sd(z*)),
        r_free = (S_xy - N_xy) / sqrt((S_xx - N_xx) (S_yy - N_yy)).

    A resample contains the noise twice, so 2 N is subtracted from it; the interval of r_free is
    from quantiles over resamples, cut to [-1, 1]. In simulation it covers 90 to 99% (nominal 95;
    88% for 20 items). The interval of r covers r of other samples of this size in 89 to 95% (83%
    for 20 items) and is not valid for r_free. The interval of r_free is NaN if more than
    MAX_SHAPELESS of the resamples have no variance beyond noise, r_free if a curve has none.
    """
    ones, n_items = np.ones(shift.shape[-1]), shift.shape[-1]
    observed = _moments(logit_curve(shift, ones), generation_curve(answers, ones))
    star = _moments(logit_curve(shift, resamples), generation_curve(answers, resamples))
    star = star[:, np.isfinite(star).all(axis=0)]
    r, r_star = _ratio(observed), _ratio(star)
    if not np.isfinite(r) or np.isfinite(r_star).sum() < (1 - MAX_UNDEFINED) * len(resamples):
        return CurveAgreement(float(r), *[np.nan] * 6)
    z, z_error = fisher_z(r), np.nanstd(fisher_z(r_star), ddof=1)
    low, high = np.tanh(z + z_error * np.array(stats.norm.interval(confidence_level)))
    # Resampling n items shows only (n - 1) / n of the variance between samples.
    noise = (star.mean(axis=1) - observed) * n_items / (n_items - 1)
    free, free_star = _ratio(observed - noise), _ratio(star - 2 * noise[:, None])
    free_low, free_high = np.nan, np.nan
    if np.isfinite(free) and np.isnan(free_star).mean() <= MAX_SHAPELESS:
        tail = (1 - confidence_level) / 2
        ends = np.nanquantile(free_star, [tail, 1 - tail])
        free_low, free_high = np.clip(ends, -1, 1)
    return CurveAgreement(*map(float, (r, low, high, z_error, free, free_low, free_high)))


def _moments(x: Array, y: Array) -> Array:
    """S_xx, S_yy and S_xy over layers, dims (3, ...)."""
    x, y = (curve - curve.mean(axis=-1, keepdims=True) for curve in (x, y))
    return np.stack([np.einsum("...l,...l->...", a, b) for a, b in ((x, x), (y, y), (x, y))])


def _ratio(moments: Array) -> Array:
    """S_xy / sqrt(S_xx S_yy); NaN where a curve has no variance (to rounding)."""
    xx, yy, xy = moments
    has_shape = (xx > 1e-20) & (yy > 1e-20)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(has_shape, xy / np.sqrt(xx * yy), np.nan)


def split_half_reliability(of_half: Array, of_other: Array) -> float:
    """Spearman-Brown reliability of a curve from its two halves, dims (split, layer) each.

    The mean over splits of the halves' correlation, stepped up to all items; 0 where that mean is
    negative. NaN where it is undefined in more than MAX_UNDEFINED of the splits.
    """
    r = correlation(of_half, of_other)
    defined = np.isfinite(r)
    if (~defined).mean() > MAX_UNDEFINED:
        return np.nan
    return float(spearman_brown(np.maximum(0.0, r[defined].mean())))


@dataclass(frozen=True)
class BestLayer:
    """The largest value of the generation curve, its null distribution and its held-out value.

    `index` and `value` of the layer, and the `error` of that largest value over items;
    `expected_under_null`, the mean largest value without an effect; `p_value`, how often it would
    be as large; `split_half`, the mean value on one half of the items at the layer selected on the
    other half.
    """

    index: int
    value: float
    error: float
    expected_under_null: float
    p_value: float
    split_half: float


def best_layer(answers: Answers, resamples: Array, halves: Array, flips: Array) -> BestLayer | None:
    """The best generation layer with its null distribution and its held-out value.

    None where so few answers are valid that a rate is undefined in the sample or in more than
    MAX_UNDEFINED of the exchanges or resamples.

    Without an effect an item's answers at +1 and -1 are exchangeable, at all layers together; so
    the null exchanges them for items drawn at random. The error is the sd of the largest value
    over `resamples` (resample, item). `halves` are 0 and 1 (split, item), `flips` -1 and +1 (draw,
    item).
    """
    curve = generation_curve(answers, np.ones(halves.shape[-1]))
    largest = _flipped_curves(answers, flips).max(axis=-1)
    largest = largest[np.isfinite(largest)]
    if not np.isfinite(curve).all() or len(largest) < (1 - MAX_UNDEFINED) * len(flips):
        return None
    index = int(curve.argmax())
    star = generation_curve(answers, resamples).max(axis=-1)
    star = star[np.isfinite(star)]
    if len(star) < (1 - MAX_UNDEFINED) * len(resamples):
        return None
    return BestLayer(
        index,
        float(curve[index]),
        float(star.std(ddof=1)),
        expected_under_null=float(largest.mean()),
        p_value=float((1 + (largest >= curve[index] - 1e-12).sum()) / (1 + len(largest))),
        split_half=held_out_change(answers, halves),
    )


def held_out_change(answers: Answers, selecting: Array) -> float:
    """Mean change at the layer that some of the items select, measured on the other items.

    `selecting` is 1 for the items that select the layer and 0 for the others, dims (split, item).
    NaN where a rate is undefined in more than MAX_UNDEFINED of the splits.
    """
    selected, others = (
        generation_curve(answers, weights) for weights in (selecting, 1 - selecting)
    )
    usable = np.isfinite(selected).all(axis=-1) & np.isfinite(others).all(axis=-1)
    if usable.mean() < 1 - MAX_UNDEFINED:
        return np.nan
    return float(others[usable, selected[usable].argmax(axis=-1)].mean())


@dataclass(frozen=True)
class ItemAgreement:
    """r over the items at one layer, by `n_items` of which `n_changed` change their answer."""

    r: float
    n_items: int
    n_changed: int


MIN_CHANGED = 5
"""Fewest items that change their answer for r over items; with fewer one item would decide it."""


def item_agreement(answers: Answers, shift: Array, letter: Array, layer: int) -> ItemAgreement:
    r"""Does the item whose logits move change its answer? r over items, at the index `layer`.

    Pearson's r, within the letters of the matching answer, of the shift of an item's logit
    difference (nats) with $m_i^h - m_i^l$, over the items with valid answers at both strengths.
    Within letters because a push towards one letter moves the logits and the answers of A-items one
    way and of B-items the other. NaN if fewer than MIN_CHANGED answers change. In simulations of 20
    to 100 items Student's t on Fisher's z with the error $1 / \sqrt{n - 4}$ covers 94 to 97%.
    """
    low, high = answers.match[:, layer]
    both = (answers.valid[:, layer] > 0).all(axis=0)
    change, n_changed = high - low, int((high != low)[both].sum())
    if n_changed < MIN_CHANGED:
        return ItemAgreement(np.nan, int(both.sum()), n_changed)
    pair = np.stack([shift[layer], change])[:, both]
    for one in np.unique(letter[both]):
        of_letter = letter[both] == one
        pair[:, of_letter] -= pair[:, of_letter].mean(axis=1, keepdims=True)
    return ItemAgreement(float(correlation(*pair)), int(both.sum()), n_changed)


def _flipped_curves(answers: Answers, flips: Array) -> Array:
    """Curves (draw, layer) with +1 and -1 exchanged for the items whose flip is -1."""
    low, high = zip(answers.matching, answers.valid, strict=True)
    kept, swapped = (1 + flips) / 2, (1 - flips) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        at_high = (kept @ high[0].T + swapped @ low[0].T) / (kept @ high[1].T + swapped @ low[1].T)
        at_low = (kept @ low[0].T + swapped @ high[0].T) / (kept @ low[1].T + swapped @ high[1].T)
    return at_high - at_low
