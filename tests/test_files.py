"""Files from Python: opened by what they hold, never silently replaced."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import make_cube, make_model, reduce_to_cells

from steercube.cells import Cells, as_cells
from steercube.cube import Cube, as_cube
from steercube.files import add_measure, merge, open, save

ROWS = pd.DataFrame(
    {
        **{"model": "mine", "concept": "poems", "item": np.repeat([f"p{i}" for i in range(12)], 3)},
        "strength": np.tile([-1.0, 0.0, 1.0], 12),
        "value": np.arange(36.0),
    }
)
FACTS = {"mine": {"n_layers": 4, "n_params": 1e9, "training": "sft"}}


def test_a_file_is_opened_as_what_it_holds(tmp_path: Path) -> None:
    cube = make_cube(np.random.default_rng(1))
    save(cube, tmp_path / "mine.nc")
    save(as_cells(reduce_to_cells(cube, n_resamples=20)), tmp_path / "mine.cells.nc")
    assert isinstance(open(tmp_path / "mine.nc"), Cube)
    assert isinstance(open(tmp_path / "mine.cells.nc"), Cells)
    with pytest.raises(FileNotFoundError, match=r"has mine\.cells\.nc, mine\.nc\).*did you mean"):
        open(tmp_path / "min.nc")


def test_values_that_a_file_alone_has_are_not_replaced(tmp_path: Path) -> None:
    whole = make_cube(np.random.default_rng(1))
    save(whole, tmp_path / "mine.nc")
    with pytest.raises(ValueError, match=r"replacing .*mine\.nc"):
        save(whole.sel(model=["small"]), tmp_path / "mine.nc")


def test_cubes_of_other_models_are_merged() -> None:
    whole = as_cube(make_cube(np.random.default_rng(1)))
    parts = [whole.sel(model=[name]) for name in ("small", "large")]
    merged = merge(*parts)
    xr.testing.assert_allclose(
        merged["logit_diff"]["logit_diff"],
        whole.sel(model=["small", "large"])["logit_diff"]["logit_diff"],
    )


def test_numbers_from_elsewhere_become_a_study() -> None:
    """A frame of four columns of labels and one of values, with two facts of the model."""
    found = add_measure(ROWS, "score", models=FACTS, units="points", toward="more")
    assert found["score"]["training"].item() == "sft"
    effects = found.steercube.effects("delta")
    assert effects["value"].tolist() == pytest.approx([2.0])
    assert effects["units"].tolist() == ["points"]
    again = add_measure(ROWS.assign(item=ROWS["item"].str[1:].astype(int)), "score", models=FACTS)
    assert again["score"]["item_id"].values[0, :2].tolist() == ["0", "1"]


def test_a_judges_score_stands_beside_the_logits() -> None:
    cube = as_cube(make_cube(np.random.default_rng(1)))
    grid = cube["logit_diff"]
    rows = grid["logit_diff"].to_series().dropna().rename("value").reset_index()
    ids = grid["item_id"].to_series().to_dict()
    rows["item"] = [ids[key] for key in zip(rows["concept"], rows["sample"], strict=True)]
    both = add_measure(rows.drop(columns="sample"), "judge", to=cube, layer_by="logit_diff")
    assert list(both.measures) == ["logit_diff", "judge"]
    np.testing.assert_allclose(
        both["judge"]["judge"].transpose(*grid["logit_diff"].dims), grid["logit_diff"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"mine": {"n_layers": 4}}}, "model 'mine' lacks 'n_params'"),
        ({"models": {"mine": {**FACTS["mine"], "size": 3}}}, "unknown fact 'size'"),
        ({"models": {}}, "model 'mine' has no entry"),
        ({"unit": "points"}, "no option is called 'unit'; did you mean 'units'"),
        ({"table": ROWS.drop(columns="strength")}, "the table .*has no column 'strength'"),
        ({"table": ROWS.assign(judge="me")}, "has the unknown column 'judge'"),
        ({"table": ROWS.assign(value=np.nan)}, "the table: holds no value"),
        ({"table": ROWS.assign(strength="one")}, "column 'strength' holds text"),
        ({"table": pd.concat([ROWS, ROWS["item"]], axis=1)}, "column\\(s\\) item more than once"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, object], message: str) -> None:
    options = {"table": ROWS, "models": FACTS, **change}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        add_measure(options.pop("table"), "score", **options)  # type: ignore[arg-type]


def test_facts_may_be_records_too() -> None:
    given = {"mine": make_model("mine", "sft")}
    assert add_measure(ROWS, "score", models=given)["score"]["n_params"] == given["mine"].n_params


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.convert_dtypes(),
        lambda rows: rows.astype({"model": "category", "concept": "category", "item": "category"}),
        lambda rows: rows.astype({"strength": "Int64", "value": object}),
        lambda rows: rows.assign(layer=pd.Series(2, rows.index, dtype="Int64").astype("category")),
        lambda rows: rows.assign(letter=pd.Categorical([None, "A", "B"] * 12)).assign(
            letter=lambda table: table["item"].map(lambda item: "AB"[int(item[1:]) % 2])
        ),
        lambda rows: rows.assign(direction=pd.Categorical(["", None, ""] * 12)),
        lambda rows: rows.assign(repeat=pd.array([1] * 36, dtype="Int64")),
    ],
)
def test_columns_of_any_kind_give_the_same_numbers(change: Any, tmp_path: Path) -> None:
    wanted = add_measure(ROWS, "score", models=FACTS)["score"]["score"].values
    found = add_measure(change(ROWS), "score", models=FACTS)
    np.testing.assert_array_equal(np.ravel(found["score"]["score"].values), np.ravel(wanted))
    save(found, tmp_path / "mine.nc")
    assert len(open(tmp_path / "mine.nc").steercube.effects("delta")) == 1
