"""Merge cubes into one that holds every cell of all; where two hold the same, they must agree."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.contract import (
    PLACE,
    RESPONSE_VARIABLES,
    RESPONSES,
    UNKNOWN,
    VECTOR_VARIABLES,
    VECTORS,
    measure_name,
    variables_of,
)
from steercube.cube import Cube, as_cube, check_cube, status_where_unrun, twice_in
from steercube.labels import joined, shared_labels, with_facts
from steercube.measures import measure_of
from steercube.schema import raise_if_any

ALIKE = ("layer_convention", "positions_steered")
ALIKE_OF_A_MODEL = ("dtype", "read_token", "chat_template_sha256")
"""Attributes that must be the same throughout a cube, and for all samples of one model."""


def merge_cubes(cubes: Sequence[Cube | xr.Dataset]) -> Cube:
    """One cube with every cell of `cubes`; where two hold the same cell they must agree.

    A recorded value replaces a missing one; a response that two hold is kept once. Raises one
    ValueError that lists variables whose recorded values differ, and where; grids of the same path
    with other strengths, dimensions or settings of their measure; inputs of the same name and
    ALIKE attributes that differ; and variables that are not in the contract.
    """
    if not cubes:
        raise ValueError("merging needs at least one cube")
    for cube in cubes:
        check_cube(cube)
    every = [as_cube(cube) for cube in cubes]
    problems = differences(every)
    facts, attrs = merged_facts(every)[0], merged_attrs(every)[0]
    tables: dict[str, xr.Dataset] = {}
    for path in dict.fromkeys(path for cube in every for path in cube):
        held = [cube[path] for cube in every if path in cube]
        join = _merge_responses if path == RESPONSES else _merge_grids
        tables[path], unlike = join(path, held)
        problems += unlike
    raise_if_any(list(dict.fromkeys(problems)), what="merging these cubes")
    placed = {p: t if p == RESPONSES else with_facts(t, facts) for p, t in tables.items()}
    for grid in placed.values():
        if "cell_status" in grid:
            grid["cell_status"] = status_where_unrun(grid)
    merged = Cube(placed, attrs)
    check_cube(merged, what="the merged cube")
    return merged


def differences(cubes: Sequence[Cube]) -> list[str]:
    """Why cubes cannot be merged, whatever their values: a line for each fact, attribute or setting
    that differs."""
    facts, problems = merged_facts(cubes)
    if _are_only_elsewhere(cubes):
        problems = [line for line in problems if not line.startswith("'hf_id'")]
    problems += merged_attrs(cubes)[1] + twice_in(facts)
    for path in dict.fromkeys(path for cube in cubes for path in cube.grids):
        problems += _settings_that_differ(path, [cube[path] for cube in cubes if path in cube])
    return problems


def _are_only_elsewhere(cubes: Sequence[Cube]) -> bool:
    """Whether all models with several `hf_id` have one revision: the same weights, moved."""
    origins: dict[str, set[tuple[str, str]]] = {}
    for cube in cubes:
        facts = (cube.labels[name].values.tolist() for name in ("model", "hf_id", "revision"))
        for model, hf_id, revision in zip(*facts, strict=True):
            origins.setdefault(model, set()).add((hf_id, revision))
    revisions = [{revision for _, revision in one} for one in origins.values() if len(one) > 1]
    return all(len(one) == 1 and "" not in one for one in revisions)


def merged_facts(cubes: Sequence[Cube]) -> tuple[xr.Dataset, list[str]]:
    """Facts of the models and items of all cubes, and a line for each fact that differs."""
    return shared_labels({str(at): cube.labels for at, cube in enumerate(cubes)})


def _settings_that_differ(path: str, grids: Sequence[xr.Dataset]) -> list[str]:
    """A line for each dimension, strength or setting of a measure in which its grids differ."""
    name, first = measure_name(path), grids[0]
    problems = []
    known = dict(first[name].attrs)
    for grid in grids[1:]:
        own = grid[name].attrs
        problems += [
            f"{path}: {setting} is {known[setting]!r} in one and {own[setting]!r} in another"
            for setting in sorted(known.keys() & own.keys())
            if str(np.ravel(known[setting]).tolist()) != str(np.ravel(own[setting]).tolist())
        ]
        known = {**own, **known}
        if set(first[name].dims) != set(grid[name].dims):
            problems.append(
                f"{path}: has the dimensions {first[name].dims} in one and {grid[name].dims} in "
                "another"
            )
        strengths = [ds["strength"].values.tolist() for ds in (first, grid)]
        if strengths[0] != strengths[1]:
            problems.append(
                f"{path}: has the strengths {strengths[0]} in one and {strengths[1]} in another"
            )
    return problems


def _merge_grids(path: str, held: Sequence[xr.Dataset]) -> tuple[xr.Dataset, list[str]]:
    """One grid, or table of vectors, from those of all cubes, and why they cannot be merged."""
    name = measure_name(path)
    contract = VECTOR_VARIABLES
    if path != VECTORS:
        dims = [str(dim) for dim in held[0][name].dims]
        contract = variables_of(measure_of(name, held[0][name].attrs), dims)
    bare = [ds.reset_coords(drop=True) for ds in held]
    problems = [
        f"{path}: {name!r} is not a variable of the contract and cannot be merged: drop it"
        for name in sorted({str(n) for ds in bare for n in ds.data_vars} - contract.keys())
    ]
    if problems or (path != VECTORS and _settings_that_differ(path, held)):
        return bare[0], problems
    joint, unlike = joined(bare, contract)
    if path != VECTORS:
        joint[name].attrs = {k: v for ds in reversed(held) for k, v in ds[name].attrs.items()}
    return joint, [f"{path}: {line}" for line in unlike]


def _merge_responses(path: str, held: Sequence[xr.Dataset]) -> tuple[xr.Dataset, list[str]]:
    """Responses of the cubes without duplicates, and a line if any of them differ."""
    if len(held) < 2:
        return held[0], []
    if any("direction" in part for part in held):
        none = [("response", np.full(part.sizes["response"], "")) for part in held]
        held = [
            part if "direction" in part else part.assign(direction=own)
            for part, own in zip(held, none, strict=True)
        ]
    shared = [name for name in RESPONSE_VARIABLES if all(name in part for part in held)]
    joint = xr.concat([part[shared] for part in held], dim="response", combine_attrs="override")
    place = [*PLACE, *(["direction"] if "direction" in shared else [])]
    table = joint.to_dataframe()[shared]
    table["number"] = np.concatenate([_repeat_numbers(part, place) for part in held])
    repeated = table.duplicated([*place, "number"])
    differing = table[repeated & ~table.duplicated([*shared, "number"])]
    problems = []
    if n := len(differing):
        first = "/".join(str(value) for value in differing.iloc[0][list(PLACE)])
        problems.append(f"{path}: 'text' differs in {n} response(s), first at {first}")
    return joint.isel(response=np.flatnonzero(~repeated)), problems


def _repeat_numbers(responses: xr.Dataset, place: list[str]) -> np.ndarray:
    """Number of each response among those to its item in its cell; by order if not recorded."""
    if "repeat" in responses:
        return responses["repeat"].values
    return responses[place].to_dataframe().groupby(place).cumcount().to_numpy()


def merged_attrs(cubes: Sequence[Cube]) -> tuple[dict[str, Any], list[str]]:
    """Attributes of all cubes, and a line for each difference that forbids merging them.

    Equal lines of an attribute are kept once and others joined, so that no provenance is lost.
    """
    merged: dict[str, Any] = {}
    problems: list[str] = []
    inputs: dict[str, str] = {}
    known = [_inputs(cube) for cube in cubes]
    for at, cube in enumerate(cubes):
        for name, value in cube.attrs.items():
            if UNKNOWN in (value, merged.get(name)):
                merged[name] = merged.get(name, value) if value == UNKNOWN else value
            elif isinstance(merged.get(name), str) and isinstance(value, str):
                lines = dict.fromkeys([*merged[name].split("\n"), *value.split("\n")])
                merged[name] = "\n".join(lines)
            else:
                merged.setdefault(name, value)
        own = known[at] or {}
        problems += [
            f"the input {name!r} is {inputs[name]!r} in one and {own[name]!r} in the other"
            for name in sorted(inputs.keys() & own.keys())
            if inputs[name] != own[name]
        ]
        inputs = {**own, **inputs}
        for other in cubes[:at]:
            problems += _attributes_that_differ(other, cube)
    merged.pop(netcdf.DIGEST, None)
    if None not in known:
        merged["inputs_sha256"] = json.dumps(inputs, sort_keys=True)
    return merged, list(dict.fromkeys(problems))


def _attributes_that_differ(left: Cube, right: Cube) -> list[str]:
    same_model = bool(set(left.labels["model"].values) & set(right.labels["model"].values))
    return [
        f"{name!r} is {left.attrs[name]!r} in one and {right.attrs[name]!r} in the other"
        for name in (*ALIKE, *(ALIKE_OF_A_MODEL if same_model else ()))
        if name in left.attrs and name in right.attrs
        if UNKNOWN not in (left.attrs[name], right.attrs[name])
        if not _alike(left.attrs[name], right.attrs[name])
    ]


def _alike(one: str, two: str) -> bool:
    """Whether the lines of one are a subset of the other's; a merged cube has the lines of both."""
    lines, others = (set(str(text).split("\n")) for text in (one, two))
    return lines <= others or others <= lines


def _inputs(cube: Cube) -> dict[str, str] | None:
    """SHA-256 of each input by its name; None where a cube made by hand has it in another form."""
    try:
        inputs = json.loads(cube.attrs["inputs_sha256"])
    except ValueError:
        return None
    return inputs if isinstance(inputs, dict) else None
