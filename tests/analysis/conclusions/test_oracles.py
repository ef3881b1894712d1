"""Two one-sided tests against R, statsmodels and pingouin.

R's numbers are frozen: tests/oracles/README.md says how they were made. Those packages give the
larger of the two one-sided p, to compare with half of a significance level; ours is twice that.
"""

import warnings

import numpy as np
import pytest
from oracles.frozen import DATA, LEVEL, THEIRS
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from steercube.analysis.conclusions.grades import Evidence
from steercube.analysis.over_models.means import mean_of_models, pooled_sd
from steercube.estimate import Student

GROUPS = [
    pytest.param(at, which, id=f"{len(of['value'])} models, margin {margin}")
    for at, of in enumerate(DATA["groups"])
    for which, margin in enumerate(THEIRS["groups"][at]["margin"])
]


def difference(a: np.ndarray, b: np.ndarray) -> Student:
    """The difference of two means with one sd for both."""
    labels = np.repeat([0, 1], [len(a), len(b)])
    sd, df = pooled_sd(np.concatenate([a, b]), labels)
    return Student(float(a.mean() - b.mean()), sd * (1 / len(a) + 1 / len(b)) ** 0.5, df)


@pytest.mark.parametrize(("at", "which"), GROUPS)
def test_the_p_of_no_difference_is_twice_that_of_two_one_sided_tests(at: int, which: int) -> None:
    """t.test(a, b, mu = -margin, "greater") and (mu = margin, "less"), and their like in Python."""
    values, marked = np.array(DATA["groups"][at]["value"]), np.array(DATA["groups"][at]["marked"])
    a, b, theirs = values[marked], values[~marked], THEIRS["groups"][at]
    margin, one_sided = theirs["margin"][which], theirs["larger_one_sided_p"][which]
    found = Evidence.of(difference(a, b), claimed=0, margin=margin, level=LEVEL)
    assert found.p_negligible == pytest.approx(min(1.0, 2 * one_sided), rel=1e-9)
    assert ttost_ind(a, b, -margin, margin, usevar="pooled")[0] == pytest.approx(one_sided)
    assert pingouin_tost(a, b, margin) == pytest.approx(one_sided)
    assert found.is_negligible == (found.p_negligible < 1 - LEVEL)


def test_the_p_of_no_mean_is_twice_that_of_two_one_sided_tests() -> None:
    """One value a model, against zero: statsmodels' paired test of the values and zeros."""
    values = np.array(DATA["groups"][1]["value"]) - 1
    known = mean_of_models(values, LEVEL).known
    assert known is not None
    for margin in (0.1, 0.5, 1.0):
        one_sided = ttost_paired(values, np.zeros(len(values)), -margin, margin)[0]
        found = Evidence.of(known, claimed=0, margin=margin, level=LEVEL)
        assert found.p_negligible == pytest.approx(min(1.0, 2 * one_sided), rel=1e-9)


def pingouin_tost(a: np.ndarray, b: np.ndarray, margin: float) -> float:
    """The larger one-sided p."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pingouin

        found = pingouin.tost(a, b, bound=margin, correction=False)
    return float(found["pval"].iloc[0])
