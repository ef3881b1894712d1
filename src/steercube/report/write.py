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

from steercube.netcdf import is_running
from steercube.report.printed import printed_tables
from steercube.schema import read_json

NUMBER = "%.10g"
DPI = 150
AS_SVG = ("layer_curves",)
KEYS = {
    "about_concepts": ["concept"],
    "counts": ["statistic"],
    "effects": ["model", "concept"],
    "models": ["model", "estimand", "concepts"],
    "concepts": ["concept", "estimand", "models", "statistic"],
    "depth": ["group"],
    "agreement": ["concept", "model", "statistic"],
    "readings": ["concept", "model", "statistic", "reading", "read_as", "published_as", "form"],
    "sensitivity": ["headline", "without", "left_out"],
    "claims": ["id"],
    "training_effect": ["outcome", "method", "takes_as_random", "adjusted"],
    "scale_trends": ["outcome", "size", "concept", "method"],
    "variance_components": ["outcome", "method", "component"],
    "concordance": ["estimand", "statistic", "model", "model_other"],
    "leave_one_out": ["outcome", "adjusted", "without", "left_out"],
    "multiverse_summary": ["statistic"],
    "model_deviations": ["model"],
    "difficulty": ["concept", "statistic"],
    "extraction": ["property", "statistic"],
    "predictive_checks": ["outcome", "statistic"],
    "design": ["outcome", "effect_is", "kind", "adjusted"],
    "conclusions": ["id"],
    "multiplicity": ["family"],
}
"""Columns that name a row of each table whose numbers a text may cite."""

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
) -> None:
    """Write every output of one study; `inputs` are names with their SHA-256.

    The manifest goes last: until then an earlier one tells that its outputs are others.
    """
    folder = Path(folder).resolve()
    with _aside(folder) as made:
        write_tables(made / "tables", tables)
        (made / "numbers.json").write_text(_json(numbers(tables)), encoding="utf-8")
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
    """Tables and figures of an earlier run; what else lies there is somebody's own."""
    try:
        listed = read_json(folder / "manifest.json")["outputs"]
        return {name for name in listed if OF_A_RUN.fullmatch(name)}
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return set()


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`; what a killed run left there is removed."""
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


OF_A_CALIBRATION = ("cube_sha256", "seed", "confidence_level")
"""Attributes of the cells that a calibration simulates the shape of."""

CALIBRATION_FILES = (
    "manifest.json",
    *("coverage.csv", "recovery.csv", "sbc.csv", "operating.csv"),
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
    """The files that `write_calibration` writes, and no other that lies beside them."""
    for name in CALIBRATION_FILES:
        (folder / name).unlink(missing_ok=True)


def write_calibration(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    *,
    made_from: Mapping[str, Any],
) -> None:
    """The tables of a calibration, its figures, and which cells it is of, each written whole."""
    with _aside(folder) as made:
        (made / "manifest.json").write_text(_json(dict(made_from)), encoding="utf-8")
        for name, table in tables.items():
            table.to_csv(made / f"{name}.csv", index=False, float_format=NUMBER)
        for name, figure in figures.items():
            figure.savefig(made / f"{name}.png", dpi=DPI, metadata={"Software": None})
        folder.mkdir(exist_ok=True)
        for name in _files(made):
            (made / name).replace(folder / name)


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Each table as CSV, and those that a post prints as Markdown too."""
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format=NUMBER)
    for name, text in printed_tables(tables).items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Each figure as PNG, those that a page looks into as SVG too, the same from run to run."""
    folder.mkdir(parents=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
        if name in AS_SVG:
            with mpl.rc_context({"svg.hashsalt": name}):
                metadata = {"Date": None, "Creator": None}
                figure.savefig(folder / f"{name}.svg", metadata=metadata)


def numbers(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """Every number of the tables but the layers' by id: value, interval, n, and its table."""
    found: dict[str, dict[str, Any]] = {}
    for name, keys in KEYS.items():
        table = tables.get(name, pd.DataFrame())
        for row in table.to_dict("records") if set(keys) <= set(table) else []:
            labels = [row[key] for key in keys if not pd.isna(row[key]) and row[key] != ""]
            stem = "/".join([name, *map(str, labels)])
            for id, number in _numbers_of_row(stem, name, row).items():
                # Designs that differ in items or models alone share an id; the first is the own.
                found.setdefault(id, number)
    return found


def _numbers_of_row(stem: str, table: str, row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if table == "effects":
        named = {
            f"{stem}/{column.removesuffix('_low')}": column.removesuffix("_low")
            for column in row
            if column.endswith("_low")
        }
        return {
            number: _number(table, row, value, f"{value}_low", f"{value}_high", over="items")
            for number, value in named.items()
        }
    low, high = ENDS.get(table, ("low", "high"))
    over = row.get("interval_over") or row.get("takes_as_random") or ""
    number = _number(table, row, _value_of(table, row), low, high, over=over)
    number |= {name: _plain(row[name]) for name in EXTRA if name in row}
    return {stem: number | {name: row[name] for name in TEXTS if _said(row.get(name))}}


def _value_of(table: str, row: Mapping[str, Any]) -> str:
    """The column that is the row's number."""
    if table == "design":
        return "n_rl" if row.get("kind") == "needed" else "power"
    return VALUES.get(table, "estimate" if "estimate" in row else "value")


def _said(value: Any) -> bool:
    return isinstance(value, str) and value != ""


VALUES = {"claims": "recomputed", "predictive_checks": "found", "about_concepts": "n_items"}
ENDS = {"predictive_checks": ("posterior_low", "posterior_high")}
EXTRA = (
    *(
        "corrected",
        "balanced",
        "p_value",
        "p_holm",
        "least_p",
        "expected_under_null",
        "smallest",
        "largest",
    ),
    *("probability_negative", "probability_negligible", "bayes_factor", "share", "mc_error"),
    *("gain", "gain_standard_error", "effect", "type_s", "type_m", "n_valid_items"),
    *("level", "uncorrected"),
)
"""What else a text may say of a number, where its table has it."""
TEXTS = ("published", "verdict", "sentence", "statement", "also", "units", "agrees", "reason")


def _number(
    table: str, row: Mapping[str, Any], value: str, low: str, high: str, *, over: str
) -> dict[str, Any]:
    n = next((row[name] for name in ("n", "n_models") if name in row), None)
    return {
        "value": _plain(row.get(value)),
        "low": _plain(row.get(low)),
        "high": _plain(row.get(high)),
        "interval_over": over,
        "n": _plain(n),
        "table": f"tables/{table}.csv",
    }


def _plain(value: Any) -> float | int | None:
    """A number as JSON holds it, to the digits of the tables; None for NaN."""
    if value is None or value is pd.NA or not np.isfinite(value):
        return None
    number = float(NUMBER % value)
    return int(number) if isinstance(value, (int, np.integer)) else number
