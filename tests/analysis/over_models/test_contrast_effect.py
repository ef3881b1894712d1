from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import TRAINING, make_effects, study_of

from steercube.analysis.over_models.cell_effects import TERMS, CellEffects
from steercube.analysis.over_models.comparisons import permutation_p
from steercube.analysis.over_models.contrast_effect import (
    CONCEPTS,
    EXACT,
    ITEMS,
    MODELS,
    PERMUTATION,
    adjusted_means,
    by_method,
    contrast_effects,
    covariates,
    difference,
    permutation,
)

BOTH = covariates(TRAINING, TERMS)


@pytest.fixture
def effects(rng: np.random.Generator) -> CellEffects:
    return make_effects(rng, training=-0.3)


def ones(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(table.shape[-2]), np.ones(table.shape[-1])


def test_the_difference_is_the_mean_over_concepts() -> None:
    table = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, np.nan]])
    high = np.array([False, False, True])
    assert difference(table, high, *ones(table)) == pytest.approx(5 - 2)
    table[2, 1] = 10.0
    assert difference(table, high, *ones(table)) == pytest.approx((3 + 7) / 2)
    twice = difference(table, high, np.array([2.0, 0.0, 1.0]), np.array([1.0, 3.0]))
    assert twice == pytest.approx((4 * 1 + 8 * 3) / 4)


def test_concept_difficulty_does_not_enter_through_a_missing_cell() -> None:
    """The model that lacks the hard concept is not the better one for it."""
    table = np.array([[1.0, 0.1], [1.0, 0.1], [1.0, np.nan]])
    assert difference(table, np.array([False, False, True]), *ones(table)) == pytest.approx(0)
    assert adjusted_means(table) == pytest.approx([0.55, 0.55, 0.55])
    full = np.random.default_rng(0).normal(size=(4, 3))
    assert adjusted_means(full) == pytest.approx(full.mean(axis=1))


def test_the_permutation_is_that_of_the_models_means(rng: np.random.Generator) -> None:
    table = rng.normal(size=(6, 4))
    high = np.arange(6) >= 4
    p, floor = permutation(table, high, rng)
    assert p == pytest.approx(permutation_p(table.mean(axis=1), high))
    assert floor == pytest.approx(1 / 15)
    assert permutation(table, np.arange(6) >= 3, rng)[1] == pytest.approx(2 / 20)


def test_many_models_are_permuted_at_random(rng: np.random.Generator) -> None:
    high = np.arange(24) >= 12
    table = rng.normal(size=(24, 2)) + 2 * high[:, None]
    p, floor = permutation(table, high, rng)
    assert p == floor == pytest.approx(1 / 20_000)
    assert permutation(rng.normal(size=(24, 2)), high, rng)[0] > 0.01


def test_the_more_is_random_the_wider_the_interval(effects: CellEffects) -> None:
    rows = by_method(effects, contrast=TRAINING, level=0.95, seed=1)
    width = {r.random_effects: r.high - r.low for r in rows if r.method == "bootstrap"}
    assert width[ITEMS] < width[CONCEPTS] < width[MODELS]
    estimates = {r.estimate for r in rows if r.method == "bootstrap"}
    assert len(estimates) == 1


def test_the_items_interval_has_the_errors_of_the_items(effects: CellEffects) -> None:
    """Its half width is 1.96 standard errors of the weighted sum of cells."""
    found = next(
        r
        for r in by_method(effects, contrast=TRAINING, level=0.95, seed=1)
        if r.random_effects == ITEMS
    )
    high = effects.predictors["contrast"] > 0
    weight = np.zeros(len(effects.value))
    for c in range(5):
        at = effects.concept == c
        for side, sign in ((high, 1), (~high, -1)):
            inside = at & side[effects.model]
            weight[inside] = sign / inside.sum() / 5
    assert found.estimate == pytest.approx(weight @ effects.value)
    se = np.sqrt(weight @ effects.covariance @ weight)
    assert found.high - found.low == pytest.approx(2 * 1.96 * se, rel=0.05)


def test_all_methods_agree_on_a_large_balanced_study(rng: np.random.Generator) -> None:
    effects = make_effects(rng, n_models=10, n_concepts=9, training=-1.0, sd_model=0.1)
    rows = [
        r for r in by_method(effects, contrast=TRAINING, level=0.95, seed=1) if np.isfinite(r.low)
    ]
    alone = [r for r in rows if r.covariates != BOTH]
    assert len(alone) == 8
    assert np.ptp([r.estimate for r in alone]) < 0.06
    assert all(r.high < 0 for r in alone)


def test_one_training_says_why(effects: CellEffects) -> None:
    lacks = "needs models of both trainings"
    one = replace(effects, predictors={"scale": effects.predictors["scale"]}, lacks_contrast=lacks)
    for row in by_method(one, contrast=TRAINING, level=0.95, seed=1):
        assert np.isnan(row.estimate)
        assert row.reason == lacks


def test_two_models_have_no_interval_over_models(effects: CellEffects) -> None:
    two = effects.only(np.flatnonzero(np.isin(effects.model, (0, 5))))
    two = replace(
        two,
        model=(two.model > 0).astype(int),
        models=("a", "f"),
        predictors={"contrast": np.array([-0.5, 0.5])},
    )
    rows = {
        (r.method, r.random_effects): r
        for r in by_method(two, contrast=TRAINING, level=0.95, seed=1)
    }
    assert np.isfinite(rows["bootstrap", ITEMS].low)
    assert np.isnan(rows["t over model means", "models"].low)
    assert "2 ran" in rows[EXACT, MODELS].reason
    assert rows[PERMUTATION, "labels of models"].p_value == 1


@pytest.mark.parametrize(
    ("n_high", "said"), [(1, "alone"), (2, "understates how models differ"), (3, "")]
)
def test_models_of_a_training_are_resampled_where_there_are_enough(
    n_high: int, said: str, effects: CellEffects
) -> None:
    x = np.array([0.0] * (6 - n_high) + [1.0] * n_high)
    of = replace(effects, predictors={"contrast": x - x.mean()})
    rows = {
        r.random_effects: r
        for r in by_method(of, contrast=TRAINING, level=0.95, seed=1)
        if r.method == "bootstrap"
    }
    models = rows[MODELS]
    assert np.isfinite(models.estimate)
    if said == "alone":
        assert np.isnan(models.low)
        assert "one label has one model" in models.reason
    else:
        assert models.high - models.low > rows[CONCEPTS].high - rows[CONCEPTS].low
        assert models.diagnostics.startswith(said)
        assert bool(models.diagnostics) == bool(said)


def test_the_studys_items_would_claim_what_its_models_do_not(
    study_cells: xr.Dataset, study_tables: dict[str, pd.DataFrame]
) -> None:
    table = study_tables["contrast_effect"]
    of = table[table["outcome"] == "cohens_d"].set_index(["method", "random_effects", "covariates"])
    assert of.loc[("bootstrap", ITEMS, "training"), "high"] < 0
    primary = of.loc[(EXACT, MODELS, BOTH)]
    assert primary["low"] < 0 < primary["high"]
    assert of.loc[(PERMUTATION, "labels of models", "training"), "p_value"] > 1 / 15


@pytest.mark.slow
def test_fits_of_items_come_from_the_cells(study_cells: xr.Dataset) -> None:
    rows = {r.method: r for r in contrast_effects(study_of(study_cells)) if r.outcome == "cohens_d"}
    crossed = study_cells.sel(item_fit="REML, items crossed", item_term="training")
    assert rows["REML, items crossed"].estimate == float(crossed["item_fit_value"])
    without = {r.method: r for r in contrast_effects(study_of(study_cells.drop_dims("item_fit")))}
    assert "makes it from the cube" in without["items"].reason
    fewer = [m for m in study_cells["model"].values if m != "8B"]
    others = study_cells.sel(model=fewer, model_other=fewer)
    of_others = {r.method: r for r in contrast_effects(study_of(others))}
    assert "of other models" in of_others["items"].reason


def test_every_fit_of_the_primary_model_agrees_on_the_study(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    table = study_tables["contrast_effect"]
    of = table[(table["outcome"] == "cohens_d") & (table["covariates"] == BOTH)].set_index("method")
    fits = ["REML, cells", "REML, items crossed", "MixedLM, without items"]
    fits += ["MixedLM, items crossed", "NUTS, items"]
    assert of.loc[fits, "agrees"].tolist() == ["yes"] * 5
    assert (of.loc[fits, "reason"] == "").all()


def test_trainings_that_share_no_concept_are_not_compared(effects: CellEffects) -> None:
    high = effects.predictors["contrast"] > 0
    disjoint = effects.only(np.flatnonzero(high[effects.model] == (effects.concept < 2)))
    rows = by_method(disjoint, contrast=TRAINING, level=0.95, seed=1)
    assert "no concept was run by models of both" in rows[0].reason
    assert rows[0].method == "bootstrap"


def test_ways_without_a_difference_are_no_ways(rng: np.random.Generator) -> None:
    """A and B ran one concept, C and D the other: two of six labellings compare nothing."""
    table = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, 3.0], [np.nan, 5.0]])
    p, floor = permutation(table, np.array([False, True, False, True]), rng)
    assert (p, floor) == (0.5, 0.5)
