"""A concept from rows: lists of dicts, DataFrames, or files of either.

A row is a question in one of two forms, the second that of the CAA and model-written datasets:

    {"question": "...", "A": "...", "B": "...", "matching": "A"}
    {"question": "... (A) ... (B) ...", "answer_matching_behavior": "(A)",
     "answer_not_matching_behavior": "(B)"}

In the first, `choices` may hold both: {"A": "...", "B": "..."}. `id` is optional. Rows of pairs and
items together need `split`, train or eval.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from steercube.concepts import (
    RESERVED,
    SPLITS,
    Concept,
    Line,
    biased,
    concept_of,
    each_once,
    field_problems,
    unusable,
)
from steercube.contract import SCORED_LETTERS
from steercube.schema import name_violations, raise_if_any, read_json, read_text
from steercube.words import did_you_mean

__all__ = ["concept"]

Rows: TypeAlias = str | Path | pd.DataFrame | Iterable[Mapping[str, Any]]
MATCHING, OTHER = "answer_matching_behavior", "answer_not_matching_behavior"
MOST = 8
"""Lines of a warning."""
COLUMNS = ("id", "split", "question", "choices", *SCORED_LETTERS, "matching", MATCHING, OTHER)


def concept(pairs: Rows, items: Rows | None = None, *, name: str = "") -> Concept:
    """A concept of training pairs, to extract its vector from, and items, to measure it with.

    Both are lists of dicts, DataFrames or files (.jsonl, .json, .csv) of two-choice questions. A
    row has these columns, and may have an `id`:

    - `question`, the answers `A` and `B` (or `choices` with both), and `matching`, the letter of
      the answer that shows the concept; or, as in the datasets of CAA,
    - `question`, which offers (A) and (B) itself, `answer_matching_behavior` and
      `answer_not_matching_behavior`.

    Without `items`, `pairs` holds both, and each row has a `split`, train or eval, as in the files
    of `data/concepts`. `name` is what the cube calls it (default: the file's name, or "concept").

    Raises ValueError that lists every row that cannot be scored. Warns of what would bias the
    answers: letters that are not balanced, lengths that give the answer away, repeated questions.

    >>> rows = [{"question": f"Question {i}?", "A": "yes", "B": "no", "matching": "AB"[i % 2]}
    ...         for i in range(8)]
    >>> concept(rows[:4], rows[4:], name="honesty").train[0].prompt
    'Question 0?\\n\\nChoices:\\n (A) yes\\n (B) no'
    """
    of_file = Path(pairs).stem if isinstance(pairs, str | Path) else "concept"
    name = name or of_file
    raise_if_any(name_violations("concept", [name], reserved=RESERVED), what="sc.concept")
    parts = {"": pairs} if items is None else dict(zip(SPLITS, (pairs, items), strict=True))
    lines: list[Line] = []
    problems: list[str] = []
    found: dict[str, list[str]] = {}
    for split, rows in parts.items():
        counted: dict[str, int] = {}
        what = {"": "questions", "train": "pairs", "eval": "items"}[split]
        read = list(_rows(rows, what))
        if not split and not any("split" in row for _, row in read):
            raise ValueError(
                "these rows have no split: give pairs and items separately, as sc.concept(pairs, "
                "items), or each row a split, train or eval"
            )
        if unknown := sorted({name for _, row in read for name in row} - set(COLUMNS)):
            problems += [f"{what}: has the unknown column {name!r}{did_you_mean(name, COLUMNS)}; "
                         f"it may have {', '.join(COLUMNS)}" for name in unknown]  # fmt: skip
        for where, row in read:
            entry, wrong = _entry({"split": split, **row} if split else row)
            if split and entry["split"] != split:
                wrong.append(f"its split is {entry['split']!r}, but it is given among the {split}")
            of_split = str(entry.get("split", ""))
            counted[of_split] = counted.get(of_split, 0) + 1
            entry.setdefault("id", f"{name}/{of_split}/{counted[of_split]:03d}")
            wrong = wrong or field_problems(_with_choices(entry))
            for problem in wrong:
                found.setdefault(problem, []).append(where)
            lines.append(Line(where, entry))
    problems += [_at(where, problem) for problem, where in found.items()]
    raise_if_any(problems or unusable(name, lines, {}), what=f"the concept {name!r}")
    doubtful = biased(name, lines)
    seen: dict[str, str] = {}
    for line in lines:
        if line.entry["question"] in seen:
            doubtful.append(f"{line.where} repeats the question of {seen[line.entry['question']]}")
        seen.setdefault(line.entry["question"], line.where)
    if len(doubtful) > MOST:
        doubtful[MOST:] = [f"and {len(doubtful) - MOST} more"]
    if doubtful:
        listed = "\n".join(f"  - {line}" for line in doubtful)
        warnings.warn(f"the concept {name!r} may be biased:\n{listed}", stacklevel=2)
    source = Path(pairs).name if isinstance(pairs, str | Path) else "in memory"
    return concept_of(name, lines, source=source)


def _at(where: list[str], problem: str) -> str:
    """A problem with the first few of the rows that have it."""
    more = f" and {len(where) - 2} more" if len(where) > 3 else ""
    return f"{'; '.join(where[:2] if more else where)}{more}: {problem}"


def _rows(rows: Rows, what: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each row, with where it is."""
    if isinstance(rows, str | Path):
        path = Path(rows)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file ({path.absolute()})")
        if path.suffix == ".csv":
            try:
                read: Any = pd.read_csv(path, dtype=str, keep_default_na=False)
            except ValueError as error:  # of pandas, or text in another encoding
                raise ValueError(f"{path}: is not a table in UTF-8 ({error})") from error
        elif path.suffix == ".json":
            read = read_json(path)
        elif path.suffix in (".jsonl", ".ndjson"):
            # Not splitlines: a text may hold other characters that break lines.
            lines = read_text(path).removesuffix("\n").split("\n")
            read = [_parsed(line, f"{path}:{at}") for at, line in enumerate(lines, start=1)]
        else:
            raise ValueError(f"{path}: is none of .jsonl, .json and .csv")
        rows, what = read, str(path)
    if isinstance(rows, pd.DataFrame):
        rows = rows.to_dict("records")
    found = []
    listed: Any = rows
    if isinstance(rows, Mapping):
        raise ValueError(f"{what}: is a single dict; give a list of them")
    for at, row in enumerate(listed, start=1):
        where = f"{what}, row {at}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: is {row!r}, not a dict with a question")
        found.append((where, {str(k): v for k, v in row.items() if not _is_missing(v)}))
    return found


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not JSON ({error})") from error


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value
    return bool(np.ndim(value) == 0 and pd.isna(value))


def _text(value: Any) -> str:
    """A label or an answer as text: a column of whole numbers with a gap holds 1.0 for 1."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _entry(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A row as an entry of a concept's file, and what is wrong with it."""
    problems = []
    entry = {key: row[key] for key in ("id", "split", "question", "choices", "matching")
             if key in row}  # fmt: skip
    if "id" in entry:
        entry["id"] = _text(entry["id"])
    answers = {letter: _text(row[letter]) for letter in SCORED_LETTERS if letter in row}
    forms = [form for form in ("choices", MATCHING) if form in row] + ["A and B"] * bool(answers)
    if len(forms) > 1 or (MATCHING in row and "matching" in row):
        problems.append(f"holds both {' and '.join([*forms, 'matching'][:2])}; give one of them")
    if answers:
        entry["choices"] = answers
    if isinstance(entry.get("matching"), str):
        entry["matching"] = entry["matching"].strip(" ()").upper()
    if MATCHING in row:
        letters = [str(row.get(column, "")).strip(" ()") for column in (MATCHING, OTHER)]
        entry["matching"] = letters[0]
        if sorted(letters) != sorted(SCORED_LETTERS):
            problems.append(f"{MATCHING} and {OTHER} are {letters}; they must be (A) and (B)")
    if "choices" not in entry and isinstance(entry.get("question"), str):
        offered = set(re.findall(r"\(([A-Z])\)", entry["question"]))
        if offered != set(SCORED_LETTERS):
            problems.append(
                f"its question offers {sorted(offered) or 'no choices'}; it must offer (A) and "
                "(B), and no more, or have the columns A and B"
            )
    return entry, problems


def _with_choices(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with choices, in place of those that a question offers in its own text."""
    own = re.findall(r"\(([AB])\)", str(entry.get("question", "")))
    if "choices" in entry or set(own) != set(SCORED_LETTERS):
        return dict(entry)
    return {**entry, "choices": dict(zip(SCORED_LETTERS, SCORED_LETTERS, strict=True))}
