r"""What a sweep of so many models, concepts and items can find: power, and errors of what it finds.

The difference of two trainings in means over concepts has, with the fitted variance components,

    se^2 = (1 / n_high + 1 / n_low) (sd_model^2 + (sd_cell^2 + s^2 n_0 / n) / C),

s^2 being the part of a cell's sampling variance that models do not share, with n_0 items, and n
items in each of C concepts; sd_concept cancels where every model runs every concept. It is tested
by t with n_high + n_low - 2 degrees of freedom. With size held fixed the variance grows by
1 / (1 - r^2), r the correlation of training and size over models, and one degree of freedom goes:
so for the study's own models; designs to come are taken as balanced in size. `permutation_floor`
is the least p that exchanging labels can give.

*Type S*: the share of significant results with the wrong sign; *type M*: by what factor a
significant estimate exaggerates (Gelman & Carlin 2014, Perspect. Psychol. Sci. 9). Everything is
averaged over the posterior of the sds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import comb
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats
from scipy.special import ndtr

from steercube.analysis.over_models.means import HIGH, level_of
from steercube.analysis.over_models.posterior import (
    OUTCOMES,
    TERMS,
    CellEffects,
    Posterior,
    fit,
    primary_terms,
    usable_effects,
    why_not,
)
from steercube.analysis.over_models.training import ALONE, BOTH

POWER = 0.8
DESIGNS = ((2, 4), (3, 3), (4, 4), (6, 6), (8, 8), (12, 12), (20, 20))
"""Models of the two trainings, the rarer first; the study's own stands beside them."""

CONCEPTS = (6, 12, 24)
ITEMS_TIMES = (1, 4)
"""Items in a concept, as a multiple of those the cells have on average."""

MOST_MODELS = 400


ALLOWED_FLOOR = 0.05
"""A design whose permutation cannot give a p this small does not settle anything."""


class Errors(NamedTuple):
    """Of a significance test: power, wrong signs among the significant, exaggeration of them."""

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
        """Of the difference of the trainings' means, dims (draw,)."""
        of_cell = (self.sd_cell**2 + self.unshared / items_times) / n_concepts
        return np.sqrt((1 / n_high + 1 / n_low) * (self.sd_model**2 + of_cell))


def components_of(cells: xr.Dataset, posterior: Posterior) -> Components:
    """What the fit says of the variances, its sds thinned to their weighted quantiles."""
    effects, shares = posterior.effects, (np.arange(20) + 0.5) / 20
    variance = posterior.sds["sd_model"] ** 2
    cell = posterior.sds.get("sd_cell", np.zeros_like(variance))
    order = np.argsort(variance + cell**2 / len(effects.concepts))
    reached = np.searchsorted(np.cumsum(posterior.weight[order]), shares)
    node = order[np.minimum(reached, len(order) - 1)]
    items = cells["n_items"].sel(concept=[effects.concepts[c] for c in effects.concept])
    return Components(
        sd_model=np.sqrt(variance[node]),
        sd_cell=cell[node],
        unshared=_unshared(effects),
        n_items=float(items.mean()),
    )


def _unshared(effects: CellEffects) -> float:
    """Mean over concepts of a cell's sampling variance less what two models share of it."""
    found = []
    for concept in np.unique(effects.concept):
        at = np.flatnonzero(effects.concept == concept)
        block = effects.covariance[np.ix_(at, at)]
        between = block[~np.eye(len(at), dtype=bool)]
        found.append(np.diag(block).mean() - (between.mean() if len(between) else 0.0))
    return float(max(np.mean(found), 0.0))


def design_table(cells: xr.Dataset) -> list[dict[str, Any]]:
    """Errors of every design for effects of three sizes, and how many models would settle each."""
    rows: list[dict[str, Any]] = []
    for outcome in OUTCOMES:
        try:
            effects = usable_effects(cells, outcome, ("training",))
        except ValueError as error:
            rows.append({"outcome": outcome, "kind": "errors", "reason": str(error)})
            continue
        posterior = fit(effects, terms=primary_terms(effects))
        parts, level = components_of(cells, posterior), level_of(cells)
        high = effects.predictors["training"] > 0
        own, inflation = (int(high.sum()), int((~high).sum())), _inflation(effects)
        for source, effect in _effect_sizes(effects).items():
            labels = {"outcome": outcome, "effect_is": source, "effect": effect}
            for models in dict.fromkeys((own, *DESIGNS)):
                for n_concepts in dict.fromkeys((len(effects.concepts), *CONCEPTS)):
                    for times in ITEMS_TIMES:
                        design = Design(*models, n_concepts, times)
                        grown = inflation if models == own else 0.0
                        rows += [
                            labels | row for row in _errors(parts, design, effect, grown, level)
                        ]
            rows += [labels | row for row in _needed(parts, effect, level)]
    return rows


class Design(NamedTuple):
    """Models of each training, concepts, and items in a concept as a multiple of those here."""

    n_high: int
    n_low: int
    n_concepts: int
    items_times: float


def _errors(
    parts: Components, design: Design, effect: float, inflation: float, level: float
) -> Iterator[dict[str, Any]]:
    """Errors of the plain test and, where the sizes of the models are known, of the adjusted."""
    plain, df = parts.standard_error(*design), design.n_high + design.n_low - 2
    tests = {ALONE: (plain, df)}
    if inflation and df > 1:
        tests[BOTH] = (plain * np.sqrt(inflation), df - 1)
    for adjusted, (se, free) in tests.items():
        found = errors_of_test(effect, se, free, level=level)
        yield {
            "kind": "errors",
            "adjusted": adjusted,
            f"n_{HIGH}": design.n_high,
            "n_other": design.n_low,
            "n_concepts": design.n_concepts,
            "n_items": round(parts.n_items * design.items_times),
            "standard_error": float(np.sqrt(np.mean(se**2))),
            "permutation_floor": permutation_floor(design.n_high, design.n_low),
        } | found._asdict()


def permutation_floor(n_high: int, n_low: int) -> float:
    """The least two-sided p over every way to give out the labels."""
    return (2 if n_high == n_low else 1) / comb(n_high + n_low, n_high)


def _inflation(effects: CellEffects) -> float:
    """1 / (1 - r^2) of training and size over the models; 0 where size cannot be held fixed."""
    if why_not(effects, TERMS):
        return 0.0
    training, size = (effects.predictors[term] for term in TERMS)
    return float(1 / (1 - np.corrcoef(training, size)[0, 1] ** 2))


def _effect_sizes(effects: CellEffects) -> dict[str, float]:
    negligible = effects.negligible
    alone = fit(effects, terms=("training",)).quantile("training", 0.5)
    return {
        "largest negligible": negligible,
        "three times the negligible": 3 * negligible,
        "found here": abs(alone),
    }


def _needed(parts: Components, effect: float, level: float) -> list[dict[str, Any]]:
    """The fewest models of each training with POWER, for so many concepts and items.

    Balanced in size, and no fewer than a permutation of their labels needs.
    """
    rows = []
    for n_concepts in CONCEPTS:
        for times in ITEMS_TIMES:
            row = {"kind": "needed", "n_concepts": n_concepts, "power": POWER}
            row["n_items"] = round(parts.n_items * times)
            n = _fewest(parts, effect, n_concepts, times, level)
            found = {f"n_{HIGH}": n, "n_other": n} if n else {"reason": f"over {MOST_MODELS}"}
            rows.append(row | found)
    return rows


def _fewest(
    parts: Components, effect: float, n_concepts: int, times: float, level: float
) -> int | None:
    def powerful(n: int) -> bool:
        se = parts.standard_error(n, n, n_concepts, times)
        return errors_of_test(effect, se, 2 * n - 2, level=level).power >= POWER

    if not powerful(MOST_MODELS):
        return None
    low = next(n for n in range(1, MOST_MODELS) if permutation_floor(n + 1, n + 1) <= ALLOWED_FLOOR)
    high = MOST_MODELS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if powerful(middle) else (middle, high)
    return high
