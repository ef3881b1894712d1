from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy import stats

from steercube.analysis.over_models.permute import (
    MAX_ORDERS,
    assignments,
    orders,
    smallest_p,
    two_sided_p,
)

EVERY = 20_000


def marked(n_high: int, n_low: int) -> np.ndarray:
    """The label of so many models, those without it first."""
    return np.arange(n_high + n_low) >= n_low


def differences(ways: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of the models with the label minus that of the others, dims (way,)."""
    n = ways.sum(axis=1)
    return ways @ values / n - ~ways @ values / (~ways).sum(axis=1)


def test_few_models_have_every_assignment_once_the_one_found_first(
    rng: np.random.Generator,
) -> None:
    high = np.array([False, True, False, False, True, False])
    ways = assignments(high, rng, limit=15)
    assert ways[0].tolist() == high.tolist()
    found = {tuple(np.flatnonzero(way).tolist()) for way in ways}
    assert found == set(combinations(range(6), 2))
    assert len(ways) == 15


def test_an_exact_p_is_scipys(rng: np.random.Generator) -> None:
    """Over all 35 assignments of a label to three of seven."""
    high, values = marked(3, 4), rng.normal(size=7)

    def apart(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(a.mean(axis=axis) - b.mean(axis=axis))

    expected = stats.permutation_test(
        (values[high], values[~high]), apart, n_resamples=np.inf, alternative="greater"
    )
    found = two_sided_p(differences(assignments(high, rng, limit=EVERY), values))
    assert found == pytest.approx(expected.pvalue)
    assert 1 / 35 <= found < 1


def test_many_models_have_random_assignments_and_the_one_found(rng: np.random.Generator) -> None:
    high = marked(5, 15)
    ways = assignments(high, rng, limit=4_001)
    assert ways.shape == (4_001, 20)
    assert ways[0].tolist() == high.tolist()
    assert (ways.sum(axis=1) == 5).all()
    # Each model has the label in 1,000 of 4,000, give or take 5 sd of 27.4.
    assert (abs(ways[1:].sum(axis=0) - 1_000) < 137).all()


@pytest.mark.parametrize("limit", [15, 14], ids=["every way", "random ways"])
def test_the_limit_is_how_many_ways_there_are_at_most(limit: int, rng: np.random.Generator) -> None:
    assert len(assignments(marked(2, 4), rng, limit=limit)) == limit


def test_p_is_never_zero(rng: np.random.Generator) -> None:
    """Where no random assignment is as extreme, the one found is still one of them."""
    high = marked(15, 15)
    ways = assignments(high, rng, limit=200)
    assert two_sided_p(differences(ways, 100.0 * high)) == pytest.approx(1 / 200)


@pytest.mark.parametrize(
    ("n_high", "n_low", "limit"), [(2, 4, 15), (7, 9, 100)], ids=["every way", "random ways"]
)
def test_p_is_uniform_where_the_label_means_nothing(n_high: int, n_low: int, limit: int) -> None:
    """2,000 draws: p <= k / n in a share of k / n of them, by binomial tests at three k.

    False alarms: under 3 in 10,000. The control differs by 4 sd.
    """
    rng, high = np.random.default_rng(11), marked(n_high, n_low)

    def p_of(effect: float) -> float:
        values = rng.normal(size=len(high)) + effect * high
        return two_sided_p(differences(assignments(high, rng, limit=limit), values))

    p = np.array([p_of(0.0) for _ in range(2_000)])
    for k in (limit // 15, limit // 5, limit // 2):
        n_under = int((p <= k / limit + 1e-9).sum())
        assert stats.binomtest(n_under, 2_000, k / limit).pvalue > 1e-4
    assert np.mean([p_of(4.0) <= 0.07 for _ in range(100)]) > 0.8


def test_orders_are_all_of_few_and_random_ones_of_many(rng: np.random.Generator) -> None:
    few = orders(7, rng)
    assert len(np.unique(few, axis=0)) == len(few) == MAX_ORDERS == 5040
    assert few[0].tolist() == list(range(7))
    many = orders(8, rng)
    assert many.shape == (5040, 8)
    assert many[0].tolist() == list(range(8))
    assert (np.sort(many, axis=1) == np.arange(8)).all()
    # Each thing comes to each place alike: 630 times of 5,040, give or take 5 sd of 23.5.
    counts = np.array([np.bincount(column, minlength=8) for column in many[1:].T])
    assert (abs(counts - 630) < 118).all()


def test_the_p_of_a_correlation_over_every_order_is_scipys(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 6))

    def size(y: np.ndarray) -> float:
        return abs(np.corrcoef(x, y)[0, 1])

    expected = stats.permutation_test(
        (y,), size, permutation_type="pairings", n_resamples=np.inf, alternative="greater"
    )
    r = np.array([np.corrcoef(x[order], y)[0, 1] for order in orders(6, rng)])
    assert two_sided_p(r) == pytest.approx(expected.pvalue)


def test_p_counts_what_is_as_far_from_zero_as_the_first() -> None:
    assert two_sided_p(np.array([-2.0, 1.0, 2.0, 3.0])) == 3 / 4
    assert two_sided_p(np.array([0.0, 1.0])) == 1
    rounding = 0.1 + 0.2  # not 0.3
    assert two_sided_p(np.array([rounding, 0.3, 0.1, 0.1])) == 2 / 4
    assert two_sided_p(np.array([2.0, np.nan, 1.0, np.inf])) == 1 / 2
    assert np.isnan(two_sided_p(np.array([np.nan, 1.0])))


@pytest.mark.parametrize(("models", "floor"), [((2, 4), 1 / 15), ((3, 3), 0.1), ((4, 4), 2 / 70)])
def test_the_smallest_p_counts_the_ways_and_is_reached(
    models: tuple[int, int], floor: float, rng: np.random.Generator
) -> None:
    assert smallest_p(*models) == pytest.approx(floor)
    high = marked(*models)
    ways = assignments(high, rng, limit=EVERY)
    assert len(ways) == comb(len(high), int(high.sum()))
    assert two_sided_p(differences(ways, 10.0 * high)) == pytest.approx(floor)
