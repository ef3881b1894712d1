"""Tables as a post prints them: rounded, intervals beside their values, in Markdown."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from steercube.analysis.conclusions.tables import TABLES, Print, Table
from steercube.contrast import Contrast
from steercube.numerals import NONE, decimals, with_interval


def printed_tables(
    tables: Mapping[str, pd.DataFrame],
    contrast: Contrast | None = None,
    *,
    units: str = "nat",
    low: str = "-1",
) -> dict[str, str]:
    """The tables that a post prints, those that the study has rows for, by name.

    Headings name the `units` of the measure and the `low` one of its compared strengths.
    """
    made = {
        form.name or table.name: printed(tables[table.name], table, form, contrast)
        for table in TABLES
        if table.name in tables
        for form in table.printed
    }
    own = {"(nat)": f"({units})", "(sd at -1)": f"(sd at {low})"}
    return {
        name: markdown(rows.rename(columns=lambda heading: _reworded(str(heading), own)))
        for name, rows in made.items()
        if len(rows)
    }


def _reworded(text: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)
    return text


def printed(
    table: pd.DataFrame, entry: Table, form: Print, contrast: Contrast | None = None
) -> pd.DataFrame:
    """The table in one of its printed forms, every cell a text."""
    rows = form.rows(table)
    if not len(rows) or not form.labels:
        return rows
    labels = {name: heading for name, heading in form.labels.items() if name in rows}
    shown = rows[list(labels)].copy()
    value = entry.value if isinstance(entry.value, str) else "value"
    intervals = [with_interval(row, value) for row in rows.to_dict("records")] if (
        form.value or form.across
    ) else []  # fmt: skip
    if form.across:
        return _wide(shown, list(rows[form.across]), intervals).rename(columns=labels)
    if form.value:
        after = rows[form.suffix] if form.suffix else [""] * len(rows)
        shown[form.value] = [f"{text}{more}" for text, more in zip(intervals, after, strict=True)]
    if form.over:
        shown["over"] = rows["interval_over"]
    for name, heading in form.numbers.items():
        shown[heading] = [of if isinstance(of, str) else decimals(of) for of in rows[name]]
    words = {"minus": contrast.minus, "by": contrast.by} if contrast else {"minus": "", "by": ""}
    return shown.rename(columns=labels).rename(columns=lambda heading: heading.format(**words))


def _wide(labels: pd.DataFrame, columns: list[str], texts: list[str]) -> pd.DataFrame:
    """A row for each of the labels and a column for each of `columns`, as they come."""
    names = list(labels)
    long = labels.assign(column=columns, text=texts)
    wide = long.pivot(index=names, columns="column", values="text").fillna(NONE)
    order = pd.MultiIndex.from_frame(labels.drop_duplicates())
    rows = order if len(names) > 1 else order.get_level_values(0)
    return wide.loc[rows, list(dict.fromkeys(columns))].rename_axis(columns=None).reset_index()


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, its texts shown as they are."""
    header = "| " + " | ".join(map(plain, table.columns)) + " |"
    rule = "|" + " --- |" * table.shape[1]
    rows = ["| " + " | ".join(map(plain, row)) + " |" for row in table.fillna("").to_numpy()]
    return "\n".join([header, rule, *rows]) + "\n"


ACTIVE = re.compile(r"\](?=[(\[])|[|<$`*!\\]")
"""What begins a link, a picture, code, an equation or a cell."""
PRIVATE = re.compile("[\ue000-\uf8ff]")


def plain(value: Any) -> str:
    r"""A text of a cube as Markdown that shows it as it is, on one line.

    >>> print(plain("![x](y) a|b"))
    \![x\](y) a\|b
    """
    return ACTIVE.sub(r"\\\g<0>", " ".join(PRIVATE.sub("", str(value)).split()))
