"""A study's folder: tables as CSV and Markdown, every number by id, figures, and a manifest.

Everything is computed before a byte is written, and each file is renamed into place, so a run that
fails leaves the earlier results as they were. Numbers are written to ten significant digits:
more than the data hold, few enough that another processor writes the same bytes.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

NUMBER = "%.10g"
DPI = 150
KEYS = {
    "effects": ["model", "concept"],
    "models": ["model", "estimand", "concepts"],
    "concepts": ["concept", "estimand", "models", "statistic"],
    "depth": ["group"],
    "agreement": ["concept", "model", "statistic"],
    "sensitivity": ["headline", "without", "left_out"],
    "claims": ["id"],
    "training_effect": ["outcome", "method", "takes_as_random", "adjusted"],
    "scale_trends": ["outcome", "size", "concept", "method"],
    "variance_components": ["outcome", "method", "component"],
    "concordance": ["estimand", "statistic", "model", "model_other"],
    "leave_one_out": ["outcome", "adjusted", "without", "left_out"],
    "multiverse_summary": ["statistic"],
    "conclusions": ["id"],
}
"""Columns that name a row of each table whose numbers a text may cite."""

PACKAGES = ("steercube", "numpy", "scipy", "xarray", "pandas", "matplotlib")


def write_study(
    folder: str | Path,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
) -> None:
    """Write every output of one study; `inputs` are names with their SHA-256."""
    folder = Path(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        made = Path(aside)
        write_tables(made / "tables", tables)
        (made / "numbers.json").write_text(_json(numbers(tables)))
        write_figures(made / "figures", figures)
        outputs = {name: _sha256(made / name) for name in _files(made)}
        manifest = {
            "inputs": dict(sorted(inputs.items())),
            "outputs": outputs,
            "settings": dict(settings),
            "versions": {name: version(name) for name in PACKAGES}
            | {"python": ".".join(platform.python_version_tuple()[:2])},
        }
        (made / "manifest.json").write_text(_json(manifest))
        for name in ("tables", "figures"):
            _forget_strays(folder / name, made / name)
        for name in _files(made):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).replace(folder / name)


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _forget_strays(kept: Path, made: Path) -> None:
    """Remove outputs of an earlier run that this one does not make."""
    if kept.is_dir():
        for name in set(_files(kept)) - set(_files(made)):
            (kept / name).unlink()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_calibration(folder: Path, tables: Mapping[str, pd.DataFrame], figure: Figure) -> None:
    """The tables of a calibration and its figure, each written whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        made = Path(aside) / "made"
        made.mkdir()
        for name, table in tables.items():
            table.to_csv(made / f"{name}.csv", index=False, float_format=NUMBER)
        figure.savefig(made / "calibration.png", dpi=DPI, metadata={"Software": None})
        folder.mkdir(exist_ok=True)
        for name in _files(made):
            (made / name).replace(folder / name)


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Each table as CSV, and those that a post prints as Markdown too."""
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format=NUMBER)
    for name, text in markdown_tables(tables).items():
        (folder / f"{name}.md").write_text(text)


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Each figure as PNG, without the metadata that would change from run to run."""
    folder.mkdir(parents=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})


def numbers(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """Every number of the tables but the layers' by id: value, interval, n, and its table."""
    found: dict[str, dict[str, Any]] = {}
    for name, keys in KEYS.items():
        table = tables.get(name, pd.DataFrame())
        for row in table.to_dict("records") if set(keys) <= set(table) else []:
            stem = "/".join([name, *(str(row[key]) for key in keys if row[key] != "")])
            found |= _numbers_of_row(stem, name, row)
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
    value = {"claims": "recomputed"}.get(table, "estimate" if "estimate" in row else "value")
    over = row.get("interval_over") or row.get("takes_as_random") or ""
    number = _number(table, row, value, "low", "high", over=over)
    found = number | {name: _plain(row[name]) for name in EXTRA if name in row}
    return {stem: found | ({"agrees": row["agrees"]} if row.get("agrees") else {})}


EXTRA = (
    *("corrected", "p_value", "probability_negative", "probability_negligible", "bayes_factor"),
    *("share", "gain", "gain_standard_error"),
)
"""What else a text may say of a number, where its table has it."""


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


def markdown_tables(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """The tables of a post, rounded: models, concepts, depth, agreement and the claims."""
    models, concepts = tables["models"], tables["concepts"]
    every = models[models["concepts"] == "every concept it ran"]
    means = concepts[
        (concepts["statistic"] == "mean") & (concepts["models"] == "every model that ran it")
    ]
    of_training = dict(zip(every["model"], every["training"], strict=True))
    by_model = _pivot(every, "model")
    by_model.insert(0, "training", [of_training[model] for model in by_model.index])
    texts = {
        "models": _markdown(by_model.reset_index()),
        "concepts": _markdown(_pivot(means, "concept").reset_index()),
        "depth": _markdown(_with_interval(tables["depth"], "best depth", ["group"])),
    }
    if len(tables["agreement"]):
        pooled = tables["agreement"][tables["agreement"]["model"] == "every model"]
        texts["agreement"] = _markdown(
            _with_interval(pooled, "value [interval]", ["concept", "statistic"])
        )
    if "claims" in tables:
        columns = ["id", "claim", "published", "recomputed_as_printed", "verdict", "reason"]
        renamed = tables["claims"][columns].rename(columns={"recomputed_as_printed": "recomputed"})
        texts["claims"] = _markdown(renamed)
    texts["conclusions"] = _markdown(tables["conclusions"][["id", "verdict", "sentence"]])
    return texts


def _pivot(table: pd.DataFrame, index: str) -> pd.DataFrame:
    shown = table.assign(shown=[_interval(row) for row in table.to_dict("records")])
    order = list(dict.fromkeys(table[index]))
    columns = list(dict.fromkeys(table["estimand"]))
    wide = shown.pivot_table(index=index, columns="estimand", values="shown", aggfunc="first")
    return wide.loc[order, columns].rename_axis(columns=None)


def _with_interval(table: pd.DataFrame, name: str, labels: list[str]) -> pd.DataFrame:
    shown = pd.Series([_interval(row) for row in table.to_dict("records")], index=table.index)
    over = table["interval_over"].rename("over")
    return pd.concat([table[labels], shown.rename(name), over], axis="columns")


def _interval(row: Mapping[str, Any]) -> str:
    if not np.isfinite(row["value"]):
        return "–"
    if not np.isfinite(row["low"]):
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _markdown(table: pd.DataFrame) -> str:
    header = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + " --- |" * table.shape[1]
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in table.to_numpy()]
    return "\n".join([header, rule, *rows]) + "\n"
