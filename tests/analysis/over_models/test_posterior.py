from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import make_effects, study_of
from scipy import integrate, special, stats

from steercube.analysis.over_models.cell_effects import TERMS, CellEffects, cell_effects
from steercube.analysis.over_models.posterior import PRIOR, SDS, fit, posterior_of
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
        assert few.quantile("contrast", share) == pytest.approx(
            many.quantile("contrast", share), abs=1e-3
        )
        assert few.quantile("sd_cell", share) == pytest.approx(
            many.quantile("sd_cell", share), abs=5e-3
        )


def test_with_sds_of_zero_it_is_generalised_least_squares(effects: CellEffects) -> None:
    tiny = replace(PRIOR, sd_model=1e-4, sd_concept=1e-4, sd_cell=1e-4, contrast=50, scale=50)
    tiny = replace(tiny, cauchy=False)
    posterior = fit(effects, prior=tiny)
    x, inverse = effects.design(TERMS), np.linalg.inv(effects.covariance)
    precision = x.T @ inverse @ x
    expected = np.linalg.solve(precision, x.T @ inverse @ effects.value)
    assert posterior.expectation("contrast") == pytest.approx(expected[1], abs=2e-3)
    assert posterior.spread("contrast") == pytest.approx(
        np.sqrt(np.linalg.inv(precision)[1, 1]), rel=2e-3
    )


def test_units_do_not_matter(effects: CellEffects) -> None:
    """Effects five times as large in a unit of five."""
    scaled = replace(effects, unit=5.0, value=5 * effects.value, covariance=25 * effects.covariance)
    one, other = fit(effects), fit(scaled)
    assert 5 * one.quantile("contrast", 0.3) == pytest.approx(other.quantile("contrast", 0.3))
    assert one.bayes_factor("contrast") == pytest.approx(other.bayes_factor("contrast"))


def test_the_order_of_cells_does_not_matter(effects: CellEffects) -> None:
    order = np.random.default_rng(1).permutation(len(effects.value))
    one, other = fit(effects), fit(effects.only(order))
    assert one.quantile("contrast", 0.1) == pytest.approx(other.quantile("contrast", 0.1))
    assert one.log_evidence == pytest.approx(other.log_evidence)


def test_exchanged_trainings_change_the_sign(effects: CellEffects) -> None:
    turned = replace(
        effects,
        predictors=effects.predictors | {"contrast": -effects.predictors["contrast"]},
    )
    assert fit(effects).quantile("contrast", 0.1) == pytest.approx(
        -fit(turned).quantile("contrast", 0.9)
    )


def test_the_bayes_factor_is_the_ratio_of_evidences(effects: CellEffects) -> None:
    with_it, without = fit(effects), fit(effects, terms=("scale",))
    assert np.log(with_it.bayes_factor("contrast")) == pytest.approx(
        with_it.log_evidence - without.log_evidence, abs=5e-3
    )


def test_quantiles_undo_the_distribution(effects: CellEffects) -> None:
    posterior = fit(effects)
    for name in ("contrast", "u of a", *SDS):
        for share in (0.025, 0.5, 0.975):
            value = posterior.quantile(name, share)
            assert posterior.cdf(name, value) == pytest.approx(share, abs=1e-6)
    assert posterior.within("contrast", 1e3) == pytest.approx(1)


def test_an_interval_has_its_level_below_the_median_and_above(effects: CellEffects) -> None:
    posterior = fit(effects)
    for name in ("contrast", "sd_cell"):
        low, median, high = posterior.interval(name, 0.9)
        shares = [posterior.cdf(name, value) for value in (low, median, high)]
        assert shares == pytest.approx([0.05, 0.5, 0.95], abs=1e-6)


def test_a_fit_is_kept_with_its_effects_and_no_others(effects: CellEffects) -> None:
    found = fit(effects)
    assert fit(effects) is found
    assert fit(effects, prior=PRIOR.scaled("contrast", 2.0)) is not found
    assert fit(effects, sds=SDS) is not found
    higher = fit(replace(effects, value=effects.value + 1))
    expected = found.expectation("intercept") + 1
    assert higher.expectation("intercept") == pytest.approx(expected, abs=0.02)


def test_the_posterior_of_a_study_is_that_of_its_effects(six: xr.Dataset) -> None:
    study = study_of(six)
    for holding in (None, "n_layers"):
        expected = fit(cell_effects(study, "delta", holding=holding), terms=("scale",))
        found = posterior_of(study, "delta", ("scale",), holding=holding)
        assert found.interval("scale", 0.95) == expected.interval("scale", 0.95)
    with pytest.raises(ValueError, match="--contrast"):
        posterior_of(study_of(six, None), "delta", TERMS)


def test_what_cannot_be_separated_is_not_fitted(effects: CellEffects) -> None:
    three = effects.only(np.flatnonzero(effects.model >= 3))
    with pytest.raises(ValueError, match="need 4 models"):
        fit(three)


def test_a_large_effect_is_found_and_none_is_not(rng: np.random.Generator) -> None:
    """Twenty models without spread of their own: the interval of 1 is far from 0."""
    found = fit(make_effects(rng, n_models=10, training=1.0, sd_model=0.05), terms=("contrast",))
    assert found.quantile("contrast", 0.025) > 0.5
    assert found.bayes_factor("contrast") > 100
    none = fit(make_effects(rng, n_models=10, training=0.0, sd_model=0.05), terms=("contrast",))
    assert none.quantile("contrast", 0.025) < 0 < none.quantile("contrast", 0.975)
    assert none.bayes_factor("contrast") < 1


@pytest.mark.slow
def test_the_interval_covers_the_truth() -> None:
    """200 draws of cells, sd_model 0.15 and 0.3; binomial, false alarms under 1 in 1,000."""
    for sd_model in (0.15, 0.3):
        hits = []
        for seed in range(200):
            effects = make_effects(np.random.default_rng(seed), training=-0.3, sd_model=sd_model)
            below = fit(effects, n_nodes=12).cdf("contrast", -0.3)
            hits.append(0.025 < below < 0.975)
        assert np.mean(hits) > 0.89


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


def test_a_cell_without_any_error_does_no_harm(effects: CellEffects) -> None:
    covariance = effects.covariance.copy()
    covariance[3], covariance[:, 3] = 0.0, 0.0
    posterior = fit(replace(effects, covariance=covariance))
    assert np.isfinite(posterior.log_evidence)
    assert np.isfinite(posterior_draws(posterior, np.random.default_rng(1))).all()


def test_its_summary_is_its_own_quantiles(effects: CellEffects) -> None:
    posterior = fit(effects, terms=TERMS)
    table = posterior.summary(0.9)
    assert table.index.tolist() == ["intercept", *TERMS, *SDS]
    for name, row in table.iterrows():
        ends = posterior.interval(str(name), 0.9)
        assert tuple(row[["low", "median", "high"]]) == pytest.approx(ends)
        assert row["probability_negative"] == posterior.cdf(str(name), 0.0)


def test_draws_follow_the_exact_posterior(effects: CellEffects) -> None:
    """Every marginal by Kolmogorov and Smirnov, and the joint moments of an sd and a slope.

    40,000 draws, seven tests at 1e-4: false alarms 1 in 1,400. The shape of sd_model and of the
    contrast's spread hang together, so draws of each alone would not do.
    """
    posterior = fit(effects, terms=TERMS)
    draws = posterior.draws(np.random.default_rng(3), n_chains=4, n_draws=10_000)
    assert dict(draws.sizes) == {"chain": 4, "draw": 10_000}
    for name in posterior.names:
        values = np.sort(draws[name].values.ravel())
        below = np.array([posterior.cdf(name, value) for value in values[::40]])
        empirical = np.arange(0, len(values), 40) / len(values)
        assert np.abs(below - empirical).max() < stats.kstwo(len(values)).ppf(1 - 1e-4), name
    node_of = draws["sd_model"].values.ravel() > posterior.quantile("sd_model", 0.8)
    wide = draws["contrast"].values.ravel()[node_of].std()
    narrow = draws["contrast"].values.ravel()[~node_of].std()
    large = posterior.sds["sd_model"] > posterior.quantile("sd_model", 0.8)

    def spread(nodes: np.ndarray) -> float:
        weight = posterior.weight * nodes / (posterior.weight @ nodes)
        mean = weight @ posterior.slope_mean[:, 1]
        second = weight @ (posterior.slope_mean[:, 1] ** 2 + posterior.slope_covariance[:, 1, 1])
        return float(np.sqrt(second - mean**2))

    assert wide == pytest.approx(spread(large), rel=0.1)
    assert narrow == pytest.approx(spread(~large), rel=0.1)
    assert wide > 1.2 * narrow
