"""Every artefact made twice, at an earlier commit and in this tree, and compared byte by byte.

    python tests/golden.py REV [--map tests/golden.toml] [--only qwen3]

Both are made on this machine, in this environment and on one thread, since another processor moves
the tenth digit. What was made at REV is kept in build/golden/<commit>. Said per file: identical,
identical but for the renames of the map, equal to 1e-9, or the first row that differs. Provenance
(hashes, versions, times) is left out. A folder that git ignores, such as a cube made from the
study's files, is used at both ends where this tree has it.

The map holds the tables `files`, `columns`, `words` and `inside`, each "old" = "new". Words are
whole texts, or parts of an id between slashes; those in a table `words.<column>` are of that column
alone. What is in `inside` is replaced within any text.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "golden"
STUDIES = ("qwen3", "smollm2")
CUBES = [f"{name}.nc" for name in STUDIES]
RELATIVE = 1e-9
PROVENANCE = ("history", "versions", "cube_sha256", "date", "created", "content_sha256")
HASH = re.compile(r"\b[0-9a-f]{40,64}\b")
EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=]+")
Renames = Mapping[str, Mapping[str, Any]]


def make(root: Path, out: Path, part: str) -> None:
    """One part of the artefacts of the checkout `root`, in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--make", part, str(root), str(out)]
    subprocess.run(command, check=True, env=environment, cwd=out, stdout=subprocess.DEVNULL)


def make_here(part: str, root: Path, out: Path) -> None:
    """The artefacts of one part, with the package that this process imports."""
    if part == "collected":
        collect(out)
        return
    from steercube.cli import main

    keep_what_is_drawn(out / "drawn" / part)
    data, paper = out / part / "data", out / part / "paper"
    data.mkdir(parents=True)
    paper.mkdir()
    for name in (f"{part}.nc", f"{part}.cells.nc"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(next(p for p in (root / "data" / name, ROOT / "data" / name) if p.exists()),
                        data)  # fmt: skip
    for file in root.glob("paper/*.[tj]*"):
        shutil.copy(file, paper)
    if (root / "paper" / part / "calibration").is_dir():
        shutil.copytree(root / "paper" / part / "calibration", paper / part / "calibration")
    folders = ("--data", str(data), "--paper", str(paper))
    run(main, "analyze", *folders, "--without-nuts")
    run(main, "paper", "--paper", str(paper))
    if part == "qwen3":
        simulated = out / "simulated"
        shutil.copytree(data, simulated / "data")
        shutil.copy(root / "paper" / "claims.toml", simulated)
        folders = ("--data", str(simulated / "data"), "--paper", str(simulated))
        run(main, "calibrate", part, *folders, "--simulations", "2", "--workers", "1")


def run(main: Any, *arguments: str) -> None:
    """A command, which must succeed."""
    if main(list(arguments)):
        raise SystemExit(f"{' '.join(arguments)} failed")


def collect(out: Path) -> None:
    """The cube and vectors of a tiny random model, both positions, controls and answers."""
    import tiny

    for positions in ("all", "answer"):
        folder = out / "collected" / positions
        folder.mkdir(parents=True)
        tiny.collected(folder, plan=replace(tiny.PLAN, positions=positions))
        shutil.rmtree(folder / "mine.shards", ignore_errors=True)


def keep_what_is_drawn(folder: Path) -> None:
    """Beside every figure that is saved from now on, a text of the numbers and words in it."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True)
    save = Figure.savefig

    def save_and_tell(figure: Any, path: Any, **options: Any) -> None:
        save(figure, path, **options)
        lines = sorted(set(drawn(figure)))
        (folder / f"{Path(path).stem}.txt").write_text("\n".join(lines), encoding="utf-8")

    Figure.savefig = save_and_tell  # type: ignore[method-assign, assignment]


def drawn(figure: Any) -> Iterator[str]:
    """What each mark of a figure stands for, in the numbers of its axes."""
    from matplotlib.collections import Collection
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    for artist in figure.findobj():
        if isinstance(artist, Text):
            yield f"text {artist.get_text()!r}"
        elif isinstance(artist, Line2D) and len(artist.get_xdata()):
            yield f"line {rounded(artist.get_xydata())}"
        elif isinstance(artist, AxesImage):
            yield f"image {rounded(artist.get_array())}"
        elif isinstance(artist, Collection):
            yield f"area {[rounded(path.vertices) for path in artist.get_paths()]}"


def rounded(values: Any) -> Any:
    """To the digits that a picture could ever show."""
    return [f"{v:.8g}" for v in np.ma.filled(np.ma.asarray(values, float), np.nan).ravel()]


def compared(old: Path, new: Path, renames: Renames) -> Iterator[tuple[str, str]]:
    """Each file with what became of it; an empty text for one that is identical."""
    files = {
        of: {str(p.relative_to(of)) for p in of.rglob("*") if p.is_file()} for of in (old, new)
    }
    was = {renamed(name, renames["files"]): name for name in files[old]}
    for name in sorted(was.keys() | files[new]):
        if Path(name).suffix in (".png", ".svg") or Path(name).name == "manifest.json":
            continue  # a picture's numbers are in `drawn`, a manifest is hashes
        if name not in was or name not in files[new]:
            yield name, f"is only in the {'new' if name not in was else 'old'} one"
            continue
        one, other = old / was[name], new / name
        bare = [text_of(path) for path in (one, other)] if one.suffix != ".nc" else ["", "."]
        said = "" if bare[0] == bare[1] else COMPARED.get(one.suffix, texts)(one, other, renames)
        yield name, said


def renamed(name: str, files: Mapping[str, str]) -> str:
    for old, new in files.items():
        name = re.sub(rf"(?<![\w]){re.escape(old)}(?=[./]|$)", new, name)
    return name


def text_of(path: Path) -> str:
    """A file without its hashes and pictures."""
    return HASH.sub("HASH", EMBEDDED.sub("", path.read_text(encoding="utf-8")))


def tables(one: Path, other: Path, renames: Renames) -> str:
    a, b = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (one, other))
    a = a.rename(columns=renames["columns"])
    for column in a:
        of_column = {"words": renames["words"] | renames["words"].get(column, {})}
        a[column] = a[column].map(lambda text, of=of_column: reworded(text, {**renames, **of}))
    if list(a) != list(b):
        gone, come = [c for c in a if c not in b], [c for c in b if c not in a]
        return f"columns differ: without {gone}, with {come}" if gone or come else "columns moved"
    if len(a) != len(b):
        missing = [
            row for row in a.itertuples(index=False) if row not in set(b.itertuples(index=False))
        ]
        return f"had {len(a)} rows and has {len(b)}; first: {missing[:1]}"
    return said_of(
        (f"row {row}, {column}", a[column].iat[row], b[column].iat[row])
        for column in a
        for row in np.flatnonzero((a[column] != b[column]).to_numpy())
    )


def reworded(text: str, renames: Renames) -> str:
    for old, new in renames["inside"].items():
        text = text.replace(old, new)
    return renames["words"].get(text, text)


def numbers(one: Path, other: Path, renames: Renames) -> str:
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (one, other))
    a = {
        "/".join(reworded(renamed(part, renames["files"]), renames) for part in id.split("/")): {
            renames["columns"].get(name, name): renamed(reworded(value, renames), renames["files"])
            if isinstance(value, str)
            else value
            for name, value in entry.items()
        }
        if isinstance(entry, dict)
        else entry
        for id, entry in a.items()
    }
    if gone := sorted(a.keys() - b.keys()):
        return f"{len(gone)} ids are gone, {len(b.keys() - a.keys())} are new; first: {gone[0]}"
    if come := sorted(b.keys() - a.keys()):
        return f"{len(come)} ids are new; first: {come[0]}"
    told = said_of(
        (f"{id} {name}", str(a[id].get(name)), str(b[id].get(name)))
        for id in a
        if isinstance(a[id], dict)
        for name in a[id]
        if a[id].get(name) != b[id].get(name)
    )
    more = {name for id in a if isinstance(a[id], dict) for name in b[id].keys() - a[id].keys()}
    return f"{told}; new in its entries: {', '.join(sorted(more))}" if more else told


def arrays(one: Path, other: Path, renames: Renames) -> str:
    """What differs between two NetCDF files, read as this tree reads them: group by group."""
    a, b = groups(one), groups(other)
    only = [f"group {path} is only in the old one" for path in a if path not in b]
    only += [f"group {path} is only in the new one" for path in b if path not in a]
    differences = []
    for path in dict.fromkeys(path for path in a if path in b):
        left, right = a[path], b[path]
        more = sorted(map(str, set(left.variables) ^ set(right.variables)))
        only += [f"{path or 'root'}: {name} is in one only" for name in more]
        for name in set(left.variables) & set(right.variables):
            x, y = left[name].values, right[name].values
            if x.shape != y.shape or (x.dtype.kind != "U" and x.dtype != y.dtype):
                return f"{path} {name} was {x.dtype} {x.shape} and is {y.dtype} {y.shape}"
            for at in np.argwhere(~((x == y) | ((x != x) & (y != y)))):
                where = tuple(at)
                differences.append(
                    (f"{path} {name}{list(map(int, at))}", str(x[where]), str(y[where]))
                )
        for name in {**left.attrs, **right.attrs}.keys() - set(PROVENANCE):
            if str(left.attrs.get(name)) != str(right.attrs.get(name)):
                was, now = (str(ds.attrs.get(name)) for ds in (left, right))
                differences.append((f"attribute {name}", was, now))
    said = said_of(iter(differences), all_same="")
    return "; ".join(filter(None, [said, *only]))


def groups(path: Path) -> dict[str, xr.Dataset]:
    """The datasets of a file by group; a cube and its cells as this tree's package reads them."""
    from steercube.cells import open_cells
    from steercube.cube import open_cube

    held = {name.lstrip("/"): ds.load() for name, ds in xr.open_groups(path).items()}
    if "cells_version" in held[""].attrs:
        return dict(open_cells(path))
    return dict(open_cube(path)) if "schema_version" in held[""].attrs else held


def texts(one: Path, other: Path, renames: Renames) -> str:
    a, b = text_of(one), text_of(other)
    for old, new in (renames["inside"] | renames["files"]).items():
        a = a.replace(old, new)
    was, now = a.splitlines(), b.splitlines()
    if len(was) != len(now):
        first = next((x for x in was if x not in now), next((x for x in now if x not in was), ""))
        return f"had {len(was)} lines and has {len(now)}; first: {first[:200]!r}"
    pairs = enumerate(zip(was, now, strict=True), start=1)
    return said_of((f"line {at}", x, y) for at, (x, y) in pairs if x != y)


COMPARED = {".csv": tables, ".json": numbers, ".nc": arrays}


def said_of(
    differences: Iterator[tuple[str, str, str]], all_same: str = "identical but for the map"
) -> str:
    """The first difference that is more than rounding, or that all are rounding, or none."""
    n, most = 0, 0.0
    for where, was, now in differences:
        apart = distance(was, now)
        if apart > RELATIVE:
            return f"DIFFERS: {where}: {was[:120]} became {now[:120]}"
        n, most = n + 1, max(most, apart)
    return f"{n} numbers differ by at most {most:.1g} of them" if n else all_same


def distance(was: str, now: str) -> float:
    """Of two texts that are alike but for numbers, the largest relative difference of these."""
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
    if number.sub("#", was) != number.sub("#", now):
        return np.inf
    pairs = zip(map(float, number.findall(was)), map(float, number.findall(now)), strict=True)
    return max((abs(x - y) / max(abs(x), abs(y), 1e-3) for x, y in pairs), default=0.0)


def at_revision(commit: str, parts: list[str]) -> Path:
    """The artefacts of an earlier commit, made where they are not kept."""
    kept = KEPT / commit
    missing = [part for part in parts if not (kept / part).exists()]
    if missing:
        with worktree(commit) as root:
            made(root, kept, missing)
    return kept


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of that commit beside what is kept of it."""
    root = KEPT / f"{commit}.tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--force", "--detach", str(root), commit], check=True,
                   capture_output=True)  # fmt: skip
    try:
        yield root
    finally:
        subprocess.run([*git, "remove", "--force", str(root)], check=True)


def made(root: Path, out: Path, parts: list[str]) -> None:
    """These parts of one checkout, two at a time; a part that fails leaves nothing."""
    out.mkdir(parents=True, exist_ok=True)

    def one(part: str) -> None:
        aside = out / f".{part}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        make(root, aside, part)
        shutil.rmtree(out / part, ignore_errors=True)
        aside.rename(out / part)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("revision", metavar="REV")
    parser.add_argument("--map", default=str(Path(__file__).with_suffix(".toml")))
    parser.add_argument("--only", default=",".join((*STUDIES, "collected")))
    options = parser.parse_args()
    parts = options.only.split(",")
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", f"{options.revision}^{{commit}}"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    mapped = tomllib.loads(Path(options.map).read_text()) if Path(options.map).exists() else {}
    renames = {"files": {}, "columns": {}, "words": {}, "inside": {}} | mapped
    old, new = at_revision(commit, parts), KEPT / "tree"
    made(ROOT, new, parts)
    n_same, changed = 0, 0
    for part in parts:
        for name, said in compared(old / part, new / part, renames):
            n_same += said == ""
            changed += said.startswith(("DIFFERS", "had", "is only", "columns", "variables")) or (
                " ids are " in said
            )
            if said:
                print(f"{part}: {name}: {said}")
    print(f"{n_same} files are byte-identical, {changed} differ by more than renames and rounding")
    return int(changed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_here(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        sys.exit(main())
