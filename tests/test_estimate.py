from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from steercube.estimate import Estimate, normal_quantile, percentile_ends, t_quantile


def test_an_estimate_lies_around_its_centre() -> None:
    found = Estimate.around(2.0, 0.5, over="models", n=4)
    assert found == Estimate(2.0, low=1.5, high=2.5, over="models", n=4)


def test_ends_and_value_go_through_the_function() -> None:
    found = Estimate.around(np.log(4.0), np.log(2.0), through=np.exp)
    assert (found.low, found.value, found.high) == pytest.approx((2, 4, 8))
    assert {type(end) for end in (found.low, found.value, found.high)} == {float}


def test_a_value_of_its_own_leaves_the_ends_where_they_are() -> None:
    found = Estimate.around(1.0, 0.25, value=1.5, corrected=1.0)
    assert (found.low, found.value, found.high) == (0.75, 1.5, 1.25)


def test_without_a_width_there_is_a_value_and_no_interval() -> None:
    found = Estimate.around(0.3, np.nan, through=np.tanh, reason="one model")
    assert found.value == np.tanh(0.3)
    assert np.isnan([found.low, found.high]).all()
    assert not found.excludes_zero


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.1, 2.0, True), (-2.0, -0.1, True), (-0.1, 0.1, False), (0.0, 1.0, False)],
)
def test_zero_is_excluded_by_an_interval_on_one_side_of_it(
    low: float, high: float, excludes: bool
) -> None:
    assert replace(Estimate(0.0), low=low, high=high).excludes_zero is excludes


def test_an_undefined_estimate_has_its_reason_and_no_number() -> None:
    found = Estimate.undefined("no model")
    assert found.reason == "no model"
    assert np.isnan([found.value, found.low, found.high, found.p_value]).all()


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("df", [1, 4, 30])
def test_the_t_quantile_holds_its_level_and_nears_the_normal(level: float, df: int) -> None:
    t = t_quantile(level, df)
    assert stats.t.cdf(t, df) - stats.t.cdf(-t, df) == pytest.approx(level)
    assert t > normal_quantile(level) == pytest.approx(t_quantile(level, 10**7), rel=1e-6)


def test_without_degrees_of_freedom_there_is_no_t() -> None:
    assert np.isnan([t_quantile(0.95, 0), t_quantile(0.95, -1)]).all()


def test_the_percentile_interval_holds_its_level_of_the_draws() -> None:
    draws = np.random.default_rng(1).permutation(np.arange(1001.0))
    assert percentile_ends(draws, 0.9) == pytest.approx((50, 950))
    assert percentile_ends(draws, 0.5) == pytest.approx((250, 750))
    assert percentile_ends(np.array([3.0]), 0.95) == (3, 3)
