"""Check what would be lost if a new cube replaced an earlier file.

A cube is made from shards or from published files, but the file at its path may hold more: cells
of an earlier run, a note that somebody added. It is replaced only by a cube that holds all of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from steercube import netcdf
from steercube.cube import (
    ATTRIBUTES,
    DIMS,
    PLACE,
    STATUS,
    UNSTEERED,
    VARIABLES,
    merge_cubes,
    open_cube,
    save_cube,
    summarise_cube,
)
from steercube.schema import raise_if_any

Report = Callable[[str], None]


def require_no_loss(out: Path, cube: xr.Dataset, *, report: Report = print) -> None:
    """Raise ValueError if the file at `out` holds anything that `cube` lacks.

    An unreadable file may be replaced; `report` receives a line about it.
    """
    earlier = earlier_file(out, open_cube, report=report)
    if earlier is not None:
        lost = lost_outcomes(held_outcomes(earlier), held_outcomes(cube))
        raise_if_any([*lost_names(earlier, names_in(cube)), *lost], what=replacing(out))


def merge_files(
    paths: Sequence[str | Path], out: str | Path, *, report: Report = print
) -> xr.Dataset:
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
    report(f"wrote {out}\n\n{summarise_cube(merged)}")
    return merged


def earlier_file(
    path: Path, opened: Callable[[Path], xr.Dataset], *, report: Report = print
) -> xr.Dataset | None:
    """The dataset at `path`; None if there is no file, or a damaged one that cannot be read.

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
    """Heading for the list of what would be lost: the refused action, and what to do instead."""
    return f"replacing {out} ({_ELSEWHERE})"


def names_in(ds: xr.Dataset) -> set[str]:
    """Names of everything in `ds`: variables, attributes, and attributes of variables."""
    return {
        *_attributes(ds.attrs),
        *(f"variable {name!r}" for name in ds.variables),
        *(line for name in ds.variables for line in _attributes(ds[name].attrs, of=name)),
    }


def names_of_the_contract(attributes: Iterable[str]) -> set[str]:
    """Names of everything that a cube may hold: the contract's names and these `attributes`."""
    return {
        *_attributes([*ATTRIBUTES, *attributes]),
        *(f"variable {name!r}" for name in (*VARIABLES, *DIMS)),
        *(line for name, v in VARIABLES.items() for line in _attributes(v.attrs, of=name)),
    }


def _attributes(names: Iterable[Any], *, of: Any = "") -> list[str]:
    return [f"attribute {name!r}" + (f" of {of!r}" if of else "") for name in names]


def lost_names(held: xr.Dataset, new: set[str]) -> list[str]:
    """A line for each name in `held` that is not in `new`: a user's own note or variable."""
    always_new = set(_attributes([netcdf.DIGEST, "Conventions"]))
    return [f"its {name} would be lost" for name in sorted(names_in(held) - new - always_new)]


class Extent(NamedTuple):
    """Layers, strengths and items recorded for one model, concept and kind of shard."""

    layers: set[int]
    strengths: set[float]
    items: set[str]


Extents = Mapping[tuple[str, str, str], Extent]
"""Extents by (model, concept, kind of shard)."""


def held_outcomes(cube: xr.Dataset) -> Extents:
    """Extent of every model, concept and kind (samples or generations) that a cube holds."""
    extents = {}
    swept = cube["cell_status"].isin([STATUS["complete"], STATUS["nonfinite"]])
    ids = cube["item_id"].to_series()
    for model, concept in swept.any("layer").to_series().loc[lambda any_: any_].index:
        at = {"model": model, "concept": concept}
        measured = cube["logit_diff"].sel(at).notnull().any(("layer", "sample"))
        extents[model, concept, "samples"] = Extent(
            set(cube["layer"].values[swept.sel(at).values].tolist()),
            set(cube["strength"].values[measured.values].tolist()),
            set(ids[concept]) - {""},
        )
    if "response_text" in cube:
        table = cube[list(PLACE)].to_dataframe()
        for (model, concept), rows in table.groupby(["response_model", "response_concept"]):
            extents[str(model), str(concept), "generations"] = Extent(
                set(rows["response_layer"]) - {UNSTEERED},
                set(rows["response_strength"]),
                set(ids[concept][rows["response_sample"]]),
            )
    return extents


def lost_outcomes(held: Extents, new: Extents) -> list[str]:
    """A line for everything in `held` that is not in `new`."""
    lines = []
    for (model, concept, kind), extent in held.items():
        now = new.get((model, concept, kind))
        if now is None:
            lines.append(f"{model} x {concept} has no {kind} among its shards")
            continue
        missing: dict[str, set[Any]] = {
            "layers": extent.layers - now.layers,
            "strengths": extent.strengths - now.strengths,
            "items": extent.items - now.items,
        }
        lines += [
            f"{model} x {concept} would have {kind} without {len(lost)} of its {name}, "
            f"starting with {min(lost)}"
            for name, lost in missing.items()
            if lost
        ]
    return lines
