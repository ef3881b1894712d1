from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT

from steercube.analysis.claims import read_claims
from steercube.analysis.tables import conclude
from steercube.analysis.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    REPRODUCED,
    UNASKED,
    Question,
    conclusions,
    sentence,
    verdict,
)

SHOWN = Question("x", "it is so", 1, value=0.5, low=0.2, high=0.8, over="models", n=6)


@pytest.mark.parametrize(
    ("question", "expected", "why"),
    [
        (SHOWN, REPRODUCED, ""),
        (replace(SHOWN, low=-0.1), INCONCLUSIVE, "includes zero"),
        (replace(SHOWN, low=0.0), INCONCLUSIVE, "includes zero"),
        (replace(SHOWN, value=-0.5, low=-0.8, high=-0.2), CONTRADICTED, "other side"),
        (replace(SHOWN, claimed=-1), CONTRADICTED, "other side"),
        (replace(SHOWN, negligible=1.0), CONTRADICTED, "any difference is under 1"),
        (replace(SHOWN, value=0.0, low=-0.1, high=0.1, negligible=0.2), CONTRADICTED, "under 0.2"),
        (replace(SHOWN, value=0.0, low=-0.1, high=0.3, negligible=0.2), INCONCLUSIVE, "zero"),
        (replace(SHOWN, objections=("p = 0.07",)), INCONCLUSIVE, "p = 0.07"),
        (
            replace(SHOWN, claimed=-1, objections=("p = 0.07",)),
            INCONCLUSIVE,
            "p = 0.07",
        ),
        (replace(SHOWN, value=np.nan, reason="one model"), UNASKED, "one model"),
        (replace(SHOWN, low=np.nan, high=np.nan), UNASKED, "no interval"),
    ],
)
def test_the_rules(question: Question, expected: str, why: str) -> None:
    found, said = verdict(question)
    assert found == expected
    assert why in said


def test_a_sentence_is_as_strong_as_its_verdict() -> None:
    words = {
        v: sentence(SHOWN, v, "why") for v in (REPRODUCED, INCONCLUSIVE, CONTRADICTED, UNASKED)
    }
    assert words[REPRODUCED].startswith("These data show that it is so: +0.50 [0.20, 0.80]")
    assert words[INCONCLUSIVE].startswith("These data do not settle whether it is so")
    assert words[CONTRADICTED].startswith("These data contradict that it is so")
    assert "0.50" not in words[UNASKED]
    assert all("why" in words[v] for v in (INCONCLUSIVE, CONTRADICTED, UNASKED))


@pytest.fixture(scope="module")
def of_study(study_tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return study_tables["conclusions"].set_index("id")


def test_no_conclusion_is_stronger_than_its_interval(of_study: pd.DataFrame) -> None:
    shown = of_study[of_study["verdict"].isin([REPRODUCED, CONTRADICTED])]
    assert ((shown["low"] > 0) | (shown["high"] < 0)).all()
    assert not of_study.loc[of_study["low"] <= 0, "sentence"].str.contains("show that").any()


def test_depth_is_confounded_with_blocks(of_study: pd.DataFrame) -> None:
    row = of_study.loc["training-best-depth"]
    assert row["low"] > 0
    assert row["verdict"] == INCONCLUSIVE
    assert "more blocks" in row["reason"]
    assert "p = 0.067" in row["reason"]


def test_survival_instinct_hangs_on_the_measure_of_size(of_study: pd.DataFrame) -> None:
    row = of_study.loc["scale-survival-instinct"]
    assert row["low"] > 0
    assert row["verdict"] == INCONCLUSIVE
    assert "active parameters" in row["reason"]


def test_values_that_say_so_change_the_sentence(
    study_cells: xr.Dataset, study_tables: dict[str, pd.DataFrame]
) -> None:
    """One interval of the tables moved over zero, and every objection taken away."""
    _, claims = read_claims(ROOT / "paper" / "claims.toml")
    tables = {name: table.copy() for name, table in study_tables.items()}
    effects = tables["training_effect"]
    at = (effects["outcome"] == "cohens_d") & (effects["method"] == "hierarchical, exact")
    effects.loc[at, ["estimate", "low", "high"]] = [-0.4, -0.6, -0.2]
    effects.loc[effects["method"] == "permutation of labels", "p_value"] = 0.01
    rest = tables["leave_one_out"]
    rest[["low", "high"]] = rest[["low", "high"]].where(rest["low"].isna(), [-0.6, -0.2])
    row = conclusions(study_cells, tables, claims).set_index("id").loc["training-cohens-d"]
    assert row["verdict"] == REPRODUCED
    assert row["sentence"].startswith("These data show that full RL lowers the effect")
    rest.loc[rest["left_out"] == "32B", ["low", "high"]] = [-0.6, 0.1]
    row = conclusions(study_cells, tables, claims).set_index("id").loc["training-cohens-d"]
    assert row["verdict"] == INCONCLUSIVE
    assert "without 32B the interval includes zero" in row["sentence"]


@pytest.mark.parametrize("models", [["large"], ["small", "large"], ["small", "middle"]])
def test_few_models_are_not_asked_what_they_cannot_say(
    cells: xr.Dataset, models: list[str]
) -> None:
    table = conclude(cells.sel(model=models, model_other=models))["conclusions"]
    of_training = table[table["id"].str.startswith("training")]
    assert (of_training["verdict"] == UNASKED).all()
    assert of_training["reason"].str.len().min() > 10
