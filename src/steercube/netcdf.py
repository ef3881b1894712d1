"""Save and load labelled NetCDF4 files: atomic writes, and no reading of altered files.

A file holds one dataset, or several in groups, with their shared labels and attributes in its root.

A file is written to a temporary name, flushed, read back and renamed, so that a killed process
leaves the earlier file or the new one. Variables are compressed, with Fletcher-32 checksums; text
is stored as fixed-width characters, because HDF5 cannot checksum variable-length strings. The
attribute `content_sha256` is the SHA-256 of the content, independent of the file's bytes. A file's
last line is the SHA-256 of its other bytes (the seal), which other NetCDF readers ignore.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

DIGEST = "content_sha256"
SEAL = b"\nsteercube sha256 "
MAGIC = b"\x89HDF\r\n\x1a\n"
"""First bytes of a NetCDF4 file."""


class Remains(ValueError):
    """Error for a damaged NetCDF4 file that cannot be read at all, or an empty file."""


Groups = Mapping[str, xr.Dataset]
"""The datasets of a file by the path of their group; the root's path is empty."""
ROOT = ""


def save(content: xr.Dataset | Groups, path: str | Path) -> str:
    """Write a dataset, or groups, to `path` and return the SHA-256 of the content.

    Raises OSError with `path` and the reason; an earlier file there is then intact.
    """
    groups = _groups(content)
    sha = digest(groups)
    stamped = {**groups, ROOT: groups[ROOT].assign_attrs({DIGEST: sha})}
    with aside(path) as part:
        for group in sorted(stamped):
            _write(stamped[group].drop_encoding(), part, group)
        seal = _seal(part.read_bytes())
        with part.open("ab") as file:
            file.write(seal)
        load_groups(part)
    return sha


def _groups(content: xr.Dataset | Groups) -> dict[str, xr.Dataset]:
    return {ROOT: content} if isinstance(content, xr.Dataset) else dict(content)


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` at the end unless writing fails.

    Raises OSError with `path` and the reason; an earlier file there is then intact.
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
    """The dataset in `path`, in memory; raises as `load_groups` does, and ValueError for groups."""
    groups = load_groups(path)
    if len(groups) > 1:
        raise ValueError(f"{path}: holds the groups {', '.join(sorted(groups)[1:])}, not one table")
    return groups[ROOT]


def load_groups(path: str | Path) -> dict[str, xr.Dataset]:
    """Every group of `path`, in memory, their content verified against its SHA-256.

    Raises FileNotFoundError, or ValueError for a file that steercube did not write or that was
    altered; Remains, a ValueError, if it is so damaged or truncated that it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}")
    content = _unsealed(path.read_bytes(), path)
    netcdf4 = _netcdf4()
    try:
        # HDF5 keeps a file open that it could not read; reading from memory avoids that.
        with netcdf4.Dataset(str(path), memory=content) as opened:
            groups = dict(_read(opened))
        actual = digest(groups)
    except UNREADABLE as error:
        is_damaged = content.startswith(MAGIC) or not content.strip(b"\0")
        raise (Remains if is_damaged else ValueError)(
            f"{path}: cannot be read as NetCDF4 ({error}). The file is of another kind, "
            "truncated or damaged: restore it from a copy or make it again."
        ) from error
    recorded = groups[ROOT].attrs.get(DIGEST)
    if recorded is None:
        raise ValueError(
            f"{path}: has no attribute {DIGEST!r}, so it was not written by steercube. "
            "Build it with steercube.cube.save_cube or steercube.cells.save_cells."
        )
    if recorded != actual:
        raise ValueError(_altered(path, actual, str(recorded), what="its content"))
    return groups


def load_attrs(path: str | Path) -> dict[str, Any]:
    """The attributes in the root of a sealed file, whose bytes are verified, without its values.

    Raises ValueError for a file that is damaged or was altered.
    """
    path = Path(path)
    content = _unsealed(path.read_bytes(), path)
    try:
        with _netcdf4().Dataset(str(path), memory=content) as opened:
            return {name: opened.getncattr(name) for name in opened.ncattrs()}
    except UNREADABLE as error:
        raise Remains(f"{path}: cannot be read as NetCDF4 ({error})") from error


def _read(opened: Any, path: str = ROOT) -> Iterator[tuple[str, xr.Dataset]]:
    """Every group in an open file, itself first; an intermediate one without variables is none."""
    if not path or opened.variables:
        store = xr.backends.NetCDF4DataStore(opened)  # type: ignore[no-untyped-call]
        ds = xr.open_dataset(store).load().drop_encoding()
        # NetCDF returns numbers as numpy scalars; the saved attributes were plain Python numbers.
        for attrs in (ds.attrs, *(variable.attrs for variable in ds.variables.values())):
            numbers = {k: v.item() for k, v in attrs.items() if isinstance(v, np.generic)}
            attrs.update(numbers)
        yield path, ds
    for name, group in opened.groups.items():
        yield from _read(group, f"{path}/{name}".lstrip("/"))


def _netcdf4() -> Any:
    """The module netCDF4, imported only on reading or writing: sweeps in memory do not need it."""
    import netCDF4

    return netCDF4


UNREADABLE = (
    *(OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, OverflowError),
)
"""Exceptions that reading a damaged file, or one of another kind, may raise."""


def _seal(content: bytes) -> bytes:
    return SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _unsealed(content: bytes, path: Path) -> bytes:
    """The bytes before the seal, if there is one, verified against it.

    Damaged files are refused before HDF5 reads them: some corrupted bytes make HDF5 loop forever.
    """
    at = content.rfind(SEAL, max(0, len(content) - len(_seal(b""))))
    if at < 0:
        return content
    actual, recorded = _seal(content[:at]), content[at:]
    if actual != recorded:
        shown = [seal[len(SEAL) :].decode(errors="replace") for seal in (actual, recorded)]
        raise ValueError(_altered(path, *shown, what="the file"))
    return content[:at]


def _altered(path: Path, actual: str, recorded: str, *, what: str) -> str:
    return (
        f"{path}: {what} has the SHA-256 {actual[:16]}..., but it was saved with "
        f"{recorded[:16]}...: it was altered after it was written. Restore it from a copy."
    )


def _write(ds: xr.Dataset, part: Path, group: str) -> None:
    _netcdf4()
    where: dict[str, Any] = {"group": group, "mode": "a"} if group else {"mode": "w"}
    try:
        ds.to_netcdf(part, engine="netcdf4", format="NETCDF4", encoding=_encoding(ds), **where)
    except (OSError, RuntimeError) as error:
        # HDF5 gives no reason; writing plain bytes raises an OSError that does (a full disk).
        with part.open("ab") as file:
            file.write(bytes(2**20))
        raise OSError(str(error)) from error


def is_running(pid: str) -> bool:
    """Whether the process `pid` may still be running; True if that is unknown."""
    if os.name != "posix" or not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def digest(content: xr.Dataset | Groups) -> str:
    """SHA-256 of the names, dims, values and attributes of a dataset, or of a file's groups.

    It is independent of any file, and of the order of groups and variables.
    """
    groups = _groups(content)
    own = _digest(groups.pop(ROOT))
    if not groups:
        return own
    of_groups = {name: _digest(ds) for name, ds in groups.items()}
    return hashlib.sha256(_json([own, of_groups])).hexdigest()


def _digest(ds: xr.Dataset) -> str:
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
