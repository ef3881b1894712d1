"""A measure from a table with a row for each value: a judge's score, whether an answer was right.

The table is CSV or JSONL. Its columns are `model`, `concept`, `item`, `strength` and `value`, and
where they apply `layer`, `direction` (empty for the concept's own vector), `repeat` and `letter`.
An unsteered row may leave `layer` and `direction` empty: nothing was added, so it stands for all
that have no such row of their own. A family of directions may be without layers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube import __version__, netcdf
from steercube.contract import (
    CONTRACT,
    GIVEN_ATTRIBUTES,
    NAMES_IN_A_FILE,
    UNKNOWN,
    UNSTEERED_STRENGTH,
    Item,
    Model,
    family_of,
)
from steercube.cube import Cube, check_cube, grid_of
from steercube.labels import facts_of, shared_labels
from steercube.measures import Measure, record_violations
from steercube.schema import name_violations, raise_if_any
from steercube.words import did_you_mean

REQUIRED = ("model", "concept", "item", "strength", "value")
OPTIONAL = ("layer", "direction", "repeat", "letter")
TEXTS = ("model", "concept", "item", "direction", "letter")
"""Columns of labels."""
NUMBERS = ("strength", "value", "layer")
MISSING = ("", "NA", "nan", "NaN")
"""How a number that is missing is written."""
PAIR = ["model", "concept"]
OWN = "the concept's own vector"
"""A direction that says so; where a table has it, a concept's name is one vector among others."""


def read_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a table, CSV or JSONL (by its suffix), without those that have no value.

    Raises FileNotFoundError, and ValueError that lists missing and unknown columns, text where
    numbers belong, and empty labels.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    text = dict.fromkeys(TEXTS, str)
    # An item may be called NA; only nothing at all is missing.
    numbers = dict.fromkeys(("value", "layer"), MISSING)
    missing = dict.fromkeys((*REQUIRED, *OPTIONAL), ("",)) | numbers
    try:
        rows = (
            pd.read_json(path, lines=True, dtype=text)
            if Path(path).suffix in (".jsonl", ".ndjson")
            else pd.read_csv(path, dtype=text, keep_default_na=False, na_values=missing)
        )
    except ValueError as error:
        raise ValueError(f"{path}: is not a table ({error})") from error
    return checked_rows(rows, what=str(path))


def checked_rows(rows: pd.DataFrame, *, what: str) -> pd.DataFrame:
    """The rows that have a value, checked as `read_rows` says; `what` names the table."""
    if repeated := sorted({str(name) for name in rows.columns[rows.columns.duplicated()]}):
        raise ValueError(f"{what}: has the column(s) {', '.join(repeated)} more than once")
    # Categories, numbers that may be missing, and the like become plain text and plain numbers.
    rows = rows.assign(**{name: _texts(rows[name]) for name in TEXTS if name in rows})
    rows = rows.assign(**{name: _numbers(rows[name]) for name in NUMBERS if name in rows})
    known, there = (*REQUIRED, *OPTIONAL), list(map(str, rows))
    problems = [
        f"has no column {name!r}; it has {', '.join(there)}{did_you_mean(name, there)}"
        for name in REQUIRED
        if name not in rows
    ]
    problems += [
        f"has the unknown column {str(name)!r}; it may have {', '.join(known)}"
        for name in rows
        if name not in known
    ]
    for name in NUMBERS:
        if name in rows and not pd.api.types.is_numeric_dtype(rows[name]):
            problems.append(f"column {name!r} holds text, where numbers belong")
    for name in ("model", "concept", "item", "strength"):
        if name in rows and rows[name].isna().any():
            first = int(np.flatnonzero(rows[name].isna())[0]) + 1
            problems.append(f"column {name!r} is empty in row {first}")
    raise_if_any(problems, what=what)
    if not rows["value"].notna().any():
        raise ValueError(f"{what}: holds no value")
    return rows[rows["value"].notna()].reset_index(drop=True)


def _texts(column: pd.Series) -> pd.Series:
    return column.astype(object).map(str, na_action="ignore").where(column.notna(), np.nan)


def _numbers(column: pd.Series) -> pd.Series:
    """The column as float64, or as it is where it holds something else."""
    try:
        return pd.to_numeric(column.astype(object)).astype("float64")
    except (ValueError, TypeError):
        return column


def measure_cube(
    rows: pd.DataFrame,
    measure: Measure,
    *,
    beside: Cube | None = None,
    models: Mapping[str, Model] | None = None,
    source: str = "",
) -> Cube:
    """A cube that holds a measure from `rows`, beside all that the cube `beside` holds.

    The rows may only name models of `beside`, and items of its concepts; a concept that it lacks
    has the items of its rows. Without `beside`, models must be in `models`. Repeats of an item are
    averaged. Raises ValueError for unknown models or items, a record that cannot be used, a name
    that means something else or is taken, and several rows for the same labels.
    """
    problems = record_violations(measure) + _name_problems(measure.name, beside)
    selecting = [measure.name, *(beside.measures if beside is not None else ())]
    if measure.layer_by and measure.layer_by not in selecting:
        problems.append(
            f"its layer is selected by {measure.layer_by!r}, which is none of "
            f"{', '.join(selecting)}{did_you_mean(measure.layer_by, selecting)}"
        )
    raise_if_any(problems, what=f"the measure {measure.name}")
    facts = _facts(rows, models or {}) if beside is None else _with_new_concepts(rows, beside)
    table = _placed(rows, facts).dropna(subset="value").rename(columns={"value": measure.name})
    grids = {}
    for family, of_family in table.groupby("family"):
        path = "/".join(filter(None, [measure.name, str(family)]))
        columns = [c for c in of_family if c != "family" and of_family[c].notna().all()]
        columns = [c for c in columns if c != "direction" or family]
        whole = {"layer": "int64"} if "layer" in columns else {}
        grids[path] = grid_of(of_family[columns].astype(whole), measure, facts=facts)
    if beside is None:
        cube = Cube(grids, _attributes(source))
    else:
        line = f"{beside.attrs['history']}\nsteercube {__version__} add-measure {measure.name}"
        cube = beside.with_tables(grids).with_attrs({"history": line})
        cube.attrs.pop(netcdf.DIGEST, None)
    check_cube(cube, what=f"the cube with {measure.name}")
    return cube


def _name_problems(name: str, beside: Cube | None) -> list[str]:
    """Why a measure cannot have this name: it stands for something else in a cube, or is taken."""
    problems = name_violations("measure", [name])
    if name in NAMES_IN_A_FILE:
        problems.append(f"{name!r} has another meaning in a cube; call the measure otherwise")
    if beside is not None and name in beside.measures:
        problems.append(f"the cube has a measure {name!r} already; call this one otherwise")
    return problems


def _with_new_concepts(rows: pd.DataFrame, beside: Cube) -> xr.Dataset:
    """Facts of the cube, with the items of the concepts that only the table has."""
    facts = beside.labels
    known = list(map(str, facts["model"].values))
    raise_if_any(
        [
            f"the cube has no model {name!r}; it has {', '.join(known)}{did_you_mean(name, known)}"
            for name in dict.fromkeys(rows["model"])
            if name not in known
        ],
        what="the models of the table",
    )
    new = rows[~rows["concept"].isin(facts["concept"].values)]
    if not len(new):
        return facts
    whole, problems = shared_labels({"cube": facts, "table": facts_of([], _items(new))})
    raise_if_any(problems, what="the items of the table")
    return whole


def _facts(rows: pd.DataFrame, models: Mapping[str, Model]) -> xr.Dataset:
    """Facts of the models of the table, in the order of their size, and of its items."""
    names = list(dict.fromkeys(rows["model"]))
    unknown = [name for name in names if name not in models]
    raise_if_any(
        [f"model {name!r} has no entry{did_you_mean(name, models)}" for name in unknown],
        what="the list of models",
    )
    return facts_of(
        sorted((models[name] for name in names), key=lambda m: m.n_params), _items(rows)
    )


def _items(rows: pd.DataFrame) -> dict[str, list[Item]]:
    """The items of each concept of the table, in its order."""
    rows = rows.assign(letter=rows["letter"].fillna("") if "letter" in rows else "")
    two = rows.groupby(["concept", "item"])["letter"].nunique()
    raise_if_any(
        [
            f"concept {concept!r} has item {item!r} with two letters"
            for concept, item in two[two > 1].index
        ],
        what="the items of the table",
    )
    return {
        str(concept): [
            Item(str(item), str(letter))
            for item, letter in zip(of["item"], of["letter"], strict=True)
        ]
        for concept, of in rows.drop_duplicates(["concept", "item"]).groupby("concept", sort=False)
    }


def _placed(rows: pd.DataFrame, facts: xr.Dataset) -> pd.DataFrame:
    """The rows with the number (`sample`) of each item and the family of each direction.

    Repeats are averaged, and unsteered rows stand at every layer and direction of their pair.
    """
    ids = facts["item_id"].transpose("concept", "sample").to_series()
    numbers = {(concept, item): sample for (concept, sample), item in ids.items() if item}
    table = rows.drop(columns="letter", errors="ignore").assign(
        sample=[numbers.get(key, -1) for key in zip(rows["concept"], rows["item"], strict=True)]
    )
    lost = table[table["sample"] < 0]
    raise_if_any(
        [
            f"concept {concept!r} has no item {item!r}"
            for concept, item in dict.fromkeys(zip(lost["concept"], lost["item"], strict=True))
        ][:5],
        what="the items of the table",
    )
    table = _unsteered_for_every(table, "direction", PAIR)
    given = table["direction"] if "direction" in table else pd.Series("", table.index)
    own = given.isna() | given.isin(["", OWN])
    if not (given == OWN).any():
        own |= given == table["concept"]
    table["direction"] = given.mask(own, "")
    table = _unsteered_for_every(table, "layer", [*PAIR, "direction"])
    table["family"] = table["direction"].map(family_of)
    if "layer" in table:
        raise_if_any(_layer_problems(table.dropna(subset="value")), what="the layers of the table")
    if "repeat" in table:
        labels = [c for c in table if c not in ("item", "repeat", "value")]
        return table.groupby(labels, dropna=False, as_index=False)["value"].mean()
    return table.drop(columns="item")


def _layer_problems(table: pd.DataFrame) -> list[str]:
    """Lines on families of which only some rows have a layer, and on layers between blocks."""
    unplaced = table["layer"].isna().groupby(table["family"]).agg(["sum", "all"])
    some = int(unplaced["sum"][~unplaced["all"]].sum())
    problems = [f"{some} steered row(s) have no layer, though others have one"] if some else []
    between = table["layer"].dropna().loc[lambda layer: layer % 1 != 0].unique()
    return problems + [f"layer {layer:g} is not a whole number" for layer in sorted(between)]


def _unsteered_for_every(table: pd.DataFrame, column: str, of: list[str]) -> pd.DataFrame:
    """The table with each unsteered row that leaves `column` empty repeated for all its labels.

    The labels are those of rows alike in the columns `of`, except where the item has an unsteered
    row of its own. The row itself is kept if there are also steered rows without a label: rows of
    the concept's own vector have no direction.
    """
    if column not in table:
        return table
    empty = table[column].isna() | (table[column] == "")
    unsteered = empty & (table["strength"] == UNSTEERED_STRENGTH)
    places = pd.MultiIndex.from_frame(table[of].fillna(""))
    labels = table[~empty][[*of, column]].drop_duplicates()
    stays = places.isin(places[empty & ~unsteered]) | ~places.isin(places[~empty])
    repeated = table[unsteered].drop(columns=column).merge(labels, on=of)
    at = [*of, column, "sample"]
    given = table.loc[~empty & (table["strength"] == UNSTEERED_STRENGTH), at]
    repeated = repeated[
        ~pd.MultiIndex.from_frame(repeated[at]).isin(pd.MultiIndex.from_frame(given))
    ]
    return pd.concat([table[~unsteered | stays], repeated], ignore_index=True)


def _attributes(source: str) -> dict[str, Any]:
    """Attributes of a cube that is made from a table alone."""
    unknown = dict.fromkeys(GIVEN_ATTRIBUTES, UNKNOWN)
    return {
        **CONTRACT,
        **unknown,
        "title": "A measure from a table",
        "source": source or "a table",
        "history": f"steercube {__version__} add-measure",
        "inputs_sha256": "{}",
    }
