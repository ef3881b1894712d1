import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, STUDY, make_cube, needs_study, reduce_to_cells, study_of

from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.per_cell import reduce
from steercube.analysis.per_cell.readings import (
    by_form,
    confusion,
    distinct_responses,
    reading_audit,
    readings,
    results,
)
from steercube.cells import check_cells
from steercube.contract import RESPONSES
from steercube.cube import open_cube
from steercube.models import read_facts
from steercube.published_study import study_cube, study_files

SETTINGS = {"n_resamples": 50, "seed": 1, "confidence_level": 0.95}
STUDY_FILE = "results/results_100prompt/layer_search_detailed/Qwen3-{}/per_sample_all_layers.csv"


def answered_twice(rng: np.random.Generator, misread: str) -> xr.Dataset:
    """Honesty's answers follow the effect; the published reader takes `misread` for (A)."""
    cube = make_cube(rng, layers=tuple(range(1, 8)))
    cube = cube.sel(concept=["honesty"]).isel(sample=slice(0, 24))
    known = cube["logit_diff"].notnull()
    bump = xr.DataArray(
        np.exp(-((np.arange(7) - 2.0) ** 2)), coords={"layer": cube["layer"]}, dims="layer"
    )
    chance = 0.5 + 0.45 * bump * cube["strength"]
    match = (rng.random(cube["logit_diff"].shape) < chance.broadcast_like(known)).astype(float)
    match = known.copy(data=match.transpose(*known.dims)).where(known)
    letter = xr.where(match == 1, cube["letter"], xr.where(cube["letter"] == "A", "B", "A"))
    published = xr.where(letter == misread, "A", letter)
    order = known.dims
    return cube.assign(
        generation_valid=known.where(known).astype(float),
        generation_match=match,
        published_valid=known.where(known).astype(float),
        published_match=(published == cube["letter"]).where(known).astype(float).transpose(*order),
    )


def of(table: pd.DataFrame, **labels: str) -> pd.Series:
    blank = dict.fromkeys(("reading", "read_as", "published_as", "form"), "")
    for name, label in (blank | {"model": "small"} | labels).items():
        table = table[table[name] == label]
    (row,) = (row for _, row in table.iterrows())
    return row


def test_a_reader_that_takes_b_for_a_is_found_with_what_it_did(rng: np.random.Generator) -> None:
    cube = answered_twice(rng, misread="B")
    table = readings(reading_audit(cube, None, **SETTINGS))
    small = cube.sel(model="small", concept="honesty")
    is_b = (small["generation_match"] == 1) == (small["letter"] == "B")
    n_b = int((is_b & small["generation_valid"].notnull()).sum())
    n = int(small["generation_valid"].sum())
    assert of(table, statistic="responses", read_as="B", published_as="A")["value"] == n_b > 0
    assert of(table, statistic="responses", read_as="A", published_as="B")["value"] == 0
    assert of(table, statistic="misread")[["value", "n"]].tolist() == [n_b, n]
    assert of(table, statistic="misread", read_as="B")["share"] == 1
    assert of(table, statistic="misread", read_as="A")["share"] == 0
    best = {r: of(table, statistic="best change", reading=r)["value"]
            for r in ("published", "read anew")}  # fmt: skip
    assert best["read anew"] > best["published"] + 0.3


def test_readers_that_agree_have_equal_results_and_nothing_misread(
    rng: np.random.Generator,
) -> None:
    table = readings(reading_audit(answered_twice(rng, misread="neither"), None, **SETTINGS))
    assert (table.loc[table["statistic"] == "misread", "value"] == 0).all()
    of_readings = table[table["reading"] != ""].pivot_table(
        index=["model", "statistic"], columns="reading", values=["value", "low", "high"]
    )
    for name in ("value", "low", "high"):
        both = of_readings[name].dropna()
        np.testing.assert_array_equal(both["published"], both["read anew"])
    assert of(table, statistic="best change", reading="read anew")["value"] > 0.5


def test_the_held_out_change_is_below_the_best_one_where_nothing_steers(
    rng: np.random.Generator,
) -> None:
    cube = answered_twice(rng, misread="neither")
    match = cube["generation_match"]
    coin = match.copy(data=(rng.random(match.shape) < 0.5).astype(float)).where(match.notnull())
    table = readings(
        reading_audit(cube.assign(generation_match=coin, published_match=coin), None, **SETTINGS)
    )
    best = of(table, statistic="best change", reading="published")["value"]
    held_out = of(table, statistic="best change, held out", reading="published")["value"]
    assert best > 0.1
    assert abs(held_out) < best


def test_the_audit_reaches_the_cells_and_their_tables(rng: np.random.Generator) -> None:
    cube = answered_twice(rng, misread="B")
    cells = reduce_to_cells(cube, n_resamples=50)
    check_cells(cells)
    table = conclude(study_of(cells), only=["readings"])["readings"]
    pd.testing.assert_series_equal(
        table["value"], readings(reading_audit(cube, None, **SETTINGS))["value"], atol=0.2
    )
    assert confusion(table).loc[0, ["read anew", "published: (B)"]].tolist() == ["(A)", "0"]
    assert set(by_form(table)["form of the response"]) == {"another form"}
    assert {"best change", "r with the logits"} <= set(results(table)["result"])


def test_cells_without_a_published_reading_have_no_such_table(cells: xr.Dataset) -> None:
    assert "n_readings" not in cells
    assert "readings" not in conclude(study_of(cells), only=["readings"])
    assert not readings(cells).size


def test_several_answers_to_an_item_are_not_one_reading(rng: np.random.Generator) -> None:
    cube = answered_twice(rng, misread="B")
    share = cube["generation_valid"] * 0.5
    assert not reading_audit(cube.assign(generation_valid=share), None, **SETTINGS)


def test_a_response_that_stands_for_every_layer_is_read_once(rng: np.random.Generator) -> None:
    """Two models whose layers begin elsewhere, 24 responses each, all of the misread form."""
    cube = answered_twice(rng, misread="B").sel(model=["small", "large"])
    late = cube["layer"] < 3
    for name in ("generation_valid", "generation_match", "published_valid", "published_match"):
        cube[name] = cube[name].where(~(late & (cube["model"] == "large")))
    n = cube.sizes["sample"]
    told = {
        "text": ["Answer: (B) No"] * 2 * n,
        "model": np.repeat(["small", "large"], n),
        "concept": ["honesty"] * 2 * n,
        "layer": np.full(2 * n, -1),
        "strength": np.zeros(2 * n),
        "sample": np.tile(np.arange(n), 2),
    }
    responses = xr.Dataset({name: ("response", values) for name, values in told.items()})
    audit = reading_audit(cube, responses, **SETTINGS)
    of_form = audit["n_readings"].sel(answer_form="Answer: (X) ...")
    assert of_form.sum(("read_as", "published_as")).values.ravel().tolist() == [n, n]
    assert audit["n_readings"].sum() == 2 * n


def test_an_unsteered_response_is_counted_once() -> None:
    """It stands for all 20 layers: 40 items, of 6 concepts, at 2 strengths of 20 layers and 0."""
    cube = open_cube(ROOT / "data" / "smollm2.nc")
    found = distinct_responses(cube.labels, cube[RESPONSES])["n_distinct_responses"]
    assert found.values.tolist() == [[40 * (2 * 20 + 1)] * 6]
    assert int(found.sum()) == cube[RESPONSES].sizes["response"] == 9_840
    assert not distinct_responses(cube.labels, None)


OPENING = re.compile(r"(Answer:|The correct answer is:?|The answer is:?)?\s*\(([AB])\)")


def raw_responses(model: str) -> pd.DataFrame:
    """The published file, with the letter of an explicit answer at the beginning of a response."""
    frame = pd.read_csv(STUDY / STUDY_FILE.format(model), keep_default_na=False)
    bare = frame["generation"].str.replace("*", "", regex=False).str.strip()
    found = [OPENING.match(text) for text in bare]
    return frame.assign(
        form=[(m[1] or "(X)").rstrip(":") if m else "" for m in found],
        letter=[f"({m[2]})" if m else "" for m in found],
        first_word=bare.str.extract(r"^\W*(\w+)")[0],
    )


@needs_study
def test_the_published_reader_took_answer_b_for_a() -> None:
    """From the raw file alone: neither `answer_of` nor the cube is used."""
    of_32b, of_14b = raw_responses("32B"), raw_responses("14B")
    assert (len(of_14b), len(of_32b)) == (8_100, 12_900)
    led = of_32b["form"].isin(["Answer", "The correct answer is"])
    read = of_32b["extracted_answer"]
    assert (led.sum(), (led & (of_32b["letter"] == "(B)")).sum()) == (9_236, 3_745)
    assert ((of_32b["letter"] != "").sum(), (of_32b["letter"] == "(B)").sum()) == (9_957, 4_058)
    misread = (of_32b["letter"] == "(B)") & (read == "(A)")
    assert misread.sum() == 2_031
    assert set(of_32b.loc[misread, "form"]) == {"Answer"}
    assert (misread == ((of_32b["form"] == "Answer") & (of_32b["letter"] == "(B)"))).all()
    assert not ((of_32b["letter"] == "(A)") & (read == "(B)")).any()
    assert ((of_14b["letter"] == "(B)") & (of_14b["extracted_answer"] == "(A)")).sum() == 2
    begins_with_a = pd.concat([of_14b, of_32b]).query("first_word in ['Answer', 'As']")
    assert len(begins_with_a) > 5_000
    assert set(begins_with_a["extracted_answer"]) == {"(A)"}


@needs_study
def test_what_the_misread_answers_did_to_the_results() -> None:
    """32B by plain pandas; read anew are explicit beginnings alone, all else is no answer."""
    frame = raw_responses("32B")
    published = frame["matches_behavior"].map({"True": 1.0, "False": 0.0}).where(frame["is_valid"])
    corrected = (frame["letter"] == frame["matching_answer"]).astype(float)
    corrected = corrected.where(frame["letter"] != "")
    logits = pd.read_csv(
        STUDY / "results/logit_diff_sweep/self_awareness/Qwen_Qwen3_32B/per_sample_all_layers.csv"
    )
    logit = change(logits.groupby(["layer", "strength"])["logit_diff_matching"].mean())
    found = {}
    for name, match in {"published": published, "corrected": corrected}.items():
        of_items = frame.assign(match=match).set_index(["layer", "strength", "prompt_idx"])
        of_items = of_items["match"].unstack()
        curve = change(of_items.mean(axis="columns"))
        rng = np.random.default_rng(0)
        held_out = []
        for _ in range(300):
            order = rng.permuted(of_items.columns)
            one, rest = (change(of_items[part].mean(axis="columns"))
                         for part in (order[:20], order[20:]))  # fmt: skip
            held_out.append(rest[one.idxmax()])
        r = np.corrcoef(curve, logit.reindex(curve.index))[0, 1]
        found[name] = (curve.max(), np.mean(held_out), r)
    assert found["published"] == pytest.approx((0.191, 0.116, 0.280), abs=0.005)
    assert found["corrected"] == pytest.approx((0.494, 0.412, 0.376), abs=0.02)


def change(rate: pd.Series) -> pd.Series:
    of_strength = rate.unstack()
    return of_strength[1.0] - of_strength[-1.0]


@pytest.mark.slow
@needs_study
def test_the_audit_of_the_study_says_what_the_raw_file_says() -> None:
    cube = study_cube(study_files(STUDY), read_facts(ROOT / "data" / "models.toml"))
    cells = reduce.cells(cube, **(SETTINGS | {"n_resamples": 200})).view()
    table = readings(cells)
    answer_b = {"statistic": "responses", "read_as": "B", "published_as": "A"}
    of_form = of(table, model="32B", form="Answer: (X) ...", **answer_b)
    assert of_form[["value", "n"]].tolist() == [2_031, 2_031]
    assert of(table, model="14B", form="Answer: (X) ...", **answer_b)["value"] == 2
    assert of(table, model="32B", statistic="responses", read_as="A", published_as="B")["n"] > 6_000
    assert of(table, model="32B", statistic="misread", read_as="A")["value"] == 0
    expected = {
        ("best change", "read anew"): 0.494,
        ("best change", "published"): 0.191,
        ("best change, held out", "read anew"): 0.412,
        ("best change, held out", "published"): 0.116,
        ("r with the logits", "read anew"): 0.376,
        ("r with the logits", "published"): 0.280,
    }
    for (statistic, reading), value in expected.items():
        row = of(table, model="32B", statistic=statistic, reading=reading)
        assert row["value"] == pytest.approx(value, abs=0.002)
    assert of(table, model="32B", statistic="responses")["value"] == 12_900
    assert int(cells["n_distinct_responses"].sum()) == 21_000
