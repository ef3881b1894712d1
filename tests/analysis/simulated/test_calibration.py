import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import study_of

from steercube.analysis.over_models.cell_effects import TERMS
from steercube.analysis.simulated.calibration import (
    SCENARIOS,
    calibrate,
    coverage,
    recovery,
    uniformity,
)


@pytest.mark.slow
def test_a_small_calibration_runs_whole(study_cells: xr.Dataset) -> None:
    """Every scenario and method is there, and numbers do not depend on the workers."""
    study = study_of(study_cells)
    one = calibrate(study, n_simulations=4, n_workers=1, report=lambda line: None)
    two = calibrate(study, n_simulations=4, n_workers=2, report=lambda line: None)
    for name, table in one.items():
        pd.testing.assert_frame_equal(table, two[name])
    table = one["coverage"]
    assert len(table) == len(SCENARIOS) * 12
    assert set(table["n_simulations"]) == {2, 4}
    items = table[table["random_effects"] == "items"]["coverage"].mean()
    exact = table[table["method"] == "hierarchical, exact"]["coverage"].mean()
    assert items < 0.7 < exact
    assert set(one["sbc"]["parameter"]) == {
        "intercept",
        *TERMS,
        "sd_model",
        "sd_concept",
        "sd_cell",
    }


def test_coverage_and_rejection_are_counted(rng: np.random.Generator) -> None:
    low = rng.normal(size=1000) - 1.96
    truth = {"training": 0.0, "sd_model": 1.0, "scale": 0.0, "uneven": 1.0}
    rows = pd.DataFrame(truth | {"method": "z", "random_effects": "",
                         "covariates": "", "estimate": low + 1.96, "low": low, "high": low + 3.92,
                         "p_value": np.nan})  # fmt: skip
    test = rows.assign(method="test", low=np.nan, high=np.nan, p_value=rng.uniform(size=1000))
    found = coverage(pd.concat([rows, test])).set_index("method")
    assert found.loc["z", "coverage"] == pytest.approx(0.95, abs=0.03)
    assert found.loc["z", "rejected"] == pytest.approx(1 - found.loc["z", "coverage"])
    assert np.isnan(found.loc["test", "coverage"])
    assert found.loc["test", "rejected"] == pytest.approx(0.05, abs=0.03)


def test_recovery_compares_medians_with_the_truth() -> None:
    truth = {"training": 0.0, "sd_model": 0.2, "scale": 0.0, "uneven": 1.0}
    rows = pd.DataFrame(truth | {"component": "sd_model", "true": 0.2,
                         "median": [0.1, 0.3], "below": [0.5, 0.99]})  # fmt: skip
    found = recovery(rows).iloc[0]
    assert found["mean_of_medians"] == pytest.approx(0.2)
    assert found["coverage"] == 0.5


def test_uniform_ranks_pass_and_others_do_not(rng: np.random.Generator) -> None:
    ranks = pd.DataFrame({"good": rng.uniform(size=800), "narrow": rng.beta(2, 2, size=800)})
    found = uniformity(ranks).set_index("parameter")["p_value"]
    assert found["good"] > 0.001 > found["narrow"]
