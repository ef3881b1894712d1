"""Permutation tests: all arrangements if there are few, random ones if there are many.

The observed arrangement is always one of them, so no p is 0. Wrong for: models or concepts that are
not exchangeable under the null hypothesis, such as models whose label is confounded with size.
"""

from itertools import combinations, permutations
from math import comb, factorial

import numpy as np

MAX_ASSIGNMENTS = 20_000
"""Above this many assignments of labels, as many are drawn at random instead."""
MAX_ORDERS = 5_040
"""Every order of seven things; of more things, this many orders at random."""


def assignments(high: np.ndarray, rng: np.random.Generator, *, limit: int) -> np.ndarray:
    """Assignments of the label to as many models, dims (assignment, model), the observed one first.

    All of them if there are at most `limit`, else the observed one and limit - 1 random ones.
    """
    n, k = len(high), int(high.sum())
    if comb(n, k) > limit:
        drawn = rng.permuted(np.tile(high, (limit - 1, 1)), axis=1)
        return np.concatenate([high[None], drawn])
    ways = np.zeros((comb(n, k), n), dtype=bool)
    for row, chosen in enumerate(combinations(range(n), k)):
        ways[row, list(chosen)] = True
    first = (ways == high).all(axis=1)
    return np.concatenate([ways[first], ways[~first]])


def orders(n: int, rng: np.random.Generator) -> np.ndarray:
    """Orders of n things, dims (order, thing), the observed one first."""
    if factorial(n) <= MAX_ORDERS:
        return np.array(list(permutations(range(n))))
    drawn = rng.permuted(np.tile(np.arange(n), (MAX_ORDERS - 1, 1)), axis=1)
    return np.vstack([np.arange(n), drawn])


def two_sided_p(statistics: np.ndarray) -> float:
    """The share of finite statistics (arrangement,) at least as far from 0 as the first one.

    NaN if the first is undefined. Statistics that differ by rounding alone count as equal.
    """
    sizes = np.abs(statistics[np.isfinite(statistics)])
    observed = abs(float(statistics[0]))
    if not np.isfinite(observed):
        return np.nan
    return float(np.mean(sizes >= observed - 1e-12 * max(1.0, observed)))


def smallest_p(n_high: int, n_low: int) -> float:
    """The smallest possible two-sided p over all assignments of the labels.

    With equally many models of both labels, swapping the labels gives the same size.
    """
    return (2 if n_high == n_low else 1) / comb(n_high + n_low, n_high)
