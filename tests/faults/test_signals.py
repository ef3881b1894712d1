"""SIGTERM and Ctrl-C: one line, the exit code of a shell, nothing half written, locks let go."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import pytest
from children import CommandLine, Faults, finish

from steercube import netcdf
from steercube.cli import main
from steercube.collect.run import shards_of
from steercube.collect.shards import held
from steercube.cube import open_cube

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return children.command_line(tmp_path_factory.mktemp("signals"), n_items=16)


def check(code: int, said: str, number: int, out: Path) -> list[str]:
    """What is wrong after the signal; empty if nothing is."""
    lines = [line for line in said.replace("\r", "\n").splitlines() if "steercube:" in line]
    wrong = [f"exit code {code}"] * (code != CODES[number])
    wrong += [f"says {lines}"] * (len(lines) != 1 or "interrupted" not in lines[0])
    wrong += [said] * ("Traceback" in said or "Exception ignored" in said)
    wrong += [f"{path} is left" for path in out.parent.rglob("*.part")]
    wrong += [f"{path} is left" for path in out.parent.rglob("holder.json")]
    for path in out.parent.rglob("*.nc"):
        netcdf.load_groups(path)
    for folder in shards_of(out).rglob("*/") if shards_of(out).exists() else ():
        with held(folder):
            pass
    return wrong


def check_resumed(setup: CommandLine, out: Path) -> bool:
    """Whether going on ends in the same cube, with every finished shard as it was."""
    made = {p: p.stat().st_mtime_ns for p in shards_of(out).rglob("*.nc")}
    assert main(setup.arguments(out, "--resume")) == 0
    kept = all(p.stat().st_mtime_ns == at for p, at in made.items())
    assert not list(out.parent.rglob("*.part"))
    return kept and open_cube(out).identical(open_cube(setup.whole))


@pytest.mark.parametrize("number", CODES)
def test_a_real_process(
    number: signal.Signals, setup: CommandLine, tmp_path: Path, fault: Faults
) -> None:
    line = fault(number.name)
    out = tmp_path / "mine.nc"
    arguments = setup.arguments(out)
    process = subprocess.Popen(
        [sys.executable, "-m", "steercube", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=children.heed_interrupts,
    )
    until = time.monotonic() + children.HANGS
    while not list(out.parent.rglob("samples-*.nc")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, number)
    said = process.communicate(timeout=children.HANGS)[1]
    wrong = check(process.returncode, said, number, out)
    assert len(list(out.parent.rglob("samples-*.nc"))) < 8
    same = check_resumed(setup, out)
    line.tried("python -m steercube collect", lost=not same, silently_wrong=bool(wrong))


STAGES = [("pass", 30), ("amid writing", 2), ("before merging", 1), ("amid writing", 11)]
"""At the last two all shards are there; the cube is written group by group, here its second."""


@pytest.mark.parametrize("number", CODES)
def test_at_every_stage(
    number: signal.Signals, setup: CommandLine, tmp_path: Path, fault: Faults
) -> None:
    line = fault(number.name)
    for i, (at, k) in enumerate(STAGES):
        out, said = tmp_path / str(i) / "mine.nc", tmp_path / f"{i}.txt"
        out.parent.mkdir()
        arguments = setup.arguments(out)
        code = finish(children.signalled, children.commanded, int(number), at, k, arguments, said)
        wrong = check(code, said.read_text(), number, out)
        same = check_resumed(setup, out)
        what = f"{at}, {k}: {wrong}"
        line.tried(what, lost=not same, silently_wrong=bool(wrong))


def test_the_earlier_handler_comes_back(capsys: pytest.CaptureFixture[str], fault: Faults) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["show", "no-such-file.nc"]) == 2
    changed = signal.getsignal(signal.SIGTERM) is not before
    fault("SIGTERM").tried("the handler of whoever calls main", silently_wrong=changed)
