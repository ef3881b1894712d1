from itertools import permutations

import numpy as np
import pytest
import statsmodels.api as sm
import xarray as xr
from builders import TRAINING, study_of
from scipy import stats

from steercube.analysis.over_models.cell_effects import predictors_of
from steercube.analysis.over_models.comparisons import (
    DIFFERENCE,
    RANDOM_SLOPES,
    depth_difference,
    hierarchical_slope,
    label_difference,
    permutation_p,
    scale_slope,
    scale_trends,
    training_gap,
)
from steercube.analysis.over_models.depth import typical_depths
from steercube.analysis.over_models.slopes import concept_slope
from steercube.analysis.view import Study
from steercube.contrast import Contrast


def with_effects(cells: xr.Dataset, table: np.ndarray, estimand: str = "cohens_d") -> Study:
    """The study with (model, concept) effects put in their place."""
    effects = cells["selected_estimate"].transpose("estimand", "model", "concept").copy(deep=True)
    effects.loc[estimand] = table
    return study_of(cells.assign(selected_estimate=effects))


def test_the_gap_is_the_ratio_of_averages(six: xr.Dataset) -> None:
    table = np.repeat([[1.0], [1.2], [0.8], [1.0], [0.9], [0.7]], 3, axis=1)
    estimate = training_gap(with_effects(six, table), estimand="cohens_d")
    assert estimate.value == pytest.approx(1 - 0.8 / 1.0)
    assert estimate.low < 0.2 < estimate.high
    assert estimate.n == 6


def test_every_contrast_is_of_high_against_low(six: xr.Dataset) -> None:
    """The gap, the depth and b_contrast: what `high` has less of, or `low`, has one sign in all."""
    is_high = np.array([0, 0, 0, 0, 1, 1.0])
    study = with_effects(six, np.repeat((2 - is_high)[:, None] * 1.0, 3, axis=1))
    swapped = Study(study.cells, Contrast("training", TRAINING.high, TRAINING.low))
    assert training_gap(study, estimand="cohens_d").value == pytest.approx(0.5)
    assert training_gap(swapped, estimand="cohens_d").value == pytest.approx(-1.0)
    one, other = (depth_difference(of).value for of in (study, swapped))
    assert one == -other != 0
    coded, turned = (
        predictors_of(of, list("abcdef"), "n_params")["contrast"] for of in (study, swapped)
    )
    assert (coded > 0).tolist() == (six["training"].values == TRAINING.high).tolist()
    assert coded == pytest.approx(-turned)


def test_the_gaps_interval_is_near_fiellers(six: xr.Dataset) -> None:
    """Fieller's exact interval of a ratio of normal means; the delta method is close to it."""
    y = np.array([1.0, 1.1, 0.95, 1.02, 0.9, 0.85])
    estimate = training_gap(with_effects(six, np.repeat(y[:, None], 3, 1)), estimand="cohens_d")
    a, b, n, m = y[4:].mean(), y[:4].mean(), 2, 4
    s2 = (y[4:].var() * 2 + y[:4].var() * 4) / 4
    t = stats.t.ppf(0.975, 4)
    roots = np.roots([b**2 - t**2 * s2 / m, -2 * a * b, a**2 - t**2 * s2 / n])
    assert (estimate.low, estimate.high) == pytest.approx(
        (1 - max(roots), 1 - min(roots)), abs=0.01
    )


def test_a_gap_between_equal_trainings_is_zero_and_covers_it(six: xr.Dataset) -> None:
    """500 draws of six models without a training effect: coverage 95%, standard error 1%."""
    rng = np.random.default_rng(8)
    hits = []
    for _ in range(500):
        table = np.repeat(1 + 0.15 * rng.normal(size=(6, 1)), 3, axis=1)
        estimate = training_gap(with_effects(six, table), estimand="cohens_d")
        hits.append(not estimate.excludes_zero)
    assert 0.92 < np.mean(hits) < 0.98


def test_rounded_averages_give_the_readers_gap(six: xr.Dataset) -> None:
    y = np.array([1.0368] * 4 + [0.9705] * 2)
    study = with_effects(six, np.repeat(y[:, None], 3, 1) + 1e-9 * np.arange(18).reshape(6, 3))
    assert training_gap(study, estimand="cohens_d").value == pytest.approx(0.0639, abs=1e-4)
    rounded = training_gap(study, estimand="cohens_d", from_rounded=2)
    assert rounded.value == pytest.approx(1 - 0.97 / 1.04)


def test_one_training_has_no_gap(six: xr.Dataset) -> None:
    study = study_of(six)
    estimate = training_gap(study, estimand="cohens_d", models=["a", "b"])
    assert np.isnan(estimate.value)
    assert estimate.reason == study.needs_contrast


def test_the_permutation_p_is_that_of_all_assignments() -> None:
    values, marked = (
        np.array([3.0, 1.0, 2.0, 5.0, 9.0]),
        np.array([False, True, False, False, True]),
    )
    observed = abs(values[marked].mean() - values[~marked].mean())
    apart = [
        abs(np.mean(order[:2]) - np.mean(order[2:])) for order in permutations(values.tolist())
    ]
    assert permutation_p(values, marked) == pytest.approx(
        np.mean(np.array(apart) >= observed - 1e-9)
    )


def test_two_of_six_cannot_be_more_significant_than_one_in_fifteen() -> None:
    values = np.array([0.0, 0.1, 0.2, 0.3, 50.0, 60.0])
    assert permutation_p(values, np.arange(6) >= 4) == pytest.approx(1 / 15)


ARCHITECTURES = {"by": "architecture", "low": "dense", "high": "moe", "holding": "training"}


def test_the_label_difference_is_least_squares(six: xr.Dataset) -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(1, 0.2, size=6)
    study = with_effects(six, np.repeat(y[:, None], 3, 1))
    estimate = label_difference(study, estimand="cohens_d", **ARCHITECTURES)
    design = sm.add_constant(np.array([[0, 0], [0, 0], [0, 0], [1, 0], [0, 1], [1, 1]]))
    fit = sm.OLS(y, design).fit()
    assert estimate.value == pytest.approx(fit.params[1])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(fit.conf_int()[1]))


def test_the_label_difference_needs_both(six: xr.Dataset) -> None:
    dense = study_of(six).among(models=["a", "b", "c", "e"])
    estimate = label_difference(dense, estimand="cohens_d", **ARCHITECTURES)
    assert np.isnan(estimate.value)
    assert "models of architecture 'dense' and 'moe' with each of 2 labels" in estimate.reason


def test_the_scale_slope_is_least_squares(six: xr.Dataset) -> None:
    size = np.log10(six["n_params"].values)
    table = np.random.default_rng(1).normal(size=(6, 3))
    table[:, 1] = 2 - 0.7 * size + 0.01 * np.arange(6)
    estimate = scale_slope(with_effects(six, table), estimand="cohens_d", concept="two")
    fit = sm.OLS(table[:, 1], sm.add_constant(size)).fit()
    assert estimate.value == pytest.approx(fit.params[1])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(fit.conf_int()[1]))
    assert estimate.p_value == pytest.approx(fit.pvalues[1])


def test_the_scale_slope_on_active_parameters(six: xr.Dataset) -> None:
    active = np.log10(six["n_active_params"].values)
    table = np.repeat((1 + 0.5 * active + 0.001 * np.arange(6))[:, None], 3, axis=1)
    study = with_effects(six, table)
    slope = scale_slope(study, estimand="cohens_d", concept="two", size="n_active_params")
    assert slope.value == pytest.approx(0.5, abs=0.01)
    assert scale_slope(study, estimand="cohens_d", concept="two").value != pytest.approx(
        0.5, abs=0.1
    )


def test_a_slope_needs_three_sizes(six: xr.Dataset) -> None:
    assert np.isnan(
        scale_slope(study_of(six), estimand="delta", concept="two", models=["a", "b"]).value
    )


def test_the_depth_difference_is_a_two_sample_t(six: xr.Dataset) -> None:
    rng = np.random.default_rng(0)
    layers = six["selected_layer"].copy(data=rng.integers(3, 9, size=(6, 3)).astype(float))
    cells = six.assign(selected_layer=layers)
    estimate = depth_difference(study_of(cells))
    depths = typical_depths(study_of(cells)).values
    theirs = stats.ttest_ind(depths[4:], depths[:4]).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high))
    assert "more blocks" in estimate.reason


def test_depths_that_are_not_confounded_say_so(six: xr.Dataset) -> None:
    cells = six.assign_coords(n_layers=("model", np.array([10, 30, 11, 12, 14, 20])))
    assert depth_difference(study_of(cells)).reason == ""


def test_every_concept_and_pair_has_a_row(six: xr.Dataset) -> None:
    rows = [labels for labels, _ in scale_trends(study_of(six))]
    assert len(rows) == 3 * 2 * (3 + 2 + 3)
    assert len({tuple(r.values()) for r in rows}) == len(rows)


def test_slopes_and_their_differences_are_of_one_model(six: xr.Dataset) -> None:
    rows = {
        tuple(labels.values()): slope
        for labels, slope in scale_trends(study_of(six))
        if labels["outcome"] == "cohens_d" and labels["size"] == "n_params"
    }
    of = ("cohens_d", "n_params")
    one, two = (rows[*of, concept, RANDOM_SLOPES] for concept in ("one", "two"))
    apart = rows[*of, "one minus two", DIFFERENCE]
    assert apart.low < apart.value < apart.high
    assert apart.value == pytest.approx(one.value - two.value, abs=0.02)
    assert one.value == concept_slope(study_of(six), estimand="cohens_d", concept="one").value


def test_what_grows_with_size_is_found(six: xr.Dataset) -> None:
    size = xr.DataArray(np.log10(six["n_params"].values), dims="model")
    effects = six["selected_estimate"] * 0 + 0.5 * size.values[None, :, None]
    grown = six.assign(selected_estimate=effects)
    slope = hierarchical_slope(
        study_of(grown), outcome="cohens_d", size="n_params", terms=("scale",)
    )
    assert slope.low > 0
    assert slope.value == pytest.approx(0.5, abs=0.1)
    flat = six.assign(selected_estimate=effects * 0 + 1)
    none = hierarchical_slope(study_of(flat), outcome="cohens_d", size="n_params", terms=("scale",))
    assert not none.excludes_zero


def test_one_model_has_no_slope(cells: xr.Dataset) -> None:
    one = cells.sel(model=["small"], model_other=["small"])
    rows = scale_trends(study_of(one))
    assert all(np.isnan(e.value) and e.reason for _, e in rows)


def test_without_a_contrast_size_alone_is_left(six: xr.Dataset) -> None:
    study = study_of(six, None)
    rows = [labels for labels, _ in scale_trends(study)]
    assert len(rows) == 3 * 2 * (3 + 1 + 3)
    for found in (training_gap(study, estimand="cohens_d"), depth_difference(study)):
        assert np.isnan(found.value)
        assert "--contrast" in found.reason
