import numpy as np
import pytest
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.means import best_effects
from steercube.analysis.over_models.scale import hierarchical_slope, scale_trends, slope_difference


def test_every_concept_and_pair_has_a_row(six: xr.Dataset) -> None:
    rows = [labels for labels, _ in scale_trends(six)]
    assert len(rows) == 3 * 2 * (3 + 2 + 3)
    assert len({tuple(r.values()) for r in rows}) == len(rows)


def test_the_difference_of_slopes_is_that_of_the_differences(six: xr.Dataset) -> None:
    found = slope_difference(six, outcome="cohens_d", size="n_params", one="one", other="two")
    table = best_effects(six, "cohens_d").values
    size = np.log10(six["n_params"].values)
    slopes = [stats.linregress(size, table[:, c]).slope for c in (0, 1)]
    assert found.value == pytest.approx(slopes[0] - slopes[1])
    assert found.low < found.value < found.high
    reverse = slope_difference(six, outcome="cohens_d", size="n_params", one="two", other="one")
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low))


def test_what_grows_with_size_is_found(six: xr.Dataset) -> None:
    size = xr.DataArray(np.log10(six["n_params"].values), dims="model")
    effects = six["selected_estimate"] * 0 + 0.5 * size.values[None, :, None]
    grown = six.assign(selected_estimate=effects)
    slope = hierarchical_slope(grown, outcome="cohens_d", size="n_params", terms=("scale",))
    assert slope.low > 0
    assert slope.value == pytest.approx(0.5, abs=0.1)
    flat = six.assign(selected_estimate=effects * 0 + 1)
    none = hierarchical_slope(flat, outcome="cohens_d", size="n_params", terms=("scale",))
    assert not none.excludes_zero


def test_few_models_say_why(cells: xr.Dataset) -> None:
    rows = scale_trends(cells.sel(model=["small"], model_other=["small"]))
    assert all(np.isnan(e.value) and e.reason for _, e in rows)
