"""Concepts from rows in memory and from other files than the project's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import ROOT

from steercube.concept_rows import concept
from steercube.concepts import read_concepts

COMMITTED = ROOT / "data" / "concepts" / "sycophancy.jsonl"


def rows(split: str, n: int = 4) -> list[dict[str, Any]]:
    return [
        {"question": f"{split} {i}?", "A": "yes", "B": "nay", "matching": "AB"[i % 2]}
        for i in range(n)
    ]


def as_published(split: str, n: int = 4) -> list[dict[str, Any]]:
    """The same questions as the datasets of CAA write them."""
    return [
        {
            "question": f"{split} {i}?\n\nChoices:\n (A) yes\n (B) nay",
            "answer_matching_behavior": f"({'AB'[i % 2]})",
            "answer_not_matching_behavior": f"({'BA'[i % 2]})",
        }
        for i in range(n)
    ]


def test_a_committed_file_is_the_committed_concept() -> None:
    """By the same hash, so a sweep from Python goes on from shards of the command line."""
    ours, theirs = concept(COMMITTED), read_concepts(COMMITTED)["sycophancy"]
    assert (ours.train, ours.evaluation, ours.source) == (
        *(theirs.train, theirs.evaluation),
        theirs.source,
    )
    assert ours.sha256 == theirs.sha256


def test_every_form_is_the_same_concept(tmp_path: Path) -> None:
    wanted = concept(rows("train"), rows("eval"), name="mine")
    assert [q.matching for q in wanted.train] == ["A", "B", "A", "B"]
    assert [q.other for q in wanted.train] == ["B", "A", "B", "A"]
    assert wanted.evaluation[0].id == "mine/eval/001"
    both = [{**row, "split": split} for split in ("train", "eval") for row in rows(split)]
    paths = {}
    for split in ("train", "eval"):
        paths[split] = tmp_path / f"{split}.csv"
        pd.DataFrame(rows(split)).to_csv(paths[split], index=False)
    lines = "\n".join(map(json.dumps, rows("eval")))
    (tmp_path / "eval.jsonl").write_text(lines)
    (tmp_path / "train.json").write_text(json.dumps(rows("train")))
    nested = [
        {
            "question": r["question"],
            "choices": {"A": r["A"], "B": r["B"]},
            "matching": r["matching"],
        }
        for r in rows("eval")
    ]
    for found in (
        concept(pd.DataFrame(rows("train")), pd.DataFrame(rows("eval")), name="mine"),
        concept(pd.DataFrame(both), name="mine"),
        concept(paths["train"], paths["eval"], name="mine"),
        concept(tmp_path / "train.json", tmp_path / "eval.jsonl", name="mine"),
        concept(rows("train"), nested, name="mine"),
        concept(as_published("train"), as_published("eval"), name="mine"),
    ):
        assert found.sha256 == wanted.sha256


def test_every_row_that_cannot_be_scored_is_named() -> None:
    wrong = [
        {"question": "one?", "A": "yes", "C": "nay", "matching": "A"},
        {"question": "two?", "A": "yes", "B": "yes", "matching": "A"},
        {**as_published("train")[0], "question": "(A) (B) (C)"},
        {"A": "yes", "B": "nay", "matching": "A"},
        {**rows("train")[0], "split": "eval"},
        {**as_published("train")[0], "matching": "B"},
        {**as_published("train")[0], "A": "yes", "B": "nay"},
        {"question": "bare?", "matching": "A"},
        {**rows("train")[0], "choices": {"A": "one", "B": "other"}},
    ]
    with pytest.raises(ValueError) as error:
        concept(wrong, rows("eval"))
    for part in (
        *("pairs: has the unknown column 'C'", "row 2: both choices are the same"),
        *("row 3: its question offers ['A', 'B', 'C']", "row 4: field 'question' is missing"),
        "row 5: its split is 'eval', but it is given among the train",
        "row 6: holds both answer_matching_behavior and matching",
        "row 7: holds both answer_matching_behavior and A and B",
        "row 8: its question offers no choices",
        "row 9: holds both choices and A and B",
    ):
        assert part in str(error.value)


def test_rows_without_a_split_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="these rows have no split"):
        concept(rows("train"))
    with pytest.raises(ValueError, match="has no eval question"):
        concept(rows("train"), [])
    with pytest.raises(FileNotFoundError, match="no such file"):
        concept(tmp_path / "absent.csv")
    (tmp_path / "items.xlsx").touch()
    with pytest.raises(ValueError, match=r"is none of \.jsonl, \.json and \.csv"):
        concept(tmp_path / "items.xlsx")
    with pytest.raises(ValueError, match="cannot be a name"):
        concept(rows("train"), rows("eval"), name="random")
    with pytest.raises(ValueError, match="row 1: is 'text', not a dict"):
        concept(["text"], rows("eval"))  # type: ignore[list-item]


def test_what_would_bias_the_answers_is_said() -> None:
    of_one_letter = [row for row in rows("train", 8) if row["matching"] == "A"]
    with pytest.warns(UserWarning, match="the matching answer is A 4 times and B 0 times"):
        concept(of_one_letter, rows("eval"))


def test_it_prints_in_one_line() -> None:
    assert repr(concept(rows("train"), rows("eval", 6))) == "Concept 'concept': 4 pairs, 6 items"


def test_items_that_are_pairs_are_said() -> None:
    with pytest.warns(UserWarning, match="items, row 1 repeats the question of pairs, row 1"):
        concept(rows("train"), rows("train"))


def test_ids_and_answers_that_are_numbers_or_missing() -> None:
    given = pd.DataFrame(rows("train")).assign(id=[1, 2, np.nan, 4], A=[1, 2, 3, 4])
    found = concept(given, rows("eval"), name="mine").train
    assert [question.id for question in found] == ["1", "2", "mine/train/003", "4"]
    assert found[0].prompt.endswith("(A) 1\n (B) nay")
    for missing in (None, np.float32("nan"), pd.NA, pd.NaT):
        of = [{**row, "id": missing} for row in rows("train")]
        assert concept(of, rows("eval"), name="mine").train[0].id == "mine/train/001"


def test_files_are_read_as_the_command_line_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    both = [{**row, "id": f"{split}/{i}", "split": split, "choices": {"A": row["A"], "B": row["B"]}}
            for split in ("train", "eval") for i, row in enumerate(rows(split))]  # fmt: skip
    for row in both:
        del row["A"], row["B"]
        row["question"] += "\u2028why?"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in both) + "\n")
    assert concept(path).sha256 == read_concepts(path)["mine"].sha256
    path.write_text('{"id": "1", "id": "2"}\n')
    with pytest.raises(ValueError, match="appear more than once"):
        concept(path)
    (tmp_path / "latin.csv").write_bytes("question\nwhät\n".encode("latin-1"))
    (tmp_path / "empty.csv").write_text("")
    for name in ("latin", "empty"):
        with pytest.raises(ValueError, match=rf"{name}\.csv: is not a table in UTF-8"):
            concept(tmp_path / f"{name}.csv", rows("eval"))


def test_what_many_rows_lack_is_said_once() -> None:
    bare = [{"question": f"{i}?", "A": "yes", "B": "nay"} for i in range(12)]
    with pytest.raises(ValueError) as error:
        concept(bare, rows("eval"))
    assert "pairs, row 1; pairs, row 2 and 10 more: field 'matching' is missing" in str(error.value)
    with pytest.raises(ValueError, match="pairs: is a single dict"):
        concept(rows("train")[0], rows("eval"))  # type: ignore[arg-type]
    small = [{**row, "matching": row["matching"].lower()} for row in rows("train")]
    assert [q.matching for q in concept(small, rows("eval")).train] == ["A", "B", "A", "B"]
