from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import make_effects, study_of

from steercube.analysis.over_models.cell_effects import CellEffects, concept_terms
from steercube.analysis.over_models.posterior import PRIOR, fit
from steercube.analysis.over_models.slopes import (
    concept_slope,
    fit_slopes,
    slope_difference,
    slope_of,
)


def with_slopes(effects: CellEffects, slopes: np.ndarray, noise: float = 0.02) -> CellEffects:
    """Effects that rise with size by each concept's own slope."""
    size = effects.predictors["scale"][effects.model]
    rng = np.random.default_rng(0)
    value = 1 + slopes[effects.concept] * size + noise * rng.normal(size=len(size))
    return replace(effects, value=value, covariance=noise**2 * np.eye(len(size)))


@pytest.fixture(scope="module")
def effects() -> CellEffects:
    return make_effects(np.random.default_rng(6), n_models=10, n_concepts=4)


def test_known_slopes_are_recovered(effects: CellEffects) -> None:
    truth = np.array([-0.5, 0.0, 0.4, 1.0])
    posterior = fit_slopes(with_slopes(effects, truth))
    for concept, slope in zip(effects.concepts, truth, strict=True):
        low, middle, high = posterior.interval(slope_of(concept), 0.95)
        assert low < slope < high
        assert middle == pytest.approx(slope, abs=0.1)
    one, other = effects.concepts[3], effects.concepts[0]
    low, middle, high = posterior.interval(slope_difference(one, other), 0.95)
    assert low < 1.5 < high
    assert middle == pytest.approx(1.5, abs=0.1)


def test_equal_slopes_are_those_of_the_model_without_slopes_of_ones_own(
    effects: CellEffects,
) -> None:
    """With sd_slope 0 every concept has b_scale; the evidence is then the plain model's too."""
    plain = fit(effects, terms=("scale",))
    none = fit(
        effects,
        terms=("scale", *concept_terms(effects)),
        prior=replace(PRIOR, sd_slope=1e-6),
    )
    assert none.log_evidence == pytest.approx(plain.log_evidence, abs=1e-4)
    for concept in effects.concepts:
        assert none.interval(slope_of(concept), 0.95) == pytest.approx(
            plain.interval("scale", 0.95), abs=1e-4
        )


def test_a_slope_among_equal_ones_is_drawn_towards_them(effects: CellEffects) -> None:
    noisy = with_slopes(effects, np.array([0.0, 0.0, 0.0, 1.0]), noise=0.3)
    middle = fit_slopes(noisy).interval(slope_of(effects.concepts[3]), 0.95)[1]
    at = noisy.concept == 3
    size = noisy.predictors["scale"][noisy.model[at]]
    alone = np.polyfit(size, noisy.value[at], 1)[0]
    assert 0 < middle < alone


def test_given_the_sds_slopes_are_those_of_a_dense_calculation(effects: CellEffects) -> None:
    """Generalised least squares with every random effect in one covariance matrix, by hand."""
    sd_slope = 0.4
    posterior = fit(
        effects,
        terms=("scale", *concept_terms(effects)),
        prior=replace(PRIOR, sd_slope=sd_slope),
        n_nodes=3,
    )
    node = int(np.argmax(posterior.weight))
    sds = {name: values[node] for name, values in posterior.sds.items()}
    size = effects.predictors["scale"][effects.model]
    same_model = np.equal.outer(effects.model, effects.model)
    same_concept = np.equal.outer(effects.concept, effects.concept)
    v = (
        effects.covariance
        + sds["sd_model"] ** 2 * same_model
        + sds["sd_concept"] ** 2 * same_concept
        + sds["sd_cell"] ** 2 * np.eye(len(size))
        + PRIOR.intercept**2
        + (PRIOR.scale**2 + sd_slope**2 * same_concept) * np.outer(size, size)
    )
    for at, concept in enumerate(effects.concepts):
        cross = size * (PRIOR.scale**2 + sd_slope**2 * (effects.concept == at))
        mean = cross @ np.linalg.solve(v, effects.value)
        variance = PRIOR.scale**2 + sd_slope**2 - cross @ np.linalg.solve(v, cross)
        found_mean, found_sd = posterior._normal(slope_of(concept))
        assert found_mean[node] == pytest.approx(mean, abs=1e-8)
        assert found_sd[node] == pytest.approx(np.sqrt(variance), rel=1e-6)


def test_a_concept_may_be_called_as_a_user_likes(effects: CellEffects) -> None:
    """Names hold what joins the names of terms elsewhere; the slopes are those of plain names."""
    plain = fit_slopes(effects, n_nodes=6)
    names = ("a - b", "trust in AI", "one + other", "more minus less")
    other = fit_slopes(replace(effects, concepts=names), n_nodes=6)
    for was, now in zip(effects.concepts, names, strict=True):
        assert other.interval(slope_of(now), 0.9) == plain.interval(slope_of(was), 0.9)


def test_the_slope_of_a_study_has_its_reason_or_interval(six: xr.Dataset) -> None:
    study = study_of(six)
    found = concept_slope(study, estimand="cohens_d", concept="one")
    assert found.low < found.value < found.high
    assert found.n == 6
    alike = six.assign_coords(n_params=("model", np.full(6, 4e9)))
    none = concept_slope(study_of(alike), estimand="cohens_d", concept="one")
    assert "unlike size" in none.reason
