from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import grid_beside, make_cube, with_controls

from steercube import netcdf
from steercube.analysis.per_cell import reduce
from steercube.analysis.per_cell.estimands import ESTIMANDS
from steercube.cells import (
    ESTIMAND_UNITS,
    NEEDED,
    REASONS,
    RECORDS,
    TABLES,
    Cells,
    as_cells,
    cells_of,
    check_cells,
    compare_cells,
    groups_of,
    open_cells,
    record_table,
    save_cells,
    summarise_cells,
    unrecorded_estimands,
    with_every_estimand,
)
from steercube.contract import MODEL_VARIABLES, NAMES_OF_TABLES
from steercube.cube import Cube, check_cube, save_cube
from steercube.measures import Measure


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
        (
            lambda c: c.assign(generation_valid_rate=c["sd"].isel(strength=0) * 0 + 9),
            r"'generation_valid_rate' must be in \[0, 1\]; it is 9",
        ),
        (
            lambda c: c.assign(generation_rate=c["mean"] * 0 + 9),
            r"'generation_rate' must be in \[-0\.0001, 1\.0001\]; it is 9",
        ),
        (lambda c: c.assign_coords(n_valid_items=c["n_items"] + 1), "'n_valid_items' is above"),
        (lambda c: c.assign_coords(n_params=c["n_params"] * 0), "'n_params' must be positive"),
        (lambda c: c.assign_coords(training=("model", ["a/b"] * 3)), "training 'a/b' cannot be"),
        (lambda c: c.assign_coords(architecture=("model", ["magic"] * 3)), "'architecture' holds"),
        (lambda c: c.assign_attrs(seed=-1), "attribute 'seed' is -1"),
        (untitled, "'title'"),
    ],
    ids=[
        *("estimand", "strength", "models", "layer", "infinite", "reason", "selected reason"),
        *("negative sd", "correlation", "valid rate", "rate", "valid items", "size", "training"),
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
    assert f"estimate: {{'estimand': {len(ESTIMANDS)}" in "\n".join(
        compare_cells(cells.isel(layer=[0]), cells)
    )


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
    held = open_cells(tmp_path / "old.cells.nc").view()
    assert compare_cells(held, fewer, rtol=0, atol=0) == []
    found = with_every_estimand(held)
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
    assert save_cells(found.drop_sel(estimand=lacking), tmp_path / "less.cells.nc") == sha
    save_cells(found, tmp_path / "again.cells.nc")
    assert open_cells(tmp_path / "again.cells.nc").view().equals(found)


def test_cells_that_hold_every_estimand_are_as_they_were(cells: xr.Dataset) -> None:
    assert with_every_estimand(cells) is cells
    assert unrecorded_estimands(cells) == []


def test_an_estimand_that_no_conclusion_can_do_without_is_not_added(
    cells: xr.Dataset, tmp_path: Path
) -> None:
    netcdf.save(groups_of(as_cells(cells.drop_sel(estimand="delta"))), tmp_path / "less.cells.nc")
    with pytest.raises(ValueError, match="'estimand' has no label 'delta'"):
        open_cells(tmp_path / "less.cells.nc")


# Several measures and directions


@pytest.fixture(scope="module")
def several() -> Cells:
    """Cells of logits with a control, and of a judge's score of one model at other strengths."""
    rng = np.random.default_rng(4)
    cube = make_cube(rng, n_items={"honesty": 24}, layers=(3, 4))
    judged = Measure("judged", units="points", compare=(-2.0, 2.0))
    part = cube.sel(model=["large"], layer=[4], strength=[-1.0, 1.0])
    score = (part["logit_diff"] * 10).astype("float32")
    grid = grid_beside(part, judged, judged=score).assign_coords(strength=[-2.0, 2.0])
    whole = Cube({**with_controls(cube, rng), "judged": grid}, cube.attrs)
    return reduce.cells(whole, n_resamples=20)


def test_every_measure_and_family_has_a_table_of_its_own(several: Cells, tmp_path: Path) -> None:
    assert several.measures == ["logit_diff", "judged"]
    assert several["judged"].sizes["model"] == several["judged"].sizes["layer"] == 1
    assert several["judged"]["strength"].values.tolist() == [-2.0, 2.0]
    check_cells(several)
    sha = save_cells(several, tmp_path / "a.cells.nc")
    opened = open_cells(tmp_path / "a.cells.nc")
    assert set(opened) == set(several) >= {"logit_diff", "logit_diff/random", "judged"}
    for path in several:
        assert opened[path].drop_attrs(deep=False).equals(several[path].drop_attrs(deep=False))
    assert compare_cells(opened, several, rtol=0, atol=0) == []
    assert save_cells(opened, tmp_path / "b.cells.nc") == sha


def test_a_view_shows_one_measure_and_gives_its_tables_back(several: Cells) -> None:
    logits, judged = several.view(), several.view("judged")
    assert logits["estimate"].attrs["measure"] == "logit_diff"
    assert judged["estimate"].attrs["units"] == "points"
    delta = {"estimand": "delta", "model": "large", "concept": "honesty", "layer": 4}
    own = logits["mean"].sel(model="large", concept="honesty", layer=4)
    shift = float(own.sel(strength=1.0) - own.sel(strength=-1.0))
    assert float(judged["estimate"].sel(delta)) == pytest.approx(10 * shift, rel=1e-5)
    assert logits["other_estimate"]["direction"].values.tolist() == ["random/own", "random/0"]
    assert "other_estimate" not in judged
    for measure, view in {"logit_diff": logits, "judged": judged}.items():
        again = cells_of(view, measure)
        assert again[measure].equals(several[measure])
        assert as_cells(view).measures == [measure]


def test_cells_that_differ_in_a_measure_say_in_which(several: Cells) -> None:
    moved = several["judged"].assign(mean=several["judged"]["mean"] + 1)
    other = several.with_tables({"judged": moved})
    assert compare_cells(other, several) == ["judged: mean: 2 value(s) differ, by up to 1"]
    less = Cells({path: several[path] for path in several if path != "judged"}, several.attrs)
    assert compare_cells(less, several) == ["judged: only in the old cells"]


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("judged", lambda t: t.drop_vars("estimate"), "judged: variable 'estimate' is missing"),
        ("judged", lambda t: t.drop_vars("mean"), "judged: variable 'mean' is missing"),
        (
            "logit_diff",
            lambda t: t.assign(sd=t["sd"].isel(strength=0, drop=True)),
            "logit_diff: 'sd' has dimensions",
        ),
        (
            "logit_diff/random",
            lambda t: t.assign(other_estimate=t["other_estimate"].isel(layer=0, drop=True)),
            "logit_diff/random: 'other_estimate' has dimensions",
        ),
        (
            "logit_diff",
            lambda t: t.assign_coords(layer=t["layer"].astype(str)),
            "logit_diff: dimension 'layer' has labels of",
        ),
        ("", lambda r: r.isel(model=[0, 1]), "the file's root has no model 'large'"),
        ("", lambda r: r.drop_vars("n_params"), "variable 'n_params' is missing"),
    ],
    ids=["no estimate", "a statistic", "dims", "dims of a control", "layers", "a model", "a fact"],
)
def test_a_table_that_no_view_can_be_made_of_is_named(
    path: str,
    change: Callable[[xr.Dataset], xr.Dataset],
    said: str,
    several: Cells,
    tmp_path: Path,
) -> None:
    groups = groups_of(several)
    netcdf.save(groups | {path: change(groups[path])}, tmp_path / "odd.cells.nc")
    with pytest.raises(ValueError, match=rf"odd\.cells\.nc (?s:.*){said}"):
        open_cells(tmp_path / "odd.cells.nc")


def test_a_cube_is_no_cells(cube: xr.Dataset, tmp_path: Path) -> None:
    save_cube(cube, tmp_path / "cube.nc")
    with pytest.raises(ValueError, match=r"cube\.nc breaks (?s:.*)'cells_version' is missing"):
        open_cells(tmp_path / "cube.nc")


# Records


@pytest.fixture
def recorded(several: Cells) -> Cells:
    """Cells with a row in each table of records, its names those that the contract gives."""
    tables = {}
    for path, variables in RECORDS.items():
        row = {name: "" if v.kind == "U" else 0.0 for name, v in variables.items()}
        row |= dict.fromkeys(("model",), "large")
        row |= {name: "A" for name in ("read_as", "read_as_other") if name in variables}
        tables[path] = record_table(path, pd.DataFrame([row]))
    return several.with_tables(tables)


def test_records_come_back_from_a_file_whole(recorded: Cells, tmp_path: Path) -> None:
    save_cells(recorded, tmp_path / "a.cells.nc")
    opened = open_cells(tmp_path / "a.cells.nc")
    for path, variables in RECORDS.items():
        assert set(opened[path].data_vars) == set(variables)
    assert compare_cells(opened, recorded, rtol=0, atol=0) == []


@pytest.mark.parametrize(
    ("path", "name", "value", "said"),
    [
        ("changes", "n_rise", np.nan, "'n_rise' is missing in 1 row"),
        ("changes", "n_fall", -1.0, "'n_fall' .*-1"),
        ("changes", "change_high", 1.5, "'change_high' .*1.5"),
        ("changes", "model", "nobody", "'model' holds 'nobody'; there are "),
        ("readers", "read_as", "Q", "'read_as' holds 'Q'; there are A, B, none"),
        ("answer_models", "n_items", np.nan, "'n_items' is missing"),
    ],
)
def test_records_that_mean_nothing_are_refused(
    path: str, name: str, value: object, said: str, recorded: Cells
) -> None:
    table = recorded[path].copy(deep=True)
    table[name] = (table[name].dims, np.array([value]))
    with pytest.raises(ValueError, match=said):
        check_cells(recorded.with_tables({path: table}))


def test_records_and_families_that_are_lost_are_named(recorded: Cells) -> None:
    family = recorded["logit_diff/random"]
    whole = recorded.with_tables({"right/kind": family})
    kept = {path: whole[path] for path in whole if path not in ("changes", "right/kind")}
    lines = compare_cells(Cells(kept, whole.attrs), whole)
    assert "changes: only in the old cells" in lines
    assert "right/kind: only in the old cells" in lines
    changed = family.assign(other_estimate=family["other_estimate"] + 1)
    (line,) = compare_cells(whole.with_tables({"right/kind": changed}), whole)
    assert line.startswith("right/kind: other_estimate: ")
    twice = xr.concat([recorded["changes"]] * 2, "changes")
    (line,) = compare_cells(recorded.with_tables({"changes": twice}), recorded)
    assert line == "changes: 2 rows now, 1 before"


def test_no_measure_can_be_called_as_a_table_is() -> None:
    assert {*TABLES, *RECORDS} <= NAMES_OF_TABLES


def test_a_view_has_one_set_of_strengths(several: Cells) -> None:
    """A measure with fewer strengths than another table is compared at its own."""
    table = several["judged"].reindex(strength=[-2.0, 2.0], strength_other=[-2.0, 2.0])
    more = xr.Dataset(
        {"n_responses": (("model", "concept", "layer", "strength"), np.ones((1, 1, 1, 3)))},
        {"model": ["large"], "concept": ["honesty"], "layer": [4], "strength": [-2.0, 0.0, 2.0]},
    )
    more = more.assign_coords({name: table[name] for name in MODEL_VARIABLES})
    check_cells(several.with_tables({"generation": more}))
    view = several.with_tables({"generation": more}).view("judged")
    assert view["strength_other"].values.tolist() == [-2.0, 0.0, 2.0]
