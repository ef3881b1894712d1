from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import ATTRIBUTES, MODELS, make_cube

from steercube.cli import main
from steercube.contract import Model
from steercube.cube import as_cube, open_cube, save_cube
from steercube.from_table import measure_cube, read_rows
from steercube.measures import Measure

SCORE = Measure("score", units="points")
KNOWN: dict[str, Model] = {model.name: model for model in MODELS}
ROWS = pd.DataFrame(
    {
        **{"model": "small", "concept": "poems", "item": ["a", "b"] * 6},
        "strength": np.repeat([-1.0, 0.0, 1.0], 4),
        "layer": np.tile([2, 2, 3, 3], 3),
        "value": np.arange(12.0),
    }
)


def values_of(rows: pd.DataFrame, path: str = "score", **options: object) -> pd.Series:
    cube = measure_cube(rows, SCORE, models=KNOWN, **options)
    return cube[path]["score"].to_series().dropna()


def test_every_row_lands_in_its_place() -> None:
    found = values_of(ROWS)
    assert len(found) == 12
    at = found.reset_index()
    items = np.array(["a", "b"])[at["sample"]]
    keys = list(zip(items, at["strength"], at["layer"], strict=True))
    wanted = ROWS.set_index(["item", "strength", "layer"])["value"]
    assert at["score"].tolist() == [wanted[key] for key in keys]


def test_the_order_of_rows_changes_nothing() -> None:
    shuffled = ROWS.sample(frac=1, random_state=1)
    once, again = (measure_cube(rows, SCORE, models=KNOWN)["score"] for rows in (ROWS, shuffled))
    by_id = [
        ds.assign_coords(sample=ds["item_id"].values[0]).sortby("sample") for ds in (once, again)
    ]
    np.testing.assert_array_equal(*(ds["score"].values for ds in by_id))


def test_an_unsteered_row_without_a_layer_stands_for_every_layer() -> None:
    unsteered = ROWS["strength"] == 0
    bare = ROWS[~unsteered | (ROWS["layer"] == 2)].astype({"layer": float})
    bare.loc[bare["strength"] == 0, "layer"] = np.nan
    found = values_of(bare).unstack("layer")
    np.testing.assert_array_equal(
        found[2].xs(0.0, level="strength"), found[3].xs(0.0, level="strength")
    )
    assert found.notna().all(axis=None)


def test_an_unsteered_row_without_a_direction_stands_for_every_direction() -> None:
    """And for the concept's own vector, if that was added too."""
    steered = ROWS[ROWS["strength"] != 0]
    rows = pd.concat(
        [
            ROWS[ROWS["strength"] == 0].assign(direction=""),
            *(steered.assign(direction=name) for name in ("", "envy", "sae/3")),
        ]
    )
    cube = measure_cube(rows, SCORE, models=KNOWN)
    assert set(cube.grids) == {"score", "score/envy", "score/sae"}
    for path, grid in cube.grids.items():
        assert grid["score"].notnull().all(), path
    alone = measure_cube(rows[(rows["direction"] != "") | (rows["strength"] == 0)], SCORE,
                         models=KNOWN)  # fmt: skip
    assert set(alone.grids) == {"score/envy", "score/sae"}


def test_repeats_of_an_item_are_averaged() -> None:
    twice = pd.concat([ROWS.assign(repeat=0), ROWS.assign(repeat=1, value=ROWS["value"] + 1)])
    np.testing.assert_allclose(values_of(twice), values_of(ROWS) + 0.5)


def test_a_measure_stands_beside_those_of_a_cube(rng: np.random.Generator) -> None:
    cube = as_cube(make_cube(rng))
    at = make_rows_of(cube["logit_diff"])
    both = measure_cube(at, SCORE, beside=cube)
    assert list(both) == ["logit_diff", "score"]
    assert both["logit_diff"].equals(cube["logit_diff"])
    np.testing.assert_allclose(both["score"]["score"], 2 * cube["logit_diff"]["logit_diff"])
    assert both.attrs["history"].startswith(ATTRIBUTES["history"])


def make_rows_of(grid: object) -> pd.DataFrame:
    """The grid's logit differences, doubled, as a table with the items' ids."""
    rows = grid["logit_diff"].to_series().dropna().reset_index()
    ids = grid["item_id"].to_series()
    item = [ids[key] for key in zip(rows["concept"], rows["sample"], strict=True)]
    return rows.assign(item=item, value=2 * rows["logit_diff"]).drop(
        columns=["sample", "logit_diff"]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.assign(model="tiny"), "model 'tiny' has no entry"),
        (lambda rows: pd.concat([rows, rows]), "repeat the"),
        (lambda rows: rows.assign(layer=rows["layer"].where(rows.index > 0)), "have no layer"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        measure_cube(change(ROWS), SCORE, models=KNOWN)


def test_an_item_that_the_cube_lacks_is_named(rng: np.random.Generator) -> None:
    cube = as_cube(make_cube(rng))
    rows = make_rows_of(cube["logit_diff"])
    rows.loc[0, "item"] = "honesty/999"
    with pytest.raises(ValueError, match="concept 'honesty' has no item 'honesty/999'"):
        measure_cube(rows, SCORE, beside=cube)


def test_a_binary_measure_holds_shares_alone() -> None:
    with pytest.raises(ValueError, match=r"'score' must be in \[-0.0001, 1.0001\]"):
        measure_cube(ROWS, Measure("score", kind="binary"), models=KNOWN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,concept,item,strenght,value\n", "did you mean 'strenght'"),
        ("model,concept,item,strength,value,color\n", "unknown column 'color'"),
        ("model,concept,item,strength,value\nsmall,poems,a,high,1\n", "'strength' holds text"),
        ("model,concept,item,strength,value\nsmall,,a,1,1\n", "'concept' is empty in row 1"),
        ('"', "is not a table"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (Measure("generation_match"), "has another meaning in a cube"),
        (Measure("responses"), "has another meaning in a cube"),
        (Measure("a/b"), "cannot be a name"),
        (Measure("score", layer_by="scor"), "did you mean 'score'"),
        (Measure("score", compare=(1.0, -1.0)), "the low one first"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(measure: Measure, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measure_cube(ROWS, measure, models=KNOWN)


def test_a_measure_does_not_take_the_place_of_another(rng: np.random.Generator) -> None:
    cube = as_cube(make_cube(rng))
    both = measure_cube(make_rows_of(cube["logit_diff"]), SCORE, beside=cube)
    with pytest.raises(ValueError, match="has a measure 'score' already"):
        measure_cube(make_rows_of(cube["logit_diff"]), SCORE, beside=both)


def test_directions_that_would_hide_a_variable_are_refused() -> None:
    with pytest.raises(ValueError, match="directions cannot be called 'layer'"):
        measure_cube(ROWS.assign(direction="layer"), SCORE, models=KNOWN)


def test_an_item_of_two_letters_is_named() -> None:
    with pytest.raises(ValueError, match="item 'a' with two letters"):
        measure_cube(ROWS.assign(letter=["A", "B", "B", "B"] * 3), SCORE, models=KNOWN)


def test_an_item_may_be_called_na_and_only_missing_values_are_left_out(tmp_path: Path) -> None:
    head = "model,concept,item,strength,value\n"
    (tmp_path / "a.csv").write_text(head + "small,poems,NA,1,2\nsmall,poems,null,1,NA\n")
    found = read_rows(tmp_path / "a.csv")
    assert found["item"].tolist() == ["NA"]
    (tmp_path / "b.csv").write_text(head + "small,poems,a,1,\n")
    with pytest.raises(ValueError, match="holds no value"):
        read_rows(tmp_path / "b.csv")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_judges_score_becomes_a_measure_without_code(
    suffix: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    cube = as_cube(make_cube(rng))
    save_cube(cube, tmp_path / "mine.nc")
    rows, table = make_rows_of(cube["logit_diff"]), tmp_path / f"scores.{suffix}"
    if suffix == "csv":
        rows.to_csv(table, index=False)
    else:
        rows.to_json(table, orient="records", lines=True)
    given = ("--name", "judge", "--units", "points", "--to", str(tmp_path / "mine.nc"))
    out = ("--out", str(tmp_path / "judged.nc"))
    assert main(["add-measure", str(table), *given, *out]) == 0
    both = open_cube(tmp_path / "judged.nc")
    np.testing.assert_allclose(
        both["judge"]["judge"], 2 * cube["logit_diff"]["logit_diff"], rtol=1e-6
    )
    assert both.measures["judge"].units == "points"


def test_an_unsteered_row_of_a_layer_goes_before_one_for_all() -> None:
    """Also where repeats are averaged: the two would be mixed."""
    steered = ROWS[ROWS["strength"] != 0]
    unsteered = pd.DataFrame(
        {**{"model": "small", "concept": "poems", "item": ["a", "b", "a"], "strength": 0.0},
         **{"layer": [np.nan, np.nan, 2.0], "value": [1.0, 2.0, 9.0]}}
    )  # fmt: skip
    rows = pd.concat([steered, unsteered]).assign(repeat=0)
    found = values_of(rows).xs(0.0, level="strength").droplevel(["model", "concept"])
    assert found.unstack("sample").loc[[2, 3]].values.tolist() == [[9.0, 2.0], [1.0, 2.0]]


def test_a_family_of_directions_may_be_without_layers() -> None:
    rows = pd.concat([ROWS, ROWS[ROWS["layer"] == 2].assign(layer=np.nan, direction="sae/3")])
    cube = measure_cube(rows, SCORE, models=KNOWN)
    assert ["layer" in grid.dims for grid in cube.grids.values()] == [True, False]
    half = rows.assign(layer=rows["layer"].where(rows["item"] == "a", np.nan))
    with pytest.raises(ValueError, match=r"steered row\(s\) have no layer"):
        measure_cube(half, SCORE, models=KNOWN)


def gsm8k(model: str = "small") -> pd.DataFrame:
    """Whether questions that no sweep asked were answered rightly, under a concept's vector."""
    return pd.DataFrame(
        {
            **{"model": model, "concept": "gsm8k", "direction": "honesty"},
            **{"item": ["q1", "q2", "q3"] * 2, "strength": np.repeat([0.0, 1.0], 3)},
            "value": [1.0, 0.0, 1.0, 1.0, 1.0, 0.0],
        }
    )


def test_a_concept_that_the_cube_lacks_brings_its_items(rng: np.random.Generator) -> None:
    cube = as_cube(make_cube(rng))
    right = Measure("right", kind="binary", compare="slope")
    whole = measure_cube(gsm8k(), right, beside=cube)
    grid = whole["right/honesty"]
    assert grid["concept"].values.tolist() == ["gsm8k"]
    assert grid["item_id"].values[0].tolist() == ["q1", "q2", "q3"]
    assert grid["right"].sel(strength=1.0).values.ravel().tolist() == [1.0, 1.0, 0.0]
    assert whole["logit_diff"].identical(whole["logit_diff"].assign(cube["logit_diff"]))
    assert set(whole["logit_diff"]["concept"].values) == {"honesty", "humour"}


def test_a_model_that_the_cube_lacks_is_named(rng: np.random.Generator) -> None:
    cube = as_cube(make_cube(rng))
    with pytest.raises(ValueError, match=r"the cube has no model 'smal'.*did you mean 'small'"):
        measure_cube(gsm8k("smal"), SCORE, beside=cube)


def test_the_words_of_a_record_are_those_given(tmp_path: Path) -> None:
    gsm8k().drop(columns="direction").to_csv(tmp_path / "t.csv", index=False)
    models = tmp_path / "models.toml"
    facts = dict(vars(KNOWN["small"]))
    lines = [f"{name} = {value!r}" for name, value in facts.items() if name not in ("name",)]
    models.write_text("\n".join(["[small]", *lines]).replace("revision = ''\n", ""))
    out = tmp_path / "x.nc"
    words = ["--name", "right", "--kind", "binary", "--words", "sums that are right"]
    arguments = ["add-measure", str(tmp_path / "t.csv"), *words, "--models", str(models)]
    assert main([*arguments, "--out", str(out)]) == 0
    assert open_cube(out)["right"]["right"].attrs["long_name"] == "sums that are right"


def test_values_of_the_same_name_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube, out = as_cube(make_cube(np.random.default_rng(2))), tmp_path / "x.nc"
    save_cube(cube, tmp_path / "cube.nc")
    for value, code in ((1.0, 0), (1.0, 0), (0.0, 2)):
        gsm8k().assign(value=value).to_csv(tmp_path / "t.csv", index=False)
        arguments = ["add-measure", str(tmp_path / "t.csv"), "--name", "right", "--to"]
        assert main([*arguments, str(tmp_path / "cube.nc"), "--out", str(out)]) == code
    assert "right/honesty: it holds other values of 'right'" in capsys.readouterr().err
