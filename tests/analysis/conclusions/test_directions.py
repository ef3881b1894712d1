import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ATTRIBUTES, make_cube, make_model, with_controls
from scipy import stats

from steercube.analysis.conclusions.directions import controls, letter, rank_p, ranks
from steercube.analysis.conclusions.effects import effects
from steercube.analysis.per_cell.reduce import cells
from steercube.analysis.view import Study
from steercube.contract import SCHEMA_VERSION
from steercube.cube import Cube, as_cube, grid_of
from steercube.measures import LOGIT_DIFF

FALSE_ALARM = 1e-4
"""Probability that a test of a uniform distribution fails though it is uniform."""


def test_the_rank_counts_the_vector_itself_and_ties_against_it() -> None:
    others = np.array([1.0, 2.0, 3.0])
    assert rank_p(4.0, others) == 1 / 4
    assert rank_p(3.0, others) == 2 / 4
    assert rank_p(0.0, others) == 1
    assert np.isnan(rank_p(np.nan, others))
    assert np.isnan(rank_p(1.0, np.array([])))


def with_family(own: xr.DataArray, family: dict[str, xr.DataArray], facts: xr.Dataset) -> Cube:
    """The logit differences of concepts' own vectors, and those of the directions of a family."""
    rows = rows_of(own)
    logits = rows["logit_diff"]
    rows = rows.assign(logprob_matching=logits.clip(upper=0) - 3)
    rows = rows.assign(logprob_other=-logits.clip(lower=0) - 3)
    others = pd.concat([rows_of(one).assign(direction=name) for name, one in family.items()])
    path = f"logit_diff/{next(iter(family)).partition('/')[0]}"
    grids = {"logit_diff": grid_of(rows, LOGIT_DIFF, facts=facts)}
    return Cube(
        grids | {path: grid_of(others, LOGIT_DIFF, facts=facts)},
        ATTRIBUTES | {"schema_version": SCHEMA_VERSION},
    )


def rows_of(values: xr.DataArray) -> pd.DataFrame:
    return values.rename("logit_diff").to_series().dropna().reset_index()


def null_cube(rng: np.random.Generator, *, k: int, n_concepts: int, own: float) -> Cube:
    """Concepts whose vector is one more of k random directions, plus `own` at every layer."""
    n_items = {f"c{i:02d}": 12 for i in range(n_concepts)}
    cube = make_cube(rng, models=(make_model("one"),), n_items=n_items, layers=(3, 4, 5))
    base = cube["logit_diff"].sel(strength=0.0, drop=True)
    of_cells = base.isel(sample=0, drop=True)
    effects = [of_cells.copy(data=rng.normal(size=of_cells.shape)) for _ in range(k + 1)]
    effects[0] = effects[0] + own
    first, *drawn = (base + effect * cube["strength"] for effect in effects)
    family = {f"random/{i}": one for i, one in enumerate(drawn)}
    return with_family(first, family, as_cube(cube).labels)


@pytest.mark.slow
def test_on_null_directions_the_rank_p_is_uniform() -> None:
    """The layer is selected by the largest effect, of every direction alike, among three.

    The counts of the k + 1 values are multinomial with equal shares; their chi-square statistic is
    compared with 20,000 draws of that distribution, so that the false-alarm rate is exact.
    """
    k, found = 4, []
    for seed in range(15):
        cube = null_cube(np.random.default_rng(seed), k=k, n_concepts=40, own=0.0)
        table = ranks(Study.of(cells(cube, n_resamples=10)))
        found.append(table[table["estimand"] == "delta"]["rank_p"])
    p = np.concatenate(found)
    assert len(p) == 600
    counts = np.bincount(np.rint(p * (k + 1)).astype(int) - 1, minlength=k + 1)
    expected = len(p) / (k + 1)
    draws = np.random.default_rng(0).multinomial(len(p), np.full(k + 1, 1 / (k + 1)), size=20_000)
    null = ((draws - expected) ** 2 / expected).sum(axis=1)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert (1 + (null >= statistic).sum()) / (1 + len(null)) > FALSE_ALARM
    # And in particular, no more of the smallest p than its level.
    assert stats.binomtest(int(counts[0]), len(p), 1 / (k + 1)).pvalue > FALSE_ALARM


def test_a_vector_that_moves_more_ranks_first() -> None:
    """The positive control of the null above."""
    cube = null_cube(np.random.default_rng(0), k=9, n_concepts=5, own=6.0)
    table = ranks(Study.of(cells(cube, n_resamples=10)))
    assert (table[table["estimand"] == "delta"]["rank_p"] == 0.1).all()
    assert (table["band_level"] == 0.8).all()


def test_all_choose_among_the_layers_that_all_have() -> None:
    """One direction's logits are not finite at a layer: it counts for none of them."""
    study = Study.of(cells(null_cube(np.random.default_rng(0), k=3, n_concepts=2, own=0.0),
                           n_resamples=10))  # fmt: skip
    changed = study.cells.copy(deep=True)
    lost = {"direction": "random/1", "concept": "c00", "layer": 4}
    changed["other_estimate"].loc[lost] = np.nan
    table = ranks(Study(changed)).set_index(["concept", "estimand"]).loc[("c00", "delta")]
    kept = study.cells["other_estimate"].sel(concept="c00", estimand="delta", layer=[3, 5])
    best = kept.max("layer").isel(model=0)
    assert table["own"] == pytest.approx(best.sel(direction="random/own").item())
    assert table["highest"] == pytest.approx(best.drop_sel(direction="random/own").max().item())
    assert table["n_directions"] == 3


def test_the_letters_direction_shows_its_push_and_not_the_concepts() -> None:
    """It adds 4 nats towards (A) at strength +1 and one layer; the concept's vector adds none."""
    rng = np.random.default_rng(0)
    cube = make_cube(rng, models=(make_model("one"),), layers=(3, 4, 5))
    values = cube["logit_diff"]
    towards_a = xr.where(cube["letter"] == "A", 1.0, -1.0).where(cube["letter"] != "")
    at = xr.where(cube["layer"] == 4, 1.0, 0.5)
    pushed = values.sel(strength=0.0, drop=True) + 4 * towards_a * at * cube["strength"]
    whole = with_family(values, {"letter": pushed.transpose(*values.dims)}, as_cube(cube).labels)
    table = letter(Study.of(cells(whole, n_resamples=10)))
    assert (table["layer"] == 4).all()
    np.testing.assert_allclose(table["letter_shift"], 8.0, atol=1e-4)
    assert (abs(table["own_letter_shift"]) < 1).all()


def test_controls_stand_beside_the_vector(rng: np.random.Generator) -> None:
    study = Study.of(cells(with_controls(make_cube(rng), rng), n_resamples=20))
    table, of_vector = controls(study), effects(study)
    assert set(table["direction"]) == {"concept", "random"}
    vector = table[table["direction"] == "concept"].reset_index()
    np.testing.assert_allclose(vector["best_delta"], of_vector["delta"])
    np.testing.assert_allclose(vector["delta_at_vectors_layer"], of_vector["delta"])
    assert (vector["best_layer"] == of_vector["layer"]).all()
    control = table[table["direction"] == "random"].reset_index()
    assert (control["best_delta"] >= control["delta_at_vectors_layer"]).all()
    assert (control["best_delta"] < vector["best_delta"] / 3).all()
