import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import MODELS, reduce_to_cells, study_of
from scipy import stats

from steercube.analysis.agreement.generation import (
    UPPER_BOUND,
    best_generation,
    best_generation_excess,
    best_generation_layer,
    expected_maximum,
    generation,
    generation_delta,
    is_counted,
    layer_curves,
    wilson,
)


def answered(cube: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """The cube with an answer to every item, four of five valid; no strength changes any."""
    shape = cube["logit_diff"].where(cube["logit_diff"].isnull(), 0)
    valid = shape.copy(data=rng.random(shape.shape) < 0.8).where(shape.notnull()).astype(float)
    match = shape.copy(data=rng.random(shape.shape) < 0.6).where(valid == 1).astype(float)
    return cube.assign(generation_valid=valid, generation_match=match)


def test_curves_hold_the_layers_with_both_measures(swept: xr.Dataset) -> None:
    curves = layer_curves(study_of(swept), concept="honesty", models=None)
    assert list(curves) == [m.name for m in MODELS]
    assert len(curves["small"][0]) == 7
    rate = swept["generation_rate"].where(swept["layer"] != 3)
    fewer = layer_curves(
        study_of(swept.assign(generation_rate=rate)), concept="honesty", models=["small"]
    )
    assert list(fewer) == ["small"]
    assert len(fewer["small"][0]) == 6


def test_without_a_baseline_the_null_is_unknown(swept: xr.Dataset) -> None:
    two = swept.sel(strength=[-1.0, 1.0], strength_other=[-1.0, 1.0])
    assert np.isnan(expected_maximum(study_of(two), concept="humour", model="large"))
    assert np.isfinite(best_generation(study_of(two), concept="humour").value)


def test_the_expected_maximum_is_the_mean_of_simulated_maxima(swept: xr.Dataset) -> None:
    """20,000 maxima of 7 differences of two baselines drawn at random, without replacement."""
    rng = np.random.default_rng(0)
    baseline = swept["generation_rate"].sel(model="large", concept="humour", strength=0.0).values
    pairs = np.array(
        [rng.permuted(np.tile(baseline, (20_000, 1)), axis=1)[:, :2] for _ in range(7)]
    )
    maxima = (pairs[..., 0] - pairs[..., 1]).max(axis=0)
    exact = expected_maximum(study_of(swept), concept="humour", model="large")
    assert exact == pytest.approx(maxima.mean(), abs=4 * stats.sem(maxima))


def test_a_baseline_without_noise_expects_no_gain(swept: xr.Dataset) -> None:
    rate = swept["generation_rate"].where(swept["strength"] != 0, 0.5)
    cells = swept.assign(generation_rate=rate)
    assert expected_maximum(study_of(cells), concept="humour", model="large") == 0


def test_a_rate_says_how_many_answers_are_behind_it(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    cube = answered(cube, rng)
    table = generation(study_of(reduce_to_cells(cube, n_resamples=50)))
    assert set(table["source"]) == {"counted"}
    row = table.query("model == 'middle' and concept == 'humour' and layer == 5 and strength == 1")
    at = {"model": "middle", "concept": "humour", "layer": 5, "strength": 1.0}
    valid, match = cube["generation_valid"].sel(at), cube["generation_match"].sel(at)
    assert row["n_responses"].item() == 30
    assert row["n_valid"].item() == valid.sum()
    assert row["match_rate"].item() == pytest.approx(float(match.sum() / valid.sum()))
    low, high = stats.binomtest(int(match.sum()), int(valid.sum())).proportion_ci(method="wilson")
    assert (row["match_rate_low"].item(), row["match_rate_high"].item()) == pytest.approx(
        (low, high)
    )


def test_a_published_rate_has_no_counts(swept: xr.Dataset) -> None:
    table = generation(study_of(swept))
    assert set(table["source"]) == {"published"}
    assert table["n_responses"].eq(20).all()
    assert table["n_valid"].eq(18).all()
    assert table["match_rate_low"].isna().all()


def test_what_a_maximum_has_beyond_its_null(swept: xr.Dataset) -> None:
    study = study_of(swept)
    best = best_generation(study, concept="humour")
    excess = best_generation_excess(study, concept="humour")
    assert excess.value == pytest.approx(best.value - best.expected_under_null)
    assert excess.low < excess.value < excess.high
    assert "without any effect" in best.reason
    assert excess.reason == UPPER_BOUND


def test_rates_and_responses_stand_side_by_side(study_tables: dict[str, pd.DataFrame]) -> None:
    table = study_tables["generation"]
    both = table.query("model == '32B' and concept == 'self_awareness' and layer == 40")
    assert sorted(both["source"]) == ["counted"] * 3 + ["published"] * 3
    counted = both[both["source"] == "counted"]
    assert counted["n_responses"].tolist() == [100, 100, 100]
    inside = counted["match_rate"].between(counted["match_rate_low"], counted["match_rate_high"])
    assert inside.all()


def test_wilson_is_scipys_and_undefined_without_answers() -> None:
    low, high = wilson(np.array([0.0, 7.0, 10.0, 0.0]), np.array([10.0, 10.0, 10.0, 0.0]), 0.95)
    for i, count in enumerate((0, 7, 10)):
        expected = stats.binomtest(count, 10).proportion_ci(method="wilson")
        assert (low[i], high[i]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan([low[3], high[3]]).all()


def test_where_rates_are_counted_the_items_give_the_null(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    cells = reduce_to_cells(answered(cube, rng), n_resamples=50)
    study = study_of(cells)
    assert is_counted(study, "small", "humour")
    null = expected_maximum(study, concept="humour", model="small")
    assert null == float(cells["best_response_null"].sel(model="small", concept="humour"))
    best = best_generation(study, concept="humour")
    curve = generation_delta(cells).sel(concept="humour")
    layer = best_generation_layer(study, concept="humour", model="small").value
    assert layer == float(cells["best_response_layer"].sel(model="small", concept="humour"))
    assert float(curve.sel(model="small", layer=layer)) == float(curve.sel(model="small").max())
    assert best.value == pytest.approx(float(curve.max("layer").mean()))
    assert np.isfinite([best.expected_under_null, best.corrected]).all()
    # From every answer the null is no bound.
    excess = best_generation_excess(study, concept="humour")
    assert np.isfinite(excess.value)
    assert UPPER_BOUND not in excess.reason
    # Nothing was steered: the maximum is about what exchanged answers give, and held out it is 0.
    assert abs(best.value - best.expected_under_null) < 0.15
    assert abs(best.corrected) < 0.2
