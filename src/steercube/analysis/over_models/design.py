r"""Power and errors of a sweep with a given number of models, concepts and items.

The difference of two labels in means over concepts has, with the fitted variance components,

    se^2 = (1 / n_high + 1 / n_low) (sd_model^2 + (sd_cell^2 + s^2 n_0 / n) / C),

where s^2 is the part of a cell's sampling variance with n_0 items that models do not share, for n
items in each of C concepts; sd_concept cancels if every model runs every concept. It is tested by t
with n_high + n_low - 2 degrees of freedom. Holding size fixed multiplies the variance by
1 / (1 - r^2), r the correlation of label and size over models, and costs one degree of freedom.
This is done for the study's own models; other designs are assumed to be balanced in size.
`permutation_floor` is the smallest p that permuting the labels can give.

*Type S*: the share of significant results with the wrong sign; *type M*: the factor by which a
significant estimate exaggerates (Gelman & Carlin 2014, Perspect. Psychol. Sci. 9). Everything is
averaged over the posterior of the sds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.special import ndtr

from steercube.analysis.over_models.cell_effects import (
    TERMS,
    CellEffects,
    primary_terms,
    usable_outcomes,
    why_not,
)
from steercube.analysis.over_models.contrast_effect import covariates
from steercube.analysis.over_models.permute import smallest_p
from steercube.analysis.over_models.posterior import (
    PRIOR,
    Posterior,
    Prior,
    fit,
    posterior_of,
)
from steercube.analysis.view import Study
from steercube.estimate import t_quantile

POWER = 0.8
DESIGNS = ((2, 4), (3, 3), (4, 4), (6, 6), (8, 8), (12, 12), (20, 20))
"""Numbers of `high` and `low` models; the study's own design is added."""

CONCEPTS = (6, 12, 24)
ITEMS_TIMES = (1, 4)
"""Items per concept, as a multiple of the average in the cells."""

MOST_MODELS = 400
MOST_UNITS = 200
SHARES = (np.arange(20) + 0.5) / 20
"""Quantiles of an sd that stand for its distribution."""


ALLOWED_FLOOR = 0.05
"""A design whose permutation test cannot give a p this small is too small."""


class Errors(NamedTuple):
    """Power of a significance test, and wrong signs and exaggeration of significant results."""

    power: float
    type_s: float
    type_m: float


def errors_of_test(effect: float, se: np.ndarray, df: int, *, level: float) -> Errors:
    """Power, type S and type M of a t-test with standard errors `se` (draw,), on average.

    The estimated error varies as a chi-square with `df`; given it, the estimate is normal.
    """
    se = np.atleast_1d(se)[:, None]
    estimated = se * np.sqrt(_chi2_quantiles(df) / df)
    critical = stats.t.ppf((1 + level) / 2, df) * estimated / se
    z = effect / se
    above, below = ndtr(z - critical), ndtr(-critical - z)
    # E|x| over x > c and x < -c for x ~ N(z, 1).
    size = z * (above - below) + _density(critical - z) + _density(critical + z)
    power = float((above + below).mean())
    exaggeration = float((size * se).mean() / power / effect)
    return Errors(power, float(below.mean()) / power, exaggeration)


def _density(x: np.ndarray) -> np.ndarray:
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


@cache
def _chi2_quantiles(df: int) -> np.ndarray:
    return stats.chi2.ppf((np.arange(200) + 0.5) / 200, df)


@dataclass(frozen=True)
class Components:
    """Draws of the sds, the unshared sampling variance of a cell, and its number of items."""

    sd_model: np.ndarray
    sd_cell: np.ndarray
    unshared: float
    n_items: float

    def standard_error(
        self, n_high: int, n_low: int, n_concepts: float, items_times: float
    ) -> np.ndarray:
        """Standard error of the difference of the labels' means, dims (draw,)."""
        cell_variance = (self.sd_cell**2 + self.unshared / items_times) / n_concepts
        return np.sqrt((1 / n_high + 1 / n_low) * (self.sd_model**2 + cell_variance))


def components_of_prior(effects: CellEffects, prior: Prior = PRIOR) -> Components:
    """Variances from the priors on the sds alone, SHARES of each against SHARES of the other.

    What a design can say must not depend on what it found. Only the error over items, which their
    number decides, is taken from the cells.
    """
    sd_model = effects.unit * _quantiles_of_prior(prior, "sd_model")
    sd_cell = effects.unit * _quantiles_of_prior(prior, "sd_cell")
    if effects.n_concepts == 1:
        sd_cell = np.zeros(1)
    crossed = np.meshgrid(sd_model, sd_cell, indexing="ij")
    of_models, of_cells = (values.ravel() for values in crossed)
    return Components(of_models, of_cells, _unshared(effects), n_items=np.nan)


def _quantiles_of_prior(prior: Prior, name: str) -> np.ndarray:
    shape = stats.halfcauchy if prior.is_cauchy(name) else stats.halfnorm
    return np.asarray(shape.ppf(SHARES, scale=prior.of(name)))


def chance(effects: CellEffects, terms: Sequence[str], effect: float, *, level: float) -> float:
    """The chance that a test of the contrast rejects, had it been `effect`, from the design alone.

    The power of the t-test of the module's notes for these models and concepts, with these terms,
    over the priors on the sds.
    """
    high = effects.is_high
    parts = components_of_prior(effects)
    se = parts.standard_error(int(high.sum()), int((~high).sum()), effects.n_concepts, 1.0)
    df = effects.n_models - 1 - len(terms)
    if terms == TERMS:
        se = se * np.sqrt(_inflation(effects))
    return errors_of_test(effect, se, df, level=level).power


def models_needed(study: Study, effects: CellEffects, effect: float) -> int | None:
    """The fewest models of each label with which a test of `effect` has POWER, by the fitted sds.

    Models balanced in size, as many concepts and items as here; None if over MOST_MODELS.
    """
    parts = components_of(study, fit(effects, terms=primary_terms(effects)))
    return _fewest_models(parts, effect, effects.n_concepts, 1, study.level)


def components_of(study: Study, posterior: Posterior) -> Components:
    """Variances from the fit, with its sds thinned to 20 weighted quantiles."""
    effects = posterior.effects
    variance = posterior.sds["sd_model"] ** 2
    cell = posterior.sds.get("sd_cell", np.zeros_like(variance))
    order = np.argsort(variance + cell**2 / len(effects.concepts))
    reached = np.searchsorted(np.cumsum(posterior.weight[order]), SHARES)
    node = order[np.minimum(reached, len(order) - 1)]
    items = study.cells["n_items"].sel(concept=[effects.concepts[c] for c in effects.concept])
    return Components(
        sd_model=np.sqrt(variance[node]),
        sd_cell=cell[node],
        unshared=_unshared(effects),
        n_items=float(items.mean()),
    )


def _unshared(effects: CellEffects) -> float:
    """Mean over concepts of a cell's sampling variance minus the covariance of two models."""
    unshared = []
    for concept in np.unique(effects.concept):
        at = np.flatnonzero(effects.concept == concept)
        block = effects.covariance[np.ix_(at, at)]
        between = block[~np.eye(len(at), dtype=bool)]
        unshared.append(np.diag(block).mean() - (between.mean() if len(between) else 0.0))
    return float(max(np.mean(unshared), 0.0))


def design_table(study: Study) -> list[dict[str, Any]]:
    """Errors of every design for four effect sizes, and the number of models needed for each."""
    rows: list[dict[str, Any]] = []
    for outcome, effects, reason in usable_outcomes(study, ("contrast",)):
        if reason:
            rows.append({"outcome": outcome, "kind": "errors", "reason": reason})
            continue
        parts = components_of(study, posterior_of(study, outcome, primary_terms(effects)))
        for source, effect in _effect_sizes(effects).items():
            labels = {"outcome": outcome, "effect_from": source, "effect": effect}
            rows += [labels | row for row in _rows_of_effect(study, effects, parts, effect)]
    return rows


def _rows_of_effect(
    study: Study, effects: CellEffects, parts: "Components", effect: float
) -> Iterator[dict[str, Any]]:
    """Errors of the study's own design and of others, then the number of models needed."""
    assert study.contrast is not None
    high = effects.is_high
    own = int(high.sum()), int((~high).sum())
    for models in dict.fromkeys((own, *DESIGNS)):
        for n_concepts in dict.fromkeys((len(effects.concepts), *CONCEPTS)):
            for times in ITEMS_TIMES:
                design = Design(*models, n_concepts, times)
                inflation = _inflation(effects) if models == own else 0.0
                for terms, row in _errors(parts, design, effect, inflation, study.level):
                    yield {
                        "kind": "errors",
                        "covariates": covariates(study.contrast, terms),
                    } | row
    yield from _needed(parts, effect, len(effects.concepts), study.level)


class Design(NamedTuple):
    """Models of each label, concepts, and items per concept as a multiple of the study's."""

    n_high: int
    n_low: int
    n_concepts: int
    items_times: float


def _errors(
    parts: Components, design: Design, effect: float, inflation: float, level: float
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Errors of the plain test and, given an `inflation`, of the test with size held fixed."""
    plain, df = parts.standard_error(*design), design.n_high + design.n_low - 2
    tests: dict[tuple[str, ...], tuple[np.ndarray, int]] = {("contrast",): (plain, df)}
    if inflation and df > 1:
        tests[TERMS] = (plain * np.sqrt(inflation), df - 1)
    for terms, (se, df_of_test) in tests.items():
        errors = errors_of_test(effect, se, df_of_test, level=level)
        yield (
            terms,
            {
                "n_high": design.n_high,
                "n_low": design.n_low,
                "n_concepts": design.n_concepts,
                "n_items": round(parts.n_items * design.items_times),
                "standard_error": float(np.sqrt(np.mean(se**2))),
                "permutation_floor": smallest_p(design.n_high, design.n_low),
            }
            | errors._asdict(),
        )


def _inflation(effects: CellEffects) -> float:
    """1 / (1 - r^2) of contrast and size over the models; 0 where size cannot be held fixed."""
    if why_not(effects, TERMS):
        return 0.0
    label, size = (effects.predictors[term] for term in TERMS)
    return float(1 / (1 - np.corrcoef(label, size)[0, 1] ** 2))


def _effect_sizes(effects: CellEffects) -> dict[str, float]:
    sizes, alone = effects.margins, fit(effects, terms=("contrast",)).quantile("contrast", 0.5)
    stated = {"small": sizes.small, "medium": sizes.medium, "large": sizes.large}
    return stated | {"estimated here": abs(alone)}


def _needed(
    parts: Components, effect: float, own_concepts: int, level: float
) -> Iterator[dict[str, Any]]:
    """The fewest models of each label with POWER, for each number of concepts and items.

    Models are balanced in size, and enough for a permutation p of ALLOWED_FLOOR.
    """
    for n_concepts in dict.fromkeys((own_concepts, *CONCEPTS)):
        for times in ITEMS_TIMES:
            row = {"kind": "needed", "n_concepts": n_concepts, "power": POWER}
            row["n_items"] = round(parts.n_items * times)
            n = _fewest_models(parts, effect, n_concepts, times, level)
            result = {"n_high": n, "n_low": n} if n else {"reason": f"over {MOST_MODELS}"}
            yield row | result


def chance_of_term(
    effects: CellEffects, x: np.ndarray, effect: float, *, n_concepts: int, level: float
) -> float:
    r"""The chance that a least-squares test of one term over models rejects, from the design alone.

    `x` (model, coefficient) has the term second, after the intercept. With C concepts
    $se^2 = (X^T X)^{-1}_{11} (sd_{model}^2 + (sd_{cell}^2 + s^2) / C)$, averaged over the priors; t
    with n_models minus the number of coefficients as degrees of freedom.
    """
    n_models, n_coefficients = x.shape
    if n_models <= n_coefficients or np.linalg.matrix_rank(x) < n_coefficients:
        return 0.0
    parts = components_of_prior(effects)
    variance = parts.sd_model**2 + (parts.sd_cell**2 + parts.unshared) / n_concepts
    se = np.sqrt(variance * np.linalg.inv(x.T @ x)[1, 1])
    return errors_of_test(effect, se, n_models - n_coefficients, level=level).power


def chance_of_mean(
    n: int, effect: float, *, spread: float | np.ndarray, lost: int, level: float
) -> float:
    """The chance that a t-test of a mean of n values rejects, n - `lost` degrees of freedom.

    `spread` is their sd, or draws of it over which the chance is averaged.
    """
    if n <= lost:
        return 0.0
    return errors_of_test(effect, np.array(spread) / np.sqrt(n), n - lost, level=level).power


def fewest(effect: float, *, sd: float, df: int, lost: int, level: float) -> int | None:
    """The fewest values with which that test has POWER; None if over MOST_UNITS.

    `sd` was estimated with `df` degrees of freedom; the chance is averaged over what it may be.
    """
    spread = sd * np.sqrt(df / stats.chi2.ppf(SHARES, df))
    for n in range(lost + 1, MOST_UNITS + 1):
        if chance_of_mean(n, effect, spread=spread, lost=lost, level=level) >= POWER:
            return n
    return None


def fewest_for_none(margin: float, *, sd: float, df: int, lost: int, level: float) -> int | None:
    """The fewest values whose interval lies within the margin with POWER, if there is no effect."""
    spread = sd * np.sqrt(df / stats.chi2.ppf(SHARES, df))
    for n in range(lost + 1, MOST_UNITS + 1):
        room = margin * np.sqrt(n) / spread - t_quantile(level, n - lost)
        if np.mean(np.maximum(0.0, 2 * ndtr(room) - 1)) >= POWER:
            return n
    return None


def _fewest_models(
    parts: Components, effect: float, n_concepts: int, times: float, level: float
) -> int | None:
    def powerful(n: int) -> bool:
        se = parts.standard_error(n, n, n_concepts, times)
        return errors_of_test(effect, se, 2 * n - 2, level=level).power >= POWER

    if not powerful(MOST_MODELS):
        return None
    low = next(n for n in range(1, MOST_MODELS) if smallest_p(n + 1, n + 1) <= ALLOWED_FLOOR)
    high = MOST_MODELS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if powerful(middle) else (middle, high)
    return high
