from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import study_of

from steercube.analysis.over_models.cell_effects import cell_effects
from steercube.analysis.over_models.confounders import (
    DEPTH_OF_BEST,
    confounders,
    holding,
    rivals,
    separates,
)
from steercube.analysis.over_models.posterior import PRIOR, fit


def test_labels_are_separated_where_their_ranges_do_not_overlap() -> None:
    high = np.array([False, False, True, True])
    assert separates(np.array([1.0, 2.0, 3.0, 4.0]), high)
    assert separates(-np.array([1.0, 2.0, 3.0, 4.0]), high)
    assert not separates(np.array([1.0, 3.0, 2.0, 4.0]), high)
    assert not separates(np.array([1.0, 2.0, 2.0, 4.0]), high)


def test_rivals_are_correlated_with_the_label(six: xr.Dataset) -> None:
    study = study_of(six)
    models = cell_effects(study).models
    found = {rival.name: rival for rival in rivals(study, models)}
    size = np.log10(study.facts("n_params", models))
    expected = np.corrcoef(size, study.is_high(models))[0, 1]
    assert found["size"].correlation == pytest.approx(expected)
    assert DEPTH_OF_BEST in found
    assert DEPTH_OF_BEST not in {r.name for r in rivals(study, models, depth=False)}


def test_a_rival_that_does_not_vary_is_none(six: xr.Dataset) -> None:
    flat = six.assign_coords(n_layers=("model", np.full(6, 40)))
    names = {r.name for r in rivals(study_of(flat), cell_effects(study_of(flat)).models)}
    assert "number of blocks" not in names
    assert "size" in names


def test_size_held_fixed_is_the_primary_fit_but_for_a_wider_prior(study_cells: xr.Dataset) -> None:
    study = study_of(study_cells)
    table = pd.DataFrame(confounders(study)).set_index(["outcome", "held"])
    effects = cell_effects(study)
    sd = float(effects.predictors["scale"].std())
    prior = PRIOR.scaled("scale", 1 / sd)
    low, median, high = fit(effects, prior=prior).interval("contrast", 0.95)
    row = table.loc["cohens_d", "size"]
    assert row[["low", "estimate", "high"]].tolist() == pytest.approx([low, median, high])
    alone = table.loc["cohens_d", "nothing"]
    ratio = (high - low) / (alone["high"] - alone["low"])
    assert row["width_ratio"] == pytest.approx(ratio)


def test_held_fixed_the_cause_takes_the_difference_with_it(six: xr.Dataset) -> None:
    """Effects that only blocks make differ are the label's until blocks are held fixed."""
    blocks = np.log10([30.0, 60.0, 38.0, 34.0, 62.0, 90.0])
    effects = cell_effects(study_of(six))
    rng = np.random.default_rng(0)
    value = 2 * blocks[effects.model] + 0.01 * rng.normal(size=len(effects.value))
    small = 1e-4 * np.eye(len(value))
    caused = replace(effects, value=value, covariance=small)
    low, alone, high = fit(caused, terms=("contrast",)).interval("contrast", 0.95)
    held = fit(holding(caused, blocks)).interval("contrast", 0.95)
    assert alone > 0.3
    assert held[0] < 0 < held[2]
    assert abs(held[1]) < 0.1 * alone
    assert held[2] - held[0] < high - low


def test_without_both_labels_there_is_a_reason(six: xr.Dataset) -> None:
    one = six.sel(model=list("abcd"), model_other=list("abcd"))
    table = pd.DataFrame(confounders(study_of(one)))
    assert (table["held"] == "nothing").all()
    assert table["reason"].str.contains("needs models of").all()
