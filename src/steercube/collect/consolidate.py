"""One cube from the shards of a collection: each unit is a small cube, and these are merged.

A unit is one model and concept. `steercube.merging` decides which units may share a cube: before a
run from their facts and settings alone, and after it from their values too.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.collect import answers, logits
from steercube.collect.next_token import collected
from steercube.collect.plan import RANDOM
from steercube.collect.shards import load_attrs, load_shard, recorded, settings_of
from steercube.collect.vectors import OWN
from steercube.contract import (
    CONTRACT,
    VECTOR_VARIABLES,
    VECTORS,
    Item,
    Model,
    family_of,
    measure_name,
)
from steercube.cube import Cube
from steercube.labels import facts_of, joined
from steercube.merging import differences, merge_cubes
from steercube.schema import Variable, raise_if_any

Tables = Callable[[Sequence[xr.Dataset], xr.Dataset, dict[str, xr.Dataset]], dict[str, xr.Dataset]]
TABLES_OF: dict[str, Tables] = {
    "samples": logits.tables,
    "controls": logits.tables,
    "generations": answers.tables,
}
"""By kind of shard, the function that makes grids and tables of them; called in this order."""
VECTOR = Variable(
    ("model", "concept", "direction", "layer", "hidden"),
    "f",
    "vector as added at strength 1",
    dtype="float32",
)
PER_SHARD_SETTINGS = {"pairs_sha256", "items_sha256"}
"""Settings that differ between the shards of a unit."""
OF_VECTORS_ALONE = ("controls", "directions_sha256", "own_sha256")
"""Settings that only the shard of the vectors has."""


class UnitShards(NamedTuple):
    """What the shards of one unit hold: its vectors, and the cube of its complete outcomes."""

    vectors: xr.Dataset
    cube: Cube | None
    keys: dict[Path, str]
    """The key of each shard in the cube."""
    lacking: list[str]
    """Lines on what is left out of the cube because shards are missing."""


def consolidate(
    folder: Path, *, report: Callable[[str], None] = print
) -> tuple[Cube, xr.Dataset, dict[str, str]]:
    """The cube, the vectors and the key of each shard, of every unit with a complete outcome.

    The result depends only on the shards, not on the order or number of processes that made them;
    what is left out is reported. Raises ValueError where nothing is complete, for a shard that is
    damaged or of another unit, for samples that appear more than once, or where the units cannot
    share a cube.
    """
    folders = sorted({path.parent for path in folder.glob("*/*/*.nc")})
    every = [unit_of(one) for one in folders if (one / "vectors.nc").exists()]
    without = [f"{one} has no vectors.nc" for one in folders if not (one / "vectors.nc").exists()]
    for line in [*without, *(line for unit in every for line in unit.lacking)]:
        report(f"left out of the cube: {line}")
    units = [unit for unit in every if unit.cube is not None]
    if not units:
        raise ValueError(f"{folder} holds no model x concept whose shards are all there")
    cubes = [unit.cube for unit in units if unit.cube is not None]
    raise_if_any(why_apart(cubes), what=f"one cube of the shards in {folder}")
    try:
        merged = merge_cubes(cubes)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    keys = {str(path.relative_to(folder)): one for unit in units for path, one in unit.keys.items()}
    return _in_order(merged), _vectors_of(units, merged.attrs), keys


def _in_order(cube: Cube) -> Cube:
    """The cube with models in the order of their size, and concepts in that of their names."""
    return Cube(
        {p: ds.sortby("n_params").sortby("concept") if "model" in ds.indexes else ds
         for p, ds in cube.items()},
        cube.attrs,
    )  # fmt: skip


def identity(attrs: Mapping[str, Any], grids: Mapping[str, Mapping[str, Any]]) -> Cube:
    """A unit's cube without values: its facts, attributes, and each grid's strengths and settings.

    `attrs` are the attributes of its shards; `grids` holds the strengths and settings
    of each grid, by path.
    """
    facts = _facts(attrs)
    tables = {VECTORS: facts}
    for path, shared in grids.items():
        strengths = shared["strengths"]
        values = xr.DataArray(np.full(len(strengths), np.nan), {"strength": strengths})
        name = measure_name(path)
        values.attrs = collected()[name].attrs | _settings(shared)
        tables[path] = xr.Dataset({name: values}).assign_coords(facts.coords)
    return Cube(tables, recorded(attrs, "of_cube") | CONTRACT)


def identities(folder: Path, planned: Mapping[Path, Mapping[str, Any]]) -> list[Cube]:
    """The identity of every unit in `folder` whose vectors can be read.

    Units with damaged vectors are left out: these are computed again. `planned` maps the folder of
    each unit of this run to the attributes of its shards; of such a unit only the facts of the
    model are taken from disk, as its shards are later checked one by one. Raises ValueError for a
    damaged shard of another unit.
    """
    found = []
    for path in sorted(folder.glob("*/*/vectors.nc")):
        own = planned.get(path.parent)
        grids = {} if own is not None else _recorded_grids(path.parent)
        with suppress(ValueError):
            attrs = load_attrs(path)
            if own is not None:
                model = {**recorded(attrs, "model"), **_origin(recorded(own, "model"))}
                attrs = {**own, "model": json.dumps(model)}
            found.append(identity(attrs, grids))
    return found


def _origin(model: Mapping[str, Any]) -> dict[str, Any]:
    """The source of a model's weights, which each shard is checked against separately."""
    return {name: model[name] for name in ("revision", "hf_id")}


def _recorded_grids(folder: Path) -> dict[str, Any]:
    """By path, the strengths and settings of a unit's grids, from the first shard of each kind."""
    grids: dict[str, Any] = {}
    for kind in TABLES_OF:
        for shard in sorted(folder.glob(f"{kind}-*.nc"))[:1]:
            grids |= recorded(load_attrs(shard), "grids")
    return grids


def why_apart(units: Sequence[Cube]) -> list[str]:
    """Why these units cannot share a cube: a line for each reason, with the first two units.

    They must agree in all that `merge_cubes` compares, in the seed, and in steercube's version.
    """
    if not (differences(units) or _of_other_runs(units)):
        return []
    found: dict[str, str] = {}
    for one, two in combinations(units, 2):
        for line in [*differences([one, two]), *_of_other_runs([one, two])]:
            found.setdefault(line, f"{_name(one)} and {_name(two)}: {line}")
    return list(found.values())


def _of_other_runs(units: Sequence[Cube]) -> list[str]:
    """A line if the seeds differ, and one if the versions of steercube do."""
    seeds = dict.fromkeys(unit.attrs["seed"] for unit in units)
    versions = dict.fromkeys(
        json.loads(line)["steercube"]
        for unit in units
        for line in unit.attrs["versions"].splitlines()
    )
    return [
        f"{name!r} is {' in one and '.join(map(repr, values))} in the other"
        for name, values in {"seed": seeds, "steercube": versions}.items()
        if len(values) > 1
    ]


def _name(unit: Cube) -> str:
    return f"{unit.labels['model'].item()} x {unit.labels['concept'].item()}"


def _facts(attrs: Mapping[str, Any]) -> xr.Dataset:
    items = [Item(**item) for item in recorded(attrs, "items")]
    return facts_of(
        [Model(**recorded(attrs, "model"))], {recorded(attrs, "concept"): items}
    ).set_coords(["item_id", "letter", "item_valid"])


def _settings(shared: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shared.items() if name != "strengths"}


def unit_of(folder: Path) -> UnitShards:
    """The unit whose shards are in `folder`. Raises ValueError for damaged or stray ones."""
    vectors = load_shard(folder / "vectors.nc")
    keys = {folder / "vectors.nc": vectors.attrs["key"]}
    facts, attrs = _facts(vectors.attrs), recorded(vectors, "of_cube") | CONTRACT
    tables: dict[str, xr.Dataset] = {}
    lacking, versions = [], _versions([vectors])
    for kind, tables_of in TABLES_OF.items():
        by_path = {path: load_shard(path) for path in sorted(folder.glob(f"{kind}-*.nc"))}
        raise_if_any(_strays(folder, vectors, by_path), what=f"one unit of the shards in {folder}")
        shards = list(by_path.values())
        if not shards:
            continue
        present = {int(label) for shard in shards for label in shard["sample"]}
        if missing := sorted(set(recorded(shards[0], "samples")) - present):
            lacking.append(f"{folder} does not have the {kind} of items {missing} yet")
            continue
        made = tables_of(shards, facts, tables)
        for path, shared in recorded(shards[0], "grids").items():
            made[path][measure_name(path)].attrs |= _settings(shared)
        tables |= {path: table.assign_attrs(attrs) for path, table in made.items()}
        versions |= _versions(shards)
        keys |= {path: shard.attrs["key"] for path, shard in by_path.items()}
    if not any(folder.glob("*-*.nc")):
        lacking.append(f"{folder} has only vectors")
    if not tables:
        return UnitShards(vectors, None, keys, lacking)
    tables[VECTORS] = logits.placed(_of_layers(vectors, tables), facts)
    attrs |= {"versions": "\n".join(sorted(versions))}
    return UnitShards(vectors, Cube(tables, attrs), keys, lacking)


def _of_layers(vectors: xr.Dataset, tables: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Norms and cosines of the vectors, at the layers of the unit's grids."""
    layers = sorted(
        {int(x) for t in tables.values() if "layer" in t.dims for x in t["layer"].values}
    )
    known = vectors[[name for name in VECTOR_VARIABLES if name in vectors]]
    return known.drop_vars("direction", errors="ignore").sel(layer=layers)


def _versions(shards: Iterable[xr.Dataset]) -> set[str]:
    """The library versions that the shards record."""
    of_cubes = [recorded(shard, "of_cube") for shard in shards if "of_cube" in shard.attrs]
    return {of_cube["versions"] for of_cube in of_cubes if "versions" in of_cube}


def _strays(folder: Path, vectors: xr.Dataset, shards: Mapping[Path, xr.Dataset]) -> list[str]:
    """Why shards of an outcome do not belong to the unit in `folder`, or hold the same samples."""
    expected = settings_of(vectors) | {"vectors_sha256": vectors.attrs[netcdf.DIGEST]}
    named = {"model": folder.parent.name, "concept": folder.name}
    problems = [
        f"{folder / 'vectors.nc'}: {name} = {expected[name]!r}, but its folder is {label!r}"
        for name, label in named.items()
        if expected[name] != label
    ]
    for name in OF_VECTORS_ALONE:
        expected.pop(name, None)
    holder: dict[int, Path] = {}
    for path, shard in shards.items():
        settings = settings_of(shard)
        expected = settings | expected
        problems += [
            f"{path}: {name} = {settings.get(name)!r}, but other shards of its unit have "
            f"{expected[name]!r}"
            for name in sorted(expected.keys() - PER_SHARD_SETTINGS)
            if settings.get(name) != expected[name]
        ]
        labels = {int(label) for label in shard["sample"]}
        others = {holder[label] for label in labels & holder.keys()}
        problems += [f"{path} and {other} hold the same samples" for other in sorted(others)]
        if unknown := sorted(labels - set(recorded(shard, "samples"))):
            problems.append(f"{path}: its samples {unknown} are not among its unit's")
        holder |= dict.fromkeys(labels, path)
    return problems


def complete_units(folder: Path) -> dict[tuple[str, str], list[str]]:
    """The paths of the grids that complete shards make, by (model, concept)."""
    found = {}
    for path in sorted(folder.glob("*/*/vectors.nc")):
        with suppress(ValueError):
            cube = unit_of(path.parent).cube
            found[path.parent.parent.name, path.parent.name] = list(cube.grids) if cube else []
    return found


def _vectors_of(units: Sequence[UnitShards], attrs: Mapping[str, Any]) -> xr.Dataset:
    """The vectors of all units, with dims model, concept, direction, layer and hidden.

    NaN where a model has fewer layers or dimensions, or a unit lacks a direction. Without random
    directions, which follow from the seed and the norm of the concept's vector.
    """
    labelled = []
    for unit in units:
        named = {"model": [recorded(unit.vectors, "model")["name"]],
                 "concept": [recorded(unit.vectors, "concept")]}  # fmt: skip
        kept = [d for d in map(str, unit.vectors["direction"].values) if family_of(d) != RANDOM]
        one = unit.vectors[["vector"]].sel(direction=kept).expand_dims(named)
        labelled.append(one.assign_coords(hidden=np.arange(one.sizes["hidden"])))
    whole, _ = joined(labelled, {"vector": VECTOR})
    order = [OWN, *(d for d in map(str, whole["direction"].values) if d != OWN)]
    return whole.sel(direction=order).assign_attrs(
        {name: value for name, value in attrs.items() if name != "schema_version"}
    )
