from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from builders import study_of

from steercube.analysis.conclusions.grades import (
    CONTRADICTED,
    GRADES,
    NEGLIGIBLE,
    SUPPORTED,
    UNDECIDED,
    Evidence,
)
from steercube.analysis.simulated.grading import (
    A_DIFFERENCE,
    BY_HOLM,
    BY_ITSELF,
    CASES,
    DESIGNS,
    NONE,
    graded,
    grading,
)
from steercube.analysis.simulated.keeping import KeptIn
from steercube.analysis.simulated.sweeps import Scenario, Shape, simulate_cells

SHOWN = {"margin": 0.2, "low": 0.1, "high": 0.8}


@pytest.mark.parametrize(
    ("truth", "evidence", "grade", "wrong"),
    [
        (0.5, Evidence(1, **SHOWN), SUPPORTED, False),
        (0.0, Evidence(1, **SHOWN), SUPPORTED, True),
        (-0.5, Evidence(1, **SHOWN), SUPPORTED, True),
        (-0.5, Evidence(-1, **SHOWN), CONTRADICTED, False),
        (0.0, Evidence(-1, **SHOWN), CONTRADICTED, True),
        (0.1, Evidence(1, 0.2, -0.1, 0.1), NEGLIGIBLE, False),
        (0.2, Evidence(1, 0.2, -0.1, 0.1), NEGLIGIBLE, True),
        (0.5, Evidence(1, 0.2, -0.1, 0.8), UNDECIDED, False),
        (0.1, Evidence(0, 0.2, -0.1, 0.1), SUPPORTED, False),
        (0.2, Evidence(0, 0.2, -0.1, 0.1), SUPPORTED, True),
        (0.1, Evidence(0, 0.2, 0.3, 0.5), CONTRADICTED, True),
        (0.4, Evidence(0, 0.2, 0.3, 0.5), CONTRADICTED, False),
    ],
)
def test_a_grade_is_wrong_where_it_says_what_is_not_so(
    truth: float, evidence: Evidence, grade: str, wrong: bool
) -> None:
    found = graded(truth, evidence)
    assert (found.grade, found.wrong) == (grade, wrong)
    assert found.claim == (A_DIFFERENCE if evidence.claimed else NONE)


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.design for case in CASES if case.question == "contrast"} == set(DESIGNS)


def test_a_balanced_design_has_every_size_and_concept(study_cells: xr.Dataset) -> None:
    study = study_of(study_cells)
    shape = Shape.balanced(study, 9, 9)
    assert shape.ran.all()
    assert shape.ran.shape == (18, 6)
    label, size = shape.predictors["contrast"], shape.predictors["scale"]
    assert np.corrcoef(label, size)[0, 1] == pytest.approx(0, abs=1e-12)
    assert size.max() - size.min() == pytest.approx(np.log10(235e9 / 4e9))


def test_simulated_cells_have_the_mean_and_the_spread_of_their_scenario(
    study_cells: xr.Dataset,
) -> None:
    """Over 400 sweeps: the labels' difference in means, and its standard error by the formula."""
    study = study_of(study_cells)
    shape, rng = Shape.balanced(study, 4, 4), np.random.default_rng(2)
    scenario = Scenario(training=-0.5, sd_model=0.3)
    found = []
    for _ in range(400):
        effects = simulate_cells(study, shape, scenario, rng)
        means = effects.table.mean(axis=1)
        found.append(means[effects.is_high].mean() - means[~effects.is_high].mean())
    expected = np.sqrt(2 / 4 * (0.3**2 + 0.25**2 / 6))
    assert np.mean(found) == pytest.approx(-0.5, abs=4 * expected / 20)
    assert np.std(found) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("question", ["contrast", "slope of a concept", "agreement", "ranking"])
def test_a_small_run_has_a_row_for_each_claim(study_cells: xr.Dataset, question: str) -> None:
    case = next(case for case in CASES if case.question == question)
    table = grading(study_of(study_cells), n_simulations=3, only=[case.name])
    assert set(table["claim"]) <= {A_DIFFERENCE, NONE}
    shares = table[[f"grade: {name}" for name in GRADES]].sum(axis=1)
    assert shares.tolist() == pytest.approx([1.0] * len(table))
    wrong = table[["wrongly_supported", "wrongly_contradicted", "wrongly_negligible"]]
    assert (wrong.sum(axis=1) <= 1).all()


def test_a_run_goes_on_where_it_was_cut_off(study_cells: xr.Dataset, tmp_path: Path) -> None:
    study, name = study_of(study_cells), "contrast, 6 + 6, none"
    keep = KeptIn(tmp_path, "cells")
    first = grading(study, n_simulations=4, only=[name], keep=keep)

    def refused(*of: object) -> list[list[object]]:
        raise AssertionError("simulated again")

    second = grading(study, n_simulations=4, only=[name], keep=keep, map_numbers=refused)
    assert first.equals(second)


@pytest.mark.slow
def test_grades_are_seldom_wrong_and_find_what_there_is(study_cells: xr.Dataset) -> None:
    """300 sweeps of 9 + 9: two standard errors of 5% are 2.5%; beside them the t-test's power."""
    names = [f"contrast, 9 + 9, {size}" for size in ("none", "small", "0.3")]
    table = grading(study_of(study_cells), n_simulations=300, only=names)
    rows = table.set_index(["size", "claim"])
    assert rows.loc[("none", A_DIFFERENCE), "wrongly_supported"] < 0.05 + 0.025
    assert rows.loc[("small", NONE), "wrongly_supported"] < 0.05 + 0.025
    with_effect = rows.loc[("0.3", A_DIFFERENCE)]
    assert with_effect["supported"] > 0.75
    assert with_effect["supported"] > with_effect["rejected"] - 0.05


@pytest.mark.slow
def test_headlines_without_an_effect_are_seldom_supported(study_cells: xr.Dataset) -> None:
    table = grading(study_of(study_cells), n_simulations=150, only=["headlines, the study's, none"])
    rows = table.set_index("claim")["wrongly_supported"]
    assert rows[BY_HOLM] < 0.05 + 0.035
    assert rows[BY_HOLM] <= rows[BY_ITSELF]
