import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import TRAINING, study_of

from steercube.analysis.conclusions.tables import TABLES
from steercube.report.figures import draw
from steercube.report.post import read_results
from steercube.report.write import numbers, plain_number, write_study

SETTINGS = {"seed": 1, "confidence_level": 0.95} | TRAINING.attributes


@pytest.fixture
def tables(small_tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return small_tables


def write(folder: Path, cells: xr.Dataset, tables: dict[str, pd.DataFrame]) -> None:
    figures = draw(study_of(cells), tables)
    inputs = {"a": "b"}
    write_study(folder, tables, figures, inputs=inputs, settings=SETTINGS, contrast=TRAINING)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_twice_is_byte_identical(
    cells: xr.Dataset, tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    write(tmp_path / "one", cells, tables)
    write(tmp_path / "two", cells, tables)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_manifest_lists_every_output_with_its_hash(
    cells: xr.Dataset, tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    write(tmp_path / "s", cells, tables)
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    hashes = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents(tmp_path / "s").items()
        if name != "manifest.json"
    }
    assert manifest["outputs"] == hashes
    assert manifest["settings"] == SETTINGS
    assert "numpy" in manifest["versions"]


@pytest.mark.slow
def test_outputs_of_an_earlier_run_do_not_linger(
    cells: xr.Dataset, tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    """And what is somebody's own stays, within a manifest's reach or not."""
    write(tmp_path / "s", cells, tables)
    own = [tmp_path / "s" / name for name in ("post.md", "figures/mine.png", "tables/notes.csv")]
    for path in own:
        path.write_text("written by another session")
    manifest = tmp_path / "s" / "manifest.json"
    held = json.loads(manifest.read_text())
    for name in ("figures/old.png", "../keep.csv", "tables/../../keep.csv", "post.md"):
        held["outputs"][name] = ""
    manifest.write_text(json.dumps(held))
    (tmp_path / "s" / "figures" / "old.png").write_bytes(b"old")
    (tmp_path / "keep.csv").write_text("")
    write(tmp_path / "s", cells, tables)
    assert not (tmp_path / "s" / "figures" / "old.png").exists()
    assert all(path.exists() for path in own)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keep.csv", "s"]


def test_what_a_killed_run_left_is_removed(
    cells: xr.Dataset, tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    """Under a process id that is free, or is now this one's own; not one that still runs."""
    pids = (2**22 + 1, os.getpid(), os.getppid())
    left, own, living = (tmp_path / f".s.{pid}.part" for pid in pids)
    for folder in (left, own, living):
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    write(tmp_path / "s", cells, tables)
    assert not left.exists()
    assert not own.exists()
    assert living.exists()


@pytest.mark.slow
def test_the_manifest_is_written_last(
    cells: xr.Dataset,
    tables: dict[str, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed amid writing, the earlier one tells what is not its own."""
    write(tmp_path / "s", cells, tables)
    read_results(tmp_path / "s")
    moved: list[str] = []
    move = shutil.move

    def killed(one: Path, other: Path) -> None:
        if other.name == "effects.csv":
            raise KeyboardInterrupt
        moved.append(other.name)
        move(one, other)

    monkeypatch.setattr(shutil, "move", killed)
    changed = {name: table.assign(extra=1.0) for name, table in tables.items()}
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", cells, changed)
    assert "manifest.json" not in moved
    with pytest.raises(ValueError, match="is not as it was written; run `steercube analyze`"):
        read_results(tmp_path / "s")


def test_tables_read_back_as_they_were(
    cells: xr.Dataset, tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    write(tmp_path / "s", cells, tables)
    for name, table in tables.items():
        back = pd.read_csv(tmp_path / "s" / "tables" / f"{name}.csv") if len(table) else None
        if back is not None:
            assert list(back) == list(table)
            for column in table.select_dtypes("float64"):
                assert back[column].to_numpy(dtype=float) == pytest.approx(
                    table[column].to_numpy(), rel=1e-9, nan_ok=True
                )


def test_every_number_names_its_table_interval_and_n(tables: dict[str, pd.DataFrame]) -> None:
    found = numbers(tables)
    rows = sum(
        len(tables[of.name].drop_duplicates(list(of.key)))
        for of in TABLES
        if of.key and of.name != "effects" and set(of.key) <= set(tables.get(of.name, []))
    )
    estimands = sum(c.endswith("_low") for c in tables["effects"])
    assert len(found) == rows + estimands * len(tables["effects"])
    d = found["effects/large/humour/cohens_d"]
    row = tables["effects"].set_index(["model", "concept"]).loc[("large", "humour")]
    assert d["value"] == pytest.approx(row["cohens_d"], rel=1e-9)
    assert (d["interval_over"], d["n"], d["table"]) == ("items", 30, "tables/effects.csv")
    json.dumps(found, allow_nan=False)


def test_an_undefined_number_is_null(tables: dict[str, pd.DataFrame]) -> None:
    changed = tables["depth"].assign(low=np.nan)
    assert numbers({"depth": changed})["depth/rl minus distilled"]["low"] is None


def test_a_number_has_what_else_its_row_holds(tables: dict[str, pd.DataFrame]) -> None:
    """Each under the name of its column, what is not known left out; and its unit."""
    found = numbers(tables)
    row = tables["conclusions"].iloc[0]
    number = found[f"conclusions/{row['id']}"]
    assert (number["grade"], number["sentence"]) == (row["grade"], row["sentence"])
    usual = {"value", "low", "high", "n", "interval_over", "table"}
    known = {name for name, value in row.items() if value != "" and not pd.isna(value)}
    assert set(number) - usual == known - usual - {"id"}
    units = {
        "models/large/delta/every concept it ran": "nat",
        "models/large/cohens_d/every concept it ran": "1",
        "depth/large": "fraction of depth",
        "contrast_effect/best_depth/bootstrap/items/training": "fraction of depth",
        "contrast_effect/delta/bootstrap/items/training": "nat",
    }
    assert {id: found[id]["units"] for id in units} == units


def test_numbers_are_plain() -> None:
    assert plain_number(np.float64(1 / 3)) == 0.3333333333
    assert [type(plain_number(n)) for n in (np.int64(3), 3.0)] == [int, float]
    assert plain_number(np.nan) is plain_number(None) is plain_number(pd.NA) is None
