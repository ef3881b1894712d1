from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from steercube.analysis.conclusions.grades import (
    CANNOT_SAY,
    CONFOUNDED,
    CONTRADICTED,
    DECISIVE,
    FRAGILE,
    NEGLIGIBLE,
    NOT_ASKED,
    SUPPORTED,
    UNDECIDED,
    Evidence,
    grade,
    is_headline,
)
from steercube.estimate import Student

SHOWN = Evidence(claimed=1, margin=0.2, low=0.1, high=0.8, chance=0.9)
NONE = replace(SHOWN, claimed=0, low=-0.1, high=0.15)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (SHOWN, SUPPORTED),
        (replace(SHOWN, claimed=-1), CONTRADICTED),
        (replace(SHOWN, low=-0.8, high=-0.1), CONTRADICTED),
        (replace(SHOWN, low=-0.8, high=-0.1, claimed=-1), SUPPORTED),
        (replace(SHOWN, low=0.0), UNDECIDED),
        (replace(SHOWN, low=-0.1), UNDECIDED),
        (replace(SHOWN, low=-0.1, chance=0.19), CANNOT_SAY),
        (replace(SHOWN, low=-0.1, chance=np.nan), UNDECIDED),
        (replace(SHOWN, low=-0.1, high=0.15), NEGLIGIBLE),
        (replace(SHOWN, low=-0.1, high=0.15, chance=0.1), NEGLIGIBLE),
        (replace(SHOWN, low=-0.1, high=0.2), UNDECIDED),
        (replace(SHOWN, low=0.01, high=0.15), SUPPORTED),
        (replace(SHOWN, carried_by=("without a",)), FRAGILE),
        (replace(SHOWN, confounded_with=("size",)), CONFOUNDED),
        (replace(SHOWN, confounded_with=("size",), carried_by=("without a",)), CONFOUNDED),
        (replace(SHOWN, low=-0.1, carried_by=("without a",)), UNDECIDED),
        (replace(SHOWN, claimed=-1, confounded_with=("size",)), CONTRADICTED),
        (replace(SHOWN, low=np.nan), NOT_ASKED),
        (replace(SHOWN, chance=0.1), SUPPORTED),
        (NONE, SUPPORTED),
        (replace(NONE, high=0.2), UNDECIDED),
        (replace(NONE, high=0.2, chance=0.1), CANNOT_SAY),
        (replace(NONE, low=0.05, high=0.4), UNDECIDED),
        (replace(NONE, low=0.2, high=0.4), CONTRADICTED),
        (replace(NONE, low=-0.4, high=-0.2), CONTRADICTED),
        (replace(SHOWN, never_negative=True, p_value=0.2), UNDECIDED),
        (replace(SHOWN, never_negative=True, p_value=0.2, high=0.15), NEGLIGIBLE),
        (replace(SHOWN, never_negative=True, p_value=0.01), SUPPORTED),
    ],
)
def test_the_rules(evidence: Evidence, expected: str) -> None:
    assert grade(evidence) == expected


def test_evidence_is_read_off_a_distribution() -> None:
    """Of a t with mean 0.5, scale 0.2 and 4 degrees of freedom, by scipy's own functions."""
    known, t = Student(0.5, 0.2, 4), stats.t(4, 0.5, 0.2)
    of = Evidence.of(known, 1, 0.2, 0.95)
    assert (of.low, of.high) == pytest.approx(t.interval(0.95))
    assert of.probability_negative == pytest.approx(t.cdf(0))
    assert of.probability_claimed == pytest.approx(t.sf(0))
    assert of.probability_negligible == pytest.approx(t.cdf(0.2) - t.cdf(-0.2))
    assert of.p_of_grade == of.p_value == pytest.approx(2 * t.cdf(0))
    none = Evidence.of(known, 0, 0.2, 0.95)
    assert none.p_of_grade == none.p_negligible == 1.0
    assert none.p_beyond == pytest.approx(2 * t.cdf(0.2))
    assert none.probability_claimed == none.probability_negligible
    assert np.isnan(replace(of, never_negative=True).probability_claimed)


@pytest.mark.parametrize("claimed", [-1, 0, 1])
@pytest.mark.parametrize("centre", np.linspace(-1, 1, 21))
def test_a_decision_and_its_p_agree(claimed: int, centre: float) -> None:
    """The p of a grade is at most 5% just where the grade is decisive."""
    for scale in (0.05, 0.1, 0.3):
        of = Evidence.of(Student(centre, scale, 8), claimed, 0.4, 0.95)
        assert (grade(of) in DECISIVE) == (of.p_of_grade <= 0.05)


def test_claims_of_opposite_signs_have_opposite_grades() -> None:
    for centre in np.linspace(-1, 1, 41):
        known, mirrored = Student(centre, 0.15, 6), Student(-centre, 0.15, 6)
        one, other = (
            grade(Evidence.of(of, claimed, 0.2, 0.95))
            for of, claimed in ((known, 1), (mirrored, -1))
        )
        assert one == other


def test_only_a_decisive_grade_that_survives_holm_is_a_headline() -> None:
    assert is_headline(SUPPORTED, 0.05)
    assert not is_headline(SUPPORTED, 0.06)
    assert not is_headline(UNDECIDED, 0.01)
    assert is_headline(NEGLIGIBLE, 0.05)
    assert not is_headline(NEGLIGIBLE, 0.9)
    assert {UNDECIDED, CANNOT_SAY, NOT_ASKED}.isdisjoint(DECISIVE)


def test_a_two_sided_test_and_two_one_sided_ones_keep_their_level() -> None:
    """Means of ten values, 4,000 times: with no effect, and with one of just the margin."""
    rng = np.random.default_rng(5)
    for truth, claimed in ((0.0, 1), (0.6, 0)):
        wrong = []
        for values in truth + rng.normal(size=(4000, 10)):
            known = Student(values.mean(), values.std(ddof=1) / np.sqrt(10), 9)
            wrong.append(grade(Evidence.of(known, claimed, 0.6, 0.95)) == SUPPORTED)
        assert np.mean(wrong) == pytest.approx(0.025, abs=0.01)
