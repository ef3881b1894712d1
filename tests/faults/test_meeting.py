"""Several at one place: two collectors, what a dead one left, readers beside a writer."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import children
import pytest
from children import CONCEPTS, FORK, HANGS, Faults, collected, finish, start

from steercube.collect.run import shards_of
from steercube.collect.shards import held
from steercube.cube import Cube, open_cube


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collected(tmp_path_factory.mktemp("both"), concepts=CONCEPTS)


def test_the_second_collector_is_told_who_holds_the_folder(tmp_path: Path, fault: Faults) -> None:
    line = fault("two collectors")
    ours, theirs = FORK.Pipe()
    first = start(children.paused, tmp_path, theirs)
    assert ours.poll(HANGS)
    ours.recv()
    for attempt in ("at once", "again"):
        before = sorted(p.name for p in tmp_path.rglob("*"))
        with pytest.raises(BlockingIOError, match=f"is held by process {first.pid} on") as error:
            collected(tmp_path)
        named = str(shards_of(tmp_path / "mine.nc") / "tiny-llama" / "honesty") in str(error.value)
        same = before == sorted(p.name for p in tmp_path.rglob("*"))
        line.tried(attempt, lost=not same, silently_wrong=not named)
    ours.send("go on")
    first.join(HANGS)
    assert first.exitcode == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    same = open_cube(tmp_path / "mine.nc").identical(open_cube(collected(alone)))
    line.tried("the first one finishes", lost=not same)


def test_two_consolidate_at_once(both: Path, tmp_path: Path, fault: Faults) -> None:
    shutil.copytree(both.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mine.nc").unlink()
    pair = [start(children.consolidated, tmp_path / "mine.nc") for _ in range(2)]
    for process in pair:
        process.join(HANGS)
    ended = [process.exitcode for process in pair]
    same = open_cube(tmp_path / "mine.nc").identical(open_cube(both))
    fault("two collectors").tried(f"consolidate: {ended}", lost=ended != [0, 0] or not same)


NOTES = {
    "of a dead process": json.dumps({"pid": 2**22 + 1, "host": "gone", "since": "2024"}),
    "of another living process": json.dumps({"pid": os.getppid(), "host": "gone", "since": "2024"}),
    "empty": "",
    "cut off": '{"pid": 1',
}


def test_a_stale_lock_does_not_block(tmp_path: Path, fault: Faults) -> None:
    line = fault("stale lock")
    for name, note in NOTES.items():
        (tmp_path / "holder.lock").touch()
        (tmp_path / "holder.json").write_text(note)
        with held(tmp_path):
            mine = json.loads((tmp_path / "holder.json").read_text())["pid"] == os.getpid()
        line.tried(name, silently_wrong=not mine or (tmp_path / "holder.json").exists())
    folder = tmp_path / "killed"
    folder.mkdir()
    assert finish(children.signalled, collected, signal.SIGKILL, "pass", 8, folder) < 0
    assert list(folder.rglob("holder.json"))
    out = collected(folder)
    line.tried("of a collector that was killed", lost=open_cube(out).labels.sizes["concept"] != 1)
    assert not list(folder.rglob("holder.json"))


def seen_while(process, path: Path, expected: list[Cube]) -> list[int | None]:
    """Which of the cubes each reading gave, None for another, until the process ends."""
    seen: list[int | None] = []
    while process.is_alive():
        found = open_cube(path)
        alike = [i for i, cube in enumerate(expected) if found.identical(cube)]
        seen.append(alike[0] if alike else None)
    return seen


def test_a_reader_sees_the_old_cube_or_the_new_one(tmp_path: Path, fault: Faults) -> None:
    line = fault("reading while it is written")
    path, expected = tmp_path / "mine.nc", []
    for seed in (2, 1):
        children.save_cube(children.cube_of(seed, 40), path)
        expected.append(open_cube(path))
    ours, theirs = FORK.Pipe()
    process = start(children.saved_in_turn, path, [1, 2], 30, theirs)
    assert ours.poll(HANGS)
    seen = seen_while(process, path, expected)
    process.join()
    assert process.exitcode == 0
    for which in seen:
        line.tried("save_cube", silently_wrong=which is None)
    assert set(seen) == {0, 1}


def test_a_reader_of_a_cube_that_is_consolidated(both: Path, tmp_path: Path, fault: Faults) -> None:
    line = fault("reading while it is written")
    shutil.copytree(both.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "other").mkdir()
    plan = replace(children.PLAN, positions="answer")
    other = collected(tmp_path / "other", concepts=CONCEPTS, plan=plan)
    out = tmp_path / "mine.nc"
    expected = [open_cube(out), open_cube(other)]
    ours, theirs = FORK.Pipe()
    process = start(children.consolidated_in_turn, out, shards_of(other), 5, theirs)
    assert ours.poll(HANGS)
    seen = seen_while(process, out, expected)
    process.join()
    assert process.exitcode == 0
    for which in seen:
        line.tried("consolidate", silently_wrong=which is None)
    assert set(seen) == {0, 1}
