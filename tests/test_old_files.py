"""Files of every version of the contracts, kept for good, can be read or say what to do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from builders import ROOT, reduce_to_cells

from steercube import netcdf
from steercube.cells import open_cells
from steercube.contract import STATUS
from steercube.cube import open_cube

OLD = ROOT / "tests" / "old"
D_OF_VERSION_1 = [[1.26233523, 2.20783524], [1.48934639, 1.82898967]]
"""Cohen's d at the best layers of tests/old/version-1.nc (model, concept), when it was made."""


def test_a_cube_of_version_1_gives_its_numbers() -> None:
    cube = open_cube(OLD / "version-1.nc")
    d = reduce_to_cells(cube, n_resamples=20)["selected_estimate"].sel(estimand="cohens_d")
    np.testing.assert_allclose(d.transpose("model", "concept"), D_OF_VERSION_1, rtol=1e-6)


def test_cells_of_version_1_give_theirs() -> None:
    d = open_cells(OLD / "version-1.cells.nc").view()["selected_estimate"].sel(estimand="cohens_d")
    np.testing.assert_allclose(d.transpose("model", "concept"), D_OF_VERSION_1, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "attribute", "opened", "remedy"),
    [
        (
            "version-1.nc",
            "schema_version",
            open_cube,
            "install steercube 0.0.9, which wrote it",
        ),
        ("version-1.cells.nc", "cells_version", open_cells, "with `steercube analyze`"),
    ],
    ids=["cube", "cells"],
)
@pytest.mark.parametrize("version", [0, 99])
def test_another_version_is_refused_with_what_to_do(
    name: str, attribute: str, opened: object, remedy: str, version: int, tmp_path: Path
) -> None:
    history = {"history": "steercube 0.0.9 collect: a x honesty"}
    other = netcdf.load(OLD / name).assign_attrs({attribute: version} | history)
    netcdf.save(other, tmp_path / "other.nc")
    with pytest.raises(ValueError, match=rf"other\.nc.*{attribute} {version}.*{remedy}"):
        opened(tmp_path / "other.nc")  # type: ignore[operator]


def test_a_cube_that_does_not_tell_who_wrote_it_is_refused_too(tmp_path: Path) -> None:
    other = netcdf.load(OLD / "version-1.nc").assign_attrs(schema_version=0, history="by hand")
    netcdf.save(other, tmp_path / "other.nc")
    with pytest.raises(ValueError, match="install the steercube version that wrote it"):
        open_cube(tmp_path / "other.nc")


def changed(tmp_path: Path, name: str, change: Callable[[xr.Dataset], xr.Dataset]) -> Path:
    """The old file with a change, sealed as if it had been written so."""
    old = netcdf.load(OLD / name)
    netcdf.save(change(old).assign_attrs(old.attrs), tmp_path / name)
    return tmp_path / name


def test_a_control_that_is_not_finite_spoils_its_own_cell_alone(tmp_path: Path) -> None:
    """Version 1 had one status for a concept's own vector and for its controls."""
    with xr.set_options(keep_attrs=True):
        path = changed(tmp_path, "version-1.nc", with_a_spoilt_control)
    cube = open_cube(path)
    first = {"model": 0, "concept": 0, "layer": 0}
    own, control = cube["logit_diff"], cube["logit_diff/random"]
    assert (own["cell_status"] == STATUS["complete"]).all()
    assert np.isfinite(own["logit_diff"].isel(first)).where(own["item_id"][0] != "", True).all()
    assert (control["cell_status"].isel(first) == STATUS["nonfinite"]).all()
    assert int((control["cell_status"] == STATUS["complete"]).sum()) == own["cell_status"].size - 1


def with_a_spoilt_control(old: xr.Dataset) -> xr.Dataset:
    old = old.copy(deep=True)
    if "logit_diff_random" not in old:
        old["logit_diff_random"] = old["logit_diff"].copy(deep=True)
    old["logit_diff_random"][0, 0, 0, -1, 0] = np.inf
    old["cell_status"][0, 0, 0] = STATUS["nonfinite"]
    return old


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ds: ds.drop_vars("letter"), "variable 'letter' is missing"),
        (lambda ds: ds.drop_vars("cell_status"), "variable 'cell_status' is missing"),
        (lambda ds: ds.drop_vars("strength"), "dimension 'strength' has no labels"),
        (
            lambda ds: ds.assign_coords(layer=ds["layer"].astype(str)),
            "dimension 'layer' has labels of",
        ),
        (
            lambda ds: ds.assign(logit_diff_random=ds["cell_status"] * 1.0),
            "'logit_diff_random' has dimensions",
        ),
        (
            lambda ds: ds.assign(response_text=("response", ["(A)"])),
            "responses: variable 'model' is missing",
        ),
        (lambda ds: ds.assign(logit_diff=ds["logit_diff"] + np.nan), "complete, but values are"),
    ],
    ids=[
        *("letter", "status", "labels", "layers", "dims", "response", "values"),
    ],
)
def test_a_cube_of_version_1_that_broke_its_contract_still_does(
    change: Callable[[xr.Dataset], xr.Dataset], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"version-1\.nc (?s:.*){said}"):
        open_cube(changed(tmp_path, "version-1.nc", change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ds: ds.drop_vars("mean"), "variable 'mean' is missing"),
        (lambda ds: ds.drop_vars("n_layers"), "variable 'n_layers' is missing"),
        (lambda ds: ds.drop_vars("model"), "dimension 'model' has no labels"),
        (lambda ds: ds.sel(estimand=["delta"]), "'estimand' has no label 'cohens_d'"),
    ],
    ids=["a statistic", "a fact", "labels", "an estimand"],
)
def test_cells_of_version_1_that_broke_their_contract_still_do(
    change: Callable[[xr.Dataset], xr.Dataset], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"version-1\.cells\.nc (?s:.*){said}"):
        open_cells(changed(tmp_path, "version-1.cells.nc", change))
