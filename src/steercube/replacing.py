"""Check what would be lost if a new cube replaced an earlier file.

A cube is made from shards or from published files, but the file at its path may hold more: cells
of an earlier run, a note that somebody added. It is replaced only by a cube that holds all of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import xarray as xr

from steercube import netcdf
from steercube.contract import (
    ATTRIBUTES,
    DEPTH,
    LABELS,
    RESPONSE_VARIABLES,
    SHARED,
    VECTOR_VARIABLES,
    measure_name,
    variables_of,
)
from steercube.cube import Cube, open_cube, save_cube
from steercube.measures import Measure
from steercube.merging import merge_cubes
from steercube.schema import raise_if_any

Report = Callable[[str], None]
Content = TypeVar("Content")


def require_no_loss(out: Path, cube: Cube, *, measure: str = "", report: Report = print) -> None:
    """Raise ValueError if the file at `out` holds anything that `cube` lacks.

    Of `measure`, which nothing but a table can make again, also if it holds other values. An
    unreadable file may be replaced; `report` receives a line about it.
    """
    earlier = earlier_file(out, open_cube, report=report)
    if earlier is not None:
        lost = lost_cells(extents_of(earlier), extents_of(cube))
        lost += [
            f"{path}: it holds other values of {measure!r}; give these another name"
            for path in earlier.grids
            if measure and path in cube and measure_name(path) == measure
            if not earlier[path][measure].equals(cube[path][measure])
        ]
        raise_if_any([*lost_names(earlier, names_in(cube)), *lost], what=replacing(out))


def merge_files(paths: Sequence[str | Path], out: str | Path, *, report: Report = print) -> Cube:
    """Write one cube with every cell of the cubes in `paths` to `out`, and return it.

    `out` may be one of `paths`. Raises ValueError if the cubes contradict each other, by the rules
    of `merge_cubes`, or if `out` holds anything that none of them holds.
    """
    named = ", ".join(map(str, paths))
    if len(paths) < 2:
        raise ValueError(f"merging needs at least two cubes; given: {named or 'none'}")
    cubes = [open_cube(path) for path in paths]
    try:
        merged = merge_cubes(cubes)
    except ValueError as error:
        raise ValueError(f"{named}: {error}") from error
    require_no_loss(Path(out), merged, report=report)
    save_cube(merged, out)
    report(f"wrote {out}\n\n{merged}")
    return merged


def earlier_file(
    path: Path, opened: Callable[[Path], Content], *, report: Report = print
) -> Content | None:
    """What `opened` reads at `path`; None if there is no file, or one too damaged to be read.

    Raises ValueError for a file that can be read but was altered, perhaps on purpose, or breaks
    its contract.
    """
    if not path.exists():
        return None
    try:
        return opened(path)
    except netcdf.Remains as error:
        report(f"{error} It is replaced.")
        return None
    except ValueError as error:
        raise ValueError(f"{error}\nIt is not replaced: {_ELSEWHERE}.") from error


_ELSEWHERE = "move it away, or choose another --out"


def replacing(out: Path) -> str:
    """First line of an error that lists what would be lost: what is refused, and the remedy."""
    return f"replacing {out} ({_ELSEWHERE})"


def names_in(held: Cube | xr.Dataset) -> set[str]:
    """Names of everything held: variables, attributes, and attributes of variables."""
    tables = [held] if isinstance(held, xr.Dataset) else held.values()
    return {*_attributes(held.attrs)} | {
        line
        for table in tables
        for name in table.variables
        for line in (f"variable {name!r}", *_attributes(table[name].attrs, of=name))
    }


def names_of_the_contract(measures: Iterable[Measure], attributes: Iterable[str]) -> set[str]:
    """Names of everything that a cube of these measures may hold, and these `attributes`."""
    variables = {"depth": DEPTH, **SHARED, **VECTOR_VARIABLES, **RESPONSE_VARIABLES}
    for measure in measures:
        variables |= variables_of(measure, list(LABELS))
    lines = {line for name, v in variables.items() for line in _attributes(v.attrs, of=name)}
    lines |= {line for m in measures for line in _attributes([*m.attrs, *m.settings], of=m.name)}
    named = {f"variable {name!r}" for name in (*variables, *LABELS)}
    return {*_attributes([*ATTRIBUTES, *attributes])} | named | lines


def _attributes(names: Iterable[Any], *, of: Any = "") -> list[str]:
    return [f"attribute {name!r}" + (f" of {of!r}" if of else "") for name in names]


def lost_names(held: Cube | xr.Dataset, new: set[str]) -> list[str]:
    """A line for each name in `held` that is not in `new`: a user's own note or variable."""
    always_new = set(_attributes([netcdf.DIGEST, "Conventions"]))
    return [f"its {name} would be lost" for name in sorted(names_in(held) - new - always_new)]


class Extent(NamedTuple):
    """The labels at which a grid holds values of one model and concept."""

    directions: set[str]
    layers: set[int]
    strengths: set[float]
    items: set[str]


Extents = Mapping[tuple[str, str, str], Extent]
"""Extents by (model, concept, path of the grid)."""


def extents_of(cube: Cube) -> Extents:
    """The extent of every model and concept in every grid of a cube."""
    extents = {}
    for path, grid in cube.grids.items():
        recorded = _recorded(grid, measure_name(path))
        pairs = recorded.any([d for d in recorded.dims if d not in ("model", "concept")])
        for model, concept in (
            pairs.transpose("model", "concept").to_series().loc[lambda held: held].index
        ):
            of_pair = recorded.sel(model=model, concept=concept)
            held = {
                dim: of_pair[dim].values[of_pair.any([d for d in of_pair.dims if d != dim]).values]
                for dim in map(str, of_pair.dims)
            }
            items = held.pop("sample", ())
            ids = grid["item_id"].sel(concept=concept, sample=items).values if len(items) else ()
            extents[str(model), str(concept), path] = Extent(
                {str(direction) for direction in held.get("direction", ())},
                {int(layer) for layer in held.get("layer", ())},
                {float(strength) for strength in held["strength"]},
                {str(item) for item in ids},
            )
    return extents


def _recorded(grid: xr.Dataset, measure: str) -> xr.DataArray:
    """Mask of the places with a value in the measure or in a column of the same dims.

    So an answer that is not valid counts: it has no `generation_match`, but `generation_valid`.
    """
    dims = grid[measure].dims
    alike = [name for name in grid.data_vars if set(grid[name].dims) == set(dims)]
    return grid[alike].to_dataarray("variable").notnull().any("variable").transpose(*dims)


def lost_cells(held: Extents, new: Extents) -> list[str]:
    """A line for everything in `held` that is not in `new`."""
    lines = []
    for (model, concept, path), extent in held.items():
        now = new.get((model, concept, path))
        if now is None:
            lines.append(f"{model} x {concept} would have no {path}")
            continue
        missing = {name: getattr(extent, name) - getattr(now, name) for name in Extent._fields}
        lines += [
            f"{model} x {concept} would have {path} without {len(lost)} of its {name}, "
            f"starting with {min(lost)}"
            for name, lost in missing.items()
            if lost
        ]
    return lines
