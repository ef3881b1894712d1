import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import ROOT, STUDY, needs_study

from steercube.concepts import check_concepts, read_concepts
from steercube.published_study import concept_paths, study_concepts, study_files

OURS = ROOT / "data" / "concepts"
NAMES = [
    *("coordination", "corrigibility", "power_seeking"),
    *("self_awareness", "survival_instinct", "sycophancy"),
]


def lines(n: int = 8) -> list[dict[str, Any]]:
    """Questions without fault: letters in turn, options of one length, nothing said twice."""
    topics = ["rain", "bread", "trains", "owls", "chess", "soap", "maps", "glue"]
    return [
        {
            "id": f"honesty/{split}/{i}",
            "split": split,
            "question": f"{split} {topics[i]} {i} {split * (i + 1)}?",
            "choices": {"A": f"yes {i}", "B": f"no, {i}"[:5]},
            "matching": "AB"[i % 2],
        }
        for split in ("train", "eval")
        for i in range(n)
    ]


def write(tmp_path: Path, entries: list[dict[str, Any]]) -> Path:
    path = tmp_path / "honesty.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_our_own_sets_are_sound() -> None:
    assert list(check_concepts(OURS)) == NAMES
    for name, concept in read_concepts(OURS).items():
        assert (len(concept.train), len(concept.evaluation)) == (80, 60), name
        for split in (concept.train, concept.evaluation):
            letters = Counter(question.matching for question in split)
            assert letters["A"] == letters["B"]


@pytest.mark.parametrize("name", NAMES)
def test_neither_length_nor_letter_gives_our_answers_away(name: str) -> None:
    """Guessing by the longer option, or always yes, is right about as often as not."""
    entries = [json.loads(line) for line in (OURS / f"{name}.jsonl").read_text().splitlines()]
    for split in ("train", "eval"):
        of_split = [e for e in entries if e["split"] == split]
        right = [
            len(e["choices"][e["matching"]]) > len(e["choices"]["BA"["AB".index(e["matching"])]])
            for e in of_split
            if len({len(text) for text in e["choices"].values()}) == 2
        ]
        assert 0.4 < sum(right) / len(right) < 0.6
        yes = [
            e["choices"][e["matching"]].lower().startswith("yes")
            for e in of_split
            if any(text.lower().startswith("yes") for text in e["choices"].values())
        ]
        assert len(yes) > 10
        assert 0.4 < sum(yes) / len(yes) < 0.6


def test_a_question_becomes_a_prompt(tmp_path: Path) -> None:
    concept = read_concepts(write(tmp_path, lines()))["honesty"]
    first = concept.evaluation[0]
    assert first.prompt == "eval rain 0 eval?\n\nChoices:\n (A) yes 0\n (B) no, 0"
    assert (first.matching, first.other, first.valid) == ("A", "B", True)
    assert first.item.item_id == "honesty/eval/0"


def test_fewer_questions_hold_each_letter_alike(tmp_path: Path) -> None:
    entries = lines()
    for entry in entries[:4]:
        entry["matching"] = "A"
    for entry in entries[4:8]:
        entry["matching"] = "B"
    concept = read_concepts(write(tmp_path, entries))["honesty"]
    cut = concept.cut_to(n_pairs=4, n_items=3)
    assert [q.matching for q in cut.train] == ["A", "A", "B", "B"]
    assert len(cut.evaluation) == 3
    assert concept.cut_to(n_pairs=None, n_items=None) == concept


def test_the_hash_is_of_the_contents(tmp_path: Path) -> None:
    one = read_concepts(write(tmp_path, lines()))["honesty"]
    same = read_concepts(write(tmp_path, lines()))["honesty"]
    entries = lines()
    entries[3]["choices"]["A"] += "!"
    other = read_concepts(write(tmp_path, entries))["honesty"]
    assert one.sha256 == same.sha256 != other.sha256


Spoil = Callable[[list[dict[str, Any]]], Any]
UNUSABLE: dict[str, tuple[Spoil, str]] = {
    "three choices": (
        lambda e: e[1]["choices"].update(C="perhaps"),
        r"honesty\.jsonl:2: offers the choices \['A', 'B', 'C'\]; a question has exactly two",
    ),
    "not a scored letter": (
        lambda e: e[2].update(matching="C"),
        r"honesty\.jsonl:3: matching answer 'C' is not a scored letter",
    ),
    "a missing field": (lambda e: e[0].pop("question"), r":1: field 'question' is missing"),
    "an unknown split": (lambda e: e[0].update(split="test"), r":1: split is 'test'"),
    "an empty question": (lambda e: e[0].update(question=" "), r":1: question is empty"),
    "an empty choice": (lambda e: e[0]["choices"].update(A=""), r":1: a choice is empty"),
    "equal choices": (
        lambda e: e[0].update(choices={"A": "x", "B": "x"}),
        r":1: both choices are the same",
    ),
    "an id twice": (
        lambda e: e[5].update(id=e[0]["id"]),
        r":6: id 'honesty/train/0' is also at .*:1",
    ),
    "an empty id": (lambda e: e[0].update(id=""), r":1: id is empty"),
    "an empty split": (lambda e: e.__delitem__(slice(8, None)), r"has no eval question"),
}
BIASED: dict[str, tuple[Spoil, str]] = {
    "letters": (
        lambda e: [entry.update(matching="A") for entry in e[:8]],
        "train: the matching answer is A 8 times and B 0 times",
    ),
    "a duplicate": (
        lambda e: e[5].update(question=e[0]["question"].upper()),
        r":6: repeats the question of .*:1",
    ),
    "a near-duplicate across the splits": (
        lambda e: (
            e[0].update(question="Would you tell a friend that the soup is cold today?"),
            e[9].update(question="Would you tell a friend that the soup is salty today?"),
        ),
        r":10: is nearly the question of .*:1, in the other split \(trigram similarity 0\.64",
    ),
    "lengths": (
        lambda e: [
            entry["choices"].update({entry["matching"]: "a much longer option"}) for entry in e[8:]
        ],
        r"eval: questions with a longer matching option .* are \+100% of all",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_scored_is_refused(spoil: Spoil, message: str, tmp_path: Path) -> None:
    entries = lines()
    spoil(entries)
    path = write(tmp_path, entries)
    for door in (read_concepts, check_concepts):
        with pytest.raises(ValueError, match=message):
            door(path)


@pytest.mark.parametrize(("spoil", "message"), BIASED.values(), ids=BIASED)
def test_what_would_bias_is_reported(spoil: Spoil, message: str, tmp_path: Path) -> None:
    entries = lines()
    check_concepts(write(tmp_path, entries))
    spoil(entries)
    path = write(tmp_path, entries)
    with pytest.raises(ValueError, match=message):
        check_concepts(path)
    read_concepts(path)


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    entries = lines()
    entries[0]["matching"] = "C"
    path = write(tmp_path, entries)
    path.write_text(path.read_text() + "not json\n[]\n")
    with pytest.raises(ValueError, match="breaks 3 rule") as error:
        read_concepts(path)
    assert "jsonl:17: is not JSON" in str(error.value)
    assert "jsonl:18: is [], not an object" in str(error.value)


def test_an_id_is_one_items_in_all_files(tmp_path: Path) -> None:
    write(tmp_path, lines())
    (tmp_path / "humour.jsonl").write_text((tmp_path / "honesty.jsonl").read_text())
    with pytest.raises(
        ValueError, match=r"humour.jsonl:1: id 'honesty/train/0' is also at .*honesty"
    ):
        read_concepts(tmp_path)


def test_a_line_ends_at_its_newline_alone(tmp_path: Path) -> None:
    entries = lines()
    entries[0]["question"] = "Would you\u2028say so?"
    path = tmp_path / "honesty.jsonl"
    path.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries), "utf-8")
    assert "\u2028" in read_concepts(path)["honesty"].train[0].prompt
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"honesty\.jsonl: is not text in UTF-8"):
        read_concepts(path)


def test_a_folder_without_concepts_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a <concept>\.jsonl file"):
        read_concepts(tmp_path)


@needs_study
def test_the_studys_own_sets_are_read_as_they_were_used() -> None:
    concepts = study_concepts(study_files(STUDY, paths=concept_paths()))
    sizes = {name: (len(c.train), len(c.evaluation)) for name, c in concepts.items()}
    assert sizes == {
        "coordinate_other_versions": (150, 48),
        "corrigible": (150, 40),
        "power_seeking_inclination": (150, 100),
        "self_awareness": (100, 100),
        "survival_instinct": (150, 100),
        "sycophancy": (150, 100),
    }
    sycophancy = concepts["sycophancy"]
    assert sum(not question.valid for question in sycophancy.evaluation) == 13
    assert Counter(q.matching for q in sycophancy.train) == {"A": 68, "B": 67, "C": 13, "D": 2}
