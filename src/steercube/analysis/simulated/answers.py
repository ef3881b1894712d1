"""What the intervals of answers cover, where the truth is known.

Items, each with a trait that makes it match, be valid, or move more or less at all strengths, are
drawn anew in every simulation. A row says how often the interval of a statistic held the truth:
of a change of a rate on the same items, of the largest change of many layers less chance, of r over
items, of a change corrected for a reader's errors, of a change over models that share their items.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm

from steercube.analysis.agreement.curves import fisher_z
from steercube.analysis.agreement.readers import corrected_change
from steercube.analysis.over_models.means import shared_t
from steercube.analysis.per_cell.answer_model import Counts, fit_answers
from steercube.analysis.per_cell.bootstrap import half_weights, resample_weights
from steercube.analysis.per_cell.changes import Rate, change_interval, rate
from steercube.analysis.per_cell.responses import Answers, best_layer, item_agreement
from steercube.analysis.simulated.keeping import Keep
from steercube.estimate import percentile_ends, t_quantile
from steercube.streams import stream

Array = np.ndarray
Row = dict[str, Any]
Simulated = Iterator[tuple[str, list[float]]]
"""Statistics, each with 1 for every simulation whose interval held the truth, and 0."""
LEVEL = 0.95
N_FLIPS = 400
"""Exchanges, and resamples, in a simulated sweep: fewer than in a study, and faster."""
MANY = 400_000
"""Items from which a true rate is computed."""
PAIRED, REPEATED = "change of a rate", "change of a rate, repeats"
RESAMPLED = "change of a rate, repeats, percentile bootstrap"
LARGEST = "largest change less chance"
OVER_ITEMS = "r over items"
CORRECTED = "change corrected for a reader"
OVER_MODELS = "change of a rate over models"
BY_MODEL, LOG_ODDS_RATIO = "average change of answers, mixed model", "log odds ratio of answers"


@dataclass(frozen=True)
class Asked:
    """Items asked at two strengths: true rates, and how alike an item's answers are (0 to 1)."""

    n_items: int
    low: float
    high: float
    alike: float = 0.0
    valid: tuple[float, float] = (1.0, 1.0)
    valid_by_trait: float = 0.0
    """Correlation of validity with the trait that makes an item match, if positive."""
    repeats: int = 1

    def __str__(self) -> str:
        said = f"{self.n_items} items, {self.low:g} to {self.high:g}, alike {self.alike:g}"
        if self.valid != (1.0, 1.0):
            said += f", valid {self.valid[0]:g} to {self.valid[1]:g}"
        if self.valid_by_trait:
            said += f" by trait {self.valid_by_trait:g}"
        return said + (f", {self.repeats} repeats" if self.repeats > 1 else "")

    def rates(self, n_sweeps: int, rng: np.random.Generator) -> tuple[Rate, Rate]:
        """Rates at both strengths in many sweeps, dims (sweep,)."""
        trait = rng.normal(size=(n_sweeps, self.n_items, 1))
        low, high = (
            self._rate(trait, share, valid, rng)
            for share, valid in zip((self.low, self.high), self.valid, strict=True)
        )
        return low, high

    def _rate(self, trait: Array, share: float, valid: float, rng: np.random.Generator) -> Rate:
        shape = (*trait.shape[:2], self.repeats)
        match = _below(share, self.alike, trait, rng.normal(size=shape))
        answered = np.ones(shape)
        if valid < 1:
            answered = _below(valid, self.valid_by_trait, trait, rng.normal(size=shape))
        n = answered.sum(axis=-1)
        shares = np.where(n > 0, (answered * match).sum(axis=-1) / np.maximum(n, 1), 0.0)
        return rate(answered.mean(axis=-1), shares)

    def truth(self, rng: np.random.Generator) -> float:
        """The change in all items of the kind."""
        if not self.valid_by_trait:
            return self.high - self.low
        whole = Asked(**{**vars(self), "n_items": MANY})
        low, high = whole.rates(1, rng)
        return float(high.value[0] - low.value[0])


def _below(share: float | Array, alike: float, trait: Array, noise: Array) -> Array:
    """1 with probability `share`, correlated with the trait by the root of `alike`."""
    drawn = np.sqrt(alike) * trait + np.sqrt(1 - alike) * noise
    return (drawn < norm.ppf(share)).astype(float)


CHANGES = ((0.5, 0.5), (0.3, 0.6), (0.8, 0.95), (0.05, 0.05), (0.98, 0.98))
ASKED = tuple(
    Asked(n, low, high, alike)
    for n in (20, 40, 100, 200)
    for low, high in CHANGES
    for alike in (0.0, 0.8)
) + tuple(
    Asked(n, low, high, 0.6, valid, by_trait)
    for n in (20, 40, 100, 200)
    for low, high in CHANGES[:3]
    for valid, by_trait in (((0.7, 0.7), 0.0), ((0.5, 0.9), 0.5))
)
OF_REPEATS = tuple(
    Asked(n, low, high, alike, repeats=3)
    for n in (20, 40, 100)
    for low, high in CHANGES
    for alike in (0.0, 0.5, 0.8)
)


def _paired(scenario: Asked, n: int, rng: np.random.Generator) -> Simulated:
    truth = scenario.truth(rng)
    low, high = scenario.rates(n, rng)
    name = REPEATED if scenario.repeats > 1 else PAIRED
    ends = change_interval(low, high, LEVEL, repeated=scenario.repeats > 1)
    yield name, _held(*ends, truth)
    if scenario.repeats > 1:
        yield RESAMPLED, _held(*_of_resamples(low, high, rng), truth)


def _of_resamples(low: Rate, high: Rate, rng: np.random.Generator) -> tuple[Array, Array]:
    """Percentile intervals of a bootstrap of items, for the sake of comparison."""
    n_items = low.error.shape[-1]
    draws = resample_weights(n_items, N_FLIPS, rng)
    # Without invalid answers a rate is the mean over items, and its errors their deviations.
    change = (high.value - low.value)[:, None] + (high.error - low.error) @ draws.T
    tail = (1 - LEVEL) / 2
    ends = np.quantile(change, [tail, 1 - tail], axis=1)
    return ends[0], ends[1]


def _held(low: Array, high: Array, truth: float) -> list[float]:
    """1 for each interval that holds the truth, 0 for the others, none for those that are NaN."""
    known = np.isfinite(low) & np.isfinite(high)
    tolerance = 1e-9
    held = (low[known] - tolerance <= truth) & (truth <= high[known] + tolerance)
    return held.astype(float).tolist()


@dataclass(frozen=True)
class Swept:
    """A sweep of answers whose effect peaks at the middle layer, in sds of an item's trait."""

    n_items: int
    n_layers: int
    effect: float
    base: float = 0.0

    def __str__(self) -> str:
        said = f"{self.n_items} items, {self.n_layers} layers, effect {self.effect:g}"
        return said + (f", base {self.base:g}" if self.base else "")

    def answers(self, rng: np.random.Generator) -> Answers:
        """The answers at both strengths, all of them valid."""
        layers = np.arange(self.n_layers)
        near = np.exp(-((np.subtract.outer(layers, layers) / 4) ** 2) / 2)
        root = np.linalg.cholesky(0.32 * near + 0.08 * np.eye(self.n_layers))
        trait = self.base + np.sqrt(0.6) * rng.normal(size=self.n_items)
        peak = self.effect * np.exp(-(((layers - self.n_layers / 2) / 5) ** 2) / 2)
        noise = root @ rng.normal(size=(2, self.n_layers, self.n_items))
        moved = np.array([-1.0, 1.0])[:, None, None] * peak[:, None]
        match = (trait + moved + noise > 0).astype(float)
        return Answers(np.ones_like(match), match)


SWEEPS = tuple(
    Swept(n_items, n_layers, effect, base)
    for n_items, n_layers in ((40, 21), (100, 27), (100, 43))
    for effect in (0.0, 0.1, 0.3, 1.0)
    for base in (0.0, 1.5)
)


def _largest(scenario: Swept, n: int, rng: np.random.Generator) -> Simulated:
    excess, error = np.empty(n), np.empty(n)
    for number in range(n):
        items = scenario.n_items
        found = best_layer(
            scenario.answers(rng),
            resample_weights(items, N_FLIPS, rng),
            half_weights(items, 2, rng),
            rng.choice([-1.0, 1.0], (N_FLIPS, items)),
        )
        assert found is not None, "every answer is valid"
        excess[number] = found.value - found.expected_under_null
        error[number] = found.error
    half = t_quantile(LEVEL, scenario.n_items - 1) * error
    yield LARGEST, _held(excess - half, excess + half, float(excess.mean()))


@dataclass(frozen=True)
class Moved:
    """Items whose logits move by 1 nat on average; `follows` is how much of it the answers show."""

    n_items: int
    follows: float
    sd: float = 1.0
    base: float = 0.0

    def __str__(self) -> str:
        said = f"{self.n_items} items, answers follow by {self.follows:g}, sd {self.sd:g} nat"
        return said + (f", base {self.base:g}" if self.base else "")

    def r(self, rng: np.random.Generator) -> float:
        """r over items drawn anew, half of them of each letter."""
        answers, shift = self.draw(rng)
        letter = np.arange(self.n_items) % 2
        return item_agreement(answers, shift, letter, 0).r

    def draw(self, rng: np.random.Generator) -> tuple[Answers, Array]:
        """Answers of one layer, and the shift of each item's logits (layer, item)."""
        shift = 1 + self.sd * rng.normal(size=self.n_items)
        start = self.base + 1.5 * rng.normal(size=self.n_items)
        noise = rng.normal(size=(2, self.n_items))
        match = (start + self.follows * np.outer([-0.5, 0.5], shift) + noise > 0).astype(float)
        return Answers(np.ones((2, 1, self.n_items)), match[:, None]), shift[None]


MOVED = tuple(
    Moved(n, follows, sd, base)
    for n in (20, 40, 100)
    for follows, sd, base in ((0.0, 1.0, 0.0), (1.0, 1.0, 0.0), (1.0, 2.0, 0.0), (1.0, 2.0, 2.0))
)


def _over_items(scenario: Moved, n: int, rng: np.random.Generator) -> Simulated:
    whole = Moved(MANY, scenario.follows, scenario.sd, scenario.base)
    truth = float(fisher_z(np.array(whole.r(rng))))
    z = fisher_z(np.array([scenario.r(rng) for _ in range(n)]))
    half = t_quantile(LEVEL, scenario.n_items - 1) / np.sqrt(scenario.n_items - 4)
    yield OVER_ITEMS, _held(z - half, z + half, truth)


@dataclass(frozen=True)
class Misread:
    """Answers that a reader misreads: `swapped`, the share of other answers read as matching."""

    n_answers: int
    n_matrix: int
    low: float
    high: float
    swapped: float

    def __str__(self) -> str:
        return (
            f"{self.n_answers} answers, {self.n_matrix} read twice, {self.low:g} to {self.high:g}, "
            f"{self.swapped:g} misread"
        )


MISREAD = tuple(
    Misread(n, matrix, low, high, swapped)
    for n, matrix in ((20, 100), (100, 100), (200, 40))
    for low, high in ((0.3, 0.6), (0.5, 0.5), (0.9, 0.97))
    for swapped in (0.02, 0.5)
)
VALID = 0.9


def _corrected(scenario: Misread, n: int, rng: np.random.Generator) -> Simulated:
    swapped = scenario.swapped
    errors = np.array([[0.95, 0.03, 0.02], [swapped, 0.95 - swapped, 0.05], [0.1, 0.1, 0.8]])

    def shares(match: float) -> Array:
        return np.array([VALID * match, VALID * (1 - match), 1 - VALID])

    ends = []
    for _ in range(n):
        of = rng.multinomial(scenario.n_matrix, shares((scenario.low + scenario.high) / 2))
        matrix = np.stack(
            [rng.multinomial(count, row) for count, row in zip(of, errors, strict=True)]
        )
        low, high = (
            rng.multinomial(scenario.n_answers, shares(match) @ errors)
            for match in (scenario.low, scenario.high)
        )
        ends.append(percentile_ends(corrected_change(low, high, matrix, rng, n_draws=400), LEVEL))
    low_ends, high_ends = np.array(ends).T
    yield CORRECTED, _held(low_ends, high_ends, scenario.high - scenario.low)


@dataclass(frozen=True)
class Shared:
    """Models asked the same items; their true changes vary by `sd` around `change`."""

    n_models: int
    n_items: int
    change: float
    sd: float
    alike: float = 0.8

    def __str__(self) -> str:
        return (
            f"{self.n_models} models, {self.n_items} items, change {self.change:g}, "
            f"sd {self.sd:g}, alike {self.alike:g}"
        )


MODELS = tuple(
    Shared(6, 200, change, sd, alike)
    for change in (0.0, -0.05)
    for sd in (0.0, 0.02)
    for alike in (0.5, 0.9)
)
EASE = (0.63, 0.81, 0.915, 0.935, 0.965, 0.95)
"""Shares right without steering, of the study's six models on GSM8K."""


def _over_models(scenario: Shared, n: int, rng: np.random.Generator) -> Simulated:
    before = np.array(EASE[: scenario.n_models])[:, None]
    low_ends, high_ends = np.empty(n), np.empty(n)
    for number in range(n):
        own = scenario.sd * rng.normal(size=before.shape)
        after = np.clip(before + scenario.change + own, 0.01, 0.99)
        trait = rng.normal(size=scenario.n_items)
        match = [
            _below(share, scenario.alike, trait, rng.normal(size=(scenario.n_models, trait.size)))
            for share in (before, after)
        ]
        low, high = (rate(np.ones_like(one), one) for one in match)
        error = high.error - low.error
        covariance = error @ error.T
        estimate = shared_t(high.value - low.value, covariance, LEVEL)
        low_ends[number], high_ends[number] = estimate.low, estimate.high
    yield OVER_MODELS, _held(low_ends, high_ends, scenario.change)


@dataclass(frozen=True)
class Modelled:
    """Answers drawn from the mixed model at five layers."""

    n_items: int
    intercept: float
    log_odds_ratio: float
    sd_item: float = 1.5
    sd_item_change: float = 1.0

    def __str__(self) -> str:
        return (
            f"{self.n_items} items, {N_LAYERS} layers, intercept {self.intercept:g}, "
            f"log odds ratio {self.log_odds_ratio:g}, sds {self.sd_item:g} and "
            f"{self.sd_item_change:g}"
        )

    def rates(self, n_items: int, rng: np.random.Generator) -> Array:
        """Chances of a match, dims (strength, layer, item)."""
        item = self.intercept + self.sd_item * rng.normal(size=n_items)
        change = self.log_odds_ratio + self.sd_item_change * rng.normal(size=n_items)
        layers = np.linspace(-0.3, 0.3, N_LAYERS)[:, None]
        sides = np.array([-0.5, 0.5])[:, None, None]
        chances: Array = expit(item + layers + sides * change)
        return chances


N_LAYERS = 5
MODELLED = tuple(
    Modelled(n_items, intercept, ratio)
    for n_items in (40, 100)
    for intercept in (0.0, 2.2)
    for ratio in (0.0, 0.8)
) + tuple(Modelled(100, 0.0, ratio, sd, 0.5) for ratio in (0.0, 5.0) for sd in (2.2, 4.0))


def _modelled(scenario: Modelled, n: int, rng: np.random.Generator) -> Simulated:
    whole = scenario.rates(MANY, rng).mean(axis=(1, 2))
    truths = {BY_MODEL: float(whole[1] - whole[0]), LOG_ODDS_RATIO: scenario.log_odds_ratio}
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in truths}
    for _ in range(n):
        chances = scenario.rates(scenario.n_items, rng)
        drawn = (rng.random(chances.shape) < chances).astype(float)
        fitted = fit_answers(Counts(drawn, np.ones_like(drawn)), confidence_level=LEVEL)
        for name, found in {
            BY_MODEL: fitted.average_change,
            LOG_ODDS_RATIO: fitted.log_odds_ratio,
        }.items():
            ends[name].append((found.low, found.high))
    for name, truth in truths.items():
        low, high = np.array(ends[name]).T
        yield name, _held(low, high, truth)


Simulate = Callable[[Any, int, np.random.Generator], Simulated]
SIMULATED: tuple[tuple[Simulate, tuple[Any, ...], float], ...] = (
    (_paired, ASKED + OF_REPEATS, 2.0),
    (_largest, SWEEPS, 1.0),
    (_over_items, MOVED, 1.0),
    (_corrected, MISREAD, 0.5),
    (_over_models, MODELS, 1.0),
    (_modelled, MODELLED, 1.0),
)
"""Each simulation, its scenarios, and sweeps of each for one that is asked for."""


def answers_coverage(
    *,
    n_simulations: int,
    seed: int,
    map_scenarios: Callable[..., Any],
    keep: Keep,
    report: Callable[[str], None],
) -> pd.DataFrame:
    """A row for each statistic and scenario: how often its interval held the truth."""
    rows: list[Row] = []
    for simulate, scenarios, times in SIMULATED:
        n = round(times * n_simulations)
        report(f"{n} simulations each of {len(scenarios)} scenarios of answers")
        one = partial(_of_scenario, simulate, n, seed)
        made = partial(_listed, map_scenarios, one, scenarios)
        for found in keep(f"{n} of {simulate.__name__}", made):
            rows += found
    return pd.DataFrame(rows)


def _listed(map_scenarios: Callable[..., Any], one: Callable[[Any], Any], of: Any) -> list[Any]:
    return list(map_scenarios(one, of))


def _of_scenario(simulate: Simulate, n: int, seed: int, scenario: Any) -> list[Row]:
    rng = stream(f"answers: {type(scenario).__name__} {scenario}", seed=seed)
    return [
        {
            "statistic": statistic,
            "scenario": str(scenario),
            "measure": "coverage",
            "nominal": LEVEL,
            "achieved": float(np.mean(held)) if held else None,
            "standard_error": float(np.std(held) / np.sqrt(len(held))) if held else None,
            "n_simulations": len(held),
        }
        for statistic, held in simulate(scenario, n, rng)
    ]
