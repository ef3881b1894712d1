from dataclasses import replace

import numpy as np
import pytest
from builders import make_effects

from steercube.analysis.over_models.cell_effects import TERMS, CellEffects
from steercube.analysis.over_models.gram import blocks_of, columns, grams, integrate_models

SD_MODEL, SD_CONCEPT, SD_CELL = np.array([0.0, 0.4]), np.array([0.0, 0.3, 5.0]), np.array([0.1, 2])


@pytest.fixture
def effects(rng: np.random.Generator) -> CellEffects:
    return make_effects(rng)


def covariance_of(effects: CellEffects, model: float, concept: float, cell: float) -> np.ndarray:
    """V of all cells, written out."""
    of_model = model**2 * np.equal.outer(effects.model, effects.model)
    of_concept = concept**2 * np.equal.outer(effects.concept, effects.concept)
    return effects.covariance + of_model + of_concept + cell**2 * np.eye(len(effects.value))


def test_the_blocks_add_up_to_the_inverse_of_all_cells(effects: CellEffects) -> None:
    w = columns(effects, TERMS)
    gram, log_det = grams(blocks_of(effects, w), SD_CONCEPT, SD_CELL)
    assert gram.shape == (3, 2, 10, 10)
    for at in np.ndindex(log_det.shape):
        v = covariance_of(effects, 0.0, SD_CONCEPT[at[0]], SD_CELL[at[1]])
        np.testing.assert_allclose(gram[at], w.T @ np.linalg.solve(v, w), rtol=1e-8, atol=1e-8)
        assert log_det[at] == pytest.approx(np.linalg.slogdet(v)[1])


def test_without_the_models_levels_it_is_that_of_the_whole_covariance(effects: CellEffects) -> None:
    every = grams(blocks_of(effects, columns(effects, TERMS)), SD_CONCEPT, SD_CELL)
    found = integrate_models(*every, SD_MODEL, n_slopes=3)
    w = np.column_stack([effects.design(TERMS), effects.value])
    for at in np.ndindex(found.log_det.shape):
        v = covariance_of(effects, SD_MODEL[at[0]], SD_CONCEPT[at[1]], SD_CELL[at[2]])
        np.testing.assert_allclose(
            found.gram[at], w.T @ np.linalg.solve(v, w), rtol=1e-8, atol=1e-8
        )
        assert found.log_det[at] == pytest.approx(np.linalg.slogdet(v)[1])


def test_cells_without_any_error_need_an_sd(effects: CellEffects) -> None:
    exact = replace(effects, covariance=np.zeros_like(effects.covariance))
    blocks = blocks_of(exact, columns(exact, TERMS))
    assert np.isfinite(grams(blocks, SD_CONCEPT, SD_CELL)[1]).all()
    with pytest.raises(np.linalg.LinAlgError, match="without any error"):
        grams(blocks, SD_CONCEPT, np.array([0.0, 0.1]))
