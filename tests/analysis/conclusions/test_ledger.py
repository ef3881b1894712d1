from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, study_of

from steercube.analysis.conclusions.claims import Claim, read_ledger
from steercube.analysis.conclusions.grades import CONFOUNDED, NOT_ASKED
from steercube.analysis.conclusions.ledger import ledger
from steercube.cells import with_every_estimand


@pytest.fixture
def rows(study_tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return study_tables["claims"].set_index("id")


PUBLISHED = {
    "delta-4b": "9.15",
    "delta-14b": "7.54",
    "delta-8b": "6.03",
    "delta-32b": "2.96",
    "delta-30b": "9.30",
    "delta-235b": "5.64",
    "delta-distilled": "~7.5",
    "delta-rl": "~3.0",
    "concept-corrigible": "9.39",
    "concept-self-awareness": "7.75",
    "concept-sycophancy": "2.68",
    "d-distilled": "1.04",
    "d-rl": "0.97",
    "d-8b": "0.73",
    "d-32b": "0.85",
    "d-gap-all": "7%",
    "d-gap-without-8b": "15%",
    "depth-distilled": "50-65%",
    "depth-rl": "70-80%",
    "r-corrigible": "0.61",
    "r-self-awareness": "0.38",
    "r-sycophancy": "-0.06",
    "scale-sycophancy": "-",
    "scale-survival": "+",
    "moe-neutral": "0",
    "concepts-replicate": "+",
    "agreement-tracks-steering": "+",
    "glass-14b": "1.296",
    "glass-4b": "1.183",
    "glass-30b": "1.133",
    "glass-235b": "1.052",
    "glass-32b": "1.036",
    "glass-8b": "0.675",
    "gen-sycophancy": "8%",
    "gen-corrigible": "45%",
}


def test_every_published_claim_is_in_the_ledger(rows: pd.DataFrame) -> None:
    assert {i: rows.loc[i, "published"] for i in PUBLISHED} == PUBLISHED
    assert set(rows.index) - set(PUBLISHED) == {"depth-later"}


def test_every_numeric_claim_matches_to_the_printed_digits_but_one(rows: pd.DataFrame) -> None:
    """The one correlation is 0.3749, which prints as 0.37; the study printed 0.38."""
    assert rows.index[~rows["matches"]].tolist() == ["r-self-awareness", "moe-neutral"]
    assert rows.loc["r-self-awareness", "recomputed"] == pytest.approx(0.3749, abs=5e-5)
    assert "0.3749, 0.37 in print" in rows.loc["r-self-awareness", "reason"]


def test_claims_are_told_apart_by_how_they_were_printed_and_what_they_say(
    rows: pd.DataFrame,
) -> None:
    assert rows["printed_as"].value_counts().to_dict() == {
        "number": 26,
        "qualitative": 6,
        "approximate": 4,
    }
    assert set(rows.index[rows["printed_as"] == "approximate"]) == {
        *("delta-distilled", "delta-rl", "depth-distilled", "depth-rl")
    }
    interpretive = set(rows.index[rows["is_interpretive"]])
    assert interpretive == set(rows.index[rows["printed_as"] == "qualitative"]) | {
        *("d-gap-all", "d-gap-without-8b", "r-corrigible", "r-self-awareness", "r-sycophancy")
    }


@pytest.mark.parametrize(
    ("published", "moved", "verdict"),
    [("+", 1.0, "reproduced"), ("+", -1.0, "not reproduced"), ("0", 1.0, "no number")],
    ids=["a slope", "its opposite", "no slope"],
)
def test_a_sign_is_reproduced_or_not(
    six: xr.Dataset, published: str, moved: float, verdict: str
) -> None:
    """Effects that rise by one for a tenfold size, or fall."""
    size = np.log10(six["n_params"] / 1e9)
    effects = six["selected_estimate"] * 0 + 2 + moved * size
    claim = Claim(
        id="x", section="1", text="t", published=published, statistic="scale_slope",
        arguments={"estimand": "delta", "concept": "one"},
    )  # fmt: skip
    row = ledger(study_of(six.assign(selected_estimate=effects)), [claim]).iloc[0]
    assert row["printed_as"] == "qualitative"
    assert row["verdict"] == verdict


def test_every_claim_has_an_interval_and_a_verdict(rows: pd.DataFrame) -> None:
    assert rows[["low", "high"]].notna().all(axis=None)
    assert (rows["low"] < rows["high"]).all()
    assert set(rows["verdict"].drop("moe-neutral")) <= {"reproduced", "reproduced, but"}
    assert rows.loc["moe-neutral", "verdict"] == "no number"
    assert (rows["reason"].str.len() > 0).all()


def test_interpretive_claims_have_the_grade_of_their_question(
    rows: pd.DataFrame, study_tables: dict[str, pd.DataFrame]
) -> None:
    grades = study_tables["conclusions"].set_index("id")["grade"]
    interpretive = rows[rows["is_interpretive"]]
    assert interpretive["grade"].tolist() == grades[interpretive["question"]].tolist()
    assert (rows.loc[~rows["is_interpretive"], ["question", "grade"]] == "").all(axis=None)
    assert rows.loc["d-gap-all", "question"] == rows.loc["d-gap-without-8b", "question"]
    assert rows.loc["d-gap-all", "question"] == "training-cohens-d"


def test_a_claim_whose_question_is_not_asked_says_so(
    study_cells: xr.Dataset, study_tables: dict[str, pd.DataFrame]
) -> None:
    """A name that is none, and a claim of none whose question is about a difference."""
    claims = read_ledger(ROOT / "paper" / "claims.toml").claims
    later = next(claim for claim in claims if claim.id == "depth-later")
    changed = [
        replace(later, question="training-best-dept"),
        replace(later, asserts="none"),
        later,
    ]
    rows = ledger(study_of(study_cells), changed, study_tables["conclusions"])
    assert rows["grade"].tolist() == [NOT_ASKED, NOT_ASKED, CONFOUNDED]
    assert "no question 'training-best-dept' is asked here, but training-" in rows["reason"][0]
    assert "training-best-depth is whether there is a difference" in rows["reason"][1]
    assert rows["reason"][2] == "in direction"


def test_claims_about_training_rest_on_models_not_on_items(rows: pd.DataFrame) -> None:
    about_models = ["d-distilled", "d-rl", "d-gap-all", "depth-rl", "scale-survival", "moe-neutral"]
    assert (rows.loc[about_models, "interval_over"] == "models").all()
    assert (rows.loc[["delta-4b", "d-8b", "glass-32b"], "interval_over"] == "items").all()


def test_the_balanced_version_runs_over_what_every_model_has(
    rows: pd.DataFrame, study_cells: xr.Dataset
) -> None:
    delta = study_cells["selected_estimate"].sel(estimand="delta", model="4B")
    both = delta.sel(concept=["corrigible", "self_awareness"])
    assert rows.loc["delta-4b", "balanced"] == pytest.approx(float(both.mean()))


def test_a_changed_cell_changes_the_number_the_interval_and_the_verdict(
    study_cells: xr.Dataset,
) -> None:
    claims = read_ledger(ROOT / "paper" / "claims.toml").claims
    claim = [c for c in claims if c.id == "delta-4b"]
    changed = study_cells.copy(deep=True)
    changed["selected_estimate"].loc["delta", "4B", "corrigible"] += 3
    before, after = (ledger(study_of(cells), claim).iloc[0] for cells in (study_cells, changed))
    assert after["recomputed"] == pytest.approx(before["recomputed"] + 1)
    assert after["low"] > before["low"]
    assert (before["verdict"], after["verdict"]) == ("reproduced", "not reproduced")


def test_what_the_cells_do_not_hold_cannot_be_tested(cells: xr.Dataset) -> None:
    claim = Claim(
        id="x",
        section="1",
        text="agrees",
        published="0.5",
        statistic="pooled_agreement",
        arguments={"concept": "humour"},
    )
    row = ledger(study_of(cells), [claim]).iloc[0]
    assert row["verdict"] == "cannot be tested"
    assert row["reason"]


def test_a_claim_of_ones_own_is_judged(cells: xr.Dataset) -> None:
    arguments = {"model": "large", "estimand": "cohens_d", "concepts": ["humour"]}
    claim = Claim("a", "1", "t", "1.00", "model_mean", arguments)
    row = ledger(study_of(cells), [claim]).iloc[0]
    assert row["quantity"] == "average Cohen's d"
    d = cells["selected_estimate"].sel(estimand="cohens_d", model="large", concept="humour")
    assert row["recomputed"] == float(d)
    assert row["verdict"] == "not reproduced"


def test_a_model_that_is_not_there_cannot_be_tested(cells: xr.Dataset) -> None:
    claim = Claim("a", "1", "t", "1", "model_mean", {"model": "huge", "estimand": "delta"})
    row = ledger(study_of(cells), [claim]).iloc[0]
    assert (row["verdict"], row["reason"]) == (
        "cannot be tested",
        "there is no model 'huge' here, but small, middle, large",
    )


@pytest.mark.parametrize(
    ("statistic", "arguments", "said"),
    [
        ("model_mean", {"estimand": "delta", "model": "99B"}, "no model '99B' here, but small"),
        (
            "mean_over_models",
            {"estimand": "delta", "models": ["small", "99B"]},
            "no model '99B' here, but small",
        ),
        (
            "concept_mean",
            {"estimand": "delta", "concept": "envy"},
            "no concept 'envy' here, but honesty, humour",
        ),
    ],
)
def test_a_claim_about_what_is_not_there_names_it(
    cells: xr.Dataset, statistic: str, arguments: dict[str, object], said: str
) -> None:
    claim = Claim("x", "1", "t", "1.0", statistic, arguments)
    row = ledger(study_of(cells), [claim]).iloc[0]
    assert row["verdict"] == "cannot be tested"
    assert said in row["reason"]


def test_claims_about_an_estimand_that_the_cells_lack_say_so(study_cells: xr.Dataset) -> None:
    claims = read_ledger(ROOT / "paper" / "claims.toml").claims
    claims = [c for c in claims if c.statistic in ("concept_mean", "training_gap")][:4]
    as_effects = [replace(c, arguments=c.arguments | {"estimand": "d_z"}) for c in claims]
    less = with_every_estimand(study_cells.drop_sel(estimand=["d_z"]))
    table = ledger(study_of(less), as_effects)
    assert table["recomputed"].isna().all()
    assert table["reason"].str.contains("these cells hold no d_z").all()
    assert ledger(study_of(study_cells), as_effects)["recomputed"].notna().all()
