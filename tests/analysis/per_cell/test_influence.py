import numpy as np
import pytest
import xarray as xr

from steercube.analysis.per_cell.estimands import Samples, cohens_d
from steercube.analysis.per_cell.influence import leave_one_out, most_influential

STRENGTHS = np.array([-1.0, 1.0])


def make_samples(rng: np.random.Generator, n: int = 40) -> Samples:
    values = rng.normal(size=(2, n)) + STRENGTHS[:, None]
    return Samples(values, STRENGTHS, np.full(n, "A"))


def d_of(samples: Samples) -> float:
    return float(cohens_d(samples, np.ones(len(samples.letter))).value)


def without(samples: Samples, item: int) -> Samples:
    values = np.delete(samples.values, item, axis=1)
    return Samples(values, STRENGTHS, samples.letter[1:])


@pytest.mark.parametrize("n", [12, 1003])
def test_leaving_out_an_item_is_the_effect_of_the_others(n: int, rng: np.random.Generator) -> None:
    samples = make_samples(rng, n)
    found = leave_one_out(samples)
    for item in (0, 5, n - 1):
        assert found[item] == pytest.approx(d_of(without(samples, item)))


def test_the_most_influential_item_is_the_outlier(rng: np.random.Generator) -> None:
    samples = make_samples(rng)
    samples.values[:, 7] *= 400
    found = most_influential(samples)
    assert found is not None
    assert found.item == 7
    assert found.change == pytest.approx(d_of(without(samples, 7)) - d_of(samples))


def test_items_that_are_all_alike_have_none() -> None:
    assert most_influential(Samples(np.ones((2, 12)), STRENGTHS, np.full(12, "A"))) is None


def test_an_item_without_which_nothing_varies_is_passed_over() -> None:
    values = np.stack([np.zeros(12), np.ones(12)])
    values[:, 3] = 5
    found = most_influential(Samples(values, STRENGTHS, np.full(12, "A")))
    assert found is not None
    assert found.item != 3


def test_cells_hold_the_id_of_an_item_of_the_concept(cube: xr.Dataset, cells: xr.Dataset) -> None:
    for concept in cells["concept"].values:
        ids = set(cube["item_id"].sel(concept=concept).values.tolist()) - {""}
        assert set(cells["selected_influential_item"].sel(concept=concept).values.tolist()) <= ids
    assert cells["selected_influence"].notnull().all()
