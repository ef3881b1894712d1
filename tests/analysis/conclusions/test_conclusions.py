from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, study_of

from steercube.analysis.agreement.agreement import model_agreement
from steercube.analysis.conclusions.asked import questions
from steercube.analysis.conclusions.claims import Claim, read_ledger
from steercube.analysis.conclusions.conclusions import (
    FAMILIES,
    HEADLINES,
    Question,
    by_margin,
    conclusions,
    sentence,
)
from steercube.analysis.conclusions.grades import (
    CANNOT_SAY,
    CONFOUNDED,
    CONTRADICTED,
    DECISIVE,
    EVERY_SUPPORT,
    FRAGILE,
    GRADES,
    NEGLIGIBLE,
    NOT_ASKED,
    SUPPORTED,
    UNDECIDED,
    Evidence,
)
from steercube.analysis.margins import VARIED
from steercube.analysis.over_models.cell_effects import cell_effects
from steercube.analysis.over_models.posterior import fit
from steercube.analysis.over_models.slopes import concept_slope
from steercube.estimate import Student

OF = Evidence(claimed=1, margin=0.1, low=0.2, high=0.8)
QUESTION = Question(
    *("x", HEADLINES, "it is so", OF),
    value=0.5,
    units="nat",
    over="models",
    n=6,
    large=0.9,
    needed="about 9 models would show it",
)
LOW = replace(OF, low=-0.2)


@pytest.mark.parametrize(
    ("evidence", "grade", "said"),
    [
        (OF, SUPPORTED, "These data support that it is so: +0.50 [0.20, 0.80] nat, over models"),
        (
            replace(OF, carried_by=("without a it is 0.1",)),
            FRAGILE,
            "what carries it: +0.50 [0.20, 0.80] nat, over models, n = 6; without a it is 0.1.",
        ),
        (replace(OF, confounded_with=("size",)), CONFOUNDED, "models also differ in size."),
        (replace(OF, claimed=-1), CONTRADICTED, "These data contradict that it is so"),
        (
            replace(OF, claimed=-1, confounded_with=("size",)),
            CONTRADICTED,
            "n = 6; but these models also differ in size.",
        ),
        (replace(OF, low=0.02, high=0.08), SUPPORTED, "n = 6, though by less than 0.1 nat."),
        (replace(OF, claimed=0, low=-0.05, high=0.05), SUPPORTED, "n = 6, within ±0.1 nat."),
        (replace(OF, claimed=0), CONTRADICTED, "n = 6, beyond ±0.1 nat."),
        (
            replace(LOW, high=0.05, low=-0.05),
            NEGLIGIBLE,
            "If it is so, it is by less than 0.1 nat",
        ),
        (
            LOW,
            UNDECIDED,
            "both zero and differences larger than 0.1 nat; about 9 models would show it.",
        ),
        (
            replace(LOW, chance=0.1),
            CANNOT_SAY,
            "0.9 nat, would be shown by a t-test in only 10% of such sweeps",
        ),
        (replace(OF, low=np.nan), NOT_ASKED, "Whether it is so is not asked here"),
        (
            replace(LOW, claimed=0),
            UNDECIDED,
            "the interval includes values within and beyond ±0.1 nat",
        ),
        (
            replace(OF, never_negative=True, p_value=0.3),
            UNDECIDED,
            "includes more than ±0.1 nat, and a test of no such share gives p = 0.30",
        ),
    ],
)
def test_a_sentence_is_as_strong_as_its_grade(evidence: Evidence, grade: str, said: str) -> None:
    question = replace(QUESTION, evidence=evidence)
    assert question.grade == grade
    assert said in sentence(question)
    assert ("about 9 models" in sentence(question)) == (grade in (UNDECIDED, CANNOT_SAY))


def test_a_remark_is_said_whatever_the_grade() -> None:
    assert sentence(replace(QUESTION, remarks=("by a poor reader",))).endswith(
        "; by a poor reader."
    )


@pytest.fixture(scope="module")
def of_study(study_tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return study_tables["conclusions"].set_index("id")


def test_no_grade_is_stronger_than_its_interval(of_study: pd.DataFrame) -> None:
    """A share cannot be negative, so that its p decides."""
    shown = of_study[of_study["grade"].isin([*EVERY_SUPPORT, CONTRADICTED])].drop("ranking")
    claims_none = shown["claimed"] == "0"
    assert ((shown["low"] > 0) | (shown["high"] < 0) | claims_none).all()
    undecided = of_study[~of_study["grade"].isin(DECISIVE)]
    assert not undecided["sentence"].str.contains("data (?:support|contradict) that").any()
    assert set(of_study["grade"]) <= set(GRADES)


def test_every_question_stands_once_in_its_family_headlines_first(of_study: pd.DataFrame) -> None:
    assert of_study.index.is_unique
    order = of_study["family"].map(FAMILIES.index)
    assert order.is_monotonic_increasing
    assert (of_study["headline"] == "yes").sum() <= (of_study["family"] == HEADLINES).sum()


def test_the_contrast_is_the_posterior_of_the_primary_model(
    study_cells: xr.Dataset, of_study: pd.DataFrame
) -> None:
    posterior = fit(cell_effects(study_of(study_cells)))
    row = of_study.loc["training-cohens-d"]
    ends = posterior.interval("contrast", 0.95)
    assert row[["low", "value", "high"]].tolist() == pytest.approx(list(ends))
    assert row["probability_claimed"] == pytest.approx(posterior.cdf("contrast", 0.0))
    assert row["probability_negligible"] == pytest.approx(posterior.within("contrast", 0.2))
    assert row["p_value"] == pytest.approx(2 * (1 - row["probability_claimed"]))
    assert row["grade"] == UNDECIDED
    assert "0.5 in 80% of sweeps" in row["needed"]


def test_depth_is_confounded_with_what_separates_the_labels(of_study: pd.DataFrame) -> None:
    row = of_study.loc["training-best-depth"]
    assert row["low"] > 0
    assert row["grade"] == CONFOUNDED
    assert "number of blocks (no overlap; with it held fixed" in row["confounded_with"]


def test_best_layers_that_agree_are_another_question_than_why(
    study_cells: xr.Dataset, of_study: pd.DataFrame
) -> None:
    r = model_agreement(study_of(study_cells), concept="corrigible")
    agree, specific = of_study.loc["agreement-corrigible"], of_study.loc["specific-corrigible"]
    assert agree[["value", "low", "high"]].tolist() == pytest.approx([r.value, r.low, r.high])
    assert agree["grade"] == SUPPORTED
    assert specific["grade"] == UNDECIDED


def test_three_concepts_cannot_say_what_concepts_do(of_study: pd.DataFrame) -> None:
    row = of_study.loc["agreement-tracks-steering"]
    assert (row["grade"], row["n"], row["interval_over"]) == (CANNOT_SAY, 3, "concepts")
    assert row["chance_if_large"] < 0.2


def test_published_caveats_are_remarks_of_the_question(of_study: pd.DataFrame) -> None:
    on_answers = of_study["remarks"].str.contains("a reader known to misread")
    assert set(of_study.index[on_answers]) == {
        *("agreement-corrigible", "agreement-self-awareness", "agreement-sycophancy"),
        "agreement-tracks-steering",
        *("specific-corrigible", "specific-self-awareness", "specific-sycophancy"),
    }


def test_a_claim_that_nothing_differs_turns_its_question(of_study: pd.DataFrame) -> None:
    assert of_study.loc["agreement-sycophancy", "claimed"] == "0"
    assert of_study.loc["agreement-corrigible", "claimed"] == "+"
    assert of_study.loc["moe-neutral", "claimed"] == "0"


def test_slopes_of_claims_are_those_of_the_model_with_random_slopes(
    study_cells: xr.Dataset, of_study: pd.DataFrame
) -> None:
    slope = concept_slope(study_of(study_cells), estimand="cohens_d", concept="survival_instinct")
    row = of_study.loc["scale-survival-instinct"]
    assert row[["value", "low", "high"]].tolist() == pytest.approx(
        [slope.value, slope.low, slope.high]
    )


def lowered(cells: xr.Dataset, by: float) -> xr.Dataset:
    """The cells with d lower by as much in every model with full RL, all models alike else."""
    effects = cells["selected_estimate"].transpose("estimand", "model", "concept").copy(deep=True)
    is_rl = (cells["training"] == "rl").values[:, None]
    noise = 0.05 * np.random.default_rng(1).normal(size=effects.loc["cohens_d"].shape)
    effects.loc["cohens_d"] = 1.0 - by * is_rl + noise
    optimism = 0 * cells["selected_optimism"]
    return cells.assign(selected_estimate=effects, selected_optimism=optimism)


def of_d(cells: xr.Dataset) -> pd.Series:
    return conclusions(questions(study_of(cells))).set_index("id").loc["training-cohens-d"]


@pytest.mark.parametrize(
    ("by", "grade"), [(1.0, EVERY_SUPPORT), (-1.0, (CONTRADICTED,)), (0.0, (UNDECIDED, CANNOT_SAY))]
)
def test_values_that_say_so_change_the_grade(
    six: xr.Dataset, by: float, grade: tuple[str, ...]
) -> None:
    row = of_d(lowered(six, by))
    assert row["grade"] in grade
    if by > 0:
        assert row["sentence"].startswith("These data support that full RL lowers the effect")


def test_margins_that_are_varied_change_what_is_negligible(
    study_tables: dict[str, pd.DataFrame], of_study: pd.DataFrame
) -> None:
    table = study_tables["margins"]
    assert set(table["factor"]) == set(VARIED)
    own = table[table["factor"] == 1].set_index("id")
    asked = of_study[of_study["grade"] != NOT_ASKED]
    assert own["grade"].to_dict() == asked["grade"].to_dict()
    assert own["value"].to_dict() == pytest.approx(asked["probability_negligible"].to_dict())
    for _, of in table.groupby("id"):
        assert of.sort_values("margin")["value"].is_monotonic_increasing


def test_a_question_is_judged_by_another_margin() -> None:
    known = Student(0.05, 0.05, 20)
    question = replace(QUESTION, evidence=Evidence.of(known, 1, 0.1, 0.95), known=known)
    assert question.grade == UNDECIDED
    assert by_margin([question])["grade"].tolist() == [UNDECIDED, UNDECIDED, UNDECIDED, NEGLIGIBLE]


@pytest.mark.parametrize("by", ["architecture", None])
def test_claims_on_another_contrast_are_not_asked(study_cells: xr.Dataset, by: str | None) -> None:
    from steercube.contrast import Contrast

    contrast = Contrast("architecture", "dense", "moe") if by else None
    claims = read_ledger(ROOT / "paper" / "claims.toml").claims
    ids = {question.id for question in questions(study_of(study_cells, contrast), claims)}
    assert "training-cohens-d" not in ids
    assert ("architecture-cohens-d" in ids) == bool(by)
    assert {"moe-neutral", "ranking", "scale-sycophancy"} <= ids


def test_a_claim_of_ones_own_is_a_question_of_its_own(six: xr.Dataset) -> None:
    arguments = {"estimand": "cohens_d", "concept": "one"}
    slope = Claim("mine", "1", "t", "0.5", "scale_slope", arguments)
    absent = Claim("none", "1", "t", "0.5", "scale_slope", arguments | {"concept": "envy"})
    asked = {question.id: question for question in questions(study_of(six), [slope, absent])}
    assert np.isfinite(asked["mine"].evidence.low)
    assert asked["none"].grade == NOT_ASKED
    assert "no concept 'envy'" in asked["none"].reason


def test_one_model_alone_is_asked_what_it_can_say(swept: xr.Dataset) -> None:
    one = swept.sel(model=["large"], model_other=["large"])
    asked = {question.id: question for question in questions(study_of(one))}
    agreement = asked["agreement-honesty"]
    assert agreement.over in ("items", "blocks of layers")
    assert np.isfinite(agreement.evidence.low)
    assert asked["ranking"].grade == NOT_ASKED
    assert asked["training-cohens-d"].grade == NOT_ASKED
