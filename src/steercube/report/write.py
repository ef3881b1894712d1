"""A study's folder: tables as CSV and Markdown, every number by id, figures, and a manifest.

Everything is computed before a byte is written, and each file is renamed into place, so a run that
fails leaves the earlier results as they were. Numbers are written to ten significant digits:
more than the data hold, few enough that another processor writes nearly all of them alike.
"""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from steercube.analysis.conclusions.tables import TABLES, Table
from steercube.analysis.per_cell.estimands import UNITS
from steercube.contrast import Contrast
from steercube.netcdf import is_running
from steercube.report.printed import printed_tables
from steercube.schema import read_json

NUMBER = "%.10g"
DPI = 150
AS_SVG = re.compile(r"layer_curves(_\d+)?")
PACKAGES = (
    *("steercube", "numpy", "scipy", "xarray", "pandas", "matplotlib"),
    *("statsmodels", "pymc", "arviz", "pingouin"),
)


def write_study(
    folder: str | Path,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    contrast: Contrast | None = None,
) -> None:
    """Write every output of one study; `inputs` are names with their SHA-256.

    The manifest goes last: until then an earlier one tells that its outputs are others.
    """
    folder = Path(folder).resolve()
    with _aside(folder) as made:
        write_tables(made / "tables", tables, contrast, settings=settings)
        (made / "numbers.json").write_text(
            _json(numbers(tables, str(settings.get("units", "nat")))), encoding="utf-8"
        )
        write_figures(made / "figures", figures)
        outputs = {name: _sha256(made / name) for name in _files(made)}
        manifest = {
            "inputs": dict(sorted(inputs.items())),
            "outputs": outputs,
            "settings": dict(settings),
            "versions": {name: version(name) for name in PACKAGES if find_spec(name)}
            | {"python": ".".join(platform.python_version_tuple()[:2])},
        }
        (made / "manifest.json").write_text(_json(manifest), encoding="utf-8")
        earlier = _earlier_outputs(folder)
        for name in [*outputs, "manifest.json"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(made / name, folder / name)
        for name in earlier - set(outputs):
            (folder / name).unlink(missing_ok=True)


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


OF_A_RUN = re.compile(r"(tables|figures)/[^/\\]+\.\w+")


def _earlier_outputs(folder: Path) -> set[str]:
    """Tables and figures of an earlier run; any other file in the folder is the user's own."""
    try:
        listed = read_json(folder / "manifest.json")["outputs"]
        return {name for name in listed if OF_A_RUN.fullmatch(name)}
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return set()


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`; those that killed runs left behind are removed."""
    prefix = f".{folder.name}."
    made = folder.parent / f"{prefix}{os.getpid()}.part"
    for left in folder.parent.glob(f"{escape(prefix)}*.part"):
        # A container that is started again gives out the same process ids.
        if left == made or not is_running(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


OF_A_CALIBRATION = ("samples_sha256", "seed", "confidence_level", "contrast", "holding")
"""Attributes of the cells and the contrast that a calibration simulates the shape of."""

CALIBRATION_FILES = (
    "manifest.json",
    *("coverage.csv", "recovery.csv", "sbc.csv", "operating.csv"),
    *("grades.csv", "answers.csv"),
    *("calibration.png", "operating.png"),
)


def is_calibration_of(folder: Path, attrs: Mapping[str, Any]) -> bool:
    """Whether the calibration in `folder` is of cells with these attributes."""
    try:
        made_from = read_json(folder / "manifest.json")
        return all(made_from[name] == attrs[name] for name in OF_A_CALIBRATION)
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return False


def remove_calibration(folder: Path) -> None:
    """Delete the files that `write_calibration` writes, and no others beside them."""
    for name in CALIBRATION_FILES:
        (folder / name).unlink(missing_ok=True)


def write_calibration(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    *,
    made_from: Mapping[str, Any],
) -> None:
    """Write a calibration's tables and figures and the cells it is of, each file whole."""
    with _aside(folder) as made:
        (made / "manifest.json").write_text(_json(dict(made_from)), encoding="utf-8")
        for name, table in tables.items():
            table.to_csv(made / f"{name}.csv", index=False, float_format=NUMBER)
        for name, figure in figures.items():
            figure.savefig(made / f"{name}.png", dpi=DPI, metadata={"Software": None})
        folder.mkdir(exist_ok=True)
        for name in _files(made):
            (made / name).replace(folder / name)


def write_tables(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    contrast: Contrast | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write each table as CSV, and those that a post prints as Markdown too."""
    said = settings or {}
    low = str(said.get("compared", "")).partition(" minus ")[2] or "-1"
    units = str(said.get("units", "nat"))
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format=NUMBER)
    for name, text in printed_tables(tables, contrast, units=units, low=low).items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write each figure as PNG, and as SVG if the page uses its parts; the same bytes every run."""
    folder.mkdir(parents=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
        if AS_SVG.fullmatch(name):
            with mpl.rc_context({"svg.hashsalt": name}):
                metadata = {"Date": None, "Creator": None}
                figure.savefig(folder / f"{name}.svg", metadata=metadata)


def numbers(tables: Mapping[str, pd.DataFrame], units: str = "nat") -> dict[str, dict[str, Any]]:
    """Every number that a text may cite, by id: value, interval, n, table, and what else its row
    holds.

    An id is the table's name and the labels of its key, those that are empty left out. `units` are
    those of the measure that the tables are about.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in TABLES:
        table = tables.get(entry.name, pd.DataFrame())
        for row in table.to_dict("records") if entry.key and set(entry.key) <= set(table) else []:
            labels = [row[key] for key in entry.key if not pd.isna(row[key]) and row[key] != ""]
            stem = "/".join([entry.name, *map(str, labels)])
            for id, number in _numbers_of_row(stem, entry, row).items():
                # Designs that differ in items or models alone share an id; the first is the own.
                found.setdefault(id, number)
    for number in found.values() if units != "nat" else ():
        number |= {"units": number.get("units", "").replace("nat", units)}
    return found


def _numbers_of_row(stem: str, entry: Table, row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if entry.every_interval:
        names = [column.removesuffix("_low") for column in row if column.endswith("_low")]
        return {
            f"{stem}/{name}": _number(entry.name, row, name, f"{name}_low", f"{name}_high")
            | {"interval_over": "items", "units": UNITS.get(name, "")}
            for name in names
        }
    value = entry.value if isinstance(entry.value, str) else entry.value(row)
    number = _number(entry.name, row, value, entry.low, entry.high)
    number |= {"interval_over": row.get("interval_over") or row.get("random_effects") or ""}
    number |= {"units": unit} if (unit := entry.unit_of(row)) else {}
    taken = {*entry.key, value, entry.low, entry.high, "n", "n_models", *number}
    more = {name: _said(row[name]) for name in row if name not in taken}
    return {stem: number | {name: said for name, said in more.items() if said not in (None, "")}}


def _number(table: str, row: Mapping[str, Any], value: str, low: str, high: str) -> dict[str, Any]:
    n = next((row[name] for name in ("n", "n_models") if name in row), None)
    return {
        "value": plain_number(row.get(value)),
        "low": plain_number(row.get(low)),
        "high": plain_number(row.get(high)),
        "n": plain_number(n),
        "table": f"tables/{table}.csv",
    }


def _said(value: Any) -> Any:
    """The content of a table's cell as JSON; None for a missing number."""
    if isinstance(value, str | bool):
        return value
    return plain_number(value)


def plain_number(value: Any) -> float | int | None:
    """A number as JSON holds it, to the digits of the tables; None for NaN."""
    if value is None or value is pd.NA or not np.isfinite(value):
        return None
    number = float(NUMBER % value)
    return int(number) if isinstance(value, (int, np.integer)) else number
