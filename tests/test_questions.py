"""Each script of analysis/ answers its question alone: a table on stdout, a figure beside it."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT

SCRIPTS = sorted((ROOT / "analysis").glob("*.py"))


def test_there_is_one_for_every_question_of_the_post() -> None:
    names = {path.stem for path in SCRIPTS}
    assert names == {
        *("effects", "training", "scale_and_depth", "agreement", "which_items", "excluding_8b"),
        "capability",
    }
    for path in SCRIPTS:
        assert 10 <= len(path.read_text().splitlines()) <= 30, path.name


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_prints_its_table_and_saves_its_figure(path: Path, tmp_path: Path) -> None:
    for folder in ("data", "paper"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "analysis").mkdir()
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 7
    assert (tmp_path / "analysis" / f"{path.stem}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_numbers_are_those_of_the_tables(tmp_path: Path) -> None:
    import pandas as pd

    done = subprocess.run(
        [sys.executable, "analysis/excluding_8b.py"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    table = pd.read_csv(ROOT / "paper" / "qwen3" / "tables" / "leave_one_out.csv")
    of = table[(table["outcome"] == "cohens_d") & (table["left_out"] == "8B")]
    row = of[of["covariates"] == "training and scale"].iloc[0]
    shown = f"{row['estimate']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    assert f"without 8B         {shown}" in done.stdout
