import numpy as np
import pandas as pd
import xarray as xr
from builders import study_of

from steercube.analysis.conclusions.counts import (
    about_concepts,
    about_models,
    counts,
    counts_of_claims,
    counts_of_pairs,
)
from steercube.analysis.conclusions.effects import effects
from steercube.analysis.conclusions.grades import CONFOUNDED, GRADES, SUPPORTED, UNDECIDED


def test_models_stand_in_order_of_size_with_what_was_run(study_cells: xr.Dataset) -> None:
    table = about_models(study_of(study_cells))
    assert table["n_params"].is_monotonic_increasing
    assert table["concepts_run"].tolist() == [6, 6, 6, 6, 6, 5]
    assert (table["layers_swept"] < table["n_layers"]).all()


def test_concepts_have_their_items_and_models(study_cells: xr.Dataset) -> None:
    table = about_concepts(study_of(study_cells)).set_index("concept")
    assert table.loc["sycophancy"].tolist() == [100, 87, 5]
    assert table.loc["corrigible"].tolist() == [40, 40, 6]


def test_counts_are_those_of_the_cells(cells: xr.Dataset, study_cells: xr.Dataset) -> None:
    found = counts(study_of(cells)).set_index("statistic")["value"]
    assert (found["models"], found["concepts"], found["pairs"]) == (3, 2, 6)
    assert (found["items"], found["fewest items"], found["most items"]) == (54, 24, 30)
    assert (found["distilled models"], found["rl models"]) == (2, 1)
    assert found["effects"] == int(cells["estimate"].sel(estimand="delta").notnull().sum())
    assert found["largest effect"] == float(study_of(cells).best("cohens_d").max())
    of_study = counts(study_of(study_cells)).set_index("statistic")["value"]
    assert (of_study["pairs"], of_study["pairs not run"], of_study["invalid items"]) == (35, 1, 13)


def test_pairs_are_counted_by_the_test_and_by_their_flags() -> None:
    table = pd.DataFrame(
        [
            ("yes", 0.01, "", "", "one item carries it"),
            ("yes", 0.04, "last swept, beside a gap", "", ""),
            ("no", 0.06, "last block", "steers the other way", "a few items carry it"),
            ("no", 0.9, "first swept", "moves more the other way", "one item carries it"),
            ("unknown", np.nan, "last block", "moves more the other way", ""),
            ("", np.nan, "", "", ""),
        ],
        columns=["steers", "p_steers_holm", "layer_flag", "direction_flag", "influence_flag"],
    )
    found = counts_of_pairs(table).set_index("statistic")["value"]
    assert found["pairs that steer"] == 2
    assert found["pairs: not tested for steering"] == 1
    assert found["smallest corrected p of steering"] == 0.01
    assert found["largest corrected p of steering"] == 0.9
    assert found["pairs with an open best layer"] == 2
    assert found["pairs: last block"] == 2
    assert (found["pairs: last swept"], found["pairs: beside a gap"]) == (1, 1)
    assert found["pairs: steers the other way"] == 1
    assert found["pairs: moves more the other way"] == 2
    assert found["pairs: one item carries it"] == 2
    assert found["pairs: a few items carry it"] == 1


def test_an_interval_above_zero_is_not_what_steers(cells: xr.Dataset) -> None:
    """All of these have one, whatever the samples say; the cells hold the samples' test."""
    above = cells.assign(selected_low=cells["selected_low"] * 0 + 0.001)
    weak = above.assign(steers_p=above["steers_p"] * 0 + 0.04)
    assert pairs_that_steer(weak) == 0
    strong = above.assign(steers_p=above["steers_p"] * 0 + 0.001)
    assert pairs_that_steer(strong) == 6


def pairs_that_steer(cells: xr.Dataset) -> float:
    found = counts_of_pairs(effects(study_of(cells))).set_index("statistic")["value"]
    return found["pairs that steer"]


def test_claims_are_counted_by_how_they_were_printed_and_by_their_grades() -> None:
    rows = [
        ("number", True, False, "reproduced", ""),
        ("number", True, True, "reproduced, but", UNDECIDED),
        ("number", False, True, "reproduced, but", SUPPORTED),
        ("approximate", True, False, "reproduced", ""),
        ("qualitative", True, True, "reproduced", CONFOUNDED),
        ("qualitative", True, True, "reproduced, but", UNDECIDED),
    ]
    columns = ["printed_as", "matches", "is_interpretive", "verdict", "grade"]
    found = counts_of_claims(pd.DataFrame(rows, columns=columns)).set_index("statistic")["value"]
    by_grade = {f"interpretive claims: {name}": 0 for name in GRADES}
    by_grade |= {f"interpretive claims: {name}": 1 for name in (SUPPORTED, CONFOUNDED)}
    assert found.to_dict() == {
        "claims": 6,
        "printed numbers": 3,
        "printed numbers met to the digit": 2,
        "approximate numbers": 1,
        "approximate numbers met within a unit": 1,
        "qualitative claims": 2,
        "interpretive claims": 4,
        "interpretive claims that are supported": 2,
        "claims reproduced without a remark": 3,
        **by_grade | {f"interpretive claims: {UNDECIDED}": 2},
    }


def test_responses_are_counted_once_or_not_at_all(swept: xr.Dataset) -> None:
    """`n_responses` counts an unsteered response at every layer, so it cannot be summed."""
    shared = xr.full_like(swept["generation_rate"], 10.0)
    without = counts(study_of(swept.assign(n_responses=shared))).set_index("statistic")["value"]
    assert "responses" not in without
    assert without["pairs with generated answers"] == 6
    once = swept.assign(n_distinct_responses=shared.isel(layer=0, strength=0, drop=True))
    assert counts(study_of(once)).set_index("statistic")["value"]["responses"] == 60
