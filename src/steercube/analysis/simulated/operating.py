r"""How often intervals cover the truth and tests reject, for each statistic that texts depend on.

Every entry of `SIMULATIONS` simulates data of the study's shape with a known truth, applies one
statistic as the analysis does, and says whether the interval covered the truth or the test
rejected. `coverage` should be the confidence level and `false alarms` the level of the test;
`power` is how often a true effect is detected. The coverage of the training effect in Cohen's d,
by every method, is in `steercube.analysis.simulated.calibration`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.agreement.agreement import model_agreement, slope_over_concepts
from steercube.analysis.agreement.curves import correlation
from steercube.analysis.agreement.generation import best_generation_excess, layer_curves
from steercube.analysis.over_models.cell_effects import OUTCOMES, CellEffects, primary_terms
from steercube.analysis.over_models.comparisons import difference_holding, two_sample_t
from steercube.analysis.over_models.concordance import WITHIN, concept_test, share_of_variance
from steercube.analysis.over_models.means import mean_of_models
from steercube.analysis.over_models.posterior import Posterior, fit
from steercube.analysis.over_models.slopes import fit_slopes, slope_of
from steercube.analysis.per_cell.bootstrap import (
    centroid,
    deltas,
    error_covariance,
    resample_weights,
)
from steercube.analysis.simulated.keeping import Keep, made_anew
from steercube.analysis.simulated.steering import SCENARIOS as STEERED
from steercube.analysis.simulated.steering import Steered, said_to_steer
from steercube.analysis.simulated.sweeps import Scenario, Shape, Truth, draw, simulate
from steercube.analysis.view import Study
from steercube.estimate import SIGNIFICANT, Estimate
from steercube.streams import stream

COVERAGE, FALSE_ALARMS, POWER = "coverage", "false alarms", "power"
N_DRAWS = 499
"""Draws of the null in each simulated test of concepts."""

Map = Callable[[Callable[[int], "list[Hit]"], Iterable[int]], Iterable["list[Hit]"]]


class Hit(NamedTuple):
    """Whether an interval covered the truth, or a test rejected; a share if there were several."""

    statistic: str
    measure: str
    value: float


@dataclass(frozen=True)
class Simulation:
    """`once(study, scenario, rng)` simulates and judges; `scenarios` by the names a text uses."""

    scenarios: Mapping[str, Any]
    once: Callable[[Study, Any, np.random.Generator], Iterator[Hit]]


def operating_characteristics(
    study: Study,
    *,
    n_simulations: int,
    only: Collection[str] | None = None,
    map_numbers: Map = map,
    keep: Keep = made_anew,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """One row a statistic, scenario and measure: nominal and achieved share, and its error.

    `standard_error` is the Monte Carlo one. `only` names entries of SIMULATIONS. A simulation whose
    interval is undefined does not count, so `n_simulations` may be less than asked for.
    """
    rows: list[dict[str, Any]] = []
    for name, simulation in SIMULATIONS.items():
        if only is not None and name not in only:
            continue
        for scenario in simulation.scenarios:
            report(f"{n_simulations} simulations of {name}: {scenario}")
            simulate_all = partial(_hits, study, name, scenario, n_simulations, map_numbers)
            found = keep(f"{name}, {scenario}, {n_simulations}", simulate_all)
            rows += _rows([Hit(*hit) for hit in found], scenario, study.level)
    return pd.DataFrame(rows)


def _hits(
    study: Study, name: str, scenario: str, n: int, map_numbers: Map
) -> list[list[str | float]]:
    """The hits of n simulations, each as a list."""
    once = partial(simulated, study, name, scenario)
    return [list(hit) for hits in map_numbers(once, range(n)) for hit in hits]


def simulated(study: Study, name: str, scenario: str, number: int) -> list[Hit]:
    """The hits of one numbered simulation, the same in whatever order they are made."""
    rng = study.stream(f"simulation {number} of {name}, {scenario}")
    simulation = SIMULATIONS[name]
    return list(simulation.once(study, simulation.scenarios[scenario], rng))


def _rows(hits: Iterable[Hit], scenario: str, level: float) -> Iterator[dict[str, Any]]:
    nominal = {COVERAGE: level, FALSE_ALARMS: SIGNIFICANT, POWER: np.nan}
    table = pd.DataFrame(hits, columns=Hit._fields).dropna()
    for (statistic, measure), group in table.groupby(["statistic", "measure"], sort=False)["value"]:
        yield {
            "statistic": statistic,
            "scenario": scenario,
            "measure": measure,
            "nominal": nominal[measure],
            "achieved": group.mean(),
            "standard_error": _standard_error(group.to_numpy()),
            "n_simulations": len(group),
        }


def _standard_error(hits: np.ndarray) -> float:
    """Standard error of the mean; if all are equal, of a share with one hit and one miss added."""
    spread = float(hits.std())
    if not spread:
        share = (hits.sum() + 1) / (len(hits) + 2)
        spread = float(np.sqrt(share * (1 - share)))
    return spread / float(np.sqrt(len(hits)))


def _held(low: float, high: float, truth: float) -> float:
    """1 if the interval covers the truth, 0 if it does not; NaN without an interval."""
    return float(low <= truth <= high) if np.isfinite([low, high]).all() else np.nan


def concepts_once(study: Study, scenario: Scenario, rng: np.random.Generator) -> Iterator[Hit]:
    """The test of whether models rank concepts alike, and the interval of the shared variance."""
    effects = simulate(study, scenario, rng).effects
    p = concept_test(effects, rng, n_draws=N_DRAWS).p_value
    measure = POWER if scenario.sd_concept else FALSE_ALARMS
    yield Hit("common ranking of concepts", measure, float(p <= SIGNIFICANT))
    if scenario.sd_concept:
        posterior = _fitted(effects)
        low, high = share_of_variance(posterior, "sd_concept", WITHIN).ends(study.level)
        variance = scenario.sd_concept**2
        truth = variance / (variance + scenario.sd_cell**2)
        yield Hit("share of variance common to models", COVERAGE, _held(low, high, truth))


def deviations_once(study: Study, scenario: Scenario, rng: np.random.Generator) -> Iterator[Hit]:
    """Coverage of a model's deviation: of each model, and of the one with the lowest average."""
    sweep = simulate(study, scenario, rng)
    effects = sweep.effects
    posterior = _fitted(effects)
    held = []
    for model, truth in zip(effects.models, sweep.deviation, strict=True):
        low, _, high = posterior.interval(f"u of {model}", study.level)
        held.append(_held(low, high, truth))
    means = [effects.value[effects.model == at].mean() for at in range(len(held))]
    yield Hit("deviation of a model", COVERAGE, float(np.mean(held)))
    yield Hit("deviation of the lowest model", COVERAGE, held[int(np.argmin(means))])


def slopes_once(study: Study, scenario: Scenario, rng: np.random.Generator) -> Iterator[Hit]:
    """The slope on size: of each concept, random, and of all by the hierarchical model.

    The first concept's slope differs from the others' by `own_slope`, which pooling draws in.
    """
    effects = simulate(study, scenario, rng).effects
    posterior = fit_slopes(effects, n_nodes=10)
    held = []
    for at, concept in enumerate(effects.concepts):
        low, _, high = posterior.interval(slope_of(concept), study.level)
        truth = scenario.scale + (0.0 if at else scenario.own_slope)
        held.append(_held(low, high, truth))
    yield Hit("scale slope of a concept", COVERAGE, float(np.mean(held)))
    if scenario.own_slope:
        yield Hit("scale slope of a concept unlike the others", COVERAGE, held[0])
        return
    low, _, high = _fitted(effects).interval("scale", study.level)
    yield Hit("scale slope of all concepts", COVERAGE, _held(low, high, scenario.scale))


def _fitted(effects: CellEffects) -> Posterior:
    """The primary model of these effects."""
    return fit(effects, terms=primary_terms(effects))


@dataclass(frozen=True)
class Places:
    """The simulated truth for the depth of the best layer, in fractions of depth."""

    training: float
    sd_model: float
    intercept: float = 0.62
    sd_concept: float = 0.045
    sd_cell: float = 0.04


DEPTHS = np.linspace(0.3, 1.0, 24)
"""Layers of a simulated sweep of places."""
CURVE_WIDTH = 0.12
"""From the peak to where the effect has fallen by 40%, fraction of depth."""
N_RESAMPLES = 300


def depths_once(study: Study, scenario: Places, rng: np.random.Generator) -> Iterator[Hit]:
    """The training effect on the depth of the best layer, and on the centroid of the effect.

    The centroid only without an effect: layers that were not swept cut off its curve, so that it
    moves by less than the peak and its true effect is unknown.
    """
    for outcome, effects in simulated_places(study, scenario, rng).items():
        if outcome == "depth_centroid" and scenario.training:
            continue
        low, _, high = _fitted(effects).interval("contrast", study.level)
        held = _held(low, high, scenario.training)
        name = f"training effect on the {outcome.replace('_', ' ')}"
        yield Hit(f"{name} (hierarchical)", COVERAGE, held)
        models = range(len(effects.models))
        means = np.array([effects.value[effects.model == at].mean() for at in models])
        t = two_sample_t(means, effects.is_high, level=study.level)
        held = _held(t.low, t.high, scenario.training)
        yield Hit(f"{name} (t over models)", COVERAGE, held)


def simulated_places(
    study: Study, scenario: Places, rng: np.random.Generator
) -> dict[str, CellEffects]:
    """Best depth and centroid of every cell of a simulated sweep, with their errors over items."""
    shape = Shape.of(study)
    true = scenario.intercept + scenario.sd_model * rng.normal(size=len(shape.models))
    true = true + scenario.training * shape.predictors["contrast"]
    value: dict[str, list[float]] = {"best_depth": [], "depth_centroid": []}
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in value}
    for ids, n_items in shape.concepts_with_models():
        peaks = true[ids] + scenario.sd_concept * rng.normal()
        peaks = peaks + scenario.sd_cell * rng.normal(size=len(ids))
        truths = {shape.models[m]: _bump(peak) for m, peak in zip(ids, peaks, strict=True)}
        samples = draw(truths, n_items, rng).values()
        resamples = resample_weights(n_items, N_RESAMPLES, rng)
        ones = np.ones((1, n_items))
        errors: dict[str, list[np.ndarray]] = {name: [] for name in value}
        for of_model in samples:
            for name, place in {"best_depth": _best_depth, "depth_centroid": _centroid}.items():
                value[name].append(float(place(deltas(of_model, ones))[0]))
                errors[name].append(place(deltas(of_model, resamples)))
        rounding = (DEPTHS[1] - DEPTHS[0]) ** 2 / 12 * np.eye(len(ids))
        blocks["best_depth"].append(error_covariance(errors["best_depth"]) + rounding)
        blocks["depth_centroid"].append(error_covariance(errors["depth_centroid"]))
    return {
        name: shape.effects(name, value[name], blocks[name], unit=OUTCOMES[name].unit or 1.0)
        for name in value
    }


def _best_depth(delta: np.ndarray) -> np.ndarray:
    return DEPTHS[delta.argmax(axis=-1)]


def _centroid(delta: np.ndarray) -> np.ndarray:
    return centroid(delta, DEPTHS)


def _bump(peak: float) -> Truth:
    """An effect of d = 1 at its peak; unit sds, so that delta is d."""
    delta = np.exp(-((DEPTHS - peak) ** 2) / (2 * CURVE_WIDTH**2))
    ones = np.ones(len(DEPTHS))
    return Truth(delta / 2, -delta / 2, ones, ones, correlation=0.4 * ones, letter=0.5 * ones)


@dataclass(frozen=True)
class Curves:
    """Fisher's z of models' pairs of curves is normal around that of r, their layers correlated."""

    r: float
    sd_z: float = 0.3
    neighbours: float = 0.9


def agreement_once(study: Study, scenario: Curves, rng: np.random.Generator) -> Iterator[Hit]:
    """Mean correlation of the logit and the generation curve over models."""
    curves = curves_of(study, scenario, rng)
    estimate = model_agreement(study_of_curves(curves, study, rng), concept=CONCEPT)
    yield Hit("agreement over models", COVERAGE, _held(estimate.low, estimate.high, scenario.r))


def curves_of(
    study: Study, scenario: Curves, rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A delta curve (layer) and rates (strength, layer) of every simulated model."""
    curves = {}
    for at, n_layers in enumerate(lengths_of_curves(study)):
        r = np.tanh(np.arctanh(scenario.r) + scenario.sd_z * rng.normal())
        logit, own = (_smooth(n_layers, scenario.neighbours, rng) for _ in range(2))
        change = r * logit + np.sqrt(1 - r**2) * own
        curves[f"model {at}"] = (logit, np.stack([-change / 2, np.zeros(n_layers), change / 2]))
    return curves


N_OTHERS = 5
"""Other concepts whose logits a simulated concept's answers are compared with."""


def specificity_once(study: Study, scenario: Curves, rng: np.random.Generator) -> Iterator[Hit]:
    """r with a concept's own logits minus r with other concepts' logits, over models."""
    differences = np.array([_own_minus_others(n, scenario, rng) for n in lengths_of_curves(study)])
    estimate = mean_of_models(differences, study.level)
    lengths = tuple(lengths_of_curves(study))
    truth = float(np.mean([_true_difference(n, scenario) for n in lengths]))
    yield Hit("own minus others' r", COVERAGE, _held(estimate.low, estimate.high, truth))


def _own_minus_others(n_layers: int, scenario: Curves, rng: np.random.Generator) -> float:
    """The difference of one model, as `agreement.matched_minus_mismatched` takes it."""
    r = np.tanh(np.arctanh(scenario.r) + scenario.sd_z * rng.normal())
    own, noise, *others = (_smooth(n_layers, scenario.neighbours, rng) for _ in range(2 + N_OTHERS))
    answers = r * own + np.sqrt(1 - r**2) * noise
    of_others = [float(correlation(other, answers)) for other in others]
    return float(correlation(own, answers)) - float(np.mean(of_others))


@lru_cache(maxsize=64)
def _true_difference(n_layers: int, scenario: Curves) -> float:
    rng = stream(f"true difference of {n_layers} layers, {scenario}")
    return float(np.mean([_own_minus_others(n_layers, scenario, rng) for _ in range(N_TRUTH)]))


SD_OF_Z, ERROR_OF_EFFECT = 0.2, 0.1
"""Spread of a concept's true Fisher's z around its line on the effect, and the error with which its
mean effect is measured."""


def tracked(study: Study, slope: float, rng: np.random.Generator) -> Estimate:
    """The slope of mean r on mean effect, over as many concepts as have curves, at least three.

    Each concept's r is that of the curves of as many models as have them.
    """
    n = max(3, sum(bool(layer_curves(study, concept=c)) for c in study.concepts))
    effect, r = _concepts_with_r(study, n, slope, rng)
    return slope_over_concepts(effect, r, study.level)


def _concepts_with_r(
    study: Study, n: int, slope: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The measured mean effect and mean r of n concepts, dims (concept,) each."""
    effect = 1.0 + 0.35 * rng.normal(size=n)
    z = 0.3 + slope * (effect - 1) + SD_OF_Z * rng.normal(size=n)
    r = [np.mean(_r_of_models(study, Curves(r=float(np.tanh(of))), rng)) for of in z]
    return effect + ERROR_OF_EFFECT * rng.normal(size=n), np.array(r)


def _r_of_models(study: Study, scenario: Curves, rng: np.random.Generator) -> list[float]:
    curves = curves_of(study, scenario, rng).values()
    return [float(correlation(logit, rates[-1] - rates[0])) for logit, rates in curves]


@lru_cache(maxsize=8)
def true_slope(study: Study, slope: float) -> float:
    """The slope that infinitely many such concepts would have, by least squares."""
    if not slope:
        return 0.0
    effect, r = _concepts_with_r(study, N_TRUTH, slope, stream(f"true slope {slope}"))
    return float(np.polyfit(effect, r, 1)[0])


def tracking_once(study: Study, slope: float, rng: np.random.Generator) -> Iterator[Hit]:
    """Whether agreement rises with the effect, over concepts."""
    estimate, truth = tracked(study, slope, rng), true_slope(study, slope)
    yield Hit("slope of r on the effect", COVERAGE, _held(estimate.low, estimate.high, truth))


SD_LOG_SCALE = 0.5
"""Spread of the log of models' scales of logits."""


def labels_once(study: Study, scenario: Scenario, rng: np.random.Generator) -> Iterator[Hit]:
    """The difference of two labels with others held fixed, by least squares over model means.

    The two variables are the study's architecture and training; the effect is on the former. Models
    differ in the scale of their logits, so that their means vary unequally (by SD_LOG_SCALE).
    """
    high = study.facts("architecture") == "moe"
    held = study.facts("training")
    scale = np.exp(SD_LOG_SCALE * rng.normal(size=len(high)))
    values = scenario.training * high + scale * scenario.sd_model * rng.normal(size=len(high))
    estimate = difference_holding(values, high, held, study.level)
    hit = _held(estimate.low, estimate.high, scenario.training)
    yield Hit("difference of two labels, others held fixed", COVERAGE, hit)


def _smooth(n_layers: int, neighbours: float, rng: np.random.Generator) -> np.ndarray:
    """A first-order autoregressive curve of unit variance."""
    curve = rng.normal(size=n_layers)
    for layer in range(1, n_layers):
        curve[layer] = neighbours * curve[layer - 1] + np.sqrt(1 - neighbours**2) * curve[layer]
    return curve


CONCEPT = "simulated"
LAYERS_OF_A_CURVE, MODELS_WITH_CURVES = 25, 4
"""Used if the cells hold no curves of both measures."""


def lengths_of_curves(study: Study) -> list[int]:
    """Number of layers with both measures, per model of the concept with the most such models."""
    lengths = [
        [len(logit) for logit, _ in layer_curves(study, concept=concept).values()]
        for concept in study.concepts
    ]
    longest = max(lengths, key=len)
    return longest if len(longest) > 1 else [LAYERS_OF_A_CURVE] * MODELS_WITH_CURVES


def study_of_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], like: Study, rng: np.random.Generator
) -> Study:
    """A study of one concept with these curves of delta (layer) and rates (strength, layer)."""
    n_layers = max(len(delta) for delta, _ in curves.values())
    delta = np.full((1, len(curves), 1, n_layers), np.nan)
    rate = np.full((len(curves), 1, n_layers, 3), np.nan)
    for at, (of_delta, of_rate) in enumerate(curves.values()):
        delta[0, at, 0, : len(of_delta)] = of_delta
        rate[at, 0, : len(of_delta)] = of_rate.T
    cells = xr.Dataset(
        {
            "estimate": (("estimand", "model", "concept", "layer"), delta),
            "generation_rate": (("model", "concept", "layer", "strength"), rate),
        },
        coords={
            "estimand": ["delta"],
            "model": list(curves),
            "concept": [CONCEPT],
            "layer": np.arange(n_layers),
            "strength": [-1.0, 0.0, 1.0],
        },
        attrs={"confidence_level": like.level, "seed": int(rng.integers(2**31))},
    )
    return Study(cells)


@dataclass(frozen=True)
class Answers:
    """Change in the log odds of an answer at the best layer: `effect` at +1, minus it at -1.

    `sd_model` is its sd over models; `useless` is the sd of a random change in the log odds of all
    answers, smooth over layers, at either strength.
    """

    effect: float
    sd_model: float = 0.0
    useless: float = 0.0


N_PROMPTS = 20
SD_PROMPTS = 1.5
"""Spread of the prompts' log odds."""
N_TRUTH = 2_000
"""Simulated sweeps over which the true excess is averaged."""


def generation_once(study: Study, scenario: Answers, rng: np.random.Generator) -> Iterator[Hit]:
    """The largest change of generated answers less what no effect would give, over models."""
    lengths = lengths_of_curves(study)
    curves = {
        f"model {at}": (_smooth(n, 0.9, rng), _rates(n, scenario, rng))
        for at, n in enumerate(lengths)
    }
    estimate = best_generation_excess(study_of_curves(curves, study, rng), concept=CONCEPT)
    name = "excess of generation"
    rejected = float(estimate.excludes_zero)
    if scenario.effect:
        truth = float(np.mean([true_excess(n, scenario) for n in lengths]))
        yield Hit(name, COVERAGE, _held(estimate.low, estimate.high, truth))
        yield Hit(name, POWER, rejected)
    elif scenario.useless:
        yield Hit(name, FALSE_ALARMS, rejected)
    else:
        yield Hit(name, COVERAGE, _held(estimate.low, estimate.high, 0.0))


def _rates(
    n_layers: int, scenario: Answers, rng: np.random.Generator, n: int | None = None
) -> np.ndarray:
    """Rates of N_PROMPTS sampled answers at strengths -1, 0 and 1, dims (strength, layer).

    With `n`, those of n sweeps, dims (sweep, strength, layer).
    """
    sweeps = n or 1
    strength = np.array([-1.0, 0.0, 1.0])[:, None]
    shape = np.exp(-(((np.arange(n_layers) / (n_layers - 1) - 0.5) / 0.2) ** 2) / 2)
    effect = scenario.effect + scenario.sd_model * rng.normal(size=(sweeps, 1, 1))
    moved = effect * strength * shape
    if scenario.useless:
        noise = np.stack([_smooth(n_layers, 0.9, rng) for _ in range(2 * sweeps)])
        noise = noise.reshape(sweeps, 2, n_layers)
        still = np.zeros((sweeps, 1, n_layers))
        moved = moved + scenario.useless * np.concatenate(
            [noise[:, :1], still, noise[:, 1:]], axis=1
        )
    prompts = SD_PROMPTS * rng.normal(size=(sweeps, 1, 1, N_PROMPTS))
    p = 1 / (1 + np.exp(-(moved[..., None] + prompts)))
    rates: np.ndarray = (rng.random(p.shape) < p).mean(axis=-1)
    return rates if n else rates[0]


@lru_cache(maxsize=64)
def true_excess(n_layers: int, scenario: Answers) -> float:
    """Expected largest change over layers minus that with nothing added."""
    rng = stream(f"true excess of {n_layers} layers, {scenario}")
    nothing = Answers(effect=0.0)
    with_it, without = (
        float(np.mean(np.max(rates[:, 2] - rates[:, 0], axis=-1)))
        for rates in (_rates(n_layers, s, rng, N_TRUTH) for s in (scenario, nothing))
    )
    return with_it - without


def steers_once(study: Study, scenario: Steered, rng: np.random.Generator) -> Iterator[Hit]:
    """False alarms of the steering test if no concept steers; its power if all do."""
    steers = said_to_steer(scenario, rng)
    if scenario.content:
        yield Hit("steering of a pair", POWER, float(steers.mean()))
    else:
        yield Hit("steering of any pair", FALSE_ALARMS, float(steers.any()))


def _concepts(sd_concept: float, sd_cell: float) -> Scenario:
    return Scenario(training=0.0, sd_model=0.15, sd_concept=sd_concept, sd_cell=sd_cell)


SIMULATIONS: dict[str, Simulation] = {
    "concepts": Simulation(
        {
            f"sd_concept {concept:g}, sd_cell {cell:g}": _concepts(concept, cell)
            for concept, cell in (
                *((0.0, 0.25), (0.0, 0.1), (0.0, 0.03)),
                *((0.2, 0.25), (0.38, 0.25)),
            )
        },
        concepts_once,
    ),
    "deviations": Simulation(
        {f"sd_model {sd:g}": Scenario(training=0.0, sd_model=sd) for sd in (0.05, 0.15, 0.3)},
        deviations_once,
    ),
    "slopes": Simulation(
        {
            f"b_scale {scale:g}": Scenario(training=0.0, sd_model=0.15, scale=scale)
            for scale in (0.0, 0.3)
        }
        | {
            f"one concept's slope {own:g}": Scenario(training=0.0, sd_model=0.15, own_slope=own)
            for own in (0.5, 1.0)
        },
        slopes_once,
    ),
    "depths": Simulation(
        {
            f"b_training {b:g}, sd_model {sd:g}": Places(training=b, sd_model=sd)
            for b, sd in ((0.0, 0.015), (0.0, 0.05), (0.15, 0.015))
        },
        depths_once,
    ),
    "agreement": Simulation(
        {
            f"r {r:g}, neighbouring layers {neighbours:g}": Curves(r=r, neighbours=neighbours)
            for r, neighbours in ((0.0, 0.9), (0.6, 0.9), (0.6, 0.6))
        },
        agreement_once,
    ),
    "specificity": Simulation({f"r {r:g}": Curves(r=r) for r in (0.0, 0.6)}, specificity_once),
    "tracking": Simulation({f"slope {b:g}": b for b in (0.0, 0.5)}, tracking_once),
    "labels": Simulation(
        {f"difference {b:g}": Scenario(training=b, sd_model=0.3) for b in (0.0, 0.5)},
        labels_once,
    ),
    "generation": Simulation(
        {
            "nothing is added": Answers(effect=0.0),
            "a useless direction moves log odds by 0.3": Answers(effect=0.0, useless=0.3),
            "log odds change by 1 at the best layer": Answers(effect=1.0, sd_model=0.3),
        },
        generation_once,
    ),
    "steers": Simulation({scenario.name: scenario for scenario in STEERED}, steers_once),
}
"""What `calibrate` simulates, by the name that `--only` takes."""
