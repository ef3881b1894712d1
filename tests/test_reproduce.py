import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import make_cube, reduce_to_cells

from steercube import analyze
from steercube.cells import save_cells
from steercube.cli import main
from steercube.reproduce import compare_numbers, compare_tables

pytestmark = pytest.mark.usefixtures("few_priors")

NUMBER = {"value": 0.5, "low": 0.1, "high": 0.9, "p_value": 0.03}


def differences(**changes: float | None) -> list[str]:
    return list(compare_numbers({"a/b": NUMBER}, {"a/b": NUMBER | changes}))


def test_the_same_numbers_do_not_differ() -> None:
    assert differences() == []
    assert differences(value=0.5 * (1 + 1e-9)) == []


@pytest.mark.parametrize("name", list(NUMBER))
def test_each_part_of_a_number_is_compared(name: str) -> None:
    assert len(differences(**{name: NUMBER[name] + 1e-4})) == 1
    assert len(differences(**{name: None})) == 1


def test_what_was_sampled_may_differ_by_its_error_only() -> None:
    sampled = NUMBER | {"mc_error": 0.01}
    for shift, n in ((0.04, 0), (0.07, 1)):
        other = sampled | {"value": 0.5 + shift}
        assert len(list(compare_numbers({"a": sampled}, {"a": other}))) == n
    assert len(list(compare_numbers({"a": sampled}, {"a": sampled | {"low": 0.25}}))) == 0
    assert len(list(compare_numbers({"a": sampled}, {"a": sampled | {"low": 0.35}}))) == 1


def test_a_number_of_one_side_only_is_named() -> None:
    assert list(compare_numbers({"a": NUMBER}, {"b": NUMBER})) == [
        "a is in one of them only",
        "b is in one of them only",
    ]


def test_tables_are_compared_cell_by_cell() -> None:
    table = pd.DataFrame({"x": [1.0, np.nan], "name": ["a", ""]})
    assert list(compare_tables(table, table.copy())) == []
    assert len(list(compare_tables(table, table.assign(x=[1.1, np.nan])))) == 1
    assert len(list(compare_tables(table, table.assign(x=[1.0, 2.0])))) == 1
    assert len(list(compare_tables(table, table.assign(name=["a", "b"])))) == 1
    assert len(list(compare_tables(table, table.iloc[:1]))) == 1


def test_rows_of_a_sampler_are_left_to_the_numbers() -> None:
    table = pd.DataFrame({"x": [1.0, 2.0], "mc_error": [np.nan, 0.1]})
    assert list(compare_tables(table, table.assign(x=[1.0, 2.1]))) == []
    assert len(list(compare_tables(table, table.assign(x=[1.1, 2.0])))) == 1


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose one study was analysed and written."""
    monkeypatch.setattr(analyze, "sample", lambda *arguments, **options: {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    cube = make_cube(np.random.default_rng(6), n_items={"honesty": 24})
    cells: xr.Dataset = reduce_to_cells(cube, n_resamples=100)
    save_cells(cells, tmp_path / "data" / "mine.cells.nc")
    assert main(["analyze"]) == 0
    assert main(["paper"]) == 0
    return tmp_path / "paper" / "mine"


@pytest.mark.slow
def test_what_was_committed_is_reproduced_and_a_change_is_found(
    committed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce"]) == 0
    assert "reproduced: mine" in capsys.readouterr().out
    numbers = json.loads((committed / "numbers.json").read_text())
    numbers["counts/models"]["value"] += 1
    (committed / "numbers.json").write_text(json.dumps(numbers))
    post = (committed / "post.md").read_text()
    (committed / "post.md").write_text(post.replace("Steering", "Nudging", 1))
    assert main(["reproduce"]) == 2
    out, error = capsys.readouterr()
    assert "mine: counts/models value: 4.0 became 3.0" in out
    assert "post.md line 1" in out
    assert "2 difference(s) from what was committed" in error


def test_nothing_to_compare_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce"]) == 2
    assert "holds no results" in capsys.readouterr().err
    assert main(["paper"]) == 2
    assert "run `steercube analyze` first" in capsys.readouterr().err
