r"""The primary model of training and scale: effects of cells, with everything that varies.

    d = mu + b_training x_training + b_scale log10(params) + u_model + v_concept + w_cell + error,
    u ~ N(0, sd_model^2),  v ~ N(0, sd_concept^2),  w ~ N(0, sd_cell^2),  error ~ N(0, S).

S is known: the covariance that the joint item bootstrap found between models within a concept.
Predictors are centred, x_training is 1 for full RL and 0 for distilled before that, so b_training
is full RL minus distilled. Given the three sds everything is normal and the posterior exact; the
sds are integrated on a grid (Gauss-Legendre nodes over where their posterior lies). The result is
deterministic and the oracle for every sampler.

When to use it: for any statement that should generalise over models and concepts. What it is wrong
for: statements about just these models (intervals over items). With few models the prior on
sd_model says much of what they cannot:
`steercube.analysis.over_models.leave_one_out.prior_sensitivity`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import interpolate, optimize, special, stats

from steercube.analysis.over_models.depth import best_depths, depth_centroids
from steercube.analysis.over_models.means import (
    HIGH,
    LOW,
    best_effects,
    swept_models,
    why_not_recorded,
)
from steercube.analysis.per_cell.estimands import ESTIMANDS

TERMS = ("training", "scale")
SDS = ("sd_model", "sd_concept", "sd_cell")
MAX_TAIL = 1e-6
"""Posterior density, of its largest, at which the grid of an sd ends."""


@dataclass(frozen=True)
class Outcome:
    """What is explained: `unit` is the size that priors are scaled by, `negligible` the half-width
    of the region of practical equivalence of b_training, both stated before any fit.

    Without a unit, in raw nats, the unit is the root mean square of the effects, and a tenth of it
    negligible: models differ in the scale of their logits by more than any fixed unit could know.
    """

    units: str
    unit: float | None
    negligible: float | None


OUTCOMES = {
    "cohens_d": Outcome("1", 1.0, 0.1),
    "within_letter_d": Outcome("1", 1.0, 0.1),
    "delta": Outcome("nat", None, None),
    "best_depth": Outcome("fraction of depth", 0.25, 0.025),
    "depth_centroid": Outcome("fraction of depth", 0.25, 0.025),
}
"""By name: an estimand, or a place in the network. The first is the primary one."""


@dataclass(frozen=True)
class Prior:
    """Scales of the priors in units of the outcome: normal around 0, half-normal for the sds.

    sd_model's is half-Cauchy unless `cauchy` is False: few groups need a prior with a long tail
    (Gelman 2006, Bayesian Analysis 1(3)). With a half-normal one of any scale the interval of
    b_training covers too much for models that differ little or too little for those that differ
    much. Its scale was chosen from the coverage of b_training on the sweeps of `nox -s calibrate`
    alone: with 0.15 it is under 93% for models that differ much, with 0.2 over 97% for others.
    That is of six models, four and two of a training, in Cohen's d; other outcomes, one concept
    and three models are not measured.
    """

    intercept: float = 5.0
    training: float = 1.0
    scale: float = 1.0
    sd_model: float = 0.18
    sd_concept: float = 0.5
    sd_cell: float = 0.5
    cauchy: bool = True

    def of(self, name: str) -> float:
        """The scale of one coefficient or sd."""
        return float(getattr(self, name))

    def scaled(self, name: str, scale: float) -> "Prior":
        """The same with another scale of one coefficient or sd."""
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
            f"b_training ~ N(0, {self.training:g}), b_scale ~ N(0, {self.scale:g}), "
            f"sd_model ~ {family}({self.sd_model:g}), sd_concept ~ HN({self.sd_concept:g}), "
            f"sd_cell ~ HN({self.sd_cell:g})"
        )


PRIOR = Prior()


@dataclass(frozen=True)
class CellEffects:
    """Effects of the n cells that were run, and what is known of each.

    `value` (n,) less its optimism, `covariance` (n, n) over items, `model` and `concept` (n,)
    indices into `models` and `concepts`; `predictors` (model,) by term, centred over models.
    `unit` is the size that priors are scaled by; `left_out` names cells that were run without a
    usable effect or error. `n_items` (concept,) is how many items the covariance was estimated
    from; empty where it is known.
    """

    outcome: str
    value: np.ndarray
    covariance: np.ndarray
    model: np.ndarray
    concept: np.ndarray
    models: tuple[str, ...]
    concepts: tuple[str, ...]
    predictors: dict[str, np.ndarray]
    unit: float = 1.0
    left_out: tuple[str, ...] = ()
    n_items: tuple[int, ...] = ()

    @property
    def negligible(self) -> float:
        """Half-width of the region of practical equivalence of b_training."""
        stated = OUTCOMES[self.outcome].negligible
        return 0.1 * self.unit if stated is None else stated

    def design(self, terms: Sequence[str]) -> np.ndarray:
        """Intercept and terms of each cell, dims (cell, coefficient)."""
        columns = [self.predictors[term][self.model] for term in terms]
        return np.stack([np.ones(len(self.value)), *columns], axis=1)

    def only(self, cells: np.ndarray) -> "CellEffects":
        """Some of the cells, with the coding of predictors as it is."""
        return replace(
            self,
            value=self.value[cells],
            covariance=self.covariance[np.ix_(cells, cells)],
            model=self.model[cells],
            concept=self.concept[cells],
        )


def cell_effects(
    cells: xr.Dataset,
    outcome: str = "cohens_d",
    *,
    models: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    scale: str = "n_params",
) -> CellEffects:
    """The outcome of every cell that was run, less its optimism, with its covariance over items.

    Models of other trainings are left out where both compared ones are there. Raises ValueError
    where the cells lack the outcome, or keep no error of it at all.
    """
    names = [m for m in compared_models(cells) if models is None or m in models]
    held = [str(c) for c in cells["concept"].values if concepts is None or c in concepts]
    table, covariance = _outcome(cells, outcome, names, held)
    known = np.isfinite(table) & np.isfinite(np.einsum("cmm->mc", covariance))
    left_out = _unusable(cells, names, held, known)
    rows, columns = np.flatnonzero(known.any(axis=1)), np.flatnonzero(known.any(axis=0))
    names, held = [names[m] for m in rows], [held[c] for c in columns]
    known, table = known[np.ix_(rows, columns)], table[np.ix_(rows, columns)]
    covariance = covariance[np.ix_(columns, rows, rows)]
    concept, model = np.nonzero(known.T)
    unit = OUTCOMES[outcome].unit
    if unit is None:
        unit = float(np.sqrt(np.mean(table[known] ** 2))) if known.any() else 1.0
    same = concept[:, None] == concept[None, :]
    between = np.where(same, covariance[concept[:, None], model[:, None], model[None, :]], 0.0)
    return CellEffects(
        outcome=outcome,
        value=table[model, concept],
        covariance=between,
        model=model,
        concept=concept,
        models=tuple(names),
        concepts=tuple(held),
        predictors=predictors_of(cells, names, scale),
        unit=unit or 1.0,
        left_out=left_out,
        n_items=tuple(int(n) for n in cells["n_items"].sel(concept=held).values),
    )


def _unusable(
    cells: xr.Dataset, models: Sequence[str], concepts: Sequence[str], known: np.ndarray
) -> tuple[str, ...]:
    """Cells that were run and whose effect or error is not known all the same."""
    ran = cells["selected_layer"].sel(model=list(models), concept=list(concepts)).notnull()
    lost = ran.transpose("model", "concept").values & ~known
    return tuple(f"{models[m]} on {concepts[c]}" for m, c in zip(*np.nonzero(lost), strict=True))


def compared_models(cells: xr.Dataset) -> list[str]:
    """The swept models; where both compared trainings are among them, those of these alone."""
    names = swept_models(cells)
    training = dict(zip(names, cells["training"].sel(model=names).values.tolist(), strict=True))
    if {LOW, HIGH} <= set(training.values()):
        return [m for m in names if training[m] in (LOW, HIGH)]
    return names


def _outcome(
    cells: xr.Dataset, outcome: str, models: Sequence[str], concepts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The outcome (model, concept), and its covariance (concept, model, model_other)."""
    at = {"model": list(models), "concept": list(concepts)}
    if outcome in ESTIMANDS:
        if reason := why_not_recorded(cells, outcome):
            raise ValueError(reason)
        value = best_effects(cells, outcome, models=models, concepts=concepts)
        optimism = best_effects(
            cells, outcome, models=models, concepts=concepts, field="selected_optimism"
        )
        covariance = cells["selected_covariance"].sel(estimand=outcome)
        value = value - optimism
    else:
        name = "selected_depth" if outcome == "best_depth" else "depth_centroid"
        place = best_depths(cells) if outcome == "best_depth" else depth_centroids(cells)
        value = place.sel(at)
        if f"{name}_covariance" not in cells:
            raise ValueError("these cells keep no error of depths; make them again from their cube")
        covariance = cells[f"{name}_covariance"]
    covariance = covariance.sel(at | {"model_other": list(models)})
    between: np.ndarray = covariance.transpose("concept", "model", "model_other").values
    if outcome == "best_depth":
        between = between + _rounding(cells, models)[:, None] * np.eye(len(models))
    table: np.ndarray = value.transpose("model", "concept").values.astype(float)
    return table, between


def _rounding(cells: xr.Dataset, models: Sequence[str]) -> np.ndarray:
    """Variance of a depth that is known to one swept layer only, step^2 / 12, dims (model,)."""
    swept = cells["estimate"].sel(estimand="delta").notnull().any("concept")
    steps = [np.diff(cells["depth"].sel(model=m).values[swept.sel(model=m).values]) for m in models]
    return np.array([step.mean() ** 2 / 12 if len(step) else 1 / 12 for step in steps])


def predictors_of(
    cells: xr.Dataset, models: Sequence[str], scale: str = "n_params"
) -> dict[str, np.ndarray]:
    """Each term of each model, centred; a term that does not vary over them is left out."""
    training = cells["training"].sel(model=list(models)).values
    size = np.log10(cells[scale].sel(model=list(models)).values)
    found = {}
    if set(training) == {LOW, HIGH}:
        found["training"] = (training == HIGH).astype(float)
    if len(models) and np.ptp(size) > 0:
        found["scale"] = size
    return {term: values - values.mean() for term, values in found.items()}


def why_not(effects: CellEffects, terms: Sequence[str]) -> str:
    """Why these terms cannot be told from model-to-model variation here; empty if they can."""
    n_models = len(set(effects.model.tolist()))
    if not n_models:
        return f"no cell has a usable effect and error: {', '.join(effects.left_out)}"
    lacking = [term for term in terms if term not in effects.predictors]
    if "training" in lacking:
        return f"needs models of both trainings, {LOW!r} and {HIGH!r}"
    if lacking:
        return "needs models of unlike size"
    if n_models < len(terms) + 2:
        return (
            f"{len(terms)} term(s) and the spread between models need {len(terms) + 2} models; "
            f"{n_models} ran"
        )
    present = effects.design(terms)
    if np.linalg.matrix_rank(present) < present.shape[1]:
        return f"{' and '.join(terms)} cannot be told apart in these models"
    if len(set(effects.concept.tolist())) == 1 and (same := _same_models(effects)):
        return f"{' and '.join(same)} hold the same values: leave one of them out"
    return ""


def _same_models(effects: CellEffects) -> tuple[str, ...]:
    """Two models whose effects are alike and err alike, in cells of one concept; else none.

    Where there are more concepts, sd_cell tells even such models apart.
    """
    sd = np.sqrt(np.diag(effects.covariance))
    for one, other in combinations(range(len(effects.value)), 2):
        err_alike = effects.covariance[one, other] >= (1 - 1e-9) * sd[one] * sd[other]
        if err_alike and np.isclose(effects.value[one], effects.value[other], rtol=1e-9):
            return tuple(effects.models[effects.model[i]] for i in (one, other))
    return ()


def usable_effects(cells: xr.Dataset, outcome: str, terms: Sequence[str]) -> CellEffects:
    """The effects, where they can tell these terms. Raises ValueError that says why not."""
    effects = cell_effects(cells, outcome)
    if reason := why_not(effects, terms):
        raise ValueError(reason)
    return effects


def primary_terms(effects: CellEffects) -> tuple[str, ...]:
    """The terms that these cells can tell apart: training and scale, one of them, or none."""
    for terms in (TERMS, *((term,) for term in TERMS)):
        if not why_not(effects, terms):
            return terms
    return ()


def fitted_to(cells: xr.Dataset) -> str:
    """What a fit of the cells' items is of; a fit of anything else must not stand beside them."""
    models = compared_models(cells)
    training = cells["training"].sel(model=models).values.tolist()
    try:
        terms = primary_terms(cell_effects(cells))
    except ValueError:
        terms = ()
    concepts = [str(c) for c in cells["concept"].values]
    return repr([list(zip(models, training, strict=True)), concepts, list(terms)])


@dataclass(frozen=True)
class Posterior:
    """The exact posterior: a mixture of normals over the nodes of the grid of sds.

    `weight` (node,) sums to 1; `sds` (node,) by name; `mean` and `variance` (node, coefficient) of
    `coefficients`: the intercept, the terms, then every model's u as "u of <model>";
    `slope_covariance` (node, slope, slope) of the intercept and terms. `below` is the share of the
    posterior below each root of an sd.
    """

    effects: CellEffects
    prior: Prior
    terms: tuple[str, ...]
    coefficients: tuple[str, ...]
    log_evidence: float
    weight: np.ndarray
    sds: dict[str, np.ndarray]
    mean: np.ndarray
    variance: np.ndarray
    slope_covariance: np.ndarray
    below: dict[str, interpolate.PPoly]

    def cdf(self, name: str, value: float) -> float:
        """P(coefficient or sd < value)."""
        if name in self.sds:
            below = self.below[name]
            root = np.clip(np.sqrt(max(value, 0.0)), *below.x[[0, -1]])
            return float(np.clip(below(root), 0, 1))
        mean, sd = self._normal(name)
        return float(self.weight @ special.ndtr((value - mean) / sd))

    def quantile(self, name: str, share: float) -> float:
        """The value below which lies `share` of the posterior."""
        if name in self.sds:
            low, high = self.below[name].x[[0, -1]] ** 2
        else:
            mean, sd = self._normal(name)
            low, high = (mean - 9 * sd).min(), (mean + 9 * sd).max()
        return float(optimize.brentq(lambda x: self.cdf(name, x) - share, low, high, xtol=1e-10))

    def expectation(self, name: str) -> float:
        """Posterior mean."""
        return float(self.weight @ (self.sds[name] if name in self.sds else self._normal(name)[0]))

    def spread(self, name: str) -> float:
        """Posterior standard deviation."""
        mean, sd = (self.sds[name], 0.0) if name in self.sds else self._normal(name)
        return float(np.sqrt(self.weight @ (mean**2 + sd**2) - self.expectation(name) ** 2))

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

    def slopes(self, node: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (draw, slope) and covariance of the intercept and terms at these nodes."""
        return self.mean[node, : 1 + len(self.terms)], self.slope_covariance[node]

    def _normal(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        at = self.coefficients.index(name)
        return self.mean[:, at], np.sqrt(self.variance[:, at])


def fit(
    effects: CellEffects,
    *,
    terms: Sequence[str] = TERMS,
    prior: Prior = PRIOR,
    sds: Sequence[str] | None = None,
    n_nodes: int = 20,
) -> Posterior:
    """The posterior of the model with these terms, by two passes of the grid.

    The first, coarse, finds where the posterior lies; the second puts `n_nodes` Gauss-Legendre
    nodes there. Both are quadratic in the sds, denser near 0. With one concept sd_concept and
    sd_cell are left out, as nothing then tells a concept or a cell from its model, unless `sds`
    names them. Raises ValueError where `why_not` objects.
    """
    if reason := why_not(effects, terms):
        raise ValueError(reason)
    if sds is None:
        sds = SDS if len(np.unique(effects.concept)) > 1 else SDS[:1]
    coarse = {name: _Axis.coarse(_largest(effects, prior, name)) for name in sds}
    share = _shares(_weigh(effects, terms, prior, coarse).weight, coarse)
    fine = {n: _Axis.gauss(*_support(axis, share[n]), n_nodes) for n, axis in coarse.items()}
    return _on_grid(effects, terms, prior, fine)


def _largest(effects: CellEffects, prior: Prior, name: str) -> float:
    """Beyond which an sd has no posterior to speak of."""
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
        """Gauss and Legendre's rule in the root of the sd."""
        nodes, width = np.polynomial.legendre.leggauss(n_nodes)
        half = (np.sqrt(high) - np.sqrt(low)) / 2
        root = np.sqrt(low) + half * (1 + nodes)
        return cls(root**2, 2 * root * half * width, low, high)

    def below(self, share: np.ndarray) -> interpolate.PPoly:
        """The distribution of the sd's root, whose mass at the nodes is `share`, by a spline."""
        root = np.sqrt(self.nodes)
        through = interpolate.CubicSpline(root, share / self.width * 2 * root)
        fine = np.linspace(np.sqrt(self.low), np.sqrt(self.high), 400)
        integral = interpolate.CubicSpline(fine, np.maximum(through(fine), 0)).antiderivative()
        return interpolate.PPoly(integral.c / integral(fine[-1]), integral.x)


def _support(axis: _Axis, share: np.ndarray) -> tuple[float, float]:
    """Where the density exceeds MAX_TAIL of its largest, and one node beyond."""
    density = share / axis.width
    inside = np.flatnonzero(density > MAX_TAIL * density.max())
    low, high = inside[0] - 1, min(inside[-1] + 1, len(axis.nodes) - 1)
    return (0.0 if low < 0 else float(axis.nodes[low])), float(axis.nodes[high])


class _Weighed(NamedTuple):
    """Nodes of the grid and their weights, with what gives the coefficients at each.

    `sds` by name, `weight` (sums to 1) and `log_evidence`; `root` $D^{1/2}$, `precision`
    $I + D^{1/2} G_{aa} D^{1/2}$ and `scaled`, its solution for $D^{1/2} G_{ay}$.
    """

    sds: dict[str, np.ndarray]
    weight: np.ndarray
    log_evidence: float
    root: np.ndarray
    precision: np.ndarray
    scaled: np.ndarray


def _weigh(
    effects: CellEffects, terms: Sequence[str], prior: Prior, axes: Mapping[str, _Axis]
) -> _Weighed:
    r"""The nodes of a grid of sds, weights by evidence x prior x width.

    With $W = [X, Z_{model}, y]$ and $V_0 = S + sd_{cell}^2 I + sd_{concept}^2 Z Z^T$, everything is
    in $G = W^T V_0^{-1} W$: given the sds the coefficients a = (intercept, terms, u) with prior
    variances D have precision $G_{aa} + D^{-1}$, and
    $\log p(y) = -(n \log 2\pi + \log|V_0| + \log|I + D^{1/2} G_{aa} D^{1/2}| + G_{yy}
    - G_{ya} (G_{aa} + D^{-1})^{-1} G_{ay}) / 2$.
    """
    names = list(axes)
    grid = np.meshgrid(*(axes[n].nodes for n in names), indexing="ij")
    width = np.prod(np.meshgrid(*(axes[n].width for n in names), indexing="ij"), axis=0)
    gram, log_det = _grams(effects, terms, axes)
    n_fixed, n_models = 1 + len(terms), len(effects.models)
    variances = [(prior.of(n) * effects.unit) ** 2 for n in ("intercept", *terms)]
    root = np.sqrt(
        np.concatenate(
            [
                np.broadcast_to(variances, (*grid[0].shape, n_fixed)),
                np.repeat(grid[0][..., None] ** 2, n_models, axis=-1),
            ],
            axis=-1,
        )
    )
    aa = root[..., :, None] * gram[..., :-1, :-1] * root[..., None, :] + np.eye(root.shape[-1])
    ay = root * gram[..., :-1, -1]
    scaled = np.linalg.solve(aa, ay[..., None])[..., 0]
    fit_of_y = gram[..., -1, -1] - np.einsum("...i,...i->...", ay, scaled)
    n = len(effects.value)
    log_likelihood = -0.5 * (n * np.log(2 * np.pi) + log_det + np.linalg.slogdet(aa)[1] + fit_of_y)
    log_prior = sum(
        prior.log_density(name, sd, effects.unit) for name, sd in zip(names, grid, strict=True)
    )
    log_weight = log_likelihood + log_prior + np.log(width)
    log_evidence = float(special.logsumexp(log_weight))
    sds = dict(zip(names, grid, strict=True))
    return _Weighed(sds, np.exp(log_weight - log_evidence), log_evidence, root, aa, scaled)


def _on_grid(
    effects: CellEffects, terms: Sequence[str], prior: Prior, axes: Mapping[str, _Axis]
) -> Posterior:
    """The posterior on a grid of sds: at each node, the normal one of the coefficients."""
    sds, weight, log_evidence, root, precision, scaled = _weigh(effects, terms, prior, axes)
    inverse = np.linalg.inv(precision)
    diagonal = np.einsum("...ii->...i", inverse)
    share = _shares(weight, axes)
    nodes, n_fixed = weight.size, 1 + len(terms)
    return Posterior(
        effects=effects,
        prior=prior,
        terms=tuple(terms),
        coefficients=("intercept", *terms, *(f"u of {m}" for m in effects.models)),
        log_evidence=log_evidence,
        weight=weight.ravel(),
        sds={name: sd.ravel() for name, sd in sds.items()},
        mean=(root * scaled).reshape(nodes, -1),
        variance=(root**2 * diagonal).reshape(nodes, -1),
        slope_covariance=(
            root[..., :n_fixed, None] * inverse[..., :n_fixed, :n_fixed] * root[..., None, :n_fixed]
        ).reshape(nodes, n_fixed, n_fixed),
        below={name: axis.below(share[name]) for name, axis in axes.items()},
    )


def _shares(weight: np.ndarray, axes: Mapping[str, _Axis]) -> dict[str, np.ndarray]:
    """How much of the posterior each node of each sd holds."""
    grid = weight.reshape([len(axis.nodes) for axis in axes.values()])
    dims = range(grid.ndim)
    return {n: grid.sum(axis=tuple(d for d in dims if d != at)) for at, n in enumerate(axes)}


def _grams(
    effects: CellEffects, terms: Sequence[str], axes: Mapping[str, _Axis]
) -> tuple[np.ndarray, np.ndarray]:
    """G and log|V0| for every node of the grid, the first dim (sd_model) of size 1."""
    of_model = np.eye(len(effects.models))[effects.model]
    of_concept = np.eye(len(effects.concepts))[effects.concept]
    w = np.column_stack([effects.design(terms), of_model, effects.value])
    v = effects.covariance
    if "sd_cell" in axes:
        concept, cell = np.meshgrid(axes["sd_concept"].nodes, axes["sd_cell"].nodes, indexing="ij")
        v = (
            v
            + concept[..., None, None] ** 2 * (of_concept @ of_concept.T)
            + cell[..., None, None] ** 2 * np.eye(len(w))
        )
    lower = np.linalg.cholesky(v)
    half = np.linalg.solve(lower, np.broadcast_to(w, (*v.shape[:-2], *w.shape)))
    log_det = 2 * np.log(np.einsum("...ii->...i", lower)).sum(axis=-1)
    return (np.einsum("...ni,...nj->...ij", half, half)[None], log_det[None])
