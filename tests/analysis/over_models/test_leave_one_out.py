from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import make_effects, study_of
from scipy import stats

from steercube.analysis.over_models.cell_effects import TERMS, cell_effects
from steercube.analysis.over_models.leave_one_out import (
    EVERY_PART,
    PRIOR_SCALES,
    leave_one_out,
    prior_sensitivity,
)
from steercube.analysis.over_models.posterior import PRIOR, fit


@pytest.fixture(scope="module")
def of_study(study_tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    table = study_tables["leave_one_out"]
    return table[(table["outcome"] == "cohens_d") & (table["covariates"] == "training and scale")]


def test_every_part_is_left_out_once(of_study: pd.DataFrame) -> None:
    counts = of_study["without"].value_counts().to_dict()
    expected = {"nothing": 1, "model": 7, "concept": 7, "invalid items": 1}
    assert counts == expected | {"mixtures of experts": 1}


def test_a_row_is_the_fit_of_the_rest(of_study: pd.DataFrame, study_cells: xr.Dataset) -> None:
    row = of_study[of_study["left_out"] == "8B"].iloc[0]
    effects = cell_effects(study_of(study_cells))
    rest = effects.only(np.flatnonzero(effects.model != effects.models.index("8B")))
    assert row["low"] == pytest.approx(fit(rest).quantile("contrast", 0.025))
    assert row["n_models"] == 5


def test_the_density_of_what_is_left_out_is_that_of_its_conditional_normal() -> None:
    """With sds all but known, log p(y_out | y_in) has a closed form."""
    effects = make_effects(np.random.default_rng(0))
    known = replace(PRIOR, cauchy=False, sd_model=1e-4, sd_concept=1e-4, sd_cell=1e-4)
    out = effects.model == 2
    rest = effects.only(np.flatnonzero(~out))
    found = fit(effects, prior=known).log_evidence - fit(rest, prior=known).log_evidence
    x = effects.design(TERMS)
    v = effects.covariance + x @ np.diag([PRIOR.of(n) ** 2 for n in ("intercept", *TERMS)]) @ x.T
    gain = v[np.ix_(out, ~out)] @ np.linalg.inv(v[np.ix_(~out, ~out)])
    mean = gain @ effects.value[~out]
    cov = v[np.ix_(out, out)] - gain @ v[np.ix_(~out, out)]
    expected = stats.multivariate_normal(mean, cov).logpdf(effects.value[out])
    assert found == pytest.approx(expected, abs=1e-3)


def test_gains_add_up(of_study: pd.DataFrame) -> None:
    models = of_study[of_study["without"] == "model"]
    parts = models[models["left_out"] != EVERY_PART]["gain"]
    total = models[models["left_out"] == EVERY_PART].iloc[0]
    assert total["gain"] == pytest.approx(parts.sum())
    assert total["gain_standard_error"] == pytest.approx(parts.std() * np.sqrt(len(parts)))


def test_training_predicts_where_it_matters(six: xr.Dataset) -> None:
    """A gap of 1 in d between models that differ by little else: leaving out finds it."""
    effects = six["selected_estimate"].copy(deep=True)
    gap = xr.where(six["training"] == "rl", -1.0, 0.0)
    apart = effects.sel(estimand="cohens_d") * 0 + 2 + gap
    effects.loc[{"estimand": "cohens_d"}] = apart.transpose(*effects.sel(estimand="delta").dims)
    table = pd.DataFrame(leave_one_out(study_of(six.assign(selected_estimate=effects))))
    sums = table[(table["left_out"] == EVERY_PART) & (table["outcome"] == "cohens_d")]
    of_models = sums[(sums["without"] == "model") & (sums["covariates"] == "training")]
    assert of_models["gain"].item() > 2 * of_models["gain_standard_error"].item()


def test_a_wider_prior_on_the_sd_widens_the_interval(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    table = study_tables["prior_sensitivity"]
    of = table[(table["outcome"] == "cohens_d") & (table["covariates"] == "training")]
    by_sd = of[of["prior_of"] == "sd_model"].sort_values("prior_scale")
    assert by_sd["prior_scale"].tolist() == list(PRIOR_SCALES["sd_model"])
    assert (np.diff(by_sd["high"] - by_sd["low"]) > 0).all()
    by_b = of[of["prior_of"] == "training"].sort_values("prior_scale")
    assert (np.diff(by_b["bayes_factor"]) < 0).all()
    primary = of[of["prior_of"] == "nothing"].iloc[0]
    assert primary["prior"] == str(PRIOR)
    same = by_b[by_b["prior_scale"] == PRIOR.contrast].iloc[0]
    assert primary["low"] == pytest.approx(same["low"])


def test_densities_with_one_concept_left_are_of_the_same_model(six: xr.Dataset) -> None:
    """Two concepts, one out: all three sds stay, though one concept alone would need one."""
    two = six.sel(concept=["one", "two"])
    table = pd.DataFrame(leave_one_out(study_of(two)))
    row = table[(table["outcome"] == "cohens_d") & (table["left_out"] == "one")].iloc[0]
    effects = cell_effects(study_of(two))
    rest = effects.only(np.flatnonzero(effects.concept == 1))
    of_rest = fit(rest, terms=TERMS, sds=("sd_model", "sd_concept", "sd_cell"))
    expected = fit(effects).log_evidence - of_rest.log_evidence
    assert row["log_density_with_contrast"] == pytest.approx(expected)


def test_one_model_says_why(cells: xr.Dataset) -> None:
    one = cells.sel(model=["large"], model_other=["large"])
    for rows in (leave_one_out(study_of(one)), prior_sensitivity(study_of(one))):
        assert all(row["reason"] for row in rows)
