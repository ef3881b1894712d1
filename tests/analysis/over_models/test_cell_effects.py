from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import TRAINING, make_effects, study_of

from steercube.analysis.over_models.cell_effects import (
    OUTCOMES,
    TERMS,
    CellEffects,
    cell_effects,
    predictors_of,
    primary_terms,
    usable_outcomes,
    why_not,
)
from steercube.analysis.over_models.posterior import fit


@pytest.fixture
def effects(rng: np.random.Generator) -> CellEffects:
    return make_effects(rng)


def test_cell_effects_are_those_of_the_cells(study_cells: xr.Dataset) -> None:
    effects = cell_effects(study_of(study_cells))
    assert len(effects.value) == 35
    assert effects.models == ("4B", "8B", "14B", "30B-A3B", "32B", "235B-A22B")
    at = np.flatnonzero((effects.model == 2) & (effects.concept == 5))[0]
    cell = study_cells.sel(model="14B", concept="sycophancy", estimand="cohens_d")
    corrected = float(cell["selected_estimate"] - cell["selected_optimism"])
    assert effects.value[at] == pytest.approx(corrected)
    same = effects.concept[:, None] == effects.concept
    assert (effects.covariance[~same] == 0).all()
    assert (effects.covariance[same] != 0).all()
    assert effects.predictors["contrast"].tolist() == pytest.approx([-1 / 3] * 4 + [2 / 3] * 2)


def test_what_cannot_be_separated_says_why(effects: CellEffects, six: xr.Dataset) -> None:
    three = effects.only(np.flatnonzero(effects.model >= 3))
    assert why_not(three, ("contrast",)) == ""
    assert "need 4 models; 3 ran" in why_not(three, TERMS)
    assert primary_terms(three) == ("contrast",)
    study = study_of(six).among(models=list("abcd"))
    one_training = cell_effects(study)
    assert why_not(one_training, TERMS) == study.needs_contrast
    assert primary_terms(one_training) == ("scale",)
    alike = replace(effects, predictors={"contrast": effects.predictors["contrast"]})
    assert "unlike size" in why_not(alike, TERMS)
    twin = effects.predictors["contrast"]
    assert "contrast and scale cannot be separated" in why_not(
        replace(effects, predictors={"contrast": twin, "scale": 2 * twin}), TERMS
    )
    nothing = effects.only(np.array([], int))
    assert "no cell has a usable effect" in why_not(nothing, ())


def test_models_of_the_same_values_are_named_where_nothing_tells_them_apart(
    rng: np.random.Generator,
) -> None:
    """With one concept; with more, sd_cell does, and the fit goes on."""
    one = make_effects(rng, n_models=5, n_concepts=1)
    assert not why_not(one, ("scale",))
    index = [0, 0, 1, 2, 3][: len(one.value)]
    twins = replace(one, value=one.value[index], covariance=one.covariance[np.ix_(index, index)])
    assert why_not(twins, ("scale",)) == "a and b hold the same values: leave one of them out"
    many = make_effects(rng, n_models=5, n_concepts=3)
    assert not why_not(many, ("scale",))


def test_raw_effects_take_the_unit_and_the_rope_of_the_measures_record(
    study_cells: xr.Dataset,
) -> None:
    cells = study_cells.copy()
    cells["estimate"] = cells["estimate"].assign_attrs(prior_unit=2.0, rope=0.3)
    raw = cell_effects(study_of(cells), "delta")
    assert (raw.unit, raw.rope) == (2.0, 0.3)
    standardised = cell_effects(study_of(cells), "cohens_d")
    assert (standardised.unit, standardised.rope) == (1.0, 0.2)


def test_raw_effects_of_any_size_have_a_unit_of_their_own(study_cells: xr.Dataset) -> None:
    """Logits twenty times as large: the same posterior, twenty times as large."""
    larger = study_cells.assign(
        selected_estimate=20 * study_cells["selected_estimate"],
        selected_optimism=20 * study_cells["selected_optimism"],
        selected_covariance=400 * study_cells["selected_covariance"],
    )
    one, other = (cell_effects(study_of(c), "delta") for c in (study_cells, larger))
    assert one.unit == pytest.approx(np.sqrt(np.mean(one.value**2)))
    assert one.rope == other.rope == pytest.approx(0.2 * np.pi / np.sqrt(3))
    assert fit(other).quantile("contrast", 0.1) == pytest.approx(
        20 * fit(one).quantile("contrast", 0.1)
    )


def test_depths_have_an_error_of_at_least_their_step(study_cells: xr.Dataset) -> None:
    study = study_of(study_cells)
    effects = cell_effects(study, "best_depth")
    layers = study_cells["n_layers"].sel(model=list(effects.models)).values
    assert (np.diag(effects.covariance) >= 0.99 / layers[effects.model] ** 2 / 12).all()
    assert np.isfinite(cell_effects(study, "depth_centroid").value).all()


def test_a_cell_without_an_error_is_left_out_and_named(six: xr.Dataset) -> None:
    covariance = six["selected_covariance"].copy(deep=True)
    covariance.loc[{"concept": "two", "model": "b", "model_other": "b"}] = np.nan
    effects = cell_effects(study_of(six.assign(selected_covariance=covariance)))
    assert effects.left_out == ("b on two",)
    assert len(effects.value) == 17


def test_a_model_without_a_usable_cell_is_no_model(six: xr.Dataset) -> None:
    optimism = six["selected_optimism"].copy(deep=True)
    optimism.loc[{"model": "b"}] = np.nan
    effects = cell_effects(study_of(six.assign(selected_optimism=optimism)))
    assert effects.models == tuple("acdef")
    assert len(effects.left_out) == 3
    assert effects.predictors["contrast"].mean() == pytest.approx(0)


def test_other_trainings_are_left_out_of_the_comparison(six: xr.Dataset) -> None:
    training = six["training"].copy(data=["base", *six["training"].values[1:]])
    effects = cell_effects(study_of(six.assign_coords(training=training)))
    assert effects.models == tuple("bcdef")
    assert effects.others == ("a",)
    assert "contrast" in effects.predictors


def test_cells_of_an_earlier_kind_say_what_they_lack(six: xr.Dataset) -> None:
    study = study_of(six.drop_vars("selected_depth_covariance"))
    effects = cell_effects(study, "best_depth")
    assert effects.n_models == effects.n_concepts == len(effects.value) == 0
    assert "make them again from their cube" in why_not(effects, ())
    assert why_not(effects, TERMS) == effects.reason
    assert why_not(cell_effects(study, "depth_centroid"), TERMS) == ""


def test_without_a_contrast_every_model_is_there_and_size_alone(six: xr.Dataset) -> None:
    effects = cell_effects(study_of(six, None))
    assert effects.models == tuple("abcdef")
    assert list(effects.predictors) == ["scale"]
    assert "--contrast" in why_not(effects, ("contrast",))
    assert primary_terms(effects) == ("scale",)


def test_the_contrast_names_the_number_that_is_held_fixed(six: xr.Dataset) -> None:
    blocks = np.log10(six["n_layers"].values)
    by_contrast = cell_effects(study_of(six, replace(TRAINING, holding="n_layers")))
    asked = cell_effects(study_of(six), holding="n_layers")
    for effects in (by_contrast, asked):
        assert effects.predictors["scale"] == pytest.approx(blocks - blocks.mean())
    size = np.log10(six["n_params"].values)
    assert cell_effects(study_of(six)).predictors["scale"] == pytest.approx(size - size.mean())


def test_a_term_that_no_two_models_differ_in_is_no_term(six: xr.Dataset) -> None:
    study = study_of(six)
    assert set(predictors_of(study, list("abef"), "n_params")) == set(TERMS)
    assert set(predictors_of(study, list("ef"), "n_params")) == {"scale"}
    assert set(predictors_of(study, list("ab"), "n_layers")) == set()


def test_every_outcome_comes_with_what_stands_against_it(six: xr.Dataset) -> None:
    study = study_of(six.drop_vars("selected_depth_covariance"))
    found = {outcome: reason for outcome, _, reason in usable_outcomes(study, TERMS)}
    assert list(found) == list(OUTCOMES)
    assert [outcome for outcome, reason in found.items() if reason] == ["best_depth"]
