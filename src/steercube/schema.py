"""What a labelled file must hold, written as a table, and the check of a file against it.

Both contracts (`steercube.cube`, `steercube.cells`) are tables of `Variable`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr


@dataclass(frozen=True)
class Variable:
    """One variable of a contract: its named dims, kind of value, filling, meaning and units.

    `kind` is numpy's: f (float), i (integer), b (bool), U (text). `fill` stands wherever
    nothing was recorded. `flags` names integer values, in the manner of CF's flag_meanings.
    """

    dims: tuple[str, ...]
    kind: str
    long_name: str
    units: str = ""
    required: bool = True
    flags: Mapping[str, int] | None = None
    dtype: str = ""

    @property
    def fill(self) -> Any:
        """What stands where nothing was recorded."""
        return {"f": np.nan, "i": 0, "b": False, "U": ""}[self.kind]

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes by the CF conventions."""
        attrs: dict[str, Any] = {"long_name": self.long_name}
        if self.units:
            attrs["units"] = self.units
        if self.flags:
            attrs["flag_values"] = np.array(list(self.flags.values()), dtype="int8")
            attrs["flag_meanings"] = " ".join(self.flags)
        return attrs

    def full(self, sizes: Mapping[Any, int]) -> xr.Variable:
        """This variable with every value missing, at the given sizes of its dims."""
        shape = tuple(sizes[dim] for dim in self.dims)
        default = {"f": "float64", "i": "int64", "b": "bool", "U": "<U1"}[self.kind]
        return xr.Variable(
            self.dims, np.full(shape, self.fill, dtype=self.dtype or default), self.attrs
        )


def structure_violations(
    ds: xr.Dataset, variables: Mapping[str, Variable], *, index_dims: tuple[str, ...]
) -> list[str]:
    """Every way in which the names, dims and kinds of `ds` differ from the table."""
    problems = [f"dimension {dim!r} is missing" for dim in index_dims if dim not in ds.dims]
    for dim in index_dims:
        if dim in ds.dims and dim not in ds.indexes:
            problems.append(f"dimension {dim!r} has no labels; give it a coordinate")
        elif dim in ds.indexes and not ds.indexes[dim].is_unique:
            repeated = ds.indexes[dim][ds.indexes[dim].duplicated()].unique().tolist()
            problems.append(f"dimension {dim!r} repeats the labels {repeated}")
    for name, wanted in variables.items():
        if name not in ds.variables:
            if wanted.required:
                problems.append(f"variable {name!r} is missing; it holds the {wanted.long_name}")
            continue
        found = ds[name]
        if set(found.dims) != set(wanted.dims):
            problems.append(f"{name!r} has dimensions {found.dims}; they must be {wanted.dims}")
        if not _kind_fits(found.dtype.kind, wanted.kind):
            problems.append(
                f"{name!r} holds {found.dtype}; it must hold kind {wanted.kind!r} values"
            )
    return problems


def attribute_violations(attrs: Mapping[str, Any], meanings: Mapping[str, str]) -> list[str]:
    """Every attribute that is missing, with what it would say."""
    return [
        f"attribute {name!r} is missing; it says {meaning}"
        for name, meaning in meanings.items()
        if name not in attrs
    ]


def require_version(ds: xr.Dataset, name: str, version: int, *, what: str, remedy: str) -> None:
    """Raise ValueError for a file that another version of the contract wrote."""
    found = ds.attrs.get(name, version)
    if found != version:
        raise ValueError(
            f"{what} has {name} {found}; this steercube reads {version}. To go on, {remedy}."
        )


def _kind_fits(found: str, wanted: str) -> bool:
    return found in {"f": "f", "i": "iu", "b": "b", "U": "UOT"}[wanted]


def raise_if_any(problems: list[str], *, what: str) -> None:
    """One ValueError that lists every problem, or nothing."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"{what} breaks {len(problems)} rule(s):\n{listed}")
