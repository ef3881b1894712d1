"""Properties of whatever can be written down: cubes, their merging, every reader of text."""

import argparse
import json
import string
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from builders import ATTRIBUTES, grid_beside
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from steercube import netcdf
from steercube.analysis.conclusions.claims import read_ledger
from steercube.analysis.conclusions.published import read_printed
from steercube.answers import answer_of
from steercube.cli import _names, _numbers, main, parser
from steercube.collect.plan import layers_of
from steercube.concepts import check_concepts, read_concepts
from steercube.contract import (
    ARCHITECTURES,
    DIMS,
    PLACE,
    RESPONSES,
    STATUS,
    VECTORS,
    Item,
    Model,
    family_of,
)
from steercube.contrast import read_attributes
from steercube.cube import Cube, blank_grid, check_cube, groups_of, open_cube, save_cube
from steercube.labels import with_facts
from steercube.measures import CELL, GENERATION_MATCH, GENERATION_RATE, LOGIT_DIFF
from steercube.merging import merge_cubes
from steercube.models import read_models

Tried = Callable[[str], None]

examples = partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a cube shrinks for minutes
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def tried(fault: Callable[[str], Any]) -> Tried:
    """Enters one example of a test by its name."""
    line = fault("property-based")
    return lambda name: line.tried(f"{name} {line.tries}")


# Cubes

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
NAME = st.text(string.ascii_letters + "äß漢 -_.", min_size=1, max_size=8).filter(
    lambda name: name.strip() and not name.startswith(".")
)
SAMPLED = ("logprob_matching", "logprob_other", "logit_diff")
DIRECTIONS = ("random/0", "random/12", "letter", "another concept")


@st.composite
def models(draw: st.DrawFn) -> list[Model]:
    names = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    return [
        Model(
            name=name,
            n_layers=draw(st.integers(1, 6)),
            n_params=draw(st.floats(1e6, 1e12)),
            n_active_params=draw(st.floats(1e3, 1e6)),
            training=draw(NAME),
            architecture=draw(st.sampled_from(ARCHITECTURES)),
            family=draw(TEXT),
            hf_id=draw(TEXT),
            revision=draw(TEXT),
        )
        for name in names
    ]


@st.composite
def items(draw: st.DrawFn) -> dict[str, list[Item]]:
    concepts = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    return {
        concept: [
            Item(f"{concept}/{i}", letter := draw(st.sampled_from("ABC")), letter != "C")
            for i in range(draw(st.integers(1, 4)))
        ]
        for concept in concepts
    }


@st.composite
def cubes(draw: st.DrawFn, *, responses: bool = True) -> Cube:
    """A sound cube: cells of every status, other grids and tables, responses of every text."""
    grid = blank_grid(
        draw(models()),
        draw(items()),
        layers=draw(st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True)),
        strengths=draw(
            st.lists(
                st.floats(-9, 9).map(lambda s: round(s, 3) + 0.0),
                min_size=1,
                max_size=3,
                unique=True,
            )
        ),
        attrs=ATTRIBUTES | {"title": draw(TEXT)},
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    statuses = draw(st.lists(st.sampled_from(sorted(STATUS)), min_size=1, max_size=9))
    fill(grid, rng, statuses)
    tables = {LOGIT_DIFF.name: grid}
    if draw(st.booleans()):
        cut = draw(parts_of(grid))
        tables[GENERATION_MATCH.name] = grid_beside(
            cut, GENERATION_MATCH, generation_match=shares(cut, cut["logit_diff"].dims, rng)
        )
    if draw(st.booleans()):
        cut = draw(parts_of(grid)).drop_dims("sample")
        rate = shares(cut, (*CELL, "strength"), rng)
        tables[GENERATION_RATE.name] = grid_beside(cut, GENERATION_RATE, generation_rate=rate)
    if draw(st.booleans()):
        cut = draw(parts_of(grid)).drop_dims(["sample", "strength"])
        known = xr.Dataset({"vector_norm": shares(cut, CELL, rng)}, coords=cut.coords)
        tables[VECTORS] = with_facts(known.drop_vars(["depth"]), cut.reset_coords())
    if draw(st.booleans()):
        direction = draw(st.sampled_from(DIRECTIONS))
        path = f"{LOGIT_DIFF.name}/{family_of(direction)}"
        tables[path] = steered_otherwise(draw(parts_of(grid)), direction, rng)
    cube = Cube(tables, grid.attrs)
    return with_responses(draw, cube) if responses and draw(st.booleans()) else cube


@st.composite
def parts_of(draw: st.DrawFn, grid: xr.Dataset) -> xr.Dataset:
    """Some of a grid's models, concepts, layers and strengths."""
    for dim in ("model", "concept", "layer", "strength"):
        labels = grid[dim].values.tolist()
        kept = draw(st.sets(st.sampled_from(labels), min_size=1))
        grid = grid.sel({dim: [label for label in labels if label in kept]})
    return without_padding(grid)


def without_padding(grid: xr.Dataset) -> xr.Dataset:
    """The grid without the samples that none of its concepts has."""
    return grid.isel(sample=np.flatnonzero((grid["item_id"] != "").any("concept")))


def shares(grid: xr.Dataset, dims: tuple[Any, ...], rng: np.random.Generator) -> xr.DataArray:
    """Shares at layers and of items that there are, some of them missing."""
    shape = [grid.sizes[dim] for dim in dims]
    values = xr.DataArray(rng.random(shape), {dim: grid[dim].values for dim in dims}, dims)
    values = values.where(rng.random(shape) > 0.3)
    values = values.where((grid["layer"] < grid["n_layers"]).reset_coords(drop=True))
    if "sample" in dims:
        values = values.where((grid["item_id"] != "").reset_coords(drop=True)).astype("float32")
    return values.transpose(*dims)


def steered_otherwise(grid: xr.Dataset, direction: str, rng: np.random.Generator) -> xr.Dataset:
    """The grid of another direction, which does nothing at strength 0 either."""
    own = grid["logit_diff"].where(np.isfinite(grid["logit_diff"]))
    values = shares(grid, own.dims, rng)
    values = values.where(grid["strength"] != 0, own).transpose(*own.dims)
    other = grid_beside(grid, LOGIT_DIFF, logit_diff=values)
    other["cell_status"] = (
        xr.where(grid["layer"] < grid["n_layers"], STATUS["failed"], STATUS["not_applicable"])
        .broadcast_like(grid["cell_status"])
        .transpose(*CELL)
        .astype("int8")
        .reset_coords(drop=True)
    )
    facts = {name: grid[name] for name in grid.coords if name not in grid.dims}
    return other.expand_dims(direction=[direction]).assign_coords(facts)


def fill(cube: xr.Dataset, rng: np.random.Generator, statuses: Sequence[str]) -> None:
    """Give the cells of a blank cube these statuses in turn, and values that fit."""
    present = (cube["item_id"] != "").values
    unsteered = cube["strength"].values == 0
    of_no_layer = -1 - abs(rng.normal(scale=9, size=(2, *present.shape, cube.sizes["model"])))
    for at, (m, c, layer) in enumerate(np.ndindex(cube["cell_status"].shape)):
        status = statuses[at % len(statuses)]
        if cube["layer"].values[layer] >= cube["n_layers"].values[m]:
            continue
        if status == "not_applicable":
            continue
        cube["cell_status"][m, c, layer] = STATUS[status]
        if status == "not_run":
            continue
        shape = (cube.sizes["strength"], cube.sizes["sample"])
        pair = -1 - abs(rng.normal(scale=9, size=(2, *shape)))
        pair[:, unsteered] = of_no_layer[:, c, None, :, m]
        pair = pair.astype("float32")
        pair = np.where(present[c], pair, np.float32(np.nan))
        if status == "nonfinite":
            pair[0, -1, 0] = rng.choice([np.nan, np.inf, -np.inf])
        for name, values in zip(SAMPLED, (*pair, pair[0] - pair[1]), strict=True):
            cube[name].values[m, c, layer] = values


def place_of(row: tuple[tuple[Any, ...], int, str]) -> tuple[Any, ...]:
    """What no two responses of a cube share."""
    return (row[0], row[1])


def with_responses(draw: st.DrawFn, cube: Cube) -> Cube:
    grid = cube[LOGIT_DIFF.name]
    place = st.tuples(*(st.sampled_from(grid[dim].values.tolist()) for dim in PLACE)).filter(
        lambda at: (
            at[2] < grid["n_layers"].sel(model=at[0])
            and grid["item_id"].sel(concept=at[1], sample=at[4]) != ""
        )
    )
    if not (grid["layer"] < grid["n_layers"]).any():
        return cube
    rows = draw(
        st.lists(
            st.tuples(place, st.integers(0, 2), TEXT),
            max_size=5,
            unique_by=place_of,
        )
    )
    told: dict[str, Any] = {
        dim: np.array([row[0][i] for row in rows], dtype=grid[dim].dtype)
        for i, dim in enumerate(PLACE)
    }
    told["text"] = np.array([row[2] for row in rows], dtype=str)
    if draw(st.booleans()):
        told["repeat"] = np.array([row[1] for row in rows], dtype=int)
    table = xr.Dataset({name: ("response", values) for name, values in told.items()})
    return cube.with_tables({RESPONSES: table})


@examples(max_examples=50)
@given(cube=cubes(), order=st.permutations(DIMS))
def accepts_sound_cubes(tried: Tried, cube: Cube, order: list[str]) -> None:
    check_cube(cube)
    turned = {p: ds.transpose(*order, ..., missing_dims="ignore") for p, ds in cube.items()}
    check_cube(Cube(turned, cube.attrs))
    for path, grid in cube.grids.items():
        check_cube(grid)
        selected = [dim for dim in order[:4] if dim in ("direction", *CELL) and dim in grid.dims]
        check_cube(grid.sel({dim: grid[dim].values[0] for dim in selected}))
        tried(f"a sound grid of {path}")
    tried("a sound cube")


def test_every_sound_cube_is_accepted(tried: Tried) -> None:
    accepts_sound_cubes(tried)


Grid = xr.Dataset


def changed(grid: Grid, name: str, value: Any) -> Grid:
    """The first value of a variable replaced, its dtype wide enough for that."""
    values = grid[name].values.astype(np.result_type(grid[name].values, np.asarray(value)))
    values.flat[0] = value
    variable = (grid[name].dims, values)
    return (
        grid.assign_coords({name: variable})
        if name in grid.coords
        else grid.assign({name: variable})
    )


def without_attribute(grid: Grid, name: str) -> Grid:
    grid = grid.copy()
    del grid.attrs[name]
    return grid


STRUCTURE: dict[str, tuple[Callable[[Grid], Grid], str]] = {
    **{
        f"without {name}": (lambda c, n=name: c.drop_vars(n), f"variable {name!r} is missing")
        for name in (*SAMPLED, "cell_status", "item_id", "training", "depth", "n_layers")
    },
    **{
        f"without the attribute {name}": (
            partial(without_attribute, name=name),
            f"attribute {name!r} is missing",
        )
        for name in ATTRIBUTES
    },
    **{
        f"without labels of {dim}": (lambda c, d=dim: c.drop_vars(d), f"{dim!r} has no labels")
        for dim in ("model", "strength", "sample")
    },
    "text in revision gone": (
        lambda c: c.assign_coords(revision=("model", np.arange(c.sizes["model"]))),
        "'revision' holds int64",
    ),
    "layers as text": (
        lambda c: c.assign_coords(layer=c["layer"].astype(str)),
        "dimension 'layer' has labels",
    ),
}
VALUES: dict[str, tuple[Callable[[Grid], Grid], str]] = {
    "a training that is no name": (
        lambda c: changed(c, "training", "../x"),
        "training '../x' cannot be a name",
    ),
    "an unknown architecture": (lambda c: changed(c, "architecture", "x"), "'architecture' of"),
    "an empty letter": (lambda c: changed(c, "letter", ""), "'letter' is empty"),
    "fewer than no rows": (
        lambda c: c.assign(
            rows_touched=(c["cell_status"].dims, np.full(c["cell_status"].shape, -2.0))
        ),
        "'rows_touched' must be in [0, inf]",
    ),
    "another depth": (
        lambda c: c.assign_coords(depth=c["depth"].fillna(0) + 1),
        "'depth' is not layer / n_layers",
    ),
    "an unknown status": (lambda c: changed(c, "cell_status", 9), "'cell_status' holds [9]"),
    "a way out": (
        lambda c: c.assign_coords(model=["../x", *c["model"].values[1:]]),
        "model '../x' cannot be a name",
    ),
    "no blocks": (lambda c: changed(c, "n_layers", 0), "'n_layers' and 'n_params'"),
    "another difference": (
        lambda c: c.assign(logprob_other=c["logprob_other"] - 1),
        "'logit_diff' is not logprob_matching - logprob_other",
    ),
}


@examples(max_examples=80)
@given(
    cube=cubes(responses=False),
    structural=st.booleans(),
    data=st.data(),
)
def names_violations(tried: Tried, cube: Cube, structural: bool, data: st.DataObject) -> None:
    table = STRUCTURE if structural else VALUES
    chosen = data.draw(
        st.lists(st.sampled_from(sorted(table)), min_size=1, max_size=4, unique=True)
    )
    if structural and "layers as text" in chosen:
        chosen = ["layers as text"]
    grid = cube[LOGIT_DIFF.name]
    complete = (grid["cell_status"] == STATUS["complete"]).any()
    assume(complete or "another difference" not in chosen)
    # A concept may lack letters, but not that of some of its items.
    several = (grid["item_id"][0] != "").sum() > 1
    assume(several or "an empty letter" not in chosen)
    assume(not {"no blocks", "another depth"} <= set(chosen))
    broken = grid
    for name in chosen:
        broken = table[name][0](broken)
    with pytest.raises(ValueError, match="breaks") as refused:
        check_cube(Cube({LOGIT_DIFF.name: broken}, broken.attrs))
    assert all(table[name][1] in str(refused.value) for name in chosen)
    tried(f"violations {chosen}")


def test_every_violation_is_named(tried: Tried) -> None:
    names_violations(tried)


def same(one: xr.Dataset, two: xr.Dataset) -> bool:
    return one.drop_attrs(deep=False).identical(two.drop_attrs(deep=False))


@examples(max_examples=35)
@given(cube=cubes())
def round_trip(tried: Tried, folder: Path, cube: Cube) -> None:
    path = folder / "cube.nc"
    sha = save_cube(cube, path)
    opened = open_cube(path)
    written = [name for name in cube if all(cube[name].sizes.values())]
    assert list(opened) == written
    assert all(same(opened[name], cube[name]) for name in written)
    assert {k: v for k, v in opened.attrs.items() if k != netcdf.DIGEST} == cube.attrs
    assert netcdf.digest(groups_of(opened)) == sha
    assert save_cube(opened, path) == sha
    tried("a round trip")


def test_a_cube_is_read_as_it_was_written(tried: Tried, tmp_path: Path) -> None:
    round_trip(tried, tmp_path)


@st.composite
def datasets(draw: st.DrawFn) -> xr.Dataset:
    """Anything that is no cube: floats of both sizes, integers, texts, truths, attributes."""
    n = draw(st.integers(1, 4))

    def of(strategy: st.SearchStrategy[Any], dtype: Any) -> tuple[str, np.ndarray]:
        return "x", np.array(draw(st.lists(strategy, min_size=n, max_size=n)), dtype=dtype)

    return xr.Dataset(
        {
            "single": of(st.floats(width=32), "float32"),
            "double": of(st.floats(), "float64"),
            "whole": of(st.integers(-(2**62), 2**62), "int64"),
            "flag": of(st.integers(-128, 127), "int8"),
            "truth": of(st.booleans(), bool),
            "text": of(TEXT, str),
        },
        coords={"x": np.arange(n)},
        attrs=draw(
            st.dictionaries(
                st.text(string.ascii_lowercase, min_size=1, max_size=5),
                TEXT | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False),
                max_size=3,
            )
        ),
    )


@examples(max_examples=60)
@given(ds=datasets())
def file_round_trip(tried: Tried, folder: Path, ds: xr.Dataset) -> None:
    netcdf.save(ds, folder / "any.nc")
    back = netcdf.load(folder / "any.nc")
    assert same(back, ds)
    assert {k: v for k, v in back.attrs.items() if k != netcdf.DIGEST} == ds.attrs
    tried("a file's round trip")


def test_any_file_is_read_as_it_was_written(tried: Tried, tmp_path: Path) -> None:
    file_round_trip(tried, tmp_path)


# Merging


def rows(cube: Cube) -> list[tuple[Any, ...]]:
    if RESPONSES not in cube or not cube[RESPONSES].sizes["response"]:
        return []
    names = sorted(map(str, cube[RESPONSES]))
    values = [cube[RESPONSES][name].values.tolist() for name in names]
    return [(*names,), *sorted(zip(*values, strict=True))]


def ordered(table: xr.Dataset) -> xr.Dataset:
    """In one order of models and concepts."""
    order = {dim: sorted(table[dim].values.tolist()) for dim in ("model", "concept")}
    return table.drop_attrs().sel(order)


def alike(one: Cube, two: Cube) -> bool:
    lines = [
        {name: set(str(value).split("\n")) for name, value in cube.attrs.items()}
        for cube in (one, two)
    ]
    # The order of responses is not told.
    paths, others = ([path for path in cube if path != RESPONSES] for cube in (one, two))
    return (
        paths == others
        and all(ordered(one[path]).identical(ordered(two[path])) for path in paths)
        and rows(one) == rows(two)
        and lines[0] == lines[1]
    )


@st.composite
def whole_and_parts(draw: st.DrawFn) -> tuple[Cube, list[Cube]]:
    """A cube and parts of it, cut along a dimension, which may overlap."""
    cube = draw(cubes())
    dim = draw(st.sampled_from(["model", "concept", "layer"]))
    labels = cube[LOGIT_DIFF.name][dim].values.tolist()
    n_parts = draw(st.integers(1, 3))
    chosen = [draw(st.sets(st.sampled_from(labels), min_size=1)) for _ in range(n_parts)]
    chosen.append(set(labels) - set().union(*chosen))
    return cube, [
        part(cube, dim, [label for label in labels if label in of_part])
        for of_part in chosen
        if of_part
    ]


def part(cube: Cube, dim: str, labels: list[Any]) -> Cube:
    """What a run of these labels alone would have written, narrow texts included."""
    return Cube(
        {
            path: narrow(without_padding(table) if "sample" in table.dims else table)
            for path, table in cube.sel(**{dim: labels}).items()
        },
        cube.attrs,
    )


def narrow(table: xr.Dataset) -> xr.Dataset:
    texts = {
        name: (variable.dims, np.array(variable.values.tolist(), dtype=str).reshape(variable.shape))
        for name, variable in table.variables.items()
        if variable.dtype.kind == "U" and name not in table.dims
    }
    table = table.assign_coords({name: of for name, of in texts.items() if name in table.coords})
    return table.assign({name: of for name, of in texts.items() if name not in table.coords})


@examples(max_examples=25)
@given(cut=whole_and_parts(), data=st.data())
def parts_make_the_whole(tried: Tried, cut: tuple[Cube, list[Cube]], data: st.DataObject) -> None:
    whole, parts = cut
    assert alike(merge_cubes(data.draw(st.permutations(parts))), whole)
    tried("parts and their whole")


def test_parts_merge_to_the_whole_in_any_order(tried: Tried) -> None:
    parts_make_the_whole(tried)


@examples(max_examples=8)
@given(cut=whole_and_parts())
def associates(tried: Tried, cut: tuple[Cube, list[Cube]]) -> None:
    _, (first, *others) = cut
    second, third = (others * 2)[:2] if others else (first, first)
    left = merge_cubes([merge_cubes([first, second]), third])
    right = merge_cubes([first, merge_cubes([second, third])])
    assert alike(left, right)
    assert alike(merge_cubes([left, right]), left)
    tried("associative and idempotent")


def test_merging_is_associative_and_idempotent(tried: Tried) -> None:
    associates(tried)


def lowered(grid: xr.Dataset, at: dict[str, list[Any]]) -> xr.Dataset:
    """The grid with lower log-probabilities of the matching answer at one item, at all layers."""
    grid = grid.copy(deep=True)
    here = {
        dim: np.flatnonzero(grid[dim].isin(at[dim]) if dim in at else grid[dim].notnull())
        for dim in map(str, grid["logit_diff"].dims)
    }
    for name in {"logit_diff", "logprob_matching"} & set(grid):
        grid[name][here] -= np.float32(64)
    return grid


@examples(max_examples=20)
@given(cube=cubes(), data=st.data())
def detects_conflicts(tried: Tried, cube: Cube, data: st.DataObject) -> None:
    grid = cube[LOGIT_DIFF.name]
    complete = grid["cell_status"] == STATUS["complete"]
    if RESPONSES in cube and cube[RESPONSES].sizes["response"] and data.draw(st.booleans()):
        table = cube[RESPONSES].copy(deep=True)
        texts = [f"{table['text'].values[0]}!", *table["text"].values[1:]]
        other = cube.with_tables({RESPONSES: table.assign(text=("response", texts))})
        name = "text"
    elif complete.any():
        m, c, _ = np.argwhere(complete.values)[0]
        at = {
            dim: [grid[dim].values[i]]
            for dim, i in {"model": m, "concept": c, "strength": 0, "sample": 0}.items()
        }
        other = cube.with_tables(
            {path: lowered(cube[path], at) for path in cube if path.startswith(LOGIT_DIFF.name)}
        )
        name = "logit_diff"
    else:
        first = grid["item_id"].values[0, 0]
        other = cube.with_tables(
            {
                path: table.assign_coords(
                    item_id=table["item_id"].astype("<U99").where(table["item_id"] != first, "new")
                )
                for path, table in cube.items()
                if "item_id" in table.coords
            }
        )
        name = "item_id"
    both = data.draw(st.permutations([cube, other]))
    with pytest.raises(ValueError, match=f"(?s)merging these cubes.*'{name}' differs"):
        merge_cubes(both)
    tried(f"a conflict in {name}")


def test_a_conflicting_value_is_named(tried: Tried) -> None:
    detects_conflicts(tried)


# Readers of text

ANY_BYTES = st.binary(max_size=60) | st.text(max_size=60).map(
    lambda text: text.encode(errors="surrogatepass")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
FIELDS = ("id", "split", "question", "choices", "matching")
NEARLY = st.dictionaries(
    st.sampled_from(FIELDS), JSON | st.sampled_from(["train", "eval", "A", "B"]), max_size=5
)


def toml_value(value: Any) -> str:
    """A value as TOML writes it, which is nearly how JSON does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    text = '""' if value is None else json.dumps(value)
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(text, text)


def only_refuses(read: Callable[[], Any]) -> Any:
    """What it reads; nothing where it refuses by ValueError or OSError."""
    with suppress(ValueError, OSError):
        return read()
    return None


QUESTION = st.fixed_dictionaries(
    {
        "question": TEXT.filter(str.strip),
        "choices": st.tuples(TEXT.filter(str.strip), TEXT.filter(str.strip))
        .filter(lambda two: two[0] != two[1])
        .map(lambda two: {"A": two[0], "B": two[1]}),
        "matching": st.sampled_from("AB"),
    }
)


@examples(max_examples=150)
@given(
    name=NAME,
    train=st.lists(QUESTION, min_size=2, max_size=4),
    evaluation=st.lists(QUESTION, min_size=2, max_size=4),
    ascii_only=st.booleans(),
)
def concepts_round_trip(
    tried: Tried, name: str, train: list[Any], evaluation: list[Any], ascii_only: bool
) -> None:
    lines = [
        {"id": f"{split}/{i}", "split": split, **asked}
        for split, every in {"train": train, "eval": evaluation}.items()
        for i, asked in enumerate(every)
    ]
    assume(name != "study")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.jsonl"
        text = "\n".join(json.dumps(line, ensure_ascii=ascii_only) for line in lines)
        path.write_text(text + "\n", encoding="utf-8", newline="")
        (concept,) = read_concepts(folder).values()
        assert read_concepts(path) == {name: concept}
    read = [*concept.train, *concept.evaluation]
    assert [(q.id, q.matching) for q in read] == [(x["id"], x["matching"]) for x in lines]
    for question, line in zip(read, lines, strict=True):
        a, b = line["choices"]["A"], line["choices"]["B"]
        assert question.prompt == f"{line['question']}\n\nChoices:\n (A) {a}\n (B) {b}"
    tried("a concept file")


def test_a_concept_file_is_read_as_it_was_written(tried: Tried) -> None:
    concepts_round_trip(tried)


@examples(max_examples=250)
@given(
    content=ANY_BYTES
    | st.lists(JSON | NEARLY, max_size=3).map(
        lambda entries: "\n".join(map(json.dumps, entries)).encode()
    )
)
@example(content=b"[" * 100_000)
@example(content=b"1" * 5_000)
@example(content=b"\xef\xbb\xbf{}")
def reads_any_concept(tried: Tried, folder: Path, content: bytes) -> None:
    (folder / "any.jsonl").write_bytes(content)
    for read in (read_concepts, check_concepts):
        assert not only_refuses(lambda read=read: read(folder / "any.jsonl"))
    tried("bytes as a concept")


def test_any_bytes_are_refused_as_a_concept(tried: Tried, tmp_path: Path) -> None:
    reads_any_concept(tried, tmp_path)


FACTS = ("hf_id", "family", "training", "n_layers", "n_params", "dtype", "package", "colour")


@examples(max_examples=300)
@given(
    content=ANY_BYTES
    | st.tuples(st.text(max_size=5), st.dictionaries(st.sampled_from(FACTS), JSON)).map(
        lambda entry: f"{json.dumps(entry[0])} = {toml_value(entry[1])}".encode()
    )
)
@example(content=b"a = " + b"[" * 5_000)
@example(content=b"a = " + b"1" * 5_000)
def reads_any_models(tried: Tried, folder: Path, content: bytes) -> None:
    (folder / "models.toml").write_bytes(content)
    assert only_refuses(lambda: read_models(folder / "models.toml")) is None
    tried("bytes as models")


def test_any_bytes_are_refused_as_models(tried: Tried, tmp_path: Path) -> None:
    reads_any_models(tried, tmp_path)


CONTRAST = ("by", "low", "high", "words", "holding", "hue")
CLAIM = ("id", "section", "text", "published", "statistic", "arguments", "also", "compared")


@examples(max_examples=300)
@given(
    content=ANY_BYTES
    | st.dictionaries(
        st.sampled_from(CLAIM),
        JSON
        | st.sampled_from(["model_mean", "1.5", "5-6%", "training_gap"])
        | st.just({"estimand": "delta", "model": "a"}),
    ).map(lambda entry: f'study = "s"\nclaim = [{toml_value(entry)}]'.encode())
    | (
        st.dictionaries(st.sampled_from(CONTRAST), JSON)
        | st.fixed_dictionaries(
            dict.fromkeys(("by", "low", "high"), NAME | st.just("a:b")),
            optional={"words": st.dictionaries(NAME, TEXT, max_size=2), "holding": NAME},
        )
    ).map(lambda table: f'study = "s"\ncontrast = {toml_value(table)}'.encode())
)
def reads_any_claims(tried: Tried, folder: Path, content: bytes) -> None:
    (folder / "claims.toml").write_bytes(content)
    found = only_refuses(lambda: read_ledger(folder / "claims.toml"))
    assert found is None or isinstance(found.study, str)
    if found is not None and found.contrast is not None:
        assert read_attributes(found.contrast.attributes) == found.contrast
    tried("bytes as claims")


def test_any_bytes_are_refused_as_claims(tried: Tried, tmp_path: Path) -> None:
    reads_any_claims(tried, tmp_path)


PRINTED = st.from_regex(r"~?-?\d{1,9}(\.\d{1,9})?(-\d{1,5}(\.\d)?)?%?", fullmatch=True)


@examples(max_examples=400)
@given(text=st.text("0123456789.-~%+ e٣", max_size=12) | st.text() | PRINTED)
@example(text="1." + "0" * 400)
@example(text="9" * 400)
def reads_any_value(tried: Tried, text: str) -> None:
    printed = only_refuses(lambda: read_printed(text))
    if printed is not None and not printed.direction:
        assert printed.low <= printed.high
        assert np.isfinite([printed.low, printed.high]).all()
        assert printed.unit > 0
        assert printed.units(printed.low) == round(printed.low / printed.unit)
        if "-" not in text[1:] and not printed.approximate:
            assert float(printed.show(printed.low).rstrip("%")) == float(text.split("%")[0])
    tried("a printed value")


def test_any_text_is_a_printed_value_or_refused(tried: Tried) -> None:
    reads_any_value(tried)


PIECES = (
    *("(A)", "(B)", "A", "B.", "a)", "Answer:", "The correct answer is", "not", "I choose", "or"),
    *("<think>", "</think>", "**", "\n", " ", "答案是", "选", "（Ａ）", "both", "option", ".", ","),
)
RESPONSE = st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join)
PADDING = st.text(" \t\n\r*_`#>", max_size=4)


@examples(max_examples=500)
@given(response=RESPONSE, before=PADDING, after=PADDING)
def answers_any(tried: Tried, response: str, before: str, after: str) -> None:
    chosen = answer_of(response)
    assert chosen in ("", "A", "B")
    assert answer_of(f"{before}{response}{after}") == chosen
    assert answer_of(f"<think>(A) or (B)?</think>{response}") == chosen
    full_width = response.replace("(", "（").replace(")", "）")
    assert answer_of(full_width) == chosen
    tried("a response")


def test_any_response_is_read_whatever_surrounds_it(tried: Tried) -> None:
    answers_any(tried)


@examples(max_examples=400)
@given(
    text=st.text("-0123456789.,:einfa", max_size=12) | st.text(max_size=12),
    n_layers=st.integers(1, 99),
)
def small_parsers(tried: Tried, text: str, n_layers: int) -> None:
    layers = only_refuses(lambda: layers_of(text, n_layers))
    assert layers is None or (layers and set(layers) <= set(range(n_layers)))
    with suppress(argparse.ArgumentTypeError):
        numbers = _numbers(text)
        assert len(set(numbers)) == len(numbers) > 0
    assert all(name and "," not in name for name in _names(text))
    tried("an argument")


def test_any_text_is_an_argument_or_refused(tried: Tried) -> None:
    small_parsers(tried)


COMMANDS = ("analyze", "paper", "reproduce", "calibrate", "check-concepts", "show", "consolidate")
WORDS = st.sampled_from(["--out", "--data", "--strengths", "--model", "--seed", "-x"]) | st.text(
    string.printable, max_size=6
)


@examples(max_examples=200)
@given(command=st.sampled_from(COMMANDS), words=st.lists(WORDS, max_size=3))
def any_command_line(tried: Tried, command: str, words: list[str]) -> None:
    left = None
    try:
        parser().parse_args([command, *words])
    except SystemExit as error:
        left = error.code
    assert left in (None, 0, 2)
    tried("a command line")


def test_any_command_line_is_parsed_or_refused(
    tried: Tried, capsys: pytest.CaptureFixture[str]
) -> None:
    any_command_line(tried)
    capsys.readouterr()


@examples(max_examples=40)
@given(source=st.text(max_size=12), command=st.sampled_from(["show", "check-concepts", "paper"]))
def any_path(tried: Tried, source: str, command: str) -> None:
    assert main([command, "--", source]) == 2
    tried("a path")


def test_any_path_that_is_not_there_is_one_message(
    tried: Tried,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    any_path(tried)
    said = capsys.readouterr().err
    assert "Traceback" not in said
