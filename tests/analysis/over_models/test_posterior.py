from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import make_effects
from scipy import integrate, special, stats

from steercube.analysis.over_models.posterior import (
    PRIOR,
    SDS,
    TERMS,
    CellEffects,
    cell_effects,
    fit,
    primary_terms,
    why_not,
)
from steercube.analysis.over_models.predictive import posterior_draws


@pytest.fixture
def effects(rng: np.random.Generator) -> CellEffects:
    return make_effects(rng)


def covariance_of(effects: CellEffects, sds: dict[str, float]) -> np.ndarray:
    """V given the sds, slopes and intercept integrated out: written down again, the long way."""
    x = effects.design(TERMS)
    prior = np.array([PRIOR.of(n) for n in ("intercept", *TERMS)]) ** 2
    total = x @ np.diag(prior) @ x.T + effects.covariance
    total = total + sds["sd_model"] ** 2 * np.equal.outer(effects.model, effects.model)
    total = total + sds["sd_concept"] ** 2 * np.equal.outer(effects.concept, effects.concept)
    return total + sds["sd_cell"] ** 2 * np.eye(len(x))


def test_one_sd_is_integrated_as_scipy_does(rng: np.random.Generator) -> None:
    """With one concept only sd_model is left: a one-dimensional integral."""
    effects = make_effects(rng, n_concepts=1)
    posterior = fit(effects, terms=TERMS)
    assert list(posterior.sds) == ["sd_model"]

    def density(sd: float) -> float:
        v = covariance_of(effects, {"sd_model": sd, "sd_concept": 0.0, "sd_cell": 0.0})
        like = stats.multivariate_normal(np.zeros(len(v)), v).pdf(effects.value)
        return float(like * stats.halfcauchy.pdf(sd, scale=PRIOR.sd_model))

    evidence, _ = integrate.quad(density, 0, 40, epsabs=1e-14, points=[0.1, 0.5, 2])
    assert posterior.log_evidence == pytest.approx(np.log(evidence), abs=1e-4)
    below, _ = integrate.quad(density, 0, 0.2, epsabs=1e-14)
    assert posterior.cdf("sd_model", 0.2) == pytest.approx(below / evidence, abs=5e-4)


def test_three_sds_are_integrated_as_draws_from_the_prior_say(effects: CellEffects) -> None:
    """60,000 draws; within four standard errors of their means (false alarms: 1 in 16,000)."""
    rng = np.random.default_rng(5)
    draws = {n: PRIOR.draw(n, 1.0, rng, 60_000) for n in SDS}
    terms = [
        effects.covariance,
        np.equal.outer(effects.model, effects.model),
        np.equal.outer(effects.concept, effects.concept),
        np.eye(len(effects.value)),
    ]
    x = effects.design(TERMS)
    fixed = x @ np.diag([PRIOR.of(n) ** 2 for n in ("intercept", *TERMS)]) @ x.T
    log_like = []
    for at in np.array_split(np.arange(60_000), 60):
        v = fixed + terms[0]
        for name, z in zip(SDS, terms[1:], strict=True):
            v = v + draws[name][at, None, None] ** 2 * z
        lower = np.linalg.cholesky(v)
        half = np.linalg.solve(lower, np.broadcast_to(effects.value[:, None], (len(at), len(x), 1)))
        log_det = 2 * np.log(np.einsum("...ii->...i", lower)).sum(-1)
        square = (half[..., 0] ** 2).sum(-1)
        log_like.append(-0.5 * (len(x) * np.log(2 * np.pi) + log_det + square))
    log_like = np.concatenate(log_like)
    posterior = fit(effects, terms=TERMS)
    weight = np.exp(log_like - log_like.max())
    mean = special.logsumexp(log_like) - np.log(len(log_like))
    se = weight.std() / weight.mean() / np.sqrt(len(weight))
    assert posterior.log_evidence == pytest.approx(mean, abs=4 * se)
    for name in SDS:
        expected = weight @ draws[name] / weight.sum()
        spread = np.sqrt(weight**2 @ (draws[name] - expected) ** 2) / weight.sum()
        assert posterior.expectation(name) == pytest.approx(expected, abs=4 * spread)


def test_more_nodes_change_nothing(effects: CellEffects) -> None:
    few, many = fit(effects), fit(effects, n_nodes=48)
    assert few.log_evidence == pytest.approx(many.log_evidence, abs=5e-3)
    for share in (0.025, 0.5, 0.975):
        assert few.quantile("training", share) == pytest.approx(
            many.quantile("training", share), abs=1e-3
        )
        assert few.quantile("sd_cell", share) == pytest.approx(
            many.quantile("sd_cell", share), abs=5e-3
        )


def test_with_sds_of_zero_it_is_generalised_least_squares(effects: CellEffects) -> None:
    tiny = replace(PRIOR, sd_model=1e-4, sd_concept=1e-4, sd_cell=1e-4, training=50, scale=50)
    tiny = replace(tiny, cauchy=False)
    posterior = fit(effects, prior=tiny)
    x, inverse = effects.design(TERMS), np.linalg.inv(effects.covariance)
    precision = x.T @ inverse @ x
    expected = np.linalg.solve(precision, x.T @ inverse @ effects.value)
    assert posterior.expectation("training") == pytest.approx(expected[1], abs=2e-3)
    assert posterior.spread("training") == pytest.approx(
        np.sqrt(np.linalg.inv(precision)[1, 1]), rel=2e-3
    )


def test_units_do_not_matter(effects: CellEffects) -> None:
    """Effects five times as large in a unit of five."""
    scaled = replace(effects, unit=5.0, value=5 * effects.value, covariance=25 * effects.covariance)
    one, other = fit(effects), fit(scaled)
    assert 5 * one.quantile("training", 0.3) == pytest.approx(other.quantile("training", 0.3))
    assert one.bayes_factor("training") == pytest.approx(other.bayes_factor("training"))


def test_the_order_of_cells_does_not_matter(effects: CellEffects) -> None:
    order = np.random.default_rng(1).permutation(len(effects.value))
    one, other = fit(effects), fit(effects.only(order))
    assert one.quantile("training", 0.1) == pytest.approx(other.quantile("training", 0.1))
    assert one.log_evidence == pytest.approx(other.log_evidence)


def test_exchanged_trainings_change_the_sign(effects: CellEffects) -> None:
    turned = replace(
        effects,
        predictors=effects.predictors | {"training": -effects.predictors["training"]},
    )
    assert fit(effects).quantile("training", 0.1) == pytest.approx(
        -fit(turned).quantile("training", 0.9)
    )


def test_the_bayes_factor_is_the_ratio_of_evidences(effects: CellEffects) -> None:
    with_it, without = fit(effects), fit(effects, terms=("scale",))
    assert np.log(with_it.bayes_factor("training")) == pytest.approx(
        with_it.log_evidence - without.log_evidence, abs=5e-3
    )


def test_quantiles_undo_the_distribution(effects: CellEffects) -> None:
    posterior = fit(effects)
    for name in ("training", "u of a", *SDS):
        for share in (0.025, 0.5, 0.975):
            value = posterior.quantile(name, share)
            assert posterior.cdf(name, value) == pytest.approx(share, abs=1e-6)
    assert posterior.within("training", 1e3) == pytest.approx(1)


def test_a_large_effect_is_found_and_none_is_not(rng: np.random.Generator) -> None:
    """Twenty models without spread of their own: the interval of 1 is far from 0."""
    found = fit(make_effects(rng, n_models=10, training=1.0, sd_model=0.05), terms=("training",))
    assert found.quantile("training", 0.025) > 0.5
    assert found.bayes_factor("training") > 100
    none = fit(make_effects(rng, n_models=10, training=0.0, sd_model=0.05), terms=("training",))
    assert none.quantile("training", 0.025) < 0 < none.quantile("training", 0.975)
    assert none.bayes_factor("training") < 1


@pytest.mark.slow
def test_the_interval_covers_the_truth() -> None:
    """200 draws of cells, sd_model 0.15 and 0.3; binomial, false alarms under 1 in 1,000."""
    for sd_model in (0.15, 0.3):
        hits = []
        for seed in range(200):
            effects = make_effects(np.random.default_rng(seed), training=-0.3, sd_model=sd_model)
            below = fit(effects, n_nodes=12).cdf("training", -0.3)
            hits.append(0.025 < below < 0.975)
        assert np.mean(hits) > 0.89


def test_what_cannot_be_told_says_why(rng: np.random.Generator, effects: CellEffects) -> None:
    three = effects.only(np.flatnonzero(effects.model >= 3))
    assert why_not(three, ("training",)) == ""
    assert "need 4 models; 3 ran" in why_not(three, TERMS)
    assert primary_terms(three) == ("training",)
    one_training = replace(effects, predictors={"scale": effects.predictors["scale"]})
    assert "needs models of both trainings" in why_not(one_training, TERMS)
    assert primary_terms(one_training) == ("scale",)
    alike = replace(effects, predictors={"training": effects.predictors["training"]})
    assert "unlike size" in why_not(alike, TERMS)
    twin = effects.predictors["training"]
    assert "cannot be told apart" in why_not(
        replace(effects, predictors={"training": twin, "scale": 2 * twin}), TERMS
    )
    nothing = effects.only(np.array([], int))
    assert "no cell has a usable effect" in why_not(nothing, ())
    with pytest.raises(ValueError, match="need 4 models"):
        fit(three)


def test_cell_effects_are_those_of_the_cells(study_cells: xr.Dataset) -> None:
    effects = cell_effects(study_cells)
    assert len(effects.value) == 35
    assert effects.models == ("4B", "8B", "14B", "30B-A3B", "32B", "235B-A22B")
    at = np.flatnonzero((effects.model == 2) & (effects.concept == 5))[0]
    cell = study_cells.sel(model="14B", concept="sycophancy", estimand="cohens_d")
    corrected = float(cell["selected_estimate"] - cell["selected_optimism"])
    assert effects.value[at] == pytest.approx(corrected)
    same = effects.concept[:, None] == effects.concept
    assert (effects.covariance[~same] == 0).all()
    assert (effects.covariance[same] != 0).all()
    assert effects.predictors["training"].tolist() == pytest.approx([-1 / 3] * 4 + [2 / 3] * 2)


def test_raw_effects_of_any_size_have_a_unit_of_their_own(study_cells: xr.Dataset) -> None:
    """Logits twenty times as large: the same posterior, twenty times as large."""
    larger = study_cells.assign(
        selected_estimate=20 * study_cells["selected_estimate"],
        selected_optimism=20 * study_cells["selected_optimism"],
        selected_covariance=400 * study_cells["selected_covariance"],
    )
    one, other = (cell_effects(c, "delta") for c in (study_cells, larger))
    assert one.unit == pytest.approx(np.sqrt(np.mean(one.value**2)))
    assert one.negligible == pytest.approx(one.unit / 10)
    assert fit(other).quantile("training", 0.1) == pytest.approx(
        20 * fit(one).quantile("training", 0.1)
    )


def test_depths_have_an_error_of_at_least_their_step(study_cells: xr.Dataset) -> None:
    effects = cell_effects(study_cells, "best_depth")
    layers = study_cells["n_layers"].sel(model=list(effects.models)).values
    assert (np.diag(effects.covariance) >= 0.99 / layers[effects.model] ** 2 / 12).all()
    assert np.isfinite(cell_effects(study_cells, "depth_centroid").value).all()


def test_a_cell_without_an_error_is_left_out_and_named(six: xr.Dataset) -> None:
    covariance = six["selected_covariance"].copy(deep=True)
    covariance.loc[{"concept": "two", "model": "b", "model_other": "b"}] = np.nan
    effects = cell_effects(six.assign(selected_covariance=covariance))
    assert effects.left_out == ("b on two",)
    assert len(effects.value) == 17


def test_other_trainings_are_left_out_of_the_comparison(six: xr.Dataset) -> None:
    training = six["training"].copy(data=["base", *six["training"].values[1:]])
    effects = cell_effects(six.assign_coords(training=training))
    assert effects.models == tuple("bcdef")
    assert "training" in effects.predictors


def test_cells_of_an_earlier_kind_say_what_they_lack(six: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="make them again from their cube"):
        cell_effects(six.drop_vars("selected_depth_covariance"), "best_depth")


def test_priors_are_what_scipy_calls_them(rng: np.random.Generator) -> None:
    sd = np.array([0.01, 0.3, 2.0])
    cauchy = stats.halfcauchy(scale=PRIOR.sd_model * 5)
    normal = stats.halfnorm(scale=PRIOR.sd_cell * 5)
    assert PRIOR.log_density("sd_model", sd, 5.0) == pytest.approx(cauchy.logpdf(sd))
    assert PRIOR.log_density("sd_cell", sd, 5.0) == pytest.approx(normal.logpdf(sd))
    bounded = replace(PRIOR, cauchy=False).log_density("sd_model", sd, 1.0)
    assert bounded == pytest.approx(stats.halfnorm(scale=PRIOR.sd_model).logpdf(sd))
    for name, of in {"sd_model": cauchy, "sd_cell": normal}.items():
        assert stats.kstest(PRIOR.draw(name, 5.0, rng, 500), of.cdf).pvalue > 1e-4


def test_a_model_without_a_usable_cell_is_no_model(six: xr.Dataset) -> None:
    optimism = six["selected_optimism"].copy(deep=True)
    optimism.loc[{"model": "b"}] = np.nan
    effects = cell_effects(six.assign(selected_optimism=optimism))
    assert effects.models == tuple("acdef")
    assert len(effects.left_out) == 3
    assert effects.predictors["training"].mean() == pytest.approx(0)


def test_a_cell_without_any_error_does_no_harm(effects: CellEffects) -> None:
    covariance = effects.covariance.copy()
    covariance[3], covariance[:, 3] = 0.0, 0.0
    posterior = fit(replace(effects, covariance=covariance))
    assert np.isfinite(posterior.log_evidence)
    assert np.isfinite(posterior_draws(posterior, np.random.default_rng(1))).all()


def test_models_of_the_same_values_are_named_where_nothing_tells_them_apart(
    rng: np.random.Generator,
) -> None:
    """With one concept; with more, sd_cell does, and the fit goes on."""
    one = make_effects(rng, n_models=5, n_concepts=1)
    assert not why_not(one, ("scale",))
    index = [0, 0, 1, 2, 3][: len(one.value)]
    twins = replace(one, value=one.value[index], covariance=one.covariance[np.ix_(index, index)])
    assert why_not(twins, ("scale",)) == "a and b hold the same values: leave one of them out"
    many = make_effects(rng, n_models=5, n_concepts=3)
    assert not why_not(many, ("scale",))
