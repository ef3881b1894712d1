import numpy as np
import pandas as pd
import pytest

from steercube.analysis.conclusions.multiplicity import (
    families,
    holm,
    with_holm,
)


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    """By its definition: the k-th smallest of m times m - k + 1, at least the ones before it."""
    p = np.array([0.03, 0.001, np.nan, 0.04, 0.9])
    assert holm(p) == pytest.approx(np.array([0.09, 0.004, np.nan, 0.09, 0.9]), nan_ok=True)
    assert np.isnan(holm(np.array([np.nan, np.nan]))).all()
    assert holm(np.array([])).shape == (0,)


def test_each_family_is_corrected_for_its_own_tests() -> None:
    table = pd.DataFrame({"method": list("aabb"), "p_value": [0.01, 0.04, 0.01, np.nan], "z": 1})
    made = with_holm(table, "method")
    assert list(made) == ["method", "p_value", "p_holm", "z"]
    assert made["p_holm"].tolist()[:3] == pytest.approx([0.02, 0.04, 0.01])
    assert np.isnan(made["p_holm"].iloc[3])
    assert with_holm(table)["p_holm"].iloc[0] == pytest.approx(0.03)
    bare = pd.DataFrame({"reason": ["none"]})
    assert with_holm(bare) is bare


def test_any_false_alarm_in_a_family_is_as_rare_as_its_level() -> None:
    """20 true nulls, 1,000 times: 5% with a standard error of 0.7%; uncorrected it is 64%."""
    p = np.random.default_rng(1).uniform(size=(1000, 20))
    assert np.mean([holm(row).min() <= 0.05 for row in p]) == pytest.approx(0.05, abs=0.02)
    assert np.mean(p.min(axis=1) <= 0.05) > 0.5


def test_families_of_the_study(study_tables: dict[str, pd.DataFrame]) -> None:
    made = study_tables["multiplicity"].set_index("family")
    asked = study_tables["conclusions"].dropna(subset="p_value")
    assert list(made.index) == list(dict.fromkeys(asked["family"]))
    assert (asked["p_holm"] >= asked["p_value"]).all()
    assert asked["p_holm"].max() <= 1
    of = asked[asked["family"] == "headlines"]
    assert made.loc["headlines", "n"] == len(of) == 4
    assert made.loc["headlines", "uncorrected"] == (of["p_value"] <= 0.05).sum()
    assert made.loc["headlines", "value"] == (of["p_holm"] <= 0.05).sum()
    assert of["p_holm"].min() == pytest.approx(4 * of["p_value"].min())


def test_families_without_tests_have_no_row() -> None:
    none = pd.DataFrame({"family": ["headlines"], "p_value": [np.nan], "p_holm": [np.nan]})
    assert len(families(none)) == 0
