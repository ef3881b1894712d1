import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, SIX_MODELS, STUDY, make_cube, make_model, needs_study, reduce_to_cells

from steercube import analyze, netcdf
from steercube.analysis.over_models.contrast_effect import EXACT, NUTS
from steercube.analysis.over_models.nuts import read_posterior
from steercube.analyze import studies
from steercube.cells import OF_OPTIMISERS, save_cells
from steercube.cli import main
from steercube.cube import Cube, groups_of, save_cube

CONTRAST = ("--contrast", "training:distilled:rl")
OF_A_CONTRAST = {
    *("contrast_effect", "multiverse", "multiverse_summary", "design"),
    *("leave_one_out", "prior_sensitivity"),
}
"""Tables that compare models."""

pytestmark = pytest.mark.usefixtures("few_priors")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project to run commands in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def without_nuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling takes most of a minute; one test asks for it."""
    monkeypatch.setattr(analyze, "sample", lambda *arguments, **options: {})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def analysed(here: Path, cells: xr.Dataset, once: Callable[..., dict[str, bytes]]) -> Path:
    """A project whose one study was analysed, in another test or now."""
    save_cells(cells, here / "data" / "mine.cells.nc")

    def made() -> dict[str, bytes]:
        assert main(["analyze"]) == 0
        return contents(here / "paper")

    for name, content in once("an analysed project", made).items():
        path = here / "paper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return here


def test_an_empty_folder_says_what_to_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze"]) == 2
    error = capsys.readouterr().err
    assert "data holds no study" in error
    assert "steercube import-study" in error
    assert not (here / "paper").exists()


def test_studies_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.nc", "a.cells.nc", "b.cells.nc", ".hidden.nc", "notes.txt"):
        (tmp_path / name).touch()
    assert studies(tmp_path) == ["a", "b"]


def test_from_cells_alone(
    here: Path, cells: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cells(cells, here / "data" / "mine.cells.nc")
    assert main(["analyze"]) == 0
    said = capsys.readouterr().out
    assert "there is no cube" in said
    study, *stages = said.splitlines()
    assert study == "mine:"
    assert all(re.match(r" +\d+:\d\d   \w", line) for line in stages), "since when"
    assert [line.split()[1] for line in stages[:3]] == ["from", "tables", "figures"]
    assert {p.name for p in (here / "paper" / "mine").iterdir()} == {
        "tables",
        "figures",
        "numbers.json",
        "manifest.json",
    }
    assert not (here / "paper" / "mine" / "tables" / "claims.csv").exists()


def test_a_study_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_cube(make_cube(np.random.default_rng(1)), here / "data" / "mine.nc")
    assert main(["analyze", "other"]) == 2
    assert "no study 'other'; it holds ['mine']" in capsys.readouterr().err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples: these tests are about files, not intervals."""
    monkeypatch.setattr(
        analyze, "reduce_to_cells", partial(analyze.reduce_to_cells, n_resamples=50)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_cells_are_rebuilt_from_the_cube_and_compared(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = make_cube(np.random.default_rng(1))
    save_cube(cube, here / "data" / "mine.nc")
    assert main(["analyze"]) == 0
    assert "data/mine.cells.nc is new" in capsys.readouterr().out
    first = contents(here / "paper")
    assert main(["analyze"]) == 0
    assert "the cells agree" in capsys.readouterr().out
    assert contents(here / "paper") == first

    for name in ("logit_diff", "logprob_matching"):
        cube[name].loc["large", "humour", 5, 1.0, 0] += 2
    save_cube(cube, here / "data" / "mine.nc")
    assert main(["analyze"]) == 0
    assert "the cells DIFFER" in capsys.readouterr().out
    before = json.loads(first["mine/numbers.json"])
    after = json.loads((here / "paper" / "mine" / "numbers.json").read_text())
    changed = {key for key in before if before[key] != after[key]}
    assert "effects/large/humour/delta" in changed
    assert not any(key.startswith("effects/small") for key in changed)


def flip_bits(path: Path) -> None:
    """One bit in each of twenty bytes: a single one may fall where the format leaves room."""
    content = bytearray(path.read_bytes())
    for position in np.linspace(0.05, 0.95, 20) * len(content):
        content[int(position)] ^= 16
    path.write_bytes(content)


BAD_FILES = {
    "not a NetCDF file": lambda path: path.write_text("logits"),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2000]),
    "bit-flipped": flip_bits,
}


@pytest.mark.parametrize("suffix", ["nc", "cells.nc"])
@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_one_error_and_earlier_results_stay(
    fault: str, suffix: str, analysed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = analysed
    before = contents(here / "paper")
    save_cube(make_cube(np.random.default_rng(1)), here / "whole.nc")
    path = here / "data" / f"mine.{suffix}"
    if suffix == "nc":
        shutil.move(here / "whole.nc", path)
    BAD_FILES[fault](path)
    capsys.readouterr()
    assert main(["analyze"]) == 2
    error = capsys.readouterr().err
    assert f"mine.{suffix}" in error
    assert "Traceback" not in error
    assert contents(here / "paper") == before


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_cells_that_cannot_be_used_are_replaced_from_the_cube(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cube(make_cube(np.random.default_rng(1)), here / "data" / "mine.nc")
    (here / "data" / "mine.cells.nc").write_text("damaged")
    assert main(["analyze"]) == 0
    assert "cannot be used and is replaced" in capsys.readouterr().out
    assert main(["show", "data/mine.cells.nc"]) == 0


@pytest.mark.usefixtures("quick")
def test_a_bad_ledger_is_found_before_anything_is_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cube(make_cube(np.random.default_rng(1)), here / "data" / "mine.nc")
    (here / "paper").mkdir()
    (here / "paper" / "claims.toml").write_text("[[claim")
    assert main(["analyze"]) == 2
    assert "claims.toml: is not TOML" in capsys.readouterr().err
    assert [p.name for p in (here / "data").iterdir()] == ["mine.nc"]


LEDGER = """study = "mine"
[[claim]]
id = "anything"
section = "1"
text = "the large model steers with this average d"
published = "1.7"
statistic = "model_mean"
[claim.arguments]
estimand = "cohens_d"
model = "large"
"""


def test_a_ledger_about_no_study_is_named(
    here: Path, cells: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cells(cells, here / "data" / "mine.cells.nc")
    (here / "paper").mkdir(exist_ok=True)
    text = (ROOT / "paper" / "claims.toml").read_text()
    (here / "paper" / "mine.claims.toml").write_text(text.replace("qwen3", "mien"))
    assert main(["analyze", "--without-nuts"]) == 0
    assert (
        "mine.claims.toml is about 'mien', which is not a study in data" in capsys.readouterr().out
    )


def test_a_cube_of_another_title_has_other_cells(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = make_cube(np.random.default_rng(1), n_items={"honesty": 24})
    for title in ("One", "Another"):
        save_cube(cube.assign_attrs(title=title), here / "data" / "mine.nc")
        found, changed = analyze.cells_of("mine", here / "data")
        assert changed
        assert found.attrs["title"] == f"Cells of: {title}"
        save_cells(found, here / "data" / "mine.cells.nc")
    assert "title was 'Cells of: One' and is 'Cells of: Another'" in capsys.readouterr().out
    assert not analyze.cells_of("mine", here / "data")[1]


def test_a_link_that_leads_nowhere_is_an_error(here: Path) -> None:
    (here / "data" / "mine.nc").symlink_to(here / "gone.nc")
    with pytest.raises(FileNotFoundError, match=r"mine\.nc: no such file"):
        analyze.cells_of("mine", here / "data")


@pytest.mark.slow
def test_a_ledger_of_ones_own_beside_another(here: Path, cells: xr.Dataset) -> None:
    save_cells(cells, here / "data" / "mine.cells.nc")
    (here / "paper").mkdir()
    (here / "paper" / "claims.toml").write_text('study = "other"\n')
    (here / "paper" / "mine.claims.toml").write_text(LEDGER)
    assert main(["analyze"]) == 0
    table = pd.read_csv(here / "paper" / "mine" / "tables" / "claims.csv")
    assert table["id"].tolist() == ["anything"]
    assert (here / "paper" / "mine" / "figures" / "claims.png").exists()


@pytest.mark.slow
def test_directions_alone_make_a_table_and_no_figure(here: Path, cells: xr.Dataset) -> None:
    save_cells(cells, here / "data" / "mine.cells.nc")
    (here / "paper").mkdir()
    (here / "paper" / "claims.toml").write_text(LEDGER.replace('"1.7"', '"+"'))
    assert main(["analyze"]) == 0
    assert (here / "paper" / "mine" / "tables" / "claims.csv").exists()
    assert not (here / "paper" / "mine" / "figures" / "claims.png").exists()


def tables_of(here: Path) -> set[str]:
    return {path.stem for path in (here / "paper" / "mine" / "tables").glob("*.csv")}


def settings_of(here: Path) -> dict[str, object]:
    manifest = json.loads((here / "paper" / "mine" / "manifest.json").read_text())
    return {name: manifest["settings"].get(name) for name in ("contrast", "contrast_words")}


def test_without_a_contrast_what_compares_models_is_left_out(analysed: Path) -> None:
    assert not OF_A_CONTRAST & tables_of(analysed)
    assert {"effects", "models", "scale_trends", "conclusions"} <= tables_of(analysed)
    assert settings_of(analysed) == {"contrast": None, "contrast_words": None}
    assert main(["paper"]) == 0
    text = (analysed / "paper" / "mine" / "post.md").read_text()
    assert "The interval depends on what one lets vary" not in text


@pytest.mark.slow
def test_a_contrast_compares_models_and_stands_in_the_manifest_and_the_post(
    here: Path, cells: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made anew without one, what compares models is gone."""
    save_cells(cells, here / "data" / "mine.cells.nc")
    assert main(["analyze", *CONTRAST]) == 0
    assert tables_of(here) >= OF_A_CONTRAST
    assert settings_of(here) == {"contrast": "training:distilled:rl", "contrast_words": {}}
    assert main(["paper"]) == 0
    assert "rl minus distilled" in (here / "paper" / "mine" / "post.md").read_text()
    assert main(["analyze"]) == 0
    assert not OF_A_CONTRAST & tables_of(here)


@pytest.mark.slow
def test_the_contrast_of_a_ledger_is_asked_unless_another_is(here: Path, cells: xr.Dataset) -> None:
    save_cells(cells, here / "data" / "mine.cells.nc")
    (here / "paper").mkdir()
    ledger = LEDGER.replace("[[claim]]", OF_THE_LEDGER + "[[claim]]")
    (here / "paper" / "claims.toml").write_text(ledger)
    assert main(["analyze"]) == 0
    assert settings_of(here) == {
        "contrast": "training:distilled:rl",
        "contrast_words": {"rl": "full RL"},
    }
    assert main(["analyze", "--contrast", "training:rl:distilled"]) == 0
    assert settings_of(here) == {"contrast": "training:rl:distilled", "contrast_words": {}}
    depth = pd.read_csv(here / "paper" / "mine" / "tables" / "depth.csv")
    assert "distilled minus rl" in set(depth["group"])


OF_THE_LEDGER = """[contrast]
by = "training"
low = "distilled"
high = "rl"
words = {rl = "full RL"}
"""


@pytest.mark.slow
def test_models_of_a_third_label_are_left_out_of_the_contrast_and_named(
    here: Path, six: xr.Dataset
) -> None:
    labels = ["sft", "distilled", "distilled", "distilled", "rl", "rl"]
    third = six.assign_coords(training=("model", labels))
    save_cells(third, here / "data" / "mine.cells.nc")
    assert main(["analyze", *CONTRAST]) == 0
    folder = here / "paper" / "mine"
    table = pd.read_csv(folder / "tables" / "contrast_effect.csv")
    exact = table[(table["method"] == EXACT) & table["low"].notna()]
    assert (exact["n_models"] == 5).all()
    assert exact["diagnostics"].str.contains("left out, of neither label: a").all()
    assert set(pd.read_csv(folder / "tables" / "effects.csv")["model"]) == set("abcdef")


WRONG_CONTRASTS = {
    "an unknown variable": (
        "trainings:distilled:rl",
        "mine: models have no labels 'trainings'; they have ",
        "did you mean 'training'?",
    ),
    "a number for a variable": ("n_params:distilled:rl", "models have no labels 'n_params'"),
    "an unknown label": (
        "training:distilled:rll",
        "mine: no swept model has the training 'rll'; they have 'distilled', 'rl'",
        "did you mean 'rl'?",
    ),
    "two unknown labels": ("training:a:b", "no swept model has the training 'a' or 'b'"),
    "one label twice": ("training:rl:rl", "write VARIABLE:LOW:HIGH", "two labels that differ"),
    "no label": ("training", "contrast 'training': write VARIABLE:LOW:HIGH"),
    "an empty label": ("training::rl", "write VARIABLE:LOW:HIGH"),
}


@pytest.mark.parametrize("command", ["analyze", "calibrate"])
@pytest.mark.parametrize("name", WRONG_CONTRASTS)
def test_a_contrast_that_cannot_be_asked_is_one_message(
    name: str, command: str, analysed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contrast, *said = WRONG_CONTRASTS[name]
    before = contents(analysed)
    capsys.readouterr()
    assert main([command, "mine", "--contrast", contrast]) == 2
    error = capsys.readouterr().err
    assert all(text in error for text in said), error
    assert len(error.strip().splitlines()) == 1
    assert contents(analysed) == before


def test_a_ledger_whose_contrast_the_cells_do_not_hold_is_one_message(
    here: Path, cells: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cells(cells, here / "data" / "mine.cells.nc")
    (here / "paper").mkdir()
    for wrong, said in {
        OF_THE_LEDGER
        + 'holding = "n_param"\n': "models have no numeric label 'n_param' to hold fixed",
        OF_THE_LEDGER.replace('"rl"', '"sft"').replace(
            "{rl", "{sft"
        ): "no swept model has the training 'sft'",
        OF_THE_LEDGER.replace("high", "highest"): "`highest` is unknown in [contrast]",
    }.items():
        (here / "paper" / "claims.toml").write_text(f'study = "mine"\n{wrong}')
        assert main(["analyze"]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in (here / "paper").iterdir()] == ["claims.toml"]


BAD_ARGUMENTS = {
    "cells renamed to a cube": (["analyze"], "holds cells, not a cube"),
    "a file for a folder": (["analyze", "--paper", "file"], "file is a file"),
    "a folder that is not there": (
        ["import-study", "--from", "nowhere"],
        "nowhere: no such folder",
    ),
    "an output in no folder": (["import-study", "--out", "no/x.nc"], "name a .nc file in a folder"),
    "an output that is a folder": (
        ["import-study", "--out", "data"],
        "name a .nc file in a folder",
    ),
    "a folder to show": (["show", "data"], "is a folder, not a file"),
    "no list of models": (["import-study", "--models", "none.toml"], "none.toml"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_what_a_user_may_do_wrong_is_one_message(
    name: str, here: Path, cells: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD_ARGUMENTS[name]
    shutil.copy(ROOT / "data" / "models.toml", here / "data" / "models.toml")
    save_cells(cells, here / "data" / "mine.nc")
    (here / "file").touch()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


BAD_CUBES = {
    "a training that is no name": (
        lambda c: c.assign_coords(training=("model", ["distilled", "rl/sft", "rl"])),
        "training 'rl/sft' cannot be a name",
    ),
    "an unknown architecture": (
        lambda c: c.assign_coords(architecture=("model", ["dense", "magic", "moe"])),
        "'magic'",
    ),
    "wrong dimensions": (lambda c: c.rename(strength="force"), "dimension 'strength' is missing"),
    "no strength -1": (lambda c: c.sel(strength=[0.0, 1.0]), "lacks -1"),
    "no strength +1": (lambda c: c.sel(strength=[-1.0, 0.0]), r"lacks \+1"),
}


@pytest.mark.parametrize("name", BAD_CUBES)
@pytest.mark.usefixtures("quick")
def test_a_cube_that_cannot_be_used_is_one_error(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = BAD_CUBES[name]
    cube = Cube({"logit_diff": change(make_cube(np.random.default_rng(1)))})
    netcdf.save(groups_of(cube), here / "data" / "mine.nc")
    assert main(["analyze"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (here / "paper").exists()
    assert not (here / "data" / "mine.cells.nc").exists()


@pytest.mark.usefixtures("quick")
def test_all_cells_unrun_is_one_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cube = make_cube(np.random.default_rng(1))
    for name in ("logit_diff", "logprob_matching", "logprob_other"):
        cube[name][:] = np.nan
    cube["cell_status"][:] = 1
    save_cube(cube, here / "data" / "mine.nc")
    assert main(["analyze"]) == 2
    assert "hold no effect" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", ["one model", "one concept"])
def test_one_model_or_one_concept_is_analysed(what: str, here: Path) -> None:
    rng = np.random.default_rng(1)
    if what == "one model":
        cube = make_cube(rng, models=(make_model("alone", "instruct"),))
    else:
        cube = make_cube(rng, n_items={"humour": 30})
    save_cube(cube, here / "data" / "mine.nc")
    assert main(["analyze"]) == 0
    assert len(list((here / "paper" / "mine" / "figures").glob("*.png"))) >= 4


def test_debug_shows_the_traceback(here: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["--debug", "analyze"])


def test_show_prints_a_summary(
    here: Path, cells: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cells(cells, here / "a.cells.nc")
    save_cube(make_cube(np.random.default_rng(1)), here / "a.nc")
    assert main(["show", "a.cells.nc"]) == 0
    assert "Cohen's d at the best layer" in capsys.readouterr().out
    assert main(["show", "a.nc"]) == 0
    assert "no model x concept is missing" in capsys.readouterr().out
    assert main(["show", "nothing.nc"]) == 2
    assert "nothing.nc: no such file" in capsys.readouterr().err


def test_whoever_reads_may_stop(here: Path, cells: xr.Dataset) -> None:
    save_cells(cells, here / "a.cells.nc")
    command = [sys.executable, "-m", "steercube", "show", "a.cells.nc"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_a_terminal_cannot_show_is_escaped(here: Path, cells: xr.Dataset) -> None:
    save_cells(cells.assign_attrs(title="Größe"), here / "a.cells.nc")
    command = [sys.executable, "-m", "steercube", "show", "a.cells.nc"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Gr\\xf6\\xdfe")


@needs_study
def test_import_study_from_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["import-study", "--from", str((ROOT / STUDY).resolve())]
    assert main([*arguments, "--models", str(ROOT / "data" / "models.toml")]) == 0
    assert "235B-A22B" in capsys.readouterr().out
    assert (here / "data" / "qwen3.nc").stat().st_size < 4e6


def test_import_from_an_empty_folder_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["import-study", "--from", str(here)]
    assert main([*arguments, "--models", str(ROOT / "data" / "models.toml")]) == 2
    assert "breaks 61 rule(s)" in capsys.readouterr().err
    assert not list((here / "data").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_other_strengths_are_compared_from_end_to_end(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(3)
    cube = make_cube(rng, strengths=(-4.0, -1.0, 0.0, 1.0, 4.0))
    save_cube(cube, here / "data" / "mine.nc")
    assert main(["analyze", "--compare", "-4:4"]) == 0
    assert main(["paper"]) == 0
    manifest = json.loads((here / "paper/mine/manifest.json").read_text())
    assert manifest["settings"]["compared"] == "+4 minus -4"
    assert "its mean at strength +4 minus that at −4" in (here / "paper/mine/post.md").read_text()
    effects = pd.read_csv(here / "paper/mine/tables/effects.csv")
    row = effects[(effects["model"] == "small") & (effects["concept"] == "honesty")].iloc[0]
    at = cube["logit_diff"].sel(model="small", concept="honesty", layer=row["layer"]).mean("sample")
    assert row["delta"] == pytest.approx(
        float(at.sel(strength=4.0) - at.sel(strength=-4.0)), rel=1e-5
    )
    (here / "data" / "mine.nc").unlink()
    assert main(["analyze", "--compare", "-1:1"]) == 2
    assert "compares +4 minus -4 in logit_diff" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--compare", "-9:9"), "it lacks -9, +9"),
        (("--compare", "1:-1"), "the low one first"),
        (("--measure", "logit_dif"), "did you mean 'logit_diff'"),
    ],
)
def test_what_the_cube_cannot_compare_is_one_message(
    given: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cube(make_cube(np.random.default_rng(3)), here / "data" / "mine.nc")
    assert main(["analyze", *given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_committed_results_are_those_of_the_committed_cells(tmp_path: Path) -> None:
    """A fresh clone regenerates the study's tables, numbers and figures as they are committed."""
    shutil.copy(ROOT / "paper" / "claims.toml", tmp_path / "claims.toml")
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(ROOT / "data" / "qwen3.cells.nc", data)
    assert main(["analyze", "--data", str(data), "--paper", str(tmp_path), "--without-nuts"]) == 0
    made, committed = tmp_path / "qwen3", ROOT / "paper" / "qwen3"
    apart = ("calibration/", "posteriors/")  # of another command, and not in the repository
    of_analyze = {n for n in contents(committed) if not n.startswith(apart)}
    assert set(contents(made)) == of_analyze - {"post.md", "post.html"}
    for path in sorted((committed / "tables").glob("*.csv")):
        new, old = pd.read_csv(made / "tables" / path.name), pd.read_csv(path)
        if "method" in old:
            old = old[old["method"] != NUTS].reset_index(drop=True)
        optimised = old["method"].str.contains("REML") if "method" in old else old.index < 0
        for rows, rtol in ((optimised, OF_OPTIMISERS), (~optimised, 1e-6)):
            pd.testing.assert_frame_equal(
                new[rows], old[rows], rtol=rtol, atol=1e-9, check_dtype=False
            )
    new, old = (json.loads((f / "numbers.json").read_text()) for f in (made, committed))
    assert new.keys() == {key for key in old if NUTS not in key}
    for key in new:
        rel = OF_OPTIMISERS if "REML" in key else 1e-6
        for name, value in old[key].items():
            if isinstance(value, float):
                assert new[key][name] == pytest.approx(value, rel=rel, abs=1e-9)
            else:
                assert new[key][name] == value
    for path in sorted((committed / "tables").glob("*.md")):
        printed = [line for line in path.read_text().splitlines() if NUTS not in line]
        assert (made / "tables" / path.name).read_text().splitlines() == printed


@pytest.mark.slow
def test_nuts_stands_beside_the_exact_fit_and_keeps_its_draws(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr(analyze, "sample_cells", partial(analyze.sample_cells, n_draws=100))
    n_items = {"one": 20, "two": 24, "three": 22}
    cube = make_cube(np.random.default_rng(3), models=SIX_MODELS, n_items=n_items)
    save_cells(reduce_to_cells(cube, n_resamples=50), here / "data" / "mine.cells.nc")
    assert main(["analyze", *CONTRAST]) == 0
    table = pd.read_csv(here / "paper" / "mine" / "tables" / "contrast_effect.csv")
    row = table[table["method"] == NUTS].iloc[0]
    assert "ESS bulk" in row["diagnostics"]
    assert np.isnan(row["estimate"])
    assert row["reason"].startswith("failed its gates: ")
    draws = read_posterior(here / "paper" / "mine" / "posteriors" / "cells.nc")
    assert draws["posterior"]["contrast"].shape == (4, 100)


@pytest.mark.slow
def test_calibration_is_written_beside_the_study(here: Path, study_cells: xr.Dataset) -> None:
    """Part by part: what was made before stays, and a figure is drawn where its tables are."""
    save_cells(study_cells, here / "data" / "qwen3.cells.nc")
    folder = here / "paper" / "qwen3" / "calibration"
    small = ["calibrate", *CONTRAST, "--simulations", "1", "--workers", "1"]
    assert main([*small, "--only", "operating"]) == 0
    operating = {"manifest.json", "operating.csv", "operating.png"}
    assert {path.name for path in folder.iterdir()} == operating
    made = (folder / "operating.csv").read_bytes()
    assert main([*small, "--only", "coverage", "--only", "sbc"]) == 0
    of_training = {"coverage.csv", "recovery.csv", "sbc.csv", "calibration.png"}
    assert {path.name for path in folder.iterdir()} == of_training | operating
    assert (folder / "operating.csv").read_bytes() == made
    assert main(["calibrate", *CONTRAST, "--simulations", "0"]) == 2
    # Of other cells nothing that was made before is kept; what the user put there is theirs.
    (folder / "notes.md").write_text("mine")
    others = study_cells.assign(mean=study_cells["mean"] + 1.0)
    save_cells(others, here / "data" / "qwen3.cells.nc")
    assert main([*small, "--only", "sbc"]) == 0
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "sbc.csv", "notes.md"}


def test_a_part_of_calibration_that_is_none_is_one_message(
    here: Path, study_cells: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cells(study_cells, here / "data" / "qwen3.cells.nc")
    assert main(["calibrate", *CONTRAST, "--only", "everything"]) == 2
    assert "not among the parts, coverage, sbc, operating" in capsys.readouterr().err


def test_calibration_of_one_training_is_one_message(
    here: Path, six: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    one = six.sel(model=list("abcd"), model_other=list("abcd"))
    save_cells(one, here / "data" / "mine.cells.nc")
    assert main(["calibrate", "mine", *CONTRAST]) == 2
    assert "mine: no swept model has the training 'rl'" in capsys.readouterr().err


def test_calibration_of_too_few_models_is_one_message(
    here: Path, cells: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cells(cells, here / "data" / "mine.cells.nc")
    assert main(["calibrate", "mine", *CONTRAST]) == 2
    said = capsys.readouterr().err
    assert "mine cannot be calibrated: 2 term(s) and the spread between models need 4" in said


def test_calibration_without_a_contrast_is_one_message(
    here: Path, six: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    save_cells(six, here / "data" / "mine.cells.nc")
    assert main(["calibrate", "mine"]) == 2
    said = capsys.readouterr().err
    assert "mine has no contrast to calibrate: name one with --contrast" in said


@pytest.mark.slow
def test_cells_that_lack_estimands_are_analysed_and_it_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], cells: xr.Dataset
) -> None:
    sha = save_cells(cells.drop_sel(estimand=["d_z", "hedges_g"]), here / "data" / "old.cells.nc")
    assert main(["analyze"]) == 0
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "lack" in text]
    assert "  these cells lack hedges_g, d_z: results that need them are missing" in line
    manifest = json.loads((here / "paper" / "old" / "manifest.json").read_text())
    assert sha in json.dumps(manifest["inputs"])
