"""What a labelled file must hold, written as a table, and the check of a file against it.

Both contracts (`steercube.cube`, `steercube.cells`) are tables of `Variable`. The readers of text,
TOML and JSON are here too, so that each refusal names its file and line.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
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
    ds: xr.Dataset, variables: Mapping[str, Variable], *, index_dims: Mapping[str, str]
) -> list[str]:
    """Every way in which the names, dims and kinds of `ds` differ from the table.

    `index_dims` gives the kind of each dimension's labels.
    """
    problems = [f"dimension {dim!r} is missing" for dim in index_dims if dim not in ds.dims]
    for dim, kind in index_dims.items():
        if dim in ds.dims and dim not in ds.indexes:
            problems.append(f"dimension {dim!r} has no labels; give it a coordinate")
        elif dim in ds.indexes and not _labels_fit(ds[dim], kind):
            problems.append(
                f"dimension {dim!r} has labels of {ds[dim].dtype}; they must be of kind {kind!r}"
            )
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
        if not _kind_fits(found, wanted.kind):
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
    if not isinstance(found, int) or found != version:
        raise ValueError(
            f"{what} has {name} {found}; this steercube reads {version}. To go on, {remedy}."
        )


def _kind_fits(found: xr.DataArray, wanted: str) -> bool:
    if found.dtype.kind == "O" and not all(isinstance(text, str) for text in found.values.flat):
        return False
    return found.dtype.kind in {"f": "f", "i": "iu", "b": "b", "U": "UOT"}[wanted]


def _labels_fit(labels: xr.DataArray, wanted: str) -> bool:
    """As of values, but whole numbers will do for labels that may have decimals."""
    return _kind_fits(labels, wanted) or (wanted == "f" and labels.dtype.kind in "iu")


LONGEST_NAME = 200
"""Bytes of a name that every file system takes, with what is added to it."""
_IN_NO_NAME = re.compile(r"[/\\|$`<>*\[\]{}\x00-\x1f\x7f\ud800-\uf8ff]")
"""What no folder can be called, and what would be markup in a table, a figure or a page."""


def name_violations(kind: str, names: Iterable[str], *, reserved: Iterable[str] = ()) -> list[str]:
    """Names that cannot be a folder's of their own; models and concepts name folders of shards."""
    none_of = "".join(f" and is not {word!r}" for word in reserved)
    return [
        f"{kind} {name!r} cannot be a name: it names a folder and stands in tables, so it is not "
        "empty, does not begin with '.', holds none of / \\ | $ ` < > * [ ] { } nor a control or "
        f"private character, has at most {LONGEST_NAME} bytes{none_of}"
        for name in names
        if not name.strip()
        or name.startswith(".")
        or name in reserved
        or _IN_NO_NAME.search(name)
        or len(name.encode()) > LONGEST_NAME
    ]


def read_text(path: str | Path) -> str:
    """The text in `path`. Raises ValueError with the line that is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: is not text in UTF-8 (line {line}: {error.reason}); save it in that encoding"
        ) from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables in `path`. Raises ValueError with the line that is not TOML."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not TOML ({error})") from error


def read_json(path: str | Path) -> Any:
    """The value in `path`. Raises ValueError with the line that is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error


def raise_if_any(problems: list[str], *, what: str) -> None:
    """One ValueError that lists every problem, or nothing."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"{what} breaks {len(problems)} rule(s):\n{listed}")
