from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import SIX_MODELS, make_cube, open_view, reduce_to_cells, study_of

from steercube.analysis.over_models.item_fits import (
    NOT_FULL,
    disagreement,
    item_fits,
    keep_slow_fits,
    mixedlm,
)
from steercube.analysis.over_models.items import item_shifts
from steercube.analysis.over_models.reml import reml_of_items
from steercube.analysis.view import Study
from steercube.cells import ITEM_FITS, ITEM_FITTED, as_cells, check_cells, compare_cells, save_cells


@pytest.fixture(scope="module")
def sweep() -> tuple[xr.Dataset, Study]:
    n_items = {"one": 20, "two": 24, "three": 22}
    cube = make_cube(np.random.default_rng(3), models=SIX_MODELS, n_items=n_items)
    return cube, study_of(reduce_to_cells(cube, n_resamples=50))


@pytest.fixture(scope="module")
def fits(sweep: tuple[xr.Dataset, Study]) -> xr.Dataset:
    return item_fits(*sweep)[0]


def test_mixedlm_is_our_own_fit(sweep: tuple[xr.Dataset, Study]) -> None:
    shifts, terms = item_shifts(*sweep), ("contrast", "scale")
    factors = ["sd_model", "sd_concept", "sd_cell"]
    index = {f: shifts.index[f] for f in factors}
    ours = reml_of_items(shifts.value, shifts.design(terms), index, terms=terms)
    theirs = mixedlm(shifts, terms=terms, factors=factors)
    assert disagreement(theirs, ours) == ""
    assert theirs.coefficients == pytest.approx(ours.coefficients, abs=2e-3)


def test_a_wrong_optimum_is_refused(sweep: tuple[xr.Dataset, Study]) -> None:
    shifts = item_shifts(*sweep)
    index = {f: shifts.index[f] for f in ("sd_model", "sd_concept")}
    ours = reml_of_items(shifts.value, shifts.design(()), index, terms=())
    worse = replace(ours, log_likelihood=ours.log_likelihood - 0.01)
    assert "0.01 nats below" in disagreement(worse, ours)


def test_the_cells_keep_the_quick_fits_and_say_which_did_not_run(fits: xr.Dataset) -> None:
    assert fits["item_fit"].values.tolist() == list(ITEM_FITS)
    quick = fits.sel(item_fit=["REML, items crossed", "MixedLM, without items"])
    assert (quick["item_fit_problem"] == "").all()
    training = quick["item_fit_value"].sel(item_term="training").values
    assert abs(training[0] - training[1]) < 0.1
    assert (quick["item_fit_low"] < quick["item_fit_high"]).sel(item_term="training").all()
    slow = fits.sel(item_fit=["MixedLM, items crossed", "NUTS, items"])
    assert (slow["item_fit_problem"] == NOT_FULL).all()
    assert slow["item_fit_value"].isnull().all()


def test_fits_round_trip_with_the_cells(
    sweep: tuple[xr.Dataset, Study], fits: xr.Dataset, tmp_path: object
) -> None:
    cells = sweep[1].cells.merge(fits)
    check_cells(cells)
    save_cells(cells, f"{tmp_path}/a.cells.nc")
    assert compare_cells(cells, open_view(f"{tmp_path}/a.cells.nc")) == []


def test_slow_fits_are_kept_for_the_same_samples_alone(
    sweep: tuple[xr.Dataset, Study], fits: xr.Dataset
) -> None:
    cells = as_cells(sweep[1].cells.merge(fits))
    slow = {"item_fit": "NUTS, items"}
    made = fits.copy(deep=True)
    made["item_fit_problem"].loc[slow] = ""
    made["item_fit_value"].loc[{**slow, "item_term": "training"}] = -0.25
    full = cells.with_tables({ITEM_FITTED: made})
    kept = keep_slow_fits(cells, full)[ITEM_FITTED]
    assert float(kept["item_fit_value"].sel({**slow, "item_term": "training"})) == -0.25
    assert kept["item_fit_problem"].sel(slow).item() == ""
    beside = full.with_attrs({"cube_sha256": "of a cube with one more measure"})
    assert keep_slow_fits(cells, beside)[ITEM_FITTED].identical(kept)
    measure = full.measures[0]
    table = full[measure].assign(mean=full[measure]["mean"] + 1.0)
    for other in (full.with_tables({measure: table}), full.with_attrs({"seed": 0})):
        fits_of = keep_slow_fits(cells, other)[ITEM_FITTED]
        assert fits_of["item_fit_problem"].sel(slow).item() == NOT_FULL
    assert keep_slow_fits(cells, as_cells(sweep[1].cells)) is cells


def test_one_concept_has_no_fit_of_items(sweep: tuple[xr.Dataset, Study]) -> None:
    cube, study = sweep
    fits, sampled = item_fits(cube.sel(concept=["one"]), study.among(concepts=["one"]))
    assert not fits.variables
    assert sampled is None
