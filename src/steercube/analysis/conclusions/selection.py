"""What to know of a best layer: is the sweep's edge or a gap beside it, and what the rest does.

The best layer of a (model, concept) is the one with the largest delta, by the study's definition.
It says nothing of layers that were not run: where a gap or the end of the sweep is beside it, the
largest delta of the network may lie there. And it says nothing of a vector that steers the wrong
way, whose largest delta is a small one, at whichever layer does least. Everything here is read from
the cells' layers, so it is known of cells of any age.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr

from steercube.analysis.per_cell.steers import YES

GAP = 1.5
"""How many times the usual distance between swept layers makes a gap: more than the rounding of
layers that were chosen by their depth does, less than one layer left out."""

FIRST, LAST, GAP_BESIDE = "first swept", "last swept", "beside a gap"
FIRST_BLOCK, LAST_BLOCK = "first block", "last block"
ONLY = "only layer swept"
OPEN = (FIRST, LAST, GAP_BESIDE, ONLY)
"""Flags of a layer beside which the network goes on where nothing was run."""

OTHER_WAY = "steers the other way"
MORE_OTHER_WAY = "moves more the other way"


def layer_flag(swept: np.ndarray, best: float, n_layers: int) -> str:
    """What the best of the swept layers has beside it; empty where its neighbours were swept too.

    At either end of the sweep it is the first or last layer swept or, where the network itself ends
    there, its first or last block.

    >>> layer_flag(np.array([4, 5, 6, 10, 11]), 6, 12)
    'beside a gap'
    >>> layer_flag(np.array([4, 5, 6, 10, 11]), 11, 12)
    'last block'
    """
    if not np.isfinite(best):
        return ""
    if len(swept) == 1:
        return ONLY
    distance = np.diff(swept)
    at = int(np.searchsorted(swept, best))
    beside = distance[max(at - 1, 0) : at + 1]
    flags = {
        FIRST_BLOCK if best == 0 else FIRST: at == 0,
        LAST_BLOCK if best == n_layers - 1 else LAST: at == len(swept) - 1,
        GAP_BESIDE: bool((beside > GAP * np.median(distance)).any()),
    }
    return ", ".join(flag for flag, holds in flags.items() if holds)


class Largest(NamedTuple):
    """The layer with the largest |delta|, Cohen's d there, and whether it is the other way."""

    layer: float
    effect: float
    other_way: bool


def largest_effect(delta: xr.DataArray, cohens_d: xr.DataArray) -> Largest:
    """Of one (model, concept): Cohen's d, with its sign, where |delta| is largest over layers.

    NaN where no layer was run. `other_way` says that the most negative delta is the larger one.
    """
    run = np.flatnonzero(delta.notnull())
    if not len(run):
        return Largest(np.nan, np.nan, False)
    at = run[int(np.abs(delta.values[run]).argmax())]
    layer, effect = float(delta["layer"][at]), float(cohens_d[at])
    return Largest(layer, effect, bool(delta[at] < 0))


def direction_flag(largest: Largest, steers_other_way: str) -> str:
    """Empty, or that the largest effect is away from the matching answer.

    "steers the other way" where a test has shown it, "moves more the other way" where no test did:
    among noise about half of all largest effects are negative.
    """
    if not largest.other_way:
        return ""
    return OTHER_WAY if steers_other_way == YES else MORE_OTHER_WAY
