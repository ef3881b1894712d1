"""Tables of the variables that a labelled file must hold, and checks of a file against them.

Both contracts (`steercube.cube`, `steercube.cells`) are tables of `Variable`. The readers of text,
TOML and JSON are here too, so that every error names the file and line.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr

from steercube.words import did_you_mean

if TYPE_CHECKING:
    from steercube.notebook import Study


@dataclass(frozen=True)
class Variable:
    """One variable of a contract: its named dims, kind of value, fill value, meaning and units.

    `kind` is numpy's: f (float), i (integer), b (bool), U (text). `flags` maps names to integer
    values, as CF's flag_meanings do.
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
        """Value used where nothing was recorded."""
        return {"f": np.nan, "i": 0, "b": False, "U": ""}[self.kind]

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the variable, by the CF conventions."""
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


class Grids(Mapping[str, xr.Dataset]):
    """Datasets by their path in one file; each carries the attributes of the file."""

    def __init__(
        self, tables: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None
    ) -> None:
        self.attrs = dict(
            next((ds.attrs for ds in tables.values()), {}) if attrs is None else attrs
        )
        self._tables = {
            path: table.drop_attrs(deep=False).assign_attrs(self.attrs)
            for path, table in tables.items()
        }

    def __getitem__(self, path: str) -> xr.Dataset:
        if path not in self._tables:
            raise KeyError(f"{path!r} is none of {', '.join(self)}{did_you_mean(path, self)}")
        return self._tables[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    @cached_property
    def steercube(self) -> "Study":
        """The statistics of what it holds, without a contrast: effects, tables, plots."""
        from steercube.accessor import study_of

        return study_of(self)

    def with_tables(self, tables: Mapping[str, xr.Dataset]) -> Self:
        """The same with more tables, or with others in the place of its own."""
        return type(self)({**self, **tables}, self.attrs)

    def with_attrs(self, attrs: Mapping[str, Any]) -> Self:
        """The same tables with more attributes, or other values of theirs."""
        return type(self)(self._tables, {**self.attrs, **attrs})

    def identical(self, other: "Grids") -> bool:
        """Whether the other has the same attributes and tables, these with the same attributes."""
        same = self.attrs == other.attrs and self.keys() == other.keys()
        return same and all(table.identical(other[path]) for path, table in self.items())

    def sel(self, **labels: Any) -> Self:
        """What has any of these labels (`model=["8B"]`) of every table that has such labels."""
        parts = {path: _with_labels(table, labels) for path, table in self.items()}
        for name, wanted in labels.items():
            there = {x for table in self.values() if name in table.variables
                     for x in np.ravel(table[name].values).tolist()}  # fmt: skip
            if absent := [x for x in np.ravel(wanted).tolist() if x not in there]:
                known = ", ".join(sorted(map(str, there))[:20])
                raise KeyError(f"{name} {absent[0]!r} is none of {known}")
        return type(self)({p: ds for p, ds in parts.items() if all(ds.sizes.values())}, self.attrs)


def _with_labels(table: xr.Dataset, labels: Mapping[str, Any]) -> xr.Dataset:
    for name in labels.keys() & set(table.variables):
        (dim,) = table[name].dims
        table = table.isel({dim: np.flatnonzero(np.isin(table[name].values, labels[name]))})
    return table


def structure_violations(
    ds: xr.Dataset, variables: Mapping[str, Variable], *, index_dims: Mapping[str, str]
) -> list[str]:
    """A line for every difference of `ds` from the table, in names, dims and kinds.

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
        array = ds[name]
        if set(array.dims) != set(wanted.dims):
            problems.append(f"{name!r} has dimensions {array.dims}; they must be {wanted.dims}")
        if not _kind_fits(array, wanted.kind):
            problems.append(
                f"{name!r} holds {array.dtype}; it must hold kind {wanted.kind!r} values"
            )
    return problems


def group_violations(
    root: xr.Dataset,
    groups: Mapping[str, xr.Dataset],
    facts: Mapping[str, Variable],
    *,
    label_kinds: Mapping[str, str],
) -> list[str]:
    """A line for every rule that a file breaks whose groups share the facts in its root."""
    of_facts = dict.fromkeys(dim for fact in facts.values() for dim in fact.dims)
    problems = [f"dimension {dim!r} is empty" for dim in of_facts if root.sizes.get(dim) == 0]
    problems = problems or structure_violations(
        root, facts, index_dims={dim: label_kinds[dim] for dim in of_facts}
    )
    for path, table in groups.items():
        kinds = {dim: kind for dim, kind in label_kinds.items() if dim in table.dims}
        problems += [
            f"{path}: {line}" for line in structure_violations(table, {}, index_dims=kinds)
        ]
    return problems or [
        f"{path}: the file's root has no {dim} {label!r}"
        for path, table in groups.items()
        for dim in of_facts
        if dim in table.indexes
        for label in table.indexes[dim].difference(root.indexes[dim])
    ]


def attribute_violations(attrs: Mapping[str, Any], meanings: Mapping[str, str]) -> list[str]:
    """A line for every missing attribute, with its meaning."""
    return [
        f"attribute {name!r} is missing; it says {meaning}"
        for name, meaning in meanings.items()
        if name not in attrs
    ]


def has_version(ds: "xr.Dataset | Grids", name: str, version: int) -> bool:
    """Whether it says that it is of this version of its contract."""
    actual = ds.attrs.get(name)
    return isinstance(actual, int) and actual == version


def require_version(
    ds: "xr.Dataset | Grids", name: str, version: int, *, what: str, remedy: str
) -> None:
    """Raise ValueError for a file of another version of the contract."""
    actual = ds.attrs.get(name, version)
    if name in ds.attrs and not has_version(ds, name, version):
        raise ValueError(
            f"{what} has {name} {actual}; this steercube reads {version}. To go on, {remedy}."
        )


def _kind_fits(array: xr.DataArray, wanted: str) -> bool:
    if array.dtype.kind == "O" and not all(isinstance(text, str) for text in array.values.flat):
        return False
    return array.dtype.kind in {"f": "f", "i": "iu", "b": "b", "U": "UOT"}[wanted]


def _labels_fit(labels: xr.DataArray, wanted: str) -> bool:
    """Like `_kind_fits`, but integers are accepted for labels that may be floats."""
    return _kind_fits(labels, wanted) or (wanted == "f" and labels.dtype.kind in "iu")


LONGEST_NAME = 200
"""Most bytes of a name, so that every file system accepts it with a suffix added."""
_IN_NO_NAME = re.compile(r"[/\\|$`<>*\[\]{}\x00-\x1f\x7f\ud800-\uf8ff]")
"""Characters that a folder's name cannot have, or that are markup in a table, figure or page."""


def name_violations(kind: str, names: Iterable[str], *, reserved: Iterable[str] = ()) -> list[str]:
    """A line for every name that cannot name a folder; models and concepts name shard folders."""
    not_reserved = "".join(f" and not be {word!r}" for word in reserved)
    return [
        f"{kind} {name!r} cannot be a name: names are used for folders and in tables, so they must "
        "not be empty, begin with '.' or hold any of / \\ | $ ` < > * [ ] { } or a control or "
        f"private character, and must have at most {LONGEST_NAME} bytes{not_reserved}"
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
    """Raise one ValueError that lists every problem, if there is any."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"{what} breaks {len(problems)} rule(s):\n{listed}")
