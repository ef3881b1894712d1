import numpy as np
import pytest
import xarray as xr
from builders import study_of

from steercube.analysis.conclusions.sensitivity import (
    headlines,
    headlines_of_concept,
    sensitivity,
    without,
)
from steercube.analysis.over_models.comparisons import depth_difference, training_gap


def test_everything_is_left_out_once(cells: xr.Dataset) -> None:
    left_out = [(kind, what) for kind, what, _ in without(study_of(cells))]
    assert left_out == [
        ("nothing", ""),
        *(("model", m) for m in ("small", "middle", "large")),
        *(("concept", c) for c in ("honesty", "humour")),
    ]


def test_invalid_items_are_left_out_where_there_are_any(study_cells: xr.Dataset) -> None:
    assert [kind for kind, _, _ in without(study_of(study_cells))].count("invalid items") == 1
    valid = study_of(study_cells).valid_items.cells
    d = valid["selected_estimate"].sel(estimand="cohens_d", model="14B")
    assert float(d.sel(concept="sycophancy")) == pytest.approx(1.163, abs=0.001)
    same = study_cells["selected_estimate"].sel(estimand="cohens_d", model="14B")
    assert float(d.sel(concept="corrigible")) == float(same.sel(concept="corrigible"))


def test_each_row_is_the_headline_of_the_rest(study_cells: xr.Dataset) -> None:
    rows = {
        (row["headline"], row["without"], row["left_out"]): estimate
        for row, estimate in sensitivity(study_of(study_cells))
    }
    others = [m for m in study_cells["model"].values if m != "8B"]
    rest = study_cells.sel(model=others, model_other=others)
    assert rows["training gap in cohens_d", "model", "8B"] == training_gap(
        study_of(rest), estimand="cohens_d"
    )
    assert rows["training gap in cohens_d", "model", "8B"].value == pytest.approx(0.149, abs=1e-3)
    assert rows["depth difference", "nothing", ""] == depth_difference(study_of(study_cells))


def test_a_headline_about_a_concept_skips_the_other_concepts(
    study_cells: xr.Dataset,
) -> None:
    about = set(headlines_of_concept(study_of(study_cells), "corrigible"))
    kinds = {r["without"] for r, _ in sensitivity(study_of(study_cells)) if r["headline"] in about}
    assert kinds == {"nothing", "model", "invalid items"}


def test_one_model_leaves_the_whole_alone(cells: xr.Dataset) -> None:
    one = cells.sel(model=["large"], model_other=["large"])
    rows = sensitivity(study_of(one))
    assert {row["without"] for row, _ in rows} == {"nothing", "concept"}
    gap = next(e for row, e in rows if row["headline"] == "training gap in cohens_d")
    assert np.isnan(gap.value)
    assert gap.reason
    assert set(headlines(study_of(one))) <= {row["headline"] for row, _ in rows}
