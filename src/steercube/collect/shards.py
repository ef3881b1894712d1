"""Shards: one file for each finished (model, concept, outcome, chunk).

A shard is written to a temporary file, flushed, read back and renamed (`steercube.netcdf`), and
records the settings that it was made with; its key is their SHA-256. So a killed run loses at most
the chunks in progress, and a shard with other settings is refused by name, never mixed in.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import xarray as xr

from steercube import netcdf

Settings = Mapping[str, Any]
HOLDS = {
    "vectors": "vector",
    "samples": "logprob_matching",
    "controls": "logprob_matching",
    "generations": "response_text",
}
"""By kind of shard (the beginning of its file name), a variable that it must hold."""


def key(settings: Settings) -> str:
    """SHA-256 of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def save_shard(ds: xr.Dataset, path: Path, settings: Settings, **attrs: Any) -> None:
    """Write a shard whole or not at all, with its key, settings and `attrs` (as JSON)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {name: json.dumps(value, sort_keys=True) for name, value in attrs.items()}
    netcdf.save(
        ds.assign_attrs(
            key=key(settings), settings=json.dumps(settings, sort_keys=True)
        ).assign_attrs(described),
        path,
    )


def has_shard(path: Path, settings: Settings) -> bool:
    """Whether the shard at `path` was made with `settings`; False if it is missing or damaged.

    Its attributes and its seal are read, not its values. Raises ValueError that names the settings
    that differ, or for an undamaged file that is not a shard.
    """
    if not path.exists():
        return False
    try:
        attrs = netcdf.load_attrs(path)
    except ValueError:
        return False
    _require_shard(set(attrs), path)
    if attrs["key"] == key(settings):
        return True
    made_with = recorded(attrs, "settings")
    every = sorted({*made_with, *settings})
    differing = [name for name in every if made_with.get(name) != settings.get(name)]
    if differing == ["vectors_sha256"]:
        raise ValueError(
            f"{path} was made with other vectors (vectors_sha256) than those in the vectors.nc "
            "beside it, which was made again since, on another device or with another row limit. "
            f"Restore that file from a copy, or delete the shards in {path.parent}."
        )
    changes = [f"{n}: {made_with.get(n)!r} there, {settings.get(n)!r} now" for n in differing]
    raise ValueError(
        f"{path} was made with other settings ({'; '.join(changes)}). Use those settings, "
        "another out, or delete the file."
    )


def find_shard(path: Path, settings: Settings) -> xr.Dataset | None:
    """The shard at `path` if it was made with `settings`; None if it is missing or damaged."""
    if not has_shard(path, settings):
        return None
    try:
        return netcdf.load(path)
    except ValueError:
        return None


def _require_shard(present: set[str], path: Path, *, names: Iterable[str] = ()) -> None:
    """Raise ValueError for a file that is not a shard, or not of the kind in its name."""
    if lacking := [name for name in ("key", "settings", *names) if name not in present]:
        raise ValueError(
            f"{path} is not the shard that its name says (it has no {', '.join(lacking)}). Move it "
            "away: this folder is for a collection's own shards only."
        )


def load_shard(path: Path) -> xr.Dataset:
    """The shard in `path`. Raises ValueError for a damaged one, or a file of another kind."""
    ds = netcdf.load(path)
    kind = kind_of(path)
    present = {*ds.attrs, *map(str, ds.variables)}
    _require_shard(present, path, names=[HOLDS[kind], *(["samples"] if kind != "vectors" else [])])
    return ds


def load_attrs(path: Path) -> dict[str, Any]:
    """The attributes of the shard in `path`, without its values; raises as `load_shard` does."""
    attrs = netcdf.load_attrs(path)
    _require_shard(set(attrs), path, names=["samples"] if kind_of(path) != "vectors" else [])
    return attrs


def kind_of(path: Path) -> str:
    """The kind of a shard, by its name: vectors, or that of an outcome."""
    return path.name.removesuffix(".nc").split("-")[0]


@contextmanager
def held(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Lock `folder` for one collector; the lock ends with the process, however that ends.

    Raises BlockingIOError that says who holds the folder, after `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "holder.json"
    lock = filelock.FileLock(folder / "holder.lock", timeout=patience)
    try:
        lock.acquire()
    except filelock.Timeout:
        holder = _noted(note)
        raise BlockingIOError(
            f"{folder} is held by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
            f"since {holder.get('since', '?')}. Wait for it, or collect another concept or model."
        ) from None
    try:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with netcdf.aside(note) as part:
            part.write_text(json.dumps(holder))
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _noted(note: Path) -> dict[str, Any]:
    """What the note says of the process that holds a folder; empty if it is not there yet."""
    try:
        return dict(json.loads(note.read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def settings_of(shard: xr.Dataset | Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a shard was made with."""
    return recorded(shard, "settings")


def recorded(shard: xr.Dataset | Mapping[str, Any], name: str) -> Any:
    """The value, stored as JSON, of the attribute `name` of a shard."""
    return json.loads((shard.attrs if isinstance(shard, xr.Dataset) else shard)[name])
