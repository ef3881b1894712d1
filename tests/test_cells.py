from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from steercube import netcdf
from steercube.analysis.per_cell.estimands import ESTIMANDS
from steercube.cells import (
    ESTIMAND_UNITS,
    NEEDED,
    REASONS,
    check_cells,
    compare_cells,
    open_cells,
    save_cells,
    summarise_cells,
    unrecorded_estimands,
    with_every_estimand,
)
from steercube.cube import check_cube


def test_round_trip(cells: xr.Dataset, tmp_path: Path) -> None:
    save_cells(cells, tmp_path / "a.cells.nc")
    assert compare_cells(open_cells(tmp_path / "a.cells.nc"), cells, rtol=0, atol=0) == []


def test_cells_hold_no_sample(cells: xr.Dataset) -> None:
    assert "sample" not in cells.dims
    assert cells.sizes["quantile"] == 21


def test_violations_stand_in_one_error(cells: xr.Dataset) -> None:
    broken = cells.drop_vars("mean").assign_attrs(cells.attrs)
    del broken.attrs["seed"]
    with pytest.raises(ValueError, match="breaks 2 rule") as error:
        check_cells(broken)
    assert "'mean'" in str(error.value)
    assert "'seed'" in str(error.value)


def test_an_interval_without_width_is_refused(cells: xr.Dataset) -> None:
    broken = cells.assign(selected_high=cells["selected_low"])
    with pytest.raises(ValueError, match="no width"):
        check_cells(broken)


def test_a_nan_without_a_reason_is_refused(cells: xr.Dataset) -> None:
    broken = cells.assign(estimate=cells["estimate"].where(cells["layer"] != 4))
    with pytest.raises(ValueError, match="NaN without a reason"):
        check_cells(broken)


def test_frequencies_sum_to_one(cells: xr.Dataset) -> None:
    broken = cells.assign(selection_frequency=cells["selection_frequency"] / 2)
    with pytest.raises(ValueError, match="must sum to 1"):
        check_cells(broken)


def untitled(cells: xr.Dataset) -> xr.Dataset:
    told = cells.copy()
    del told.attrs["title"]
    return told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.sel(estimand=["cohens_d"]), "'estimand' has no label 'delta'"),
        (lambda c: c.sel(strength=[-1.0, 0.0]), "'strength' has no label 1"),
        (lambda c: c.isel(model_other=slice(1)), "'model_other' must have the labels of 'model'"),
        (lambda c: c.assign(selected_layer=c["selected_layer"] + 70), "not layers of these cells"),
        (lambda c: c.assign(estimate=c["estimate"] + np.inf), "'estimate' has infinite values"),
        (lambda c: c.assign(reason=c["reason"] + 99), "'reason' holds"),
        (lambda c: c.assign(selected_reason=c["selected_reason"] + 99), "'selected_reason' holds"),
        (lambda c: c.assign(sd=-c["sd"]), r"'sd' must be in \[0, inf\]; it is -\d"),
        (lambda c: c.assign(correlation=c["correlation"] * 2), r"'correlation' must be in \[-1"),
        (lambda c: c.assign(generation_rate=c["mean"] + 9), r"'generation_rate' must be in \[0"),
        (lambda c: c.assign_coords(n_valid_items=c["n_items"] + 1), "'n_valid_items' is above"),
        (lambda c: c.assign_coords(n_params=c["n_params"] * 0), "'n_params' must be positive"),
        (lambda c: c.assign_coords(training=("model", ["a/b"] * 3)), "training 'a/b' cannot be"),
        (lambda c: c.assign_coords(architecture=("model", ["magic"] * 3)), "'architecture' holds"),
        (lambda c: c.assign_attrs(seed=-1), "attribute 'seed' is -1"),
        (untitled, "'title'"),
    ],
    ids=[
        *("estimand", "strength", "models", "layer", "infinite", "reason", "selected reason"),
        *("negative sd", "correlation", "rate", "valid items", "size", "training"),
        *("architecture", "seed", "title"),
    ],
)
def test_what_no_conclusion_can_do_without_is_asked_for(
    change: Callable[[xr.Dataset], xr.Dataset], said: str, cells: xr.Dataset
) -> None:
    check_cells(cells)
    with pytest.raises(ValueError, match=said):
        check_cells(change(cells))


def test_a_later_version_is_refused(cells: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="has cells_version 7"):
        check_cells(cells.assign_attrs(cells_version=7))


def test_cells_are_no_cube(cells: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="holds cells, not a cube"):
        check_cube(cells)


def test_differences_are_named(cells: xr.Dataset) -> None:
    other = cells.copy(deep=True)
    other["mean"].loc["small", "humour", 4, 1.0] += 0.5
    assert compare_cells(other, cells) == ["mean: 1 value(s) differ, by up to 0.5"]
    assert compare_cells(cells.drop_vars("sd"), cells) == ["sd: only in the old cells"]
    assert "estimate: {'estimand': 11" in "\n".join(compare_cells(cells.isel(layer=[0]), cells))


def test_the_summary_shows_d(cells: xr.Dataset) -> None:
    text = summarise_cells(cells)
    value = cells["selected_estimate"].sel(estimand="cohens_d", model="large", concept="humour")
    assert f"{float(value):.2f}" in text


OPTIONAL = [name for name in ESTIMAND_UNITS if name not in NEEDED["estimand"]]


def test_the_estimands_of_the_contract_are_those_that_are_computed(cells: xr.Dataset) -> None:
    assert list(ESTIMAND_UNITS) == list(ESTIMANDS) == cells["estimand"].values.tolist()
    assert list(ESTIMAND_UNITS.values()) == cells["estimand_units"].values.tolist()


@pytest.mark.parametrize("lacking", [[name] for name in OPTIONAL] + [OPTIONAL], ids=" ".join)
def test_estimands_that_a_file_lacks_are_added_as_not_recorded(
    lacking: list[str], cells: xr.Dataset, tmp_path: Path
) -> None:
    fewer = cells.drop_sel(estimand=lacking)
    sha = save_cells(fewer, tmp_path / "old.cells.nc")
    found = open_cells(tmp_path / "old.cells.nc")
    check_cells(found)
    assert set(found["estimand"].values) == set(cells["estimand"].values)
    assert unrecorded_estimands(found) == lacking
    added = found.sel(estimand=lacking)
    for name in ("reason", "selected_reason"):
        assert (added[name] == REASONS["not_recorded"]).all()
        assert added[name].dtype == cells[name].dtype
    for name in ("estimate", "selected_estimate", "selected_covariance", "valid_estimate"):
        assert added[name].isnull().all()
    assert added["estimand_units"].values.tolist() == [ESTIMAND_UNITS[name] for name in lacking]
    assert netcdf.digest(found.drop_sel(estimand=lacking)) == sha
    save_cells(found, tmp_path / "again.cells.nc")
    assert open_cells(tmp_path / "again.cells.nc").equals(found)


def test_cells_that_hold_every_estimand_are_as_they_were(cells: xr.Dataset) -> None:
    assert with_every_estimand(cells) is cells
    assert unrecorded_estimands(cells) == []


def test_an_estimand_that_no_conclusion_can_do_without_is_not_added(
    cells: xr.Dataset, tmp_path: Path
) -> None:
    netcdf.save(cells.drop_sel(estimand="delta"), tmp_path / "less.cells.nc")
    with pytest.raises(ValueError, match="'estimand' has no label 'delta'"):
        open_cells(tmp_path / "less.cells.nc")
