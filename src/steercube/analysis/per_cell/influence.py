"""The item that moves Cohen's d most: what leaving out one item changes.

Use it to find a d that rests on one item, such as one whose values are 400 times as large as the
others': it makes the spread as well as the shift, and every d becomes about 1 / sqrt(n). It is
wrong for several such items together, each of which hides the others; there compare d with
`trimmed_d`.
"""

from typing import NamedTuple

import numpy as np

from steercube.analysis.per_cell.estimands import Array, Samples, cohens_d

_ITEMS_AT_ONCE = 1_000


class Influence(NamedTuple):
    """The largest change of Cohen's d by leaving out one item, and the index of that item."""

    change: float
    item: int


def most_influential(samples: Samples) -> Influence | None:
    """The item i with the largest |d without i - d|, and that change; None where d is undefined.

    `samples.values` has dims (strength, item). Items without which d is undefined are passed over.
    """
    whole = cohens_d(samples, np.ones(len(samples.letter))).value
    change = leave_one_out(samples) - whole
    if not np.isfinite(change).any():
        return None
    item = int(np.nanargmax(np.where(np.isfinite(change), np.abs(change), np.nan)))
    return Influence(float(change[item]), item)


def leave_one_out(samples: Samples) -> Array:
    """Cohen's d without each item, dims (item,)."""
    items = np.arange(len(samples.letter))
    batches = np.array_split(items, -(-len(items) // _ITEMS_AT_ONCE))
    without = [(items != batch[:, None]).astype(float) for batch in batches]
    return np.concatenate([cohens_d(samples, weights).value for weights in without])
