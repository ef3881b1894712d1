from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from scipy import stats

from steercube.collect import next_token
from steercube.collect.hooks import Cell
from steercube.collect.next_token import NEXT_TOKEN, NextToken, read
from steercube.collect.plan import POSITIONS
from steercube.collect.sweep import sweep
from steercube.cube import open_cube
from steercube.measures import Measure

N_PROMPTS, COPIES, VOCABULARY = 3, 4, 300


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(COPIES * N_PROMPTS, VOCABULARY, generator=generator)


@pytest.fixture
def answers(rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.permutation(VOCABULARY)[:2] for _ in range(N_PROMPTS)])


def values_of(name: str, logits: torch.Tensor, answers: np.ndarray) -> np.ndarray:
    found = read(logits, answers, NEXT_TOKEN)[1]
    return found[..., [one.measure.name for one in NEXT_TOKEN].index(name)]


def test_each_measure_is_its_textbook_formula(logits: torch.Tensor, answers: np.ndarray) -> None:
    p = logits.double().softmax(-1).numpy().reshape(COPIES, N_PROMPTS, -1)
    found = values_of("kl_unsteered", logits, answers)
    np.testing.assert_allclose(found, stats.entropy(p, p[:1], axis=-1), rtol=1e-4, atol=1e-6)
    found = values_of("entropy", logits, answers)
    np.testing.assert_allclose(found, stats.entropy(p, axis=-1), rtol=1e-5)
    mass = np.take_along_axis(p, np.tile(answers, (COPIES, 1, 1)), axis=-1).sum(-1)
    np.testing.assert_allclose(values_of("answer_mass", logits, answers), mass, rtol=1e-5)


def test_an_unsteered_row_is_at_no_distance_and_no_row_is_closer(
    logits: torch.Tensor, answers: np.ndarray
) -> None:
    found = values_of("kl_unsteered", logits, answers)
    assert (found[0] == 0).all()
    assert (found[1:] > 0.1).all()


def test_words_that_cannot_occur_add_nothing(logits: torch.Tensor, answers: np.ndarray) -> None:
    masked = torch.cat([logits, torch.full((len(logits), 5), -torch.inf)], dim=1)
    for one in NEXT_TOKEN:
        found = values_of(one.measure.name, masked, answers)
        np.testing.assert_allclose(found, values_of(one.measure.name, logits, answers), rtol=1e-5)


def test_a_model_that_fails_gives_nan_and_not_a_number(
    logits: torch.Tensor, answers: np.ndarray
) -> None:
    broken = logits.clone()
    broken[N_PROMPTS] = torch.nan
    for one in NEXT_TOKEN:
        found = values_of(one.measure.name, broken, answers)
        assert np.isnan(found[1, 0])
        assert np.isfinite(np.delete(found.ravel(), N_PROMPTS)).all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_passes_and_batches_change_no_measure(positions: str, rng: np.random.Generator) -> None:
    decoder, prompts = tiny.decoder(), tiny.prompts(rng)
    answers = rng.integers(0, 300, (len(prompts), 2))
    generator = torch.Generator().manual_seed(1)
    cells = [Cell(layer, 1.0, torch.randn(tiny.HIDDEN, generator=generator)) for layer in range(5)]
    many, few = (
        sweep(
            decoder, prompts, answers, cells,
            positions=positions, max_rows=rows, measured=NEXT_TOKEN,
        ).values
        for rows in (100, 4)
    )  # fmt: skip
    np.testing.assert_allclose(many, few, atol=1e-4)
    assert (many[1:, :, 0] > 1e-3).all()


@pytest.mark.slow
def test_one_more_measure_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest probability of any token: collected, saved and shown without another change."""
    largest = NextToken(
        Measure("largest_probability", words="probability of the likeliest token"),
        lambda rows: rows.p.amax(-1),
    )
    monkeypatch.setattr(next_token, "NEXT_TOKEN", [*NEXT_TOKEN, largest])
    monkeypatch.setattr("steercube.collect.logits.NEXT_TOKEN", [*NEXT_TOKEN, largest])
    cube = open_cube(tiny.collected(tmp_path))
    values = cube["largest_probability"]["largest_probability"]
    assert ((values > 0) & (values <= 1)).all()
    entropy = cube["entropy"]["entropy"].sel(strength=2.0)
    assert np.corrcoef(values.sel(strength=2.0).values.ravel(), entropy.values.ravel())[0, 1] < -0.5
    assert "largest_probability" in str(cube)
