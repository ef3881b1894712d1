r"""Does the vector steer at all? One test for each (model, concept), over all of its layers.

The statistic is the largest over layers of the studentised content shift,

    T = max over layers of content_shift / se,

both as in `steercube.analysis.per_cell.estimands`: the half of the shift y that both letters share,
so that a vector which only favours (A) scores nothing. Under the null hypothesis an item is as
likely to be moved by -y as by +y, so the null distribution of T comes from giving each item a
random sign, the same at every layer, which keeps the correlation of the layers. The p-value is
one-sided. The other direction is tested in the same way, by the smallest value over layers.

A preference for a letter is no part of that null hypothesis: y is then +b for the A-items and -b
for the B-items, which no random sign leaves alone. It is estimated under the null hypothesis, as
sum s y / n with s = +1 for A and -1 for B, and taken off before the signs are drawn, as Freedman
and Lane do with permutations (Winkler et al. 2014). Without that step the test rejects 12% of null
sweeps with a strong letter preference, at a nominal 5%.

A study has many pairs, so `steering` corrects their p-values by Holm's method over all pairs of the
study, and calls those at or below ALPHA "yes". A pair is "unknown" where the cells hold no such
test, which needs the samples, or where a letter has too few items to tell content from letter.

What it is wrong for: it asks whether there is an effect, not how large one is. It takes the items'
errors to be symmetric: where most items are moved a little the right way and a few far the wrong
way, it rejects too often (5 to 7% of null sweeps at a skewness of -0.3, 8 to 18% at -1.5 to -2).
With N_FLIPS signs no p-value is below 1 / (N_FLIPS + 1), which is fine enough for Holm's correction
over a thousand pairs, and no more.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.over_models.means import swept_models
from steercube.analysis.per_cell.estimands import Array, Samples
from steercube.cube import SCORED_LETTERS

N_FLIPS = 20_000
MIN_OF_A_LETTER = 5
"""Fewest items of each letter; with four of twenty the test rejects 6% of null sweeps."""
ALPHA = 0.05
"""Chance of calling any pair of a study steered where none is."""
YES, NO, UNKNOWN = "yes", "no", "unknown"
_FLIPS_AT_ONCE = 2_000


class SignFlips(NamedTuple):
    """p-values of one (model, concept): that it steers, and that it steers the other way."""

    p: float
    p_other_way: float


def sign_flip_test(
    samples: Samples, rng: np.random.Generator, *, n_flips: int = N_FLIPS
) -> SignFlips:
    """Whether any layer shifts the items towards the matching answer, and whether any away from it.

    `samples` has dims (layer, strength, item). NaN where a letter has fewer than MIN_OF_A_LETTER
    items. Items of no scored letter are left out, as in `content_shift`.
    """
    scored = np.isin(samples.letter, SCORED_LETTERS)
    letter, shift = samples.letter[scored], samples.shift[:, scored]
    if min((letter == name).sum() for name in SCORED_LETTERS) < MIN_OF_A_LETTER:
        return SignFlips(np.nan, np.nan)
    shift = without_letter_shift(shift, letter)
    flips = sign_flips(len(letter), n_flips, rng)
    parts = np.array_split(flips, -(-len(flips) // _FLIPS_AT_ONCE))
    t = [content_t(shift, letter, part.astype(float)) for part in parts]
    largest = np.concatenate([of_part.max(axis=-1) for of_part in t])
    smallest = np.concatenate([of_part.min(axis=-1) for of_part in t])
    return SignFlips(_share_as_large(largest), _share_as_large(-smallest))


def without_letter_shift(shift: Array, letter: Array) -> Array:
    """The shifts (layer, item) less the letter shift that fits them best if no content moves."""
    sign = np.where(letter == SCORED_LETTERS[0], 1.0, -1.0)
    return shift - (shift @ sign / len(sign))[:, None] * sign


def sign_flips(n_items: int, n_flips: int, rng: np.random.Generator) -> Array:
    """Signs of the items (flip, item), every one +1 in the first row, which is the sample itself.

    Every assignment of signs once, where there are no more than `n_flips`; else so many random
    ones beside the sample.
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

    The sum of squares does not change with the signs, so the means are all that is computed anew.
    `shift` has dims (layer, item), `letter` (item), `flips` (flip, item). Without any spread T is 0
    where the mean is.
    """
    n = len(letter)
    value, variance = 0.0, 0.0
    for name in SCORED_LETTERS:
        of = letter == name
        n_g = of.sum()
        mean = flips[:, of] @ shift[:, of].T / n_g
        spread = np.maximum((shift[:, of] ** 2).sum(axis=-1) - n_g * mean**2, 0)
        value = value + mean / 2
        variance = variance + n / (n - 2) * spread / (2 * n_g) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(value / np.sqrt(variance), nan=0.0, posinf=np.inf, neginf=-np.inf)


def _share_as_large(statistics: Array) -> float:
    """Share of the statistics that reach the first one, which counts among them."""
    # An equal statistic that was summed in another order may be smaller by a rounding error.
    observed = statistics[0]
    return float(np.mean((statistics >= observed) | np.isclose(statistics, observed, rtol=1e-9)))


def holm(p_values: Array) -> Array:
    """p-values corrected for their number (Holm 1979); a NaN is no test and stays one.

    >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    corrected = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


NO_TEST = "the cells hold no such test; make them again from the cube with `steercube analyze`"
FEW_OF_A_LETTER = f"fewer than {MIN_OF_A_LETTER} items of a letter"


def steering(cells: xr.Dataset) -> pd.DataFrame:
    """Whether each pair that was run steers, indexed by (model, concept).

    `steers` is yes, no or unknown, then with its `steers_reason`; `p_steers` the p-value of the
    pair alone, `p_steers_holm` corrected for all pairs of these cells; `steers_other_way` and its
    p-values say the same of the opposite direction.
    """
    run = cells["selected_layer"].sel(model=swept_models(cells)).transpose("model", "concept")
    pairs = run.to_series().dropna().index
    found = pd.DataFrame(index=pairs)
    for direction, name in {"steers": "steers_p", "steers_other_way": "steers_other_way_p"}.items():
        p = np.full(len(pairs), np.nan)
        if name in cells:
            p = cells[name].transpose("model", "concept").to_series().loc[pairs].to_numpy()
        corrected = holm(p)
        verdict = np.where(corrected <= ALPHA, YES, NO).astype(object)
        found[direction] = np.where(np.isnan(corrected), UNKNOWN, verdict)
        found[f"p_{direction}"] = p
        found[f"p_{direction}_holm"] = corrected
    why = FEW_OF_A_LETTER if "steers_p" in cells else NO_TEST
    found["steers_reason"] = np.where(found["steers"] == UNKNOWN, why, "")
    return found
