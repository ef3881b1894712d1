"""Shards: one file for each finished (model, concept, outcome, chunk), and the cube from them.

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
from typing import Any, NamedTuple

import filelock
import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.answers import answer_of
from steercube.cube import (
    RESPONSE_VARIABLES,
    STATUS,
    UNSTEERED,
    VARIABLES,
    Item,
    Model,
    blank_cube,
    check_cube,
)
from steercube.schema import raise_if_any

Settings = Mapping[str, Any]
RECEIPTS = ["rows_touched", "positions_touched", "added_over_residual"]
ALIKE = ("strengths", "positions", "convention", "seed", "steercube")
ALIKE_WHERE_GENERATED = ("max_new_tokens", "temperature", "repeats")
"""Settings that one cube has once: a unit with others is another cube's."""
OUTCOMES = ("samples", "generations")
"""How the shards of each outcome are named."""
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
    names += [name for name in ALIKE_WHERE_GENERATED if name in one and name in two]
    return [
        f"{name} = {two[name]!r} in {two['model']} x {two['concept']}, {one[name]!r} in "
        f"{one['model']} x {one['concept']}"
        for name in names
        if one[name] != two[name]
    ]


def other_settings(folder: Path, own: Sequence[Path]) -> list[dict[str, Any]]:
    """The settings of every unit and outcome in `folder`, but for the units in `own`."""
    found = {
        (path.parent, outcome): path
        for outcome in OUTCOMES
        for path in sorted(folder.glob(f"*/*/{outcome}-*.nc"))
    }
    return [settings_of(netcdf.load(path)) for (unit, _), path in found.items() if unit not in own]


class Unit(NamedTuple):
    """The shards of one model x concept: vectors, and each outcome whose shards are all there."""

    vectors: xr.Dataset
    samples: xr.Dataset | None
    generations: xr.Dataset | None
    keys: dict[Path, str]

    @property
    def layers(self) -> list[int]:
        """Every layer of either outcome."""
        held = [part["layer"].values.tolist() for part in self.outcomes]
        return sorted({int(layer) for layers in held for layer in layers})

    @property
    def outcomes(self) -> list[xr.Dataset]:
        """Those that are there."""
        return [part for part in (self.samples, self.generations) if part is not None]

    def said(self, name: str) -> Any:
        """What its shards say of the unit."""
        return json.loads(self.vectors.attrs[name])

    @property
    def model(self) -> Model:
        """Facts of its model."""
        return Model(**self.said("model"))


def consolidate(folder: Path) -> tuple[xr.Dataset, xr.Dataset, dict[str, str]]:
    """The cube, the vectors, and the key of each shard, of every unit whose shards are all there.

    A unit is a model x concept. A pure function of the shards: neither the order in which they were
    made nor by how many processes shows. Raises ValueError where none is complete, or where their
    settings keep them out of one cube.
    """
    found = [_unit(path.parent) for path in sorted(folder.glob("*/*/vectors.nc"))]
    units = [unit for unit in found if unit.outcomes]
    if not units:
        raise ValueError(f"{folder} holds no model x concept whose shards are all there")
    settings = [settings_of(outcome) for unit in units for outcome in unit.outcomes]
    problems = {line for one, two in combinations(settings, 2) for line in differences(one, two)}
    raise_if_any(sorted(problems), what=f"one cube of the shards in {folder}")
    cube = _frame(units, strengths=settings[0]["strengths"])
    for unit in units:
        _fill(cube, unit)
    cube = cube.merge(_responses(units))
    check_cube(cube, what=f"the cube from {folder}")
    keys = {
        str(path.relative_to(folder)): found for unit in units for path, found in unit.keys.items()
    }
    return cube, _vectors_of(units), keys


def _unit(folder: Path) -> Unit:
    of_vectors = netcdf.load(folder / "vectors.nc")
    keys = {folder / "vectors.nc": of_vectors.attrs["key"]}
    joined: dict[str, xr.Dataset | None] = dict.fromkeys(OUTCOMES)
    for outcome, join in {"samples": _joined_samples, "generations": _joined_generations}.items():
        found = {path: netcdf.load(path) for path in sorted(folder.glob(f"{outcome}-*.nc"))}
        shards = list(found.values())
        held_there = sorted(int(label) for shard in shards for label in shard["sample"])
        if shards and held_there == json.loads(shards[0].attrs["samples"]):
            joined[outcome] = join(shards)
            keys |= {path: shard.attrs["key"] for path, shard in found.items()}
    return Unit(of_vectors, **joined, keys=keys)


def _joined_samples(shards: Sequence[xr.Dataset]) -> xr.Dataset:
    """All samples, and the receipts of all chunks together."""
    samples = xr.concat(
        [shard.drop_vars(RECEIPTS) for shard in shards], dim="sample", combine_attrs="override"
    ).sortby("sample")
    receipts = xr.concat([shard[RECEIPTS] for shard in shards], dim="chunk", join="exact")
    n_samples = xr.DataArray([shard.sizes["sample"] for shard in shards], dims="chunk")
    totals = receipts.sum("chunk")
    totals["added_over_residual"] = (
        receipts["added_over_residual"].weighted(n_samples).mean("chunk")
    )
    return samples.merge(totals)


def _joined_generations(shards: Sequence[xr.Dataset]) -> xr.Dataset:
    """All responses; where it was recorded, the first position's logit difference by sample."""
    tables = [shard[[n for n in shard if shard[n].dims == ("response",)]] for shard in shards]
    bare = [table.drop_vars(["layer", "sample", "strength"], errors="ignore") for table in tables]
    joined = xr.concat(bare, dim="response", combine_attrs="override")
    touched = [shard["generation_positions_touched"] for shard in shards]
    joined["generation_positions_touched"] = sum(touched[1:], touched[0])
    if all("first_logit_diff" in shard for shard in shards):
        first = xr.concat([shard["first_logit_diff"] for shard in shards], dim="sample")
        joined["first_logit_diff"] = first.sortby("sample")
    return joined


def _frame(units: Sequence[Unit], *, strengths: Sequence[float]) -> xr.Dataset:
    """A blank cube of every model, concept, layer and strength in `units`."""
    items = {unit.said("concept"): [Item(**item) for item in unit.said("items")] for unit in units}
    models = {unit.model.name: unit.model for unit in units}
    return blank_cube(
        sorted(models.values(), key=lambda model: model.n_params),
        dict(sorted(items.items())),
        layers=sorted({layer for unit in units for layer in unit.layers}),
        strengths=strengths,
        attrs=_joined([unit.said("of_cube") for unit in units]),
    )


def _joined(attrs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all say once; what differs line by line, and the inputs as one JSON object."""
    joined = {name: "\n".join(sorted({of_unit[name] for of_unit in attrs})) for name in attrs[0]}
    inputs: dict[str, str] = {}
    for of_unit in attrs:
        inputs |= json.loads(of_unit["inputs_sha256"])
    return joined | {"inputs_sha256": json.dumps(inputs, sort_keys=True)}


def _fill(cube: xr.Dataset, unit: Unit) -> None:
    at = {"model": unit.model.name, "concept": unit.said("concept")}
    of_layers = at | {"layer": unit.layers}
    for name in OF_VECTORS:
        _put(cube, name, of_layers, unit.vectors[name].sel(layer=unit.layers))
    if unit.samples is not None:
        _fill_samples(cube, unit.samples, at)
    if unit.generations is not None:
        _fill_generations(cube, unit.generations, at)


def _fill_samples(cube: xr.Dataset, samples: xr.Dataset, at: Mapping[str, str]) -> None:
    swept = dict(at) | {"layer": samples["layer"].values}
    cells = swept | {"strength": samples["strength"].values, "sample": samples["sample"].values}
    dims = ("layer", "strength", "sample")
    concept = samples.sel(direction="concept")
    for name in ("logprob_matching", "logprob_other"):
        cube[name].loc[cells] = concept[name].transpose(*dims).values
    logit_diff = samples["logprob_matching"] - samples["logprob_other"]
    for direction in samples["direction"].values:
        name = "logit_diff" if direction == "concept" else f"logit_diff_{direction}"
        _put(cube, name, cells, logit_diff.sel(direction=direction).transpose(*dims))
    for name in RECEIPTS:
        _put(cube, name, swept, samples[name])
    finite = abs(logit_diff) < np.inf
    complete = finite.all(("direction", "strength", "sample"))
    cube["cell_status"].loc[swept] = np.where(complete, STATUS["complete"], STATUS["nonfinite"])


def _fill_generations(cube: xr.Dataset, generations: xr.Dataset, at: Mapping[str, str]) -> None:
    """Read every response: which of an item's answers are valid, and which of those match."""
    swept = dict(at) | {"layer": generations["layer"].values}
    letter = cube["letter"].sel(concept=at["concept"]).values
    table = generations.drop_dims(["layer"]).to_dataframe()
    answers = table["response_text"].map(answer_of)
    table["valid"] = (answers != "").astype(float)
    table["match"] = (
        (answers == letter[table["response_sample"]]).where(answers != "").astype(float)
    )
    keys = ["response_layer", "response_strength", "response_sample"]
    means = table.groupby(keys)[["valid", "match"]].mean()
    steered = means.drop(UNSTEERED).to_xarray()
    unsteered = means.loc[[UNSTEERED]].to_xarray().squeeze("response_layer", drop=True)
    every = xr.concat(
        [steered, unsteered.expand_dims(response_layer=steered["response_layer"])],
        dim="response_strength",
    )
    cells = swept | {
        "strength": every["response_strength"].values, "sample": every["response_sample"].values
    }  # fmt: skip
    for name in ("valid", "match"):
        _put(cube, f"generation_{name}", cells, every[name].transpose(*keys))
    name = "generation_positions_touched"
    _put(cube, name, swept, generations[name])
    if "first_logit_diff" in generations:
        first = generations["first_logit_diff"].transpose("layer", "strength", "sample")
        labels = swept | {dim: first[dim].values for dim in ("strength", "sample")}
        apart = abs(cube["logit_diff"].loc[labels].values - first.values)
        swept_too = np.isfinite(apart).all(axis=(1, 2))
        if swept_too.any():
            largest = xr.DataArray(np.where(swept_too, apart.max(axis=(1, 2)), np.nan))
            _put(cube, "generation_logit_apart", swept, largest)


def _responses(units: Sequence[Unit]) -> xr.Dataset:
    """The responses of all units, each with its model and concept."""
    tables = []
    for unit in units:
        if unit.generations is not None:
            table = unit.generations.drop_dims(["layer"])
            n = table.sizes["response"]
            labels = {"response_model": unit.model.name, "response_concept": unit.said("concept")}
            tables.append(
                table.assign({k: ("response", np.full(n, label)) for k, label in labels.items()})
            )
    if not tables:
        return xr.Dataset()
    joined = xr.concat(tables, dim="response", combine_attrs="drop")
    return xr.Dataset(
        {n: (v.dims, joined[n].values, v.attrs) for n, v in RESPONSE_VARIABLES.items()}
    )


def _put(cube: xr.Dataset, name: str, at: Mapping[str, Any], values: xr.DataArray) -> None:
    """Write into a variable of the contract, which is made first where the cube has none yet."""
    if name not in cube:
        cube[name] = VARIABLES[name].full(cube.sizes)
    cube[name].loc[dict(at)] = values.values


def _vectors_of(units: Sequence[Unit]) -> xr.Dataset:
    """Every vector: (model, concept, direction, layer, hidden), NaN where a model is smaller."""
    labelled = [
        unit.vectors[["vector"]].expand_dims(
            model=[unit.model.name], concept=[unit.said("concept")]
        )
        for unit in units
    ]
    joined = xr.combine_by_coords(
        [ds.assign_coords(hidden=np.arange(ds.sizes["hidden"])) for ds in labelled],
        combine_attrs="drop",
    )
    attrs = _joined([unit.said("of_cube") for unit in units])
    return xr.Dataset({"vector": joined["vector"]}).assign_attrs(attrs)
