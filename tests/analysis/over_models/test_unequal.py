from dataclasses import replace

import numpy as np
import pytest
from builders import make_effects
from scipy import stats

from steercube.analysis.over_models.gram import columns
from steercube.analysis.over_models.posterior import fit
from steercube.analysis.over_models.unequal import fit_unequal, welch_t, with_ratio


def test_a_ratio_of_one_is_the_model_of_equal_spreads() -> None:
    effects = make_effects(np.random.default_rng(1), n_models=8)
    same = with_ratio(effects, 1.0)
    assert fit(same).log_evidence == pytest.approx(fit(effects).log_evidence)


def test_the_ratio_is_that_of_the_labels_sds() -> None:
    effects = make_effects(np.random.default_rng(1), n_models=8)
    scales = np.diag(np.array(with_ratio(effects, 4.0).spread))
    assert scales[effects.is_high].max() == pytest.approx(2.0)
    assert scales[~effects.is_high].max() == pytest.approx(0.5)
    w = columns(with_ratio(effects, 4.0), ("contrast",))
    assert set(np.unique(w[:, 2:-1]).round(9)) == {0.0, 0.5, 2.0}


def test_labels_that_vary_unequally_are_found_out() -> None:
    """Twenty models of each label, one varying five times as much as the other."""
    rng = np.random.default_rng(4)
    effects = make_effects(rng, n_models=10, n_concepts=6, sd_model=0.0)
    uneven = np.where(effects.is_high, 1.0, 0.05) * rng.normal(size=10)
    for sign, side in ((1, 1), (-1, -1)):
        spread = uneven if sign > 0 else np.where(effects.is_high, 0.02, 1.0) * rng.normal(size=10)
        value = effects.value + spread[effects.model]
        posterior = fit_unequal(replace(effects, value=value))
        mean_log_ratio = float(posterior.weight @ posterior.values)
        assert np.sign(mean_log_ratio) == side


def test_the_interval_is_wider_where_the_rarer_label_may_vary_more() -> None:
    effects = make_effects(np.random.default_rng(2), n_models=8, sd_model=0.2)
    low, _, high = fit(effects).interval("contrast", 0.95)
    wider = fit_unequal(effects).interval("contrast", 0.95)
    assert wider[2] - wider[0] > high - low


def test_welch_is_scipys() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=4), 1 + 3 * rng.normal(size=7)])
    marked = np.arange(11) < 4
    found = welch_t(values, marked, level=0.9)
    ends = stats.ttest_ind(values[marked], values[~marked], equal_var=False).confidence_interval(
        0.9
    )
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.value == pytest.approx(values[:4].mean() - values[4:].mean())


def test_welch_covers_where_the_pooled_t_does_not() -> None:
    """Three models that vary three times as much as nine: 2,000 times, with a truth of zero."""
    rng, marked = np.random.default_rng(7), np.arange(12) < 3
    held, pooled = [], []
    for _ in range(2000):
        values = np.where(marked, 3.0, 1.0) * rng.normal(size=12)
        t = welch_t(values, marked, level=0.95)
        held.append(t.low <= 0 <= t.high)
        test = stats.ttest_ind(values[marked], values[~marked]).confidence_interval(0.95)
        pooled.append(test.low <= 0 <= test.high)
    assert np.mean(held) > 0.93
    assert np.mean(pooled) < 0.87


def test_one_model_of_a_label_has_no_welch_interval() -> None:
    found = welch_t(np.array([1.0, 2.0, 3.0]), np.array([True, False, False]), level=0.95)
    assert found.value == pytest.approx(-1.5)
    assert np.isnan(found.low)
    assert "one model" in found.reason
