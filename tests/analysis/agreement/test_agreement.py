import numpy as np
import pytest
import xarray as xr
from builders import MODELS, make_cube, reduce_to_cells, study_of
from scipy import stats
from scipy.optimize import brentq

from steercube.analysis.agreement.agreement import (
    _z_of_models,
    agreement_against_effect,
    agreement_by_blocks,
    agreement_effect_correlation,
    correlations,
    curve_agreement,
    disattenuated,
    matched_minus_mismatched,
    model_agreement,
    pooled_agreement,
    reliabilities,
    repeated_measures,
    response_agreement,
    shift_test,
)
from steercube.analysis.agreement.curves import scaled
from steercube.analysis.agreement.generation import best_generation, layer_curves, shaped_curves

LAYERS = tuple(range(1, 8))


def test_the_published_measure_pools_scaled_layers(swept: xr.Dataset) -> None:
    study = study_of(swept)
    curves = layer_curves(study, concept="humour", models=None)
    logit = np.concatenate([scaled(pair[0]) for pair in curves.values()])
    generation = np.concatenate([scaled(pair[1]) for pair in curves.values()])
    expected = stats.pearsonr(logit, generation).statistic
    assert pooled_agreement(study, concept="humour").value == pytest.approx(expected)


def test_the_pooled_measures_interval_is_the_jackknifes_over_models(swept: xr.Dataset) -> None:
    study = study_of(swept)
    estimate = pooled_agreement(study, concept="humour")
    names = [m.name for m in MODELS]
    rest = {name: [n for n in names if n != name] for name in names}
    left_out = [pooled_agreement(study, concept="humour", models=m).value for m in rest.values()]
    pseudo = 3 * np.arctanh(estimate.value) - 2 * np.arctanh(left_out)
    low, high = stats.t.interval(0.95, 2, pseudo.mean(), stats.sem(pseudo))
    assert (estimate.low, estimate.high) == pytest.approx((np.tanh(low), np.tanh(high)))


def test_agreement_is_found_where_it_is_and_not_where_it_is_not(swept: xr.Dataset) -> None:
    study = study_of(swept)
    assert model_agreement(study, concept="honesty").value > 0.99
    humour = model_agreement(study, concept="humour")
    assert not humour.excludes_zero


def test_the_interval_is_hartung_and_knapps(swept: xr.Dataset) -> None:
    """Paule & Mandel's variance by its defining equation, then the interval by its formula."""
    study = study_of(swept)
    names, z, error = _z_of_models(study, "humour", shaped_curves(study, concept="humour"), False)

    def weights(tau2: float) -> np.ndarray:
        return 1 / (error**2 + tau2)

    def excess(tau2: float) -> float:
        w = weights(tau2)
        return float((w * (z - (w @ z) / w.sum()) ** 2).sum() - (len(z) - 1))

    tau2 = brentq(excess, 0, 100) if excess(0) > 0 else 0.0
    w = weights(tau2)
    mean = w @ z / w.sum()
    scale = max(1.0, (w * (z - mean) ** 2).sum() / (len(z) - 1))
    half = stats.t.ppf(0.975, len(z) - 1) * np.sqrt(scale / w.sum())
    found = model_agreement(study, concept="humour")
    expected = np.tanh([mean, mean - half, mean + half])
    assert (found.value, found.low, found.high) == pytest.approx(expected, rel=1e-4)
    assert found.n == len(names) == 3


def test_shifts_have_a_row_of_their_own(swept: xr.Dataset) -> None:
    study = study_of(swept)
    found = shift_test(study, concept="humour")
    r = list(correlations(study, concept="humour").values())
    assert found.value == pytest.approx(np.tanh(np.arctanh(r).mean()))
    assert found.p_value > 0.05
    assert "share" in found.reason
    alone = shift_test(study, concept="honesty", models=["small"])
    assert alone.p_value >= 1 / 7
    assert "at least 0.14" in alone.reason


def test_one_model_has_the_interval_of_its_own_curves(swept: xr.Dataset) -> None:
    study = study_of(swept)
    alone = model_agreement(study, concept="humour", models=["large"])
    assert alone == curve_agreement(study, concept="humour", model="large")
    assert alone.over == "blocks of layers"
    assert alone.low < alone.value < alone.high
    by_blocks = agreement_by_blocks(study, concept="humour", models=["large"])
    assert np.isnan(by_blocks.value)


def test_a_model_left_out_leaves_the_others_as_they_were(swept: xr.Dataset) -> None:
    rest = swept.sel(model=["small", "large"], model_other=["small", "large"])
    for model in ("small", "large"):
        assert curve_agreement(study_of(rest), concept="humour", model=model) == curve_agreement(
            study_of(swept), concept="humour", model=model
        )


def test_blocks_and_models_widen_the_interval(swept: xr.Dataset) -> None:
    """Wider than Student's t of the models' z alone, whose layers are taken for all there are."""
    study = study_of(swept)
    found = agreement_by_blocks(study, concept="humour")
    z = np.arctanh(list(correlations(study, concept="humour").values()))
    assert found.value == pytest.approx(np.tanh(z.mean()))
    low, high = np.tanh(stats.t.interval(0.95, 2, z.mean(), stats.sem(z)))
    assert found.low < low < high < found.high


def test_another_concepts_logits_do_worse_where_there_is_something_to_tell(
    swept: xr.Dataset,
) -> None:
    """Honesty's generations follow its own logits; shifted along the layers, nobody's."""
    rate = swept["generation_rate"]
    told = swept["estimate"].sel(estimand="delta").transpose("model", "concept", "layer")
    apart = told.copy(data=told.values)
    apart.loc[{"concept": "humour"}] = np.roll(told.sel(concept="humour").values, 3, axis=-1)
    cells = swept.assign(estimate=swept["estimate"].copy(deep=True), generation_rate=rate)
    cells["estimate"].loc[{"estimand": "delta"}] = apart.transpose(
        *cells["estimate"].sel(estimand="delta").dims
    )
    assert matched_minus_mismatched(study_of(cells), concept="honesty").low > 0
    same = swept.assign(estimate=swept["estimate"].copy(deep=True))
    same["estimate"].loc[{"concept": "humour"}] = swept["estimate"].sel(concept="honesty").values
    assert matched_minus_mismatched(study_of(same), concept="honesty").value == pytest.approx(0)
    one = swept.sel(concept=["honesty"])
    assert "another concept" in matched_minus_mismatched(study_of(one), concept="honesty").reason


def test_disattenuation_divides_by_the_reliabilities(swept: xr.Dataset) -> None:
    study = study_of(swept)
    own = curve_agreement(study, concept="humour", model="large")
    reliable = reliabilities(study, concept="humour", model="large")
    assert reliable["logit"].over == "items (split-half)"
    assert reliable["generation"].over == "second differences"
    known = xr.full_like(swept["logit_reliability"], 0.64)
    found = disattenuated(
        study_of(swept.assign(logit_reliability=known)), concept="honesty", model="large"
    )
    roughness = reliabilities(study, concept="honesty", model="large")["generation"].value
    assert found.value == pytest.approx(1 / np.sqrt(0.64 * roughness), rel=2e-3)
    assert own.low < own.value < own.high
    nothing = xr.full_like(swept["logit_reliability"], 0.0)
    none = disattenuated(
        study_of(swept.assign(logit_reliability=nothing)), concept="honesty", model="large"
    )
    assert "nothing of it repeats" in none.reason
    smooth = disattenuated(study, concept="honesty", model="large")
    assert smooth.value >= 0.99


def test_repeated_measures_r_is_that_of_deviations_from_each_models_mean(
    swept: xr.Dataset,
) -> None:
    study = study_of(swept)
    curves = layer_curves(study, concept="humour", models=None).values()
    logit, generation = (np.concatenate([p[i] - p[i].mean() for p in curves]) for i in (0, 1))
    found = repeated_measures(study, concept="humour")
    assert found.value == pytest.approx(stats.pearsonr(logit, generation).statistic)
    assert "not independent" in found.reason
    assert found.high - found.low < 1.2


def test_agreement_and_effect_correlate_over_models_and_concepts() -> None:
    cells = _rising()
    found = agreement_effect_correlation(study_of(cells), estimand="cohens_d")
    assert found.value > 0.5
    assert found.n == 9
    assert found.over == "models and concepts"
    assert found.low < found.value < found.high


def test_a_flat_curve_has_no_correlation_but_a_maximum(swept: xr.Dataset) -> None:
    flat = swept["generation_rate"].where(swept["model"] != "small", 0.5)
    study = study_of(swept.assign(generation_rate=flat))
    assert list(correlations(study, concept="humour")) == ["middle", "large"]
    assert best_generation(study, concept="humour").span[0] == 0


def test_no_generation_no_agreement(cells: xr.Dataset) -> None:
    for statistic in (pooled_agreement, model_agreement, best_generation):
        estimate = statistic(study_of(cells), concept="humour")
        assert np.isnan(estimate.value)
        assert estimate.reason
    assert agreement_against_effect(study_of(cells), estimand="cohens_d").reason


def _rising() -> xr.Dataset:
    """Three concepts whose generations follow the logits the more, the larger their effect."""
    rng = np.random.default_rng(2)
    n_items = {"one": 20, "two": 20, "three": 20}
    cube = make_cube(rng, layers=LAYERS, n_items=n_items)
    delta = cube["logit_diff"].sel(strength=1.0) - cube["logit_diff"].sel(strength=-1.0)
    curve = delta.mean("sample")
    noise = curve.copy(data=rng.normal(size=curve.shape))
    share = xr.DataArray([0.0, 0.5, 1.0], coords={"concept": list(n_items)}, dims="concept")
    rate = (share * curve / 9 + (1 - share) * noise / 9).clip(-0.45, 0.45)
    sides = [(0.5 + s * rate).assign_coords(strength=s) for s in (-1.0, 0.0, 1.0)]
    cube["generation_rate"] = xr.concat(
        sides, dim="strength", coords="minimal", compat="override"
    ).transpose("model", "concept", "layer", "strength")
    cells = reduce_to_cells(cube, n_resamples=50)
    rising = cells["selected_estimate"].copy(deep=True)
    rising.loc["cohens_d"] = np.tile([0.1, 0.5, 0.9], (3, 1))
    return cells.assign(selected_estimate=rising)


def test_agreement_against_effect_is_a_slope_a_model() -> None:
    cells = _rising()
    found = agreement_against_effect(study_of(cells), estimand="cohens_d")
    assert found.value > 0.3
    assert found.p_value in (pytest.approx(1 / 6), pytest.approx(2 / 6))
    assert found.over == "models, these concepts"
    falling = cells.assign(selected_estimate=-cells["selected_estimate"])
    assert agreement_against_effect(study_of(falling), estimand="cohens_d").value == pytest.approx(
        -found.value
    )


def test_a_slope_over_concepts_that_mean_nothing_is_rarely_significant() -> None:
    """Ten draws of effects unrelated to r: p over three concepts cannot be below 1/6."""
    cells, rng = _rising(), np.random.default_rng(4)
    for _ in range(10):
        effects = cells["selected_estimate"].copy(deep=True)
        effects.loc["cohens_d"] = np.tile(rng.normal(size=3), (3, 1))
        found = agreement_against_effect(
            study_of(cells.assign(selected_estimate=effects)), estimand="cohens_d"
        )
        assert found.p_value >= 1 / 6 - 1e-12


def test_r_and_its_p_are_of_the_items_that_answered(rng: np.random.Generator) -> None:
    """Half of the items answered: every statistic of the curves is theirs, not that of all."""
    cube = make_cube(rng, layers=LAYERS)
    asked = cube["sample"] % 2 == 0
    size = cube["logit_diff"]
    chance = 1 / (1 + np.exp(-size + size.mean("sample")))
    match = size.copy(data=(rng.random(size.shape) < chance).astype("float32"))
    match = match.where(asked & size.notnull())
    answered = cube.assign(
        generation_match=match,
        generation_valid=match.notnull().where(asked & size.notnull()).astype("float32"),
    )
    study = study_of(reduce_to_cells(answered, n_resamples=100))
    at = {"model": "middle", "concept": "humour"}
    of_asked = size.sel(at).isel(sample=np.flatnonzero(asked)).dropna("sample", how="all")
    logit = (of_asked.sel(strength=1.0) - of_asked.sel(strength=-1.0)).mean("sample")
    said = match.sel(at).isel(sample=np.flatnonzero(asked))
    generation = said.sel(strength=1.0).mean("sample") - said.sel(strength=-1.0).mean("sample")
    r = stats.pearsonr(logit, generation).statistic
    found = response_agreement(study, concept="humour", model="middle")
    assert found.value == pytest.approx(r, abs=1e-5)
    assert found.n == 15
    assert correlations(study, concept="humour")["middle"] == pytest.approx(r, abs=1e-5)
    assert shift_test(study, concept="humour", models=["middle"]).value == pytest.approx(
        r, abs=1e-5
    )
    pooled = pooled_agreement(study, concept="humour", models=["middle"])
    assert pooled.value == pytest.approx(r, abs=1e-5)
