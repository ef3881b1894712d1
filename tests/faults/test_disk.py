"""A full disk, a limit, a folder that may not be written to: one message, nothing lost."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import children
import numpy as np
import pytest
from builders import ROOT, make_cube, open_view, reduce_to_cells
from children import CommandLine, Faults, finish

from steercube import netcdf
from steercube.cells import save_cells
from steercube.cli import main
from steercube.collect.run import shards_of
from steercube.cube import open_cube

FULL, LIMIT = "No space left on device", "File too large"
READ_ONLY, DENIED = "Read-only file system", "Permission denied"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and setuid need root")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return children.command_line(tmp_path_factory.mktemp("disk"), n_items=6)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of a small cube."""
    path = tmp_path_factory.mktemp("cells") / "mine.cells.nc"
    cube = make_cube(np.random.default_rng(1))
    save_cells(reduce_to_cells(cube, n_resamples=20, report=lambda line: None), path)
    return path


Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Makes small file systems of their own, that nothing else is on."""
    points: list[Path] = []

    def of(size: str) -> Path:
        point = tmp_path / f"disk{len(points)}"
        point.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size}", "steercube-test", str(point)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        points.append(point)
        return point

    yield of
    for point in points:
        subprocess.run(["umount", "--lazy", str(point)], check=True)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but locks."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.suffix != ".lock"}


def problems(code: int, said: str, *, cause: str, within: Path) -> list[str]:
    """What is wrong with how a command ended; empty if it told what and why in one line."""
    lines = [line for line in said.replace("\r", "\n").splitlines() if "steercube:" in line]
    wrong = [f"exit code {code}: {said[-500:]}"] * (code != 2)
    told = len(lines) == 1 and cause in lines[0] and str(within) in lines[0]
    wrong += [f"says {lines}"] * (not told)
    wrong += [said] * ("Traceback" in said or "Exception ignored" in said)
    return wrong + [f"{path} is left" for path in within.rglob("*.part")]


def fill(folder: Path, *, leaving: int) -> Path:
    """A file that takes up all but so many bytes."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leaving)))
    return ballast


def resumed(setup: CommandLine, out: Path, made: dict[str, bytes]) -> bool:
    """Whether going on keeps every shard there was and ends in the same cube."""
    assert main(setup.arguments(out, "--resume")) == 0
    now = contents(out.parent)
    kept = all(now[name] == content for name, content in made.items() if "shards" in name)
    return kept and open_cube(out).identical(open_cube(setup.whole))


def test_collecting_with_a_limit_on_files(
    setup: CommandLine, tmp_path: Path, fault: Faults
) -> None:
    line = fault("limit on files")
    sizes = {path.name: path.stat().st_size for path in setup.whole.parent.rglob("*.nc")}
    shard = max(size for name, size in sizes.items() if name.startswith("samples"))
    assert sizes["vectors.nc"] < shard < sizes["whole.nc"]
    limits = [0, 4096, sizes["vectors.nc"], shard, sizes["whole.nc"] - 1]
    for limit in limits:
        out, said = tmp_path / str(limit) / "mine.nc", tmp_path / f"{limit}.txt"
        out.parent.mkdir()
        # What is said goes through a pipe's like, which no limit binds.
        os.mkfifo(said)
        reading = subprocess.Popen(["cat", str(said)], stdout=subprocess.PIPE, text=True)
        code = finish(
            *(children.commanded, setup.arguments(out), said, children.no_larger_than, limit)
        )
        text = reading.communicate(timeout=children.HANGS)[0]
        wrong = problems(code, text, cause=LIMIT, within=out.parent)
        made = contents(out.parent)
        for path in out.parent.rglob("*.nc"):
            netcdf.load(path)
        same = resumed(setup, out, made)
        line.tried(f"{limit} bytes: {wrong}", lost=not same, silently_wrong=bool(wrong))


@needs_root
def test_collecting_on_a_full_disk(
    setup: CommandLine, mount: Mount, tmp_path: Path, fault: Faults
) -> None:
    """With the results of an earlier concept there, which stay as they are."""
    line = fault("full disk")
    disk = mount("2m")
    for leaving in (0, 12_288, 60_000, 130_000, 200_000, 260_000):
        folder = disk / str(leaving)
        folder.mkdir()
        out, said = folder / "mine.nc", tmp_path / f"{leaving}.txt"
        ballast = fill(disk, leaving=leaving)
        code = finish(children.commanded, setup.arguments(out), said)
        wrong = problems(code, said.read_text(), cause=FULL, within=folder)
        made = contents(folder)
        ballast.unlink()
        for path in folder.rglob("*.nc"):
            netcdf.load(path)
        same = resumed(setup, out, made)
        line.tried(f"{leaving} bytes left: {wrong}", lost=not same, silently_wrong=bool(wrong))
        shutil.rmtree(folder)


@needs_root
def test_consolidating_and_importing_on_a_full_disk(
    setup: CommandLine, mount: Mount, tmp_path: Path, fault: Faults
) -> None:
    """The earlier cube and study stay as they are, byte by byte."""
    line = fault("full disk")
    disk, said = mount("4m"), tmp_path / "said"
    shutil.copytree(setup.whole.parent, disk, dirs_exist_ok=True)
    children.write_study(tmp_path / "study")
    cube = disk / "qwen3.nc"
    assert finish(children.imported, tmp_path / "study", cube, said) == 0
    for leaving in (0, 8192, 40_000):
        ballast = fill(disk, leaving=leaving)
        before = contents(disk)
        for name, arguments in {
            "consolidate": (
                children.commanded,
                ["consolidate", "--out", str(disk / "whole.nc")],
                said,
            ),
            "import-study": (children.imported, tmp_path / "study", cube, said),
        }.items():
            code = finish(*arguments)
            wrong = problems(code, said.read_text(), cause=FULL, within=disk)
            lost = contents(disk) != before
            line.tried(f"{name}, {leaving}: {wrong}", lost=lost, silently_wrong=bool(wrong))
        ballast.unlink()
    assert finish(children.imported, tmp_path / "study", cube, said) == 0
    assert finish(children.commanded, ["consolidate", "--out", str(disk / "whole.nc")], said) == 0


def test_cells_with_a_limit_on_files(cells: Path, tmp_path: Path, fault: Faults) -> None:
    """What `analyze` would replace is as it was, in the data and among the results."""
    line = fault("limit on files")
    for folder in ("data", "paper/mine"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(cells, tmp_path / "data" / "mine.cells.nc")
    (tmp_path / "paper" / "mine" / "manifest.json").write_text("{}")
    before = contents(tmp_path)
    data, paper = tmp_path / "data", tmp_path / "paper"
    arguments = ["analyze", "--data", str(data), "--paper", str(paper), "--without-nuts"]
    for limit in (10_000, cells.stat().st_size - 1):
        said = tmp_path.with_name(f"said{limit}")
        prepared = (children.with_cells_and_limit, cells, limit)
        code = finish(children.commanded, arguments, said, *prepared)
        wrong = problems(code, said.read_text(), cause=LIMIT, within=data)
        lost = contents(tmp_path) != before
        line.tried(f"analyze, {limit}: {wrong}", lost=lost, silently_wrong=bool(wrong))
    open_view(data / "mine.cells.nc")


def commands(setup: CommandLine, cells: Path, folder: Path) -> dict[str, list[str]]:
    """What writes into `folder`, where the results of each lie already."""
    shutil.copytree(setup.whole.parent, folder / "collected")
    shutil.copytree(shards_of(setup.whole), folder / "alone" / "whole.shards")
    (folder / "data").mkdir()
    shutil.copy(cells, folder / "data" / "mine.cells.nc")
    shutil.copytree(ROOT / "paper", folder / "paper")
    data, paper = folder / "data", folder / "paper"
    return {
        "collect": setup.arguments(folder / "collected" / "new.nc"),
        "collect --resume": setup.arguments(folder / "collected" / "whole.nc", "--resume"),
        "consolidate": ["consolidate", "--out", str(folder / "collected" / "whole.nc")],
        "consolidate, no cube": ["consolidate", "--out", str(folder / "alone" / "whole.nc")],
        "analyze": ["analyze", "--data", str(data), "--paper", str(paper), "--without-nuts"],
        "paper": ["paper", "--paper", str(paper)],
    }


@needs_root
def test_a_read_only_file_system(
    setup: CommandLine, cells: Path, mount: Mount, tmp_path: Path, fault: Faults
) -> None:
    line = fault("read-only")
    disk, said = mount("64m"), tmp_path / "said"
    asked = commands(setup, cells, disk)
    before = contents(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for name, arguments in asked.items():
        code = finish(children.commanded, arguments, said)
        # Whether results can be written is asked before anything is computed.
        cause = "is not writable" if name == "analyze" else READ_ONLY
        wrong = problems(code, said.read_text(), cause=cause, within=disk)
        wrong += [said.read_text()] * (name == "analyze" and "mine:" in said.read_text())
        lost = contents(disk) != before
        line.tried(f"{name}: {wrong}", lost=lost, silently_wrong=bool(wrong))
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    for name in ("collect --resume", "consolidate"):
        assert finish(children.commanded, asked[name], said) == 0, said.read_text()
    found = open_cube(disk / "collected" / "whole.nc")
    line.tried("writable again", lost=not found.identical(open_cube(setup.whole)))


@needs_root
def test_a_folder_that_may_not_be_written_to(
    setup: CommandLine, cells: Path, public: Path, tmp_path: Path, fault: Faults
) -> None:
    line = fault("permission denied")
    asked, said = commands(setup, cells, public), tmp_path / "said"
    for source in (setup.model, setup.concepts):
        shutil.copytree(source, public / source.name)
    for path in (public, *public.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    readable = CommandLine(public / "tiny", public / "concepts", setup.whole)
    asked["collect"] = readable.arguments(public / "collected" / "new.nc")
    asked["collect --resume"] = readable.arguments(public / "collected" / "whole.nc", "--resume")
    before = contents(public)
    warm = setup.arguments(tmp_path / "warm.nc", "--resume")
    for name, arguments in asked.items():
        first = [["paper", "--paper", str(tmp_path)], warm]
        code = finish(children.commanded, arguments, said, children.as_nobody, *first)
        text = said.read_text().partition(f"wrote {tmp_path / 'warm.nc'}")[2]
        cause = "is not writable" if name == "analyze" else DENIED
        wrong = problems(code, text, cause=cause, within=public)
        lost = contents(public) != before
        line.tried(f"{name}: {wrong}", lost=lost, silently_wrong=bool(wrong))


@needs_root
def test_a_file_that_may_not_be_read(setup: CommandLine, public: Path, fault: Faults) -> None:
    """It is no damaged one, which would be made again."""
    line = fault("permission denied")
    shard = next(shards_of(setup.whole).rglob("samples-*.nc"))
    paths = [Path(shutil.copy(path, public / path.name)) for path in (setup.whole, shard)]
    for path in paths:
        path.chmod(0o000)
    said = public / "said"
    assert finish(children.opened_as_nobody, paths, said) == 0
    for path, text in zip(np.repeat(paths, 2), said.read_text().splitlines(), strict=True):
        told = text.startswith("PermissionError") and str(path) in text
        line.tried(f"{path.name}: {text}", silently_wrong=not told)
