r"""The estimands: effects of steering on one concept's items, one function each.

Every estimand is a weighted statistic of the items of one (model, concept, layer), so the same
function serves the sample itself (weights 1), a bootstrap resample (weights = counts) and half
of the items (weights 0 or 1). Each returns its value and its closed-form standard error.

Which one to use. `cohens_d` is the published study's and the default. `delta` keeps the units
(nats), and so each model's own scale. `d_z` standardises by the spread of the shifts, so it grows
with the correlation of the two strengths and does not measure overlap. The two Glass deltas divide
by the spread of one strength. `within_letter_d` removes the model's preference for a letter from
the denominator and weights both letters equally: prefer it where letters are unbalanced.

Notation: item i has the logit differences $x_i^s$ at strength s (nats, towards the matching
answer), weight $w_i$ and shift $y_i = x_i^{+1} - x_i^{-1}$; $m$ and $s^2$ are weighted means and
variances (n - 1 in the denominator, n = sum of weights).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    )
}
NAMES = {name: name.replace("_", " ") for name in ESTIMANDS} | {
    "cohens_d": "Cohen's d",
    "hedges_g": "Hedges' g",
    "glass_delta_negative": "Glass's delta (sd at -1)",
    "glass_delta_baseline": "Glass's delta (sd at 0)",
    "within_letter_d": "within-letter d",
    "d_z": "paired d",
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
        influence *= (total[..., None] * contrast / share) @ strata
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
    return x - means @ strata, means


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
