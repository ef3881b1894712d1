r"""Do models rank the concepts alike? The share of variance in common, its test, and ranks.

Base claims on `concept_share`: how much of the variance of true effects between the concepts of one
model is common to all models, from the exact posterior, with a p-value for no common part.
Kendall's W, tau and the rank correlations only describe the observed table. They have no interval:
errors on shared items make models rank alike too, and adding simulated errors to effects that
already contain errors counts these twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import interpolate, stats

from steercube.analysis.over_models.cell_effects import (
    OUTCOMES,
    CellEffects,
    cell_effects,
    primary_terms,
)
from steercube.analysis.over_models.comparisons import SCALED
from steercube.analysis.over_models.means import root_of
from steercube.analysis.over_models.posterior import SDS, Posterior, fit
from steercube.analysis.view import Study, kept, where_recorded
from steercube.estimate import Estimate

N_DRAWS = 1_999
N_GRID = 24
"""Grid points of each sd in the likelihood of the test."""

N_FINE = {2: 200, 3: 60}
"""Grid points of each sd for a share of variance, by how many sds it involves."""

WITHIN = ("sd_concept", "sd_cell")
"""What varies between the concepts of one model."""

TOO_FEW = "needs two models that ran the same three concepts"
OVER_ALL = "items, concepts, models"
DESCRIPTIVE = "describes this table; errors on shared items rank alike too, so it has no interval"
TIED = 1e-9
"""Statistics closer than this count as equal."""


@kept
def concept_share(
    study: Study, *, estimand: str, concepts: Sequence[str] | None = None
) -> Estimate:
    r"""The share of the variance over a model's concepts that all models have in common.

    $\rho = sd_{concept}^2 / (sd_{concept}^2 + sd_{cell}^2)$ of the hierarchical model, which is the
    correlation of two models' true effects over concepts: 0 where each model has a ranking of its
    own, 1 where all share one. Median and credible interval of the exact posterior. A share is
    never negative, so the interval cannot exclude zero; `p_value` tests it (`concept_test`).
    """
    return _share(study, estimand, concepts, WITHIN)


def concept_share_of_all(study: Study, *, estimand: str) -> Estimate:
    r"""The share of sd_concept^2 in sd_model^2 + sd_concept^2 + sd_cell^2, as in `concept_share`.

    sd_model is the spread of models beyond the contrast and size.
    """
    return _share(study, estimand, None, SDS)


def _share(
    study: Study, estimand: str, concepts: Sequence[str] | None, among: Sequence[str]
) -> Estimate:
    part = study if concepts is None else study.among(concepts=[c for c in study.concepts
                                                                if c in concepts])  # fmt: skip
    if reason := _why_not_comparable(part, estimand):
        return Estimate.undefined(reason)
    effects = cell_effects(part, estimand)
    posterior = fit(effects, terms=primary_terms(effects))
    known = share_of_variance(posterior, "sd_concept", among)
    p = concept_test_of(part, estimand).p_value
    return Estimate.of(known, study.level, over=OVER_ALL, n=len(effects.value), p_value=p)


def _why_not_comparable(study: Study, estimand: str) -> str:
    """Why models cannot be compared on the same concepts; empty if they can."""
    if estimand not in OUTCOMES:
        return f"the hierarchical model has no priors for {estimand}"
    effects = cell_effects(study, estimand)
    return effects.reason or ("" if _are_comparable(effects) else TOO_FEW)


@kept
def concept_test_of(study: Study, estimand: str) -> "ConceptTest":
    """`concept_test` of the study's effects."""
    rng = study.stream(f"no common concepts in {estimand}")
    return concept_test(cell_effects(study, estimand), rng)


def _are_comparable(effects: CellEffects) -> bool:
    """Whether some two models have at least three concepts in common."""
    ran = np.isfinite(effects.table).astype(int)
    both = ran @ ran.T
    return bool((both[~np.eye(len(both), dtype=bool)] >= 3).any())


@dataclass(frozen=True, eq=False)
class OfShares:
    """What is known of a share by draws of it (draw,), in order, and what lies `under` each."""

    values: np.ndarray
    under: np.ndarray

    def ends(self, level: float) -> tuple[float, float]:
        """The ends of the credible interval of this level."""
        tail = (1 - level) / 2
        low, high = np.interp([tail, 1 - tail], self.under, self.values)
        return float(low), float(high)

    def below(self, value: float) -> float:
        """The posterior probability that it is below `value`."""
        return float(np.interp(value, self.values, self.under, left=0.0, right=1.0))


def share_of_variance(posterior: Posterior, name: str, among: Sequence[str]) -> OfShares:
    """What is known of one sd's square over the sum of the squares of `among`.

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
        # Gauss-Legendre rule in the root of the sd: see `posterior._Axis.gauss`.
        root = np.sqrt(np.unique(posterior.sds[axis]))
        squares[axis] = interpolate.CubicSpline(nodes, root)(fine) ** 4
        along = np.moveaxis(log_density, at, -1) - np.log(width)
        log_density = np.moveaxis(interpolate.CubicSpline(nodes, along, axis=-1)(fine), -1, at)
    grid = dict(zip(squares, np.meshgrid(*squares.values(), indexing="ij"), strict=True))
    weight = np.exp(log_density - log_density.max())
    shares = grid[name] / sum(grid.values())
    order = np.argsort(shares.ravel(), kind="stable")
    weight = (weight.ravel() / weight.sum())[order]
    return OfShares(shares.ravel()[order], np.cumsum(weight) - weight / 2)


class ConceptTest(NamedTuple):
    """Likelihood ratio test of a concept effect common to models: statistic, p, and null draws.

    `sd_cell` is its estimate without a common part; `drawn` (draw, cell) are effects simulated from
    that fit, up to the level of each model.
    """

    statistic: float
    p_value: float
    sd_cell: float
    drawn: np.ndarray


def concept_test(
    effects: CellEffects, rng: np.random.Generator, *, n_draws: int = N_DRAWS
) -> ConceptTest:
    r"""Test whether the models' effects share a part that differs between concepts.

    The test of $sd_{concept} = 0$ in the hierarchical model by its restricted likelihood ratio,
    $2 (\max_{sd_{concept}, sd_{cell}} \ell - \max_{sd_{cell}} \ell_0)$, with each
    model's level projected out, so that sd_model and any slope over models drop out. The null
    distribution is a parametric bootstrap of the same cells (cells never run stay missing) from the
    restricted fit with sd_concept = 0. Errors are correlated between models as in S, the covariance
    over items (`_errors`), which the likelihood includes too.
    """
    likelihood = _Likelihood.of(effects)
    observed, sd_cell = likelihood.ratio((effects.value @ likelihood.basis)[None])
    drawn = sd_cell[0] * rng.standard_normal((n_draws, len(effects.value)))
    drawn += _errors(effects, n_draws, rng)
    null, _ = likelihood.ratio(drawn @ likelihood.basis)
    p = (1 + np.sum(null >= observed[0] - TIED)) / (1 + n_draws)
    return ConceptTest(float(observed[0]), float(p), float(sd_cell[0]), drawn)


def _errors(effects: CellEffects, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    r"""Simulated errors of the cells over items, dims (draw, cell).

    S is estimated from n items, imprecisely for a few dozen. Averaged over its inverse Wishart
    distribution given n items, the errors of one concept's m models are multivariate t with n - m
    degrees of freedom and scale (n - 1) / (n - m) S. They are normal if S is exact.
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
    """The restricted likelihood of cells, model levels projected out, on a grid of two sds.

    `basis` (cell, contrast) is orthonormal and orthogonal to the models' levels. For each
    sd_concept of the grid (0 first), the covariance S + sd_concept^2 Z Z' in that basis has the
    eigenvectors `vectors` (sd_concept, contrast, contrast) and eigenvalues `values` (sd_concept,
    contrast), to which the squares of `sd_cell` add.
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
        ridge = 1e-9 * scale**2
        return cls(basis, vectors, np.maximum(values, 0) + ridge, sds)

    def ratio(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Twice the log likelihood ratio of tables (table, contrast), and the null's sd_cell."""
        null = self._profile(z, 0)
        best = null.max(axis=0)
        at_null = self.sd_cell[null.argmax(axis=0)]
        full = best
        for at in range(1, N_GRID):
            full = np.maximum(full, self._profile(z, at).max(axis=0))
        return 2 * (full - best), at_null

    def _profile(self, z: np.ndarray, at: int) -> np.ndarray:
        """Log likelihood at one sd_concept of the grid, dims (sd_cell, table)."""
        variance = self.values[at] + (self.sd_cell**2)[:, None]
        along = (z @ self.vectors[at]) ** 2
        log_det = np.log(variance).sum(axis=1)[:, None]
        profile: np.ndarray = -0.5 * (log_det + (1 / variance) @ along.T)
        return profile


def kendalls_w(table: np.ndarray) -> float:
    r"""Kendall's coefficient of concordance of m rows that rank the columns, NaN where missing.

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
    """Spearman's rho over the last dim, at the columns where `both` is true."""
    ranks = [stats.rankdata(x[..., both], axis=-1) for x in (one, other)]
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in ranks)
    with np.errstate(invalid="ignore"):  # a constant row has no correlation
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
def concordance_of_ranks(study: Study, *, estimand: str) -> Estimate:
    """Kendall's W of the models' effects, over the concepts that each pair of models ran."""
    table = study.best(estimand).values
    if not _have_common_columns(table):
        return Estimate.undefined(TOO_FEW)
    return Estimate(kendalls_w(table), n=len(table), reason=DESCRIPTIVE)


def _have_common_columns(table: np.ndarray) -> bool:
    """Whether there are two rows or more, and every two of them have three columns in common."""
    ran = np.isfinite(table).astype(int)
    both = (ran @ ran.T)[~np.eye(len(ran), dtype=bool)]
    return bool(len(both) and both.min() >= 3)


def pairwise_concordance(study: Study, *, estimand: str) -> list[tuple[tuple[str, str], Estimate]]:
    """Kendall's tau of each pair of models over the concepts that both ran, then their mean.

    The mean's pair is named ("every model", "every model").
    """
    every = ("every model", "every model")
    if reason := study.lacks(estimand):
        return [(every, Estimate.undefined(reason))]
    rows = dict(zip(study.models, study.best(estimand).values, strict=True))
    if not _have_common_columns(np.array(list(rows.values()))):
        return [(every, Estimate.undefined(TOO_FEW))]
    pairs = list(combinations(study.models, 2))
    taus = [kendalls_tau(rows[one], rows[other]) for one, other in pairs]
    both_ran = [int(np.isfinite([rows[m] for m in pair]).all(axis=0).sum()) for pair in pairs]
    rows_of_pairs = zip(pairs, taus, both_ran, strict=True)
    mean = Estimate(float(np.mean(taus)), n=len(rows), reason=DESCRIPTIVE)
    return [
        *((pair, Estimate(tau, n=n, reason=DESCRIPTIVE)) for pair, tau, n in rows_of_pairs),
        (every, mean),
    ]


def rank_agreement(study: Study, *, estimand: str) -> list[tuple[str, Estimate]]:
    """Spearman's rho of each model's effects with the concept effects common to the other models.

    These are from an additive fit (level of a model plus effect of a concept) to the other models
    alone. `p_value` is the share of tables simulated without a common part, as in `concept_test`,
    in which the model agrees with the others at least as well: if it is large, there is no evidence
    that the model ranks the concepts as they do.
    """
    if reason := _why_not_comparable(study, estimand):
        return [("every model", Estimate.undefined(reason))]
    effects = cell_effects(study, estimand)
    drawn = concept_test(effects, study.stream(f"ranks of {estimand}")).drawn
    rows = []
    for at, model in enumerate(effects.models):
        own = effects.model == at
        others = _common_part(effects, ~own)
        known = np.isin(effects.concept[own], effects.concept[~own])
        if known.sum() < 3 or len(others) == 0:
            rows.append((model, Estimate.undefined("ran fewer than three concepts of the others")))
            continue
        where = effects.concept[own]
        rho, null = (
            _rank_correlation(y[..., own], (y[..., ~own] @ others.T)[..., where], known)
            for y in (effects.value, drawn)
        )
        p = (1 + np.sum(null >= rho - TIED)) / (1 + len(drawn))
        n = int(known.sum())
        rows.append((model, Estimate(float(rho), n=n, p_value=float(p), reason=DESCRIPTIVE)))
    return rows


def _common_part(effects: CellEffects, kept: np.ndarray) -> np.ndarray:
    """Matrix (concept, cell) from the kept cells to the least-squares effect of each concept."""
    of_model = np.eye(len(effects.models))[effects.model[kept]]
    of_concept = np.eye(len(effects.concepts))[effects.concept[kept]]
    return np.linalg.pinv(np.hstack([of_model, of_concept]))[len(effects.models) :]


Row = tuple[dict[str, str], Estimate]


def concordance(study: Study) -> list[Row]:
    """The table of whether models rank concepts alike: shared variance, ranks, single models."""
    rows: list[Row] = []
    every = {"model": "every model", "model_other": "every model"}
    statistics: dict[str, Callable[..., Estimate]] = {
        "share of variance common to models": concept_share,
        "share of variance between concepts": concept_share_of_all,
        "Kendall's W": concordance_of_ranks,
    }
    for estimand in SCALED:
        for statistic, compute in statistics.items():
            labels = {"estimand": estimand, "statistic": statistic} | every
            rows.append((labels, compute(study, estimand=estimand)))
        labels = {"estimand": estimand, "statistic": "rank correlation with the others"}
        for model, estimate in rank_agreement(study, estimand=estimand):
            rows.append((labels | {"model": model, "model_other": "the others"}, estimate))
        labels = {"estimand": estimand, "statistic": "Kendall's tau"}
        for (one, other), estimate in pairwise_concordance(study, estimand=estimand):
            rows.append((labels | {"model": one, "model_other": other}, estimate))
    return rows
