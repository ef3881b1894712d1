import numpy as np
import pytest
import xarray as xr
from builders import study_of

from steercube.analysis.conclusions.averages import (
    AVERAGED,
    COMPLETE_CONCEPTS,
    COMPLETE_MODELS,
    EVERY_CONCEPT,
    EVERY_MODEL,
    concepts,
    depth,
    models,
)
from steercube.analysis.over_models.comparisons import depth_difference
from steercube.analysis.over_models.depth import model_depth, training_depth
from steercube.analysis.over_models.means import concept_mean, mean_over_models, model_mean
from steercube.estimate import Estimate


@pytest.fixture
def gap(six: xr.Dataset) -> xr.Dataset:
    """Cells of which one was never run."""
    part = six.copy(deep=True)
    at = {"model": "f", "concept": "three"}
    for name in ("selected_layer", "selected_estimate", "estimate"):
        part[name].loc[at] = np.nan
    return part


def test_models_are_averaged_over_their_own_and_over_complete_concepts(gap: xr.Dataset) -> None:
    study = study_of(gap)
    rows = {
        (row["model"], row["estimand"], row["concepts"]): (row, of) for row, of in models(study)
    }
    assert len(rows) == len(AVERAGED) * 2 * (6 + 2)
    row, of = rows["f", "delta", EVERY_CONCEPT]
    assert (row["training"], row["n_concepts"], row["n_params"]) == ("rl", 2, 235e9)
    assert of == model_mean(study, estimand="delta", model="f")
    row, of = rows["a", "delta", COMPLETE_CONCEPTS]
    assert row["n_concepts"] == 2
    assert of == model_mean(study, estimand="delta", model="a", concepts=["one", "two"])
    row, of = rows["mean of rl models", "cohens_d", EVERY_CONCEPT]
    assert row["n_concepts"] == 3
    assert same(of, mean_over_models(study, estimand="cohens_d", training="rl"))


def test_concepts_are_averaged_over_their_own_and_over_complete_models(gap: xr.Dataset) -> None:
    study = study_of(gap)
    rows = {tuple(row.values()): of for row, of in concepts(study)}
    assert len(rows) == len(AVERAGED) * 2 * 3
    of = rows["three", "delta", EVERY_MODEL, "mean"]
    assert of == concept_mean(study, estimand="delta", concept="three")
    assert of.n == 5
    five = list("abcde")
    of = rows["one", "delta", COMPLETE_MODELS, "mean"]
    assert of == concept_mean(study, estimand="delta", concept="one", models=five)


def test_depths_are_of_models_trainings_and_the_contrast(six: xr.Dataset) -> None:
    study = study_of(six)
    rows = {row["group"]: of for row, of in depth(study)}
    groups = [*"abcdef", "distilled models", "rl models"]
    assert list(rows) == [*groups, "rl minus distilled"]
    assert same(rows["a"], model_depth(study, model="a"))
    assert same(rows["rl models"], training_depth(study, training="rl"))
    assert same(rows["rl minus distilled"], depth_difference(study))
    assert [row["group"] for row, _ in depth(study_of(six, None))] == groups
    one_label = six.sel(model=list("abcd"), model_other=list("abcd"))
    assert [row["group"] for row, _ in depth(study_of(one_label))][-1] == "distilled models"


def same(one: Estimate, other: Estimate) -> bool:
    """Equal, also where a number is not known."""
    return repr(one) == repr(other)
