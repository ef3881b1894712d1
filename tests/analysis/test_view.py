import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import xarray as xr
from builders import TRAINING, study_of

from steercube.analysis.over_models.cell_effects import cell_effects
from steercube.analysis.view import Study, kept, where_recorded
from steercube.cells import REASONS
from steercube.contrast import Contrast
from steercube.estimate import Estimate
from steercube.streams import stream

calls: list[tuple[object, ...]] = []
"""What `counted` was computed for in a test."""


@kept
def counted(study: Study, *names: object, models: Sequence[str] | None = None) -> int:
    """A number of its own each time that it is computed."""
    calls.append((*names, models))
    return len(calls)


@pytest.fixture
def study(cells: xr.Dataset) -> Study:
    calls.clear()
    return study_of(cells)


def unrun(cells: xr.Dataset, model: str, *concepts: str) -> xr.Dataset:
    """The cells as if a model had never been swept on these concepts."""
    hit = (cells["model"] == model) & cells["concept"].isin(concepts)
    names = ("selected_layer", "selected_estimate", "selected_optimism")
    return cells.assign({name: cells[name].where(~hit) for name in names})


def test_models_stand_in_order_of_size(cells: xr.Dataset) -> None:
    shuffled = cells.isel(model=[2, 0, 1])
    assert study_of(shuffled).models == ["small", "middle", "large"]


def test_a_model_without_a_sweep_is_not_counted(cells: xr.Dataset) -> None:
    none = unrun(cells, "middle", "humour", "honesty")
    assert study_of(none).models == ["small", "large"]


def test_best_effects_are_those_of_the_cells(study: Study) -> None:
    table = study.best("delta", concepts=["humour", "no such concept"])
    assert table.dims == ("model", "concept")
    expected = study.cells["selected_estimate"].sel(estimand="delta", concept=["humour"])
    assert table.values == pytest.approx(expected.transpose("model", "concept").values)


def test_the_optimism_of_best_effects_is_in_their_order(cells: xr.Dataset) -> None:
    study = study_of(cells.isel(model=[2, 0, 1]))
    table = study.best("cohens_d", models=["large", "small"], of="selected_optimism")
    assert table["model"].values.tolist() == ["small", "large"]
    for model in ("small", "large"):
        for concept in study.concepts:
            at = {"model": model, "concept": concept}
            expected = cells["selected_optimism"].sel(at | {"estimand": "cohens_d"})
            assert float(table.sel(at)) == float(expected)


def test_complete_parts(cells: xr.Dataset) -> None:
    gap = study_of(unrun(cells, "large", "humour"))
    assert gap.complete_concepts() == ["honesty"]
    assert gap.complete_models() == ["small", "middle"]
    assert gap.complete_models(["honesty"]) == ["small", "middle", "large"]


def test_facts_are_those_of_the_models_named_or_of_all_that_were_swept(cells: xr.Dataset) -> None:
    study = study_of(unrun(cells, "small", "humour", "honesty"))
    assert study.facts("n_layers").tolist() == [10, 12]
    assert study.facts("n_layers", ["large", "small"]).tolist() == [12, 8]
    assert study.is_high(["large", "middle"]).tolist() == [True, False]


def test_models_of_a_third_label_are_not_compared(six: xr.Dataset) -> None:
    labels = ["base", "distilled", "base", "distilled", "rl", "rl"]
    study = study_of(six.assign_coords(training=("model", labels)))
    assert study.has_contrast
    assert study.compared == list("bdef")
    assert study.models == list("abcdef")
    assert cell_effects(study).others == ("a", "c")


def test_without_both_labels_every_model_is_there_and_what_is_needed_is_said(
    six: xr.Dataset,
) -> None:
    lacking = study_of(six, Contrast("training", "base", "rl"))
    none = study_of(six, None)
    for study in (lacking, none):
        assert not study.has_contrast
        assert study.compared == study.models == list("abcdef")
    assert lacking.needs_contrast == "needs models of training 'base' and of training 'rl'"
    assert "--contrast" in none.needs_contrast
    assert study_of(six, Contrast("architecture", "dense", "moe")).has_contrast


def test_a_lacking_estimand_is_told_from_one_that_is_undefined(study: Study) -> None:
    reason = study.cells["reason"].copy(deep=True)
    reason.loc[{"estimand": "within_letter_d"}] = REASONS["not_recorded"]
    reason.loc[{"estimand": "cohens_d", "model": "small"}] = REASONS["not_recorded"]
    old = study_of(study.cells.assign(reason=reason))
    assert "these cells hold no within_letter_d" in old.lacks("within_letter_d")
    assert "no_such_estimand" in old.lacks("no_such_estimand")
    assert old.lacks("cohens_d") == old.lacks("delta") == ""

    @where_recorded
    def one(study: Study, *, estimand: str) -> Estimate:
        return Estimate(1.0)

    assert one(old, estimand="delta") == Estimate(1.0)
    assert one(old, estimand="within_letter_d").reason == old.lacks("within_letter_d")


def test_streams_have_the_seed_of_the_cells(cells: xr.Dataset) -> None:
    study = study_of(cells.assign_attrs(seed=7, confidence_level=0.9))
    assert study.stream("a").random() == stream("a", seed=7).random()
    assert study.level == 0.9


def test_what_is_kept_is_computed_once_for_each_of_its_arguments(study: Study) -> None:
    assert counted(study, "a") == counted(study, "a") == 1
    assert counted(study, "b") == 2
    assert counted(study, "a", models=["small"]) == 3
    assert calls == [("a", None), ("b", None), ("a", ["small"])]
    other = study_of(study.cells)
    assert counted(other, "a") == 4
    assert counted(study, "a") == 1


def test_lists_and_tuples_are_the_same_argument(study: Study) -> None:
    of_list = counted(study, ["a", ["b"]], models=["small", "large"])
    assert counted(study, ("a", ("b",)), models=("small", "large")) == of_list
    assert counted(study, ("a", ("b",)), models=("large", "small")) != of_list


def test_two_kept_functions_do_not_share(study: Study) -> None:
    @kept
    def name(study: Study, model: str) -> str:
        return model

    assert (name(study, "small"), counted(study, "small")) == ("small", 1)
    assert name.__name__ == "name"


def test_parts_are_kept_and_keep_what_is_computed_of_them(study: Study) -> None:
    part = study.without(model="small")
    assert part.models == ["middle", "large"]
    assert part.contrast is study.contrast
    assert study.without(model="small") is part
    assert study.among(models=("middle", "large")) is part
    assert study.without(model="large") is not part
    one = study.without(concept="humour")
    assert one.concepts == ["honesty"]
    assert study.among(concepts=["honesty"]) is one
    both = study.among(models=["middle", "large"], concepts=["honesty"])
    assert both not in (part, one)
    assert counted(part, "a") == counted(study.without(model="small"), "a")
    assert counted(study, "a") != counted(part, "a")


def test_no_concept_is_another_part_than_every_concept(study: Study) -> None:
    assert study.among(concepts=[]).concepts == []
    assert study.among().concepts == study.concepts


def test_a_part_has_the_effects_of_its_cells(study: Study) -> None:
    part = study.among(models=["large", "small"], concepts=["humour"])
    whole = study.best("cohens_d", models=["small", "large"], concepts=["humour"])
    xr.testing.assert_equal(part.best("cohens_d"), whole)
    expected = study.cells["selected_covariance"].sel(
        concept="humour", model=["small", "large"], model_other=["small", "large"]
    )
    found = part.cells["selected_covariance"].sel(
        concept="humour", model=["small", "large"], model_other=["small", "large"]
    )
    np.testing.assert_array_equal(found.values, expected.values)


def test_what_was_kept_stays_behind_in_another_process(study: Study) -> None:
    first = counted(study, "a")
    study.without(model="small")
    sent = pickle.loads(pickle.dumps(study))
    assert counted(sent, "a") != first == counted(study, "a")
    assert sent.contrast == TRAINING
    xr.testing.assert_identical(sent.cells, study.cells)
    bare = Study(study.cells, study.contrast)
    assert len(pickle.dumps(study)) == len(pickle.dumps(bare))


def test_valid_items_are_those_of_the_cells_where_some_are_invalid(study: Study) -> None:
    assert not study.some_items_are_invalid
    xr.testing.assert_equal(study.valid_items.best("delta"), study.best("delta"))
    some = study.cells.assign_coords(n_valid_items=study.cells["n_items"] - [0, 3])
    fewer = study_of(some.assign(valid_selected_estimate=some["selected_estimate"] + 1))
    assert fewer.some_items_are_invalid
    assert fewer.valid_items is fewer.valid_items
    xr.testing.assert_allclose(fewer.valid_items.best("delta"), fewer.best("delta") + 1)
    assert (fewer.valid_items.cells["n_items"] == some["n_valid_items"]).all()
