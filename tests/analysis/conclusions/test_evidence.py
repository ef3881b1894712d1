from dataclasses import replace

import numpy as np
import pytest
from builders import make_effects

from steercube.analysis.conclusions.evidence import of_contrast, terms_of
from steercube.analysis.conclusions.grades import CONFOUNDED, FRAGILE, SUPPORTED, grade
from steercube.analysis.over_models.cell_effects import TERMS, CellEffects
from steercube.analysis.over_models.confounders import Rival, holding
from steercube.analysis.over_models.posterior import fit


@pytest.fixture(scope="module")
def strong() -> CellEffects:
    """Ten models, an effect of -1 in d with hardly any spread between them."""
    rng = np.random.default_rng(3)
    return make_effects(rng, n_models=10, n_concepts=6, training=-1.0, sd_model=0.05)


def test_the_interval_is_that_of_the_posterior(strong: CellEffects) -> None:
    evidence = of_contrast(strong, claimed=-1, level=0.95)
    posterior = fit(strong, terms=TERMS)
    assert (evidence.low, evidence.high) == posterior.interval("contrast", 0.95)[::2]
    assert evidence.probability_claimed == posterior.cdf("contrast", 0.0)
    assert grade(evidence) == SUPPORTED
    assert (evidence.carried_by, evidence.confounded_with) == ((), ())


def test_what_contradicts_a_claim_is_looked_at_too(strong: CellEffects) -> None:
    rival = Rival("height", np.arange(10.0), 0.9, separates=True)
    evidence = of_contrast(strong, claimed=1, level=0.95, rivals=[rival])
    assert evidence.confounded_with[0].startswith("height (no overlap; with it held fixed")
    assert grade(evidence) == "contradicted"


def test_a_model_without_which_there_is_no_estimate_is_named() -> None:
    """With one model of the label left out, its other label has none to compare with."""
    rng = np.random.default_rng(3)
    effects = make_effects(rng, n_models=5, n_concepts=6, training=-2.0, sd_model=0.05)
    only = effects.only(effects.model != 4)
    x = np.array([-0.25, -0.25, -0.25, 0.75, 0.0])
    one = replace(only, predictors={"contrast": x})
    evidence = of_contrast(one, claimed=-1, level=0.5)
    assert "without d it cannot be estimated" in evidence.carried_by


def test_one_model_that_carries_an_effect_is_named(strong: CellEffects) -> None:
    """No effect but in one of the two models of the label, which is far off."""
    high = np.flatnonzero(strong.is_high)
    value = np.where(strong.model == high[0], -3.0, 0.0)
    value = value + np.random.default_rng(1).normal(size=len(value)) * 0.05
    carried = replace(strong, value=value)
    evidence = of_contrast(carried, claimed=-1, level=0.5)
    name = carried.models[high[0]]
    assert any(text.startswith(f"without {name} it is") for text in evidence.carried_by)
    assert grade(evidence) == FRAGILE


def test_an_assumption_that_carries_an_effect_is_named() -> None:
    """Just significant with the prior on how much models differ, not with a wider one."""
    rng = np.random.default_rng(3)
    effects = make_effects(rng, n_models=6, n_concepts=4, training=0.0, sd_model=0.05)
    x = effects.predictors["contrast"][effects.model]
    found = [
        of_contrast(replace(effects, value=effects.value - by * x), claimed=-1, level=0.95)
        for by in (0.3, 0.42, 1.0)
    ]
    assert [evidence.side for evidence in found] == [0, -1, -1]
    assert [bool(evidence.carried_by) for evidence in found] == [False, True, False]
    assert "half-normal(0.5)" in found[1].carried_by[0]


def test_a_variable_that_separates_the_labels_is_named(strong: CellEffects) -> None:
    rival = Rival("height", strong.is_high * 1.0, 1.0, separates=True)
    evidence = of_contrast(strong, claimed=-1, level=0.95, rivals=[rival])
    assert evidence.confounded_with == ("height (no overlap)",)
    assert grade(evidence) == CONFOUNDED


def test_a_variable_that_is_the_cause_is_named(strong: CellEffects) -> None:
    """The two models of the label are the heaviest but for one, and weight alone lowers d."""
    weight = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.2, 1.0, 1.1])
    value = -weight[strong.model] + 0.05 * np.random.default_rng(2).normal(size=len(strong.value))
    caused = replace(strong, value=value, predictors={"contrast": strong.predictors["contrast"]})
    r = float(np.corrcoef(weight, strong.is_high)[0, 1])
    rival = Rival("weight", weight, r, separates=False)
    evidence = of_contrast(caused, claimed=-1, level=0.95, rivals=[rival])
    fixed = fit(holding(caused, weight)).interval("contrast", 0.95)
    assert fixed[0] < 0 < fixed[2]
    shown = f"{fixed[1]:+.2f} [{fixed[0]:.2f}, {fixed[2]:.2f}]".replace("-", "−")
    assert evidence.confounded_with == (f"weight (r = {r:.2f}; with it held fixed {shown})",)
    assert grade(evidence) == CONFOUNDED


def test_a_variable_that_does_not_go_with_the_label_is_not_named(strong: CellEffects) -> None:
    other = np.tile([0.0, 1.0], 5)
    r = float(np.corrcoef(other, strong.is_high)[0, 1])
    rival = Rival("parity", other, r, separates=False)
    assert not of_contrast(strong, claimed=-1, level=0.95, rivals=[rival]).confounded_with


def test_what_cannot_be_fitted_has_no_evidence(strong: CellEffects) -> None:
    few = replace(strong, predictors={}, lacks_contrast="no labels")
    assert np.isnan(of_contrast(few, claimed=-1, level=0.95).low)
    assert terms_of(strong) == TERMS


def test_the_chance_is_known_where_the_interval_holds_zero(strong: CellEffects) -> None:
    rng = np.random.default_rng(8)
    none = make_effects(rng, n_models=6, n_concepts=3, training=0.0, sd_model=0.3)
    evidence = of_contrast(none, claimed=-1, level=0.95)
    assert evidence.low < 0 < evidence.high
    assert 0 < evidence.chance < 1
    assert np.isnan(of_contrast(strong, claimed=-1, level=0.95).chance)
