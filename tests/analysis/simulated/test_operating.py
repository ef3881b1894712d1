from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import study_of

from steercube.analysis.simulated import operating
from steercube.analysis.simulated.operating import (
    COVERAGE,
    FALSE_ALARMS,
    POWER,
    SIMULATIONS,
    Answers,
    Hit,
    Places,
    Simulation,
    lengths_of_curves,
    operating_characteristics,
    simulated,
    simulated_places,
    study_of_curves,
    true_excess,
)
from steercube.analysis.view import Study

COLUMNS = ["statistic", "scenario", "measure", "nominal", "achieved", "standard_error"]


@pytest.mark.parametrize("name", SIMULATIONS)
def test_each_statistic_has_a_row_a_scenario(study_cells: xr.Dataset, name: str) -> None:
    table = operating_characteristics(study_of(study_cells), n_simulations=2, only=[name])
    assert list(table) == [*COLUMNS, "n_simulations"]
    assert list(dict.fromkeys(table["scenario"])) == list(SIMULATIONS[name].scenarios)
    assert not table.duplicated(COLUMNS[:3]).any()
    assert table["achieved"].between(0, 1).all()
    assert (table["standard_error"] > 0).all()
    assert set(table["n_simulations"]) <= {1, 2}
    nominal = dict(zip(table["measure"], table["nominal"], strict=True))
    expected = {COVERAGE: 0.95, FALSE_ALARMS: 0.05}
    assert all(nominal[m] == expected[m] for m in nominal if m != POWER)
    assert np.isnan(nominal.get(POWER, np.nan))


HONEST = {
    "concepts": "sd_concept 0.38, sd_cell 0.25",
    "deviations": "sd_model 0.15",
    "slopes": "b_scale 0",
    "depths": "b_training 0, sd_model 0.015",
    "agreement": "r 0.6, neighbouring layers 0.6",
    "specificity": "r 0.6",
    "labels": "difference 0.5",
    "generation": "log odds change by 1 at the best layer",
}
"""A scenario of each in which the interval covers about as promised."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "slopes" else name for name in HONEST],
)
def test_an_interval_half_as_wide_is_seen(
    study_cells: xr.Dataset, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same 30 simulations: it covers less, and by far less than promised."""
    held = operating._held
    honest: list[float] = []
    squeezed: list[float] = []

    def sabotaged(low: float, high: float, truth: float) -> float:
        honest.append(held(low, high, truth))
        middle, half = (low + high) / 2, (high - low) / 4
        squeezed.append(held(middle - half, middle + half, truth))
        return squeezed[-1]

    monkeypatch.setattr(operating, "_held", sabotaged)
    simulation = SIMULATIONS[name]
    one = {HONEST[name]: simulation.scenarios[HONEST[name]]}
    monkeypatch.setitem(SIMULATIONS, name, Simulation(one, simulation.once))
    table = operating_characteristics(study_of(study_cells), n_simulations=30, only=[name])
    covered = table[table["measure"] == COVERAGE]
    assert np.nanmean(honest) > 0.88
    assert np.nanmean(squeezed) < np.nanmean(honest) - 0.08
    assert (covered["achieved"] + 1.96 * covered["standard_error"] < 0.97).any()


@pytest.mark.slow
def test_a_test_that_rejects_too_often_is_seen(
    study_cells: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, scenario = "concepts", "sd_concept 0, sd_cell 0.25"
    simulation = SIMULATIONS[name]
    one = {scenario: simulation.scenarios[scenario]}
    monkeypatch.setitem(SIMULATIONS, name, Simulation(one, simulation.once))
    sound = operating_characteristics(study_of(study_cells), n_simulations=40, only=[name])
    monkeypatch.setattr(operating, "SIGNIFICANT", 0.4)
    wrong = operating_characteristics(study_of(study_cells), n_simulations=40, only=[name])
    assert sound["achieved"].item() < 0.16
    assert wrong["achieved"].item() > 0.2


def test_numbered_simulations_are_the_same_in_any_order(study_cells: xr.Dataset) -> None:
    study, name, scenario = study_of(study_cells), "generation", "nothing is added"
    forward = [simulated(study, name, scenario, n) for n in range(3)]
    backward = [simulated(study, name, scenario, n) for n in (2, 1, 0)]
    assert forward == backward[::-1]


def test_shares_and_their_errors(monkeypatch: pytest.MonkeyPatch, study_cells: xr.Dataset) -> None:
    """Hits with a hole: the share is of those that have an interval."""

    def once(study: Study, scenario: None, rng: np.random.Generator) -> list[Hit]:
        value = next(values)
        return [Hit("some", COVERAGE, value), Hit("all", COVERAGE, 1.0)]

    values = iter([1.0, 0.0, np.nan, 1.0, 1.0])
    monkeypatch.setattr(operating, "SIMULATIONS", {"fake": Simulation({"s": None}, once)})
    table = operating_characteristics(study_of(study_cells), n_simulations=5).set_index("statistic")
    some, every = table.loc["some"], table.loc["all"]
    assert (some["achieved"], some["n_simulations"]) == (0.75, 4)
    assert some["standard_error"] == pytest.approx(np.sqrt(0.75 * 0.25 / 4))
    assert every["achieved"] == 1
    assert every["standard_error"] == pytest.approx(np.sqrt(6 / 7 / 7 / 5))


def test_simulated_places_have_the_truth_of_their_scenario(study_cells: xr.Dataset) -> None:
    rng = np.random.default_rng(3)
    scenario = Places(training=0.15, sd_model=1e-6, sd_concept=1e-6, sd_cell=1e-6)
    study, apart = study_of(study_cells), []
    for _ in range(4):
        effects = simulated_places(study, scenario, rng)["best_depth"]
        is_high = effects.is_high[effects.model]
        apart.append(effects.value[is_high].mean() - effects.value[~is_high].mean())
    assert np.mean(apart) == pytest.approx(0.15, abs=0.03)
    assert set(simulated_places(study, scenario, rng)) == {"best_depth", "depth_centroid"}


def test_the_true_excess_grows_with_the_effect() -> None:
    found = [true_excess(25, Answers(effect=effect)) for effect in (0.0, 0.5, 1.0, 2.0)]
    assert found[0] == pytest.approx(0, abs=0.01)
    assert all(one < two for one, two in pairwise(found))
    assert found[-1] > 0.4


def test_a_study_of_curves_holds_the_curves(
    study_cells: xr.Dataset, rng: np.random.Generator
) -> None:
    curves = {
        f"m{n}": (rng.normal(size=n), np.stack([np.zeros(n), np.ones(n), np.arange(n)]))
        for n in (5, 7)
    }
    made = study_of_curves(curves, study_of(study_cells), rng)
    assert lengths_of_curves(made) == [5, 7]
    assert made.cells["generation_rate"].sel(model="m5", strength=1.0).max() == 4
    assert len(lengths_of_curves(study_of(study_cells))) >= 4


def test_a_table_of_no_statistic_is_empty(study_cells: xr.Dataset) -> None:
    none = operating_characteristics(study_of(study_cells), n_simulations=1, only=[])
    pd.testing.assert_frame_equal(none, pd.DataFrame())
