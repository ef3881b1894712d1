"""What a file at some path holds, and what would be lost if a new cube took its place.

A cube is made from shards or from published files, but what lies at its path may hold more: cells
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
    OF_A_CELL,
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
    """Raise ValueError for a file at `out` that holds anything that `cube` does not.

    An unreadable file may be replaced; `report` receives a line that says so.
    """
    earlier = earlier_file(out, open_cube, report=report)
    if earlier is not None:
        lost = lost_outcomes(held_outcomes(earlier), held_outcomes(cube))
        raise_if_any([*lost_names(earlier, names_in(cube)), *lost], what=replacing(out))


def merge_files(
    paths: Sequence[str | Path], out: str | Path, *, report: Report = print
) -> xr.Dataset:
    """Write one cube with every cell of the cubes in `paths` to `out`, and return it.

    `out` may be one of them. Raises ValueError where they contradict each other, by the rules of
    `merge_cubes`, and where `out` holds anything that none of them does.
    """
    named = ", ".join(map(str, paths))
    if len(paths) < 2:
        raise ValueError(f"merging needs two cubes or more; named was {named or 'none'}")
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
    """What is at `path`; None where there is nothing, or remains that nothing can be read from.

    Raises ValueError for a file that opens and is not what was saved: it may have been damaged, or
    altered on purpose.
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
    """What is refused, and what to do instead, as the beginning of a list of what would be lost."""
    return f"replacing {out} ({_ELSEWHERE})"


def names_in(ds: xr.Dataset) -> set[str]:
    """Everything in `ds` that has a name: variables, attributes, and attributes of variables."""
    return {
        *_attributes(ds.attrs),
        *(f"variable {name!r}" for name in ds.variables),
        *(line for name in ds.variables for line in _attributes(ds[name].attrs, of=name)),
    }


def names_of_the_contract(attributes: Iterable[str]) -> set[str]:
    """Everything that any cube may hold, with these attributes beside the contract's."""
    return {
        *_attributes([*ATTRIBUTES, *attributes]),
        *(f"variable {name!r}" for name in (*VARIABLES, *DIMS)),
        *(line for name, v in VARIABLES.items() for line in _attributes(v.attrs, of=name)),
    }


def _attributes(names: Iterable[Any], *, of: Any = "") -> list[str]:
    return [f"attribute {name!r}" + (f" of {of!r}" if of else "") for name in names]


def lost_names(held: xr.Dataset, made: set[str]) -> list[str]:
    """What `held` has whose name is none of `made`: a note, or a variable of somebody's own."""
    always_made = set(_attributes([netcdf.DIGEST, "Conventions"]))
    return [f"its {name} would be lost" for name in sorted(names_in(held) - made - always_made)]


class Extent(NamedTuple):
    """What is there of one outcome of a unit."""

    layers: set[int]
    strengths: set[float]
    items: set[str]


Extents = Mapping[tuple[str, str, str], Extent]
"""By model, concept and kind of shards."""


def held_outcomes(cube: xr.Dataset) -> Extents:
    """Whatever a cube holds."""
    found = {}
    swept = cube["cell_status"].isin([STATUS["complete"], STATUS["nonfinite"]])
    ids = cube["item_id"].to_series()
    for model, concept in swept.any("layer").to_series().loc[lambda any_: any_].index:
        at = {"model": model, "concept": concept}
        measured = cube["logit_diff"].sel(at).notnull().any(("layer", "sample"))
        found[model, concept, "samples"] = Extent(
            set(cube["layer"].values[swept.sel(at).values].tolist()),
            set(cube["strength"].values[measured.values].tolist()),
            set(ids[concept]) - {""},
        )
    if "response_text" in cube:
        table = cube[list(OF_A_CELL)].to_dataframe()
        for (model, concept), rows in table.groupby(["response_model", "response_concept"]):
            found[str(model), str(concept), "generations"] = Extent(
                set(rows["response_layer"]) - {UNSTEERED},
                set(rows["response_strength"]),
                set(ids[concept][rows["response_sample"]]),
            )
    return found


def lost_outcomes(held: Extents, made: Extents) -> list[str]:
    """What of `held` is not in `made`, a line each."""
    lines = []
    for (model, concept, kind), extent in held.items():
        now = made.get((model, concept, kind))
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
            f"{min(lost)} first"
            for name, lost in missing.items()
            if lost
        ]
    return lines
