r"""Sweeps simulated from a known truth, on which coverage, false alarms and recovery are measured.

A concept's items favour a letter at random, by a part of their spread; their noise is partly shared
by the models of the concept, as an item may be hard for all of them, and strongly correlated
between neighbouring layers, as in the published study.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from steercube.analysis.margins import STANDARDISED
from steercube.analysis.over_models.cell_effects import (
    OUTCOMES,
    TERMS,
    CellEffects,
    cell_effects,
    predictors_of,
)
from steercube.analysis.over_models.means import root_of
from steercube.analysis.over_models.posterior import SDS, Prior
from steercube.analysis.per_cell.bootstrap import (
    error_covariance,
    half_weights,
    resample_weights,
    select_and_estimate,
)
from steercube.analysis.per_cell.estimands import Samples, cohens_d
from steercube.analysis.view import Study

NEIGHBOURS = 0.95
"""Correlation of one item's noise between neighbouring layers."""

N_LAYERS = 8
N_RESAMPLES = 400
PEAK_WIDTH = 2.0
"""Layers from the peak of a curve to where it has fallen by 40%."""


class Truth(NamedTuple):
    """One (model, concept): its true parameters, each over (layer,)."""

    positive: np.ndarray
    negative: np.ndarray
    sd_positive: np.ndarray
    sd_negative: np.ndarray
    correlation: np.ndarray
    letter: np.ndarray

    @property
    def cohens_d(self) -> np.ndarray:
        """The true effect of each layer."""
        pooled = np.sqrt((self.sd_positive**2 + self.sd_negative**2) / 2)
        return (self.positive - self.negative) / pooled


def draw(models: dict[str, Truth], n_items: int, rng: np.random.Generator) -> dict[str, Samples]:
    """Samples of one concept's items for all its models, layers along the first dim."""
    letter = np.where(rng.random(n_items) < 0.5, "A", "B")
    sign = np.where(letter == "A", 1.0, -1.0)
    longest = max(len(truth.positive) for truth in models.values())
    shared = [_noise(longest, n_items, rng) for _ in range(2)]
    drawn = {}
    for model, truth in models.items():
        n_layers = len(truth.positive)
        one, two = (
            np.sqrt(0.5) * common[:n_layers] + np.sqrt(0.5) * _noise(n_layers, n_items, rng)
            for common in shared
        )
        r, b = truth.correlation[:, None], truth.letter[:, None]
        negative, positive = (
            b * sign + np.sqrt(1 - b**2) * z for z in (one, r * one + np.sqrt(1 - r**2) * two)
        )
        values = np.stack(
            [
                truth.negative[:, None] + truth.sd_negative[:, None] * negative,
                truth.positive[:, None] + truth.sd_positive[:, None] * positive,
            ],
            axis=1,
        )
        drawn[model] = Samples(values, np.array([-1.0, 1.0]), letter)
    return drawn


def _noise(n_layers: int, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """Standard normal noise (layer, item), first-order autoregressive over layers."""
    noise = rng.normal(size=(n_layers, n_items))
    for layer in range(1, n_layers):
        noise[layer] = NEIGHBOURS * noise[layer - 1] + np.sqrt(1 - NEIGHBOURS**2) * noise[layer]
    return noise


@dataclass(frozen=True)
class Scenario:
    """A true hierarchical model of Cohen's d at the best layer, and properties of its items."""

    training: float
    sd_model: float
    scale: float = 0.0
    intercept: float = 1.0
    sd_concept: float = 0.35
    sd_cell: float = 0.25
    letter: float = 0.5
    correlation: float = 0.4
    uneven: float = 1.0
    """Factor by which models of the contrast's `high` label vary more."""
    own_slope: float = 0.0
    """Slope on size of the first concept, beyond that of all."""


class Sweep(NamedTuple):
    """A simulated sweep: its effects and the truth behind them.

    `apparent` (cell,) are the effects with their optimism, `deviation` (model,) is how far each
    model is truly above its expectation.
    """

    effects: CellEffects
    apparent: np.ndarray
    deviation: np.ndarray


def simulate(study: Study, scenario: Scenario, rng: np.random.Generator) -> Sweep:
    """One simulated sweep in the shape of a study, by the pipeline's own stage one.

    The shape is which models ran which concepts, on how many items, and the models' labels and
    sizes. Each cell's d peaks at a layer of its own; the layer is selected by delta on the same
    items, optimism and covariance come from N_RESAMPLES of the joint item bootstrap.
    """
    shape = Shape.of(study)
    spread = scenario.sd_model * np.where(shape.is_high, scenario.uneven, 1.0)
    deviation = spread * rng.normal(size=len(shape.models))
    true = scenario.intercept + deviation
    for term, values in shape.predictors.items():
        true = true + getattr(scenario, "training" if term == "contrast" else term) * values
    value: list[float] = []
    apparent, blocks = [], []
    for ids, n_items in shape.concepts_with_models():
        v = scenario.sd_concept * rng.normal()
        d = true[ids] + v + scenario.sd_cell * rng.normal(size=len(ids))
        if scenario.own_slope and not value:
            d = d + scenario.own_slope * shape.predictors["scale"][ids]
        truths = {shape.models[m]: _curve(x, scenario, rng) for m, x in zip(ids, d, strict=True)}
        measured, optimism, covariance = _stage_one(draw(truths, n_items, rng), rng)
        value += [x - y for x, y in zip(measured, optimism, strict=True)]
        apparent += measured
        blocks.append(covariance)
    effects = shape.effects("cohens_d", value, blocks)
    return Sweep(replace(effects, n_items=shape.n_items), np.array(apparent), deviation)


class Shape(NamedTuple):
    """Which of the compared models ran which concepts (model, concept), and on how many items."""

    models: list[str]
    concepts: list[str]
    predictors: dict[str, np.ndarray]
    ran: np.ndarray
    n_items: tuple[int, ...]

    @classmethod
    def of(cls, study: Study) -> "Shape":
        """The shape of a study."""
        models = study.compared
        holding = study.contrast.holding if study.contrast else "n_params"
        ran = study.best("cohens_d", models=models).notnull().values
        n_items = tuple(int(n) for n in study.cells["n_items"].values)
        return cls(models, study.concepts, predictors_of(study, models, holding), ran, n_items)

    @property
    def is_high(self) -> np.ndarray:
        """Which models have the contrast's `high` label, dims (model,)."""
        return self.predictors["contrast"] > 0

    def concepts_with_models(self) -> Iterator[tuple[np.ndarray, int]]:
        """The models that ran each concept, and its number of items."""
        for c, n_items in enumerate(self.n_items):
            yield np.flatnonzero(self.ran[:, c]), n_items

    def effects(
        self, outcome: str, value: Sequence[float], blocks: Sequence[np.ndarray], unit: float = 1.0
    ) -> CellEffects:
        """Simulated values of every cell, concept by concept, with their covariance over models."""
        concept, model = np.nonzero(self.ran.T)
        return CellEffects(
            outcome=outcome,
            value=np.array(value),
            covariance=between_cells(concept, blocks),
            model=model,
            concept=concept,
            models=tuple(self.models),
            concepts=tuple(self.concepts),
            predictors=self.predictors,
            unit=unit,
            margins=OUTCOMES[outcome].margins or STANDARDISED,
        )

    @classmethod
    def balanced(cls, study: Study, n_high: int, n_low: int) -> "Shape":
        """Models of a study's range of sizes, as many small and large ones of either label.

        Each ran every concept of the study.
        """
        size = np.log10(study.facts("n_params", study.compared))
        sizes = [np.linspace(size.min(), size.max(), n) for n in (n_high, n_low)]
        is_high = np.repeat([1.0, 0.0], [n_high, n_low])
        columns = {"contrast": is_high, "scale": np.concatenate(sizes)}
        n_items = tuple(int(n) for n in study.cells["n_items"].values)
        return cls(
            [f"model {at}" for at in range(n_high + n_low)],
            study.concepts,
            {term: values - values.mean() for term, values in columns.items()},
            np.ones((n_high + n_low, len(study.concepts)), dtype=bool),
            n_items,
        )


def between_cells(concept: np.ndarray, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Covariance (cell, cell) from the models' covariance of each concept; 0 between concepts."""
    same = np.equal.outer(concept, concept)
    covariance = np.zeros(same.shape)
    covariance[same] = np.concatenate([block.ravel() for block in blocks])
    return covariance


def simulate_cells(
    study: Study, shape: Shape, scenario: Scenario, rng: np.random.Generator
) -> CellEffects:
    """Effects of cells of any shape from the hierarchical model itself, without items.

    The sampling covariance of each concept is that of the study's cells on average: one variance
    for all its cells, one covariance for every two models. It is fast, and right for questions
    about many models; `simulate` draws the items too.
    """
    effects = cell_effects(study)
    spread = scenario.sd_model * np.where(shape.is_high, scenario.uneven, 1.0)
    true = scenario.intercept + spread * rng.normal(size=len(shape.models))
    for term, values in shape.predictors.items():
        true = true + getattr(scenario, "training" if term == "contrast" else term) * values
    value, blocks = [], []
    for at, (ids, _) in enumerate(shape.concepts_with_models()):
        variance, covariance = _typical_error(effects, at)
        block = np.full((len(ids), len(ids)), covariance)
        np.fill_diagonal(block, variance)
        d = true[ids] + scenario.sd_concept * rng.normal()
        d = d + scenario.sd_cell * rng.normal(size=len(ids))
        value += (d + root_of(block) @ rng.normal(size=len(ids))).tolist()
        blocks.append(block)
    return shape.effects("cohens_d", value, blocks)


def _typical_error(effects: CellEffects, concept: int) -> tuple[float, float]:
    """Mean variance of a concept's cells, and mean covariance of two of them, at least 0."""
    at = np.flatnonzero(effects.concept == concept)
    block = effects.covariance[np.ix_(at, at)]
    between = block[~np.eye(len(at), dtype=bool)]
    return float(np.diag(block).mean()), max(0.0, float(between.mean())) if len(between) else 0.0


def _curve(d: float, scenario: Scenario, rng: np.random.Generator) -> Truth:
    """An effect that rises to d at one layer; unit sds, so that delta is d."""
    peak = rng.uniform(0.25, 0.75) * (N_LAYERS - 1)
    delta = d * np.exp(-((np.arange(N_LAYERS) - np.round(peak)) ** 2) / (2 * PEAK_WIDTH**2))
    ones = np.ones(N_LAYERS)
    return Truth(
        positive=delta / 2,
        negative=-delta / 2,
        sd_positive=ones,
        sd_negative=ones,
        correlation=scenario.correlation * ones,
        letter=scenario.letter * ones,
    )


def _stage_one(
    samples: dict[str, Samples], rng: np.random.Generator
) -> tuple[list[float], list[float], np.ndarray]:
    """Cohen's d at each model's selected layer, their optimism, and their covariance."""
    n_items = len(next(iter(samples.values())).letter)
    resamples = resample_weights(n_items, N_RESAMPLES, rng)
    halves = half_weights(n_items, 2, rng)
    effects = [
        select_and_estimate(
            of_model, resamples=resamples, halves=halves, estimands={"cohens_d": cohens_d}
        ).effects["cohens_d"]
        for of_model in samples.values()
    ]
    apparent, optimism = ([getattr(e, name) for e in effects] for name in ("apparent", "optimism"))
    return apparent, optimism, error_covariance([effect.error for effect in effects])


def prior_cells(
    effects: CellEffects, prior: Prior, rng: np.random.Generator
) -> tuple[CellEffects, dict[str, float]]:
    """Cells of the same shape from the hierarchical model, with a truth drawn from its prior."""
    names = ("intercept", *TERMS, *SDS)
    truth = {name: float(prior.draw(name, effects.unit, rng)[0]) for name in names}
    value = effects.design(TERMS) @ [truth[n] for n in ("intercept", *TERMS)]
    for name, group in effects.index().items():
        value = value + truth[name] * rng.normal(size=len(value))[group]
    value = value + root_of(effects.covariance) @ rng.normal(size=len(value))
    return replace(effects, value=value), truth
