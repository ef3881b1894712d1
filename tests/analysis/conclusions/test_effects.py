import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import fill, make_cube, make_model, reduce_to_cells, study_of

from steercube.analysis.conclusions.effects import (
    Largest,
    direction_flag,
    effects,
    effects_long,
    influence_flag,
    largest_effect,
    layer_flag,
)
from steercube.analysis.per_cell.estimands import Effect, Samples, cohens_d, trimmed_d
from steercube.analysis.per_cell.influence import most_influential
from steercube.cells import with_every_estimand
from steercube.contract import STATUS

LAYERS = tuple(range(2, 12))


@pytest.mark.parametrize(
    ("swept", "best", "flag"),
    [
        (range(3, 10), 6, ""),
        (range(3, 10), 3, "first swept"),
        (range(3, 10), 9, "last swept"),
        (range(0, 10), 0, "first block"),
        (range(3, 20), 19, "last block"),
        ([3, 4, 5, 9, 10, 11], 5, "beside a gap"),
        ([3, 4, 5, 9, 10, 11], 9, "beside a gap"),
        ([3, 4, 5, 9, 10, 11], 10, ""),
        ([3, 4, 5, 9, 10, 11], 4, ""),
        ([3, 4, 5, 7, 8, 9], 7, "beside a gap"),
        ([3, 4, 5, 9], 9, "last swept, beside a gap"),
        (range(2, 19, 4), 10, ""),
        ([2, 6, 10, 18], 10, "beside a gap"),
        ([2, 4, 7, 9, 12, 14, 17], 7, ""),
        ([2, 4, 7, 12, 14, 17], 7, "beside a gap"),
        ([5], 5, "only layer swept"),
        (range(3, 10), np.nan, ""),
    ],
)
def test_what_is_beside_the_best_layer(swept: list[int], best: float, flag: str) -> None:
    """Twenty blocks; layers in even steps, or in steps of depth that were rounded, have no gap."""
    assert layer_flag(np.array(swept), best, 20) == flag


def curve(values: list[float]) -> xr.DataArray:
    return xr.DataArray(values, coords={"layer": 3 + np.arange(len(values))}, dims="layer")


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ([0.1, 0.5, 0.2], Largest(4, 5.0, False)),
        ([0.1, -0.5, 0.2], Largest(4, -5.0, True)),
        ([-1.0, -1.5, -1.2], Largest(4, -15.0, True)),
        ([np.nan, 0.2, -0.3], Largest(5, -3.0, True)),
    ],
)
def test_the_largest_effect_keeps_its_sign(delta: list[float], expected: Largest) -> None:
    assert largest_effect(curve(delta), curve(delta) * 10) == expected


def test_nothing_was_run() -> None:
    none = largest_effect(curve([np.nan, np.nan]), curve([np.nan, np.nan]))
    assert np.isnan([none.layer, none.effect]).all()
    assert not none.other_way


@pytest.mark.parametrize(
    ("other_way", "test", "flag"),
    [
        (False, "yes", ""),
        (True, "yes", "steers the other way"),
        (True, "no", "moves more the other way"),
        (True, "unknown", "moves more the other way"),
    ],
)
def test_noise_is_not_said_to_steer_the_other_way(other_way: bool, test: str, flag: str) -> None:
    assert direction_flag(Largest(4, -0.1, other_way), test) == flag


def swept(peak: float, holes: tuple[int, ...] = ()) -> pd.Series:
    """The row of one model and concept whose shift peaks at layer 7 and is `peak` sds there."""
    rng = np.random.default_rng(8)
    cube = make_cube(
        rng, models=(make_model("one", n_layers=14),), n_items={"c": 60}, layers=LAYERS
    )
    bump = np.exp(-((np.array(LAYERS) - 7) ** 2) / 4)
    base = rng.normal(size=60)
    for layer, height in zip(LAYERS, bump, strict=True):
        for strength in (-1.0, 1.0):
            value = base + strength * peak / 2 * height + 0.1 * rng.normal(size=60)
            fill(cube, "one", "c", layer, strength, value)
    for name in ("logit_diff", "logprob_matching", "logprob_other"):
        cube[name].loc[{"layer": list(holes)}] = np.nan
    cube["cell_status"].loc[{"layer": list(holes)}] = STATUS["not_run"]
    return effects(study_of(reduce_to_cells(cube, n_resamples=20))).iloc[0]


def test_a_hole_where_the_best_layer_was_is_told() -> None:
    """Without it the number is another, its reason as before, and the flag says so."""
    whole, holed = swept(1.0), swept(1.0, holes=(6, 7, 8))
    assert (whole["layer"], whole["layer_flag"]) == (7, "")
    assert holed["cohens_d"] < 0.6 * whole["cohens_d"]
    assert holed["reason"] == ""
    assert (holed["layer"] in (5, 9), holed["layer_flag"]) == (True, "beside a gap")
    assert swept(1.0, holes=(7,))["layer_flag"] == "beside a gap"
    assert swept(1.0, holes=(2, 11))["layer_flag"] == ""
    assert swept(1.0, holes=(8, 9, 10, 11))["layer_flag"] == "last swept"


def test_a_concept_that_steers_the_wrong_way_is_told() -> None:
    """Its largest delta is near 0; the effect that it has stands beside it."""
    wrong = swept(-1.0)
    assert abs(wrong["cohens_d"]) < 0.2
    assert (wrong["largest_cohens_d_layer"], wrong["steers"]) == (7, "no")
    assert wrong["largest_cohens_d"] == pytest.approx(-1.0, abs=0.25)
    assert wrong["direction_flag"] == "steers the other way"
    right = swept(1.0)
    assert right["largest_cohens_d"] == right["cohens_d"]
    assert (right["direction_flag"], right["steers"]) == ("", "yes")


@pytest.mark.parametrize(
    ("change", "d", "robust", "flag"),
    [
        (0.05, (1.0, 0.2), (1.1, 0.2), ""),
        (1.2, (0.35, 0.2), (1.5, 0.2), "one item carries it"),
        (-0.6, (1.0, 0.2), (0.9, 0.2), "one item carries it"),
        (0.1, (0.02, 0.2), (0.05, 0.2), ""),
        (0.1, (0.5, 0.2), (1.1, 0.2), "a few items carry it"),
        (0.1, (1.0, 0.2), (0.4, 0.2), "a few items carry it"),
        (0.1, (0.5, 0.1), (-0.1, 0.1), "a few items carry it"),
        (0.1, (0.5, 0.2), (0.9, 0.2), ""),
        (0.1, (0.1, 0.2), (0.3, 0.2), ""),
        (np.nan, (np.nan, np.nan), (np.nan, np.nan), ""),
        (0.3, (0.4, 0.2), (np.nan, np.nan), "one item carries it"),
        (0.1, (0.4, 0.2), (np.nan, np.nan), ""),
    ],
)
def test_what_carries_an_effect(
    change: float, d: tuple[float, float], robust: tuple[float, float], flag: str
) -> None:
    assert influence_flag(change, Effect(*map(np.array, d)), Effect(*map(np.array, robust))) == flag


def flag_of(negative: np.ndarray, positive: np.ndarray) -> str:
    """The flag of one layer's values at -1 and +1."""
    values, n = np.stack([negative, positive]), len(negative)
    samples = Samples(values, np.array([-1.0, 1.0]), np.full(n, "A"))
    found = most_influential(samples)
    assert found is not None
    return influence_flag(
        found.change, cohens_d(samples, np.ones(n)), trimmed_d(samples, np.ones(n))
    )


@pytest.mark.parametrize("d", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("n", [20, 100])
def test_normal_samples_are_not_flagged(n: int, d: float) -> None:
    """1,000 draws, of which about 0.2% are flagged; ten or more in fewer than 0.01% of runs."""
    rng = np.random.default_rng(21)
    flags = []
    for negative, noise in rng.normal(size=(1000, 2, n)):
        flags.append(flag_of(negative, 0.6 * negative + 0.8 * noise + d))
    assert sum(flag != "" for flag in flags) < 10


@pytest.mark.parametrize("d", [0.8, 1.5, 3.0])
def test_an_outlier_is_flagged(d: float) -> None:
    """One of 80 items, with values 400 times as large; without it, nothing is."""
    rng = np.random.default_rng(22)
    for negative, noise in rng.normal(size=(100, 2, 80)):
        positive = 0.6 * negative + 0.8 * noise + d
        assert flag_of(negative, positive) == ""
        negative[3], positive[3] = 400 * negative[3], 400 * positive[3]
        assert flag_of(negative, positive) == "one item carries it"


def test_outliers_that_hide_each_other_are_flagged_too() -> None:
    rng = np.random.default_rng(23)
    negative = rng.normal(size=80)
    positive = 0.6 * negative + 0.8 * rng.normal(size=80) + 1.5
    for item in (3, 4):
        negative[item], positive[item] = 200.0, 200.0
    assert flag_of(negative, positive) == "a few items carry it"


def test_the_table_names_the_item_that_carries_an_effect() -> None:
    rng = np.random.default_rng(8)
    cube = make_cube(rng, models=(make_model("one", n_layers=14),), n_items={"c": 60})
    scale = xr.where(cube["item_id"] == cube["item_id"].values[0, 17], 400.0, 1.0)
    clean = effects(study_of(reduce_to_cells(cube, n_resamples=20))).iloc[0]
    assert clean["influence_flag"] == ""
    cube["logit_diff"] = (cube["logit_diff"] * scale).transpose(*cube["logit_diff"].dims)
    cube["logprob_matching"] = np.minimum(cube["logit_diff"], 0) - 3
    cube["logprob_other"] = -np.maximum(cube["logit_diff"], 0) - 3
    row = effects(study_of(reduce_to_cells(cube, n_resamples=20))).iloc[0]
    assert row["influential_item"] == cube["item_id"].values[0, 17]
    assert row["influence_flag"] == "one item carries it"
    assert row["cohens_d"] + row["influence"] > 2 * row["cohens_d"]


def test_cells_of_an_older_steercube_say_that_they_hold_no_influence(cells: xr.Dataset) -> None:
    held = ["selected_influence", "selected_influential_item"]
    old = cells.drop_vars(held).drop_sel(estimand=["trimmed_d", "cliffs_delta"])
    rows = effects(study_of(with_every_estimand(old)))
    assert rows[["influence", "trimmed_d", "cliffs_delta"]].isna().all(axis=None)
    assert (rows[["influential_item", "influence_flag"]] == "").all(axis=None)
    assert set(rows["reason"]) == {"not recorded: trimmed_d, cliffs_delta, influence"}


def test_what_was_never_run_has_no_flag(cells: xr.Dataset) -> None:
    part = cells.copy(deep=True)
    at = {"model": "small", "concept": "humour"}
    for name in ("selected_layer", "selected_estimate", "estimate"):
        part[name].loc[at] = np.nan
    part["selected_reason"].loc[at] = 2
    row = effects(study_of(part)).set_index(["model", "concept"]).loc[("small", "humour")]
    assert (row["layer_flag"], row["direction_flag"], row["steers"]) == ("", "", "")
    assert row[["largest_cohens_d", "largest_cohens_d_layer", "p_steers"]].isna().all()


def test_effects_hold_the_columns_a_reader_expects(
    cells: xr.Dataset, small_tables: dict[str, pd.DataFrame]
) -> None:
    effects = small_tables["effects"]
    head = ["model", "concept", "layer", "depth", "n", "delta", "cohens_d"]
    head += ["cohens_d_low", "cohens_d_high", "cohens_d_optimism"]
    assert set(head) <= set(effects)
    row = effects.iloc[0]
    at = cells.sel(model=row["model"], concept=row["concept"], estimand="cohens_d")
    assert row["cohens_d"] == float(at["selected_estimate"])
    assert row["cohens_d_low"] == float(at["selected_low"])
    assert row["cohens_d_optimism"] == float(at["selected_optimism"])
    assert row["cohens_d_corrected"] == pytest.approx(row["cohens_d"] - row["cohens_d_optimism"])
    assert row["depth"] == pytest.approx(row["layer"] / float(at["n_layers"]))


def test_depths_have_an_interval_or_a_reason_never_no_width(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    effects = study_tables["effects"]
    assert not (effects["depth_low"] == effects["depth_high"]).any()
    still = effects["depth_low"].isna()
    assert (effects.loc[still, "depth_reason"] != "").all()


def test_the_long_form_holds_the_same_numbers(small_tables: dict[str, pd.DataFrame]) -> None:
    wide, long = small_tables["effects"], small_tables["effects_long"]
    labels = ["model", "concept"]
    assert long[[*labels, "estimand"]].duplicated().sum() == 0
    for name, of in long.groupby("estimand"):
        of = of.set_index(labels).loc[pd.MultiIndex.from_frame(wide[labels])]
        for column in ("low", "high", "optimism", "corrected", "split_half"):
            np.testing.assert_array_equal(of[column].to_numpy(), wide[f"{name}_{column}"])
        np.testing.assert_array_equal(of["value"].to_numpy(), wide[name])
        np.testing.assert_array_equal(of["standard_error"].to_numpy(), wide[f"{name}_se"])
    assert set(long["units"]) == {"nat", "1", "nat per unit strength"}


def test_the_long_form_says_why_a_number_is_missing(cells: xr.Dataset) -> None:
    part = cells.copy(deep=True)
    part["selected_estimate"].loc[{"model": "small", "concept": "humour"}] = np.nan
    part["selected_reason"].loc[{"model": "small", "concept": "humour"}] = 2
    rows = effects_long(study_of(part)).set_index(["model", "concept"])
    assert set(rows.loc[("small", "humour"), "reason"]) == {"not_run"}
    others = set(rows.drop(("small", "humour"))["reason"])
    assert others <= {"", "zero_variance", "unstable"}


def test_no_column_hides_its_estimand(small_tables: dict[str, pd.DataFrame]) -> None:
    hidden = {"se", "optimism", "corrected", "split_half", "standard_error", "largest_effect"}
    assert not hidden & set(small_tables["effects"])
