"""Responses of a cube out to a judge, and the judge's scores back in as a measure.

The judge is whoever reads texts: a person, a program, another model. Each response has a key, a
hash of its labels, which says nothing to a reader and does not depend on the order of the table. A
score comes back with that key and with the text, or its SHA-256, that was scored.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from steercube.concepts import each_once
from steercube.contract import PLACE, RESPONSES, UNSTEERED, UNSTEERED_STRENGTH
from steercube.cube import Cube
from steercube.from_table import OWN, measure_cube
from steercube.measures import Measure
from steercube.netcdf import aside
from steercube.replacing import replacing
from steercube.schema import raise_if_any, read_text
from steercube.words import did_you_mean

__all__ = ["export_responses", "import_scores", "response_rows"]

LABELS = ["model", "concept", "item", "direction", "layer", "strength", "repeat"]
"""What a key is the hash of, in this order."""
TEXT = ["text", "text_sha256"]
BLIND = ["key", "item", *TEXT]
RECORDED = ["finished", "finite"]
"""What a cube may say of a response, but need not."""
KEY_DIGITS = 16
"""Hexadecimal digits of a key: a million responses share one with a probability of 3e-8."""
SHOWN, WIDTH = 3, 40
"""How many lines an error names, and how many characters of what stands there."""
Scores: TypeAlias = str | Path | pd.DataFrame | Iterable[Mapping[str, Any]]


def response_rows(cube: Cube) -> pd.DataFrame:
    """A row for each response of a cube, sorted by its labels.

    The columns are `key`, LABELS, `letter` (of the item's matching answer), `text`, `text_sha256`,
    and `finished` and `finite` where the cube has them. `direction` is empty for the concept's own
    vector; `layer` is None where one unsteered response serves all, or none was recorded, and
    `letter` where it is unknown. Raises ValueError for a cube without responses.
    """
    if RESPONSES not in cube or not cube[RESPONSES].sizes["response"]:
        raise ValueError(
            f"the cube holds no responses, only {', '.join(cube)}: there is no text to score. "
            "`steercube collect --outcomes logit,generation` keeps every text; scores of texts "
            "that are kept elsewhere come from a table (`steercube add-measure`)"
        )
    rows = cube[RESPONSES].to_dataframe().reset_index(drop=True)
    rows["item"] = _fact_of_items("item_id", rows, cube)
    rows["letter"] = _fact_of_items("letter", rows, cube)
    rows["text_sha256"] = rows["text"].map(_sha256)
    if "direction" not in rows:
        rows["direction"] = ""
    if "repeat" not in rows:
        # Numbered by their texts, as the order of the table is nothing to rely on.
        place = rows.sort_values("text_sha256").groupby([*PLACE, "direction"])
        rows["repeat"] = place.cumcount()
    rows["strength"] = rows["strength"].astype(float) + 0.0  # -0 is 0
    rows = rows.sort_values(LABELS, ignore_index=True)
    rows["layer"] = rows["layer"].astype(object).where(rows["layer"] != UNSTEERED, None)
    rows["key"] = [_sha256(json.dumps(of))[:KEY_DIGITS] for of in rows[LABELS].values.tolist()]
    return rows[["key", *LABELS, "letter", *TEXT, *(name for name in RECORDED if name in rows)]]


def _fact_of_items(name: str, rows: pd.DataFrame, cube: Cube) -> list[str | None]:
    """A fact of each row's item; None where it is not known."""
    if name not in cube.labels:
        return [None] * len(rows)
    known = cube.labels[name].transpose("concept", "sample").to_series().to_dict()
    return [known[at] or None for at in zip(rows["concept"], rows["sample"], strict=True)]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def export_responses(cube: Cube, path: str | Path, *, blind: bool = False) -> int:
    """Write every response of a cube to a JSONL file, for a judge, and return how many there are.

    Each line has the columns of `response_rows`, in their order. With `blind` it has `key`, `item`,
    `text` and `text_sha256` alone, and lines are in the order of their keys, which is as good as
    random: whoever reads them does not see what was steered, or how strongly.

    The file is plain ASCII, written whole or not at all, and the same whenever it is written.
    Raises ValueError for a cube without responses, for a path that is no .jsonl file in a folder
    that exists, and for a file there with anything else, such as scores.
    """
    path = Path(path)
    if path.suffix != ".jsonl" or not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"--out {path}: name a .jsonl file in a folder that exists")
    rows = response_rows(cube)
    if blind:
        rows = rows[BLIND].sort_values("key")
    lines = [json.dumps(row) for row in rows.to_dict("records")]
    content = ("\n".join(lines) + "\n").encode()
    if path.exists() and path.read_bytes() != content:
        raise_if_any(["it holds something else, such as scores"], what=replacing(path))
    with aside(path) as part:
        part.write_bytes(content)
    return len(lines)


def import_scores(
    cube: Cube,
    scores: Scores,
    measure: Measure,
    *,
    column: str = "value",
    report: Callable[[str], None] = print,
) -> Cube:
    """The cube with a measure whose values are scores of its responses.

    - `scores`: a JSONL file, a DataFrame or dicts, with `key`, `text_sha256` or `text` (or both),
      and the score, a number or nothing; more columns are ignored.
    - `measure`: its record, such as `steercube.measures.Measure("judge_score", kind="binary")`.
    - `column`: the one that holds the score.
    - `report` receives a line that counts the responses with and without a score.

    The score of an unsteered response that serves all layers and directions stands at each of them,
    and those of repeats are averaged. A response without a score leaves NaN; so does one whose
    logits were not finite, as that is no answer. Raises ValueError that lists the first lines with
    another text than the cube's, a key that is unknown or repeated, or no usable score, and as
    `steercube.from_table.measure_cube` does.
    """
    rows = response_rows(cube)
    what = str(scores) if isinstance(scores, str | Path) else "the scores"
    rows["value"] = rows["key"].map(_checked(_lines(scores), rows, measure, column, what))
    if "finite" in rows:
        rows["value"] = rows["value"].where(rows["finite"])
    n = int(rows["value"].notna().sum())
    if not n:
        raise ValueError(f"{what}: holds no score of a response in the column {column!r}")
    report(f"{n:,} of {len(rows):,} responses have a score, {len(rows) - n:,} have none")
    serves_all = (rows["strength"] == UNSTEERED_STRENGTH) & rows["layer"].isna()
    # Others are of one direction: where it is empty, the concept's own.
    own = (rows["direction"] == "") & ~serves_all
    rows["direction"] = rows["direction"].mask(own, OWN)
    rows["layer"] = rows["layer"].astype(float)
    return measure_cube(rows[[*LABELS, "value"]], measure, beside=cube)


def _lines(scores: Scores) -> list[Any]:
    """The lines of a file, each parsed or, if it is not JSON, as it is; or the rows in memory."""
    if isinstance(scores, pd.DataFrame):
        return scores.to_dict("records")
    if not isinstance(scores, str | Path):
        return list(scores)
    if not Path(scores).is_file():
        raise FileNotFoundError(f"{scores}: no such file")
    # Not splitlines: a text may hold other characters that break lines.
    return [_parsed(line) for line in read_text(scores).removesuffix("\n").split("\n")]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=each_once)
    except (ValueError, RecursionError):
        return line


def _checked(
    lines: list[Any], rows: pd.DataFrame, measure: Measure, column: str, what: str
) -> dict[str, float]:
    """The scores by their keys; NaN for no score. Raises ValueError that lists every fault."""
    texts = {key: tuple(of) for key, *of in rows[["key", *TEXT]].values.tolist()}
    found: dict[str, float] = {}
    faults: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        where = f"line {number}"
        fault = _fault(line, texts, found)
        if isinstance(line, Mapping) and "key" in line:
            where += f" ({str(line['key'])[:WIDTH]})"
        if not fault:
            found[line["key"]] = value = _number(line.get(column))
            fault = _value_fault(value, column, measure)
            where += f" has {repr(line.get(column))[:WIDTH]}"
        if fault:
            faults.setdefault(fault, []).append(where)
    problems = [
        f"{len(at)} line(s) {fault}: {', '.join(at[:SHOWN])}{', ...' * (len(at) > SHOWN)}"
        for fault, at in faults.items()
    ]
    there = {str(name): None for line in lines if isinstance(line, Mapping) for name in line}
    if column not in there:
        problems.append(
            f"no line has {column!r}, but {', '.join(there) or 'nothing'}"
            f"{did_you_mean(column, there)} (`--column` names the one that holds the score)"
        )
    raise_if_any(problems, what=what)
    return found


def _fault(line: Any, texts: Mapping[str, tuple[str, ...]], found: Mapping[str, float]) -> str:
    """Why a line cannot be matched to a response, or ""; `found` has the keys of earlier lines."""
    if not isinstance(line, Mapping):
        return "are not JSON objects"
    key = line.get("key")
    if not isinstance(key, str) or key not in texts:
        return (
            "have a 'key' that no response of the cube has, or none (keep the keys of `steercube "
            "responses export`, and import into the cube that they are of)"
        )
    if key in found:
        return "repeat the key of an earlier line (a response has one score)"
    given = {name: line[name] for name in TEXT if isinstance(line.get(name), str)}
    if not given:
        return "have neither 'text_sha256' nor 'text' (keep one, to show what was scored)"
    if any(given.get(name, of) != of for name, of in zip(TEXT, texts[key], strict=True)):
        return "have another text than the cube's response of that key (score the texts as written)"
    return ""


def _number(value: Any) -> float:
    """The score; NaN where there is none, infinite for what is no number."""
    if value is None or value is pd.NA:
        return np.nan
    try:
        return float(value) if isinstance(value, Real | np.bool_) else np.inf
    except OverflowError:
        return np.inf


def _value_fault(value: float, column: str, measure: Measure) -> str:
    """Why a score cannot be a value of the measure, or ""."""
    low, high = measure.bounds
    if np.isinf(value):
        return f"hold no number in {column!r} (write null where there is no score)"
    if value < low or value > high:
        return f"have a score outside [{low:g}, {high:g}], of a measure that is {measure.kind}"
    return ""
