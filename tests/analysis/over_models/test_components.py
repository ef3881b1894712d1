import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import study_of

from steercube.analysis.over_models.cell_effects import cell_effects
from steercube.analysis.over_models.components import variance_components


def test_shares_add_up_and_methods_agree(study_tables: dict[str, pd.DataFrame]) -> None:
    table = study_tables["variance_components"]
    exact = table[table["method"] == "hierarchical, exact"]
    assert exact.groupby("outcome")["share"].sum().to_numpy() == pytest.approx(1)
    of = table[table["outcome"] == "cohens_d"].set_index(["component", "method"])
    for name in ("sd_model", "sd_concept", "sd_cell"):
        reml, posterior = of.loc[(name, "REML, cells")], of.loc[(name, "hierarchical, exact")]
        assert posterior["low"] < reml["estimate"] < posterior["high"]
        of_items = of.loc[(name, "REML, items crossed"), "estimate"]
        assert of_items == pytest.approx(reml["estimate"], rel=0.15)


def test_the_items_share_is_their_covariances(six: xr.Dataset) -> None:
    study = study_of(six)
    table = pd.DataFrame(variance_components(study))
    row = table[(table["outcome"] == "cohens_d") & (table["component"] == "sd_items")].iloc[0]
    expected = np.sqrt(np.mean(np.diag(cell_effects(study).covariance)))
    assert row["estimate"] == pytest.approx(expected)


def test_one_model_says_why(cells: xr.Dataset) -> None:
    one = cells.sel(model=["large"], model_other=["large"])
    rows = variance_components(study_of(one))
    assert all(row["reason"] and np.isnan(row["estimate"]) for row in rows)
