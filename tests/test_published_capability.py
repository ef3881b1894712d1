import csv
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import ROOT, STUDY, needs_study
from score_interval import score_interval

from steercube.answers import answer_of
from steercube.measures import PUBLISHED, READ
from steercube.published_capability import (
    CONCEPT_OF_VECTOR,
    FOLDER,
    Run,
    both_readings,
    new_items,
    placed,
    read_run,
    runs,
)
from steercube.published_study import needed, registry

MODELS = ("0.6B", "1.7B", "4B", "8B", "14B", "32B")
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
RUN = Run("gsm8k", "sycophancy", "4B")
Rows = list[dict[str, str]]


def frame(asked: str = "gsm8k") -> pd.DataFrame:
    rows = [
        {
            **{"prompt": f"Question {i}?", "generation": "(B)", "strength": s, "repeat": 0},
            **{"category": "sycophancy" if asked == "behavioral" else asked},
            **{"correct": i == 0, "expected_matching": "(B)", "is_valid": s > 0},
            "matches_behavior": True if s > 0 else "",
        }
        for s in STRENGTHS
        for i in range(2)
    ]
    graded = ["expected_matching", "is_valid", "matches_behavior"]
    return pd.DataFrame(rows).drop(columns=["correct"] if asked == "behavioral" else graded)


def spoil(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.astype({column: object})
        rows.loc[3, column] = value
        return rows

    return change


BAD = {
    "no column": (lambda rows: rows.drop(columns="correct"), "'correct' is missing"),
    "no answer to whether": (spoil("correct", "maybe"), "neither True nor False in 1 row"),
    "a strength too many": (spoil("strength", 2.0), "there are 5, one of them 0"),
    "a question twice": (lambda rows: pd.concat([rows, rows[:1]]), "not asked once"),
    "a question too few": (lambda rows: rows.drop(index=4), "not asked once"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_file_that_is_no_run_is_refused(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    change(frame()).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path / "x.csv", RUN)


def test_a_sound_file_has_its_labels(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "x.csv", index=False)
    rows = read_run(tmp_path / "x.csv", RUN)
    assert set(rows["concept"]) == {"gsm8k"}
    assert set(rows["model"]) == {"4B"}
    assert rows.groupby("strength")["correct"].mean().tolist() == [0.5] * 5


def test_unread_answers_need_no_match(tmp_path: Path) -> None:
    frame("behavioral").to_csv(tmp_path / "x.csv", index=False)
    rows = read_run(tmp_path / "x.csv", Run("behavioral", "corrigible", "4B"))
    placed_ = placed(rows, {"sycophancy": ["Question 0?", "Question 1?"]}, what="x")
    table = both_readings(placed_).set_index("reading")
    assert (table.loc[READ, "generation_match"] == 1).all()
    published = table.loc[PUBLISHED]
    assert published["generation_match"].notna().sum() == (published["strength"] > 0).sum()


def test_questions_get_numbers_in_the_order_of_the_file(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "x.csv", index=False)
    rows = read_run(tmp_path / "x.csv", RUN)
    items, prompts = new_items([rows, rows], ["honesty"])
    assert [item.item_id for item in items["gsm8k"]] == ["gsm8k/000", "gsm8k/001"]
    assert prompts["gsm8k"] == ["Question 0?", "Question 1?"]
    assert new_items([rows], ["gsm8k"]) == ({}, {})
    with pytest.raises(ValueError, match="2 prompt"):
        placed(rows[rows["strength"] == 0], {"gsm8k": ["another"]}, what="x")


def test_the_files_are_fetched_only_where_asked_for() -> None:
    assert len(needed(capability=True)) == len(needed()) + 54
    assert not any(path.startswith(FOLDER) for path in needed())
    assert len(runs({path: Path(path) for path in registry()})) == 54


def raw(asked: str, vector: str, model: str) -> Rows:
    path = STUDY / FOLDER / f"{asked}_{vector}_Qwen_Qwen3_{model}_evaluated.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "paper" / "qwen3" / "tables" / f"{name}.csv")


@needs_study
@pytest.mark.parametrize("asked", ["gsm8k", "triviaqa"])
def test_capability_is_what_the_raw_files_say(asked: str) -> None:
    """Counts and means by plain loops over the files, intervals by another algorithm."""
    capability = table("capability")
    capability = capability[capability["statistic"] == "change"]
    checked = 0
    for vector, direction in CONCEPT_OF_VECTOR.items():
        changes: dict[tuple[float, float], list[float]] = defaultdict(list)
        for model in MODELS:
            right: dict[float, dict[str, bool]] = defaultdict(dict)
            for row in raw(asked, vector, model):
                right[float(row["strength"])][row["prompt"]] = row["correct"] == "True"
            own = capability[
                (capability["concept"] == asked)
                & (capability["direction"] == direction)
                & (capability["model"] == model)
            ]
            assert len(own) == 5
            for number, row in enumerate(own.to_dict("records")):
                before, after = right[row["low_strength"]], right[row["high_strength"]]
                rise = sum(after[q] and not before[q] for q in before)
                fall = sum(before[q] and not after[q] for q in before)
                assert (row["n_rise"], row["n_fall"], row["n"]) == (rise, fall, 200)
                assert row["rate_low"] == pytest.approx(sum(before.values()) / 200)
                assert row["value"] == pytest.approx((rise - fall) / 200, rel=1e-8, abs=1e-12)
                changes[row["low_strength"], row["high_strength"]].append((rise - fall) / 200)
                if (checked := checked + 1) % 8 == 0 or number == 4:
                    ends = score_interval(rise, fall, 200)
                    assert (row["low"], row["high"]) == pytest.approx(ends, abs=2e-5)
                    assert row["loss_excluded"] == pytest.approx(max(0.0, -ends[0]), abs=2e-5)
        over = capability[
            (capability["concept"] == asked)
            & (capability["direction"] == direction)
            & (capability["model"] == "every model")
        ]
        for row in over.to_dict("records"):
            of = changes[row["low_strength"], row["high_strength"]]
            assert row["value"] == pytest.approx(statistics.fmean(of), rel=1e-8, abs=1e-12)
            alone = 2.5705818 * statistics.stdev(of) / 6**0.5  # t with 5 df, models alone
            assert (row["high"] - row["low"]) / 2 >= alone - 1e-6
            assert row["loss_excluded"] == pytest.approx(max(0.0, -row["low"]))
    assert checked == 3 * 6 * 5


@needs_study
def test_specificity_is_what_the_raw_files_say() -> None:
    specificity = table("specificity")
    specificity = specificity[specificity["model"] != "every model"]
    items = {"corrigible": 40, "self_awareness": 50, "consciousness": 50, "sycophancy": 87}
    for vector, direction in CONCEPT_OF_VECTOR.items():
        for model in ("1.7B", "32B"):
            rates: dict[tuple[str, float], list[float]] = defaultdict(list)
            for row in raw("behavioral", vector, model):
                letter = row["expected_matching"].strip("()")
                offered = {c for c in "CDEF" if f"({c})" in row["prompt"]}
                if letter not in "AB" or offered:
                    continue
                answer = answer_of(row["generation"])
                read = float(answer == letter) if answer else np.nan
                rates[row["category"], float(row["strength"])].append(read)
            own = specificity[
                (specificity["direction"] == direction) & (specificity["model"] == model)
            ]
            assert len(own)
            for row in own.to_dict("records"):
                low, high = (
                    np.array(rates[row["concept"], row[end]])
                    for end in ("low_strength", "high_strength")
                )
                assert len(low) == items[row["concept"]]
                if row["outcome"] == "valid":
                    expected = np.isfinite(high).mean() - np.isfinite(low).mean()
                else:
                    expected = np.nanmean(high) - np.nanmean(low)
                assert row["value"] == pytest.approx(expected, abs=1e-9)


@needs_study
def test_strength_zero_is_one_run_for_all_vectors_but_for_a_response() -> None:
    for asked in ("gsm8k", "triviaqa", "behavioral"):
        for model in MODELS:
            texts = [
                {
                    row["prompt"]: row["generation"]
                    for row in raw(asked, vector, model)
                    if float(row["strength"]) == 0
                }
                for vector in CONCEPT_OF_VECTOR
            ]
            shared = set.intersection(*map(set, texts))
            unlike = sum(len({of[prompt] for of in texts}) > 1 for prompt in shared)
            assert unlike == (1 if (asked, model) == ("behavioral", "14B") else 0)
