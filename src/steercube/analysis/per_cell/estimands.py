r"""The estimands: effects of steering on one concept's items, one function each.

Every estimand is a weighted statistic of the items of one (model, concept, layer), so the same
function serves the sample itself (weights 1), a bootstrap resample (weights = counts) and half
of the items (weights 0 or 1). Each returns its value and its closed-form standard error.

Which one to use. `cohens_d` is the published study's and the default. `delta` keeps the units
(nats), and so each model's own scale. `d_z` standardises by the spread of the shifts, so it grows
with the correlation of the two strengths and does not measure overlap. The two Glass deltas divide
by the spread of one strength. `within_letter_d` removes the model's preference for a letter from
the denominator and weights both letters equally: prefer it where letters are unbalanced.
Two estimands are robust: one item, however far out, hardly moves them. `trimmed_d` is on the scale
of Cohen's d, so compare the two: far apart, a few items or long tails make d. `cliffs_delta` uses
ranks alone, so it is the same on any monotone scale of the values, and says nothing of how far the
strengths are apart once they no longer overlap.

Notation: item i has the logit differences $x_i^s$ at strength s (nats, towards the matching
answer), weight $w_i$ and shift $y_i = x_i^{+1} - x_i^{-1}$; $m$ and $s^2$ are weighted means and
variances (n - 1 in the denominator, n = sum of weights).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from steercube.measures import ESTIMAND_UNITS, Measure

Array = np.ndarray

BASELINE = 0.0
"""The strength without steering."""


class Effect(NamedTuple):
    """An estimand's value and standard error, both over the leading dims of the weights."""

    value: Array
    se: Array


@dataclass(frozen=True)
class Samples:
    """Logit differences (nats) of the same items at each strength; `item` is the last dim.

    `values` has dims (..., strength, item), `strengths` (strength), `letter` (item).
    """

    values: Array
    strengths: Array
    letter: Array
    compare: tuple[float, float] | str = Measure.compare

    def at(self, strength: float) -> Array:
        """Values at one strength, dims (..., item); NaN where it was not swept."""
        where = np.flatnonzero(self.strengths == strength)
        if not len(where):
            return np.full(self.values[..., 0, :].shape, np.nan)
        return self.values[..., where[0], :]

    @property
    def ends(self) -> tuple[float, float]:
        """The compared strengths, low and high; of a slope, the smallest and the largest."""
        return Measure("", compare=self.compare).ends(self.strengths.tolist())

    @property
    def positive(self) -> Array:
        """Values at the high one of the compared strengths."""
        return self.at(self.ends[1])

    @property
    def negative(self) -> Array:
        """Values at the low one of the compared strengths."""
        return self.at(self.ends[0])

    @property
    def baseline(self) -> Array:
        """Values without steering."""
        return self.at(BASELINE)

    @property
    def shift(self) -> Array:
        """Values at the high strength minus those at the low one, or the slope over all."""
        return self.slope if isinstance(self.compare, str) else self.positive - self.negative

    @property
    def contrast(self) -> dict[float, float]:
        """By strength, what the mean there is multiplied by in the mean shift."""
        if not isinstance(self.compare, str):
            return dict(zip(self.ends, (-1.0, 1.0), strict=True))
        centred = self.strengths - self.strengths.mean()
        slope = centred / (centred @ centred)
        return dict(zip(self.strengths.tolist(), slope.tolist(), strict=True))

    @property
    def slope(self) -> Array:
        """Least-squares slope of each item's value on strength, nats per unit strength."""
        centred = self.strengths - self.strengths.mean()
        return np.einsum("...si,s->...i", self.values, centred / (centred @ centred))


def delta(samples: Samples, weights: Array) -> Effect:
    """Mean logit difference at +1 minus that at -1: m(y), in nats."""
    return _standardised(samples.shift, (), _one_stratum(samples), weights)


def cohens_d(samples: Samples, weights: Array) -> Effect:
    r"""Cohen's d by the pooled sd: $m(y) / \sqrt{(s_+^2 + s_-^2) / 2}$.

    Example, items 0, 1, 2 at -1 and 1, 3, 5 at +1: delta 2, pooled variance (4 + 1) / 2.

    >>> x = np.array([[0.0, 1.0, 2.0], [1.0, 3.0, 5.0]])
    >>> samples = Samples(x, np.array([-1.0, 1.0]), np.array(["A", "B", "A"]))
    >>> round(float(cohens_d(samples, np.ones(3)).value), 4)
    1.2649
    """
    scale = (samples.positive, samples.negative)
    return _standardised(samples.shift, scale, _one_stratum(samples), weights)


def hedges_g(samples: Samples, weights: Array) -> Effect:
    r"""Cohen's d without its small-sample bias: J(df) d, df = 2 (n - 1) / (1 + r^2).

    $J = \Gamma(df/2) / (\sqrt{df/2}\, \Gamma((df - 1)/2))$ (Hedges 1981, eq. 6e). The pooled
    variance of two strengths that correlate at r has these degrees of freedom (Satterthwaite);
    r = 0 gives the 2 (n - 1) of independent groups. J is held fixed in the standard error.
    """
    r = _correlation(samples.positive, samples.negative, weights)
    df = 2 * (weights.sum(-1) - 1) / (1 + r**2)
    log_j = gammaln(df / 2) - np.log(df / 2) / 2 - gammaln((df - 1) / 2)
    value, se = cohens_d(samples, weights)
    return Effect(np.exp(log_j) * value, np.exp(log_j) * se)


def glass_delta_negative(samples: Samples, weights: Array) -> Effect:
    """Glass's delta by the sd at strength -1: m(y) / s_-, as the study computed it."""
    return _standardised(samples.shift, (samples.negative,), _one_stratum(samples), weights)


def glass_delta_baseline(samples: Samples, weights: Array) -> Effect:
    """Glass's delta by the sd at strength 0: m(y) / s_0, as the study described it."""
    return _standardised(samples.shift, (samples.baseline,), _one_stratum(samples), weights)


def d_z(samples: Samples, weights: Array) -> Effect:
    """Paired d: mean shift by the sd of the shifts, m(y) / s(y)."""
    return _standardised(samples.shift, (samples.shift,), _one_stratum(samples), weights)


def within_letter_d(samples: Samples, weights: Array) -> Effect:
    r"""The content part of the shift by the sd within letters.

    $(m_A(y) + m_B(y)) / 2$ over $\sqrt{(v_+ + v_-) / 2}$, v being the variance of the items
    around the mean of their own letter, pooled over both letters (n - 2).
    """
    scale = (samples.positive, samples.negative)
    return _standardised(samples.shift, scale, _by_letter(samples), weights)


def content_shift(samples: Samples, weights: Array) -> Effect:
    """The part of the shift that both letters share: (m_A(y) + m_B(y)) / 2, in nats."""
    return _standardised(samples.shift, (), _by_letter(samples), weights)


def letter_shift(samples: Samples, weights: Array) -> Effect:
    """The part of the shift towards (A), whatever its text: (m_A(y) - m_B(y)) / 2, in nats."""
    return _standardised(
        samples.shift, (), _by_letter(samples), weights, contrast=np.array([0.5, -0.5])
    )


def steerability_slope(samples: Samples, weights: Array) -> Effect:
    """Mean over items of the slope of logit_diff on strength, nats per unit strength.

    Source: Tan et al. 2024 (arXiv:2407.12404), section 3: per-sample steerability.
    """
    return _standardised(samples.slope, (), _one_stratum(samples), weights)


def anti_steerable_share(samples: Samples, weights: Array) -> Effect:
    """Share of items whose slope is negative (Tan et al. 2024, section 4)."""
    anti = (samples.slope < 0).astype(float)
    return _standardised(anti, (), _one_stratum(samples), weights)


def trimmed_d(samples: Samples, weights: Array) -> Effect:
    r"""Robust Cohen's d, of means and variances that the largest and smallest fifth cannot move.

    $0.642 (t_+ - t_-) / \sqrt{(v_+ + v_-) / 2}$, t being the mean of a strength's values without
    the g smallest and the g largest, $g = \lfloor 0.2 n \rfloor$, and v their Winsorised variance,
    in which those 2 g have the value of the nearest that is kept. It equals Cohen's d where values
    are normal. Items are trimmed at each strength by itself; the pairing enters the standard error
    alone, by adding up an item's influence at both strengths. Where the effect is a slope, it is
    that of the trimmed means.

    Use it beside Cohen's d, where a few items may lie far out. It is wrong for values of which
    over 80% are equal, such as a rare answer coded 0 or 1: their Winsorised variance is 0.

    Source: Algina, Keselman & Penfield 2005, Psychological Methods 10(3), 317-328, and for the same
    items at both strengths Educational and Psychological Measurement 65(2), 241-258. Standard
    error by the influence functions of the trimmed mean and the Winsorised variance (Huber 1981,
    section 3.3), as in Yuen's test but with the error of the denominator.
    """
    contrast, total = samples.contrast, weights.sum(-1)[..., None]
    parts = {strength: _clip(samples.at(strength), weights, total) for strength in contrast}
    ends = [parts[end] for end in samples.ends]
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = sum(part.variance for part in ends) / len(ends)
        scale = _SD_OF_WINSORISED_NORMAL / np.sqrt(variance)
        value = scale * sum(c * parts[strength].mean for strength, c in contrast.items())
        per_variance = -value / (2 * len(ends) * variance)
        influence = sum(
            part.influence(contrast[strength] * scale, per_variance * (strength in samples.ends))
            for strength, part in parts.items()
        )
        influence -= np.einsum("...i,...i->...", weights, influence)[..., None] / total
    return Effect(value[..., 0], _standard_error(influence, weights))


def cliffs_delta(samples: Samples, weights: Array) -> Effect:
    r"""Cliff's delta: how much more often a value at +1 is above one at -1 than below it.

    $P(x_i^{+1} > x_j^{-1}) - P(x_i^{+1} < x_j^{-1})$ over all $n^2$ pairs of an item i at +1 with
    an item j at -1: from -1 to 1, 0 where neither strength has the larger values, 1 where they do
    not overlap. $(1 + \delta) / 2$ is the probability of superiority (Vargha & Delaney's A); with
    equal normal spreads $\delta = 2 \Phi(d / \sqrt 2) - 1$.

    With $h_i$ the mean over j of $\mathrm{sign}(x_i^{+1} - x_j^{-1}) + \mathrm{sign}(x_j^{+1} -
    x_i^{-1})$, the placements of item i at both strengths, delta is m(h) / 2. Its influence is
    $h_i - 2 \delta$, in which the pairing enters: $se^2 = \sum_i (h_i - 2 \delta)^2 / (n (n - 1))$.

    Use it where only the order of values means something. It is wrong for comparing large effects,
    which are all near 1; there its standard error goes to 0 and its interval may be undefined.

    Source: Cliff 1993, Psychological Bulletin 114(3), 494-509; placements: DeLong, DeLong &
    Clarke-Pearson 1988, Biometrics 44(3), 837-845.
    """
    low, high, total = samples.negative, samples.positive, weights.sum(-1)
    placements = _twice_below(high, low, weights) - _twice_below(low, high, weights)
    placements /= total[..., None]
    value = np.einsum("...i,...i->...", weights, placements) / (2 * total)
    placements -= 2 * value[..., None]
    return Effect(value, _standard_error(placements, weights))


Estimand = Callable[[Samples, Array], Effect]

ESTIMANDS: dict[str, Estimand] = {
    estimand.__name__: estimand
    for estimand in (
        delta,
        cohens_d,
        hedges_g,
        glass_delta_negative,
        glass_delta_baseline,
        d_z,
        within_letter_d,
        content_shift,
        letter_shift,
        steerability_slope,
        anti_steerable_share,
        trimmed_d,
        cliffs_delta,
    )
}
NAMES = {name: name.replace("_", " ") for name in ESTIMANDS} | {
    "cohens_d": "Cohen's d",
    "hedges_g": "Hedges' g",
    "glass_delta_negative": "Glass's delta (sd at -1)",
    "glass_delta_baseline": "Glass's delta (sd at 0)",
    "within_letter_d": "within-letter d",
    "d_z": "paired d",
    "cliffs_delta": "Cliff's delta",
}
"""Estimands as a reader calls them."""

UNITS = ESTIMAND_UNITS


def _standardised(
    shift: Array,
    scale: Sequence[Array],
    strata: Array,
    weights: Array,
    contrast: Array | None = None,
) -> Effect:
    r"""T = N / sqrt(V), with the standard error of its influence function.

    N = sum_g c_g m_g(shift), c_g = 1 / number of strata unless given; V = the mean over the
    columns of `scale` of the variance around the stratum's mean, pooled over strata (W - G);
    V = 1 without columns. With W_g the weight of stratum g and W their sum,

        IF_N = W sum_g c_g 1_g (shift - m_g) / W_g,    IF_V = mean over columns r^2 W/(W-G) - V,
        IF_T = IF_N / sqrt(V) - T / (2 V) IF_V,        se^2 = sum w IF_T^2 / (W (W - G)).

    Without `scale` and strata, se is the textbook s / sqrt(n). Dims: `shift` and the columns
    (..., item), `strata` (stratum, item), `weights` (..., item); both results (...).
    """
    n_strata = len(strata)
    contrast = np.full(n_strata, 1 / n_strata) if contrast is None else contrast
    inside = weights * strata.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = weights @ strata.T if n_strata > 1 else inside.sum(-1)[..., None]
        total = share.sum(-1)
        influence, means = _centre(shift, strata, weights, share)
        value = means @ contrast
        influence *= _of_items(total[..., None] * contrast / share, strata)
        if scale:
            spread = sum(_centre(column, strata, weights, share)[0] ** 2 for column in scale)
            spread *= (total / ((total - n_strata) * len(scale)))[..., None]
            variance = np.einsum("...i,...i->...", inside, spread) / total
            value = value / np.sqrt(variance)
            influence /= np.sqrt(variance)[..., None]
            spread -= variance[..., None]
            spread *= (value / (2 * variance))[..., None]
            influence -= spread
        square = np.einsum("...i,...i,...i->...", inside, influence, influence)
        se = np.sqrt(square / (total * (total - n_strata)))
    return Effect(value, se)


def _centre(x: Array, strata: Array, weights: Array, share: Array) -> tuple[Array, Array]:
    """`x` minus the weighted mean of its stratum, and those means, dims (..., stratum)."""
    means = np.einsum("...i,...gi->...g", weights, x[..., None, :] * strata) / share
    # In C order whatever the order of x: the last digit of sums over items depends on that.
    return np.subtract(x, _of_items(means, strata), order="C"), means


def _of_items(of_strata: Array, strata: Array) -> Array:
    """The value (..., stratum) of each item's stratum, dims (..., item), or 1 if there is one."""
    return of_strata @ strata if len(strata) > 1 else of_strata


_TRIMMED = 0.2
"""Share of the items that is trimmed at either end (Algina, Keselman & Penfield 2005)."""
_SD_OF_WINSORISED_NORMAL = 0.642
"""Square root of the Winsorised variance of N(0, 1): 0.6 - 2 q phi(q) + 0.4 q^2, Phi(q) = 0.8."""


@dataclass(frozen=True)
class _Clipped:
    """The values x of one strength with the smallest and largest fifth clipped.

    With W the sum of the weights w, g the weight that is cut at either end, a and b the smallest
    and the largest value that is kept and z the values clipped to these, less their mean m:

        t = (W m - g (a + b)) / (W - 2 g),    v = sum w z^2 / (W - 1)

    are the trimmed mean and the Winsorised variance, and the influences of an item on them

        IF_t = z W / (W - 2 g),    IF_v = z^2 + 2 (m - a) A [x < a] + 2 (b - m) B [x > b] - mean.

    A is g / W times the slope of the quantile function at a, from the quantiles at the weights
    g / 2 and 3 g / 2; so is B at b. Dims (..., 1), but (..., item) of `x` and `z`.
    """

    x: Array
    z: Array
    low: Array
    high: Array
    mean: Array
    variance: Array
    kept: Array
    below: Array
    above: Array

    def influence(self, of_mean: Array, of_variance: Array) -> Array:
        """Each item's `of_mean` IF_t + `of_variance` IF_v, but for its mean, dims (..., item)."""
        found = of_variance * self.z
        found += of_mean / self.kept
        found *= self.z
        found += (of_variance * self.below) * (self.x < self.low)
        found += (of_variance * self.above) * (self.x > self.high)
        return found


def _clip(x: Array, weights: Array, total: Array) -> _Clipped:
    """The values of one strength (..., item) clipped under `weights`, of which `total` is the sum.

    See `_Clipped`.
    """
    cut = total // (1 / _TRIMMED)
    (a_out, a, a_in), (b_out, b, b_in) = _around_cuts(x, weights, total, cut)
    z = np.clip(x, a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        m = np.einsum("...i,...i->...", weights, z)[..., None] / total
        z -= m
        square = np.einsum("...i,...i,...i->...", weights, z, z)[..., None]
        return _Clipped(
            x=x,
            z=z,
            low=a,
            high=b,
            mean=(total * m - cut * (a + b)) / (total - 2 * cut),
            variance=square / (total - 1),
            kept=1 - 2 * cut / total,
            below=2 * (m - a) * (a_in - a_out),
            above=2 * (b - m) * (b_out - b_in),
        )


def _around_cuts(x: Array, weights: Array, total: Array, cut: Array) -> tuple[Array, Array]:
    """Values with g / 2, g and 3 g / 2 of the weight outside them, from below and from above.

    g is `cut`; each dims (quantile, ..., 1).
    """
    order = x.argsort(-1)
    cumulated = _along(weights, order)
    np.cumsum(cumulated, -1, out=cumulated)
    outside = [share * cut for share in (0.5, 1.0, 1.5)]
    below = [(cumulated > weight).argmax(-1) for weight in outside]
    above = [(cumulated >= total - weight).argmax(-1) for weight in outside]
    found = _along(_along(x, order), np.stack([*below, *above])[..., None])
    return found[:3], found[3:]


def _along(values: Array, index: Array) -> Array:
    """`values` at `index` of its last dim; one of them may lack leading dims of the other."""
    if values.ndim == 1:
        return values[index]
    if index.ndim == 1:
        return np.take(values, index, axis=-1)
    lead = np.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    values, index = (np.broadcast_to(one, lead + one.shape[-1:]) for one in (values, index))
    return np.take_along_axis(values, index, axis=-1)


def _twice_below(x: Array, among: Array, weights: Array) -> Array:
    """Twice the weight of the values `among` that are below each x, equal ones counted by half.

    All dims (..., item). By one sort and one cumulative sum, so that no array holds two items.
    """
    order = among.argsort(-1)
    in_order, of_items = _along(among, order), _along(weights, order)
    cumulated = np.zeros((*of_items.shape[:-1], of_items.shape[-1] + 1))
    np.cumsum(of_items, -1, out=cumulated[..., 1:])
    below, up_to = (_SEARCH[side](in_order, x) for side in ("left", "right"))
    return _along(cumulated, below) + _along(cumulated, up_to)


_SEARCH = {
    side: np.vectorize(partial(np.searchsorted, side=side), signature="(i),(j)->(j)")
    for side in ("left", "right")
}


def _standard_error(influence: Array, weights: Array) -> Array:
    """From each item's influence IF: se^2 = sum w IF^2 / (W (W - 1)), W the sum of weights."""
    total = weights.sum(-1)
    square = np.einsum("...i,...i,...i->...", weights, influence, influence)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(square / (total * (total - 1)))


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    total = weights.sum(-1)
    x, y = (v - (np.einsum("...i,...i->...", weights, v) / total)[..., None] for v in (x, y))
    xy, xx, yy = (
        np.einsum("...i,...i,...i->...", weights, a, b) for a, b in ((x, y), (x, x), (y, y))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return xy / np.sqrt(xx * yy)


def _one_stratum(samples: Samples) -> Array:
    return np.ones((1, len(samples.letter)))


def _by_letter(samples: Samples) -> Array:
    """Indicators of the A-items and the B-items; an item of another letter is in neither."""
    return np.stack([samples.letter == "A", samples.letter == "B"]).astype(float)
