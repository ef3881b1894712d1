"""Shards: one file for each finished (model, concept, chunk of samples), and the cube from them.

A shard is written aside, flushed, read back and renamed (`steercube.netcdf`), and says with which
settings it was made; its key is their SHA-256. So a killed run loses at most the chunks in hand,
and a shard made otherwise is refused by name, never mixed in.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.cube import STATUS, VARIABLES, Item, Model, blank_cube, check_cube
from steercube.schema import raise_if_any

Settings = Mapping[str, Any]
RECEIPTS = ["rows_touched", "positions_touched", "added_over_residual"]
ALIKE = ("strengths", "positions", "convention", "seed", "steercube")
"""Settings that one cube has once: a unit with others is another cube's."""
OF_VECTORS = ("vector_norm", "residual_norm", "split_half_cosine", "pairwise_cosine")


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


def find_shard(path: Path, settings: Settings) -> xr.Dataset | None:
    """The shard at `path` if it is sound and was made with `settings`; None if there is none.

    A damaged shard counts as none. Raises ValueError that names the settings that differ.
    """
    if not path.exists():
        return None
    try:
        ds = netcdf.load(path)
    except ValueError:
        return None
    if ds.attrs["key"] == key(settings):
        return ds
    made_with = json.loads(ds.attrs["settings"])
    differing = [
        f"{name}: {made_with.get(name)!r} there, {settings.get(name)!r} now"
        for name in sorted({*made_with, *settings})
        if made_with.get(name) != settings.get(name)
    ]
    raise ValueError(
        f"{path} was made with other settings ({'; '.join(differing)}). Use those settings, "
        "another --out, or delete the file."
    )


@contextmanager
def held(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Only one collector works in `folder`; the lock goes with the process, however it ends.

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
        note.write_text(
            json.dumps(
                {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                }
            )
        )
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _noted(note: Path) -> dict[str, Any]:
    """Who holds a folder, as far as it has been written down."""
    try:
        return dict(json.loads(note.read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def settings_of(shard: xr.Dataset) -> dict[str, Any]:
    """The settings that a shard was made with."""
    return dict(json.loads(shard.attrs["settings"]))


def differences(one: Settings, two: Settings) -> list[str]:
    """How the settings of two units keep them out of one cube; empty where they do not.

    Units of the same concept must have been asked the same questions.
    """
    names = [*ALIKE, *(["concept_sha256"] if one["concept"] == two["concept"] else [])]
    return [
        f"{name} = {two[name]!r} in {two['model']} x {two['concept']}, {one[name]!r} in "
        f"{one['model']} x {one['concept']}"
        for name in names
        if one[name] != two[name]
    ]


def other_settings(folder: Path, own: Sequence[Path]) -> list[dict[str, Any]]:
    """The settings of every unit in `folder` that has samples, but for those in `own`."""
    found = {path.parent: path for path in sorted(folder.glob("*/*/samples-*.nc"))}
    return [settings_of(netcdf.load(path)) for unit, path in found.items() if unit not in own]


def consolidate(folder: Path) -> tuple[xr.Dataset, xr.Dataset, dict[str, str]]:
    """The cube, the vectors, and the key of each shard, of every unit whose shards are all there.

    A unit is a model x concept. A pure function of the shards: neither the order in which they were
    made nor by how many processes shows. Raises ValueError where none is complete, or where their
    settings keep them out of one cube.
    """
    units = [_unit(path.parent) for path in sorted(folder.glob("*/*/vectors.nc"))]
    complete = [unit for unit in units if unit is not None]
    if not complete:
        raise ValueError(f"{folder} holds no model x concept whose shards are all there")
    settings = [settings_of(samples) for _, samples, _ in complete]
    problems = {line for one, two in combinations(settings, 2) for line in differences(one, two)}
    raise_if_any(sorted(problems), what=f"one cube of the shards in {folder}")
    cube = _frame([samples for _, samples, _ in complete])
    for of_vectors, samples, _ in complete:
        _fill(cube, of_vectors, samples)
    check_cube(cube, what=f"the cube from {folder}")
    keys = {
        str(path.relative_to(folder)): found
        for *_, of_unit in complete
        for path, found in of_unit.items()
    }
    return cube, _vectors_of([of_vectors for of_vectors, *_ in complete]), keys


def _unit(folder: Path) -> tuple[xr.Dataset, xr.Dataset, dict[Path, str]] | None:
    """Vectors, samples and keys of one model x concept, or None while some samples are missing."""
    of_vectors = netcdf.load(folder / "vectors.nc")
    found = {path: netcdf.load(path) for path in sorted(folder.glob("samples-*.nc"))}
    shards = list(found.values())
    held_there = sorted(int(label) for shard in shards for label in shard["sample"])
    if not shards or held_there != list(range(_said(shards[0], "n_items"))):
        return None
    samples = xr.concat(
        [shard.drop_vars(RECEIPTS) for shard in shards], dim="sample", combine_attrs="override"
    ).sortby("sample")
    receipts = xr.concat([shard[RECEIPTS] for shard in shards], dim="chunk", join="exact")
    n_samples = xr.DataArray([shard.sizes["sample"] for shard in shards], dims="chunk")
    totals = receipts.sum("chunk")
    totals["added_over_residual"] = (
        receipts["added_over_residual"].weighted(n_samples).mean("chunk")
    )
    keys = {folder / "vectors.nc": of_vectors.attrs["key"]}
    keys |= {path: shard.attrs["key"] for path, shard in found.items()}
    return of_vectors, samples.merge(totals), keys


def _frame(units: Sequence[xr.Dataset]) -> xr.Dataset:
    """A blank cube of every model, concept, layer and strength in `units`."""
    items = {_said(unit, "concept"): _items(unit) for unit in units}
    models = {_model(unit).name: _model(unit) for unit in units}
    return blank_cube(
        sorted(models.values(), key=lambda model: model.n_params),
        dict(sorted(items.items())),
        layers=sorted({int(layer) for unit in units for layer in unit["layer"]}),
        strengths=units[0]["strength"].values.tolist(),
        attrs=_joined([_said(unit, "of_cube") for unit in units]),
    )


def _items(unit: xr.Dataset) -> list[Item]:
    columns = (unit[name].values for name in ("item_id", "letter", "item_valid"))
    return [Item(str(i), str(a), bool(valid)) for i, a, valid in zip(*columns, strict=True)]


def _said(unit: xr.Dataset, name: str) -> Any:
    """What a shard says of the unit that it belongs to."""
    return json.loads(unit.attrs[name])


def _model(unit: xr.Dataset) -> Model:
    return Model(**_said(unit, "model"))


def _joined(attrs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all say once; what differs line by line, and the inputs as one JSON object."""
    joined = {name: "\n".join(sorted({of_unit[name] for of_unit in attrs})) for name in attrs[0]}
    inputs: dict[str, str] = {}
    for of_unit in attrs:
        inputs |= json.loads(of_unit["inputs_sha256"])
    return joined | {"inputs_sha256": json.dumps(inputs, sort_keys=True)}


def _fill(cube: xr.Dataset, of_vectors: xr.Dataset, samples: xr.Dataset) -> None:
    at = {"model": _model(samples).name, "concept": _said(samples, "concept")}
    swept = at | {"layer": samples["layer"].values}
    cells = swept | {"strength": samples["strength"].values, "sample": samples["sample"].values}
    dims = ("layer", "strength", "sample")
    concept = samples.sel(direction="concept")
    for name in ("logprob_matching", "logprob_other"):
        cube[name].loc[cells] = concept[name].transpose(*dims).values
    logit_diff = samples["logprob_matching"] - samples["logprob_other"]
    for direction in samples["direction"].values:
        name = "logit_diff" if direction == "concept" else f"logit_diff_{direction}"
        _put(cube, name, cells, logit_diff.sel(direction=direction).transpose(*dims))
    for name in OF_VECTORS:
        _put(cube, name, swept, of_vectors[name].sel(layer=samples["layer"]))
    for name in RECEIPTS:
        _put(cube, name, swept, samples[name])
    finite = abs(logit_diff) < np.inf
    complete = finite.all(("direction", "strength", "sample"))
    cube["cell_status"].loc[swept] = np.where(complete, STATUS["complete"], STATUS["nonfinite"])


def _put(cube: xr.Dataset, name: str, at: Mapping[str, Any], values: xr.DataArray) -> None:
    """Write into a variable of the contract, which is made first where the cube has none yet."""
    if name not in cube:
        cube[name] = VARIABLES[name].full(cube.sizes)
    cube[name].loc[dict(at)] = values.values


def _vectors_of(units: Sequence[xr.Dataset]) -> xr.Dataset:
    """Every vector: (model, concept, direction, layer, hidden), NaN where a model is smaller."""
    labelled = [
        unit[["vector"]].expand_dims(model=[_model(unit).name], concept=[_said(unit, "concept")])
        for unit in units
    ]
    joined = xr.combine_by_coords(
        [ds.assign_coords(hidden=np.arange(ds.sizes["hidden"])) for ds in labelled],
        combine_attrs="drop",
    )
    attrs = _joined([_said(unit, "of_cube") for unit in units])
    return xr.Dataset({"vector": joined["vector"]}).assign_attrs(attrs)
