from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, make_cube, with_controls

from steercube.analysis.conclusions import tables as tables_module
from steercube.analysis.conclusions.claims import ledger, read_claims
from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.per_cell.reduce import cells as reduce_to_cells
from steercube.cells import (
    ESTIMAND_UNITS,
    NEEDED,
    open_cells,
    save_cells,
    with_every_estimand,
)

pytestmark = pytest.mark.usefixtures("few_priors")


PLAIN = {
    *("effects", "layer_effects", "models", "concepts", "depth"),
    *("generation", "agreement", "sensitivity"),
    *("training_effect", "scale_trends", "variance_components", "concordance", "multiverse"),
    *("multiverse_summary", "design", "leave_one_out", "prior_sensitivity"),
    *("predictive_checks", "conclusions", "multiplicity"),
    *("about_models", "about_concepts", "counts", "model_deviations", "difficulty", "extraction"),
}


def test_every_table_is_there(small_tables: dict[str, pd.DataFrame]) -> None:
    assert set(small_tables) == PLAIN
    assert len(small_tables["effects"]) == 6
    assert len(small_tables["layer_effects"]) == 24


def test_effects_hold_the_columns_a_reader_expects(
    cells: xr.Dataset, small_tables: dict[str, pd.DataFrame]
) -> None:
    effects = small_tables["effects"]
    head = ["model", "concept", "layer", "depth", "n", "delta", "cohens_d"]
    head += ["cohens_d_low", "cohens_d_high", "optimism"]
    assert set(head) <= set(effects)
    row = effects.iloc[0]
    at = cells.sel(model=row["model"], concept=row["concept"], estimand="cohens_d")
    assert row["cohens_d"] == float(at["selected_estimate"])
    assert row["cohens_d_low"] == float(at["selected_low"])
    assert row["optimism"] == float(at["selected_optimism"])
    assert row["corrected"] == pytest.approx(row["cohens_d"] - row["optimism"])
    assert row["depth"] == pytest.approx(row["layer"] / float(at["n_layers"]))


def test_controls_stand_beside_the_vector(cube: xr.Dataset, rng: np.random.Generator) -> None:
    cells = reduce_to_cells(with_controls(cube, rng), n_resamples=20)
    tables = conclude(cells, only=["controls", "effects"])
    controls, effects = tables["controls"], tables["effects"]
    assert set(controls["direction"]) == {"concept", "random"}
    vector = controls[controls["direction"] == "concept"].reset_index()
    np.testing.assert_allclose(vector["best_delta"], effects["delta"])
    np.testing.assert_allclose(vector["delta_at_vectors_layer"], effects["delta"])
    assert (vector["best_layer"] == effects["layer"]).all()
    control = controls[controls["direction"] == "random"].reset_index()
    assert (control["best_delta"] >= control["delta_at_vectors_layer"]).all()
    assert (control["best_delta"] < vector["best_delta"] / 3).all()


def test_names_are_as_in_the_studys_files(study_tables: dict[str, pd.DataFrame]) -> None:
    effects = study_tables["effects"]
    assert effects["model"].unique().tolist() == ["4B", "8B", "14B", "30B-A3B", "32B", "235B-A22B"]
    unrun = effects[effects["cohens_d"].isna()]
    assert unrun[["model", "concept", "reason"]].to_numpy().tolist() == [
        ["235B-A22B", "sycophancy", "not_run"]
    ]
    assert len(effects) == 36


@pytest.mark.parametrize(
    "labels",
    [
        {"model": ["large"], "model_other": ["large"]},
        {"concept": ["humour"]},
        {"model": ["large"], "model_other": ["large"], "concept": ["humour"]},
    ],
    ids=["one model", "one concept", "one of each"],
)
def test_small_studies_say_what_they_lack(labels: dict[str, list[str]], cells: xr.Dataset) -> None:
    tables = conclude(cells.sel(labels))
    for name in ("models", "concepts", "depth", "sensitivity"):
        table = tables[name]
        silent = table["low"].isna() & (table["reason"] == "")
        assert not silent.any(), table[silent]


def test_intervals_that_are_missing_have_a_reason(study_tables: dict[str, pd.DataFrame]) -> None:
    for name in ("models", "concepts", "depth", "agreement", "sensitivity"):
        table = study_tables[name]
        silent = table["low"].isna() & (table["reason"] == "")
        assert not silent.any(), table[silent]


def test_nothing_to_conclude_from(rng: np.random.Generator) -> None:
    cube = make_cube(rng)
    cube["logit_diff"][:] = np.nan
    cube["logprob_matching"][:] = np.nan
    cube["logprob_other"][:] = np.nan
    cube["cell_status"][:] = 3
    with pytest.raises(ValueError, match="hold no effect"):
        conclude(reduce_to_cells(cube, n_resamples=20))


def test_too_few_items_are_not_called_unrun(rng: np.random.Generator) -> None:
    cells = reduce_to_cells(make_cube(rng, n_items={"few": 5, "enough": 20}), n_resamples=50)
    effects = conclude(cells, only=["effects"])["effects"].set_index(["model", "concept"])
    assert effects.loc[("small", "few"), "reason"] == "too_few_items"
    assert effects.loc[("small", "enough"), "reason"] == ""


def test_nothing_but_too_few_items(rng: np.random.Generator) -> None:
    cells = reduce_to_cells(make_cube(rng, n_items={"few": 5}), n_resamples=50)
    with pytest.raises(ValueError, match="too few items"):
        conclude(cells)


def test_depths_have_an_interval_or_a_reason_never_no_width(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    effects = study_tables["effects"]
    assert not (effects["depth_low"] == effects["depth_high"]).any()
    still = effects["depth_low"].isna()
    assert (effects.loc[still, "depth_reason"] != "").all()


def test_only_what_is_asked_for_is_made(cells: xr.Dataset) -> None:
    made: list[str] = []
    found = conclude(cells, only=["effects", "depth"], report=made.append)
    assert list(found) == made == ["effects", "depth"]
    pd.testing.assert_frame_equal(found["effects"], tables_module.effects(cells))


def test_tables_that_others_are_made_from_are_made_once(cells: xr.Dataset) -> None:
    made: list[str] = []
    lazy = tables_module.Tables(cells, report=made.append)
    assert len(lazy["conclusions"])
    assert lazy["leave_one_out"] is lazy["leave_one_out"]
    assert len(made) == len(set(made))
    assert {"conclusions", "training_effect", "leave_one_out"} <= set(made)
    assert "multiverse" not in made


def test_a_table_that_is_none_is_refused_by_name(cells: xr.Dataset) -> None:
    with pytest.raises(
        ValueError, match=r"only = \['efects'\]: not among the tables, about_models"
    ):
        conclude(cells, only=["efects"])


OPTIONAL = [name for name in ESTIMAND_UNITS if name not in NEEDED["estimand"]]


@pytest.mark.parametrize(
    "lacking",
    [["within_letter_d"], ["letter_shift"], OPTIONAL],
    ids=["within-letter d", "letter shift", "all but two"],
)
def test_cells_that_lack_estimands_have_every_table_and_say_so(
    lacking: list[str],
    cells: xr.Dataset,
    small_tables: dict[str, pd.DataFrame],
    tmp_path: Path,
) -> None:
    """Numbers of the others are as they were; what needs a lacking one says that it is lacking."""
    save_cells(cells.drop_sel(estimand=lacking), tmp_path / "old.cells.nc")
    tables = conclude(open_cells(tmp_path / "old.cells.nc"))
    assert set(tables) == PLAIN
    effects, whole = tables["effects"], small_tables["effects"]
    assert (effects["reason"] == f"not recorded: {', '.join(lacking)}").all()
    assert effects[lacking].isna().all(axis=None)
    pd.testing.assert_frame_equal(effects[["cohens_d", "delta"]], whole[["cohens_d", "delta"]])
    for name, column in {
        "models": "estimand",
        "concepts": "estimand",
        "concordance": "estimand",
        "scale_trends": "outcome",
        "training_effect": "outcome",
        "variance_components": "outcome",
    }.items():
        table = tables[name]
        of_lacking = table[table[column].isin(lacking)]
        said = "not recorded: these cells hold no " + of_lacking[column].astype(str)
        assert (of_lacking["reason"] == said).all(), name
        assert len(of_lacking) or "within_letter_d" not in lacking, name
        kept = table[~table[column].isin(lacking)].reset_index(drop=True)
        expected = small_tables[name]
        expected = expected[~expected[column].isin(lacking)].reset_index(drop=True)
        same = [c for c in expected if c != "p_holm"]  # of a family, which is smaller without them
        pd.testing.assert_frame_equal(kept[same], expected[same], check_dtype=False)
    if "letter_shift" in lacking:
        of = tables["difficulty"]
        of = of[of["statistic"] == "letter share of the shift"]
        assert of["value"].isna().all()
        assert (of["reason"] == "not recorded: these cells hold no letter_shift").all()


def test_claims_about_an_estimand_that_the_cells_lack_say_so(study_cells: xr.Dataset) -> None:
    _, claims = read_claims(ROOT / "paper" / "claims.toml")
    claims = [c for c in claims if c.statistic in ("concept_mean", "training_gap")][:4]
    as_effects = [replace(c, arguments=c.arguments | {"estimand": "d_z"}) for c in claims]
    less = with_every_estimand(study_cells.drop_sel(estimand=["d_z"]))
    table = ledger(less, as_effects)
    assert table["recomputed"].isna().all()
    assert table["reason"].str.contains("these cells hold no d_z").all()
    assert ledger(study_cells, as_effects)["recomputed"].notna().all()
