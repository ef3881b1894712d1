"""One cube from several: what each recorded is kept, and they must agree where they overlap."""

import json

import numpy as np
import pytest
import xarray as xr
from builders import (
    ATTRIBUTES,
    MODELS,
    grid_beside,
    make_cube,
    make_items,
    make_model,
    with_controls,
    with_responses,
)

from steercube.contract import RESPONSES, STATUS, UNSTEERED, VECTORS
from steercube.cube import Cube, blank_grid
from steercube.measures import GENERATION_MATCH, LOGIT_DIFF, Measure
from steercube.merging import merge_cubes

FILES = "files:" + "1a" * 32
PLACE = {"model": "small", "concept": "humour", "layer": 3, "strength": 1.0, "sample": 0}


def part(cube: xr.Dataset, **labels: object) -> xr.Dataset:
    return cube.sel({k: v if isinstance(v, list) else [v] for k, v in labels.items()})


def same(merged: Cube, cube: xr.Dataset) -> bool:
    """Whether it holds the grid, and nothing else."""
    return list(merged) == [LOGIT_DIFF.name] and same_grid(merged[LOGIT_DIFF.name], cube)


def same_grid(one: xr.Dataset, two: xr.Dataset) -> bool:
    order = {dim: sorted(one[dim].values.tolist()) for dim in ("model", "concept")}
    one, two = (ds.sel(order).drop_attrs(deep=False) for ds in (one, two))
    return one.identical(two)


@pytest.mark.parametrize("dim", ["model", "concept", "layer"])
def test_merging_the_parts_gives_the_whole(dim: str, cube: xr.Dataset) -> None:
    parts = [part(cube, **{dim: label}) for label in cube[dim].values]
    assert same(merge_cubes(parts), cube)
    assert same(merge_cubes(parts[::-1]), cube)


def test_merging_overlapping_parts_that_agree(cube: xr.Dataset) -> None:
    one, two = part(cube, model=["small", "middle"]), part(cube, model=["middle", "large"])
    assert same(merge_cubes([one, two]), cube)


def test_merging_fills_cells_that_were_not_run(cube: xr.Dataset) -> None:
    blank = blank_grid(
        MODELS,
        {c: make_items(c, n) for c, n in {"honesty": 24, "humour": 30}.items()},
        layers=[3, 4, 5, 6, 7],
        strengths=[-1, 0, 1],
        attrs=ATTRIBUTES,
    )
    merged = merge_cubes([blank, cube])["logit_diff"]
    assert same_grid(merged.sel(layer=[3, 4, 5, 6]), cube)
    assert (merged["cell_status"].sel(layer=7) == STATUS["not_run"]).all()


def test_merging_a_model_that_lacks_a_layer_of_the_other() -> None:
    rng = np.random.default_rng(0)
    short = make_cube(rng, models=(make_model("short", n_layers=4),), layers=(2, 3))
    long = make_cube(rng, models=(make_model("long", n_layers=9),), layers=(5, 6))
    status = merge_cubes([short, long])["logit_diff"]["cell_status"].sel(concept="humour")
    assert (status.sel(model="short", layer=[5, 6]) == STATUS["not_applicable"]).all()
    assert (status.sel(model="long", layer=[2, 3]) == STATUS["not_run"]).all()


def test_merging_refuses_cells_that_differ(cube: xr.Dataset) -> None:
    other = cube.copy(deep=True)
    for name in ("logit_diff", "logprob_matching"):
        other[name].loc["small", "honesty", 3, 1.0, 0] += 1
    with pytest.raises(ValueError, match="'logit_diff' differs at 1 place"):
        merge_cubes([cube, other])


def test_merging_refuses_items_that_differ(cube: xr.Dataset) -> None:
    other = part(cube, model="large").copy(deep=True)
    other["item_valid"][0, 0] = False
    with pytest.raises(ValueError, match="'item_valid' differs at 1 place"):
        merge_cubes([part(cube, model="small"), other])


def test_merging_keeps_responses(cube: xr.Dataset) -> None:
    small, large = part(cube, model="small"), part(cube, model="large")
    one = with_responses(small, text="(A) yes", **PLACE)
    two = with_responses(large, text="(B)", **(PLACE | {"model": "large"}))
    merged = merge_cubes([one, two, one])[RESPONSES]
    assert merged["text"].values.tolist() == ["(A) yes", "(B)"]
    assert merged["model"].values.tolist() == ["small", "large"]


def test_responses_of_cubes_that_tell_more_and_less_are_merged(cube: xr.Dataset) -> None:
    """What only one of them says of its responses is left out."""
    unsteered = PLACE | {"layer": UNSTEERED, "strength": 0.0, "text": "(A)"}
    less = with_responses(part(cube, model="small"), **unsteered)
    more = with_responses(
        part(cube, model="large"), **(unsteered | {"model": "large", "repeat": 2})
    )
    merged = merge_cubes([less, more])[RESPONSES]
    assert merged.sizes["response"] == 2
    assert "repeat" not in merged


def test_responses_to_another_direction_stay_apart_from_those_to_the_concepts_own(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    """Also where the cube of the concepts' own vectors does not speak of directions."""
    own = with_responses(cube, text="(A)", **PLACE)
    controlled = with_controls(cube, rng)
    told = xr.Dataset({k: ("response", [v]) for k, v in (PLACE | {"text": "(B)"}).items()})
    told["direction"] = ("response", ["random/0"])
    both = [own, controlled.with_tables({RESPONSES: told})]
    for cubes, texts in ((both, ["(A)", "(B)"]), (both[::-1], ["(B)", "(A)"])):
        merged = merge_cubes(cubes)[RESPONSES]
        assert merged["text"].values.tolist() == texts
        of_text = dict(zip(texts, merged["direction"].values.tolist(), strict=True))
        assert of_text == {"(A)": "", "(B)": "random/0"}


def test_responses_that_differ_are_refused(cube: xr.Dataset) -> None:
    one, two = (with_responses(cube, text=text, **PLACE) for text in ("(A)", "(B)"))
    with pytest.raises(ValueError, match=r"'text' differs in 1 .* small/humour/3/1\.0/0"):
        merge_cubes([one, two])


def test_one_model_under_two_names_is_not_merged(cube: xr.Dataset) -> None:
    """In one number format or in two."""
    one = part(cube, model="small").assign_coords(revision=("model", [FILES]))
    two = part(cube, model="large").assign_coords(revision=("model", [FILES]))
    for other in (two, two.assign_attrs(dtype="bfloat16")):
        with pytest.raises(
            ValueError, match=r"(?s)merging these cubes .* are the same weights, files:"
        ):
            merge_cubes([one, other])
    merge_cubes([one, two.assign_coords(revision=("model", ["files:" + "5e" * 32]))])


def test_merging_joins_provenance(cube: xr.Dataset) -> None:
    other = part(cube, model="large").assign_attrs(history="made elsewhere")
    assert merge_cubes([part(cube, model="small"), other]).attrs["history"].splitlines() == [
        "made by tests",
        "made elsewhere",
    ]


def test_merging_keeps_the_inputs_of_both(cube: xr.Dataset) -> None:
    one = part(cube, model="small").assign_attrs(inputs_sha256='{"honesty": "1a", "humour": "2b"}')
    two = part(cube, model="large").assign_attrs(inputs_sha256='{"humour": "2b", "envy": "3c"}')
    merged = json.loads(merge_cubes([one, two]).attrs["inputs_sha256"])
    assert merged == {"envy": "3c", "honesty": "1a", "humour": "2b"}


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"positions_steered": "the last position"}, "'positions_steered' is 'every position' in"),
        ({"layer_convention": "read at its input"}, "'layer_convention' is 'read and added at"),
        ({"inputs_sha256": '{"humour": "2c"}'}, "the input 'humour' is '2b' in one and '2c'"),
    ],
    ids=["positions", "convention", "inputs"],
)
def test_merging_refuses_samples_of_another_kind(
    attributes: dict[str, str], said: str, cube: xr.Dataset
) -> None:
    cube = cube.assign_attrs(inputs_sha256='{"humour": "2b"}')
    other = part(cube, model="large").assign_attrs(attributes)
    with pytest.raises(ValueError, match=said):
        merge_cubes([part(cube, model="small"), other])


def test_merging_refuses_one_model_in_two_number_formats(cube: xr.Dataset) -> None:
    """Two models may have one each."""
    half = cube.assign_attrs(dtype="bfloat16")
    merged = merge_cubes([part(cube, model="small"), part(half, model="large")])
    assert merged.attrs["dtype"] == "float32\nbfloat16"
    merge_cubes([merged, part(cube, model="small")])
    other = half.isel(layer=slice(2))
    with pytest.raises(ValueError, match="'dtype' is 'float32' in one and 'bfloat16'"):
        merge_cubes([cube.isel(layer=slice(2, None)), other])


def test_merging_drops_no_variable(cube: xr.Dataset) -> None:
    other = part(cube, model="large").assign(mine=("model", [1.0]))
    with pytest.raises(ValueError, match="'mine' is not a variable of the contract"):
        merge_cubes([part(cube, model="small"), other])


def settings(of: xr.Dataset, **said: object) -> xr.Dataset:
    """A grid of answers to the items, made with these settings."""
    chance = xr.full_like(of["logit_diff"], 0.5).where(of["item_id"] != "")
    grid = grid_beside(of, GENERATION_MATCH, generation_match=chance, generation_valid=chance)
    grid["generation_match"].attrs |= said
    return grid


def test_merging_refuses_answers_sampled_at_another_temperature(cube: xr.Dataset) -> None:
    """Whichever of the cubes it is that says so."""
    small, middle, large = (part(cube, model=name) for name in cube["model"].values)
    greedy, sampled = settings(small, temperature=0.0), settings(large, temperature=0.8)
    unknown = settings(middle)
    merged = merge_cubes([greedy, unknown, settings(large, temperature=0.0)])
    assert merged["generation_match"]["generation_match"].attrs["temperature"] == 0.0
    for cubes in ([greedy, sampled], [greedy, unknown, sampled], [unknown, greedy, sampled]):
        with pytest.raises(
            ValueError, match=r"generation_match: temperature is 0\.0 in one and 0\.8 in another"
        ):
            merge_cubes(cubes)


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "binary"), ("compare", [0.0, 1.0]), ("units", "bit"), ("rope", 0.2)],
)
def test_merging_refuses_measures_whose_records_differ(
    field: str, value: object, cube: xr.Dataset
) -> None:
    judge = Measure("judged", rope=0.1)
    shares = xr.full_like(cube["logit_diff"], 0.5).where(cube["item_id"] != "")
    grid = grid_beside(cube, judge, judged=shares)
    one, two = (part(grid, model=name) for name in ("small", "large"))
    merge_cubes([one, two])
    two["judged"].attrs[field] = value
    with pytest.raises(ValueError, match=f"judged: {field} is .* in one and .* in another"):
        merge_cubes([one, two])


def test_merging_refuses_a_grid_with_other_strengths_or_dimensions(cube: xr.Dataset) -> None:
    small, large = part(cube, model="small"), part(cube, model="large")
    with pytest.raises(ValueError, match=r"logit_diff: has the strengths \[-1\.0, 0\.0, 1\.0\] in"):
        merge_cubes([small, large.sel(strength=[-1.0, 1.0])])
    with pytest.raises(ValueError, match="logit_diff: has the dimensions"):
        merge_cubes([small, large.sel(layer=4).drop_vars(["layer", "depth"])])


def test_cubes_of_different_measures_and_families_are_merged(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    controlled = with_controls(cube, rng)
    answers = settings(part(cube, model="large"))
    vectors = part(cube, model="small")[["cell_status"]].rename(cell_status="vector_norm")
    known = {VECTORS: vectors.astype(float).drop_attrs()}
    merged = merge_cubes([answers, controlled, Cube({LOGIT_DIFF.name: cube} | known, cube.attrs)])
    assert list(merged) == ["logit_diff", "logit_diff/random", "generation_match", VECTORS]
    assert same_grid(merged["logit_diff"], cube)
    for path, grid in {**controlled, "generation_match": answers}.items():
        assert same_grid(merged[path], grid)
    assert merged[VECTORS]["model"].values.tolist() == ["small"]


@pytest.mark.parametrize("order", [1, -1])
def test_merging_keeps_inputs_that_are_no_hashes_by_name(order: int, cube: xr.Dataset) -> None:
    one = part(cube, model="small").assign_attrs(inputs_sha256='{"humour": "2b"}')
    two = part(cube, model="large").assign_attrs(inputs_sha256="a notebook")
    merged = merge_cubes([one, two][::order])
    lines = ['{"humour": "2b"}', "a notebook"]
    assert merged.attrs["inputs_sha256"].splitlines() == lines[::order]


def test_shares_that_no_float32_holds_are_equal_to_themselves(cube: xr.Dataset) -> None:
    """Whatever the size of the floats in which they are held."""
    third = xr.full_like(cube["logit_diff"], 1 / 3, dtype=float).where(cube["item_id"] != "")
    grid = grid_beside(cube, GENERATION_MATCH, generation_match=third, generation_valid=third)
    merged = merge_cubes([grid, part(grid, model="small")])["generation_match"]
    assert merged["generation_valid"].dtype == merged["generation_match"].dtype == "float64"
    assert same_grid(merged, grid)


def test_what_nobody_recorded_keeps_no_cubes_apart(cube: xr.Dataset) -> None:
    bare = cube.assign_attrs(dict.fromkeys(("layer_convention", "dtype"), "not recorded"))
    for cubes in ([cube, part(bare, model="small")], [part(bare, model="small"), cube]):
        merged = merge_cubes(cubes)
        assert merged.attrs["dtype"] == "float32"
        assert merged.attrs["layer_convention"] == cube.attrs["layer_convention"]
