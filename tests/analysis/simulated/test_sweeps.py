from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import make_effects, study_of

from steercube.analysis.over_models.cell_effects import TERMS, cell_effects
from steercube.analysis.over_models.posterior import SDS, Prior, fit
from steercube.analysis.simulated.sweeps import (
    NEIGHBOURS,
    Scenario,
    Truth,
    draw,
    prior_cells,
    simulate,
)

N_ITEMS = 20_000


def truth(n_layers: int = 3, *, letter: float = 0.0, correlation: float = 0.4) -> Truth:
    ones = np.ones(n_layers)
    return Truth(
        positive=np.linspace(0.5, 1.5, n_layers),
        negative=-0.5 * ones,
        sd_positive=2 * ones,
        sd_negative=ones,
        correlation=correlation * ones,
        letter=letter * ones,
    )


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.corrcoef(one, two)[0, 1])


def test_samples_have_the_moments_of_their_truth(rng: np.random.Generator) -> None:
    negative, positive = np.moveaxis(draw({"a": truth()}, N_ITEMS, rng)["a"].values, 1, 0)
    np.testing.assert_allclose(positive.mean(axis=-1), [0.5, 1.0, 1.5], atol=0.06)
    np.testing.assert_allclose(negative.mean(axis=-1), -0.5, atol=0.03)
    np.testing.assert_allclose(positive.std(axis=-1), 2, rtol=0.03)
    np.testing.assert_allclose(negative.std(axis=-1), 1, rtol=0.03)
    for low, high in zip(negative, positive, strict=True):
        assert correlation(low, high) == pytest.approx(0.4, abs=0.03)
    assert correlation(positive[0], positive[1]) == pytest.approx(NEIGHBOURS, abs=0.01)


def test_the_true_d_is_that_of_many_items(rng: np.random.Generator) -> None:
    of = truth(letter=0.5)
    negative, positive = np.moveaxis(draw({"a": of}, N_ITEMS, rng)["a"].values, 1, 0)
    pooled = np.sqrt((positive.var(axis=-1) + negative.var(axis=-1)) / 2)
    found = (positive - negative).mean(axis=-1) / pooled
    np.testing.assert_allclose(found, of.cohens_d, atol=0.04)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_letter_takes_its_share_of_the_spread(share: float, rng: np.random.Generator) -> None:
    """Both strengths favour it, so it is in what correlates them too."""
    samples = draw({"a": truth(letter=share)}, N_ITEMS, rng)["a"]
    negative, positive = samples.values[0]
    sign = np.where(samples.letter == "A", 1.0, -1.0)
    assert correlation(positive, sign) == pytest.approx(share, abs=0.03)
    expected = share**2 + (1 - share**2) * 0.4
    assert correlation(negative, positive) == pytest.approx(expected, abs=0.03)


def test_models_share_half_of_what_items_do(rng: np.random.Generator) -> None:
    models = {"a": truth(), "b": truth(2), "c": truth()}
    drawn = draw(models, N_ITEMS, rng)
    assert drawn["b"].values.shape == (2, 2, N_ITEMS)
    assert (drawn["a"].letter == drawn["b"].letter).all()
    one, two = (drawn[name].values[1, 0] for name in "ab")
    assert correlation(one, two) == pytest.approx(0.5, abs=0.03)


def test_a_simulated_sweep_has_the_shape_and_truth_of_its_scenario(
    study_cells: xr.Dataset,
) -> None:
    scenario = Scenario(training=-2.0, sd_model=0.01, sd_concept=0.01, sd_cell=0.01, intercept=3.0)
    effects = simulate(study_of(study_cells), scenario, np.random.default_rng(1)).effects
    real = cell_effects(study_of(study_cells))
    assert (effects.model == real.model).all()
    assert (effects.concept == real.concept).all()
    assert np.sqrt(np.diag(effects.covariance)).mean() == pytest.approx(0.25, abs=0.1)
    posterior = fit(effects, terms=("contrast",))
    assert posterior.quantile("contrast", 0.5) == pytest.approx(-2.0, abs=0.25)


def test_models_of_a_training_may_vary_more(study_cells: xr.Dataset) -> None:
    """Full RL's by the factor `uneven`, the others' as before; all far from zero."""
    still = Scenario(0.0, sd_model=0.0, intercept=8.0, sd_concept=0.0, sd_cell=0.0)
    models = np.array(cell_effects(study_of(study_cells)).models)
    is_rl = study_cells["training"].sel(model=models).values == "rl"
    means: dict[bool, list[list[float]]] = {True: [], False: []}
    for seed in range(12):
        one, two = (
            simulate(
                study_of(study_cells),
                replace(still, sd_model=0.5, uneven=uneven),
                np.random.default_rng(seed),
            ).effects
            for uneven in (1.0, 3.0)
        )
        base = simulate(study_of(study_cells), still, np.random.default_rng(seed)).effects
        for m, rl in enumerate(is_rl):
            cells = base.model == m
            apart = [float((e.value - base.value)[cells].mean()) for e in (one, two)]
            means[bool(rl)].append(apart)
    for rl, ratio in ((True, 3.0), (False, 1.0)):
        one, two = np.array(means[rl]).T
        assert float(one @ two / (one @ one)) == pytest.approx(ratio, rel=0.1)


def test_cells_drawn_from_the_prior_keep_their_shape(rng: np.random.Generator) -> None:
    effects = make_effects(rng)
    drawn, of = prior_cells(effects, Prior(), rng)
    assert set(of) == {"intercept", *TERMS, *SDS}
    assert min(of[name] for name in SDS) > 0
    assert drawn.value.shape == effects.value.shape
    np.testing.assert_array_equal(drawn.covariance, effects.covariance)
    np.testing.assert_array_equal(drawn.model, effects.model)


def test_cells_drawn_from_the_prior_have_the_truth_that_is_told(rng: np.random.Generator) -> None:
    """What is left of them beside their fixed part has the variance of all that varies."""
    effects = make_effects(rng)
    z = []
    for _ in range(400):
        drawn, of = prior_cells(effects, Prior(), rng)
        fixed = effects.design(TERMS) @ [of[name] for name in ("intercept", *TERMS)]
        sd = np.sqrt(sum(of[name] ** 2 for name in SDS) + np.diag(effects.covariance))
        z.append((drawn.value - fixed) / sd)
    assert float(np.mean(z)) == pytest.approx(0, abs=0.1)
    assert float(np.mean(np.square(z))) == pytest.approx(1, abs=0.12)
