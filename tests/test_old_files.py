"""Files of every version of the contracts, kept for good, can be read or say what to do."""

from pathlib import Path

import numpy as np
import pytest
from builders import ROOT

from steercube import netcdf
from steercube.analysis.per_cell.reduce import cells as reduce_to_cells
from steercube.cells import open_cells
from steercube.cube import open_cube

OLD = ROOT / "tests" / "old"
D_OF_VERSION_1 = [[1.26233523, 2.20783524], [1.48934639, 1.82898967]]
"""Cohen's d at the best layers of tests/old/version-1.nc (model, concept), when it was made."""


def test_a_cube_of_version_1_gives_its_numbers() -> None:
    cube = open_cube(OLD / "version-1.nc")
    d = reduce_to_cells(cube, n_resamples=20)["selected_estimate"].sel(estimand="cohens_d")
    np.testing.assert_allclose(d.transpose("model", "concept"), D_OF_VERSION_1, rtol=1e-6)


def test_cells_of_version_1_give_theirs() -> None:
    d = open_cells(OLD / "version-1.cells.nc")["selected_estimate"].sel(estimand="cohens_d")
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
