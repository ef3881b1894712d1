"""Repeat the whole analysis from the committed files and compare the results.

Tables and posts must be the same, entry by entry. Only a sampler's results may differ, on another
processor: its numbers within their Monte Carlo error, and the sentences that print them.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steercube.analyze import analyze, studies
from steercube.report.paper import write_papers
from steercube.report.post import read_table

Report = Callable[[str], None]

MC_ERRORS = {"value": 4 * np.sqrt(2), "low": 12 * np.sqrt(2), "high": 12 * np.sqrt(2)}
"""Largest difference of two runs due to sampling, in Monte Carlo errors of the mean: four standard
errors of a difference; the ends of a 95% interval vary nearly three times as much."""
RELATIVE = 1e-6
"""Largest relative difference of any other number, due to another processor's rounding."""
TEMPLATE_FILES = ("*.toml", "*.bib", "*.j2")
"""Ledgers, and the post's assets that a user's folder may override."""


def reproduce(
    data: str | Path, paper: str | Path, *, study: str | None = None, report: Report = print
) -> None:
    """Analyze and write the posts in an empty folder, and report every difference.

    Raises ValueError if anything differs, FileNotFoundError if there is nothing to compare.
    """
    data, paper = Path(data), Path(paper)
    names = [n for n in studies(data) if (paper / n / "manifest.json").is_file()]
    names = [n for n in names if study in (None, n)]
    if not names:
        raise FileNotFoundError(
            f"{paper} ({paper.resolve()}) holds no results of a study in {data} "
            f"({data.resolve()}): name the folders with --paper and --data"
        )
    with tempfile.TemporaryDirectory() as empty:
        remade = Path(empty)
        _copy_inputs(names, data, paper, remade)
        analyze(remade / "data", remade / "paper", report=report)
        write_papers(remade / "paper", report=report)
        differences = [
            f"{name}: {line}"
            for name in names
            for line in compare(paper / name, remade / "paper" / name)
        ]
    for line in differences:
        report(line)
    if differences:
        raise ValueError(f"{len(differences)} difference(s) from what was committed; see above")
    report(f"reproduced: {', '.join(names)}")


def _copy_inputs(names: list[str], data: Path, paper: Path, remade: Path) -> None:
    (remade / "data").mkdir()
    for name in names:
        for file in (data / f"{name}.nc", data / f"{name}.cells.nc"):
            if file.is_file():
                shutil.copy(file, remade / "data")
        if (paper / name / "calibration").is_dir():
            # The post cites it, but simulating takes half an hour and has its own command.
            shutil.copytree(paper / name / "calibration", remade / "paper" / name / "calibration")
    if (paper / "page").is_dir():
        shutil.copytree(paper / "page", remade / "paper" / "page")
    for pattern in TEMPLATE_FILES:
        for file in paper.glob(pattern):
            shutil.copy(file, remade / "paper")


def compare(committed: Path, remade: Path) -> Iterator[str]:
    """A line for each difference between two result folders of one study."""
    numbers = [json.loads((f / "numbers.json").read_text("utf-8")) for f in (committed, remade)]
    yield from compare_numbers(*numbers)
    tables = [{p.name for p in (f / "tables").glob("*.csv")} for f in (committed, remade)]
    yield from (f"tables/{name} is in one of them only" for name in sorted(tables[0] ^ tables[1]))
    for name in sorted(tables[0] & tables[1]):
        one, other = (read_table(f / "tables" / name) for f in (committed, remade))
        yield from (f"tables/{name} {line}" for line in compare_tables(one, other))
    if not any((f / "post.md").is_file() for f in (committed, remade)):
        return
    posts = [(f / "post.md").read_text("utf-8").splitlines() for f in (committed, remade)]
    if posts[0] != posts[1] and len(posts[0]) != len(posts[1]):
        yield "post.md has another number of lines"
    for at, (one, other) in enumerate(zip(*posts, strict=False), start=1):
        if one != other and "NUTS" not in one:
            yield f"post.md line {at}: {one!r} became {other!r}"


Numbers = Mapping[str, Mapping[str, Any]]


def compare_numbers(committed: Numbers, remade: Numbers) -> Iterator[str]:
    """A line for each number that differs beyond Monte Carlo error, or is in only one of them."""
    for id in sorted(set(committed) ^ set(remade)):
        yield f"{id} is in one of them only"
    for id in committed.keys() & remade.keys():
        one, other = committed[id], remade[id]
        for name in ("value", "low", "high", "p_value"):
            a, b = one.get(name), other.get(name)
            allowed = MC_ERRORS.get(name, 0.0) * (one.get("mc_error") or 0.0)
            if not _alike(a, b, allowed):
                yield f"{id} {name}: {a} became {b} (allowed: {allowed:.2g})"


def _alike(a: float | None, b: float | None, allowed: float) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= max(allowed, RELATIVE * max(abs(a), abs(b)))


def compare_tables(committed: pd.DataFrame, remade: pd.DataFrame) -> Iterator[str]:
    """Entries that differ, except in rows with a Monte Carlo error (see `compare_numbers`)."""
    if list(committed.columns) != list(remade.columns) or len(committed) != len(remade):
        yield f"was {committed.shape} and is {remade.shape}"
        return
    kept = committed["mc_error"].isna() if "mc_error" in committed else slice(None)
    one, other = committed[kept], remade[kept]
    for name in one:
        a, b = one[name], other[name]
        if pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b):
            same = np.isclose(a.astype(float), b.astype(float), rtol=RELATIVE, atol=1e-12,
                              equal_nan=True)  # fmt: skip
        else:
            same = (a.astype(str) == b.astype(str)).to_numpy()
        for row in np.flatnonzero(~same)[:5]:
            yield f"row {one.index[row]}, {name}: {a.iloc[row]} became {b.iloc[row]}"
