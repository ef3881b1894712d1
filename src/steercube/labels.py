"""Facts of models and items, and tables joined on the union of their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from steercube.contract import DEPTH, ITEM_VARIABLES, MODEL_VARIABLES, SHARED, Item, Model
from steercube.schema import Variable


def shared_labels(tables: Mapping[str, xr.Dataset]) -> tuple[xr.Dataset, list[str]]:
    """Facts (SHARED) of every model and item in `tables`, and a line for each contradiction.

    The dataset has dims model, concept and sample. A line names a fact for which two tables have
    different values. If the tables do not all hold the same models, these are sorted by size; if
    not the same concepts, these are sorted by name.
    """
    parts = [_facts(ds) for ds in tables.values() if "model" in ds.indexes]
    whole, problems = joined(parts, SHARED)
    for dim, by in {"model": "n_params", "concept": "concept"}.items():
        held = [part.indexes[dim] for part in parts if dim in part.indexes]
        if any(not index.equals(held[0]) for index in held):
            whole = whole.sortby(by)
    return whole, problems


def _facts(table: xr.Dataset) -> xr.Dataset:
    """The facts of models and items that a table carries."""
    return xr.Dataset(
        {name: table[name].variable for name in SHARED if name in table.variables},
        coords={d: table.indexes[d] for d in ("model", "concept", "sample") if d in table.indexes},
    )


def with_facts(table: xr.Dataset, facts: xr.Dataset) -> xr.Dataset:
    """The table with the facts of its models and items, and the depth of its layers, as coords."""
    own = facts.sel({d: table.indexes[d] for d in facts.dims if d in table.indexes})
    coords = {
        name: (
            SHARED[name].dims,
            own[name].transpose(*SHARED[name].dims).values,
            SHARED[name].attrs,
        )
        for name in SHARED
        if name in own and set(SHARED[name].dims) <= set(table.indexes)
    }
    if "letter" in coords and not (own["letter"] != "").any():
        del coords["letter"]
    return with_depth(table.assign_coords(coords))


def with_depth(table: xr.Dataset) -> xr.Dataset:
    """The table with the coordinate depth = layer / n_layers, NaN at layers that a model lacks."""
    if "layer" not in table.dims:
        return table
    depth = table["layer"] / table["n_layers"]
    depth = depth.where((depth >= 0) & (depth < 1)).transpose("model", "layer")
    # In memory in the order of its dims: the last digit of sums of products depends on that.
    values = np.ascontiguousarray(depth.values)
    return table.assign_coords(depth=(("model", "layer"), values, DEPTH.attrs))


def facts_of(models: Sequence[Model], items: Mapping[str, Sequence[Item]]) -> xr.Dataset:
    """The facts (SHARED) of these models and items, with dims model, concept and sample.

    Concepts with fewer items than the largest are padded with empty ids.
    """
    n_samples = max(map(len, items.values()))
    facts = xr.Dataset(
        coords={
            "model": [model.name for model in models],
            "concept": list(items),
            "sample": np.arange(n_samples),
        }
    )
    for name, variable in MODEL_VARIABLES.items():
        facts[name] = ("model", np.array([getattr(m, name) for m in models]), variable.attrs)
    for name, attribute in {
        "item_id": "item_id",
        "letter": "letter",
        "item_valid": "valid",
    }.items():
        variable = ITEM_VARIABLES[name]
        padded = [
            [getattr(item, attribute) for item in of_concept]
            + [variable.fill] * (n_samples - len(of_concept))
            for of_concept in items.values()
        ]
        facts[name] = (("concept", "sample"), np.array(padded), variable.attrs)
    return facts


IN_ORDER = ("model", "concept", "direction", "reading")
"""Dimensions whose labels are joined in the order in which they are met; others are sorted."""


def joined(
    parts: Sequence[xr.Dataset], contract: Mapping[str, Variable]
) -> tuple[xr.Dataset, list[str]]:
    """The variables of `contract`, from all `parts`, on the union of their labels.

    A recorded value replaces a missing one. Also returns a line for each variable that has
    different recorded values at the same labels, of which the first part's is kept.
    """
    labels = {}
    for dim in dict.fromkeys(str(dim) for part in parts for dim in part.indexes):
        held = [part.indexes[dim].tolist() for part in parts if dim in part.indexes]
        both = list(dict.fromkeys(label for some in held for label in some))
        labels[dim] = both if dim in IN_ORDER else sorted(both)
    whole, problems = xr.Dataset(coords=labels), []
    for name, variable in contract.items():
        holders = [part for part in parts if name in part]
        if not holders:
            continue
        if variable.kind == "f":
            dtype = np.result_type(*(part[name].dtype for part in holders))
            variable = replace(variable, dtype=str(dtype))
        full = variable.full(whole.sizes)
        values = full.values.astype(object) if variable.kind == "U" else full.values
        recorded, n_conflicts, first = np.zeros(values.shape, dtype=bool), 0, ""
        for part in holders:
            own = part[name].transpose(*variable.dims)
            at = np.ix_(*(whole.indexes[d].get_indexer(part.indexes[d]) for d in variable.dims))
            given, is_given = own.values, _is_recorded(own, name, variable, part)
            unlike = recorded[at] & is_given & (values[at] != given)
            if unlike.any():
                n_conflicts += int(unlike.sum())
                first = first or _first(unlike, values[at], own)
            values[at] = np.where(is_given & ~recorded[at], given, values[at])
            recorded[at] |= is_given
        if n_conflicts:
            problems.append(f"{name!r} differs at {n_conflicts} place(s) held by both, {first}")
        whole[name] = (variable.dims, values, variable.attrs)
    return whole, problems


def _first(unlike: np.ndarray, values: np.ndarray, other: xr.DataArray) -> str:
    """Text with the labels at which two parts first differ, and both values there."""
    where = tuple(np.argwhere(unlike)[0])
    place = "/".join(str(other[d].values[i]) for d, i in zip(other.dims, where, strict=True))
    return f"first at {place}: {values[where]!s} and {other.values[where]!s}"


def _is_recorded(
    array: xr.DataArray, name: str, variable: Variable, part: xr.Dataset
) -> np.ndarray:
    """Mask of the values that were recorded; facts of items are, wherever there is an item."""
    if name in ITEM_VARIABLES:
        return part["item_id"].transpose(*variable.dims).values != ""
    if variable.flags:
        return ~np.isin(array.values, [variable.flags["not_run"], variable.flags["not_applicable"]])
    return array.notnull().values if variable.kind == "f" else array.values != variable.fill


def spread(ds: xr.Dataset, name: str, variable: Variable, over: xr.Dataset) -> xr.DataArray:
    """`ds[name]` on the labels of `over`; where `ds` has no such label, its fill value."""
    labels = {dim: over[dim] for dim in variable.dims}
    array = ds[name].reset_coords(drop=True).transpose(*variable.dims)
    fill = variable.flags["not_run"] if variable.flags else variable.fill
    return array.reindex(labels, fill_value=fill)
