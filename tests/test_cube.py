import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from builders import ATTRIBUTES, MODELS, make_cube, make_items, make_model, with_controls

from steercube import netcdf
from steercube.cube import (
    STATUS,
    UNSTEERED,
    blank_cube,
    check_cube,
    merge_cubes,
    open_cube,
    save_cube,
    summarise_cube,
)

Break = Callable[[xr.Dataset], xr.Dataset]


def test_a_blank_cube_keeps_the_contract() -> None:
    items = {"honesty": make_items("honesty", 3), "humour": make_items("humour", 5)}
    blank = blank_cube(MODELS, items, layers=[2, 9], strengths=[-1, 1], attrs=ATTRIBUTES)
    check_cube(blank)
    status = blank["cell_status"].sel(concept="humour")
    assert (status.sel(model="small", layer=9) == STATUS["not_applicable"]).all()
    assert (status.sel(model="large", layer=9) == STATUS["not_run"]).all()
    assert blank["item_id"].sel(concept="honesty").values.tolist()[3:] == ["", ""]
    assert blank["depth"].sel(model="middle", layer=9) == 0.9


def test_round_trip(cube: xr.Dataset, tmp_path: Path) -> None:
    sha = save_cube(cube, tmp_path / "cube.nc")
    back = open_cube(tmp_path / "cube.nc")
    assert back.drop_attrs(deep=False).identical(cube.drop_attrs(deep=False))
    assert back.attrs[netcdf.DIGEST] == sha


def replace(name: str, change: Callable[[xr.DataArray], object]) -> Break:
    def broken(cube: xr.Dataset) -> xr.Dataset:
        cube = cube.copy(deep=True)
        cube[name] = (cube[name].dims, np.asarray(change(cube[name])))
        return cube.set_coords([name]) if name in ("training", "letter", "item_id") else cube

    return broken


def first_value(value: object) -> Callable[[xr.DataArray], object]:
    def change(array: xr.DataArray) -> object:
        values = array.values.copy()
        values.flat[0] = value
        return values

    return change


BREAKS: dict[str, tuple[Break, str]] = {
    "a variable missing": (lambda c: c.drop_vars("logprob_other"), "'logprob_other' is missing"),
    "an attribute missing": (lambda c: c.drop_attrs(deep=False), "'title' is missing"),
    "a dimension renamed": (
        lambda c: c.rename(strength="alpha"),
        "dimension 'strength' is missing",
    ),
    "a dimension without labels": (lambda c: c.drop_vars("layer"), "'layer' has no labels"),
    "a label twice": (
        lambda c: c.assign_coords(model=["small", "small", "large"]),
        r"repeats the labels \['small'\]",
    ),
    "text for numbers": (
        lambda c: c.assign(logit_diff=c["logit_diff"].astype(str)),
        "must hold kind 'f'",
    ),
    "wrong dims": (
        lambda c: c.assign(cell_status=c["cell_status"].isel(layer=0, drop=True)),
        "'cell_status' has dimensions",
    ),
    "a training that is no name": (
        replace("training", first_value("rl/sft")),
        "training 'rl/sft' cannot be a name",
    ),
    "an unknown architecture": (
        replace("architecture", first_value("magic")),
        r"'architecture' of {'small': 'magic'} is none of dense, moe",
    ),
    "a negative layer": (lambda c: c.assign_coords(layer=[-1, 4, 5, 6]), "count blocks from 0"),
    "a depth of its own": (lambda c: c.assign_coords(depth=c["depth"] / 2), "not layer / n_layers"),
    "an item twice": (
        replace("item_id", lambda a: np.where(a == "honesty/000", "humour/001", a)),
        "must be unique",
    ),
    "no letter": (replace("letter", first_value("")), "'letter' is empty"),
    "a valid item without a scored letter": (replace("letter", first_value("C")), "'item_valid'"),
    "a hole in a complete cell": (replace("logit_diff", first_value(np.nan)), "small/honesty/3"),
    "an infinity in a complete cell": (replace("logit_diff", first_value(np.inf)), "complete, but"),
    "an unrun cell with values": (
        replace("cell_status", first_value(STATUS["not_run"])),
        "not run or not applicable, but has values",
    ),
    "an unknown status": (replace("cell_status", first_value(9)), "'cell_status' holds"),
    "a difference that is none": (
        lambda c: c.assign(logprob_other=c["logprob_other"] - 1),
        "is not logprob_matching - logprob_other",
    ),
    "values at padding": (
        replace("logit_diff", lambda a: a.fillna(0)),
        "at padding samples",
    ),
    "a rate above 1": (
        lambda c: c.assign(generation_valid_rate=xr.full_like(c["cell_status"], 2, dtype=float)),
        r"must be in \[0, 1\]",
    ),
    "a later version": (lambda c: c.assign_attrs(schema_version=99), "has schema_version 99"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_violation_is_named(name: str, cube: xr.Dataset) -> None:
    breaks, message = BREAKS[name]
    check_cube(cube)
    with pytest.raises(ValueError, match=message):
        check_cube(breaks(cube))


def test_every_violation_stands_in_one_error(cube: xr.Dataset) -> None:
    broken = cube.drop_vars(["logprob_other", "cell_status"])
    broken.attrs.pop("seed")
    with pytest.raises(ValueError, match="breaks 3 rule") as error:
        check_cube(broken)
    assert all(name in str(error.value) for name in ("'logprob_other'", "'cell_status'", "'seed'"))


def test_a_cube_that_breaks_the_contract_is_not_written(cube: xr.Dataset, tmp_path: Path) -> None:
    save_cube(cube, tmp_path / "cube.nc")
    before = (tmp_path / "cube.nc").read_bytes()
    with pytest.raises(ValueError, match="logprob_other"):
        save_cube(cube.drop_vars("logprob_other"), tmp_path / "cube.nc")
    assert (tmp_path / "cube.nc").read_bytes() == before


def part(cube: xr.Dataset, **labels: object) -> xr.Dataset:
    return cube.sel({k: v if isinstance(v, list) else [v] for k, v in labels.items()})


def same(one: xr.Dataset, two: xr.Dataset) -> bool:
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
    blank = blank_cube(
        MODELS,
        {c: make_items(c, n) for c, n in {"honesty": 24, "humour": 30}.items()},
        layers=[3, 4, 5, 6, 7],
        strengths=[-1, 0, 1],
        attrs=ATTRIBUTES,
    )
    merged = merge_cubes([blank, cube])
    assert same(merged.sel(layer=[3, 4, 5, 6]), cube)
    assert (merged["cell_status"].sel(layer=7) == STATUS["not_run"]).all()


def test_merging_a_model_that_lacks_a_layer_of_the_other() -> None:
    rng = np.random.default_rng(0)
    short = make_cube(rng, models=(make_model("short", n_layers=4),), layers=(2, 3))
    long = make_cube(rng, models=(make_model("long", n_layers=9),), layers=(5, 6))
    status = merge_cubes([short, long])["cell_status"].sel(concept="humour")
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
    def with_response(ds: xr.Dataset, text: str) -> xr.Dataset:
        model = ds["model"].values[0]
        return ds.assign(
            response_text=("response", [text]),
            response_model=("response", [model]),
            response_concept=("response", ["humour"]),
            response_layer=("response", [3]),
            response_strength=("response", [1.0]),
            response_sample=("response", [0]),
        )

    one = with_response(part(cube, model="small"), "(A) yes")
    two = with_response(part(cube, model="large"), "(B)")
    merged = merge_cubes([one, two])
    assert merged["response_text"].values.tolist() == ["(A) yes", "(B)"]
    assert merged["response_model"].values.tolist() == ["small", "large"]


def test_responses_of_cubes_that_tell_more_and_less_are_merged(cube: xr.Dataset) -> None:
    """What only one of them says of its responses is left out."""
    said = {
        "response_text": ["(A)"],
        "response_model": ["small"],
        "response_concept": ["humour"],
        "response_layer": [UNSTEERED],
        "response_strength": [0.0],
        "response_sample": [0],
    }
    less = part(cube, model="small").assign({k: ("response", v) for k, v in said.items()})
    more = part(cube, model="large").assign(
        {
            k: ("response", v)
            for k, v in (said | {"response_model": ["large"], "response_repeat": [2]}).items()
        }
    )
    merged = merge_cubes([less, more])
    assert merged.sizes["response"] == 2
    assert "response_repeat" not in merged


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.isel(layer=slice(None, None, -1)), "'layer' must increase"),
        (lambda c: c.assign_coords(n_params=c["n_params"] * np.inf), "positive and finite"),
        (lambda c: c.assign_coords(n_active_params=c["n_params"] * 2), "at most 'n_params'"),
        (
            lambda c: c.assign_coords(model=["mean of all", *c["model"].values[1:]]),
            "'mean of all' is named like an average",
        ),
        (
            lambda c: c.assign(
                generation_valid=xr.ones_like(c["logit_diff"]),
                generation_match=xr.full_like(c["logit_diff"], np.nan),
            ),
            "'generation_match' is missing where 'generation_valid'",
        ),
        (lambda c: c.assign(vector_norm=-c["cell_status"] - 1.0), r"'vector_norm' must be in \[0"),
        (lambda c: c.assign(split_half_cosine=c["cell_status"] + 1.5), "'split_half_cosine' must"),
        (
            lambda c: c.assign(logit_diff_random=c["logit_diff"] + np.inf),
            "'logit_diff_random' is infinite in a complete cell",
        ),
        (
            lambda c: c.assign(rows_touched=c["cell_status"] - 3.0),
            r"'rows_touched' must be in \[0, inf\]; it is -1 at small/honesty/3",
        ),
        (
            lambda c: c.assign(logit_diff_random=xr.zeros_like(c["logit_diff"])),
            "'logit_diff_random' has values at padding samples",
        ),
        (
            lambda c: c.assign_coords(n_layers=c["n_layers"] - 3).assign(
                vector_norm=c["cell_status"] + 1.0
            ),
            "'vector_norm' has values at layers that the model does not have, in small/honesty/5",
        ),
        (
            lambda c: c.assign_coords(strength=[-1.0, 1.0, 1.0000001]),
            r"'strength' has the labels 1\.0 and 1\.0000001, which count as one strength",
        ),
        (
            lambda c: c.assign({n: c[n] + 4 for n in ("logprob_matching", "logprob_other")}),
            r"'logprob_matching' must be in \[-inf, 0\.0001\]; it is 1 at ",
        ),
        (
            lambda c: c.assign({n: c[n] + 2.9 for n in ("logprob_matching", "logprob_other")}),
            r"exclude each other, but their probabilities add up to 1\.\d+ at ",
        ),
    ],
    ids=[
        *("layers", "infinite size", "active parameters", "a name of averages", "no match"),
        *("norm", "cosine", "control", "rows", "padding", "a layer too deep", "close strengths"),
        *("log-probability", "two probabilities"),
    ],
)
def test_contradictions_are_refused(
    change: Callable[[xr.Dataset], xr.Dataset], said: str, cube: xr.Dataset
) -> None:
    with pytest.raises(ValueError, match=said):
        check_cube(change(cube))


def shifted(cube: xr.Dataset, by: float, **at: object) -> xr.Dataset:
    """The cube with the matching answers' log-probabilities lower in one place."""
    other = cube.copy(deep=True)
    for name in ("logit_diff", "logprob_matching"):
        other[name].loc[at] -= by
    return other


def test_without_steering_there_is_one_value_for_all_layers(cube: xr.Dataset) -> None:
    at = {"model": "small", "concept": "humour", "layer": 4, "strength": 0.0, "sample": 7}
    check_cube(shifted(cube, 5e-4, **at))
    with pytest.raises(
        ValueError, match=r"'logit_diff' at strength 0 .* 0\.002 nat at small/humour/\d/7 \(at most"
    ):
        check_cube(shifted(cube, 2e-3, **at))
    check_cube(shifted(cube, 2e-3, **(at | {"strength": 1.0})))
    check_cube(shifted(cube, 2e-3, **at).assign_attrs(dtype="bfloat16"))
    with pytest.raises(ValueError, match="'logit_diff' at strength 0 differs between layers"):
        check_cube(shifted(cube, 0.75, **at).assign_attrs(dtype="bfloat16"))


def test_a_control_adds_nothing_at_strength_0_either(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    controlled = with_controls(cube, rng)
    check_cube(controlled)
    controlled["logit_diff_random"].loc["large", "humour", 5, 0.0, 3] += 0.5
    with pytest.raises(
        ValueError, match=r"'logit_diff_random' at strength 0 .* 0\.5 nat at large/humour/5/3 \("
    ):
        check_cube(controlled)


def of_revisions(cube: xr.Dataset, *revisions: str, hf_id: str = "made/one") -> xr.Dataset:
    told = {"revision": ("model", list(revisions)), "hf_id": ("model", [hf_id] * 3)}
    return cube.assign_coords(told)


FILES, COMMIT = "files:" + "1a" * 32, "2b" * 20


def test_a_model_is_held_once_under_one_name(cube: xr.Dataset) -> None:
    """Its weights are known by a hash of their files, or by a commit and its repository."""
    for allowed in (("", "", ""), (FILES, FILES[:-1], ""), (COMMIT, "3c" * 20, "")):
        check_cube(of_revisions(cube, *allowed))
    check_cube(cube.assign_coords(revision=("model", [COMMIT] * 3)))
    for twice in (FILES, COMMIT):
        with pytest.raises(ValueError, match="models 'large' and 'small' are the same weights, "):
            check_cube(of_revisions(cube, twice, "", twice))


def test_one_model_under_two_names_is_not_merged(cube: xr.Dataset) -> None:
    """In one number format or in two."""
    one = part(cube, model="small").assign_coords(revision=("model", [FILES]))
    two = part(cube, model="large").assign_coords(revision=("model", [FILES]))
    for other in (two, two.assign_attrs(dtype="bfloat16")):
        with pytest.raises(
            ValueError, match=r"(?s)the merged cube .* are the same weights, files:"
        ):
            merge_cubes([one, other])
    merge_cubes([one, two.assign_coords(revision=("model", ["files:" + "5e" * 32]))])


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ({"concept": "honesty", "sample": 25}, "to an item .* such as small/honesty/3/0.0/25"),
        ({"layer": 6}, "at a layer that their model lacks, such as small/humour/6/0.0/0"),
    ],
    ids=["item", "layer"],
)
def test_responses_are_to_items_and_of_layers_that_there_are(
    label: dict[str, object], said: str, cube: xr.Dataset
) -> None:
    shallow = blank_cube(
        [make_model("small", n_layers=5)],
        {c: make_items(c, n) for c, n in {"honesty": 24, "humour": 30}.items()},
        layers=[3, 4, 5, 6],
        strengths=[-1, 0, 1],
        attrs=ATTRIBUTES,
    )
    place = {"model": "small", "concept": "humour", "layer": 3, "strength": 0.0, "sample": 0}

    def answered(**where: object) -> xr.Dataset:
        told = {"text": "(A)"} | place | where
        return shallow.assign({f"response_{k}": ("response", [v]) for k, v in told.items()})

    check_cube(answered())
    with pytest.raises(ValueError, match=said):
        check_cube(answered(**label))


@pytest.mark.parametrize(
    ("name", "label"),
    [("model", "tiny"), ("concept", "envy"), ("layer", 9), ("strength", 7.0), ("sample", 99)],
)
def test_responses_are_of_what_the_cube_has(name: str, label: object, cube: xr.Dataset) -> None:
    said = {"text": "(A)", "model": "small", "concept": "humour", "layer": UNSTEERED}
    said |= {"strength": 0.0, "sample": 0}
    sound = cube.assign({f"response_{k}": ("response", [v]) for k, v in said.items()})
    check_cube(sound)
    other = sound.assign({f"response_{name}": ("response", [label])})
    with pytest.raises(ValueError, match=f"have a {name} that the cube lacks, such as"):
        check_cube(other)


def test_shares_of_answers_lie_between_0_and_1(cube: xr.Dataset) -> None:
    third = xr.full_like(cube["logit_diff"], 1 / 3).where(cube["item_id"] != "")
    check_cube(cube.assign(generation_valid=third, generation_match=third))
    with pytest.raises(ValueError, match="'generation_match' must be in"):
        check_cube(cube.assign(generation_match=third + 1))


def test_whatever_a_model_says_survives_a_file(cube: xr.Dataset, tmp_path: Path) -> None:
    texts = [
        "",
        " ",
        "（A）是",
        "(B)\n\n\t\u200b 🎉",
        "\ufffd\x01",
        'a "quoted" <b>tag</b>',
        "x" * 3000,
    ]
    n = len(texts)
    told = {
        "response_text": texts,
        "response_model": ["small"] * n,
        "response_concept": ["humour"] * n,
        "response_layer": [3] * n,
        "response_strength": [1.0] * n,
        "response_sample": list(range(n)),
        "response_finished": [True, False] * (n // 2) + [True],
    }
    save_cube(cube.assign({k: ("response", v) for k, v in told.items()}), tmp_path / "c.nc")
    opened = open_cube(tmp_path / "c.nc")
    assert opened["response_text"].values.tolist() == texts
    assert opened["response_finished"].values.tolist() == told["response_finished"]


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


def test_the_summary_names_models_concepts_and_what_is_missing(cube: xr.Dataset) -> None:
    cube = cube.copy(deep=True)
    cell = {"model": "large", "concept": "humour"}
    for name in ("logit_diff", "logprob_matching", "logprob_other"):
        cube[name].loc[cell] = np.nan
    cube["cell_status"].loc[cell] = STATUS["not_run"]
    cube["cell_status"].loc[{**cell, "layer": 3}] = STATUS["failed"]
    check_cube(cube)
    text = summarise_cube(cube)
    assert repr(cube.steercube) == text
    assert "never run with logits: large x humour" in text
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
