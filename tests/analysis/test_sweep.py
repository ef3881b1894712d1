import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.averages import best_effects
from steercube.analysis.sweep import about_concepts, about_models, counts, counts_of_claims


def test_models_stand_in_order_of_size_with_what_was_run(study_cells: xr.Dataset) -> None:
    table = about_models(study_cells)
    assert table["n_params"].is_monotonic_increasing
    assert table["concepts_run"].tolist() == [6, 6, 6, 6, 6, 5]
    assert (table["layers_swept"] < table["n_layers"]).all()


def test_concepts_have_their_items_and_models(study_cells: xr.Dataset) -> None:
    table = about_concepts(study_cells).set_index("concept")
    assert table.loc["sycophancy"].tolist() == [100, 87, 5]
    assert table.loc["corrigible"].tolist() == [40, 40, 6]


def test_counts_are_those_of_the_cells(cells: xr.Dataset, study_cells: xr.Dataset) -> None:
    found = counts(cells).set_index("statistic")["value"]
    assert (found["models"], found["concepts"], found["pairs"]) == (3, 2, 6)
    assert (found["items"], found["fewest items"], found["most items"]) == (54, 24, 30)
    assert (found["distilled models"], found["rl models"]) == (2, 1)
    assert found["effects"] == int(cells["estimate"].sel(estimand="delta").notnull().sum())
    assert found["largest effect"] == float(best_effects(cells, "cohens_d").max())
    of_study = counts(study_cells).set_index("statistic")["value"]
    assert (of_study["pairs"], of_study["pairs not run"], of_study["invalid items"]) == (35, 1, 13)


def test_pairs_above_zero_are_counted_by_their_interval(cells: xr.Dataset) -> None:
    def above(part: xr.Dataset) -> float:
        return counts(part).set_index("statistic")["value"]["pairs with an interval above zero"]

    assert above(cells.assign(selected_low=cells["selected_low"] * 0 + 1)) == 6
    assert above(cells.assign(selected_low=cells["selected_low"] * 0 - 1)) == 0


def test_claims_are_counted() -> None:
    claims = pd.DataFrame(
        {
            "matches": [True, True, False],
            "verdict": ["reproduced", "reproduced, but", "not reproduced"],
        }
    )
    found = counts_of_claims(claims)["value"]
    np.testing.assert_array_equal(found, [3, 2, 1])
