import json
from pathlib import Path

import golden
import numpy as np
import pytest
import xarray as xr

RENAMES = {
    "files": {"refits": "leave_one_out"},
    "columns": {"random_effects": "random_effects"},
    "words": {"hangs on": "rests on"},
    "inside": {},
}
TABLE = "name,takes_as_random,value\na,hangs on,0.1234567890123\nb,models,2\n"
MAPPED = TABLE.replace("random_effects", "random_effects").replace("hangs on", "rests on")


def said(tmp_path: Path, name: str, old: str, new: str, renamed: str = "") -> str:
    for folder, file, text in (("old", name, old), ("new", renamed or name, new)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(text)
    return dict(golden.compared(tmp_path / "old", tmp_path / "new", RENAMES))[renamed or name]


def test_the_same_bytes_are_identical(tmp_path: Path) -> None:
    assert said(tmp_path, "models.csv", TABLE, TABLE) == ""


def test_a_rename_of_the_map_is_shown_as_one(tmp_path: Path) -> None:
    found = said(tmp_path, "refits.csv", TABLE, MAPPED, renamed="leave_one_out.csv")
    assert found == "identical but for the map"


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        (",2\n", ",2.000001\n", "DIFFERS: row 1, value"),
        ("0.1234567890123", "0.1234567890124", "numbers differ by at most"),
        ("b,", "c,", "DIFFERS: row 1, name"),
        ("b,models,2\n", "", "had 2 rows and has 1"),
        (",value", ",estimate", "columns differ"),
    ],
)
def test_any_other_change_of_a_table_is_found(
    tmp_path: Path, was: str, now: str, expected: str
) -> None:
    found = said(tmp_path, "models.csv", TABLE, MAPPED.replace(was, now))
    assert expected in found


def test_numbers_are_compared_by_their_renamed_ids(tmp_path: Path) -> None:
    old = {"refits/hangs on/a": {"value": 1.0, "table": "tables/refits.csv"}}
    new = {"leave_one_out/rests on/a": {"value": 1.0, "table": "tables/leave_one_out.csv"}}
    renames = "identical but for the map"
    assert said(tmp_path, "numbers.json", json.dumps(old), json.dumps(new)) == renames
    new["leave_one_out/rests on/a"]["value"] = 1.1
    (tmp_path / "new" / "numbers.json").write_text(json.dumps(new))
    found = dict(golden.compared(tmp_path / "old", tmp_path / "new", RENAMES))
    assert found["numbers.json"].startswith("DIFFERS: leave_one_out/rests on/a value")


def test_arrays_are_compared_without_their_provenance(tmp_path: Path) -> None:
    for folder, last, history in (("old", 2.0, "then"), ("new", 2.0, "now"), ("bad", 2.1, "now")):
        (tmp_path / folder).mkdir()
        ds = xr.Dataset({"d": ("x", np.array([np.nan, last]))}, attrs={"history": history})
        ds.to_netcdf(tmp_path / folder / "cells.nc")
    for folder, expected in (("new", ""), ("bad", "DIFFERS:  d[1]")):
        found = dict(golden.compared(tmp_path / "old", tmp_path / folder, RENAMES))
        assert found["cells.nc"].startswith(expected)
        assert bool(found["cells.nc"]) == bool(expected)


def test_what_is_on_one_side_only_is_named(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.csv").write_text(TABLE)
    assert list(golden.compared(tmp_path / "old", tmp_path / "new", RENAMES)) == [
        ("a.csv", "is only in the old one")
    ]


def test_what_is_drawn_is_told_in_the_numbers_of_its_axes() -> None:
    from matplotlib.figure import Figure

    def lines(y: float) -> set[str]:
        figure = Figure()
        ax = figure.subplots()
        ax.plot([1, 2], [3, y], label="effect")
        ax.fill_between([1, 2], [0, 0], [1, y])
        ax.set_title("one")
        return set(golden.drawn(figure))

    assert "text 'one'" in lines(4)
    assert len(lines(4) - lines(5)) >= 2
