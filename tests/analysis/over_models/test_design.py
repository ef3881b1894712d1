import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import study_of
from scipy import stats

from steercube.analysis.over_models.cell_effects import cell_effects
from steercube.analysis.over_models.design import (
    Components,
    components_of,
    design_table,
    errors_of_test,
)
from steercube.analysis.over_models.posterior import fit


@pytest.mark.parametrize("effect", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("df", [2, 4, 30])
def test_power_is_that_of_the_noncentral_t(effect: float, df: int) -> None:
    critical = stats.t.ppf(0.975, df)
    ncp = effect / 0.2
    power = stats.nct.sf(critical, df, ncp) + stats.nct.cdf(-critical, df, ncp)
    found = errors_of_test(effect, np.array([0.2]), df, level=0.95)
    assert found.power == pytest.approx(power, abs=2e-3)
    wrong = stats.nct.cdf(-critical, df, ncp) / power
    assert found.type_s == pytest.approx(wrong, abs=2e-3)


def test_exaggeration_is_that_of_simulated_studies() -> None:
    """400,000 studies with 4 degrees of freedom; Monte Carlo error under 1%."""
    rng = np.random.default_rng(1)
    estimate = rng.normal(0.2, 0.2, size=400_000)
    se = 0.2 * np.sqrt(rng.chisquare(4, size=400_000) / 4)
    significant = np.abs(estimate) > stats.t.ppf(0.975, 4) * se
    found = errors_of_test(0.2, np.array([0.2]), 4, level=0.95)
    assert found.power == pytest.approx(significant.mean(), abs=2e-3)
    assert found.type_m == pytest.approx(np.abs(estimate[significant]).mean() / 0.2, rel=0.02)
    assert found.type_s == pytest.approx((estimate[significant] < 0).mean(), abs=4e-3)


def test_without_effect_power_is_the_level() -> None:
    assert errors_of_test(1e-9, np.array([0.3]), 7, level=0.95).power == pytest.approx(
        0.05, abs=1e-3
    )


def test_uncertain_sds_average() -> None:
    one, other = (errors_of_test(0.3, np.array([s]), 8, level=0.95).power for s in (0.1, 0.3))
    both = errors_of_test(0.3, np.array([0.1, 0.3]), 8, level=0.95).power
    assert both == pytest.approx((one + other) / 2)


def test_the_standard_error_of_balanced_means() -> None:
    """Simulated means of 3 against 5 models over 4 concepts, their error as the formula has it."""
    rng = np.random.default_rng(3)
    parts = Components(np.array([0.2]), np.array([0.3]), unshared=0.04, n_items=50)
    drawn = (
        0.2 * rng.normal(size=(20_000, 8, 1))
        + 0.3 * rng.normal(size=(20_000, 8, 4))
        + 0.5 * rng.normal(size=(20_000, 1, 4))
        + 0.2 * rng.normal(size=(20_000, 8, 4))
    ).mean(axis=2)
    apart = drawn[:, :3].mean(axis=1) - drawn[:, 3:].mean(axis=1)
    assert parts.standard_error(3, 5, 4, 1)[0] == pytest.approx(apart.std(), rel=0.02)
    assert parts.standard_error(3, 5, 4, 1e9)[0] < parts.standard_error(3, 5, 4, 1)[0]


def test_the_table_has_the_studys_design_and_what_would_settle_it(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    table = study_tables["design"]
    of = table[(table["outcome"] == "cohens_d") & (table["effect_from"] == "small")]
    own = of[(of["kind"] == "errors") & (of["n_high"] == 2) & (of["n_low"] == 4)]
    assert (own["power"] < 0.35).all()
    assert (own["type_m"] > 1.4).all()
    assert own["permutation_floor"].unique() == pytest.approx([1 / 15])
    power = own.groupby("covariates")["power"].max()
    assert power["training and scale"] < power["training"]
    needed = of[of["kind"] == "needed"]["n_high"]
    assert needed.min() > 10


def test_the_fewest_models_have_the_power_and_one_less_has_not(six: xr.Dataset) -> None:
    study = study_of(six)
    table = pd.DataFrame(design_table(study))
    of = table[(table["outcome"] == "cohens_d") & (table["effect_from"] == "medium")]
    row = of[of["kind"] == "needed"].iloc[0]
    parts = components_of(study, fit(cell_effects(study)))
    power = [
        errors_of_test(
            0.5, parts.standard_error(n, n, row["n_concepts"], 1), 2 * n - 2, level=0.95
        ).power
        for n in (int(row["n_high"]), int(row["n_high"]) - 1)
    ]
    assert power[0] >= 0.8 > power[1]


def test_size_held_fixed_is_what_simulated_regressions_have(
    study_cells: xr.Dataset, study_tables: dict[str, pd.DataFrame]
) -> None:
    """20,000 model means of the study's trainings and sizes, effect 0.5, least squares of both."""
    study = study_of(study_cells)
    effects = cell_effects(study)
    table = study_tables["design"]
    of = table[(table["outcome"] == "cohens_d") & (table["covariates"] == "training and scale")]
    row = of[(of["effect_from"] == "medium") & (of["n_concepts"] == 6)].iloc[0]
    parts = components_of(study, fit(effects))
    x = np.column_stack([np.ones(6), *effects.predictors.values()])
    rng = np.random.default_rng(2)
    se = parts.standard_error(2, 4, 6, 1) / np.sqrt(1 / 2 + 1 / 4)
    y = 0.5 * effects.predictors["contrast"] + rng.choice(se, (20_000, 1)) * rng.normal(
        size=(20_000, 6)
    )
    b = y @ np.linalg.pinv(x).T
    s2 = ((y - b @ x.T) ** 2).sum(axis=1) / 3
    t = b[:, 1] / np.sqrt(s2 * np.linalg.inv(x.T @ x)[1, 1])
    assert row["power"] == pytest.approx(np.mean(np.abs(t) > stats.t.ppf(0.975, 3)), abs=0.01)


def test_what_settles_an_effect_can_be_significant_by_permutation(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    needed = study_tables["design"].query("kind == 'needed'")
    assert needed["n_high"].min() >= 4


def test_one_training_says_why(six: xr.Dataset) -> None:
    one = six.sel(model=list("abcd"), model_other=list("abcd"))
    study = study_of(one)
    table = design_table(study)
    assert {row["outcome"] for row in table} >= {"cohens_d", "best_depth"}
    assert all(row["reason"] == study.needs_contrast for row in table)
