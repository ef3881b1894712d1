"""The cube: every sample of a steering sweep, labelled, in one file.

A cube holds a grid for each measure: an xarray Dataset with dims (model, concept, layer, strength,
sample), padded with NaN where models have fewer layers or concepts fewer items. `concept` names the
set of items that the model was asked. The grid named after its measure (`cube["logit_diff"]`) holds
each concept's own vector on its own items. Other directions have grids of their own, one for each
family, with a dimension `direction`: `cube["logit_diff/random"]` has the directions random/0,
random/1 and so on, and `cube["logit_diff/sycophancy"]` the vector of sycophancy on the items of
other concepts. So no grid is padded with directions, layers, strengths or items that its measure
was not swept with.

`layer` counts decoder blocks from 0; a grid may lack it where it was not recorded. A cube may also
hold a table `responses` of generated answers (dim response), and a table `vectors` of norms and
cosines of the steering vectors (model, concept, layer). Collectors and importers write this file;
the later stages read it and nothing else.

In the file, the root has the facts of models and items and the attributes; each grid and table is
a netCDF group of its path. `open_cube` also verifies the content and puts the facts beside each
grid; without steercube, `xr.open_groups(path)` reads all groups, and
`xr.open_dataset(path, group="logit_diff")` one of them, without the facts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube import netcdf
from steercube.contract import (
    ARCHITECTURES,
    ATTRIBUTES,
    BOUNDS,
    CELL_STATUS,
    CONTRACT,
    DEPTH,
    DIMS,
    GIVEN_ATTRIBUTES,
    LABELS,
    LOGPROBS,
    MAX_GAP_16_BITS,
    MAX_GAP_FLOAT32,
    MAX_JOINT_LOGPROB,
    MIN_STRENGTH_GAP,
    MODEL_VARIABLES,
    NAMES_IN_A_GRID,
    NORMS,
    OF_EVERY_GRID,
    PLACE,
    RESPONSE_VARIABLES,
    RESPONSES,
    ROUNDING,
    SCHEMA_VERSION,
    SCORED_LETTERS,
    SHARED,
    STATUS,
    UNSTEERED,
    UNSTEERED_STRENGTH,
    VECTOR_VARIABLES,
    VECTORS,
    Item,
    Model,
    family_of,
    measure_name,
    variables_of,
)
from steercube.labels import facts_of, shared_labels, with_depth, with_facts
from steercube.measures import (
    CELL,
    LOGIT_DIFF,
    MEASURES,
    Measure,
    measure_of,
    record_violations,
)
from steercube.schema import (
    Grids,
    attribute_violations,
    group_violations,
    has_version,
    name_violations,
    raise_if_any,
    require_version,
    structure_violations,
)

__all__ = ["Cube", "as_cube", "blank_grid", "check_cube", "grid_of", "open_cube", "save_cube"]


class Cube(Grids):
    """The grids and tables of a cube, by path; `attrs` are the attributes of the whole.

    The path of a grid is the name of its measure, or measure/family for directions other than a
    concept's own. The tables are `responses` and `vectors`.
    """

    def __init__(
        self, tables: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None
    ) -> None:
        known = [*MEASURES, "", RESPONSES, VECTORS]
        rank = {path: known.index(measure_name(path)) if measure_name(path) in known
                else known.index("") for path in tables}  # fmt: skip
        ordered = sorted(tables, key=lambda path: (rank[path], path))
        super().__init__({path: tables[path] for path in ordered}, attrs)

    def __repr__(self) -> str:
        from steercube.summary import summarise_cube

        return summarise_cube(self)

    @property
    def grids(self) -> dict[str, xr.Dataset]:
        """Every grid by its path, without the tables `responses` and `vectors`."""
        return {path: ds for path, ds in self.items() if path not in (RESPONSES, VECTORS)}

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """The record of every measure, by name."""
        found: dict[str, Measure] = {}
        for path, grid in self.grids.items():
            name = measure_name(path)
            found.setdefault(name, measure_of(name, grid[name].attrs))
        return found

    @cached_property
    def labels(self) -> xr.Dataset:
        """Facts of the models and items of all grids, with dims model, concept and sample."""
        return shared_labels(self)[0]


def as_cube(given: Cube | xr.Dataset) -> Cube:
    """A cube unchanged; a single grid as a cube of one measure.

    Dimensions that a selection such as `grid.sel(concept="honesty")` has taken away are put back.
    Raises ValueError for a dataset with no measure, or with several.
    """
    if isinstance(given, Cube):
        return given
    # Arithmetic may have left a measure's record on other variables of its grid.
    columns = {name for measure in MEASURES.values() for name in measure.columns}
    measures = [
        str(n)
        for n, variable in given.data_vars.items()
        if n in MEASURES or ("kind" in variable.attrs and n not in columns)
    ]
    if not measures:
        said = "no variable of it records its `kind`"
        if "vector" in given:
            said = "these are steering vectors, not what they do: sc.sweep makes a cube"
        raise ValueError(f"this dataset holds no measure: {said}")
    if len(measures) > 1:
        raise ValueError(
            f"this dataset holds the measures {', '.join(measures)}; a grid holds one. Give each a "
            "dataset of its own, in Cube({name: dataset})"
        )
    name = measures[0]
    grid = _with_every_dim(given, name)
    directions = grid["direction"].values.tolist() if "direction" in grid.dims else []
    return Cube({"/".join([name, *{family_of(str(d)) for d in directions}]): grid})


def _with_every_dim(grid: xr.Dataset, measure: str) -> xr.Dataset:
    lost = [d for d in LABELS if d in grid.coords and not grid[d].dims]
    if not lost:
        return grid
    dims = tuple(d for d in DIMS if d in (*grid[measure].dims, *lost))
    contract = variables_of(measure_of(measure, grid[measure].attrs), dims) | {"depth": DEPTH}
    whole = {}
    for name in grid.variables.keys() - set(grid.indexes) - set(lost):
        wanted = contract[name].dims if name in contract else grid[name].dims
        array = grid[name].reset_coords(drop=True)
        for dim in lost:
            if dim in wanted:
                array = array.expand_dims({dim: [grid[dim].item()]})
        whole[name] = array.transpose(*wanted, ..., missing_dims="ignore")
    coords = [name for name in whole if name in grid.coords]
    return xr.Dataset(whole).set_coords(coords).assign_attrs(grid.attrs)


def blank_grid(
    models: Sequence[Model],
    items: Mapping[str, Sequence[Item]],
    *,
    layers: Sequence[int],
    strengths: Sequence[float],
    measure: Measure = LOGIT_DIFF,
    directions: Sequence[str] = (),
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """A grid of a measure without values, every cell not run, for a collector or importer to fill.

    Fill the measure for every item at every strength of a cell, and mark the cell complete; of
    `logit_diff` also `logprob_matching` and `logprob_other` (nats), whose difference it is.
    `directions` are names of directions of one family, for a grid of these instead of the concepts'
    own vectors. With `attrs`
    (GIVEN_ATTRIBUTES) the grid is a cube by itself; raises ValueError that lists missing ones.
    Effects need the compared strengths, -1 and +1 unless the measure says otherwise, and ten items
    per concept.

    >>> model = Model("tiny", n_layers=4, n_params=1e6, n_active_params=1e6, training="instruct",
    ...               architecture="dense", family="tiny", hf_id="me/tiny")
    >>> items = {"honesty": [Item(f"honesty/{i}", "AB"[i % 2]) for i in range(12)]}
    >>> cube = blank_grid([model], items, layers=[1, 2], strengths=[-1, 0, 1],
    ...                   attrs=dict.fromkeys(GIVEN_ATTRIBUTES, "made up"))
    >>> for layer in (1, 2):
    ...     for strength in (-1, 0, 1):
    ...         at = {"model": "tiny", "concept": "honesty", "layer": layer, "strength": strength}
    ...         cube["logprob_matching"].loc[at] = -4.0 + 0.2 * strength * np.arange(12)
    ...         cube["logprob_other"].loc[at] = -4.0
    ...     cube["cell_status"].loc["tiny", "honesty", layer] = STATUS["complete"]
    >>> cube["logit_diff"] = (cube["logprob_matching"] - cube["logprob_other"]).assign_attrs(
    ...     LOGIT_DIFF.attrs)
    >>> check_cube(cube)
    """
    if attrs is not None:
        raise_if_any(attribute_violations(attrs, GIVEN_ATTRIBUTES), what="attrs")
        attrs = CONTRACT | dict(attrs)
    labels: dict[str, Any] = {
        "direction": list(directions),
        "model": [model.name for model in models],
        "concept": list(items),
        "layer": np.array(sorted(layers), dtype="int64"),
        "strength": np.array(sorted(strengths), dtype="float64"),
        "sample": np.arange(max(map(len, items.values()))),
    }
    grid = xr.Dataset(coords={dim: of for dim, of in labels.items() if len(of)})
    for name, variable in variables_of(measure, [d for d in DIMS if d in grid.dims]).items():
        if name not in SHARED and (variable.required or name == "cell_status"):
            grid[name] = variable.full(grid.sizes)
    grid[measure.name].attrs = measure.attrs
    grid = with_facts(grid, facts_of(models, items))
    return grid.assign(cell_status=status_where_unrun(grid)).assign_attrs(attrs or {})


def grid_of(rows: pd.DataFrame, measure: Measure, *, facts: xr.Dataset) -> xr.Dataset:
    """The grid of a measure from a table with a row for each value, in columns named as its dims.

    The columns are `model`, `concept`, `strength`, where they apply `direction`, `layer`, `sample`
    (the number of the item) and `reading`, the measure, and further variables of its grid. Of
    `logit_diff`, cells without a missing value are marked complete. `facts` (see `facts_of`) may
    hold more models and items.
    Raises ValueError for rows with the same labels and for labels that `facts` lacks.
    """
    dims = [dim for dim in DIMS if dim in rows]
    problems = [
        f"{dim} {label!r} is not among those of the cube, {', '.join(map(str, facts[dim].values))}"
        for dim in ("model", "concept")
        for label in sorted(set(rows[dim]) - set(facts[dim].values))
    ]
    if twice := int(rows.duplicated(dims).sum()):
        problems.append(f"{twice} row(s) repeat the {', '.join(dims)} of another")
    raise_if_any(problems, what=f"the table of {measure.name}")
    contract = variables_of(measure, dims)
    grid = xr.Dataset()
    for name in contract:
        if name in rows:
            own = contract[name].dims
            column = rows.drop_duplicates(list(own)).set_index(list(own))[name].to_xarray()
            values = column.transpose(*own).astype(contract[name].dtype or float)
            grid[name] = values.assign_attrs(contract[name].attrs)
    order = {
        dim: [x for x in facts[dim].values if x in grid.indexes[dim]]
        for dim in ("model", "concept")
    }
    if "reading" in dims:
        order["reading"] = list(dict.fromkeys(rows["reading"]))
    grid = with_facts(grid.sel(order), facts)
    grid[measure.name].attrs = measure.attrs
    if measure.name == LOGIT_DIFF.name:
        held = _recorded(grid[measure.name])
        whole = _whole(grid[measure.name], _asked(grid, grid[measure.name]))
        status = held * (whole * STATUS["complete"] + ~whole * STATUS["nonfinite"])
        grid["cell_status"] = status.reset_coords(drop=True) + ~held * STATUS["not_run"]
        grid["cell_status"] = status_where_unrun(grid)
    return grid


def status_where_unrun(grid: xr.Dataset) -> xr.DataArray:
    """`cell_status`, with not_applicable at, and only at, layers that the model lacks."""
    status = grid["cell_status"].reset_coords(drop=True)
    dims = status.dims
    if "layer" in grid.dims:
        lacking = (grid["layer"] >= grid["n_layers"]).reset_coords(drop=True)
        status = status.where(~lacking, STATUS["not_applicable"])
        status = status.where(lacking | (status != STATUS["not_applicable"]), STATUS["not_run"])
    status = status.transpose(*dims).astype("int8")
    return status.drop_attrs(deep=False).assign_attrs(CELL_STATUS.attrs)


def status_of(grid: xr.Dataset, measure: str) -> xr.DataArray:
    """`cell_status` of every cell; where not recorded, complete if every strength has a value."""
    if "cell_status" in grid:
        return grid["cell_status"]
    held = grid.get("generation_valid", grid[measure]).notnull()
    held = held.any([d for d in held.dims if d not in ("direction", *CELL, "strength")])
    held = held.all("strength")
    blank = xr.full_like(held, STATUS["complete"], dtype="int8").where(held, STATUS["not_run"])
    return status_where_unrun(grid.assign(cell_status=blank.assign_attrs(CELL_STATUS.attrs)))


def save_cube(cube: Cube | xr.Dataset, path: str | Path) -> str:
    """Check the cube, write it whole or not at all, and return the SHA-256 of its content."""
    cube = as_cube(cube)
    check_cube(cube)
    return netcdf.save(groups_of(cube), path)


def groups_of(cube: Cube) -> dict[str, xr.Dataset]:
    """The groups of a cube's file: facts and attributes in the root, and one for each table."""
    groups = {
        path: table.drop_vars([*SHARED, "depth"], errors="ignore").drop_attrs(deep=False)
        for path, table in cube.items()
        # A text variable without rows would be read back from the file as bytes.
        if all(table.sizes.values())
    }
    return {netcdf.ROOT: cube.labels.assign_attrs(cube.attrs), **groups}


def open_cube(path: str | Path) -> Cube:
    """The cube in `path`, in memory, verified and checked.

    A file of version 1 is read as the same cube in version 2. Raises FileNotFoundError, and
    ValueError that lists every rule of the contract that the cube breaks.
    """
    groups = netcdf.load_groups(path)
    root = groups.pop(netcdf.ROOT)
    if has_version(root, "schema_version", 1):
        from steercube.version_1 import cube_of

        cube = cube_of(root, what=str(path))
    else:
        _require_a_cube(root, what=str(path))
        facts = {name: SHARED[name] for name in SHARED if set(SHARED[name].dims) <= set(root.dims)}
        facts = MODEL_VARIABLES | facts
        problems = group_violations(root, groups, facts, label_kinds=LABELS)
        raise_if_any(problems, what=str(path))
        cube = Cube({name: with_facts(table, root) for name, table in groups.items()}, root.attrs)
    check_cube(cube, what=str(path))
    return cube


def _require_a_cube(root: xr.Dataset, *, what: str) -> None:
    if "cells_version" in root.attrs:
        raise ValueError(f"{what} holds cells, not a cube; name such a file <study>.cells.nc")
    require_version(root, "schema_version", SCHEMA_VERSION, what=what, remedy=_reinstall(root))


def _reinstall(cube: xr.Dataset) -> str:
    """How to install the steercube version that wrote `cube`, according to its history."""
    wrote = re.search(r"steercube (\d[\w.]*)", str(cube.attrs.get("history", "")))
    if not wrote:
        return "install the steercube version that wrote it; its history does not say which"
    return (
        f"install steercube {wrote[1]}, which wrote it, from its wheel or from the tag v{wrote[1]}"
    )


def check_cube(cube: Cube | xr.Dataset, *, what: str = "the cube") -> None:
    """Raise one ValueError that lists every rule of the contract that `cube` breaks, if any.

    `what` names the cube in the message.
    """
    if isinstance(cube, xr.Dataset):
        if "estimand" in cube.dims or "estimand" in cube.coords:
            raise ValueError(f"{what} holds cells, not a cube; name such a file <study>.cells.nc")
        require_version(cube, "schema_version", SCHEMA_VERSION, what=what, remedy=_reinstall(cube))
    cube = as_cube(cube)
    problems = attribute_violations(cube.attrs, ATTRIBUTES)
    if not cube.grids:
        problems.append("it holds no grid; a cube holds one for each measure")
    for path, grid in cube.grids.items():
        problems += [f"{path}: {problem}" for problem in _grid_problems(path, grid)]
    if not problems:
        problems = [*shared_labels(cube)[1], *twice_in(cube.labels)]
        problems += _unsteered_problems(cube) + _vector_problems(cube) + _response_problems(cube)
    raise_if_any(problems, what=what)


def twice_in(facts: xr.Dataset) -> list[str]:
    """Lines on models with the same weights under several names, and on item ids that repeat."""
    weights = (facts[name].values.tolist() for name in ("model", "hf_id", "revision"))
    problems = same_weights(zip(*weights, strict=True))
    ids = facts["item_id"].values if "item_id" in facts else np.array([], dtype=str)
    named, count = np.unique(ids[ids != ""], return_counts=True)
    if (count > 1).any():
        problems.append(f"'item_id' must be unique across concepts; repeated: {named[count > 1]}")
    return problems


def _grid_problems(path: str, grid: xr.Dataset) -> list[str]:
    """Violations by one grid: first of its structure, and if there are none of its values."""
    name, _, family = path.partition("/")
    if name not in grid:
        return [f"variable {name!r} is missing; it holds the measure that the grid is named after"]
    measure, dims = measure_of(name, grid[name].attrs), grid[name].dims
    wanted = ("direction", *OF_EVERY_GRID) if family else OF_EVERY_GRID
    problems = record_violations(measure)
    problems += [f"dimension {dim!r} is missing" for dim in wanted if dim not in dims]
    problems += [
        f"dimension {dim!r} is unknown; a grid may have {', '.join(DIMS)}"
        for dim in dims
        if dim not in DIMS
    ]
    if not family and "direction" in dims:
        problems.append(
            f"it has a dimension 'direction', so it belongs in a grid {name}/<family of directions>"
        )
    contract = variables_of(measure, [d for d in DIMS if d in dims])
    contract |= {"depth": DEPTH} if set(DEPTH.dims) <= set(dims) else {}
    known = {dim: LABELS[dim] for dim in dims if dim in LABELS}
    problems += structure_violations(grid, contract, index_dims=known)
    problems += [f"dimension {dim!r} is empty" for dim in known if grid.sizes.get(dim) == 0]
    if problems:
        return problems
    return [
        *_label_problems(grid, family),
        *_model_problems(grid),
        *_item_problems(grid),
        *_value_problems(grid, measure),
        *(_readout_problems(grid) if set(LOGPROBS) <= set(grid) else ()),
    ]


def _label_problems(grid: xr.Dataset, family: str) -> list[str]:
    named = [dim for dim in ("direction", "model", "concept") if dim in grid.dims]
    problems = [
        problem
        for dim in named
        for problem in name_violations(dim, _without_number(dim, grid[dim].values))
    ]
    if family in NAMES_IN_A_GRID or (family and family in grid.data_vars):
        problems.append(f"directions cannot be called {family!r}: it has another meaning in a cube")
    problems += [
        f"direction {str(direction)!r} is of the family {family_of(str(direction))!r}, so it does "
        f"not belong in the grid of {family!r}"
        for direction in (grid["direction"].values if family else ())
        if family_of(str(direction)) != family
    ]
    problems += [
        f"model {str(model)!r} is named like an average over models; give it another name"
        for model in grid["model"].values
        if str(model).startswith("mean of ")
    ]
    if "layer" in grid.dims:
        if (np.diff(grid["layer"].values) <= 0).any():
            problems.append("'layer' must increase; sort the grid by it")
        if (grid["layer"] < 0).any():
            problems.append("'layer' has a negative label; layers count blocks from 0")
    if not np.isfinite(grid["strength"]).all():
        problems.append("'strength' has a label that is not finite")
    return problems + [
        f"'strength' has the labels {one!r} and {other!r}, which count as one strength: labels "
        f"must be at least {MIN_STRENGTH_GAP:g} apart; give both the same label"
        for one, other in pairwise(np.sort(grid["strength"].values).tolist())
        if other - one < MIN_STRENGTH_GAP
    ]


def _without_number(dim: str, names: Iterable[Any]) -> list[str]:
    """The names to check; a direction such as random/3 is checked before and after the slash."""
    texts = list(map(str, names))
    return [part for text in texts for part in text.split("/", 1)] if dim == "direction" else texts


COMMIT_OF_HUB = re.compile("[0-9a-f]{7,64}")


def same_weights(models: Iterable[tuple[str, str, str]]) -> list[str]:
    """A line for each set of weights with several names, from (name, hf_id, revision) of models.

    A hash of the content (`files:...`) identifies weights by itself, a commit together with its
    repository; models for which neither was recorded are skipped.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for name, hf_id, revision in dict.fromkeys(models):
        if ":" in revision:
            names.setdefault(("", revision), []).append(name)
        elif hf_id and COMMIT_OF_HUB.fullmatch(revision):
            names.setdefault((hf_id, revision), []).append(name)
    return [
        f"models {' and '.join(map(repr, sorted(same)))} are the same weights, "
        f"{' at '.join(filter(None, weights))}: a cube holds a model once, under one name and in "
        "one number format. Leave one of them out, or keep it in a cube of its own (another --out)"
        for weights, same in names.items()
        if len(set(same)) > 1
    ]


def _model_problems(grid: xr.Dataset) -> list[str]:
    problems = []
    architectures = zip(grid["model"].values, grid["architecture"].values, strict=True)
    wrong = {str(model): str(name) for model, name in architectures if name not in ARCHITECTURES}
    if wrong:
        problems.append(f"'architecture' of {wrong} is none of {', '.join(ARCHITECTURES)}")
    problems += name_violations("training", sorted(set(map(str, grid["training"].values))))
    n_params, n_active = grid["n_params"], grid["n_active_params"]
    if (grid["n_layers"] < 1).any() or not ((n_params > 0) & (n_params < np.inf)).all():
        problems.append("'n_layers' and 'n_params' must be positive and finite for every model")
    elif not ((n_active > 0) & (n_active <= n_params)).all():
        problems.append("'n_active_params' must be positive, and at most 'n_params'")
    elif "layer" in grid.dims:
        depth, derived = (ds["depth"].transpose(*DEPTH.dims) for ds in (grid, with_depth(grid)))
        if not np.allclose(depth, derived, equal_nan=True):
            problems.append("'depth' is not layer / n_layers, or not NaN beyond the last block")
    return problems


def _item_problems(grid: xr.Dataset) -> list[str]:
    if "sample" not in grid.dims:
        return []
    order = ("concept", "sample")
    ids, valid = (grid[name].transpose(*order).values for name in ("item_id", "item_valid"))
    present = ids != ""
    problems = []
    if "letter" in grid.coords:
        letters = grid["letter"].transpose(*order).values
        lettered = (letters != "").any(axis=1)
        if (letters[lettered][present[lettered]] == "").any():
            problems.append("'letter' is empty for an item that has an id")
        if (valid & ~np.isin(letters, SCORED_LETTERS))[lettered].any():
            problems.append(f"'item_valid' is True where 'letter' is none of {SCORED_LETTERS}")
    for concept in grid["concept"].values[~present.any(axis=1)]:
        problems.append(f"concept {str(concept)!r} has no item")
    return problems


def _value_problems(grid: xr.Dataset, measure: Measure) -> list[str]:
    """Values in padding, at layers that a model lacks, out of bounds, or against `cell_status`."""
    values, problems = grid[measure.name], []
    held = [name for name in (measure.name, *measure.columns) if name in grid]
    if "sample" in grid.dims:
        present = grid["item_id"] != ""
        problems += [
            f"{name!r} has values at padding samples (those with no item_id)"
            for name in held
            if "sample" in grid[name].dims and (grid[name].notnull() & ~present).any()
        ]
    if "layer" in grid.dims:
        beyond = grid["layer"] >= grid["n_layers"]
        problems += [
            f"{name!r} has values at layers that the model does not have, in {name_cells(outside)}"
            for name in held
            if "layer" in grid[name].dims and (outside := _recorded(grid[name]) & beyond).any()
        ]
    low, high = measure.bounds
    bounds = {measure.name: (low - ROUNDING, high + ROUNDING)} | BOUNDS
    problems += out_of_bounds((grid[name], *bounds[name]) for name in held if name in bounds)
    if {"generation_valid", "generation_match"} <= set(grid):
        answered = grid["generation_valid"] > 0
        if (answered & grid["generation_match"].isnull()).any():
            problems.append("'generation_match' is missing where 'generation_valid' is above 0")
    if "cell_status" not in grid:
        infinite = np.isinf(values).any()
        return problems + ([f"{measure.name!r} has infinite values"] if infinite else [])
    return problems + _status_problems(grid, values)


def _status_problems(grid: xr.Dataset, values: xr.DataArray) -> list[str]:
    status = grid["cell_status"]
    if unknown := sorted(set(np.unique(status).tolist()) - set(STATUS.values())):
        return [f"'cell_status' holds {unknown}; it may hold {STATUS}"]
    present = grid["item_id"] != "" if "sample" in grid.dims else xr.DataArray(True)
    asked = _asked(grid, values) if "sample" in grid.dims else present
    rules = {
        "complete, but values are missing": (
            (status == STATUS["complete"]) & ~_whole(values, asked)
        ),
        "not run or not applicable, but has values": (
            status.isin([STATUS["not_run"], STATUS["not_applicable"]]) & _recorded(values)
        ),
    }
    if set(grid.data_vars) == {values.name, "cell_status"} or "logprob_matching" in grid:
        rules["nonfinite, but every value is finite"] = (status == STATUS["nonfinite"]) & _whole(
            values, present
        )
    if "layer" in grid.dims:
        beyond = grid["layer"] >= grid["n_layers"]
        rules |= {
            "applicable, but the model has no such layer": (
                (status != STATUS["not_applicable"]) & beyond
            ),
            "not applicable, but the model has the layer": (
                (status == STATUS["not_applicable"]) & ~beyond
            ),
        }
    return [
        f"'cell_status' is {rule}, in {name_cells(broken)}"
        for rule, broken in rules.items()
        if broken.any()
    ]


def _readout_problems(grid: xr.Dataset) -> list[str]:
    """Log-probabilities above 0, or that contradict each other."""
    dims = grid["logit_diff"].dims
    matching, other, diff = (grid[name].transpose(*dims) for name in (*LOGPROBS, "logit_diff"))
    finite = np.isfinite(diff.values)
    problems = out_of_bounds((v.where(finite), -np.inf, ROUNDING) for v in (matching, other))
    with np.errstate(invalid="ignore"):
        error = abs(diff - (matching - other))
        both = matching.copy(data=np.where(finite, np.logaddexp(matching, other), np.nan))
    if (error.where(finite) > ROUNDING).any() or (error.isnull() & finite).any():
        problems.append("'logit_diff' is not logprob_matching - logprob_other (to 1e-4 nat)")
    if (most := float(both.max())) > MAX_JOINT_LOGPROB:
        problems.append(
            "'logprob_matching' and 'logprob_other' belong to two answers that exclude each other, "
            f"but their probabilities add up to {np.exp(most):.3g}{_where(both, most)}"
        )
    return problems


def out_of_bounds(bounded: Iterable[tuple[xr.DataArray, float, float]]) -> list[str]:
    """The smallest and largest values that are outside their bounds (low, high), and where."""
    return [
        f"{values.name!r} must be in [{low:g}, {high:g}]; it is {value:g}{_where(values, value)}"
        for values, low, high in bounded
        for value in {float(values.min()), float(values.max())}
        if value < low or value > high
    ]


def _unsteered_problems(cube: Cube) -> list[str]:
    """Values at strength 0 that depend on layer or direction, though nothing is added there."""
    room = MAX_GAP_FLOAT32 if cube.attrs["dtype"] == "float32" else MAX_GAP_16_BITS
    problems = []
    unsteered = {
        path: grid.sel(strength=UNSTEERED_STRENGTH)
        for path, grid in cube.grids.items()
        if measure_name(path) == LOGIT_DIFF.name
        and UNSTEERED_STRENGTH in grid["strength"].values
        and "layer" in grid.dims
    }
    own = unsteered.get(LOGIT_DIFF.name)
    for path, grid in unsteered.items():
        complete = status_of(grid, LOGIT_DIFF.name) == STATUS["complete"]
        complete = complete & (abs(grid["logit_diff"]) < np.inf)
        for name in ("logit_diff", *(name for name in LOGPROBS if name in grid)):
            values = grid[name].where(complete)
            gap = values - values.min("layer")
            if (most := float(gap.max())) > room:
                problems.append(
                    f"{path}: {name!r} at strength 0 differs between layers of one model and "
                    f"concept, by {most:.3g} nat{_where(gap, most)} (at most {room:g} is rounding):"
                    " without steering there is one value for all layers"
                )
        if own is not None and path != LOGIT_DIFF.name:
            # Whatever the layer: families may be swept at others than the concepts' own vectors.
            gap = abs(grid["logit_diff"].where(complete) - own["logit_diff"].max("layer"))
            if gap.size and (most := float(gap.max())) > room:
                problems.append(
                    f"{path}: 'logit_diff' at strength 0 differs from that of the concepts' own "
                    f"vectors, by {most:.3g} nat{_where(gap, most)} (at most {room:g} is rounding):"
                    " nothing is added there"
                )
    return problems


def _where(array: xr.DataArray, value: float) -> str:
    """First position of the value, as text to append to a message: " at model/concept/..."."""
    at = np.argwhere(array.values == np.asarray(value, dtype=array.dtype))[0]
    labels = [str(array[dim].values[i]) for dim, i in zip(array.dims, at, strict=True)]
    return f" at {'/'.join(labels)}"


def _recorded(values: xr.DataArray) -> xr.DataArray:
    """Mask of the cells that hold any value."""
    return values.notnull().any([d for d in values.dims if d not in ("direction", *CELL)])


def _asked(grid: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Mask of the items that were swept: all, but with directions those that have any value.

    Directions other than the concepts' own may be swept on some of the items.
    """
    present = grid["item_id"] != ""
    if "direction" not in values.dims:
        return present
    return present & values.notnull().any(
        [dim for dim in values.dims if dim not in ("model", "concept", "sample")]
    )


def _whole(values: xr.DataArray, present: Any) -> xr.DataArray:
    """Mask of the cells in which every item has a finite value at every strength."""
    finite: xr.DataArray = xr.apply_ufunc(np.isfinite, values)
    every = [dim for dim in values.dims if dim not in ("direction", *CELL)]
    return (finite | ~present).all(every)


def _vector_problems(cube: Cube) -> list[str]:
    if VECTORS not in cube:
        return []
    table = cube[VECTORS]
    problems = structure_violations(
        table, VECTOR_VARIABLES, index_dims={dim: LABELS[dim] for dim in CELL}
    )
    unknown = np.setdiff1d(table["model"], _labels_of_grids(cube, "model")) if not problems else ()
    problems += [f"model {str(model)!r} is not in any grid" for model in unknown]
    if not problems:
        held = [name for name in VECTOR_VARIABLES if name in table]
        problems = out_of_bounds((table[name], *BOUNDS[name]) for name in held)
        beyond = table["layer"] >= cube.labels["n_layers"].sel(model=table["model"])
        complete = _complete_cells(cube, table)
        problems += [
            f"{name!r} has values at layers that the model does not have, in {name_cells(outside)}"
            for name in held
            if (outside := table[name].notnull() & beyond).any()
        ]
        problems += [
            f"{name!r} is infinite in a complete cell, in {name_cells(infinite)}"
            for name in NORMS
            if name in table and (infinite := (abs(table[name]) == np.inf) & complete).any()
        ]
    return [f"{VECTORS}: {problem}" for problem in problems]


def _labels_of_grids(cube: Cube, dim: str) -> np.ndarray:
    """Every label of a dimension that any grid has."""
    held = [grid[dim].values for grid in cube.grids.values() if dim in grid.dims]
    return np.unique(np.concatenate(held)) if held else np.array([])


def _complete_cells(cube: Cube, table: xr.Dataset) -> xr.DataArray:
    """Mask of the table's cells in which some grid of the concepts' own vectors is complete."""
    labels = {dim: table[dim].values for dim in CELL}
    mask = xr.DataArray(np.zeros([len(of) for of in labels.values()], dtype=bool), labels, CELL)
    for path, grid in cube.grids.items():
        if path in cube.measures and "layer" in grid.dims:
            complete = status_of(grid, path) == STATUS["complete"]
            mask |= complete.reset_coords(drop=True).reindex(labels, fill_value=False)
    return mask


def _response_problems(cube: Cube) -> list[str]:
    if RESPONSES not in cube:
        return []
    table, facts = cube[RESPONSES], cube.labels
    problems = [
        f"variable {name!r} is missing; each response needs {RESPONSE_VARIABLES[name].long_name}"
        for name in ("text", *PLACE)
        if name not in table
    ]
    problems = problems or structure_violations(table, RESPONSE_VARIABLES, index_dims={})
    problems = problems or [
        f"{len(strays)} response(s) have a {dim} that the cube lacks, such as {strays[0]}"
        for dim in (*PLACE, "direction")
        if dim in table and len(strays := _strays(table[dim].values, dim, cube))
    ]
    problems = problems or _misplaced_responses(table, facts)
    if not problems and "repeat" in table:
        at = [*PLACE, "repeat", *(["direction"] if "direction" in table else [])]
        if twice := int(table[at].to_dataframe().duplicated(at).sum()):
            problems.append(f"{twice} response(s) are duplicated: same item, cell and repeat")
    return [f"{RESPONSES}: {problem}" for problem in problems]


def _strays(labels: np.ndarray, dim: str, cube: Cube) -> np.ndarray:
    """Those of the responses' labels that no grid has."""
    known = _labels_of_grids(cube, dim)
    if dim == "strength":
        labels, known = labels.astype("float32"), known.astype("float32")
    also: dict[str, Any] = {"layer": UNSTEERED, "direction": ""}
    return labels[~(np.isin(labels, known) | (labels == also.get(dim)))]


def _misplaced_responses(table: xr.Dataset, facts: xr.Dataset) -> list[str]:
    """Responses to items that their concept lacks, or at layers that their model lacks."""
    place = {name: table[name].values for name in PLACE}
    at = {dim: facts.indexes[dim].get_indexer(place[dim]) for dim in ("model", "concept", "sample")}
    ids = facts["item_id"].transpose("concept", "sample").values
    wrong_layer = place["layer"] >= facts["n_layers"].values[at["model"]]
    return [
        f"{int(wrong.sum())} response(s) are {what}, such as "
        + "/".join(str(values[wrong][0]) for values in place.values())
        for what, wrong in {
            "to an item that their concept lacks": ids[at["concept"], at["sample"]] == "",
            "at a layer that their model lacks": wrong_layer | (place["layer"] < UNSTEERED),
        }.items()
        if wrong.any()
    ]


def name_cells(mask: xr.DataArray, *, at_most: int = 3) -> str:
    """The first cells of a mask by name, and how many more there are."""
    mask = mask.transpose(*[dim for dim in ("direction", *CELL) if dim in mask.dims])
    named = [
        "/".join(str(mask[dim].values[i]) for dim, i in zip(mask.dims, where, strict=True))
        for where in np.argwhere(mask.values)[:at_most]
    ]
    rest = int(mask.sum()) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")
