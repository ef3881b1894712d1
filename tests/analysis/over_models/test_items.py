import numpy as np
import pytest
import xarray as xr
from builders import reduce_to_cells, study_of

from steercube.analysis.over_models.items import item_shifts


def test_the_mean_of_a_cell_is_its_corrected_effect(cube: xr.Dataset) -> None:
    cells = reduce_to_cells(cube, n_resamples=50)
    shifts = item_shifts(cube, study_of(cells))
    d = cells["selected_estimate"] - cells["selected_optimism"]
    d = d.sel(estimand="cohens_d").transpose("concept", "model").values.ravel()
    of_cell = shifts.index["sd_cell"]
    means = [shifts.value[of_cell == cell].mean() for cell in range(6)]
    assert means == pytest.approx(d.tolist(), rel=1e-5)
    assert len(shifts.value) == 3 * (24 + 30)
    assert shifts.n_models == 3


def test_items_are_shared_by_models_and_not_by_concepts(cube: xr.Dataset) -> None:
    shifts = item_shifts(cube, study_of(reduce_to_cells(cube, n_resamples=20)))
    item, model = shifts.index["sd_item"], shifts.index["sd_model"]
    assert np.bincount(item).tolist() == [3] * 54
    for concept in (0, 1):
        of_concept = shifts.index["sd_concept"] == concept
        assert len(set(item[of_concept])) == (24, 30)[concept]
    assert all(len(set(model[item == i])) == 3 for i in range(54))


def test_predictors_belong_to_the_rows_model(cube: xr.Dataset) -> None:
    shifts = item_shifts(cube, study_of(reduce_to_cells(cube, n_resamples=20)))
    design = shifts.design(("contrast", "scale"))
    is_rl = shifts.index["sd_model"] == 2
    assert np.allclose(design[is_rl, 1], 2 / 3)
    assert np.allclose(design[~is_rl, 1], -1 / 3)
