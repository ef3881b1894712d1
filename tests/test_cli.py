"""The command line as a newcomer meets it: its options, its plans, its errors."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from builders import make_cube
from children import write_concepts

from steercube import cli
from steercube.cli import INTERNAL, main, parsed
from steercube.concepts import Concept
from steercube.cube import open_cube, save_cube

COLLECT = ["collect", "--model", "m", "--out", "x.nc"]


@pytest.mark.parametrize(
    ("words", "strengths"),
    [
        (["--strengths", "-2,0,2"], (-2, 0, 2)),
        (["--strengths", "-.5,1e-1"], (-0.5, 0.1)),
        (["--strengths=-2,0,2"], (-2, 0, 2)),
        (["--strengths", "-1"], (-1,)),
        (["--strengths", "1,-1"], (1, -1)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_list_may_begin_with_a_negative_number(
    words: list[str], strengths: tuple[float, ...]
) -> None:
    options = parsed([*COLLECT, *words, "--resume"])
    assert options.strengths == strengths
    assert options.resume
    generated = [word.replace("--", "--generation-") for word in words]
    assert parsed([*COLLECT, *generated]).generation_strengths == strengths


def test_debug_may_stand_before_or_after_the_command() -> None:
    assert parsed(["--debug", *COLLECT]).debug
    assert parsed([*COLLECT, "--debug"]).debug
    assert not parsed(COLLECT).debug


def fails(error: Exception) -> Callable[..., None]:
    def run(*arguments: object, **options: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    "error",
    [
        KeyError("cohens_d"),
        RuntimeError("shape\nmismatch"),
        ZeroDivisionError("division by zero"),
        AssertionError(),
        RecursionError("too deep"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_raised_is_one_line_without_debug(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_show", fails(error))
    assert main(["show", "x.nc"]) == INTERNAL == 70
    said = capsys.readouterr().err
    assert said.startswith(f"steercube: internal error: {type(error).__name__}: ")
    assert "steercube --debug show" in said
    assert said.count("\n") == 1
    with pytest.raises(type(error)):
        main(["show", "x.nc", "--debug"])


def test_a_package_that_is_missing_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "steercube.report.paper", raising=False)
    assert main(["paper"]) == 2
    said = capsys.readouterr().err
    assert "jinja2" in said
    assert "pip install -c constraints.txt -e" in said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a tiny model, which no clone is around."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEERCUBE_STUDY_DIR", raising=False)
    tiny.save("llama", tmp_path / "tiny")
    return tmp_path


def collected(here: Path, concept: Concept, *words: str) -> int:
    write_concepts(here / "set", {concept.name: concept})
    arguments = ["collect", "--model", "tiny", "--concepts", "set", "--out", "x.nc"]
    return main([*arguments, "--dtype", "float32", "--layers", "1:4", *words])


SOUND = tiny.concept("honesty", n_pairs=8, n_items=12)


BOTH = ["--outcomes", "logit,generation"]


def of_one_letter(concept: Concept, split: str) -> Concept:
    questions = tuple(replace(q, matching="A", other="B") for q in getattr(concept, split))
    return replace(concept, **{split: questions})


@pytest.mark.parametrize(
    ("concept", "words", "said"),
    [
        (SOUND, ["--items", "100000"], "honesty: has only 12 items (--items 100000)"),
        (SOUND, ["--pairs", "9"], "honesty: has only 8 pairs (--pairs 9)"),
        (
            SOUND,
            [*BOTH, "--generation-samples", "99"],
            "honesty: has only 12 items to answer (--generation-samples 99)",
        ),
        (SOUND, ["--items", "9"], "warning: honesty: 9 items are too few"),
        (
            SOUND,
            [*BOTH, "--generation-samples", "9"],
            "warning: honesty: answers to 9 items are too few",
        ),
        (SOUND, ["--strengths", "-2,0,2"], "warning: --strengths without -1 and +1: "),
        (SOUND, ["--strengths", "-1,2"], "warning: --strengths without +1: "),
        (
            SOUND,
            [*BOTH, "--strengths", "-2,-1,1,2", "--generation-strengths", "-2,2"],
            "warning: --generation-strengths without -1 and +1: ",
        ),
        (SOUND, ["--outcomes", "generation"], "warning: --outcomes without logit: "),
        (
            of_one_letter(SOUND, "evaluation"),
            [],
            "warning: honesty: the matching answer of all 12 items is A",
        ),
        (
            of_one_letter(SOUND, "train"),
            [],
            "warning: honesty: the matching answer of all 8 pairs is A",
        ),
        (SOUND, ["--items", "12", "--pairs", "8", "--strengths", "-1,1"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_analysis_will_lack_is_said_before_anything_is_loaded(
    concept: Concept,
    words: list[str],
    said: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from steercube.collect import decoder

    monkeypatch.setattr(decoder, "load", fails(ValueError("loading was reached")))
    assert collected(here, concept, *words) == 2
    out, err = capsys.readouterr()
    assert "loading was reached" in err
    *before, loading = out.splitlines()
    assert loading == "loading tiny (tiny, float32)"
    assert len(before) == bool(said)
    assert "".join(before).startswith(said)


def test_a_warning_is_no_refusal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collected(here, SOUND, "--strengths", "-2,0,2", "--items", "4") == 0
    assert open_cube(here / "x.nc")["logit_diff"]["strength"].values.tolist() == [-2, 0, 2]
    out = capsys.readouterr().out
    assert out.count("warning: ") == 2
    assert "\nloading tiny (tiny, float32)\ntiny: 36 rows of honesty\n" in out


def test_cubes_are_merged_from_the_command_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = make_cube(np.random.default_rng(1))
    for name in ("small", "middle"):
        save_cube(cube.sel(model=[name]), here / f"{name}.nc")
    assert main(["merge", "small.nc", "middle.nc", "--out", "both.nc"]) == 0
    assert set(open_cube(here / "both.nc").labels["model"].values) == {"small", "middle"}
    assert main(["merge", "small.nc", "--out", "both.nc"]) == 2
    assert "merging needs at least two cubes" in capsys.readouterr().err
    assert main(["merge", "small.nc", "middle.nc", "--out", "both"]) == 2
    assert "name a .nc file" in capsys.readouterr().err
