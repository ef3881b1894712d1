"""Fits and tests over models against lme4, metafor, R, statsmodels, pingouin and PyMC.

Those of R are frozen numbers: tests/oracles/README.md says how they were made. Both sides maximise
a restricted likelihood numerically; it is flat at its maximum, so that its own value agrees to 1e-9
where the sds, 4e-8 apart at most as these numbers were made, are held to NEAR.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracles.frozen import DATA, LEVEL, THEIRS, frozen_effects
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans

from steercube.analysis.over_models import slopes, unequal
from steercube.analysis.over_models.cell_effects import TERMS, CellEffects, concept_terms
from steercube.analysis.over_models.comparisons import difference_holding, two_sample_t
from steercube.analysis.over_models.gram import blocks_of, columns, grams, integrate_models
from steercube.analysis.over_models.nuts import N_CHAINS, packages
from steercube.analysis.over_models.posterior import (
    PRIOR,
    SDS,
    Mixture,
    Posterior,
    _Axis,
    _Nodes,
    _weigh,
    fit,
)
from steercube.analysis.over_models.reml import Reml, _restricted, reml_of_cells
from steercube.analysis.over_models.slopes import SD_SLOPE, fit_slopes, slope_difference, slope_of
from steercube.analysis.over_models.unequal import (
    SD_LOG_RATIO,
    fit_unequal,
    welch_t,
    with_ratio,
)
from steercube.estimate import Estimate, Student

NEAR = 1e-6
"""Of sds, coefficients and standard errors at two optimisers' maxima of one likelihood."""
CLOSED = 1e-9
"""Relative, of closed forms: R's file keeps 15 digits."""


def assert_same_fit(ours: Reml, theirs: dict[str, Any], *, log_likelihood: float) -> None:
    assert ours.log_likelihood == pytest.approx(log_likelihood, abs=1e-9)
    assert ours.sds == pytest.approx(theirs["sds"], abs=NEAR)
    assert ours.coefficients == pytest.approx(theirs["coefficients"], abs=NEAR)
    assert ours.standard_errors == pytest.approx(theirs["standard_errors"], abs=NEAR)


def test_cells_with_known_errors_are_metafors() -> None:
    """rma.mv(value, S, ~ label + size, random = list(~1|model, ~1|concept, ~1|cell))."""
    theirs = THEIRS["known_errors"]
    bare = theirs["log_likelihood"] - theirs["half_log_det_of_x"]
    ours = reml_of_cells(frozen_effects("equal"), terms=TERMS)
    assert_same_fit(ours, theirs, log_likelihood=bare)


def test_cells_without_known_errors_are_lme4s() -> None:
    """lmer(value ~ label + size + (1|model) + (1|concept)), whose residual is our cell."""
    theirs = THEIRS["no_errors"]
    ours = reml_of_cells(frozen_effects("equal", known_errors=False), terms=TERMS)
    assert_same_fit(ours, theirs, log_likelihood=theirs["log_likelihood"])


def test_other_cells_are_neither_metafors_nor_lme4s() -> None:
    """The positive control: known errors where lme4 has none, and none where metafor has them."""
    for theirs, known_errors in (("known_errors", False), ("no_errors", True)):
        ours = reml_of_cells(frozen_effects("equal", known_errors=known_errors), terms=TERMS)
        assert ours.sds["sd_cell"] != pytest.approx(THEIRS[theirs]["sds"]["sd_cell"], abs=0.03)


# ---- a spread of their own for the models of each label ------------------------------------------


def unequal_of_metafor() -> tuple[dict[str, float], float, float]:
    """metafor's sds in our terms, their ratio, and its likelihood less what it adds."""
    theirs = THEIRS["unequal"]
    sds = dict(theirs["sds"])
    low, high = sds.pop("sd_low"), sds.pop("sd_high")
    bare = theirs["log_likelihood"] - theirs["half_log_det_of_x"]
    return {"sd_model": (low * high) ** 0.5} | sds, high / low, bare


def restricted(effects: CellEffects, sds: Mapping[str, float]) -> float:
    """The restricted log likelihood of the model with both terms at these sds."""
    sd_model, sd_concept, sd_cell = (np.array([sds[name]]) for name in SDS)
    sums = grams(blocks_of(effects, columns(effects, TERMS)), sd_concept, sd_cell)
    of_models = integrate_models(*sums, sd_model, n_slopes=1 + len(TERMS))
    at = (0, 0, 0)
    return _restricted(of_models.gram[at], float(of_models.log_det[at]), len(effects.value))


def test_unequal_spreads_have_metafors_likelihood() -> None:
    """struct = "DIAG" of random = list(~ label | model, ~1|concept, ~1|cell)."""
    sds, ratio, bare = unequal_of_metafor()
    effects = frozen_effects("unequal")
    assert restricted(with_ratio(effects, ratio), sds) == pytest.approx(bare, abs=1e-9)
    assert restricted(with_ratio(effects, 1 / ratio), sds) < bare - 1


def test_metafors_unequal_spreads_are_our_maximum() -> None:
    """A change of 1% in the ratio or an sd lowers the likelihood, and a small one by its square."""
    sds, ratio, bare = unequal_of_metafor()
    effects = frozen_effects("unequal")
    assert reml_of_cells(with_ratio(effects, ratio), terms=TERMS).sds == pytest.approx(
        sds, abs=NEAR
    )

    def lost(name: str, factor: float) -> float:
        of = with_ratio(effects, ratio * factor if name == "ratio" else ratio)
        changed = {n: sd * factor if n == name else sd for n, sd in sds.items()}
        return bare - restricted(of, changed)

    for name in ("ratio", *SDS):
        up, down = lost(name, 1.01), lost(name, 1 / 1.01)
        assert min(up, down) > 1e-6
        assert up == pytest.approx(down, rel=0.05)


def test_with_metafors_ratio_the_coefficients_are_its_own() -> None:
    theirs, (_, ratio, bare) = THEIRS["unequal"], unequal_of_metafor()
    ours = reml_of_cells(with_ratio(frozen_effects("unequal"), ratio), terms=TERMS)
    assert ours.log_likelihood == pytest.approx(bare, abs=1e-9)
    assert ours.coefficients == pytest.approx(theirs["coefficients"], abs=NEAR)
    assert ours.standard_errors == pytest.approx(theirs["standard_errors"], abs=NEAR)


# ---- a slope of its own for every concept --------------------------------------------------------


def at_sds(effects: CellEffects, sds: Mapping[str, float]) -> _Nodes:
    """The model of `slopes` at given sds, with priors of intercept and slope too wide to matter."""
    prior = replace(PRIOR, intercept=1e3, scale=1e3, sd_slope=sds["sd_slope"])
    one = {n: _Axis(np.array([sds[n]]), np.ones(1), sds[n], sds[n]) for n in SDS}
    return _weigh(effects, ("scale", *concept_terms(effects)), prior, one)


def slopes_at(nodes: _Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Mean (slope,) and covariance (slope, slope) of intercept, b_scale and every concept's t."""
    return nodes.slope_mean[0, 0, 0], nodes.slope_covariance[0, 0, 0]


def test_concept_slopes_are_lme4s_predictions() -> None:
    """lmer(value ~ size + (1|model) + (1|concept) + (0 + size|concept)): coef and ranef at its sds.

    lme4's conditional variance takes the coefficients as known; what is conditional on them here
    has the inverse of a block of the precision as its covariance.
    """
    theirs = THEIRS["slopes"]
    nodes = at_sds(frozen_effects("slopes", known_errors=False), theirs["sds"])
    mean, covariance = slopes_at(nodes)
    assert mean[:2] == pytest.approx(list(theirs["coefficients"].values()), abs=NEAR)
    errors = list(theirs["standard_errors"].values())
    assert np.sqrt(np.diag(covariance)[:2]) == pytest.approx(errors, abs=NEAR)
    assert mean[1] + mean[2:] == pytest.approx(theirs["slope"], abs=NEAR)
    given_coefficients = np.linalg.inv(np.linalg.inv(covariance)[2:, 2:])
    assert np.diag(given_coefficients) == pytest.approx(theirs["conditional_variance"], rel=1e-9)
    variance = covariance[1, 1] + 2 * covariance[1, 2:] + np.diag(covariance)[2:]
    assert variance == pytest.approx(theirs["prediction_variance"], rel=NEAR)
    assert nodes.deviations()[0][0] == pytest.approx(theirs["model"], abs=NEAR)


def test_concept_slopes_with_known_errors_are_metafors_predictions() -> None:
    """rma.mv(value, S, ~ size, random = list(~ size | concept, ~1|model, ~1|cell)), "GDIAG"."""
    theirs = THEIRS["slopes_known_errors"]
    nodes = at_sds(frozen_effects("slopes"), theirs["sds"])
    mean, covariance = slopes_at(nodes)
    assert mean[:2] == pytest.approx(list(theirs["coefficients"].values()), abs=NEAR)
    errors = list(theirs["standard_errors"].values())
    assert np.sqrt(np.diag(covariance)[:2]) == pytest.approx(errors, abs=NEAR)
    assert mean[2:] == pytest.approx(theirs["deviation"], abs=NEAR)
    assert np.diag(covariance)[2:] == pytest.approx(theirs["deviation_variance"], rel=NEAR)
    of_models, variance = (of[0] for of in nodes.deviations())
    assert of_models == pytest.approx(theirs["model"], abs=NEAR)
    assert np.sqrt(variance) == pytest.approx(theirs["model_error"], rel=NEAR)


# ---- tests on one value a model ------------------------------------------------------------------

groups = pytest.mark.parametrize("at", range(len(DATA["groups"])), ids=["two of six", "five of 11"])


def group(at: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of some models, and which of them are marked."""
    return np.array(DATA["groups"][at]["value"]), np.array(DATA["groups"][at]["marked"])


def ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.low, estimate.value, estimate.high


@groups
def test_welchs_t_is_rs(at: int) -> None:
    """t.test(a, b); the pooled interval is another."""
    theirs, pooled = THEIRS["groups"][at]["welch"], THEIRS["groups"][at]["pooled"]
    ours = ends(welch_t(*group(at), level=LEVEL))
    assert ours == pytest.approx([theirs[name] for name in ("low", "value", "high")], rel=CLOSED)
    assert ours[0] != pytest.approx(pooled["low"], abs=0.1)


@groups
def test_welchs_t_is_pingouins(at: int) -> None:
    """ttest(correction=True)."""
    values, marked = group(at)
    ours = welch_t(values, marked, level=LEVEL)
    theirs = pingouin_t(values[marked], values[~marked], correction=True)
    assert (ours.low, ours.high) == pytest.approx(theirs, rel=CLOSED)


@groups
def test_the_pooled_t_is_rs(at: int) -> None:
    """t.test(a, b, var.equal = TRUE)."""
    theirs = THEIRS["groups"][at]["pooled"]
    ours = ends(two_sample_t(*group(at), level=LEVEL))
    assert ours == pytest.approx([theirs[name] for name in ("low", "value", "high")], rel=CLOSED)


@groups
def test_the_pooled_t_is_statsmodelss_and_pingouins(at: int) -> None:
    values, marked = group(at)
    ours = two_sample_t(values, marked, level=LEVEL)
    means = CompareMeans.from_data(values[marked], values[~marked])
    theirs = means.tconfint_diff(alpha=1 - LEVEL, usevar="pooled")
    assert (ours.low, ours.high) == pytest.approx(theirs, rel=CLOSED)
    theirs = pingouin_t(values[marked], values[~marked], correction=False)
    assert (ours.low, ours.high) == pytest.approx(theirs, rel=CLOSED)


def pingouin_t(a: np.ndarray, b: np.ndarray, *, correction: bool) -> tuple[float, float]:
    """The ends of the interval from pingouin's t and its degrees of freedom.

    pingouin rounds the ends that it gives itself to two decimals.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pingouin

        row = pingouin.ttest(a, b, correction=correction, confidence=LEVEL).iloc[0]
    value = float(a.mean() - b.mean())
    half = stats.t.ppf((1 + LEVEL) / 2, row["dof"]) * abs(value / row["T"])
    return value - half, value + half


def test_a_difference_with_a_label_held_fixed_is_rs() -> None:
    """lm(value ~ high + factor(held)) and confint; without the label it is another."""
    held, theirs = DATA["held"], THEIRS["held"]
    value, is_high, of_held = (np.array(held[name]) for name in ("value", "is_high", "held"))
    ours = difference_holding(value, is_high.astype(bool), of_held, LEVEL)
    expected = [theirs[name] for name in ("low", "value", "high")]
    assert ends(ours) == pytest.approx(expected, rel=CLOSED)
    assert isinstance(ours.known, Student)
    assert (ours.known.scale, ours.known.df) == pytest.approx((theirs["se"], theirs["df"]))
    alone = two_sample_t(value, is_high.astype(bool), level=LEVEL)
    assert alone.value != pytest.approx(theirs["value"], abs=0.05)


# ---- exact posteriors and PyMC -------------------------------------------------------------------

N_DRAWS = 1500
SHARES = (0.025, 0.5, 0.975)


def few(outcome: str) -> CellEffects:
    """The cells of the first four concepts, so that sampling takes seconds."""
    effects = frozen_effects(outcome)
    chosen = effects.only(np.flatnonzero(effects.concept < 4))
    return replace(chosen, concepts=effects.concepts[:4])


def nuts(effects: CellEffects, terms: tuple[str, ...], add: Any) -> Any:
    """Draws of the model of `posterior`, written down for PyMC; `add` puts in what is new.

    `add(pm)` returns the factor of each model's sd (model,) and an addition to each cell's mean.
    """
    x, y, n_models = effects.design(terms), effects.value, len(effects.models)
    with packages() as (pm, az), pm.Model():
        beta = [pm.Normal(name, 0, PRIOR.of(name)) for name in ("intercept", *terms)]
        sd_model = pm.HalfCauchy("sd_model", PRIOR.sd_model)
        sd_concept, sd_cell = (pm.HalfNormal(name, PRIOR.of(name)) for name in SDS[1:])
        spread, addition = add(pm)
        of_model = np.eye(n_models)[effects.model] * (sd_model * spread)
        covariance = effects.covariance + of_model @ of_model.T + sd_cell**2 * np.eye(len(y))
        covariance += sd_concept**2 * np.equal.outer(effects.concept, effects.concept)
        mean = sum(b * column for b, column in zip(beta, x.T, strict=True)) + addition
        pm.MvNormal("y", mean, cov=covariance, observed=y)
        idata = pm.sample(
            N_DRAWS,
            tune=N_DRAWS,
            chains=N_CHAINS,
            cores=1,
            blas_cores=1,
            random_seed=11,
            target_accept=0.97,
            progressbar=False,
            compute_convergence_checks=False,
        )
        assert float(az.rhat(idata).to_array().max()) < 1.01
    return idata.posterior


def furthest(exact: Mixture | Posterior, draws: Mapping[str, np.ndarray]) -> float:
    """The largest distance of a median or an end from that of the draws, in its MCSE."""
    with packages() as (_, az):
        return max(
            abs(exact_value - np.quantile(values, share))
            / az.mcse(values, method="quantile", prob=share)
            for name, values in draws.items()
            for exact_value, share in zip(exact.interval(name, 0.95), SHARES, strict=True)
        )


def of_mean(exact: Mixture, draws: np.ndarray) -> float:
    """The distance of the mean of what a mixture integrates from that of the draws, in its MCSE."""
    with packages() as (_, az):
        return abs(float(exact.weight @ exact.values) - draws.mean()) / az.mcse(draws).item()


def moved(coarse: Mixture, fine: Mixture, names: Sequence[str]) -> float:
    """The largest difference of a median or an end, as a share of the interval's width."""
    pairs = [(np.array(m.interval(name, 0.95)) for m in (coarse, fine)) for name in names]
    return max(np.abs(one - other).max() / np.ptp(other) for one, other in pairs)


@pytest.mark.slow
def test_the_nodes_of_the_mixtures_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times as many of each kind move no median and no end by 3% of the interval's width."""
    of_ratio, of_slopes = few("unequal"), few("slopes")
    coarse = fit_unequal(of_ratio), fit_slopes(of_slopes)
    monkeypatch.setattr(unequal, "N_RATIOS", 3 * unequal.N_RATIOS)
    monkeypatch.setattr(slopes, "N_SLOPES", 3 * slopes.N_SLOPES)
    fine = fit_unequal(of_ratio, n_nodes=36), fit_slopes(of_slopes, n_nodes=36)
    assert moved(coarse[0], fine[0], ["intercept", *TERMS]) < 0.03
    assert moved(coarse[1], fine[1], ["scale", *map(slope_of, of_slopes.concepts)]) < 0.03


@pytest.mark.slow
def test_unequal_spreads_are_nutss() -> None:
    """A log ratio of the labels' sds sampled like any other parameter, normal(0, log 2).

    Nine medians and ends and a mean within 4 MCSE: false alarms 1 in 1,500 if all were independent.
    The positive control is the model with one spread.
    """
    effects = few("unequal")
    side = np.where(effects.is_high, 0.5, -0.5)

    def add(pm: Any) -> tuple[Any, float]:
        return pm.math.exp(pm.Normal("log_ratio", 0, SD_LOG_RATIO) * side), 0.0

    posterior = nuts(effects, TERMS, add)
    draws = {name: posterior[name].values for name in ("intercept", *TERMS)}
    exact = fit_unequal(effects, n_nodes=32)
    assert furthest(exact, draws) < 4
    assert of_mean(exact, posterior["log_ratio"].values) < 4
    assert furthest(fit(effects), draws) > 10


@pytest.mark.slow
def test_random_slopes_are_nutss() -> None:
    """Every concept's deviation sampled, sd_slope with its half-normal prior.

    21 medians and ends and a mean within 4 MCSE: false alarms 1 in 700 if all were independent. The
    positive control is steeper by 0.2 in every concept.
    """
    effects = few("slopes")
    size = effects.predictors["scale"][effects.model]

    def add(pm: Any) -> tuple[float, Any]:
        z = pm.Normal("z", shape=len(effects.concepts))
        t = pm.Deterministic("t", pm.HalfNormal("sd_slope", SD_SLOPE) * z)
        return 1.0, t[effects.concept] * size

    posterior = nuts(effects, ("scale",), add)
    draws = {name: posterior[name].values for name in ("intercept", "scale")}
    t = posterior["t"].values
    for c, name in enumerate(effects.concepts):
        draws[slope_of(name)] = draws["scale"] + t[..., c]
    draws[slope_difference(*effects.concepts[:2])] = t[..., 0] - t[..., 1]
    exact = fit_slopes(effects, n_nodes=32)
    assert furthest(exact, draws) < 4
    assert of_mean(exact, posterior["sd_slope"].values) < 4
    steeper = replace(effects, value=effects.value + 0.2 * size)
    assert furthest(fit_slopes(steeper), draws) > 10
