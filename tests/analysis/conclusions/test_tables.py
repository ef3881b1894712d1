import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, make_cube, open_view, reduce_to_cells, study_of

from steercube.analysis.conclusions.effects import effects
from steercube.analysis.conclusions.tables import TABLES, Tables, as_table, conclude, listed
from steercube.analysis.over_models.contrast_effect import EXACT
from steercube.cells import ESTIMAND_UNITS, NEEDED, save_cells
from steercube.estimate import Estimate
from steercube.report.post import PACKAGED
from steercube.schema import read_toml

pytestmark = pytest.mark.usefixtures("few_priors")


OF_A_CONTRAST = {
    *("contrast_effect", "multiverse", "multiverse_summary", "design"),
    *("leave_one_out", "prior_sensitivity", "confounders"),
}
PLAIN = {
    *("effects", "effects_long", "layer_effects", "models", "concepts", "depth"),
    *("generation", "agreement", "sensitivity"),
    *("scale_trends", "variance_components", "concordance", *OF_A_CONTRAST),
    *("predictive_checks", "conclusions", "margins", "multiplicity"),
    *("about_models", "about_concepts", "counts", "model_deviations", "difficulty", "extraction"),
}


def test_every_table_is_there(small_tables: dict[str, pd.DataFrame]) -> None:
    assert set(small_tables) == PLAIN
    assert len(small_tables["effects"]) == 6
    assert len(small_tables["layer_effects"]) == 24


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
    tables = conclude(study_of(cells.sel(labels)))
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
        conclude(study_of(reduce_to_cells(cube, n_resamples=20)))


def test_too_few_items_are_not_called_unrun(rng: np.random.Generator) -> None:
    cells = reduce_to_cells(make_cube(rng, n_items={"few": 5, "enough": 20}), n_resamples=50)
    table = conclude(study_of(cells), only=["effects"])["effects"]
    table = table.set_index(["model", "concept"])
    assert table.loc[("small", "few"), "reason"] == "too_few_items"
    assert table.loc[("small", "enough"), "reason"] == ""


def test_nothing_but_too_few_items(rng: np.random.Generator) -> None:
    cells = reduce_to_cells(make_cube(rng, n_items={"few": 5}), n_resamples=50)
    with pytest.raises(ValueError, match="too few items"):
        conclude(study_of(cells))


def test_only_what_is_asked_for_is_made(cells: xr.Dataset) -> None:
    made: list[str] = []
    found = conclude(study_of(cells), only=["effects", "depth"], report=made.append)
    assert list(found) == made == ["effects", "depth"]
    pd.testing.assert_frame_equal(found["effects"], effects(study_of(cells)))


def test_tables_that_others_are_made_from_are_made_once(cells: xr.Dataset) -> None:
    made: list[str] = []
    lazy = Tables(study_of(cells), report=made.append)
    assert len(lazy["multiplicity"])
    assert lazy["conclusions"] is lazy["conclusions"]
    assert len(made) == len(set(made))
    assert {"conclusions", "multiplicity"} <= set(made)
    assert "multiverse" not in made


def test_a_table_that_is_none_is_refused_by_name(cells: xr.Dataset) -> None:
    with pytest.raises(
        ValueError, match=r"only = \['efects'\]: not among the tables, about_models"
    ):
        conclude(study_of(cells), only=["efects"])


OPTIONAL = [name for name in ESTIMAND_UNITS if name not in NEEDED["estimand"]]


@pytest.mark.slow
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
    tables = conclude(study_of(open_view(tmp_path / "old.cells.nc")))
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
        "contrast_effect": "outcome",
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


def test_without_a_contrast_what_compares_models_is_left_out(
    cells: xr.Dataset, small_tables: dict[str, pd.DataFrame]
) -> None:
    """The other tables stay, without a row about the contrast; what it does not touch is equal."""
    tables = conclude(study_of(cells, None))
    assert set(tables) == PLAIN - OF_A_CONTRAST
    ids = set(small_tables["conclusions"]["id"])
    assert set(tables["conclusions"]["id"]) == {i for i in ids if not i.startswith("training")}
    assert not tables["sensitivity"]["headline"].str.contains("training gap|depth difference").any()
    assert not tables["counts"]["statistic"].isin(["distilled models", "rl models"]).any()
    assert not tables["depth"]["group"].str.contains("minus").any()
    for name in ("effects", "layer_effects", "models", "concepts", "concordance", "difficulty"):
        pd.testing.assert_frame_equal(tables[name], small_tables[name])


@pytest.mark.slow
def test_models_of_a_third_label_are_compared_with_none(six: xr.Dataset) -> None:
    """They are left out of the contrast, which says so, and out of nothing else."""
    labels = ["sft", "distilled", "distilled", "distilled", "rl", "rl"]
    names = ["contrast_effect", "leave_one_out", "multiverse", "models", "counts"]
    third = conclude(study_of(six.assign_coords(training=("model", labels))), only=names)
    kept = six["model"].values[1:]
    without = conclude(study_of(six.sel(model=kept, model_other=kept)), only=names)
    assert "mean of sft models" in set(third["models"]["model"])
    count = third["counts"].set_index("statistic")["value"]
    assert (count["models"], count["distilled models"], count["rl models"]) == (6, 3, 2)
    assert "a" not in set(third["leave_one_out"]["left_out"])
    rows = third["contrast_effect"]
    assert rows["n_models"].max() == 5
    exact = rows[(rows["method"] == EXACT) & rows["low"].notna()]
    assert exact["diagnostics"].str.contains("left out, of neither label: a$").all()
    assert not without["contrast_effect"]["diagnostics"].str.contains("left out").any()
    columns = ["outcome", "method", "covariates", "estimate", "low", "high", "p_value", "n_models"]
    # REML's search ends within its tolerance of where it ends after a change in the last bit.
    of_five = without["contrast_effect"][columns]
    pd.testing.assert_frame_equal(rows[columns], of_five, rtol=1e-4)
    pd.testing.assert_frame_equal(third["multiverse"], without["multiverse"])


KEYED = [table for table in TABLES if table.key]
OF_CALIBRATION = ("coverage", "operating", "grades")
CITING = (PACKAGED / "numbers.toml", *sorted((ROOT / "paper").glob("*.numbers.toml")))
TEMPLATES = (PACKAGED / "post.md.j2", *sorted((ROOT / "paper").glob("*.post.md.j2")))


@pytest.mark.parametrize("path", CITING, ids=lambda path: path.name)
def test_every_number_that_a_post_cites_is_of_a_table_with_a_key(path: Path) -> None:
    key = {table.name: table.key for table in TABLES}
    references = {n: of for n, of in read_toml(path).items() if n != "allowed"}
    assert references
    for name, reference in references.items():
        table, *labels = reference["id"].split("/")
        if table not in OF_CALIBRATION:
            assert key.get(table), f"{name}: {table} has no key"
            assert len(labels) <= len(key[table]), f"{name}: {reference['id']}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_table_that_a_post_shows_is_printed(path: Path) -> None:
    printed = {form.name or table.name for table in TABLES for form in table.printed}
    assert set(re.findall(r'\btable\("(\w*)"\)', path.read_text())) <= printed


def test_the_columns_that_identify_and_give_a_number_are_those_of_the_table(
    every_table: dict[str, pd.DataFrame],
) -> None:
    """Of every table with a key."""
    assert {table.name for table in KEYED} <= set(every_table)
    for entry in KEYED:
        table = every_table[entry.name]
        assert set(entry.key) <= set(table), entry.name
        ends = {entry.low, entry.high} if "interval_over" in table else set()
        given = {entry.value} if isinstance(entry.value, str) else set()
        if not entry.every_interval:
            assert given | ends <= set(table), entry.name
        if entry.units in ("estimand", "outcome", "units"):
            assert entry.units in table, entry.name


def test_a_key_names_one_row(every_table: dict[str, pd.DataFrame]) -> None:
    """But of `design`, where designs of other sizes share it and the study's own comes first."""
    for entry in KEYED:
        keys = every_table[entry.name][list(entry.key)].astype(object).fillna("")
        assert keys.duplicated().any() == (entry.name == "design"), entry.name


def test_every_printed_form_has_its_columns(every_table: dict[str, pd.DataFrame]) -> None:
    """Those of its labels may be absent, where a study says nothing of them."""
    for entry in TABLES:
        for form in entry.printed:
            rows = form.rows(every_table[entry.name])
            if not len(rows):
                assert entry.name == "extraction", "the study has no properties of its vectors"
                continue
            needed = {form.across, form.suffix, *form.numbers} - {""}
            needed |= {"interval_over"} if form.over else set()
            assert needed <= set(rows), entry.name
            assert set(form.labels) & set(rows) or not form.labels, entry.name


def test_names_of_tables_and_of_their_prints_are_no_ones_elses() -> None:
    names = [table.name for table in TABLES]
    prints = [form.name or table.name for table in TABLES for form in table.printed]
    assert len(set(names)) == len(names)
    assert len(set(prints)) == len(prints)


def test_every_table_is_listed_once_with_what_it_holds() -> None:
    text = "\n".join(listed())
    assert sorted(re.findall(r"`(\w+)\.csv`", text)) == sorted(table.name for table in TABLES)
    for table in TABLES:
        (line,) = [line for line in listed() if f"`{table.name}.csv`" in line]
        assert table.what in line


def test_estimates_become_rows_with_their_reason_last() -> None:
    found = Estimate(0.5, low=0.1, high=0.9, over="models", n=3, span=(0.2, 0.7))
    table = as_table([({"concept": "c"}, found), ({"concept": "d"}, Estimate.undefined("few"))])
    assert next(iter(table)) == "concept"
    assert list(table)[-1] == "reason"
    row = table.iloc[0]
    assert (row["value"], row["low"], row["high"], row["n"]) == (0.5, 0.1, 0.9, 3)
    assert (row["interval_over"], row["smallest"], row["largest"]) == ("models", 0.2, 0.7)
    assert table["reason"].tolist() == ["", "few"]
    frame = pd.DataFrame({"a": [1]})
    assert as_table(frame) is frame
    assert as_table(iter([{"a": 1}])).equals(frame)
    assert len(as_table([])) == 0
