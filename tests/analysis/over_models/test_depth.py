import numpy as np
import pytest
import xarray as xr
from builders import study_of
from scipy import stats

from steercube.analysis.over_models.depth import (
    best_depths,
    model_depth,
    selection_interval,
    training_depth,
    typical_depths,
)


def test_depth_is_layer_over_number_of_layers(six: xr.Dataset) -> None:
    study = study_of(six)
    depths = best_depths(study)
    assert float(depths.sel(model="f", concept="one")) == pytest.approx(
        float(six["selected_layer"].sel(model="f", concept="one")) / 20
    )
    assert typical_depths(study).values == pytest.approx(depths.mean("concept").values)


def test_training_depth_spans_its_models_and_names_its_cells(six: xr.Dataset) -> None:
    study = study_of(six)
    estimate = training_depth(study, training="rl")
    depths = typical_depths(study).sel(model=["e", "f"]).values
    assert estimate.span == pytest.approx((min(depths), max(depths)))
    assert "single cells run from" in estimate.reason
    assert np.isnan(training_depth(study, training="base").value)


def with_frequencies(cells: xr.Dataset, frequency: list[float]) -> xr.Dataset:
    """The cells with the same selection frequencies over layers 3, 4, 5 and 6 everywhere."""
    shape = cells["selection_frequency"].copy(data=np.broadcast_to(frequency, (6, 3, 4)))
    return cells.assign(selection_frequency=shape)


def test_a_selections_interval_holds_the_middle_of_the_resamples(six: xr.Dataset) -> None:
    cells = with_frequencies(six, [0.02, 0.08, 0.88, 0.02])
    estimate = selection_interval(study_of(cells), "f", "one")
    assert (estimate.low, estimate.high) == (4 / 20, 5 / 20)
    assert (estimate.over, estimate.n) == ("items", 20)


def test_a_selection_that_never_moves_has_no_interval_of_no_width(six: xr.Dataset) -> None:
    cells = with_frequencies(six, [0.0, 0.01, 0.99, 0.0])
    estimate = selection_interval(study_of(cells), "f", "one")
    assert np.isnan([estimate.low, estimate.high]).all()
    assert estimate.reason


def test_a_models_depth_adds_the_variances_of_its_concepts(six: xr.Dataset) -> None:
    cells = with_frequencies(six, [0.5, 0.0, 0.5, 0.0])
    estimate = model_depth(study_of(cells), model="f")
    sd = 1 / 20
    margin = stats.norm.ppf(0.975) * sd / np.sqrt(3)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(margin)
    assert estimate.n == 66
    still = model_depth(study_of(with_frequencies(six, [0.0, 0.0, 1.0, 0.0])), model="f")
    assert np.isnan(still.low)
    assert still.reason
