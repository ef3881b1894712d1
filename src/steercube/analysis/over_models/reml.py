r"""Restricted maximum likelihood (REML) with crossed random intercepts, written for this package.

MixedLM of statsmodels must agree with it before its numbers are used (its optimiser is known to
report convergence at a wrong optimum on this model), and it fits the fully crossed model of items
in a second. Both functions maximise, over the sds of the random intercepts,

    log L_R = -((n - p) log 2 pi + log|V| + log|X' V^-1 X| + r' V^-1 r) / 2,   r = y - X beta(V).

Standard errors take the estimated sds as known; intervals are Student's t with n_models minus the
number of coefficients as degrees of freedom. With sd_model at its boundary 0 they are too narrow,
and the fit says so. Use `steercube.analysis.over_models.posterior` where that matters.

Source: Bates et al. 2015 (J. Stat. Softw. 67(1)), section 3; the sum over items is eliminated
first, as its block is diagonal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, optimize

from steercube.analysis.over_models.cell_effects import CellEffects
from steercube.analysis.over_models.gram import blocks_of, columns, grams, integrate_models
from steercube.analysis.over_models.posterior import SDS

AT_BOUNDARY = 1e-3
"""An sd under this share of the residual's, or of a typical standard error, is at its boundary."""


@dataclass(frozen=True)
class Reml:
    """Coefficients with standard errors, sds (the last the residual's, if it is estimated)."""

    coefficients: dict[str, float]
    standard_errors: dict[str, float]
    sds: dict[str, float]
    log_likelihood: float
    at_boundary: tuple[str, ...]


def reml_of_cells(effects: CellEffects, *, terms: Sequence[str]) -> Reml:
    """The hierarchical model without priors; V holds the known covariance of the cells.

    The fit is kept with the effects.
    """
    key = ("REML", *terms)
    if key not in effects.posteriors:
        effects.posteriors[key] = _fit_of_cells(effects, terms)
    fitted: Reml = effects.posteriors[key]
    return fitted


def _fit_of_cells(effects: CellEffects, terms: Sequence[str]) -> Reml:
    names, n = SDS if effects.n_concepts > 1 else SDS[:1], len(effects.value)
    blocks = blocks_of(effects, columns(effects, terms))

    def fitted(sds: np.ndarray) -> tuple[np.ndarray, float]:
        sd_model, sd_concept, sd_cell = (np.array([sd]) for sd in (*sds, 0.0, 0.0)[:3])
        sums = grams(blocks, sd_concept, sd_cell)
        integrated = integrate_models(*sums, sd_model, n_slopes=1 + len(terms))
        return integrated.gram[0, 0, 0], float(integrated.log_det[0, 0, 0])

    typical = float(np.sqrt(np.mean(np.diag(effects.covariance))))
    start = np.full(len(names), float(effects.value.std()) / 2)
    sds, log_likelihood = _maximise(lambda s: _restricted(*fitted(s), n), start)
    return _reml(fitted(sds)[0], 1.0, names, sds, log_likelihood, typical, terms)


def reml_of_items(
    y: np.ndarray, x: np.ndarray, index: Mapping[str, np.ndarray], *, terms: Sequence[str]
) -> Reml:
    """The item-level model: crossed intercepts for `index` (each row's group by sd), a residual.

    The factor with the most groups is eliminated in closed form; the residual's sd is profiled.
    """
    names = sorted(index, key=lambda name: -int(index[name].max()))
    most, *others = [np.eye(int(index[n].max()) + 1)[index[n]] for n in names]
    rest = np.concatenate(others, axis=1)
    factor = np.repeat(range(1, len(names)), [z.shape[1] for z in others])
    w = np.column_stack([x, y])
    counts, cross, inner = most.sum(axis=0), rest.T @ most, rest.T @ rest
    most_w, rest_w, w_w = most.T @ w, rest.T @ w, w.T @ w
    n = len(y)

    def fitted(ratio: np.ndarray) -> tuple[np.ndarray, float]:
        a, t = ratio[0], ratio[factor][:, None]
        diagonal = a**2 * counts + 1
        c = a * t * cross / diagonal
        block = t * inner * t.T + np.eye(len(t)) - (c * diagonal) @ c.T
        lower = np.linalg.cholesky(block)
        half = linalg.solve_triangular(lower, t * rest_w - c @ (a * most_w), lower=True)
        gram = w_w - (a**2 * most_w.T / diagonal) @ most_w - half.T @ half
        return gram, float(np.log(diagonal).sum() + 2 * np.log(np.diag(lower)).sum())

    start = np.full(len(names), 0.5)
    ratio, log_likelihood = _maximise(lambda r: _profiled(*fitted(r), n), start)
    gram, _ = fitted(ratio)
    residual = float(np.sqrt(_residual(gram) / (n - x.shape[1])))
    fit = _reml(gram, residual, names, ratio * residual, log_likelihood, residual, terms)
    order = [n for n in (*SDS, "sd_item") if n in index]
    sds = {n: fit.sds[n] for n in order} | {"sd_residual": residual}
    return Reml(fit.coefficients, fit.standard_errors, sds, log_likelihood, fit.at_boundary)


def _maximise(
    log_likelihood: Callable[[np.ndarray], float], start: np.ndarray
) -> tuple[np.ndarray, float]:
    """Non-negative sds with the largest likelihood, from three starts.

    Each search is one without gradients, then one with. Raises ValueError if none is finite.
    """

    def objective(sds: np.ndarray) -> float:
        try:
            return -log_likelihood(sds)
        except np.linalg.LinAlgError:  # cells without any error, and sds of 0
            return np.inf

    best, value = start, -np.inf
    for factor in (1.0, 0.1, 3.0):
        at = factor * start
        for method, options in _SEARCHES.items():
            with np.errstate(invalid="ignore"):  # differences of two infinite values
                result = optimize.minimize(
                    objective,
                    at,
                    method=method,
                    bounds=[(0.0, None)] * len(start),
                    options=options,
                )
            at = result.x
        if -result.fun > value:
            best, value = at, -float(result.fun)
    if not np.isfinite(value):
        raise ValueError("nothing varies, so that no sd has a likelihood")
    return best, value


_SEARCHES: dict[str, Any] = {
    "Nelder-Mead": {"maxiter": 4000, "xatol": 1e-7, "fatol": 1e-9},
    "L-BFGS-B": {"maxiter": 4000},
}


def _residual(gram: np.ndarray) -> float:
    """r' V^-1 r."""
    return float(gram[-1, -1] - gram[-1, :-1] @ np.linalg.solve(gram[:-1, :-1], gram[:-1, -1]))


def _restricted(gram: np.ndarray, log_det: float, n: int) -> float:
    free = n - len(gram) + 1
    log_det_x = np.linalg.slogdet(gram[:-1, :-1])[1]
    return -0.5 * (free * np.log(2 * np.pi) + log_det + log_det_x + _residual(gram))


def _profiled(gram: np.ndarray, log_det: float, n: int) -> float:
    """The same with V = s^2 (I + ...), at the s^2 that maximises it: r' V^-1 r / (n - p)."""
    free = n - len(gram) + 1
    log_det_x = np.linalg.slogdet(gram[:-1, :-1])[1]
    return -0.5 * (free * (1 + np.log(2 * np.pi * _residual(gram) / free)) + log_det + log_det_x)


def _reml(
    gram: np.ndarray,
    residual: float,
    names: Sequence[str],
    sds: np.ndarray,
    log_likelihood: float,
    typical: float,
    terms: Sequence[str],
) -> Reml:
    covariance = residual**2 * np.linalg.inv(gram[:-1, :-1])
    beta = np.linalg.solve(gram[:-1, :-1], gram[:-1, -1])
    coefficients = ("intercept", *terms)
    return Reml(
        coefficients=dict(zip(coefficients, beta.tolist(), strict=True)),
        standard_errors=dict(zip(coefficients, np.sqrt(np.diag(covariance)).tolist(), strict=True)),
        sds=dict(zip(names, sds.tolist(), strict=True)),
        log_likelihood=log_likelihood,
        at_boundary=tuple(
            name for name, sd in zip(names, sds, strict=True) if sd < AT_BOUNDARY * typical
        ),
    )
