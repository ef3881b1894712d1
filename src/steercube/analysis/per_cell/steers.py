r"""Does the vector steer at all? One test for each (model, concept), over all of its layers.

The statistic is the largest over layers of the studentised content shift,

    T = max over layers of content_shift / se,

both as in `steercube.analysis.per_cell.estimands`: the part of the shift y that both letters share,
so that a vector which only favours (A) does not count. Under the null hypothesis an item is as
likely to shift by -y as by +y, so the null distribution of T comes from a random sign for each
item, the same at every layer, which keeps the correlation between layers. The p-value is one-sided.
Steering the other way is tested likewise, by the smallest value over layers.

A preference for a letter breaks that symmetry: it adds +b to the A-items and -b to the B-items. So
it is estimated under the null hypothesis, as sum s y / n with s = +1 for A and -1 for B, and
subtracted before the signs are drawn, as Freedman and Lane do with permutations (Winkler et al.
2014). Without that step the test rejects 12% of null sweeps with a strong letter preference, at a
nominal 5%.

A study has many pairs of model and concept, so the table of effects corrects their p-values by
Holm's method over all of them and says "yes" at or below ALPHA. It says "unknown" if the cells
hold no such test, which needs the samples, or if a letter has too few items.

What it is wrong for: it tests whether there is an effect, not how large it is. It assumes that the
items' errors are symmetric: if most items shift a little the right way and a few far the wrong
way, it rejects too often (5 to 7% of null sweeps at a skewness of -0.3, 8 to 18% at -1.5 to -2).
With N_FLIPS signs no p-value is below 1 / (N_FLIPS + 1), which is small enough for Holm's
correction over up to a thousand pairs.
"""

from typing import NamedTuple

import numpy as np

from steercube.analysis.per_cell.estimands import Array, Samples
from steercube.contract import SCORED_LETTERS

N_FLIPS = 20_000
MIN_OF_A_LETTER = 5
"""Fewest items of each letter; with four of twenty the test rejects 6% of null sweeps."""
ALPHA = 0.05
"""Chance that the test says "yes" for any pair of a study in which nothing steers."""
YES, NO, UNKNOWN = "yes", "no", "unknown"
_FLIPS_AT_ONCE = 2_000


class SignFlips(NamedTuple):
    """p-values of one (model, concept): that it steers, and that it steers the other way."""

    p: float
    p_other_way: float


def sign_flip_test(
    samples: Samples, rng: np.random.Generator, *, n_flips: int = N_FLIPS
) -> SignFlips:
    """Tests whether any layer shifts items towards the matching answer, and whether any away.

    `samples` has dims (layer, strength, item). NaN where a letter has fewer than MIN_OF_A_LETTER
    items. Items whose letter is not scored are left out, as in `content_shift`.
    """
    scored = np.isin(samples.letter, SCORED_LETTERS)
    letter, shift = samples.letter[scored], samples.shift[:, scored]
    if min((letter == name).sum() for name in SCORED_LETTERS) < MIN_OF_A_LETTER:
        return SignFlips(np.nan, np.nan)
    shift = without_letter_shift(shift, letter)
    flips = sign_flips(len(letter), n_flips, rng)
    batches = np.array_split(flips, -(-len(flips) // _FLIPS_AT_ONCE))
    t = [content_t(shift, letter, batch.astype(float)) for batch in batches]
    largest = np.concatenate([values.max(axis=-1) for values in t])
    smallest = np.concatenate([values.min(axis=-1) for values in t])
    return SignFlips(_share_as_large(largest), _share_as_large(-smallest))


def without_letter_shift(shift: Array, letter: Array) -> Array:
    """Shifts (layer, item) minus the letter shift estimated under no content shift."""
    sign = np.where(letter == SCORED_LETTERS[0], 1.0, -1.0)
    return shift - (shift @ sign / len(sign))[:, None] * sign


def sign_flips(n_items: int, n_flips: int, rng: np.random.Generator) -> Array:
    """Signs of the items (flip, item); the first flip, all +1, is the sample itself.

    Every assignment of signs once if there are at most `n_flips`; else the sample and `n_flips`
    random ones.
    """
    if 2**n_items <= n_flips:
        bits = np.arange(2**n_items)[:, None] >> np.arange(n_items) & 1
    else:
        bits = rng.integers(0, 2, (n_flips + 1, n_items), dtype=np.int8)
        bits[0] = 0
    return 1 - 2 * bits.astype(np.int8)


def content_t(shift: Array, letter: Array, flips: Array) -> Array:
    r"""The content shift over its standard error under each flip, dims (flip, layer).

    With m_g and n_g the mean and number of the items of letter g after flipping, and n all items,

        T = sum_g m_g / 2 / sqrt(n / (n - 2) sum_g SS_g / (2 n_g)^2),    SS_g = sum y^2 - n_g m_g^2.

    The sum of squares does not change with the signs, so only the means are computed again. `shift`
    has dims (layer, item), `letter` (item), `flips` (flip, item). Without spread T is 0 if the mean
    is 0, else infinite.
    """
    n = len(letter)
    value, variance = 0.0, 0.0
    for name in SCORED_LETTERS:
        has_letter = letter == name
        n_g = has_letter.sum()
        mean = flips[:, has_letter] @ shift[:, has_letter].T / n_g
        spread = np.maximum((shift[:, has_letter] ** 2).sum(axis=-1) - n_g * mean**2, 0)
        value = value + mean / 2
        variance = variance + n / (n - 2) * spread / (2 * n_g) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(value / np.sqrt(variance), nan=0.0, posinf=np.inf, neginf=-np.inf)


def _share_as_large(statistics: Array) -> float:
    """Share of the statistics at least as large as the first, the sample's, which is counted."""
    # An equal statistic that was summed in another order may be smaller by a rounding error.
    observed = statistics[0]
    return float(np.mean((statistics >= observed) | np.isclose(statistics, observed, rtol=1e-9)))
