"""One NetCDF4 file a dataset, written whole or not at all, and never read if it was altered.

A file is written aside, flushed, read back and renamed, so a kill leaves the earlier file or
the new one. Every variable is compressed and carries a Fletcher-32 checksum; text is stored as
fixed-width characters, because HDF5 cannot checksum variable-length strings. The SHA-256 of the
whole content, whatever file holds it, is kept in the attribute `content_sha256`. The last line of
a file is the SHA-256 of its other bytes, which other readers pass over.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

DIGEST = "content_sha256"
SEAL = b"\nsteercube sha256 "
MAGIC = b"\x89HDF\r\n\x1a\n"
"""How a NetCDF4 file begins."""


class Remains(ValueError):
    """A NetCDF4 file of which nothing can be read, or a file of nothing at all."""


def save(ds: xr.Dataset, path: str | Path) -> str:
    """Write `ds` to `path` and return the SHA-256 of its content.

    Raises OSError that names `path` and why; an earlier file there is then intact.
    """
    stamped = ds.drop_encoding().assign_attrs({DIGEST: digest(ds)})
    with aside(path) as part:
        _write(stamped, part)
        seal = _seal(part.read_bytes())
        with part.open("ab") as file:
            file.write(seal)
        load(part)
    return str(stamped.attrs[DIGEST])


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place at the end, whole or not at all.

    Raises OSError that names `path` and why; an earlier file there is then intact.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for left in path.parent.glob(f".{escape(path.name)}.*.part"):
        if not is_running(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    try:
        yield part
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise type(error)(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def load(path: str | Path) -> xr.Dataset:
    """The dataset in `path`, in memory, its content proved equal to what was saved.

    Raises FileNotFoundError, or ValueError for a file that is foreign or altered: Remains, where it
    is truncated or damaged so that nothing in it can be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}")
    content = _unsealed(path.read_bytes(), path)
    netcdf4 = _netcdf4()
    try:
        # HDF5 keeps open what it could not read; from memory nothing of it is found again.
        with netcdf4.Dataset(str(path), memory=content) as opened:
            store = xr.backends.NetCDF4DataStore(opened)  # type: ignore[no-untyped-call]
            ds = xr.open_dataset(store).load().drop_encoding()
        # NetCDF gives numbers back as numpy scalars; the attributes that were saved were plain.
        ds.attrs = {k: v.item() if isinstance(v, np.generic) else v for k, v in ds.attrs.items()}
        found = digest(ds)
    except UNREADABLE as error:
        began_as_ours = content.startswith(MAGIC) or not content.strip(b"\0")
        raise (Remains if began_as_ours else ValueError)(
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
        raise ValueError(_altered(path, found, str(recorded), what="its content"))
    return ds


def _netcdf4() -> Any:
    """netCDF4, imported where a file is read or written: a sweep in memory needs no files."""
    import netCDF4

    return netCDF4


UNREADABLE = (
    *(OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, OverflowError),
)
"""What reading a file of another kind, or a damaged one, may raise."""


def _seal(content: bytes) -> bytes:
    return SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _unsealed(content: bytes, path: Path) -> bytes:
    """The bytes before the seal, if there is one, which prove equal to those that were written.

    So that HDF5 is given no damaged file: there are bits that it would go round in circles for.
    """
    at = content.rfind(SEAL, max(0, len(content) - len(_seal(b""))))
    if at < 0:
        return content
    found, recorded = _seal(content[:at]), content[at:]
    if found != recorded:
        shown = [seal[len(SEAL) :].decode(errors="replace") for seal in (found, recorded)]
        raise ValueError(_altered(path, *shown, what="the file"))
    return content[:at]


def _altered(path: Path, found: str, recorded: str, *, what: str) -> str:
    return (
        f"{path}: {what} has the SHA-256 {found[:16]}..., but it was saved with "
        f"{recorded[:16]}...: it was altered after it was written. Restore it from a copy."
    )


def _write(ds: xr.Dataset, part: Path) -> None:
    _netcdf4()
    try:
        ds.to_netcdf(part, engine="netcdf4", format="NETCDF4", encoding=_encoding(ds))
    except (OSError, RuntimeError) as error:
        # HDF5 does not say why; a plain file does.
        with part.open("ab") as file:
            file.write(bytes(2**20))
        raise OSError(str(error)) from error


def is_running(pid: str) -> bool:
    """Whether a process may still be writing; True where that cannot be known."""
    if os.name != "posix" or not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


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
