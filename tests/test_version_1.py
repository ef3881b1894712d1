"""What a dataset of version 1 holds is found again in the grids and tables of version 2."""

import numpy as np
import pytest
import xarray as xr
from builders import make_cube

from steercube.contract import RESPONSES, STATUS, UNSTEERED, VECTORS
from steercube.cube import Cube, check_cube
from steercube.measures import PUBLISHED, READ
from steercube.version_1 import cube_of

AT = {"model": "small", "concept": "honesty", "layer": 4, "strength": 1.0, "sample": 3}
TOLD = {
    "text": ["(A) yes", "(B)"],
    "model": ["small", "large"],
    "concept": ["honesty", "humour"],
    "layer": [4, UNSTEERED],
    "strength": [1.0, 0.0],
    "sample": [3, 29],
    "repeat": [0, 1],
    "finished": [True, False],
}


@pytest.fixture
def flat(rng: np.random.Generator) -> xr.Dataset:
    """All that version 1 could hold, side by side; layer 3 was never swept, answers are few."""
    whole = make_cube(rng)
    for name in ("logit_diff", "logprob_matching", "logprob_other"):
        whole[name].loc[{"layer": 3}] = np.nan
    whole["cell_status"].loc[{"layer": 3}] = STATUS["not_run"]
    present = whole["item_id"] != ""
    swept = whole["logit_diff"].notnull()
    few = present & swept & (whole["layer"] > 4) & (whole["model"] == "small")
    share = few.where(few).astype("float32").transpose(*swept.dims)
    rate = whole["logit_diff"].mean("sample") * 0 + 0.25
    still = whole["logit_diff"].sel(strength=0.0, drop=True)
    return whole.assign(
        logit_diff_random=still + whole["strength"] * whole["logit_diff"] * 0.1,
        logit_diff_shuffled=whole["logit_diff"].where(whole["model"] == "large"),
        generation_match=share * 0.5,
        generation_valid=share,
        published_match=share * 0.75,
        published_valid=share,
        generation_rate=rate.where(rate["concept"] == "humour"),
        vector_norm=xr.full_like(whole["cell_status"], 2, dtype=float),
        rows_touched=xr.full_like(whole["cell_status"], 7, dtype=float),
        **{f"response_{name}": ("response", values) for name, values in TOLD.items()},
    ).assign_attrs(schema_version=1)


@pytest.fixture
def cube(flat: xr.Dataset) -> Cube:
    made = cube_of(flat)
    check_cube(made)
    return made


def test_each_outcome_becomes_a_grid_of_what_was_swept(flat: xr.Dataset, cube: Cube) -> None:
    assert list(cube) == [
        *("logit_diff", "logit_diff/random", "logit_diff/shuffled"),
        *("generation_match", "generation_rate", RESPONSES, VECTORS),
    ]
    assert cube.attrs["schema_version"] == 2
    swept = {path: (*of["model"].values, *of["layer"].values) for path, of in cube.grids.items()}
    assert swept == {
        "logit_diff": ("small", "middle", "large", 4, 5, 6),
        "logit_diff/random": ("small", "middle", "large", 4, 5, 6),
        "logit_diff/shuffled": ("large", 4, 5, 6),
        "generation_match": ("small", 5, 6),
        "generation_rate": ("small", "middle", "large", 4, 5, 6),
    }
    assert cube["generation_rate"]["concept"].values.tolist() == ["humour"]
    own = flat["logit_diff"].sel(layer=[4, 5, 6])
    np.testing.assert_array_equal(cube["logit_diff"]["logit_diff"], own)
    assert (cube["logit_diff"]["rows_touched"] == 7).all()
    assert (cube[VECTORS]["vector_norm"] == 2).all()


def test_a_control_is_a_direction(flat: xr.Dataset, cube: Cube) -> None:
    for family in ("random", "shuffled"):
        grid = cube[f"logit_diff/{family}"]
        assert grid["direction"].values.tolist() == [f"{family}/0"]
        values = flat[f"logit_diff_{family}"].sel({d: grid[d].values for d in ("model", "layer")})
        own = grid["logit_diff"].sel(direction=f"{family}/0")
        np.testing.assert_array_equal(own.transpose(*values.dims), values)
        assert (grid["cell_status"] == STATUS["complete"]).all()
        assert grid["logit_diff"].attrs["kind"] == "continuous"


def test_both_readings_are_labelled(cube: Cube) -> None:
    grid = cube["generation_match"]
    assert grid["reading"].values.tolist() == [READ, PUBLISHED]
    at = AT | {"layer": 5}
    assert grid["generation_match"].sel(at).values.tolist() == [0.5, 0.75]
    assert grid["generation_valid"].sel(at).values.tolist() == [1.0, 1.0]


def test_what_is_said_of_a_response_becomes_a_column(cube: Cube) -> None:
    table = cube[RESPONSES]
    assert {name: table[name].values.tolist() for name in table} == TOLD


def test_one_reading_has_no_dimension_of_its_own(flat: xr.Dataset) -> None:
    less = flat.drop_vars(["published_match", "published_valid"])
    assert "reading" not in cube_of(less)["generation_match"].dims
