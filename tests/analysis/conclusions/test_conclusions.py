from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, study_of

from steercube.analysis.conclusions.claims import read_ledger
from steercube.analysis.conclusions.conclusions import (
    CONTRADICTED,
    INCONCLUSIVE,
    NEGLIGIBLE,
    REPRODUCED,
    UNASKED,
    Question,
    conclusions,
    sentence,
    verdict,
)
from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.over_models.comparisons import depth_difference

SHOWN = Question("x", "it is so", 1, value=0.5, low=0.2, high=0.8, over="models", n=6)


@pytest.mark.parametrize(
    ("question", "expected", "why"),
    [
        (SHOWN, REPRODUCED, ""),
        (replace(SHOWN, low=-0.1), INCONCLUSIVE, "includes zero"),
        (replace(SHOWN, low=0.0), INCONCLUSIVE, "includes zero"),
        (replace(SHOWN, value=-0.5, low=-0.8, high=-0.2), CONTRADICTED, "other side"),
        (replace(SHOWN, claimed=-1), CONTRADICTED, "other side"),
        (replace(SHOWN, rope=1.0, furthest=0.9), NEGLIGIBLE, "under 1"),
        (replace(SHOWN, rope=1.0), REPRODUCED, ""),
        (replace(SHOWN, rope=1.0, furthest=1.1), REPRODUCED, ""),
        (
            replace(SHOWN, value=0.0, low=-0.1, high=0.1, rope=0.2, furthest=0.15),
            NEGLIGIBLE,
            "under 0.2",
        ),
        (replace(SHOWN, value=0.0, low=-0.1, high=0.3, rope=0.2), INCONCLUSIVE, "zero"),
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
        v: sentence(SHOWN, v, "why")
        for v in (REPRODUCED, INCONCLUSIVE, CONTRADICTED, NEGLIGIBLE, UNASKED)
    }
    assert words[REPRODUCED].startswith("These data show that it is so: +0.50 [0.20, 0.80]")
    assert words[INCONCLUSIVE].startswith("These data do not settle whether it is so")
    assert words[CONTRADICTED].startswith("These data contradict that it is so")
    assert "0.50" not in words[UNASKED]
    assert "negligible difference" in words[NEGLIGIBLE]
    assert all("why" in words[v] for v in (INCONCLUSIVE, CONTRADICTED, NEGLIGIBLE, UNASKED))


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
    assert "no other way to give out the training labels is as extreme" in row["reason"]
    assert "p cannot be under 0.067" in row["reason"]


def test_survival_instinct_hangs_on_the_measure_of_size(of_study: pd.DataFrame) -> None:
    row = of_study.loc["scale-survival-instinct"]
    assert row["low"] > 0
    assert row["verdict"] == INCONCLUSIVE
    assert "active parameters" in row["reason"]


@pytest.fixture
def shown(study_tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The study's tables with an effect of training in d that nothing speaks against."""
    tables = {name: table.copy() for name, table in study_tables.items()}
    effects = tables["contrast_effect"]
    at = (effects["outcome"] == "cohens_d") & (effects["method"] == "hierarchical, exact")
    effects.loc[at, ["estimate", "low", "high"]] = [-0.4, -0.6, -0.2]
    effects.loc[effects["method"] == "permutation of labels", "p_value"] = 0.01
    for name in ("leave_one_out", "prior_sensitivity"):
        table = tables[name]
        table[["low", "high"]] = table[["low", "high"]].where(table["low"].isna(), [-0.6, -0.2])
    return tables


def of_d(cells: xr.Dataset, tables: dict[str, pd.DataFrame]) -> pd.Series:
    claims = read_ledger(ROOT / "paper" / "claims.toml").claims
    return conclusions(study_of(cells), tables, claims).set_index("id").loc["training-cohens-d"]


def test_values_that_say_so_change_the_sentence(
    study_cells: xr.Dataset, shown: dict[str, pd.DataFrame]
) -> None:
    row = of_d(study_cells, shown)
    assert row["verdict"] == REPRODUCED
    assert row["sentence"].startswith("These data show that full RL lowers the effect")


@pytest.mark.parametrize(
    ("table", "where", "values", "said"),
    [
        ("leave_one_out", ("left_out", "32B"), [-0.6, 0.1], "without 32B it includes zero"),
        (
            "leave_one_out",
            ("left_out", "8B"),
            [0.1, 0.4],
            "without 8B it includes zero or changes sign",
        ),
        ("leave_one_out", ("left_out", "8B"), [np.nan, np.nan], "8B there is no interval"),
        ("prior_sensitivity", ("prior_scale", 1.0), [-0.9, 0.1], "sd_model ~ half-normal(1)"),
        ("contrast_effect", ("method", "permutation of labels"), 0.2, "yields as much (p = 0.200)"),
        ("contrast_effect", ("method", "permutation of labels"), np.nan, "cannot be permuted"),
    ],
    ids=["zero", "turns", "unknown", "prior", "permutation", "no permutation"],
)
def test_every_objection_can_be_made(
    study_cells: xr.Dataset,
    shown: dict[str, pd.DataFrame],
    table: str,
    where: tuple[str, object],
    values: object,
    said: str,
) -> None:
    changed = shown[table]
    columns = "p_value" if table == "contrast_effect" else ["low", "high"]
    changed.loc[changed[where[0]] == where[1], columns] = values
    row = of_d(study_cells, shown)
    assert row["verdict"] == INCONCLUSIVE
    assert said in row["sentence"]


@pytest.mark.slow
def test_models_of_one_size_are_asked_about_training_alone(six: xr.Dataset) -> None:
    alike = six.assign_coords(n_params=six["n_params"] * 0 + 1e9)
    table = conclude(study_of(alike))["conclusions"].set_index("id")
    row = table.loc["training-cohens-d"]
    assert row["verdict"] != UNASKED
    assert "size held fixed" not in row["statement"]


def test_blocks_confound_either_way(six: xr.Dataset) -> None:
    assert "every rl model has more blocks" in depth_difference(study_of(six)).reason
    swapped = six["training"].copy(
        data=["rl" if t == "distilled" else "distilled" for t in six["training"].values]
    )
    turned = six.assign_coords(training=swapped)
    assert "every distilled model has more blocks" in depth_difference(study_of(turned)).reason


@pytest.mark.parametrize("models", [["large"], ["small", "large"], ["small", "middle"]])
def test_few_models_are_not_asked_what_they_cannot_say(
    cells: xr.Dataset, models: list[str]
) -> None:
    table = conclude(study_of(cells.sel(model=models, model_other=models)))["conclusions"]
    of_training = table[table["id"].str.startswith("training")]
    assert (of_training["verdict"] == UNASKED).all()
    assert of_training["reason"].str.len().min() > 10


def of_ranking(cells: xr.Dataset, tables: dict[str, pd.DataFrame]) -> pd.Series:
    return conclusions(study_of(cells), tables).set_index("id").loc["ranking"]


def test_a_ranking_is_shown_by_its_test_with_every_part_left_out(
    study_cells: xr.Dataset, study_tables: dict[str, pd.DataFrame]
) -> None:
    row = of_ranking(study_cells, study_tables)
    assert row["verdict"] == REPRODUCED
    assert row["interval_over"] == "items, concepts, models"
    assert row["p_value"] < 0.01


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("", "models with no ranking in common agree as well (p = 0.200)"),
        ("8B", "without 8B (p = 0.200) models with no ranking in common agree as well"),
        ("corrigible", "without corrigible (p = 0.200) models with no"),
    ],
)
def test_a_ranking_that_one_part_carries_is_not_shown(
    study_cells: xr.Dataset, study_tables: dict[str, pd.DataFrame], left_out: str, said: str
) -> None:
    table = study_tables["sensitivity"].copy()
    of_part = (table["headline"] == "concept share in cohens_d") & (table["left_out"] == left_out)
    table.loc[of_part & (table["without"] != "invalid items"), "p_value"] = 0.2
    row = of_ranking(study_cells, study_tables | {"sensitivity": table})
    assert row["verdict"] == INCONCLUSIVE
    assert said in row["reason"]
