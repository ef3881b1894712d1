r"""A binomial mixed model of the generated answers of one (model, concept), at one or more layers.

An item i has y successes in n answers at each strength and layer l. With h = -1/2 at the low and
+1/2 at the high strength,

    logit P = alpha + beta h + v_l + u_i + w_i h,    sum_l v_l = 0,
    u_i ~ N(0, sd_item^2),    w_i ~ N(0, sd_item_change^2).

beta is the log odds ratio of an item with w_i = 0. The average change is that of the rate over all
items, in the unit of the bootstrap of the rates and mostly smaller than what beta alone suggests:

    change = mean_l ( E[invlogit(alpha + v_l + beta / 2 + t)]
                    - E[invlogit(alpha + v_l - beta / 2 + t)] ),
    t ~ N(0, sd_item^2 + sd_item_change^2 / 4).

The fit is by maximum likelihood, with Laplace's approximation of the integral over each item's
(u, w), as glmer of lme4 does it (nAGQ = 1; Bates et al. 2015, J. Stat. Softw. 67(1)). Given the
v_l items are independent, so that it is a problem in two dimensions for each item.

Layers have fixed effects: the caller chose them, and a few layers hardly show the sd of a random
effect. In simulation (four layers, v_l of sd 0.15) glmer estimates it as 0 in 13 fits of 20, with
the same beta.

When to use it: for several answers to each item, drawn at random, where rates are so near to 0 or
1 that their differences cannot be compared. What it is wrong for:

- Answers without randomness. Neighbouring layers then give nearly all the same answers, sds of
  items grow without bound, and the fit is refused (glmer warns and prints numbers all the same).
- beta, where items have something of their own at each layer, or at each layer and strength. There
  is no term for it, and beta is drawn towards 0: in simulation by 0.10 to 0.13 of 0.8 with such a
  spread of sd 1 and a rate of 0.5, where 86 to 90% of its intervals held. u and w take up the
  spread's mean over layers, and intervals of the average change held as they should.
- Layers at which the change differs, as one beta is fitted to all: the average change is then
  unlike the one counted, and so it is where validity goes with the match.
- Layers chosen by their effect on the same items: the fit does not know of the selection.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from scipy import optimize
from scipy.special import expit, gammaln

from steercube.analysis.per_cell.bootstrap import CONFIDENCE_LEVEL
from steercube.analysis.per_cell.changes import MATCH, VALID, change_interval, rate
from steercube.analysis.per_cell.estimands import Array
from steercube.analysis.per_cell.responses import Answers
from steercube.contract import MIN_ITEMS
from steercube.estimate import Estimate, Student

LARGEST_SD = 6.0
"""In log odds. Laplace's approximation is too coarse beyond it: with an sd_item of 8 and a rate of
0.5, intervals of 95% held the average change in 90% of simulations."""
NODES = np.linspace(-9.0, 9.0, 361)
"""Of the integral over a standard normal. The trapezoidal rule's error is here below 1e-12 for sds
of up to LARGEST_SD (Trefethen & Weideman 2014, SIAM Rev. 56(3)); that of 101 Gauss-Hermite nodes is
5e-5 at an sd of 6, as the poles of the logistic function then lie near the real axis."""
_TOO_ALIKE = (
    "the answers to each item are so alike that an sd of items is estimated beyond "
    f"{LARGEST_SD:g} log odds, where the approximation fails"
)
MAX_STEPS, MAX_HALVINGS = 100, 30
"""Of Newton's search for the modes of an item."""
SLOPE = 2e-3
"""Largest gradient at a maximum, in units of standard errors; that of lme4's own check."""

_SIGN = np.array([-0.5, 0.5])
_Z = np.stack([np.ones(2), _SIGN])
"""What u and w are multiplied by, dims (effect, strength)."""


@dataclass(frozen=True)
class Counts:
    """Successes of trials at the low and the high strength: dims (strength, layer, item).

    Where there are no trials, nothing is known.
    """

    successes: Array
    trials: Array

    @cached_property
    def informative(self) -> Array:
        """Whether the answers of a layer vary, dims (layer,).

        A layer whose answers are all alike fits with v_l = -inf or +inf, at no cost.
        """
        successes, trials = (x.sum(axis=(0, 2)) for x in (self.successes, self.trials))
        return (successes > 0) & (successes < trials)

    @cached_property
    def log_choices(self) -> Array:
        """log of the binomial coefficients of each item's rows, dims (item,)."""
        y, n = self.successes, self.trials
        choices = gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1)
        return choices.sum(axis=(0, 1))

    def at_layers(self, layers: Array) -> "Counts":
        """Counts of some of the layers."""
        return Counts(self.successes[:, layers], self.trials[:, layers])


def valid_counts(answers: Answers, repeats: int) -> Counts:
    """Valid answers, of the `repeats` answers to each item."""
    asked = np.where(np.isfinite(answers.valid), repeats, 0)
    return Counts(np.rint(np.nan_to_num(answers.valid) * repeats), asked)


def matching_counts(answers: Answers, repeats: int) -> Counts:
    """Matching answers, of the valid answers to each item."""
    valid = valid_counts(answers, repeats).successes
    return Counts(np.rint(np.nan_to_num(answers.matching) * repeats), valid)


@dataclass(frozen=True)
class AnswerModel:
    """The fit of one (model, concept), or the `reason` why there is none.

    `log_odds_ratio` is beta with its standard error `se`, `average_change` that of the rate with
    `change_se`; both intervals are Student's t with n_items - 1 degrees of freedom. The standard
    errors are from the Hessian of the log likelihood over coefficients and sds together, the
    default of glmer. `layer_effects` are the v_l, infinite where all answers at a layer are alike.
    An sd may be 0. `n_rows` counts items at layers and strengths.
    """

    log_odds_ratio: Estimate
    average_change: Estimate
    se: float = np.nan
    change_se: float = np.nan
    intercept: float = np.nan
    layer_effects: tuple[float, ...] = ()
    sd_item: float = np.nan
    sd_item_change: float = np.nan
    log_likelihood: float = np.nan
    n_items: int = 0
    n_layers: int = 0
    n_rows: int = 0
    converged: bool = False
    reason: str = ""


def fit_answers(counts: Counts, *, confidence_level: float = CONFIDENCE_LEVEL) -> AnswerModel:
    """The mixed model by maximum likelihood, or why the answers have no such fit.

    Raises ValueError if there are more successes than trials, or fewer than none.
    """
    _check(counts)
    asked = counts.trials > 0
    sizes = AnswerModel(
        log_odds_ratio=Estimate.undefined(""),
        average_change=Estimate.undefined(""),
        n_items=int(asked.any(axis=(0, 1)).sum()),
        n_layers=int(asked.any(axis=(0, 2)).sum()),
        n_rows=int(asked.sum()),
    )
    reason = _why_not(counts, sizes.n_items)
    return _refused(sizes, reason) if reason else _fit(counts, sizes, confidence_level)


def _check(counts: Counts) -> None:
    if counts.successes.shape != counts.trials.shape or counts.trials.shape[0] != 2:
        raise ValueError(
            f"successes {counts.successes.shape} and trials {counts.trials.shape} must both have "
            "dims (strength, layer, item), with two strengths"
        )
    if not ((counts.successes >= 0) & (counts.successes <= counts.trials)).all():
        raise ValueError("successes must lie between 0 and the trials everywhere")


def _refused(sizes: AnswerModel, reason: str) -> AnswerModel:
    none = Estimate.undefined(reason)
    return replace(sizes, log_odds_ratio=none, average_change=none, reason=reason)


def _why_not(counts: Counts, n_items: int) -> str:
    """Why the likelihood has no maximum at a finite beta and sds, or too few items bear on it."""
    if n_items < MIN_ITEMS:
        return f"{n_items} items with an answer; at least {MIN_ITEMS} are needed"
    if not counts.trials.any(axis=(1, 2)).all():
        return "no answers at one of the two strengths"
    if counts.trials.sum(axis=1).max() < 2:
        return "one answer to each item at each strength cannot show how much items differ"
    if not counts.informative.any():
        return "all answers are alike"
    if _is_separated(counts):
        return "all answers at one strength are alike, so that the odds ratio has no bound"
    return ""


def _is_separated(counts: Counts) -> bool:
    """Whether the likelihood only grows as beta goes to +inf, or as it goes to -inf.

    It does for +inf if at every layer there are no successes at the low strength or only successes
    at the high one, as each v_l can follow (Albert & Anderson 1984, Biometrika 71(1)).
    """
    successes, trials = (x.sum(axis=2) for x in (counts.successes, counts.trials))
    none, full = successes == 0, successes == trials
    compared = trials.all(axis=0) & counts.informative
    up, down = none[0] | full[1], full[0] | none[1]
    return bool(up[compared].all() or down[compared].all())


def _fit(counts: Counts, sizes: AnswerModel, level: float) -> AnswerModel:
    rows = counts.at_layers(counts.informative)
    best = _maximise(rows)
    sds = best[-2:]
    if sds.max() >= LARGEST_SD:
        return _refused(sizes, _TOO_ALIKE)
    hessian = _hessian(lambda theta: _laplace(rows, theta)[1], best)
    log_likelihood, gradient = _laplace(rows, best)
    converged = _is_maximum(hessian, gradient)
    if not converged:
        return _refused(sizes, "the likelihood has no maximum that the search could find")
    covariance = np.linalg.inv(-hessian)
    change, by_theta = _average_change(best)
    varying = rows.trials.shape[1] / sizes.n_layers
    change, by_theta = change * varying, by_theta * varying
    se = float(np.sqrt(covariance[1, 1]))
    change_se = float(np.sqrt(by_theta @ covariance @ by_theta))
    n = sizes.n_items

    def estimate(value: float, error: float) -> Estimate:
        return Estimate.of(Student(value, error, n - 1), level, value=value, over="items", n=n)

    return replace(
        sizes,
        log_odds_ratio=estimate(float(best[1]), se),
        average_change=estimate(change, change_se),
        se=se,
        change_se=change_se,
        intercept=float(best[0]),
        layer_effects=_layer_effects(counts, best),
        sd_item=float(sds[0]),
        sd_item_change=float(sds[1]),
        log_likelihood=log_likelihood,
        converged=converged,
    )


def _layer_effects(counts: Counts, theta: Array) -> tuple[float, ...]:
    """v_l of each layer, -inf or +inf where all answers are alike, NaN where there are none."""
    effects = np.full(len(counts.informative), np.nan)
    effects[counts.informative] = _sum_to_zero(theta)
    successes, trials = (x.sum(axis=(0, 2)) for x in (counts.successes, counts.trials))
    alike = (trials > 0) & ~counts.informative
    effects[alike] = np.where(successes[alike] > 0, np.inf, -np.inf)
    return tuple(effects.tolist())


# theta is (alpha, beta, v_l of all layers but the last, sd_item, sd_item_change).


def _sum_to_zero(theta: Array) -> Array:
    """v_l of all layers."""
    return np.append(theta[2:-2], -theta[2:-2].sum())


def _fixed(theta: Array) -> Array:
    """alpha + beta h + v_l, dims (strength, layer)."""
    return theta[0] + theta[1] * _SIGN[:, None] + _sum_to_zero(theta)


def _by_theta(score: Array) -> Array:
    """A gradient by alpha, beta and the free v_l, from that by each predictor (strength, layer)."""
    by_layer = score.sum(axis=0)
    of_strength = (score.sum(axis=1) * _SIGN).sum()
    return np.concatenate([[by_layer.sum(), of_strength], by_layer[:-1] - by_layer[-1]])


def _maximise(rows: Counts) -> Array:
    """The theta of the largest likelihood, with sds of at most LARGEST_SD.

    The search runs through negative sds, which have the likelihood of positive ones: held above 0
    it would stop at 0, where the slope is always 0.
    """
    successes, trials = (
        x.sum(axis=2) + add for x, add in ((rows.successes, 0.5), (rows.trials, 1.0))
    )
    low, high = np.log(successes / (trials - successes)).mean(axis=1)
    n_free = len(rows.informative) - 1
    start = np.concatenate([[(low + high) / 2, high - low], np.zeros(n_free), [1.0, 0.5]])
    result = optimize.minimize(
        lambda theta: tuple(-x for x in _laplace(rows, theta)),
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * (2 + n_free) + [(-LARGEST_SD, LARGEST_SD)] * 2,
        options={"maxiter": 500, "ftol": 1e-15, "gtol": 1e-7},
    )
    return np.concatenate([result.x[:-2], np.abs(result.x[-2:])])


def _hessian(gradient: Callable[[Array], Array], at: Array) -> Array:
    """Central differences of the gradient.

    The likelihood is even in each sd, so that the differences are also right where an sd is 0.
    """
    steps = 1e-4 * np.eye(len(at))
    hessian = np.stack([(gradient(at + s) - gradient(at - s)) / 2e-4 for s in steps])
    return (hessian + hessian.T) / 2


def _is_maximum(hessian: Array, gradient: Array) -> bool:
    """Whether the curvature is negative, and Newton's step from here would gain nothing."""
    try:
        lower = np.linalg.cholesky(-hessian)
    except np.linalg.LinAlgError:
        return False
    return bool(np.abs(np.linalg.solve(lower, gradient)).max() < SLOPE)


def _laplace(rows: Counts, theta: Array) -> tuple[float, Array]:
    r"""The log likelihood by Laplace's approximation, and its gradient by theta.

    With b_i = (u_i / sd_item, w_i / sd_item_change) at the maximum of
    $f_i = \sum_r \log p(y_r | b_i) - |b_i|^2 / 2$ and H_i its negative Hessian there,

        log L = sum_i ( f_i - log|H_i| / 2 ).

    To first order f_i does not change with b_i, but H_i does; how b_i changes with theta is from
    the implicit function theorem.
    """
    z = theta[-2:, None] * _Z
    fixed = _fixed(theta)
    b = _modes(rows, fixed, z)
    p = expit(fixed[:, :, None] + _times(z, b)[:, None])
    residual = rows.successes - rows.trials * p
    weight = rows.trials * p * (1 - p)
    of_residual, of_weight = residual.sum(axis=1), weight.sum(axis=1)
    inverse, log_det = _inverse(_curvature(z, of_weight))
    value = _log_joint(rows, fixed, z, b) - log_det / 2 + rows.log_choices

    inverse_z = (inverse[:, :, None] * z[None, :, :, None]).sum(axis=1)
    leverage = (z[:, :, None] * inverse_z).sum(axis=0)
    skew = weight * (1 - 2 * p) * leverage[:, None] / 2
    moved = (inverse_z * skew.sum(axis=1)).sum(axis=1)
    score = residual - skew + weight * _times(z, moved)[:, None]
    by_sd = (
        b * _back(_Z, score.sum(axis=1))
        - moved * _back(_Z, of_residual)
        - (_Z[:, :, None] * inverse_z * of_weight).sum(axis=1)
    )
    gradient = np.concatenate([_by_theta(score.sum(axis=2)), by_sd.sum(axis=1)])
    return float(value.sum()), gradient


def _modes(rows: Counts, fixed: Array, z: Array) -> Array:
    """b_i of every item, dims (effect, item), by Newton's steps, halved where they overshoot."""
    b = np.zeros((2, rows.trials.shape[2]))
    value = _log_joint(rows, fixed, z, b)
    for _ in range(MAX_STEPS):
        p = expit(fixed[:, :, None] + _times(z, b)[:, None])
        slope = _back(z, (rows.successes - rows.trials * p).sum(axis=1)) - b
        inverse, _ = _inverse(_curvature(z, (rows.trials * p * (1 - p)).sum(axis=1)))
        step = (inverse * slope).sum(axis=1)
        for _ in range(MAX_HALVINGS):
            tried = _log_joint(rows, fixed, z, b + step)
            worse = tried < value - 1e-9
            if not worse.any():
                break
            step = np.where(worse, step / 2, step)
        b, value = b + step, tried
        if np.abs(step).max() < 1e-9:
            break
    return b


def _log_joint(rows: Counts, fixed: Array, z: Array, b: Array) -> Array:
    """log p(answers, b) of every item, without constants: dims (item,)."""
    eta = fixed[:, :, None] + _times(z, b)[:, None]
    of_rows = rows.successes * eta - rows.trials * np.logaddexp(0, eta)
    return of_rows.sum(axis=(0, 1)) - (b**2).sum(axis=0) / 2


def _times(z: Array, b: Array) -> Array:
    """z' b: (effect, strength) and (effect, item) to (strength, item)."""
    return (z[:, :, None] * b[:, None]).sum(axis=0)


def _back(z: Array, x: Array) -> Array:
    """Z x: (effect, strength) and (strength, item) to (effect, item)."""
    return (z[:, :, None] * x).sum(axis=1)


def _curvature(z: Array, weight: Array) -> Array:
    """I + z W z' of every item, dims (effect, effect, item)."""
    return np.eye(2)[:, :, None] + (z[:, None, :, None] * z[None, :, :, None] * weight).sum(axis=2)


def _inverse(matrix: Array) -> tuple[Array, Array]:
    """Inverse and log determinant of symmetric matrices, dims (2, 2, item)."""
    (a, b), (_, d) = matrix
    determinant = a * d - b * b
    return np.array([[d, -b], [-b, a]]) / determinant, np.log(determinant)


def _average_change(theta: Array) -> tuple[float, Array]:
    """The mean over layers of the change of the rate, and its gradient by theta."""
    weights = np.exp(-(NODES**2) / 2)
    weights = weights / weights.sum()
    sd_item, sd_change = theta[-2:]
    sd = np.hypot(sd_item, sd_change / 2)
    p = expit(_fixed(theta)[:, :, None] + sd * NODES)
    density = p * (1 - p)
    sign = np.array([-1.0, 1.0])[:, None] / p.shape[1]
    by_fixed = sign * (density * weights).sum(axis=2)
    by_sd = (sign * (density * NODES * weights).sum(axis=2)).sum()
    of_sds = np.array([sd_item, sd_change / 4]) * (by_sd / sd if sd else 0.0)
    value = float((sign * (p * weights).sum(axis=2)).sum())
    return value, np.concatenate([_by_theta(by_fixed), of_sds])


def models_of(part: xr.Dataset, repeats: int, level: float) -> list[dict[str, Any]]:
    """Fits of validity and of the match of valid answers, for one model and concept.

    `part` has the answers at the compared strengths of the layers to fit, dims (strength, layer,
    sample). Beside each fit stands the change of the rate as it was counted, with an interval that
    takes an item's answers at these layers for repeats: the layers' mean, over items.
    """
    order = ("strength", "layer", "sample")
    valid, match = (
        part[f"generation_{name}"].transpose(*order).values.astype(float)
        for name in ("valid", "match")
    )
    asked = np.isfinite(valid).all(axis=(0, 1))
    answers = Answers(valid[:, :, asked], match[:, :, asked])
    layers = part["layer"].values
    place = {"first_layer": layers[0], "last_layer": layers[-1]}
    rows = []
    for outcome, counts in {
        VALID: valid_counts(answers, repeats),
        MATCH: matching_counts(answers, repeats),
    }.items():
        fitted = fit_answers(counts, confidence_level=level)
        row = (
            {"outcome": outcome, "reason": fitted.reason} | place | {"n_fitted_layers": len(layers)}
        )
        row |= {"n_items": int((counts.trials.sum(axis=(0, 1)) > 0).sum())}
        row |= {name: getattr(fitted, name) for name in ("sd_item", "sd_item_change")}
        for name in ("log_odds_ratio", "average_change"):
            estimate = getattr(fitted, name)
            row |= {
                name: estimate.value,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
        rows.append(row | _counted_change(counts, level))
    return rows


def _counted_change(counts: Counts, level: float) -> dict[str, float]:
    """The change of the rate over all layers, an item's answers at all of them together."""
    successes, trials = (x.sum(axis=1) for x in (counts.successes, counts.trials))
    shares = successes / np.maximum(trials, 1)
    low, high = (rate(trials[end], shares[end]) for end in (0, 1))
    ends = change_interval(low, high, level, repeated=True)
    value = float(high.value - low.value)
    return {"change": value, "change_low": float(ends[0]), "change_high": float(ends[1])}
