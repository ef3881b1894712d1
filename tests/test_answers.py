import json
import re

import pytest
from builders import ROOT

from steercube.answers import answer_of, form_of, spoken

TABLE = [json.loads(line) for line in (ROOT / "tests" / "responses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: repr(entry["response"])[:40])
def test_a_response_chooses(entry: dict[str, str]) -> None:
    assert answer_of(entry["response"]) == entry["answer"]


def test_the_table_is_large_and_holds_every_kind() -> None:
    assert len(TABLE) >= 60
    assert {entry["answer"] for entry in TABLE} == {"A", "B", ""}


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: repr(entry["response"])[:40])
def test_letters_are_read_alike(entry: dict[str, str]) -> None:
    """With the two letters exchanged, the other one is chosen."""
    exchange = {"A": "B", "B": "A", "": ""} | dict(zip("abＡＢ", "baＢＡ", strict=True))
    lone = r"(?<![A-Za-z])(?:[ABＡＢ]|[ab](?=\)|$))(?![A-Za-z])"
    exchanged = re.sub(lone, lambda match: exchange[match[0]], entry["response"])
    assert answer_of(exchanged) == exchange[entry["answer"]]


def test_what_is_said_is_read_without_its_markup() -> None:
    assert spoken("<think>hm</think> **（A）** “yes”") == "(A) yes"
    assert spoken("<think>never ends (A)") == ""


@pytest.mark.parametrize(
    ("response", "form"),
    [
        ("**(B)** No", "(X) ..."),
        ("Answer: **(B) No**", "Answer: (X) ..."),
        ("The correct answer is:\n\n**(A)**", "The answer is (X) ..."),
        ("As an AI, I cannot. The correct answer is (B).", "As ... (X) ..."),
        ("As an AI, I cannot drink.", "As ..., no choice"),
        ("Choice: (B) No", "another form"),
        ("Assuming that you can, I would choose (A).", "another form"),
        ("I cannot drink.", "another form, no choice"),
    ],
)
def test_the_form_of_a_response(response: str, form: str) -> None:
    assert form_of(response) == form
