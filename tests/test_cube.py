from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import (
    ATTRIBUTES,
    MODELS,
    grid_beside,
    make_items,
    make_model,
    with_controls,
    with_responses,
)

from steercube import netcdf
from steercube.contract import RESPONSES, STATUS, UNSTEERED, VECTORS
from steercube.cube import (
    Cube,
    as_cube,
    blank_grid,
    check_cube,
    grid_of,
    groups_of,
    open_cube,
    save_cube,
)
from steercube.measures import (
    GENERATION_MATCH,
    GENERATION_RATE,
    LOGIT_DIFF,
    PUBLISHED,
    READ,
    Measure,
)

Break = Callable[[xr.Dataset], xr.Dataset]


def test_a_blank_grid_keeps_the_contract() -> None:
    items = {"honesty": make_items("honesty", 3), "humour": make_items("humour", 5)}
    blank = blank_grid(MODELS, items, layers=[2, 9], strengths=[-1, 1], attrs=ATTRIBUTES)
    check_cube(blank)
    status = blank["cell_status"].sel(concept="humour")
    assert (status.sel(model="small", layer=9) == STATUS["not_applicable"]).all()
    assert (status.sel(model="large", layer=9) == STATUS["not_run"]).all()
    assert blank["item_id"].sel(concept="honesty").values.tolist()[3:] == ["", ""]
    assert blank["depth"].sel(model="middle", layer=9) == 0.9


def test_round_trip(cube: xr.Dataset, tmp_path: Path) -> None:
    sha = save_cube(cube, tmp_path / "cube.nc")
    back = open_cube(tmp_path / "cube.nc")
    assert list(back) == ["logit_diff"]
    (grid,) = back.values()
    assert grid.drop_attrs(deep=False).identical(cube.drop_attrs(deep=False))
    assert back.attrs[netcdf.DIGEST] == sha


def replace(name: str, change: Callable[[xr.DataArray], object]) -> Break:
    def broken(cube: xr.Dataset) -> xr.Dataset:
        cube = cube.copy(deep=True)
        cube[name] = (cube[name].dims, np.asarray(change(cube[name])))
        coords = ("training", "architecture", "letter", "item_id")
        return cube.set_coords([name]) if name in coords else cube

    return broken


def rates_beside(cube: xr.Dataset, rate: xr.DataArray, valid: float) -> xr.Dataset:
    """A grid of rates that were published without their answers."""
    bare = cube.drop_dims("sample")
    share = xr.full_like(bare["cell_status"], valid, dtype=float)
    return grid_beside(bare, GENERATION_RATE, generation_rate=rate, generation_valid_rate=share)


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
        lambda c: rates_beside(c, c["logit_diff"].mean("sample") * 0 + 0.5, valid=2.0),
        r"'generation_valid_rate' must be in \[0, 1\]",
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


def answered(cube: xr.Dataset, match: xr.DataArray, valid: float) -> xr.Dataset:
    """A grid of answers to the items, a share of them valid."""
    present = cube["item_id"] != ""
    share = xr.full_like(match, valid).where(present)
    return grid_beside(
        cube,
        GENERATION_MATCH,
        generation_match=match.where(present).transpose(*match.dims),
        generation_valid=share.transpose(*match.dims),
    )


def controlled(cube: xr.Dataset, values: xr.DataArray) -> Cube:
    """The cube with a random direction that gave these values."""
    control = cube.drop_vars(["logprob_matching", "logprob_other"]).assign(logit_diff=values)
    control["logit_diff"].attrs = LOGIT_DIFF.attrs
    grids = {"logit_diff/random": control.expand_dims(direction=["random/0"])}
    return Cube(grids | ({"logit_diff": cube} if "cell_status" in cube else {}), cube.attrs)


def with_vectors(
    cube: xr.Dataset,
    name: str,
    value: float,
    labels: xr.Dataset | None = None,
    *,
    n_layers: int | None = None,
) -> Cube:
    """The cube with what is known of vectors of its own models and layers, or of other ones."""
    of = cube if labels is None else labels
    if n_layers is not None:
        cube = cube.assign_coords(n_layers=("model", [n_layers] * cube.sizes["model"]))
        cube = cube.assign_coords(depth=cube["layer"] / cube["n_layers"])
    known = xr.full_like(of["cell_status"], value, dtype=float).reset_coords(drop=True)
    return Cube({"logit_diff": cube, VECTORS: xr.Dataset({name: known})}, cube.attrs)


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
            lambda c: answered(c, xr.full_like(c["logit_diff"], np.nan), valid=1.0),
            "'generation_match' is missing where 'generation_valid'",
        ),
        (lambda c: with_vectors(c, "vector_norm", -1.0), r"'vector_norm' must be in \[0"),
        (lambda c: with_vectors(c, "split_half_cosine", 1.5), "'split_half_cosine' must be in"),
        (
            lambda c: with_vectors(c, "vector_norm", np.inf),
            "vectors: 'vector_norm' is infinite in a complete cell, in small/honesty/3",
        ),
        (
            lambda c: with_vectors(c.assign_coords(model=["a", "b", "c"]), "vector_norm", 1.0, c),
            "vectors: model 'large' is not in any grid",
        ),
        (
            lambda c: controlled(c, c["logit_diff"] + np.inf),
            "logit_diff/random: 'cell_status' is complete, but values are missing, in "
            "random/0/small/honesty/3",
        ),
        (
            lambda c: controlled(c.drop_vars("cell_status"), c["logit_diff"] + np.inf),
            "logit_diff/random: 'logit_diff' has infinite values",
        ),
        (
            lambda c: c.assign(rows_touched=c["cell_status"] - 3.0),
            r"'rows_touched' must be in \[0, inf\]; it is -1 at small/honesty/3",
        ),
        (
            lambda c: controlled(c, xr.zeros_like(c["logit_diff"])),
            "logit_diff/random: 'logit_diff' has values at padding samples",
        ),
        (
            lambda c: with_vectors(c.sel(layer=[3, 4]), "vector_norm", 1.0, c, n_layers=5),
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
        *("norm", "cosine", "infinite norm", "a vector's model", "control", "bare control"),
        *("rows", "padding", "a layer too deep", "close strengths"),
        *("log-probability", "two probabilities"),
    ],
)
def test_contradictions_are_refused(
    change: Callable[[xr.Dataset], Cube | xr.Dataset], said: str, cube: xr.Dataset
) -> None:
    check_cube(cube)
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
    held = with_controls(cube, rng)
    check_cube(held)
    control = held["logit_diff/random"].copy(deep=True)
    control["logit_diff"].loc["random/0", "large", "humour", 5, 0.0, 3] += 0.5
    with pytest.raises(
        ValueError,
        match=r"logit_diff/random: 'logit_diff' at strength 0 differs from .*"
        r" 0\.5 nat at random/0/large/humour/5/3 \(",
    ):
        check_cube(held.with_tables({"logit_diff/random": control}))


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
    shallow = blank_grid(
        [make_model("small", n_layers=5)],
        {c: make_items(c, n) for c, n in {"honesty": 24, "humour": 30}.items()},
        layers=[3, 4, 5, 6],
        strengths=[-1, 0, 1],
        attrs=ATTRIBUTES,
    )
    place = {"model": "small", "concept": "humour", "layer": 3, "strength": 0.0, "sample": 0}

    check_cube(with_responses(shallow, text="(A)", **place))
    with pytest.raises(ValueError, match=said):
        check_cube(with_responses(shallow, text="(A)", **(place | label)))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *(("model", "tiny"), ("concept", "envy"), ("layer", 9), ("strength", 7.0), ("sample", 99)),
        ("direction", "random/1"),
    ],
)
def test_responses_are_of_what_the_cube_has(
    name: str, label: object, cube: xr.Dataset, rng: np.random.Generator
) -> None:
    said: dict[str, object] = {"text": "(A)", "model": "small", "concept": "humour"}
    said |= {"layer": UNSTEERED, "strength": 0.0, "sample": 0, "direction": ["", "random/0"]}
    grids = with_controls(cube, rng)
    sound = grids.with_tables({RESPONSES: with_responses(cube, **said)[RESPONSES]})
    check_cube(sound)
    other = with_responses(cube, **(said | {name: label}))[RESPONSES]
    with pytest.raises(ValueError, match=f"responses: . response.* have a {name} that the cube"):
        check_cube(sound.with_tables({RESPONSES: other}))


def test_two_responses_may_differ_in_their_direction_alone(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    said: dict[str, object] = {"text": "(A)", "model": "small", "concept": "humour", "layer": 3}
    said |= {"strength": 1.0, "sample": 0, "repeat": 0}
    grids = with_controls(cube, rng)
    for directions, twice in {("", "random/0"): False, ("random/0", "random/0"): True}.items():
        told = with_responses(cube, direction=list(directions), **said)[RESPONSES]
        if twice:
            with pytest.raises(ValueError, match=r"1 response\(s\) are duplicated"):
                check_cube(grids.with_tables({RESPONSES: told}))
        else:
            check_cube(grids.with_tables({RESPONSES: told}))


def test_shares_of_answers_lie_between_0_and_1(cube: xr.Dataset) -> None:
    third = xr.full_like(cube["logit_diff"], 1 / 3)
    check_cube(answered(cube, third, valid=1 / 3))
    for bare in (False, True):  # a known measure is what it is, whether its grid records it or not
        other = answered(cube, third + 1, valid=1 / 3)
        if bare:
            other["generation_match"].attrs = {}
        with pytest.raises(ValueError, match=r"'generation_match' must be in \[.*; it is 1\.33"):
            check_cube(other)
    with pytest.raises(ValueError, match=r"'generation_valid' must be in \[0, 1\]; it is 1\.5"):
        check_cube(answered(cube, third, valid=1.5))


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
    finished = [True, False] * (len(texts) // 2) + [True]
    place = {"model": "small", "concept": "humour", "layer": 3, "strength": 1.0}
    told = with_responses(cube, text=texts, sample=range(len(texts)), finished=finished, **place)
    save_cube(told, tmp_path / "c.nc")
    opened = open_cube(tmp_path / "c.nc")[RESPONSES]
    assert opened["text"].values.tolist() == texts
    assert opened["finished"].values.tolist() == finished


# What a grid is, and where it belongs


@pytest.mark.parametrize(
    ("path", "directions", "said"),
    [
        ("logit_diff/random", ["shuffled/0"], "is of the family 'shuffled', so it does not belong"),
        (
            "logit_diff/random",
            ["random/0", "letter"],
            "direction 'letter' is of the family 'letter'",
        ),
        ("logit_diff/random", [], "dimension 'direction' is missing"),
        ("logit_diff", ["random/0"], "belongs in a grid logit_diff/<family of directions>"),
        ("generation_match", [], "variable 'generation_match' is missing"),
        ("logit_diff/random", ["random/0", "random/0"], r"repeats the labels \['random/0'\]"),
        ("logit_diff/a|b", ["a|b/0"], "direction 'a|b' cannot be a name"),
    ],
)
def test_a_grid_lies_where_its_measure_and_family_say(
    path: str, directions: list[str], said: str, cube: xr.Dataset
) -> None:
    grid = cube[["logit_diff", "cell_status"]]
    if directions:
        grid = xr.concat([grid] * len(directions), dim=pd.Index(directions, name="direction"))
    with pytest.raises(ValueError, match=f"{path.split('|')[0]}.*: .*{said.replace('|', '.')}"):
        check_cube(Cube({path: grid}, cube.attrs))


def test_any_vectors_name_may_be_a_family(cube: xr.Dataset) -> None:
    grid = cube[["logit_diff", "cell_status"]].sel(concept=["honesty"])
    held = {"logit_diff": cube}
    for direction in ("humour", "letter", "random/7"):
        family = direction.split("/")[0]
        held[f"logit_diff/{family}"] = grid.expand_dims(direction=[direction])
    check_cube(Cube(held, cube.attrs))


def test_a_grid_alone_is_a_cube(cube: xr.Dataset, rng: np.random.Generator, tmp_path: Path) -> None:
    control = with_controls(cube, rng)["logit_diff/random"].assign_attrs(cube.attrs)
    for path, grid in {"logit_diff": cube, "logit_diff/random": control}.items():
        check_cube(grid)
        assert list(as_cube(grid)) == [path]
        save_cube(grid, tmp_path / "one.nc")
        assert list(open_cube(tmp_path / "one.nc")) == [path]


def test_a_dataset_of_no_measure_or_of_two_is_refused(cube: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="holds no measure: no variable of it records its `kind`"):
        check_cube(cube.drop_vars("logit_diff"))
    with pytest.raises(ValueError, match="holds the measures logit_diff, generation_match; a grid"):
        check_cube(cube.assign(generation_match=cube["logit_diff"] * 0))
    check_cube(cube.assign(logprob_other=cube["logprob_other"].assign_attrs(LOGIT_DIFF.attrs)))


@pytest.mark.parametrize(
    "labels",
    [
        *({"concept": "honesty"}, {"model": "large"}, {"layer": 4}, {"strength": 1.0}),
        *({"concept": "humour", "model": "small", "layer": 5}, {"concept": ["humour"]}),
    ],
    ids=str,
)
def test_a_selection_from_a_grid_is_a_cube(
    labels: dict[str, object], cube: xr.Dataset, tmp_path: Path
) -> None:
    selected = cube.sel(labels)
    check_cube(selected)
    save_cube(selected, tmp_path / "part.nc")
    (grid,) = open_cube(tmp_path / "part.nc").values()
    listed = {dim: of if isinstance(of, list) else [of] for dim, of in labels.items()}
    xr.testing.assert_identical(
        grid.drop_attrs(deep=False), cube.sel(listed).drop_attrs(deep=False)
    )


def test_a_selection_of_a_direction_or_a_reading_is_a_cube(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    control = with_controls(cube, rng)["logit_diff/random"].sel(direction="random/0")
    assert list(as_cube(control)) == ["logit_diff/random"]
    check_cube(control)
    answers = answered(cube, xr.zeros_like(cube["logit_diff"]), valid=1.0)
    both = answers.expand_dims(reading=[READ, PUBLISHED])
    for name in ("item_id", "letter", "item_valid", "depth", *LOGIT_FACTS):
        both = both.assign_coords({name: answers[name]})
    check_cube(both)
    check_cube(both.sel(reading=PUBLISHED))


LOGIT_FACTS = (
    *("n_layers", "n_params", "n_active_params", "training"),
    *("architecture", "family", "hf_id", "revision"),
)


def test_a_selection_from_a_cube_is_one(cube: xr.Dataset, rng: np.random.Generator) -> None:
    place = {"concept": "humour", "layer": 3, "strength": 1.0, "sample": 0}
    told = with_responses(cube, text="(A)", model=["small", "large"], **place)[RESPONSES]
    whole = with_controls(cube, rng).with_tables({RESPONSES: told})
    one = whole.sel(model=["large"])
    check_cube(one)
    assert one.labels["model"].values.tolist() == ["large"]
    assert one[RESPONSES]["model"].values.tolist() == ["large"]
    assert list(whole.sel(concept="honesty")) == ["logit_diff", "logit_diff/random"]


def test_a_layer_need_not_be_recorded(cube: xr.Dataset, tmp_path: Path) -> None:
    bare = cube.isel(layer=1).drop_vars(["layer", "depth"])
    check_cube(bare)
    save_cube(bare, tmp_path / "bare.nc")
    (grid,) = open_cube(tmp_path / "bare.nc").values()
    xr.testing.assert_identical(grid.drop_attrs(deep=False), bare.drop_attrs(deep=False))
    broken = bare.copy(deep=True)
    broken["logit_diff"].loc["large", "humour", 1.0, 3] = np.nan
    with pytest.raises(ValueError, match="complete, but values are missing, in large/humour"):
        check_cube(broken)


def rows_of(measure: str, **labels: list[float]) -> pd.DataFrame:
    """A table of a measure of one model at each of these labels, one row for each item."""
    at = pd.MultiIndex.from_product([["large"], ["humour"], *labels.values(), range(30)])
    frame = at.to_frame(index=False, name=["model", "concept", *labels, "sample"])
    return frame.assign(**{measure: np.linspace(0, 1, len(frame))})


def test_measures_with_strengths_and_layers_of_their_own_are_one_cube(
    cube: xr.Dataset, tmp_path: Path
) -> None:
    """A judge's scores at half the strengths, and whether answers were correct, at no layer."""
    facts = as_cube(cube).labels
    judged = Measure("judged", units="points", compare=(-2.0, 0.5), words="a judge's score")
    correct = Measure("correct", kind="binary", compare="slope")
    grids = {
        "logit_diff": cube,
        "judged": grid_of(
            rows_of("judged", layer=[2, 9], strength=[-2.0, 0.5]), judged, facts=facts
        ),
        "correct": grid_of(rows_of("correct", strength=[0.0, 3.0]), correct, facts=facts),
    }
    whole = Cube(grids, cube.attrs)
    check_cube(whole)
    save_cube(whole, tmp_path / "both.nc")
    opened = open_cube(tmp_path / "both.nc")
    for measure in (judged, correct):
        assert str(opened.measures[measure.name].attrs) == str(measure.attrs)
    assert opened["judged"]["layer"].values.tolist() == [2, 9]
    assert opened["judged"].sizes == {
        "model": 1, "concept": 1, "layer": 2, "strength": 2, "sample": 30
    }  # fmt: skip
    assert "layer" not in opened["correct"].dims
    for path in whole:
        xr.testing.assert_identical(
            opened[path].drop_attrs(deep=False), whole[path].drop_attrs(deep=False)
        )


def test_a_table_with_rows_twice_or_of_unknown_models_is_refused(cube: xr.Dataset) -> None:
    rows, facts = rows_of("judged", strength=[-1.0, 1.0]), as_cube(cube).labels
    with pytest.raises(ValueError, match=r"1 row\(s\) repeat the model, concept, strength, sample"):
        grid_of(pd.concat([rows, rows[:1]]), Measure("judged"), facts=facts)
    with pytest.raises(ValueError, match="model 'huge' is not among those of the cube, small, "):
        grid_of(rows.assign(model="huge"), Measure("judged"), facts=facts)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"kind": "ordinal"}, "attribute 'kind' of 'judged' is 'ordinal'; it is one of continuous"),
        ({"compare": "best"}, "attribute 'compare' of 'judged' is 'best'; it is 'slope' or two"),
        ({"compare": [1.0, 1.0]}, r"attribute 'compare' of 'judged' is \(1\.0, 1\.0\); it is"),
        ({"compare": [-1.0, 0.0, 1.0]}, "attribute 'compare' of 'judged' is"),
        ({"compare": [-1.0, np.nan]}, "attribute 'compare' of 'judged' is"),
        ({"compare": ["low", "high"]}, r"attribute 'compare' of 'judged' is \('low', 'high'\)"),
        ({"rope": "small"}, "attribute 'rope' of 'judged' is 'small'; it is a number"),
    ],
    ids=lambda record: str(record),
)
def test_a_record_that_cannot_be_used_is_refused(
    record: Mapping[str, object], said: str, cube: xr.Dataset, tmp_path: Path
) -> None:
    shares = xr.full_like(cube["logit_diff"], 0.5).where(cube["item_id"] != "")
    grid = grid_beside(cube, Measure("judged", kind="binary"), judged=shares)
    check_cube(grid)
    grid["judged"].attrs |= record
    with pytest.raises(ValueError, match=f"judged: {said}"):
        check_cube(grid)
    netcdf.save(groups_of(as_cube(grid)), tmp_path / "judged.nc")
    with pytest.raises(ValueError, match=rf"judged\.nc (?s:.*){said}"):
        open_cube(tmp_path / "judged.nc")


def test_a_binary_measure_is_0_1_or_a_share(cube: xr.Dataset) -> None:
    grid = grid_beside(cube, Measure("correct", kind="binary"), correct=cube["logit_diff"])
    with pytest.raises(ValueError, match=r"correct: 'correct' must be in \[-0\.0001, 1\.0001\]"):
        check_cube(grid)
    check_cube(grid_beside(cube, Measure("correct"), correct=cube["logit_diff"]))


# Files with groups


def test_groups_are_read_as_they_were_written(
    cube: xr.Dataset, rng: np.random.Generator, tmp_path: Path
) -> None:
    """And written again to the same content, whatever the order of the tables."""
    place = {"model": "small", "concept": "humour", "layer": 3, "strength": 1.0, "sample": 0}
    whole = with_controls(cube, rng).with_tables(
        {
            "generation_match": answered(cube, xr.zeros_like(cube["logit_diff"]), valid=1.0),
            RESPONSES: with_responses(cube, text=["(A)"], **place)[RESPONSES],
            VECTORS: with_vectors(cube, "vector_norm", 2.0)[VECTORS],
        }
    )
    sha = save_cube(whole, tmp_path / "one.nc")
    opened = open_cube(tmp_path / "one.nc")
    assert list(opened) == list(whole)
    for path in opened:
        one, two = (held[path].drop_attrs(deep=False) for held in (opened, whole))
        facts = set(one.coords) - set(two.coords)
        assert facts == (set(LOGIT_FACTS) | {"depth"} if path == VECTORS else set())
        xr.testing.assert_identical(one.drop_vars(facts), two)
    assert opened.attrs == whole.attrs | {netcdf.DIGEST: sha}
    shuffled = Cube(dict(reversed([*whole.items()])), whole.attrs)
    assert save_cube(shuffled, tmp_path / "two.nc") == sha
    # Variables are written in the order in which they are held, which a file does not change.
    for source, target in (("two", "three"), ("three", "four")):
        assert save_cube(open_cube(tmp_path / f"{source}.nc"), tmp_path / f"{target}.nc") == sha
    assert (tmp_path / "three.nc").read_bytes() == (tmp_path / "four.nc").read_bytes()


def test_facts_stand_once_in_a_file(
    cube: xr.Dataset, rng: np.random.Generator, tmp_path: Path
) -> None:
    save_cube(with_controls(cube, rng), tmp_path / "cube.nc")
    groups = netcdf.load_groups(tmp_path / "cube.nc")
    assert set(groups) == {netcdf.ROOT, "logit_diff", "logit_diff/random"}
    assert set(LOGIT_FACTS) | {"item_id", "letter", "item_valid"} <= set(groups[""].variables)
    for path in ("logit_diff", "logit_diff/random"):
        assert set(groups[path].coords) == set(groups[path].dims)


def change_group(path: str, change: Callable[[xr.Dataset], xr.Dataset]) -> Callable[[Cube], dict]:  # type: ignore[type-arg]
    def changed(cube: Cube) -> dict[str, xr.Dataset]:
        groups = groups_of(cube)
        return groups | {path: change(groups[path])}

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_group("", lambda r: r.drop_vars("training")), "variable 'training' is missing"),
        (change_group("", lambda r: r.drop_dims("model")), "dimension 'model' is missing"),
        (
            change_group("", lambda r: r.isel(model=slice(2))),
            "logit_diff: the file's root has no model 'large'",
        ),
        (
            change_group("", lambda r: r.isel(sample=slice(20))),
            "logit_diff: the file's root has no sample 20",
        ),
        (
            change_group("logit_diff", lambda g: g.assign_coords(layer=list("abcd"))),
            "logit_diff: dimension 'layer' has labels of",
        ),
        (
            change_group("logit_diff", lambda g: g.drop_vars("model")),
            "logit_diff: dimension 'model' has no labels",
        ),
        (
            change_group("logit_diff", lambda g: g.rename(logit_diff="logits")),
            "logit_diff: variable 'logit_diff' is missing",
        ),
        (lambda c: {"": groups_of(c)[""]}, "it holds no grid"),
    ],
    ids=["fact", "models", "a model", "an item", "layers", "no labels", "measure", "no grid"],
)
def test_a_file_whose_groups_and_facts_do_not_fit_is_refused(
    change: Callable[[Cube], dict[str, xr.Dataset]], said: str, cube: xr.Dataset, tmp_path: Path
) -> None:
    netcdf.save(change(as_cube(cube)), tmp_path / "odd.nc")
    with pytest.raises(ValueError, match=rf"odd\.nc (?s:.*){said}"):
        open_cube(tmp_path / "odd.nc")


def test_grids_agree_in_the_facts_that_they_share(
    cube: xr.Dataset, rng: np.random.Generator
) -> None:
    held = with_controls(cube, rng)
    control = held["logit_diff/random"]
    other = control.assign_coords(n_params=control["n_params"] * 2)
    with pytest.raises(ValueError, match=r"'n_params' differs at 3 place\(s\)"):
        check_cube(held.with_tables({"logit_diff/random": other}))


@pytest.mark.parametrize("of", ["items", "weights"])
def test_no_item_and_no_weights_stand_twice_in_grids_of_their_own(
    of: str, cube: xr.Dataset
) -> None:
    chance = xr.full_like(cube["logit_diff"], 0.5)
    answers = answered(cube, chance, valid=1.0).sel(model=["small"], concept=["honesty"])
    logits = cube.sel(model=["large"], concept=["humour"])
    sound = {"logit_diff": logits, "generation_match": answers}
    check_cube(Cube(sound, cube.attrs))
    if of == "items":
        ids = answers["item_id"].astype("<U20").where(answers["sample"] != 3, "humour/005")
        broken = answers.assign_coords(item_id=ids)
        said = r"'item_id' must be unique across concepts; repeated: \['humour/005'\]"
    else:
        sound["logit_diff"] = logits.assign_coords(revision=("model", [FILES]))
        broken = answers.assign_coords(revision=("model", [FILES]))
        said = "models 'large' and 'small' are the same weights"
    with pytest.raises(ValueError, match=said):
        check_cube(Cube(sound | {"generation_match": broken}, cube.attrs))


def test_the_vectors_of_a_cell_that_is_not_finite_may_be_infinite(cube: xr.Dataset) -> None:
    broken = cube.copy(deep=True)
    for name in ("logit_diff", "logprob_matching"):
        broken[name].loc["small", "honesty", 3, 1.0, 0] = np.inf
    broken["cell_status"].loc["small", "honesty", 3] = STATUS["nonfinite"]
    held = with_vectors(broken, "vector_norm", 1.0)
    table = held[VECTORS].copy(deep=True)
    table["vector_norm"].loc["small", "honesty", 3] = np.inf
    check_cube(held.with_tables({VECTORS: table}))
