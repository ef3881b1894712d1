import numpy as np
import pytest
import xarray as xr
from builders import study_of
from scipy import stats

from steercube.analysis.over_models.questions import (
    at_best_layer,
    difficulty,
    extraction,
    model_deviations,
    relative_covariance,
    relative_to_others,
)
from steercube.estimate import Estimate


def of_concept(cells: xr.Dataset, concept: str) -> dict[str, Estimate]:
    found = list(difficulty(study_of(cells)))
    return {labels["statistic"]: e for labels, e in found if labels["concept"] == concept}


def with_property(six: xr.Dataset, values: np.ndarray) -> xr.Dataset:
    """Cells whose vectors have the property `values` (model, concept) at every layer."""
    wide = six["estimate"].sel(estimand="delta", drop=True) * 0 + xr.DataArray(
        values, dims=("model", "concept")
    )
    return six.assign(split_half_cosine=wide)


def test_an_odd_model_is_told_and_alike_models_are_not(six: xr.Dataset) -> None:
    effects = six["selected_estimate"] * 0 + 1.0
    rng = np.random.default_rng(1)
    effects = effects + 0.02 * rng.normal(size=effects.shape)
    optimism = six["selected_optimism"] * 0
    exact = six.assign(
        selected_estimate=effects,
        selected_optimism=optimism,
        selected_covariance=six["selected_covariance"] * 1e-3,
    )
    assert all(row["low"] < 0 < row["high"] for row in model_deviations(study_of(exact)))
    odd = six["model"].values[1]
    lower = effects - 0.6 * (effects["model"] == odd)
    study = study_of(exact.assign(selected_estimate=lower))
    rows = {r["model"]: r for r in model_deviations(study)}
    assert rows[odd]["high"] < 0
    assert rows[odd]["probability_negative"] > 0.97


def test_one_model_deviates_from_nothing(cells: xr.Dataset) -> None:
    one = cells.sel(model=["small"], model_other=["small"])
    assert "2 models" in model_deviations(study_of(one))[0]["reason"]


def test_d_is_the_shift_over_the_spread_relative_to_the_others_too(six: xr.Dataset) -> None:
    found = of_concept(six, "two")
    d, shift, sd = (
        found[f"{name}, relative to the others"].value
        for name in ("Cohen's d", "delta", "sd of items")
    )
    assert d == pytest.approx(shift / sd)


def test_ratios_ignore_each_models_scale(six: xr.Dataset) -> None:
    table = study_of(six).best("delta")
    scaled = table * xr.DataArray(np.arange(1.0, 7.0), dims="model")
    one, other = (relative_to_others(t, "one", 0.95) for t in (table, scaled))
    assert one.low == pytest.approx(other.low)
    assert relative_to_others(table * 0 + 2, "one", 0.95).value == pytest.approx(1.0)


def test_a_ratio_to_a_negative_effect_has_its_reason(six: xr.Dataset) -> None:
    found = relative_to_others(-study_of(six).best("delta"), "one", 0.95)
    assert np.isnan(found.value)
    assert "positive" in found.reason


def test_the_share_of_invalid_items_is_that_of_the_cells(six: xr.Dataset) -> None:
    fewer = six.assign_coords(n_valid_items=("concept", six["n_items"].values // 2))
    assert of_concept(six, "one")["share of invalid items"].value == 0
    assert of_concept(fewer, "one")["share of invalid items"].value == 0.5


def test_a_property_that_is_the_effect_itself_goes_with_it(six: xr.Dataset) -> None:
    study = study_of(six)
    effects = study.best("cohens_d").sel(model=six["model"])
    known = with_property(six, effects.values)
    assert at_best_layer(study_of(known), "split_half_cosine").values == pytest.approx(
        study.best("cohens_d").values
    )


def rho_of_four(x: np.ndarray, six: xr.Dataset) -> Estimate:
    """rho over four concepts of a property, of cells with a fourth concept that is a copy."""
    fourth = six.sel(concept=["one"]).assign_coords(concept=["four"])
    four = xr.concat([six, fourth], dim="concept", data_vars="minimal", coords="minimal",
                     compat="override", join="outer")  # fmt: skip
    effect = np.array([0.2, 0.5, 0.9, 1.3])
    shape = four["selected_estimate"] * 0
    four = four.assign(selected_estimate=shape + xr.DataArray(effect, dims="concept"))
    four = with_property(four, np.tile(x, (6, 1)))
    found = {(k["property"], k["statistic"]): e for k, e in extraction(study_of(four))}
    return found["split_half_cosine", "rho over concepts"]


@pytest.mark.parametrize(("x", "p"), [([1, 2, 3, 4], 2 / 24), ([2, 4, 1, 3], 1.0)],
                         ids=["goes with d", "does not"])  # fmt: skip
def test_rho_and_its_exact_permutation(x: list[int], p: float, six: xr.Dataset) -> None:
    found = rho_of_four(np.array(x, float), six)
    assert found.value == pytest.approx(stats.spearmanr(x, [1, 2, 3, 4]).statistic)
    assert found.p_value == pytest.approx(p)


def test_cells_without_vectors_say_so(six: xr.Dataset) -> None:
    assert all("no properties" in e.reason for _, e in extraction(study_of(six)))


def test_error_that_models_share_widens_the_ratio(six: xr.Dataset) -> None:
    study = study_of(six)
    table = study.best("delta")
    held = relative_to_others(table, "one", 0.95)
    covariance = relative_covariance(study, "delta") * 0 + 0.04
    shared = relative_to_others(table, "one", 0.95, covariance)
    # 0.04 of the concept, and two others' mean has (0.04 + 0.04) / 4.
    extra = stats.norm.ppf(0.975) ** 2 * (0.04 + 0.08 / 4)
    halves = [np.log(e.high / e.low) / 2 for e in (held, shared)]
    assert halves[1] ** 2 - halves[0] ** 2 == pytest.approx(extra)
    assert shared.value == held.value
    assert (held.over, shared.over) == ("models, these items", "models")


def test_the_covariance_of_logs_is_the_relative_one(six: xr.Dataset) -> None:
    study = study_of(six)
    found = relative_covariance(study, "delta").sel(concept="two", model="a", model_other="b")
    effects = study.best("delta").sel(concept="two")
    of = six["selected_covariance"].sel(estimand="delta", concept="two", model="a", model_other="b")
    product = effects.sel(model="a") * effects.sel(model="b")
    assert float(found) == pytest.approx(float(of) / float(product))


def test_a_property_that_does_not_vary_has_no_correlation(six: xr.Dataset) -> None:
    found = rho_of_four(np.ones(4), six)
    assert np.isnan(found.value)
    assert "differ" in found.reason
