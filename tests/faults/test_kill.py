"""SIGKILL at every stage: what was finished is kept, and going on ends in the same files."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import children
import numpy as np
import pytest
from children import SHARDS, Faults, Passes, collected, finish, start

from steercube import netcdf
from steercube.analyze import studies
from steercube.collect.run import shards_of
from steercube.cube import Cube, as_cube, open_cube

RNG = np.random.default_rng(20250704)


class Whole(NamedTuple):
    """A run that nothing interrupted."""

    out: Path
    passes: Passes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(folder / "mine.nc", children.measured(folder))


def results(out: Path) -> list[object]:
    """The cube, the vectors and the manifest."""
    manifest = json.loads(out.with_name("mine.manifest.json").read_text())
    vectors = netcdf.load(out.with_name("mine.vectors.nc"))
    cube = open_cube(out)
    tables = {path: table.to_dict() for path, table in cube.items()}
    return [cube.attrs, tables, vectors.to_dict(), manifest]


def as_text(results: list[object]) -> str:
    return repr(results)


class Left(NamedTuple):
    """What a killed run left of the shards, read whole or not at all."""

    made: dict[Path, int]
    broken: list[str]


def left_in(folder: Path) -> Left:
    made, broken = {}, []
    for path in sorted(folder.rglob("*.nc")):
        made[path] = path.stat().st_mtime_ns
        try:
            netcdf.load_groups(path)
        except ValueError as error:
            broken.append(str(error))
    return Left(made, broken)


def check_resumed(folder: Path, whole: Whole, line: Callable[..., None], what: str) -> None:
    """Resume, and enter the try: the same files, nothing made twice, nothing half written."""
    left = left_in(folder)
    names = {path.name for path in left.made if path.name in SHARDS}
    assert set(studies(folder)) <= {"mine"}
    passes = Passes()
    out = collected(folder, passes.decoder)
    same = as_text(results(out)) == as_text(results(whole.out))
    again = [
        p.name for p, at in left.made.items() if p.name in SHARDS and p.stat().st_mtime_ns != at
    ]
    line(
        f"{what}: {left.broken} {again} {passes.n} passes",
        lost=bool(again) or passes.n != whole.passes.needed(set(SHARDS) - names),
        silently_wrong=bool(left.broken) or not same,
    )
    assert list(folder.rglob("*.part")) == []


def test_a_whole_run_takes_as_many_passes_as_its_parts(whole: Whole, fault: Faults) -> None:
    assert whole.passes.needed(set(SHARDS)) == whole.passes.n
    assert min(whole.passes.steps.values()) > 0
    passes = Passes()
    collected(whole.out.parent, passes.decoder)
    fault("no fault").tried("a finished run is run again", lost=passes.n > 0)


STEPS = {
    "extraction": (["vectors.nc"], 3),
    "sweep": (["samples", *SHARDS[1:4]], 4),
    "sweep of controls": (SHARDS[4:7], 2),
    "generation": (["generations", *SHARDS[7:]], 4),
}


@pytest.mark.parametrize("stage", STEPS)
def test_killed_while_the_model_runs(
    stage: str, whole: Whole, tmp_path: Path, fault: Faults
) -> None:
    line = fault("SIGKILL")
    steps, n = STEPS[stage]
    before = list(whole.passes.steps).index(steps[0])
    first = sum(list(whole.passes.steps.values())[:before])
    last = first + sum(whole.passes.steps[step] for step in steps)
    for i, k in enumerate(RNG.choice(np.arange(first + 1, last + 1), n, replace=False)):
        folder = tmp_path / str(i)
        folder.mkdir()
        ended = finish(children.signalled, collected, signal.SIGKILL, "pass", int(k), folder)
        assert ended == -signal.SIGKILL
        check_resumed(folder, whole, line.tried, f"pass {k} of the {stage}")


WRITING = [
    *(("amid writing", k) for k in (1, 3, 6, 9)),
    *(("before flushing", k) for k in (2, 7)),
    ("after flushing", 6),
    *(("before renaming", k) for k in (1, 5)),
    ("after renaming", 4),
]
"""A shard is flushed and its folder too; the note of who holds the folder is the first of all."""
N_SHARDS, N_GROUPS = len(SHARDS), 6
CONSOLIDATING = [
    *(("before a unit", 1), ("before merging", 1), ("before saving", 1)),
    *(("amid writing", N_SHARDS + 1), ("amid writing", N_SHARDS + N_GROUPS)),
    *(("amid writing", N_SHARDS + N_GROUPS + 1), ("after renaming", N_SHARDS + 3)),
]
"""A cube is written group by group, and then its vectors. What is renamed before it are the notes
of who holds the folder, and who holds all of them, and the shards."""


@pytest.mark.parametrize("stage", ["writing a shard", "consolidating"])
def test_killed_while_files_are_written(
    stage: str, whole: Whole, tmp_path: Path, fault: Faults
) -> None:
    line = fault("SIGKILL")
    for i, (at, k) in enumerate(WRITING if stage == "writing a shard" else CONSOLIDATING):
        folder = tmp_path / str(i)
        folder.mkdir()
        if stage == "consolidating" and k == 1:
            # All shards are there; a cube of an earlier time is not.
            shutil.copytree(shards_of(whole.out), shards_of(folder / "mine.nc"))
        ended = finish(children.signalled, collected, signal.SIGKILL, at, k, folder)
        assert ended == -signal.SIGKILL, (at, k)
        check_resumed(folder, whole, line.tried, f"{at}, call {k}")


def test_killed_at_any_moment(whole: Whole, tmp_path: Path, fault: Faults) -> None:
    """By the clock, again and again, until a run comes to its end."""
    line = fault("SIGKILL")
    n_killed = 0
    while n_killed < 4:
        folder = tmp_path / str(n_killed)
        folder.mkdir(exist_ok=True)
        process = start(collected, folder)
        process.join(float(RNG.uniform(0.1, 0.9)))
        if process.is_alive():
            process.kill()
            process.join()
            check_resumed(folder, whole, line.tried, "by the clock")
            n_killed += 1
        else:
            assert process.exitcode == 0
            shutil.rmtree(folder)


def is_one_of(path: Path, cubes: list[Cube]) -> bool:
    """Attributes apart, of which a file has one more."""
    found = Cube(open_cube(path), {})
    return any(found.identical(Cube(cube, {})) for cube in cubes)


SAVING = [("before writing", 1), ("amid writing", 1), ("after flushing", 2), ("before renaming", 1)]


def test_killed_while_a_cube_is_saved(tmp_path: Path, fault: Faults) -> None:
    line = fault("SIGKILL")
    path = tmp_path / "mine.nc"
    old, new = (as_cube(children.cube_of(seed)) for seed in (1, 2))
    children.saved(path, 1)
    for at, k in SAVING:
        ended = finish(children.signalled, children.saved, signal.SIGKILL, at, k, path, 2)
        assert ended == -signal.SIGKILL, (at, k)
        line.tried(f"save_cube, {at}", silently_wrong=not is_one_of(path, [old, new]))
        assert studies(tmp_path) == ["mine"]
        children.saved(path, 1)
        assert is_one_of(path, [old])
        assert [p.name for p in tmp_path.iterdir()] == ["mine.nc"]
    for _ in range(2):
        process = start(children.saved, path, 2)
        process.join(float(RNG.uniform(0.05, 0.2)))
        process.kill()
        process.join()
        line.tried("save_cube, by the clock", silently_wrong=not is_one_of(path, [old, new]))
    children.saved(path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.nc"]
    assert is_one_of(path, [new])


def test_killed_while_the_study_is_imported(tmp_path: Path, fault: Faults) -> None:
    line = fault("SIGKILL")
    children.write_study(tmp_path / "study")
    expected = children.study_of(tmp_path / "study")
    (tmp_path / "data").mkdir()
    path, said = tmp_path / "data" / "qwen3.nc", tmp_path / "said"
    for at, k in [("amid writing", 1), ("after flushing", 1), ("before renaming", 1)]:
        arguments = (tmp_path / "study", path, said)
        ended = finish(children.signalled, children.imported, signal.SIGKILL, at, k, *arguments)
        assert ended == -signal.SIGKILL, said.read_text()
        line.tried(f"import-study, {at}", silently_wrong=path.exists())
        assert studies(path.parent) == []
    process = start(children.imported, *arguments)
    process.join(float(RNG.uniform(0.05, 0.3)))
    process.kill()
    process.join()
    whole_or_none = not path.exists() or is_one_of(path, [expected])
    line.tried("import-study, by the clock", silently_wrong=not whole_or_none)
    assert finish(children.imported, *arguments) == 0, said.read_text()
    assert is_one_of(path, [expected])
    assert [p.name for p in path.parent.iterdir()] == ["qwen3.nc"]
