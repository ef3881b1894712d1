"""How often the test of steering is right, in sweeps whose truth is known.

Every sweep is of one model and several concepts, as a first sweep usually is. Neighbouring layers
correlate as in the published study. Scenarios vary what could mislead a test by random signs: a
vector that favours a letter, letters in unequal numbers, items with a long tail of shifts
on both sides, few items.
"""

from dataclasses import dataclass

import numpy as np

from steercube.analysis.conclusions.multiplicity import holm
from steercube.analysis.per_cell.estimands import Array, Samples
from steercube.analysis.per_cell.steers import ALPHA, sign_flip_test
from steercube.analysis.simulated.sweeps import NEIGHBOURS, PEAK_WIDTH
from steercube.contract import SCORED_LETTERS
from steercube.measures import Measure

N_FLIPS = 2_000
"""Random sign flips of each simulated test: fewer than in a study, as valid and faster."""
N_CONCEPTS, N_LAYERS = 6, 20
TAILS = 3.0
"""Degrees of freedom of Student's t where tails are long; its kurtosis is infinite."""


@dataclass(frozen=True)
class Steered:
    """One kind of sweep; shifts are in units of the items' standard deviation around their mean."""

    name: str
    content: float = 0.0
    """Shift of both letters at the best layer."""
    letter: float = 0.0
    """Shift of the A-items, and minus that of the B-items, at every layer."""
    share_of_a: float = 0.5
    n_items: int = 60
    neighbours: float = NEIGHBOURS
    long_tails: bool = False


SCENARIOS = (
    Steered("nothing steers"),
    Steered("a letter is favoured", letter=2.0),
    Steered("a letter is favoured, three in four items have it", letter=2.0, share_of_a=0.75),
    Steered("long tails", long_tails=True),
    Steered("layers less alike, a letter is favoured", neighbours=0.5, letter=2.0),
    Steered("20 items, a letter is favoured", n_items=20, letter=2.0),
    Steered("100 items, long tails", n_items=100, long_tails=True),
    Steered("every concept steers by half an sd", content=0.5),
    Steered("every concept steers by one sd, a letter is favoured", content=1.0, letter=2.0),
)


def said_to_steer(
    scenario: Steered,
    rng: np.random.Generator,
    *,
    n_concepts: int = N_CONCEPTS,
    n_layers: int = N_LAYERS,
) -> Array:
    """Whether each concept of one sweep is said to steer, after Holm's correction."""
    drawn = [draw(scenario, n_layers, rng) for _ in range(n_concepts)]
    p = [sign_flip_test(samples, rng, n_flips=N_FLIPS).p for samples in drawn]
    return holm(np.array(p)) <= ALPHA


def draw(scenario: Steered, n_layers: int, rng: np.random.Generator) -> Samples:
    """The items of one concept, whose effect peaks at a layer in the middle half of the sweep."""
    n = scenario.n_items
    n_a = round(scenario.share_of_a * n)
    letter = np.repeat(SCORED_LETTERS, [n_a, n - n_a])
    layers = np.arange(n_layers)
    correlation = scenario.neighbours ** np.abs(np.subtract.outer(layers, layers))
    noise = np.linalg.cholesky(correlation) @ rng.normal(size=(n_layers, n))
    if scenario.long_tails:
        noise *= np.sqrt(TAILS / rng.chisquare(TAILS, n))
    peak = round(rng.uniform(0.25, 0.75) * (n_layers - 1))
    bump = np.exp(-((layers - peak) ** 2) / (2 * PEAK_WIDTH**2))
    favours = np.where(letter == SCORED_LETTERS[0], scenario.letter, -scenario.letter)
    shift = scenario.content * bump[:, None] + favours + noise
    values = np.stack([-shift / 2, shift / 2], axis=1)
    return Samples(values, np.array(Measure.compare), letter)
