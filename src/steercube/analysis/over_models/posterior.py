r"""The primary model of a contrast and of scale: a hierarchical model of the cells' effects.

    d = mu + b_contrast x + b_scale log10(params) + u_model + v_concept + w_cell + error,
    u ~ N(0, sd_model^2),  v ~ N(0, sd_concept^2),  w ~ N(0, sd_cell^2),  error ~ N(0, S).

S is known: the covariance between models within a concept, from the joint item bootstrap.
Predictors are centred; before that x is 1 for the contrast's `high` label and 0 for its `low` one,
so b_contrast is high minus low. Given the three sds everything is normal and the posterior exact;
the sds are integrated on a grid (Gauss-Legendre nodes over the range of their posterior). The
result is deterministic, and samplers are checked against it.

When to use it: for any statement that should generalise over models and concepts. What it is wrong
for: statements about just these models (use intervals over items). With few models the prior on
sd_model has much influence: see `leave_one_out.prior_sensitivity`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy import interpolate, optimize, special, stats

from steercube.analysis.over_models.cell_effects import (
    IN_CONCEPT,
    TERMS,
    CellEffects,
    cell_effects,
    why_not,
)
from steercube.analysis.over_models.gram import (
    OfModels,
    blocks_of,
    columns,
    grams,
    integrate_models,
)
from steercube.analysis.view import Study

SDS = ("sd_model", "sd_concept", "sd_cell")
MAX_TAIL = 1e-6
"""Posterior density, as a share of its maximum, at which the grid of an sd ends."""


NO_WEIGHT = 1e-10
"""Nodes with a smaller share of the largest weight are left out of a mixture."""


@dataclass(frozen=True)
class Prior:
    """Scales of the priors in units of the outcome: normal around 0, half-normal for the sds.

    sd_model's is half-Cauchy unless `cauchy` is False: few groups need a prior with a long tail
    (Gelman 2006, Bayesian Analysis 1(3)). With a half-normal prior of any scale the interval of
    b_contrast covers too often if models differ little, or too rarely if they differ much. The
    scale was chosen by the coverage of b_contrast on the sweeps of `nox -s calibrate` alone: at
    0.15 it is under 93% for models that differ much, at 0.2 over 97% for others. This holds for six
    models, four and two of a training, in Cohen's d; other outcomes, one concept and three models
    were not simulated.
    """

    intercept: float = 5.0
    contrast: float = 1.0
    scale: float = 1.0
    sd_model: float = 0.18
    sd_concept: float = 0.5
    sd_cell: float = 0.5
    cauchy: bool = True
    sd_slope: float = 0.0
    """Of each concept's own deviation from b_scale: the terms that `concept_terms` names."""

    def of(self, name: str) -> float:
        """The scale of one coefficient or sd."""
        return self.sd_slope if IN_CONCEPT in name else float(getattr(self, name))

    def scaled(self, name: str, scale: float) -> "Prior":
        """These priors with another scale of one coefficient or sd."""
        changed: dict[str, Any] = {name: scale}
        return replace(self, **changed)

    def is_cauchy(self, name: str) -> bool:
        """Whether the prior of an sd is half-Cauchy, not half-normal."""
        return self.cauchy and name == "sd_model"

    def log_density(self, name: str, sd: np.ndarray, unit: float) -> np.ndarray:
        """Log density of an sd."""
        x = sd / (self.of(name) * unit)
        shape = -np.log1p(x**2) if self.is_cauchy(name) else np.log(np.pi / 2) / 2 - x**2 / 2
        return shape + np.log(2 / np.pi) - np.log(self.of(name) * unit)

    def draw(self, name: str, unit: float, rng: np.random.Generator, size: int = 1) -> np.ndarray:
        """Draws of a coefficient or an sd, dims (draw,)."""
        bare = rng.standard_cauchy(size) if self.is_cauchy(name) else rng.standard_normal(size)
        return self.of(name) * unit * (np.abs(bare) if name in SDS else bare)

    def __str__(self) -> str:
        family = "HC" if self.cauchy else "HN"
        return (
            f"b_contrast ~ N(0, {self.contrast:g}), b_scale ~ N(0, {self.scale:g}), "
            f"sd_model ~ {family}({self.sd_model:g}), sd_concept ~ HN({self.sd_concept:g}), "
            f"sd_cell ~ HN({self.sd_cell:g})"
        )


PRIOR = Prior()


Sum = tuple[tuple[str, float], ...]
"""A weighted sum of slopes: the name and the weight of each."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """The exact posterior: a mixture of normals over the nodes of the grid of sds.

    `weight` (node,) sums to 1; `sds` (node,) by name; `slope_mean` (node, slope) and
    `slope_covariance` (node, slope, slope) of the intercept and the terms; `below` is the
    distribution function of the root of each sd. The models' `deviations` are computed when first
    used.
    """

    effects: CellEffects
    prior: Prior
    terms: tuple[str, ...]
    log_evidence: float
    weight: np.ndarray
    sds: dict[str, np.ndarray]
    slope_mean: np.ndarray
    slope_covariance: np.ndarray
    below: dict[str, interpolate.PPoly]
    nodes: "_Nodes"

    @cached_property
    def deviations(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every model's u, dims (node, model) each."""
        return self.nodes.deviations()

    def cdf(self, name: "str | Sum", value: float) -> float:
        """P(coefficient or sd < value)."""
        if isinstance(name, str) and name in self.sds:
            below = self.below[name]
            root = np.clip(np.sqrt(max(value, 0.0)), *below.x[[0, -1]])
            return float(np.clip(below(root), 0, 1))
        mean, sd = self._normal(name)
        return float(self.weight @ special.ndtr((value - mean) / sd))

    def quantile(self, name: "str | Sum", share: float) -> float:
        """The value with a `share` of the posterior below it."""
        if isinstance(name, str) and name in self.sds:
            low, high = self.below[name].x[[0, -1]] ** 2
        else:
            mean, sd = self._normal(name)
            low, high = (mean - 9 * sd).min(), (mean + 9 * sd).max()
        return float(optimize.brentq(lambda x: self.cdf(name, x) - share, low, high, xtol=1e-10))

    def interval(self, name: "str | Sum", level: float) -> tuple[float, float, float]:
        """Lower end, median and upper end of the credible interval."""
        low, median, high = (
            self.quantile(name, share) for share in ((1 - level) / 2, 0.5, (1 + level) / 2)
        )
        return low, median, high

    def expectation(self, name: str) -> float:
        """Posterior mean."""
        return float(self.weight @ (self.sds[name] if name in self.sds else self._normal(name)[0]))

    def spread(self, name: str) -> float:
        """Posterior standard deviation."""
        mean, sd = (self.sds[name], 0.0) if name in self.sds else self._normal(name)
        return float(np.sqrt(self.weight @ (mean**2 + sd**2) - self.expectation(name) ** 2))

    @property
    def names(self) -> list[str]:
        """The intercept, the coefficients and the sds."""
        return ["intercept", *self.terms, *self.sds]

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """A row for each coefficient and sd: mean, sd, median and the ends of its interval.

        `probability_negative` is the posterior probability that it is below zero. The unit is that
        of the outcome; predictors are centred, the contrast is 1 for its `high` label, scale is
        log10 of the parameters.
        """
        rows = {}
        for name in self.names:
            low, median, high = self.interval(name, level)
            rows[name] = {
                **{"mean": self.expectation(name), "sd": self.spread(name), "median": median},
                **{"low": low, "high": high, "probability_negative": self.cdf(name, 0.0)},
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    def draws(
        self, rng: np.random.Generator, *, n_chains: int = 4, n_draws: int = 1000
    ) -> xr.Dataset:
        """Independent draws of every coefficient and sd, dims (chain, draw).

        A node of the grid is drawn by its weight, and the coefficients from their normal there.
        Each sd, which has only the values of its nodes, is spread over the share of its
        distribution that belongs to its node: its own marginal is then exact.
        """
        size = (n_chains, n_draws)
        node, slopes = self.drawn(rng, n_chains * n_draws)
        found = dict(zip(("intercept", *self.terms), slopes.T, strict=True))
        for name, values in self.sds.items():
            found[name] = self._between_nodes(name, values, node, rng)
        return xr.Dataset(
            {name: (("chain", "draw"), values.reshape(size)) for name, values in found.items()},
            coords={"chain": np.arange(n_chains), "draw": np.arange(n_draws)},
        )

    def _between_nodes(
        self, name: str, values: np.ndarray, node: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws of an sd from the part of its distribution that belongs to each drawn node."""
        _, place = np.unique(values, return_inverse=True)
        share = np.bincount(place, weights=self.weight)
        upper = np.cumsum(share)
        quantile = upper[place[node]] - share[place[node]] * rng.random(len(node))
        lowest, highest = self.below[name].x[[0, -1]]
        root = np.linspace(lowest, highest, 4001)
        return np.interp(quantile, self.below[name](root), root) ** 2

    def within(self, name: str, half_width: float) -> float:
        """P(|coefficient| < half_width)."""
        return self.cdf(name, half_width) - self.cdf(name, -half_width)

    def bayes_factor(self, term: str) -> float:
        """Evidence for the term over its absence: prior density at 0 over posterior density at 0.

        Savage and Dickey's ratio (Verdinelli & Wasserman 1995), exact for this posterior.
        """
        mean, sd = self._normal(term)
        posterior = float(self.weight @ (stats.norm.pdf(mean / sd) / sd))
        return float(stats.norm.pdf(0, scale=self.prior.of(term) * self.effects.unit) / posterior)

    def drawn(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws of a node of the grid (draw,), and of intercept and terms there (draw, slope)."""
        node = rng.choice(len(self.weight), n, p=self.weight)
        mean, covariance = self.slope_mean[node], self.slope_covariance[node]
        noise = rng.standard_normal(mean.shape)
        return node, mean + np.einsum("dij,dj->di", np.linalg.cholesky(covariance), noise)

    def _normal(self, name: "str | Sum") -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd at each node of a slope, a sum of some, or of a model's u, "u of <model>"."""
        slopes = ("intercept", *self.terms)
        summed = {name: 1.0} if isinstance(name, str) else dict(name)
        if set(summed) <= set(slopes):
            weights = np.array([summed.get(slope, 0.0) for slope in slopes])
            variance = np.einsum("a,kab,b->k", weights, self.slope_covariance, weights)
            return np.einsum("ka,a->k", self.slope_mean, weights), np.sqrt(variance)
        assert isinstance(name, str)
        at = self.effects.models.index(name.removeprefix("u of "))
        mean, variance = self.deviations
        return mean[:, at], np.sqrt(variance[:, at])


@dataclass(frozen=True, eq=False)
class Mixture:
    """Posteriors given each of several `values` (value,) of one more parameter, and their weights.

    `weight` (value,) is the posterior probability of each value and sums to 1.
    """

    parts: tuple[Posterior, ...]
    values: np.ndarray
    weight: np.ndarray

    @classmethod
    def over(
        cls, values: np.ndarray, log_prior: np.ndarray, given: Callable[[float], Posterior]
    ) -> "Mixture":
        """The posterior `given` each value, weighted by its evidence times its prior mass."""
        parts = tuple(given(float(value)) for value in values)
        log_weight = np.array([part.log_evidence for part in parts]) + log_prior
        return cls(parts, values, np.exp(log_weight - special.logsumexp(log_weight)))

    def cdf(self, name: str | Sum, value: float) -> float:
        """P(coefficient < value)."""
        weight, mean, sd = self._normals(name)
        return float(np.sum(weight * special.ndtr((value - mean) / sd)))

    def interval(self, name: str | Sum, level: float) -> tuple[float, float, float]:
        """Lower end, median and upper end of the credible interval."""
        weight, mean, sd = self._normals(name)
        lowest, highest = float((mean - 9 * sd).min()), float((mean + 9 * sd).max())

        def quantile(share: float) -> float:
            def excess(x: float) -> float:
                # Not by `@`, whose last digits depend on the number of threads for so many nodes.
                return float(np.sum(weight * special.ndtr((x - mean) / sd))) - share

            return float(optimize.brentq(excess, lowest, highest, xtol=1e-9))

        return quantile((1 - level) / 2), quantile(0.5), quantile((1 + level) / 2)

    def _normals(self, name: str | Sum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weight, mean and sd of every node of every part; those without any weight are left out"""
        normals = [part._normal(name) for part in self.parts]
        weight = np.concatenate(
            [w * part.weight for w, part in zip(self.weight, self.parts, strict=True)]
        )
        mean, sd = (np.concatenate(of) for of in zip(*normals, strict=True))
        counts = weight > NO_WEIGHT * weight.max()
        return weight[counts] / weight[counts].sum(), mean[counts], sd[counts]


@dataclass(frozen=True, eq=False)
class OfPosterior:
    """What the hierarchical model knows of a slope, or a sum of some; see `estimate.Known`."""

    posterior: Posterior | Mixture
    name: str | Sum

    def ends(self, level: float) -> tuple[float, float]:
        """The ends of the credible interval of this level."""
        low, _, high = self.posterior.interval(self.name, level)
        return low, high

    def below(self, value: float) -> float:
        """The posterior probability that it is below `value`."""
        return self.posterior.cdf(self.name, value)


def posterior_of(
    study: Study, outcome: str, terms: Sequence[str], *, holding: str | None = None
) -> "Posterior":
    """The posterior of a study's effects. Raises ValueError if `why_not` gives a reason."""
    return fit(cell_effects(study, outcome, holding=holding), terms=terms)


def fit(
    effects: CellEffects,
    *,
    terms: Sequence[str] = TERMS,
    prior: Prior = PRIOR,
    sds: Sequence[str] | None = None,
    n_nodes: int = 20,
) -> Posterior:
    """The posterior of the model with these terms, by two passes of the grid.

    The first, coarse, locates the posterior; the second puts `n_nodes` Gauss-Legendre nodes there.
    Both are quadratic in the sds, denser near 0. With one concept sd_concept and sd_cell are left
    out unless `sds` names them, as nothing then distinguishes a concept or a cell from its model.
    With the default prior and sds the result is kept with the effects. Raises ValueError if
    `why_not` gives a reason.
    """
    key = (tuple(terms), n_nodes) if prior is PRIOR and sds is None else None
    if key in effects.posteriors:
        posterior: Posterior = effects.posteriors[key]
        return posterior
    if reason := why_not(effects, terms):
        raise ValueError(reason)
    if sds is None:
        sds = SDS if effects.n_concepts > 1 else SDS[:1]
    coarse = {name: _Axis.coarse(_largest(effects, prior, name)) for name in sds}
    share = _shares(_weigh(effects, terms, prior, coarse).weight, coarse)
    fine = {n: _Axis.gauss(*_support(axis, share[n]), n_nodes) for n, axis in coarse.items()}
    posterior = _on_grid(effects, terms, prior, fine)
    if key is not None:
        effects.posteriors[key] = posterior
    return posterior


def _largest(effects: CellEffects, prior: Prior, name: str) -> float:
    """The upper end of the coarse grid of an sd; the posterior beyond is negligible."""
    scale = prior.of(name) * effects.unit
    if not prior.is_cauchy(name):
        return 5 * scale
    return max(
        20 * scale, 20 * float(np.sqrt(np.mean((effects.value - effects.value.mean()) ** 2)))
    )


class _Axis(NamedTuple):
    """Nodes of one sd from `low` to `high`, and their weights in an integral."""

    nodes: np.ndarray
    width: np.ndarray
    low: float
    high: float

    @classmethod
    def coarse(cls, high: float) -> "_Axis":
        """Midpoint rule, denser near 0."""
        edges = high * np.linspace(0, 1, 15) ** 2
        return cls((edges[1:] + edges[:-1]) / 2, np.diff(edges), 0.0, high)

    @classmethod
    def gauss(cls, low: float, high: float, n_nodes: int) -> "_Axis":
        """Gauss-Legendre rule in the root of the sd."""
        nodes, width = np.polynomial.legendre.leggauss(n_nodes)
        half = (np.sqrt(high) - np.sqrt(low)) / 2
        root = np.sqrt(low) + half * (1 + nodes)
        return cls(root**2, 2 * root * half * width, low, high)

    def below(self, share: np.ndarray) -> interpolate.PPoly:
        """Distribution function of the sd's root, by a spline of its mass `share` at the nodes."""
        root = np.sqrt(self.nodes)
        through = interpolate.CubicSpline(root, share / self.width * 2 * root)
        fine = np.linspace(np.sqrt(self.low), np.sqrt(self.high), 400)
        integral = interpolate.CubicSpline(fine, np.maximum(through(fine), 0)).antiderivative()
        return interpolate.PPoly(integral.c / integral(fine[-1]), integral.x)


def _support(axis: _Axis, share: np.ndarray) -> tuple[float, float]:
    """The range in which the density exceeds MAX_TAIL of its maximum, and one node beyond."""
    density = share / axis.width
    inside = np.flatnonzero(density > MAX_TAIL * density.max())
    low, high = inside[0] - 1, min(inside[-1] + 1, len(axis.nodes) - 1)
    return (0.0 if low < 0 else float(axis.nodes[low])), float(axis.nodes[high])


class _Nodes(NamedTuple):
    """Nodes of the grid, dims (sd_model, sd_concept, sd_cell), and coefficients at each.

    `sds` by name, `weight` sums to 1; `models` is G without the models' levels; `slope_mean`
    (..., slope) and `slope_covariance` (..., slope, slope) of the intercept and the terms.
    """

    sds: dict[str, np.ndarray]
    weight: np.ndarray
    log_evidence: float
    models: OfModels
    slope_mean: np.ndarray
    slope_covariance: np.ndarray

    def deviations(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean E h (r - R b) and variance of every model's u, dims (node, model) each.

        R and r are `of_models` of `OfModels` for the slopes and for y, b is the slopes' mean.
        """
        turned, shrunk, of_models, *_ = self.models
        of_slopes, of_y = of_models[..., :-1], of_models[..., -1]
        rest = of_y - np.einsum("kjmf,ikjf->ikjm", of_slopes, self.slope_mean)
        mean = np.einsum("kjnm,ikjm->ikjn", turned, shrunk * rest)
        variance = np.einsum("kjnm,ikjm->ikjn", turned**2, shrunk)
        through = np.einsum("kjnm,ikjm,kjmf->ikjnf", turned, shrunk, of_slopes, optimize=True)
        variance += np.einsum(
            "ikjnf,ikjfg,ikjng->ikjn", through, self.slope_covariance, through, optimize=True
        )
        n_models = mean.shape[-1]
        return mean.reshape(-1, n_models), variance.reshape(-1, n_models)


def _weigh(
    effects: CellEffects, terms: Sequence[str], prior: Prior, axes: Mapping[str, _Axis]
) -> _Nodes:
    r"""The nodes of a grid of sds, weighted by evidence x prior x width.

    With $G = [X, y]^T V^{-1} [X, y]$ and the slopes' prior variances D, their precision is
    $P = G_{xx} + D^{-1}$, their mean $b = P^{-1} G_{xy}$, and
    $\log p(y) = -(n \log 2\pi + \log|V| + \log|D P| + G_{yy} - b^T G_{xy}) / 2$.
    """
    grid = np.meshgrid(*(axes[n].nodes for n in axes), indexing="ij")
    width = np.prod(np.meshgrid(*(axes[n].width for n in axes), indexing="ij"), axis=0)
    none = np.zeros(1)
    sd_concept, sd_cell = (
        axes[name].nodes if name in axes else none for name in ("sd_concept", "sd_cell")
    )
    sums = grams(blocks_of(effects, columns(effects, terms)), sd_concept, sd_cell)
    models = integrate_models(*sums, axes["sd_model"].nodes, n_slopes=1 + len(terms))
    prior_variance = np.array([prior.of(n) * effects.unit for n in ("intercept", *terms)]) ** 2
    precision = models.gram[..., :-1, :-1] + np.diag(1 / prior_variance)
    of_y = models.gram[..., :-1, -1]
    mean = np.linalg.solve(precision, of_y[..., None])[..., 0]
    fit_of_y = models.gram[..., -1, -1] - np.einsum("...a,...a->...", of_y, mean)
    log_det = models.log_det + np.linalg.slogdet(precision)[1] + np.log(prior_variance).sum()
    log_likelihood = -0.5 * (len(effects.value) * np.log(2 * np.pi) + log_det + fit_of_y)
    log_prior = sum(
        prior.log_density(name, sd, effects.unit) for name, sd in zip(axes, grid, strict=True)
    )
    log_weight = log_likelihood.reshape(width.shape) + log_prior + np.log(width)
    log_evidence = float(special.logsumexp(log_weight))
    weight = np.exp(log_weight - log_evidence)
    sds = dict(zip(axes, grid, strict=True))
    return _Nodes(sds, weight, log_evidence, models, mean, np.linalg.inv(precision))


def _on_grid(
    effects: CellEffects, terms: Sequence[str], prior: Prior, axes: Mapping[str, _Axis]
) -> Posterior:
    """The posterior on a grid of sds."""
    nodes = _weigh(effects, terms, prior, axes)
    share, n_slopes = _shares(nodes.weight, axes), 1 + len(terms)
    return Posterior(
        effects=effects,
        prior=prior,
        terms=tuple(terms),
        log_evidence=nodes.log_evidence,
        weight=nodes.weight.ravel(),
        sds={name: sd.ravel() for name, sd in nodes.sds.items()},
        slope_mean=nodes.slope_mean.reshape(-1, n_slopes),
        slope_covariance=nodes.slope_covariance.reshape(-1, n_slopes, n_slopes),
        below={name: axis.below(share[name]) for name, axis in axes.items()},
        nodes=nodes,
    )


def _shares(weight: np.ndarray, axes: Mapping[str, _Axis]) -> dict[str, np.ndarray]:
    """Marginal posterior probability of each node of each sd."""
    grid = weight.reshape([len(axis.nodes) for axis in axes.values()])
    dims = range(grid.ndim)
    return {n: grid.sum(axis=tuple(d for d in dims if d != at)) for at, n in enumerate(axes)}
