r"""Do models rank the concepts alike? The share of variance that tells, its test, and ranks.

`concept_share` carries any such claim: how much of the variance of true effects between the
concepts of one model is common to all models, from the exact posterior, with the p-value of no
common part. Kendall's W, tau and the rank correlations describe the table that was found. They have
no interval, because effects that err alike on the items that models share rank alike as well, and
redrawing the errors around effects that already hold them counts the errors twice.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import interpolate, stats

from steercube.analysis.over_models.means import (
    best_effects,
    level_of,
    root_of,
    where_recorded,
    why_not_recorded,
)
from steercube.analysis.over_models.posterior import (
    OUTCOMES,
    SDS,
    CellEffects,
    Posterior,
    cell_effects,
    fit,
    primary_terms,
)
from steercube.estimate import Estimate
from steercube.streams import stream

N_DRAWS = 1_999
N_GRID = 24
"""Values of each sd at which the likelihood of the test is taken."""

N_FINE = {2: 200, 3: 60}
"""Points of each sd that a share of so many variances is taken over."""

WITHIN = ("sd_concept", "sd_cell")
"""What varies between the concepts of one model."""

TOO_FEW = "needs two models that ran the same three concepts"
OVER_ALL = "items, concepts, models"
DESCRIPTIVE = "describes this table; errors on shared items rank alike too, so it has no interval"
TIED = 1e-9
"""Two likelihood ratios nearer than this are equal."""


def concept_share(
    cells: xr.Dataset, *, estimand: str, concepts: Sequence[str] | None = None
) -> Estimate:
    r"""The share of the variance over a model's concepts that all models have in common.

    $\rho = sd_{concept}^2 / (sd_{concept}^2 + sd_{cell}^2)$ of the hierarchical model, which is the
    correlation of two models' true effects over concepts: 0 where each model has a ranking of its
    own, 1 where all share one. Median and credible interval of the exact posterior. A share is
    never negative, so the interval cannot speak against zero; `p_value` does (`concept_test`).
    """
    return _share(cells, estimand, concepts, WITHIN)


def concept_share_of_all(cells: xr.Dataset, *, estimand: str) -> Estimate:
    r"""The share of sd_concept^2 in sd_model^2 + sd_concept^2 + sd_cell^2, else as `concept_share`.

    sd_model is what models differ by beyond training and size.
    """
    return _share(cells, estimand, None, SDS)


def _share(
    cells: xr.Dataset, estimand: str, concepts: Sequence[str] | None, among: Sequence[str]
) -> Estimate:
    effects = comparable_effects(cells, estimand, concepts)
    if isinstance(effects, str):
        return Estimate.undefined(effects)
    posterior = fit(effects, terms=primary_terms(effects))
    low, middle, high = share_of_variance(posterior, "sd_concept", among, level_of(cells))
    rng = stream(f"no common concepts in {estimand}", seed=int(cells.attrs["seed"]))
    p = concept_test(effects, rng).p_value
    n = len(effects.value)
    return Estimate(middle, low=low, high=high, over=OVER_ALL, n=n, p_value=p)


def comparable_effects(
    cells: xr.Dataset, estimand: str, concepts: Sequence[str] | None = None
) -> CellEffects | str:
    """The effects whose concepts models can be compared on, or why there are none."""
    if estimand not in OUTCOMES:
        return f"the hierarchical model has no priors for {estimand}"
    if concepts is not None:
        cells = cells.sel(concept=[c for c in cells["concept"].values if c in concepts])
    try:
        effects = cell_effects(cells, estimand)
    except ValueError as error:
        return str(error)
    return effects if _are_comparable(effects) else TOO_FEW


def _are_comparable(effects: CellEffects) -> bool:
    """Whether two models ran the same three concepts."""
    ran = _ran(effects).astype(int)
    both = ran @ ran.T
    return bool((both[~np.eye(len(both), dtype=bool)] >= 3).any())


def _ran(effects: CellEffects) -> np.ndarray:
    """Which cells there are, dims (model, concept)."""
    ran = np.zeros((len(effects.models), len(effects.concepts)), dtype=bool)
    ran[effects.model, effects.concept] = True
    return ran


def share_of_variance(
    posterior: Posterior, name: str, among: Sequence[str], level: float
) -> tuple[float, float, float]:
    """Lower end, median and upper end of one sd's square over the sum of the squares of `among`.

    The log density of these sds is interpolated between the grid's nodes by splines, since the
    nodes alone have too few different shares.
    """
    axes = list(posterior.sds)
    n_nodes = round(len(posterior.weight) ** (1 / len(axes)))
    nodes, width = np.polynomial.legendre.leggauss(n_nodes)
    n_fine = N_FINE[len(among)]
    fine = (2 * np.arange(n_fine) + 1) / n_fine - 1
    share = posterior.weight.reshape([n_nodes] * len(axes))
    share = share.sum(axis=tuple(at for at, axis in enumerate(axes) if axis not in among))
    log_density = np.log(np.maximum(share, np.finfo(float).tiny))
    squares = {}
    for at, axis in enumerate(axis for axis in axes if axis in among):
        # Gauss and Legendre's rule in the root of the sd: see `hierarchy._Axis.gauss`.
        root = np.sqrt(np.unique(posterior.sds[axis]))
        squares[axis] = interpolate.CubicSpline(nodes, root)(fine) ** 4
        along = np.moveaxis(log_density, at, -1) - np.log(width)
        log_density = np.moveaxis(interpolate.CubicSpline(nodes, along, axis=-1)(fine), -1, at)
    grid = dict(zip(squares, np.meshgrid(*squares.values(), indexing="ij"), strict=True))
    weight = np.exp(log_density - log_density.max())
    shares = grid[name] / sum(grid.values())
    return _weighted_quantiles(shares.ravel(), weight.ravel() / weight.sum(), level)


def _weighted_quantiles(
    values: np.ndarray, weight: np.ndarray, level: float
) -> tuple[float, float, float]:
    """Lower end, median and upper end of values with these weights, which sum to 1."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weight[order]) - weight[order] / 2
    tail = (1 - level) / 2
    low, middle, high = np.interp([tail, 0.5, 1 - tail], below, values[order])
    return float(low), float(middle), float(high)


class ConceptTest(NamedTuple):
    """Likelihood ratio of a common part of the concepts, its p, and what it was drawn from.

    `sd_cell` is that without a common part, `drawn` (draw, cell) are effects drawn so, up to the
    level of each model.
    """

    statistic: float
    p_value: float
    sd_cell: float
    drawn: np.ndarray


def concept_test(
    effects: CellEffects, rng: np.random.Generator, *, n_draws: int = N_DRAWS
) -> ConceptTest:
    r"""Do the models' effects have a part in common that differs between concepts?

    The test of $sd_{concept} = 0$ in the hierarchical model by its restricted likelihood ratio,
    $2 (\max_{sd_{concept}, sd_{cell}} \ell - \max_{sd_{cell}} \ell_0)$, each model's level
    projected out, so that neither sd_model nor any slope over models matters. The null is a
    parametric bootstrap: cells of the same models and concepts, those that were never run still
    missing, drawn from the restricted fit with sd_concept = 0, with errors that models share as S,
    the covariance over the items, has it (`_errors`); the likelihood holds S as well.
    """
    likelihood = _Likelihood.of(effects)
    found, sd_cell = likelihood.ratio((effects.value @ likelihood.basis)[None])
    drawn = sd_cell[0] * rng.standard_normal((n_draws, len(effects.value)))
    drawn += _errors(effects, n_draws, rng)
    null, _ = likelihood.ratio(drawn @ likelihood.basis)
    p = (1 + np.sum(null >= found[0] - TIED)) / (1 + n_draws)
    return ConceptTest(float(found[0]), float(p), float(sd_cell[0]), drawn)


def _errors(effects: CellEffects, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    r"""Errors of the cells over the items, dims (draw, cell).

    S was estimated from n items, and from a few dozen not well. Averaged over the inverse Wishart
    distribution that n items leave for it, the errors of one concept's m models are multivariate t
    with n - m degrees of freedom and scale (n - 1) / (n - m) S. They are normal where S is known.
    """
    drawn = np.empty((n_draws, len(effects.value)))
    for at in np.unique(effects.concept):
        cells = np.flatnonzero(effects.concept == at)
        root = root_of(effects.covariance[np.ix_(cells, cells)])
        drawn[:, cells] = rng.standard_normal((n_draws, len(cells))) @ root.T
        if effects.n_items:
            n = effects.n_items[at]
            df = max(n - len(cells), 1)
            drawn[:, cells] *= np.sqrt((n - 1) / rng.chisquare(df, (n_draws, 1)))
    return drawn


class _Likelihood(NamedTuple):
    """The restricted likelihood of cells less each model's level, on a grid of two sds.

    `basis` (cell, contrast) is orthonormal and orthogonal to the models. For each sd_concept of the
    grid, 0 first, the covariance S + sd_concept^2 Z Z' of the contrasts has these eigenvectors
    (sd_concept, contrast, contrast) and eigenvalues (sd_concept, contrast), to which sd_cell^2 of
    `sd_cell` adds.
    """

    basis: np.ndarray
    vectors: np.ndarray
    values: np.ndarray
    sd_cell: np.ndarray

    @classmethod
    def of(cls, effects: CellEffects) -> "_Likelihood":
        of_model = np.eye(len(effects.models))[effects.model]
        of_model = of_model[:, of_model.any(axis=0)]
        of_concept = np.eye(len(effects.concepts))[effects.concept]
        basis = np.linalg.qr(of_model, mode="complete")[0][:, of_model.shape[1] :]
        z = basis.T @ effects.value
        scale = max(float(np.sqrt(np.mean(z**2))), 1e-12)
        sds = 3 * scale * np.linspace(0, 1, N_GRID) ** 2
        covariance = effects.covariance + (sds**2)[:, None, None] * (of_concept @ of_concept.T)
        values, vectors = np.linalg.eigh(basis.T @ covariance @ basis)
        hair = 1e-9 * scale**2
        return cls(basis, vectors, np.maximum(values, 0) + hair, sds)

    def ratio(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Twice the log likelihood ratio of tables (table, contrast), and sd_cell without it."""
        without = self._profile(z, 0)
        best = without.max(axis=0)
        at_null = self.sd_cell[without.argmax(axis=0)]
        with_it = best
        for at in range(1, N_GRID):
            with_it = np.maximum(with_it, self._profile(z, at).max(axis=0))
        return 2 * (with_it - best), at_null

    def _profile(self, z: np.ndarray, at: int) -> np.ndarray:
        """Log likelihood with one sd_concept, dims (sd_cell, table)."""
        variance = self.values[at] + (self.sd_cell**2)[:, None]
        along = (z @ self.vectors[at]) ** 2
        log_det = np.log(variance).sum(axis=1)[:, None]
        profile: np.ndarray = -0.5 * (log_det + (1 / variance) @ along.T)
        return profile


def kendalls_w(table: np.ndarray) -> float:
    r"""Kendall's coefficient of concordance of m rows that rank the columns, some cells missing.

    $W = (1 + (m - 1) \bar\rho) / m$, $\bar\rho$ the mean over pairs of rows of Spearman's rho over
    the columns that both have. In a complete table without ties this is the usual
    $12 S / (m^2 (k^3 - k))$. NaN where a pair has fewer than two columns in common.

    >>> kendalls_w(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))
    1.0
    """
    m = len(table)
    rho = [
        _rank_correlation(table[i], table[j], np.isfinite(table[i]) & np.isfinite(table[j]))
        for i, j in combinations(range(m), 2)
    ]
    return float((1 + (m - 1) * np.mean(rho)) / m)


def _rank_correlation(one: np.ndarray, other: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Spearman's rho over the last dim, at the columns that are `both` there."""
    ranks = [stats.rankdata(x[..., both], axis=-1) for x in (one, other)]
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in ranks)
    with np.errstate(invalid="ignore"):  # of a constant row
        rho: np.ndarray = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return rho


def kendalls_tau(one: np.ndarray, other: np.ndarray) -> float:
    """Kendall's tau of two rows over the columns that both have, without ties.

    >>> kendalls_tau(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
    0.3333333333333333
    """
    both = np.isfinite(one) & np.isfinite(other)
    first, second = np.triu_indices(int(both.sum()), 1)
    order = [np.sign(x[both][first] - x[both][second]) for x in (one, other)]
    return float(np.mean(order[0] * order[1])) if len(first) else np.nan


@where_recorded
def concordance_of_ranks(cells: xr.Dataset, *, estimand: str) -> Estimate:
    """Kendall's W of the models' effects, over the concepts that each pair of models ran."""
    table = best_effects(cells, estimand).values
    if not _have_common_columns(table):
        return Estimate.undefined(TOO_FEW)
    return Estimate(kendalls_w(table), n=len(table), reason=DESCRIPTIVE)


def _have_common_columns(table: np.ndarray) -> bool:
    """Whether there are two rows or more, and every two of them have three columns in common."""
    ran = np.isfinite(table).astype(int)
    both = (ran @ ran.T)[~np.eye(len(ran), dtype=bool)]
    return bool(len(both) and both.min() >= 3)


def pairwise_concordance(
    cells: xr.Dataset, *, estimand: str
) -> list[tuple[tuple[str, str], Estimate]]:
    """Kendall's tau of each pair of models over the concepts that both ran, then their mean.

    The mean's pair is named ("every model", "every model").
    """
    effects = best_effects(cells, estimand)
    every = ("every model", "every model")
    if reason := why_not_recorded(cells, estimand):
        return [(every, Estimate.undefined(reason))]
    if not _have_common_columns(effects.values):
        return [(every, Estimate.undefined(TOO_FEW))]
    names = [str(m) for m in effects["model"].values]
    rows = dict(zip(names, effects.values, strict=True))
    found = {pair: kendalls_tau(*(rows[m] for m in pair)) for pair in combinations(names, 2)}
    found[every] = float(np.mean(list(found.values())))
    n = {
        pair: int(np.isfinite([rows[m] for m in pair]).all(axis=0).sum())
        for pair in combinations(names, 2)
    }
    return [
        (pair, Estimate(tau, n=n.get(pair, len(names)), reason=DESCRIPTIVE))
        for pair, tau in found.items()
    ]


def rank_agreement(cells: xr.Dataset, *, estimand: str) -> list[tuple[str, Estimate]]:
    """Spearman's rho of each model's effects with what the other models' have in common.

    That is the effect of each concept in an additive fit, level of a model plus effect of a
    concept, to the other models alone. `p_value` is the share of tables without a common part,
    drawn as in `concept_test`, in which the model agrees with the others as well: a large one says
    that it is not shown to rank the concepts as they do.
    """
    effects = comparable_effects(cells, estimand)
    if isinstance(effects, str):
        return [("every model", Estimate.undefined(effects))]
    rng = stream(f"ranks of {estimand}", seed=int(cells.attrs["seed"]))
    drawn = concept_test(effects, rng).drawn
    rows = []
    for at, model in enumerate(effects.models):
        own = effects.model == at
        others = _common_part(effects, ~own)
        known = np.isin(effects.concept[own], effects.concept[~own])
        if known.sum() < 3 or len(others) == 0:
            rows.append((model, Estimate.undefined("ran fewer than three concepts of the others")))
            continue
        where = effects.concept[own]
        found, null = (
            _rank_correlation(y[..., own], (y[..., ~own] @ others.T)[..., where], known)
            for y in (effects.value, drawn)
        )
        p = (1 + np.sum(null >= found - TIED)) / (1 + len(drawn))
        n = int(known.sum())
        rows.append((model, Estimate(float(found), n=n, p_value=float(p), reason=DESCRIPTIVE)))
    return rows


def _common_part(effects: CellEffects, kept: np.ndarray) -> np.ndarray:
    """What gives each concept's effect from the kept cells by least squares, (concept, cell)."""
    of_model = np.eye(len(effects.models))[effects.model[kept]]
    of_concept = np.eye(len(effects.concepts))[effects.concept[kept]]
    return np.linalg.pinv(np.hstack([of_model, of_concept]))[len(effects.models) :]
