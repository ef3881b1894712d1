"""The mixed model of answers: its limits, lme4's fits, and how often its intervals hold the truth.

glmer's numbers are frozen (tests/oracles/README.md). Its search for the modes stops earlier than
ours: the log likelihoods were up to 4e-6 apart, coefficients and sds 5e-6, and standard errors,
from differences of that likelihood, 1.2e-5, in 15 simulated data sets.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import xarray as xr
from oracles.frozen import DATA, THEIRS
from scipy import integrate, optimize, stats
from scipy.special import expit

from steercube.analysis.per_cell.answer_model import (
    AnswerModel,
    Counts,
    _average_change,
    _laplace,
    fit_answers,
    matching_counts,
    models_of,
    valid_counts,
)
from steercube.analysis.per_cell.responses import Answers
from steercube.estimate import Estimate

NEAR, NEAR_ERRORS = 1e-5, 3e-5
"""Of two optimisers' numbers, and of standard errors from two Hessians."""
SIGN = np.array([-0.5, 0.5])
LAYERS = (-0.4, -0.1, 0.0, 0.1, 0.4)


# ---- answers drawn from the model ----------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The model's parameters, and two spreads that it has no term for.

    `rate` is that over all items half-way between the strengths, at a layer with v_l = 0.
    `sd_layer` is what an item has of its own at each layer, and `sd_answers` at each layer and
    strength.
    """

    rate: float = 0.5
    beta: float = 0.8
    sd_item: float = 1.5
    sd_item_change: float = 1.0
    sd_layer: float = 0.0
    sd_answers: float = 0.0
    layers: tuple[float, ...] = LAYERS

    @property
    def alpha(self) -> float:
        sd = float(np.hypot(self.sd_item, self.sd_layer))
        return float(optimize.brentq(lambda a: rate_over_items(a, sd) - self.rate, -30, 30))

    @property
    def average_change(self) -> float:
        spreads = (self.sd_item, self.sd_item_change / 2, self.sd_layer, self.sd_answers)
        low, high = (np.array([self.alpha + self.beta * h + v for v in self.layers]) for h in SIGN)
        return average_difference(low, high, float(np.linalg.norm(spreads)))


def average_difference(low: np.ndarray, high: np.ndarray, sd: float) -> float:
    rates = [np.mean([rate_over_items(x, sd) for x in side]) for side in (low, high)]
    return float(rates[1] - rates[0])


def rate_over_items(predictor: float, sd: float) -> float:
    def weighted(z: float) -> float:
        return float(expit(predictor + sd * z) * stats.norm.pdf(z))

    return float(integrate.quad(weighted, -10, 10, epsabs=1e-11, limit=200)[0])


def draw_answers(truth: Truth, n_items: int, repeats: int, rng: np.random.Generator) -> Counts:
    """Of new items."""
    layers, h = np.array(truth.layers)[:, None], SIGN[:, None, None]
    u, w = rng.normal(size=(2, n_items)) * [[truth.sd_item], [truth.sd_item_change]]
    own = rng.normal(size=(len(layers), n_items)) * truth.sd_layer
    own = own + rng.normal(size=(2, len(layers), n_items)) * truth.sd_answers
    p = expit(truth.alpha + truth.beta * h + layers + u + w * h + own)
    trials = np.full(p.shape, repeats)
    return Counts(rng.binomial(trials, p), trials)


@dataclass(frozen=True)
class Coverage:
    """The share of fits that were refused; of the others, how many intervals hold the truth."""

    refused: float
    beta: float
    change: float


def coverage(
    truth: Truth, *, n_items: int, repeats: int, n_draws: int, rng: np.random.Generator
) -> Coverage:
    fits = [fit_answers(draw_answers(truth, n_items, repeats, rng)) for _ in range(n_draws)]
    fitted, change = [fit for fit in fits if not fit.reason], truth.average_change

    def holds(estimate: Estimate, value: float) -> bool:
        return estimate.low <= value <= estimate.high

    return Coverage(
        1 - len(fitted) / n_draws,
        float(np.mean([holds(fit.log_odds_ratio, truth.beta) for fit in fitted])),
        float(np.mean([holds(fit.average_change, change) for fit in fitted])),
    )


def numbers(fit: AnswerModel) -> np.ndarray:
    """All but the layers' effects."""
    assert not fit.reason
    ends = [x for e in (fit.log_odds_ratio, fit.average_change) for x in (e.value, e.low, e.high)]
    of_fit = (fit.se, fit.change_se, fit.intercept, fit.sd_item, fit.sd_item_change)
    return np.array([*ends, *of_fit, fit.log_likelihood])


# ---- limits --------------------------------------------------------------------------------------


def test_without_a_spread_of_items_it_is_logistic_regression() -> None:
    """Items that all answer alike, more so than chance: both sds are 0, and all is GLM's."""
    of_one = np.array([[2, 3, 2], [4, 3, 4]])
    counts = Counts(np.repeat(of_one[:, :, None], 12, axis=2), np.full((2, 3, 12), 5))
    fit = fit_answers(counts)
    assert (fit.sd_item, fit.sd_item_change) == pytest.approx((0, 0), abs=1e-6)
    h, layer = (x.ravel() for x in np.meshgrid(SIGN, range(3), indexing="ij"))
    design = np.column_stack([np.ones(6), h, np.eye(3)[layer] @ [[1, 0], [0, 1], [-1, -1]]])
    x, y = np.repeat(design, 12, axis=0), counts.successes.ravel()
    theirs = sm.GLM(np.column_stack([y, 5 - y]), x, family=sm.families.Binomial()).fit()
    assert (fit.intercept, fit.log_odds_ratio.value) == pytest.approx(theirs.params[:2], abs=1e-6)
    assert fit.layer_effects[:2] == pytest.approx(theirs.params[2:], abs=1e-6)
    assert fit.se == pytest.approx(theirs.bse[1], abs=1e-6)
    assert fit.log_likelihood == pytest.approx(theirs.llf, abs=1e-9)
    rates = of_one.mean(axis=1) / 5
    assert fit.average_change.value == pytest.approx(rates[1] - rates[0], abs=1e-6)


def test_with_the_strengths_exchanged_the_effects_change_sign(rng: np.random.Generator) -> None:
    counts = draw_answers(Truth(), 60, 2, rng)
    fit = fit_answers(counts)
    flipped = fit_answers(Counts(counts.successes[::-1], counts.trials[::-1]))
    for name in ("log_odds_ratio", "average_change"):
        ours, theirs = getattr(fit, name), getattr(flipped, name)
        assert theirs.value == pytest.approx(-ours.value, abs=NEAR)
        assert (theirs.low, theirs.high) == pytest.approx((-ours.high, -ours.low), abs=NEAR)
    assert numbers(flipped)[6:] == pytest.approx(numbers(fit)[6:], abs=NEAR)


@pytest.mark.parametrize("axis", [1, 2], ids=["layers", "items"])
def test_the_order_does_not_matter(axis: int, rng: np.random.Generator) -> None:
    counts = draw_answers(Truth(), 60, 2, rng)
    order = rng.permutation(counts.trials.shape[axis])
    other = Counts(*(np.take(x, order, axis) for x in (counts.successes, counts.trials)))
    assert numbers(fit_answers(other)) == pytest.approx(numbers(fit_answers(counts)), abs=NEAR)


def test_items_and_layers_without_answers_do_not_matter(rng: np.random.Generator) -> None:
    counts = draw_answers(Truth(), 60, 2, rng)
    wider = Counts(
        *(np.pad(x, ((0, 0), (1, 0), (3, 2))) for x in (counts.successes, counts.trials))
    )
    fit, of_wider = fit_answers(counts), fit_answers(wider)
    assert numbers(of_wider) == pytest.approx(numbers(fit), abs=NEAR)
    sizes = [(f.n_items, f.n_layers, f.n_rows) for f in (fit, of_wider)]
    assert sizes == [(60, 5, 600)] * 2
    assert np.isnan(of_wider.layer_effects[0])


def test_a_layer_whose_answers_are_all_alike_has_no_change(rng: np.random.Generator) -> None:
    counts = draw_answers(Truth(), 60, 2, rng)
    four = counts.at_layers(np.arange(5) < 4)
    always = Counts(np.concatenate([four.successes, counts.trials[:, 4:]], axis=1), counts.trials)
    fit, of_four = fit_answers(always), fit_answers(four)
    assert fit.log_odds_ratio == of_four.log_odds_ratio
    assert fit.layer_effects == (*of_four.layer_effects, np.inf)
    assert fit.average_change.value == pytest.approx(0.8 * of_four.average_change.value)
    assert fit.change_se == pytest.approx(0.8 * of_four.change_se)


def test_twice_the_items_have_a_standard_error_smaller_by_the_root_of_two(
    rng: np.random.Generator,
) -> None:
    counts = draw_answers(Truth(), 60, 2, rng)
    fit = fit_answers(counts)
    twice = fit_answers(Counts(*(np.tile(x, 2) for x in (counts.successes, counts.trials))))
    assert twice.se == pytest.approx(fit.se / np.sqrt(2), rel=1e-4)
    assert twice.change_se == pytest.approx(fit.change_se / np.sqrt(2), rel=1e-4)


# ---- parts ---------------------------------------------------------------------------------------

THETA = np.array([0.9, 0.7, 0.1, -0.2, 0.1, 0.05, 1.4, 0.8])


def test_the_gradient_is_the_likelihoods(rng: np.random.Generator) -> None:
    counts, steps = draw_answers(Truth(), 30, 2, rng), 1e-5 * np.eye(len(THETA))
    slope = [
        (_laplace(counts, THETA + s)[0] - _laplace(counts, THETA - s)[0]) / 2e-5 for s in steps
    ]
    assert _laplace(counts, THETA)[1] == pytest.approx(slope, abs=1e-6)


def test_the_likelihood_nears_the_integral_as_answers_grow(rng: np.random.Generator) -> None:
    """Of one item at a time, by adaptive quadrature over its (u, w)."""
    theta, layers = np.array([0.4, 0.8, 1.4, 0.8]), (0.0,)
    errors = []
    for repeats in (4, 40):
        counts = draw_answers(Truth(layers=layers), 1, repeats, rng)
        y, n = counts.successes[:, 0, 0], counts.trials[:, 0, 0]

        def density(b: float, a: float, y: Any = y, n: Any = n) -> float:
            p = expit(0.4 + 0.8 * SIGN + 1.4 * a + 0.8 * b * SIGN)
            return float(stats.binom.pmf(y, n, p).prod() * stats.norm.pdf([a, b]).prod())

        exact = integrate.dblquad(density, -8, 8, -8, 8, epsabs=1e-9)[0]
        errors.append(abs(_laplace(counts, theta)[0] - np.log(exact)))
    assert errors[1] < errors[0] < 0.05


@pytest.mark.parametrize("sd", [0.0, 1.4, 6.0])
def test_the_average_change_is_the_integral(sd: float) -> None:
    theta = np.array([*THETA[:-2], sd, sd / 2])
    effects = np.array([*theta[2:6], -theta[2:6].sum()])
    low, high = (theta[0] + theta[1] * h + effects for h in SIGN)
    value, gradient = _average_change(theta)
    exact = average_difference(low, high, float(np.hypot(sd, sd / 4)))
    assert value == pytest.approx(exact, abs=1e-9)
    steps = 1e-5 * np.eye(len(theta))
    slope = [(_average_change(theta + s)[0] - _average_change(theta - s)[0]) / 2e-5 for s in steps]
    assert gradient == pytest.approx(slope, abs=1e-8)


def test_counts_are_of_valid_answers_and_of_matching_ones_among_them() -> None:
    valid = np.array([[[1.0, 1 / 3, 0.0, np.nan]], [[2 / 3, 1.0, 1.0, 0.0]]])
    match = np.array([[[1 / 3, 1.0, np.nan, np.nan]], [[0.5, 0.0, 1.0, np.nan]]])
    answers = Answers(valid, match)
    of_valid, of_match = valid_counts(answers, 3), matching_counts(answers, 3)
    assert of_valid.successes.tolist() == [[[3, 1, 0, 0]], [[2, 3, 3, 0]]]
    assert of_valid.trials.tolist() == [[[3, 3, 3, 0]], [[3, 3, 3, 3]]]
    assert of_match.successes.tolist() == [[[1, 1, 0, 0]], [[1, 0, 3, 0]]]
    assert of_match.trials.tolist() == of_valid.successes.tolist()


# ---- refusals ------------------------------------------------------------------------------------


def of_layers(*layers: tuple[str, str]) -> Counts:
    """Two answers of 20 items at each layer, by what succeeds of them at the two strengths."""
    some = np.arange(20) % 3
    successes = {"all": np.full(20, 2), "none": np.zeros(20), "some": some, "other": some[::-1]}
    by_layer = np.array([[successes[layer[s]] for layer in layers] for s in (0, 1)])
    return Counts(by_layer, np.full(by_layer.shape, 2))


def alike(n_differing: int) -> Counts:
    """Half of 40 items always succeed and half never do, but for some, at five layers."""
    successes = np.broadcast_to(np.arange(40) % 2, (2, 5, 40)).copy()
    successes[1, :, :n_differing] = np.arange(5)[:, None] % 2
    return Counts(successes, np.ones_like(successes))


ONE_STRENGTH = np.array([2, 0])[:, None, None] * np.ones((2, 1, 20))
REFUSED = {
    "all alike": (of_layers(("all", "all"), ("none", "none")), "all answers are alike"),
    "all at the high strength": (of_layers(("some", "all")), "no bound"),
    "in all layers": (of_layers(("none", "some"), ("some", "all"), ("all", "all")), "no bound"),
    "one and the other": (of_layers(("all", "none")), "no bound"),
    "nine items": (Counts(np.ones((2, 3, 9)), np.full((2, 3, 9), 2)), "9 items"),
    "one answer": (Counts(np.arange(40).reshape(2, 1, 20) % 2, np.ones((2, 1, 20))), "one answer"),
    "one strength": (Counts(ONE_STRENGTH / 2, ONE_STRENGTH), "one of the two strengths"),
    "items all alike": (alike(0), "so alike"),
    "items nearly all alike": (alike(2), "so alike"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_answers_without_a_fit_are_refused(case: tuple[Counts, str]) -> None:
    counts, reason = case
    fit = fit_answers(counts)
    assert reason in fit.reason
    assert fit.log_odds_ratio.reason == fit.average_change.reason == fit.reason
    assert np.isnan([fit.log_odds_ratio.value, fit.average_change.low, fit.se]).all()
    assert not fit.converged


@pytest.mark.parametrize(
    "counts",
    [
        of_layers(("some", "other")),
        of_layers(("some", "all"), ("some", "other")),
        of_layers(("some", "all"), ("all", "some")),
    ],
    ids=["some at both", "some at both in one layer", "layers that disagree"],
)
def test_answers_that_differ_at_both_strengths_are_fitted(counts: Counts) -> None:
    fit = fit_answers(counts)
    assert fit.converged
    assert not fit.reason
    assert abs(fit.log_odds_ratio.value) < 5


def test_impossible_counts_are_refused() -> None:
    two = np.full((2, 3, 12), 2)
    with pytest.raises(ValueError, match="between 0 and the trials"):
        fit_answers(Counts(two + 1, two))
    with pytest.raises(ValueError, match="dims"):
        fit_answers(Counts(two, two[:, :1]))


# ---- lme4 ----------------------------------------------------------------------------------------


def drawn(name: str) -> Counts:
    return Counts(*(np.array(DATA["answers"][name][of]) for of in ("successes", "trials")))


@pytest.mark.parametrize("name", DATA["answers"])
def test_the_fit_is_glmers(name: str) -> None:
    """glmer(cbind(success, failure) ~ h + layer + (1|item) + (0+h|item), binomial, nAGQ = 1)."""
    fit, theirs = fit_answers(drawn(name)), THEIRS["answers"][name]
    assert fit.log_likelihood == pytest.approx(theirs["log_likelihood"], abs=NEAR)
    assert fit.intercept == pytest.approx(theirs["intercept"], abs=NEAR)
    assert fit.log_odds_ratio.value == pytest.approx(theirs["beta"], abs=NEAR)
    assert fit.layer_effects == pytest.approx(theirs["layers"], abs=NEAR)
    assert fit.sd_item == pytest.approx(theirs["sd_item"], abs=NEAR)
    assert fit.sd_item_change == pytest.approx(theirs["sd_item_change"], abs=NEAR)
    assert fit.se == pytest.approx(theirs["se"], abs=NEAR_ERRORS)
    assert fit.n_rows == theirs["n_rows"]


def test_other_answers_are_not_glmers() -> None:
    """The positive control: one answer of some 600 is another."""
    counts = drawn("one")
    successes = counts.successes.copy()
    successes[0, 0, 0] = 1 - successes[0, 0, 0]
    fit = fit_answers(replace(counts, successes=successes))
    assert fit.log_odds_ratio.value != pytest.approx(THEIRS["answers"]["one"]["beta"], abs=1e-3)


# ---- known truths --------------------------------------------------------------------------------


def test_many_items_show_the_truth(rng: np.random.Generator) -> None:
    """Within 4 standard errors, of three answers to 400 items; the sds within 0.25."""
    truth = Truth()
    fit = fit_answers(draw_answers(truth, 400, 3, rng))
    assert abs(fit.log_odds_ratio.value - truth.beta) < 4 * fit.se < truth.beta
    assert abs(fit.average_change.value - truth.average_change) < 4 * fit.change_se < 0.1
    assert (fit.sd_item, fit.sd_item_change) == pytest.approx((1.5, 1.0), abs=0.25)


def test_small_spreads_are_fitted(rng: np.random.Generator) -> None:
    """The likelihood is flat at an sd of 0, where a bounded search would stop short of a maximum.

    A spread of 0.3 must not raise the likelihood of a fit that has one of 0.
    """
    for _ in range(20):
        counts = draw_answers(Truth(sd_item=0.2, sd_item_change=0.1), 40, 1, rng)
        fit = fit_answers(counts)
        assert fit.converged
        coefficients = [fit.intercept, fit.log_odds_ratio.value, *fit.layer_effects[:-1]]
        for sds in ((fit.sd_item, fit.sd_item_change), (0.3, 0.3), (fit.sd_item, 0.3)):
            value, _ = _laplace(counts, np.array([*coefficients, *sds]))
            assert value <= fit.log_likelihood + 1e-9


@pytest.mark.slow
def test_intervals_cover_what_they_should(rng: np.random.Generator) -> None:
    """400 draws of 100 items at five layers.

    A coverage of 95% falls outside of 91.5 to 98.5% by chance in 1 of 500 such tests. The positive
    control is the interval of an effect that is not there.
    """
    found = coverage(Truth(rate=0.8), n_items=100, repeats=1, n_draws=400, rng=rng)
    assert found.refused == 0
    assert 0.915 < found.beta < 0.985
    assert 0.915 < found.change < 0.985
    fits = [fit_answers(draw_answers(Truth(rate=0.8), 100, 1, rng)) for _ in range(50)]
    assert np.mean([fit.log_odds_ratio.excludes_zero for fit in fits]) > 0.5


def test_a_fit_stands_beside_the_rates_as_counted(rng: np.random.Generator) -> None:
    dims = ("strength", "layer", "sample")
    valid = (rng.random((2, 3, 60)) < 0.9).astype(float)
    match = (rng.random((2, 3, 60)) < np.array([0.3, 0.6])[:, None, None]).astype(float)
    part = xr.Dataset(
        {
            "generation_valid": (dims, valid),
            "generation_match": (dims, np.where(valid > 0, match, np.nan)),
        },
        coords={"strength": [-1.0, 1.0], "layer": [7, 8, 10]},
    )
    part["generation_valid"][:, :, -5:] = np.nan
    rows = {row["outcome"]: row for row in models_of(part, 1, 0.95)}
    assert set(rows) == {"valid", "match"}
    counted = rows["match"]
    pooled = [(v * m)[:, :55].sum() / v[:, :55].sum() for v, m in zip(valid, match, strict=True)]
    assert counted["change"] == pytest.approx(pooled[1] - pooled[0])
    assert counted["change_low"] < counted["average_change"] < counted["change_high"]
    assert (counted["first_layer"], counted["last_layer"]) == (7, 10)
    assert rows["valid"]["n_items"] == 55


def test_a_refused_fit_leaves_the_rates_as_counted() -> None:
    dims = ("strength", "layer", "sample")
    match = np.repeat((np.arange(40) % 2)[None, None], 2, axis=0).astype(float)
    part = xr.Dataset(
        {"generation_valid": (dims, np.ones_like(match)), "generation_match": (dims, match)},
        coords={"strength": [-1.0, 1.0], "layer": [7]},
    )
    for row in models_of(part, 1, 0.95):
        assert row["reason"]
        assert np.isnan(row["average_change"])
        assert row["change"] == 0
        assert row["change_low"] < 0 < row["change_high"]
