from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import ATTRIBUTES, fill, make_items, make_model, reduce_to_cells, study_of

from steercube.analysis.conclusions.counts import counts_of_pairs
from steercube.analysis.conclusions.effects import effects
from steercube.analysis.simulated.steering import SCENARIOS, Steered, draw, said_to_steer
from steercube.contract import STATUS
from steercube.cube import blank_grid
from steercube.streams import stream

CONCEPTS = ("coordination", "corrigibility", "power", "awareness", "survival", "sycophancy")
LAYERS = tuple(range(10, 30))
STRENGTHS = (-1.0, 0.0, 1.0)


def sweep_of(scenario: Steered, number: int) -> xr.Dataset:
    """A cube of SmolLM2's shape: one model, six concepts of 60 items, the last 20 of 30 blocks."""
    rng = stream(f"sweep {number} of {scenario}")
    items = {concept: make_items(concept, scenario.n_items) for concept in CONCEPTS}
    model = make_model("one", n_layers=30)
    cube = blank_grid([model], items, layers=LAYERS, strengths=STRENGTHS, attrs=ATTRIBUTES)
    for concept, of in items.items():
        drawn = draw(scenario, len(LAYERS), rng)
        order = np.argsort(drawn.letter, kind="stable")
        place = np.argsort([item.letter for item in of], kind="stable")
        base = rng.normal(size=scenario.n_items)
        for at, layer in enumerate(LAYERS):
            for strength, values in ((-1.0, drawn.negative), (1.0, drawn.positive)):
                shifted = base.copy()
                shifted[place] += values[at, order]
                fill(cube, "one", concept, layer, strength, shifted)
            fill(cube, "one", concept, layer, 0.0, base)
    cube["cell_status"][:] = STATUS["complete"]
    return cube


def headline(scenario: Steered, number: int) -> float:
    """Pairs that are said to steer, by all that lies between a cube and the count in a post."""
    cells = reduce_to_cells(sweep_of(scenario, number), n_resamples=20)
    found = counts_of_pairs(effects(study_of(cells))).set_index("statistic")["value"]
    return found["pairs that steer"]


def test_one_null_sweep_makes_no_headline_and_one_that_steers_does() -> None:
    assert headline(Steered("null", letter=1.0), 0) == 0
    assert headline(Steered("steered", content=1.0, letter=1.0), 0) == 6


@pytest.mark.slow
@pytest.mark.parametrize("letter", [0.0, 1.0], ids=["plain", "a letter is favoured"])
def test_null_sweeps_of_smollm2s_shape_make_no_headline(letter: float) -> None:
    """In at least 95% of 200. The sweeps are always the same ones: of a test whose error is 5%, as
    that of the 2,000 sweeps in `steering_rates` is, four in ten sets of 200 have more than ten."""
    n = sum(headline(Steered("null", letter=letter), number) > 0 for number in range(200))
    assert n <= 10


def test_sweeps_without_an_effect_make_few_headlines_and_strong_ones_all() -> None:
    """A hundred sweeps of two concepts: a nominal 5% with an error of 2%, and its power."""
    null, strong = (Steered("nothing", n_items=20), Steered("a lot", content=2.0, n_items=20))
    rng = stream("a hundred sweeps")
    said = {
        of.name: [said_to_steer(of, rng, n_concepts=2, n_layers=5) for _ in range(100)]
        for of in (null, strong)
    }
    assert np.any(said["nothing"], axis=1).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean(said["a lot"]) > 0.95


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_sweeps_have_the_truth_of_their_scenario(scenario: Steered) -> None:
    many = replace(scenario, n_items=40_000)
    drawn = draw(many, 12, stream("a"))
    a, b = drawn.shift[:, drawn.letter == "A"], drawn.shift[:, drawn.letter == "B"]
    assert a.shape[1] / 40_000 == pytest.approx(scenario.share_of_a)
    content, letter = (a.mean(axis=1) + b.mean(axis=1)) / 2, (a.mean(axis=1) - b.mean(axis=1)) / 2
    assert content.max() == pytest.approx(scenario.content, abs=0.06)
    np.testing.assert_allclose(letter, scenario.letter, atol=0.06)
    of_ranks = np.corrcoef(a)[0, 1]
    assert of_ranks == pytest.approx(scenario.neighbours, abs=0.05)
    if not scenario.long_tails:
        np.testing.assert_allclose(a.std(axis=1), 1, atol=0.03)
