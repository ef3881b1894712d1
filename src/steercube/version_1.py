"""Cubes and cells in files of version 1, read as the same in version 2.

Version 1 had one dataset for all measures. Directions, readings and the columns of the responses
were variables of it, with names such as `logit_diff_random`, `published_match`, `response_text`.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from steercube.cells import LABEL_KINDS, Cells, cells_of
from steercube.cells import SCHEMA_VERSION as CELLS_VERSION
from steercube.cells import VARIABLES as CELL_VARIABLES
from steercube.contract import (
    CELL_STATUS,
    DIMS,
    LABELS,
    MODEL_VARIABLES,
    RESPONSES,
    SCHEMA_VERSION,
    SHARED,
    STATUS,
    VECTOR_VARIABLES,
    VECTORS,
    variables_of,
)
from steercube.cube import Cube, status_where_unrun
from steercube.labels import with_facts
from steercube.measures import (
    CELL,
    GENERATION_MATCH,
    GENERATION_RATE,
    LOGIT_DIFF,
    MEASURES,
    PUBLISHED,
    READ,
)
from steercube.schema import Variable, raise_if_any, structure_violations

GRIDS = {measure.name: (measure.name, *measure.columns) for measure in MEASURES.values()}
"""The variables of each grid."""
CONTROLS = {"logit_diff_random": "random", "logit_diff_shuffled": "shuffled"}
"""The family of directions of each control's variable."""
OF_SAMPLES = (*CELL, "strength", "sample")
PUBLISHED_AS = {"generation_match": "published_match", "generation_valid": "published_valid"}


def cube_of(ds: xr.Dataset, *, what: str = "the cube") -> Cube:
    """The cube that a dataset of version 1 holds; its control is the direction <family>/0.

    Raises ValueError that lists missing variables and wrong dims or kinds.
    """
    kinds = {dim: LABELS[dim] for dim in OF_SAMPLES}
    problems = [f"dimension {dim!r} is empty" for dim in kinds if ds.sizes.get(dim) == 0]
    raise_if_any(problems or structure_violations(ds, _contract(), index_dims=kinds), what=what)
    facts = ds[list(SHARED)].reset_coords()
    facts = facts.drop_vars([name for name in ("layer", "strength") if name in facts])
    tables: dict[str, xr.Dataset] = {}
    unrun = [STATUS["not_run"], STATUS["not_applicable"]]
    logit = ds[[n for n in GRIDS[LOGIT_DIFF.name] if n in ds]].assign(cell_status=_own_status(ds))
    tables[LOGIT_DIFF.name] = _trimmed(logit, ~ds["cell_status"].isin(unrun))
    for name, family in CONTROLS.items():
        if name in ds:
            tables[f"{LOGIT_DIFF.name}/{family}"] = _control(ds, name, f"{family}/0")
    if GENERATION_MATCH.name in ds:
        tables[GENERATION_MATCH.name] = _generation(ds)
    if GENERATION_RATE.name in ds:
        rates = ds[[name for name in GRIDS[GENERATION_RATE.name] if name in ds]]
        tables[GENERATION_RATE.name] = _trimmed(rates, rates[GENERATION_RATE.name].notnull())
    if vectors := [name for name in VECTOR_VARIABLES if name in ds]:
        tables[VECTORS] = _trimmed(ds[vectors], ds[vectors[0]].notnull())
    placed = {
        path: with_facts(table.reset_coords(drop=True), facts)
        for path, table in tables.items()
        if all(table.sizes.values())
    }
    for path, grid in placed.items():
        measure = MEASURES.get(path.partition("/")[0])
        if measure is not None:
            grid[measure.name].attrs = measure.attrs
    if "response_text" in ds:
        table = ds[[name for name in ds.data_vars if ds[name].dims == ("response",)]]
        names = {name: str(name).removeprefix("response_") for name in table.data_vars}
        placed[RESPONSES] = table.reset_coords(drop=True).rename(names)
    return Cube(placed, ds.attrs | {"schema_version": SCHEMA_VERSION})


def _contract() -> dict[str, Variable]:
    """The variables of version 1, without those of responses."""
    held = SHARED | variables_of(LOGIT_DIFF, OF_SAMPLES)
    held["letter"] = replace(held["letter"], required=True)
    for measure, dims in ((GENERATION_MATCH, OF_SAMPLES), (GENERATION_RATE, OF_SAMPLES[:-1])):
        of_measure = variables_of(measure, dims)
        for name in of_measure.keys() - held.keys():
            held[name] = replace(of_measure[name], required=False)
    for name, like in {
        **dict.fromkeys(CONTROLS, LOGIT_DIFF.name),
        **{published: name for name, published in PUBLISHED_AS.items()},
    }.items():
        held[name] = replace(held[like], required=False)
    return held | VECTOR_VARIABLES


def _whole(values: xr.DataArray, ds: xr.Dataset) -> xr.DataArray:
    """Mask of the cells in which every item has a finite value at every strength."""
    present = (ds["item_id"] != "").reset_coords(drop=True)
    finite: xr.DataArray = xr.apply_ufunc(np.isfinite, values)
    return (finite | ~present).all(["strength", "sample"])


def _own_status(ds: xr.Dataset) -> xr.DataArray:
    """`cell_status` of the concepts' own vectors, which in version 1 was also the controls'."""
    status = ds["cell_status"]
    of_control = (status == STATUS["nonfinite"]) & _whole(ds[LOGIT_DIFF.name], ds)
    own = status.where(~of_control, STATUS["complete"]).transpose(*CELL)
    return own.astype("int8").assign_attrs(CELL_STATUS.attrs)


def cells_of_version_1(ds: xr.Dataset, *, what: str = "the cells") -> Cells:
    """The cells that a dataset of version 1 holds, with its controls as families of directions.

    Raises ValueError where its structure is wrong.
    """
    raise_if_any(structure_violations(ds, CELL_VARIABLES, index_dims=LABEL_KINDS), what=what)
    cells = cells_of(ds.assign_attrs(cells_version=CELLS_VERSION))
    own = cells[LOGIT_DIFF.name]
    labels = {dim: own[dim].values for dim in CELL}
    tables = {
        f"{LOGIT_DIFF.name}/{family}": own[list(MODEL_VARIABLES)].assign(
            other_estimate=ds[f"estimate_{family}"]
            .reset_coords(drop=True)
            .sel(labels)
            .expand_dims(direction=[f"{family}/0"])
        )
        for family in CONTROLS.values()
        if f"estimate_{family}" in ds
    }
    return cells.with_tables(tables)


def _trimmed(table: xr.Dataset, held: xr.DataArray) -> xr.Dataset:
    """The table without models, concepts, layers and strengths at which `held` is False."""
    kept = {
        dim: np.flatnonzero(held.any([d for d in held.dims if d != dim]).values)
        for dim in held.dims
        if dim != "sample"
    }
    return table.isel({dim: where for dim, where in kept.items() if dim in table.dims})


def _control(ds: xr.Dataset, name: str, direction: str) -> xr.Dataset:
    """The grid of one control's direction."""
    grid = ds[[name]].rename({name: LOGIT_DIFF.name})
    grid = _trimmed(grid, grid[LOGIT_DIFF.name].notnull())
    values = grid[LOGIT_DIFF.name].transpose(*CELL, ...)
    whole = _whole(values, ds)
    run = values.notnull().any(["strength", "sample"])
    status = xr.full_like(whole, STATUS["complete"], dtype="int8")
    status = status.where(whole, STATUS["nonfinite"]).where(run, STATUS["not_run"])
    grid["cell_status"] = status.astype("int8").assign_attrs(CELL_STATUS.attrs)
    grid["n_layers"] = ds["n_layers"].sel(model=grid["model"])
    grid["cell_status"] = status_where_unrun(grid).transpose(*CELL)
    grid = grid.drop_vars("n_layers")
    return grid.reset_coords(drop=True).expand_dims(direction=[direction])


def _generation(ds: xr.Dataset) -> xr.Dataset:
    """The grid of generated answers, with both readings where one was published."""
    grid = ds[[name for name in GRIDS[GENERATION_MATCH.name] if name in ds]]
    if PUBLISHED_AS["generation_match"] in ds:
        for name, published in PUBLISHED_AS.items():
            both = [ds[name], ds[published]]
            grid[name] = xr.concat(both, dim="reading").transpose(*DIMS, missing_dims="ignore")
        grid = grid.assign_coords(reading=[READ, PUBLISHED])
    valid = grid["generation_valid"] if "generation_valid" in grid else grid["generation_match"]
    return _trimmed(grid, valid.notnull())
