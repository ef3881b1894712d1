"""What a cube holds, in words."""

import numpy as np
import pytest
import xarray as xr
from builders import grid_beside, make_cube, with_controls, with_responses

from steercube.contract import STATUS
from steercube.cube import Cube, check_cube
from steercube.measures import GENERATION_MATCH, LOGIT_DIFF
from steercube.summary import summarise_cube


def test_the_summary_names_models_concepts_and_what_is_missing(cube: xr.Dataset) -> None:
    cube = cube.copy(deep=True)
    cell = {"model": "large", "concept": "humour"}
    for name in ("logit_diff", "logprob_matching", "logprob_other"):
        cube[name].loc[cell] = np.nan
    cube["cell_status"].loc[cell] = STATUS["not_run"]
    cube["cell_status"].loc[{**cell, "layer": 3}] = STATUS["failed"]
    check_cube(cube)
    text = summarise_cube(cube)
    assert "never run with logit_diff: large x humour" in text
    assert "is missing" not in text
    assert "failed: large/humour/3" in text
    assert "3-6 (4)" in text


@pytest.mark.parametrize(("bias", "letter"), [(20.0, "A"), (-20.0, "B"), (0.0, "")])
def test_a_model_that_answers_by_one_letter_is_named(
    cube: xr.Dataset, bias: float, letter: str
) -> None:
    """The letter decides before its text does; a model without such a habit goes unmentioned."""
    at = {"model": "small", "concept": "humour"}
    sign = xr.where(cube["letter"].sel(concept="humour") == "A", 1.0, -1.0)
    shifted = cube["logit_diff"].sel(at) + bias * sign
    cube["logit_diff"].loc[at] = shifted.transpose("layer", "strength", "sample").values
    said = [line for line in summarise_cube(cube).splitlines() if "warning" in line]
    if letter:
        (line,) = said
        assert f"small prefers ({letter}) in all 30 items of humour without steering" in line
    else:
        assert said == []


def test_a_model_and_a_concept_are_missing_only_where_their_measure_was_swept(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    """Answers were generated for one model on one concept: none is missing among the others."""
    one = cube.sel(model=["small"], concept=["humour"])
    share = xr.full_like(one["logit_diff"], 0.5).where(one["item_id"] != "")
    grid = grid_beside(one, GENERATION_MATCH, generation_match=share, generation_valid=share)
    text = summarise_cube(Cube({**with_controls(cube, rng), "generation_match": grid}, cube.attrs))
    assert "never run" not in text
    assert text.count("no model x concept is missing") == 2
    assert "logit_diff/random (nat) at strengths -1, +0, +1\n    1 direction(s)" in text
    assert "answers are valid in 50% of cells and items" in text


def test_a_cube_is_told_at_a_prompt_with_its_responses(cube: xr.Dataset) -> None:
    place = {"model": "small", "concept": "humour", "layer": 3, "strength": 1.0, "sample": [0, 1]}
    held = with_responses(cube, text=["(A)", "(B)"], **place)
    assert repr(held) == summarise_cube(held)
    assert "2 generated responses" in repr(held)


@pytest.mark.parametrize("lacking", ["layer", "letter"])
def test_a_grid_without_layers_or_letters_is_told_too(
    lacking: str, rng: np.random.Generator
) -> None:
    cube = make_cube(rng, layers=(4,))
    less = {
        "layer": cube.isel(layer=0).drop_vars(["layer", "depth"]),
        "letter": cube.drop_vars("letter"),
    }[lacking]
    check_cube(less)
    text = summarise_cube(less)
    assert f"{LOGIT_DIFF.name} (nat) at strengths -1, +0, +1" in text
    assert ("layer not recorded" in text) == (lacking == "layer")


def test_a_sweep_that_completed_no_layer_says_so(cube: xr.Dataset) -> None:
    cube = cube.copy(deep=True)
    for name in ("logit_diff", "logprob_matching", "logprob_other"):
        cube[name].loc["large"] = np.nan
    cube["cell_status"].loc["large"] = STATUS["failed"]
    assert "large       layers none             0 complete cells" in summarise_cube(cube)
