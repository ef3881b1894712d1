"""One NetCDF4 file a dataset, written whole or not at all, and never read if it was altered.

A file is written aside, flushed, read back and renamed, so a kill leaves the earlier file or
the new one. Every variable is compressed and carries a Fletcher-32 checksum; text is stored as
fixed-width characters, because HDF5 cannot checksum variable-length strings. Headers and
attributes have no checksum of their own: the SHA-256 of the whole content, kept in the attribute
`content_sha256`, covers those.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

DIGEST = "content_sha256"


def save(ds: xr.Dataset, path: str | Path) -> str:
    """Write `ds` to `path` and return the SHA-256 of its content.

    Raises OSError where the folder cannot be written; an earlier file at `path` is then intact.
    """
    path = Path(path)
    stamped = ds.drop_encoding().assign_attrs({DIGEST: digest(ds)})
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        stamped.to_netcdf(aside, engine="netcdf4", format="NETCDF4", encoding=_encoding(stamped))
        _flush(aside)
        load(aside)
        aside.replace(path)
        _flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)
    return str(stamped.attrs[DIGEST])


def load(path: str | Path) -> xr.Dataset:
    """The dataset in `path`, in memory, its content proved equal to what was saved.

    Raises FileNotFoundError, or ValueError for a file that is foreign, truncated or altered.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}")
    try:
        with xr.open_dataset(path, engine="netcdf4") as opened:
            ds = opened.load().drop_encoding()
        # NetCDF gives numbers back as numpy scalars; the attributes that were saved were plain.
        ds.attrs = {k: v.item() if isinstance(v, np.generic) else v for k, v in ds.attrs.items()}
        found = digest(ds)
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, UnicodeError) as error:
        raise ValueError(
            f"{path}: cannot be read as NetCDF4 ({error}). The file is of another kind, "
            "truncated or damaged: restore it from a copy or make it again."
        ) from error
    recorded = ds.attrs.get(DIGEST)
    if recorded is None:
        raise ValueError(
            f"{path}: has no attribute {DIGEST!r}, so it was not written by steercube. "
            "Build it with steercube.cube.save_cube or steercube.cells.save_cells."
        )
    if recorded != found:
        raise ValueError(
            f"{path}: its content has the SHA-256 {found[:16]}..., but it was saved with "
            f"{str(recorded)[:16]}...: it was altered after it was written. Restore it from a copy."
        )
    return ds


def digest(ds: xr.Dataset) -> str:
    """SHA-256 over the names, dims, values and attributes of `ds`, whatever file holds it."""
    sha = hashlib.sha256(_json({k: v for k, v in ds.attrs.items() if k != DIGEST}))
    for name in sorted(map(str, ds.variables)):
        variable = ds.variables[name]
        sha.update(_json([name, list(map(str, variable.dims)), list(variable.shape)]))
        sha.update(_json(dict(variable.attrs)))
        sha.update(_bytes(variable.values))
    return sha.hexdigest()


def _bytes(values: np.ndarray) -> bytes:
    if values.dtype.kind in "UOT":
        return "\0".join(map(str, values.ravel().tolist())).encode()
    return values.dtype.str.encode() + np.ascontiguousarray(values).tobytes()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=lambda v: v.tolist()).encode()


def _encoding(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {}
    for name, variable in ds.variables.items():
        options: dict[str, Any] = {}
        if variable.ndim:
            options |= {"zlib": True, "complevel": 5, "shuffle": True, "fletcher32": True}
        if variable.dtype.kind in "UOT":
            options["dtype"] = "S1"
        elif variable.dtype.kind == "f":
            options["_FillValue"] = np.nan
        encoding[str(name)] = options
    return encoding


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
