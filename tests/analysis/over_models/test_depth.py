import numpy as np
import pytest
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.depth import (
    best_depths,
    depth_difference,
    model_depth,
    selection_interval,
    training_depth,
    typical_depths,
)


def test_depth_is_layer_over_number_of_layers(six: xr.Dataset) -> None:
    depths = best_depths(six)
    assert float(depths.sel(model="f", concept="one")) == pytest.approx(
        float(six["selected_layer"].sel(model="f", concept="one")) / 20
    )
    assert typical_depths(six).values == pytest.approx(depths.mean("concept").values)


def test_the_depth_difference_is_a_two_sample_t(six: xr.Dataset) -> None:
    rng = np.random.default_rng(0)
    layers = six["selected_layer"].copy(data=rng.integers(3, 9, size=(6, 3)).astype(float))
    cells = six.assign(selected_layer=layers)
    estimate = depth_difference(cells)
    depths = typical_depths(cells).values
    theirs = stats.ttest_ind(depths[4:], depths[:4]).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high))
    assert "more blocks" in estimate.reason


def test_depths_that_are_not_confounded_say_so(six: xr.Dataset) -> None:
    cells = six.assign_coords(n_layers=("model", np.array([10, 30, 11, 12, 14, 20])))
    assert depth_difference(cells).reason == ""


def test_training_depth_spans_its_models_and_names_its_cells(six: xr.Dataset) -> None:
    estimate = training_depth(six, training="rl")
    depths = typical_depths(six).sel(model=["e", "f"]).values
    assert estimate.span == pytest.approx((min(depths), max(depths)))
    assert "single cells run from" in estimate.reason
    assert np.isnan(training_depth(six, training="base").value)


def with_frequencies(cells: xr.Dataset, frequency: list[float]) -> xr.Dataset:
    """The cells with the same selection frequencies over layers 3, 4, 5 and 6 everywhere."""
    shape = cells["selection_frequency"].copy(data=np.broadcast_to(frequency, (6, 3, 4)))
    return cells.assign(selection_frequency=shape)


def test_a_selections_interval_holds_the_middle_of_the_resamples(six: xr.Dataset) -> None:
    cells = with_frequencies(six, [0.02, 0.08, 0.88, 0.02])
    estimate = selection_interval(cells, "f", "one")
    assert (estimate.low, estimate.high) == (4 / 20, 5 / 20)
    assert (estimate.over, estimate.n) == ("items", 20)


def test_a_selection_that_never_moves_has_no_interval_of_no_width(six: xr.Dataset) -> None:
    cells = with_frequencies(six, [0.0, 0.01, 0.99, 0.0])
    estimate = selection_interval(cells, "f", "one")
    assert np.isnan([estimate.low, estimate.high]).all()
    assert estimate.reason


def test_a_models_depth_adds_the_variances_of_its_concepts(six: xr.Dataset) -> None:
    cells = with_frequencies(six, [0.5, 0.0, 0.5, 0.0])
    estimate = model_depth(cells, model="f")
    sd = 1 / 20
    margin = stats.norm.ppf(0.975) * sd / np.sqrt(3)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(margin)
    assert estimate.n == 66
    still = model_depth(with_frequencies(six, [0.0, 0.0, 1.0, 0.0]), model="f")
    assert np.isnan(still.low)
    assert still.reason
