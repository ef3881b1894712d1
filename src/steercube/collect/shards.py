"""Shards: one file for each finished (model, concept, outcome, chunk), and the cube from them.

A shard is written to a temporary file, flushed, read back and renamed (`steercube.netcdf`), and
records the settings that it was made with; its key is their SHA-256. So a killed run loses at most
the chunks in progress, and a shard with other settings is refused by name, never mixed in.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
    same_weights,
)
from steercube.schema import raise_if_any

Settings = Mapping[str, Any]
RECEIPTS = ["rows_touched", "positions_touched", "added_over_residual"]
ALIKE = ("strengths", "positions", "convention", "seed", "steercube")
ALIKE_OF_A_MODEL = ("revision", "dtype", "chat_template_sha256", "read_token")
ALIKE_WHERE_GENERATED = ("max_new_tokens", "temperature", "repeats")
"""Settings that must agree in one cube: of all units, of one model's units, of generations."""
MAX_ROUNDING = 1e-3
"""Largest rounding difference, in nats, of one log-probability computed twice in float32."""
SHARD_KINDS = ("samples", "generations")
"""How the names of each outcome's shards begin."""
HOLDS = {"vectors": "vector", "samples": "logprob_matching", "generations": "response_text"}
"""By kind of shard, a variable that it always holds."""
PER_SHARD_SETTINGS = {"pairs_sha256", "items_sha256"}
"""Settings that differ between the shards of a unit."""
VECTOR_VARIABLES = ("vector_norm", "residual_norm", "split_half_cosine", "pairwise_cosine")


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
    """The shard at `path` if it was made with `settings`; None if it is missing or damaged.

    Raises ValueError that names the settings that differ, or for an undamaged file that is not a
    shard.
    """
    if not path.exists():
        return None
    try:
        ds = netcdf.load(path)
    except ValueError:
        return None
    _require_shard(ds, path)
    if ds.attrs["key"] == key(settings):
        return ds
    made_with = json.loads(ds.attrs["settings"])
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
        "another --out, or delete the file."
    )


def _require_shard(ds: xr.Dataset, path: Path, *, names: Iterable[str] = ()) -> None:
    """Raise ValueError for a file that is not a shard, or of another kind than its name says."""
    present = {*ds.attrs, *map(str, ds.variables)}
    if lacking := [name for name in ("key", "settings", *names) if name not in present]:
        raise ValueError(
            f"{path} is not the shard that its name says (it has no {', '.join(lacking)}). Move it "
            "away: this folder is for a collection's own shards only."
        )


def _load(path: Path) -> xr.Dataset:
    """The shard in `path`. Raises ValueError for a damaged one, or a file of another kind."""
    ds = netcdf.load(path)
    kind = path.name.removesuffix(".nc").split("-")[0]
    _require_shard(ds, path, names=[HOLDS[kind], *(["samples"] if kind in SHARD_KINDS else [])])
    return ds


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
    """Who holds a folder; empty where that is not written down yet."""
    try:
        return dict(json.loads(note.read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def settings_of(shard: xr.Dataset) -> dict[str, Any]:
    """The settings that a shard was made with."""
    return dict(json.loads(shard.attrs["settings"]))


def differences(one: Settings, two: Settings) -> list[str]:
    """The settings that keep two units out of one cube; empty where there are none.

    Units of the same concept must have the same questions; units of the same model name must have
    the same weights, number format and template.
    """
    names = [*ALIKE, *(["concept_sha256"] if one["concept"] == two["concept"] else [])]
    names += ALIKE_OF_A_MODEL if one["model"] == two["model"] else ()
    names += [name for name in ALIKE_WHERE_GENERATED if name in one and name in two]
    return [
        f"{name} = {two[name]!r} in {two['model']} x {two['concept']}, {one[name]!r} in "
        f"{one['model']} x {one['concept']}"
        for name in names
        if one[name] != two[name]
    ]


class Told(NamedTuple):
    """The identity of a unit, as its shards record it: facts of its model, concept, item ids."""

    model: Mapping[str, Any]
    concept: str
    items: frozenset[str]

    @property
    def name(self) -> str:
        """The unit's name in messages."""
        return f"{self.model['name']} x {self.concept}"


def told_of(vectors: Mapping[str, str]) -> Told:
    """The identity of a unit, from the attributes of its vectors."""
    model, concept, items = (json.loads(vectors[name]) for name in ("model", "concept", "items"))
    return Told(model, concept, frozenset(item["item_id"] for item in items))


def told_in(folder: Path) -> list[Told]:
    """The identities of units in `folder` with readable vectors; damaged ones are made again."""
    units = []
    for path in sorted(folder.glob("*/*/vectors.nc")):
        with suppress(ValueError):
            units.append(told_of(_load(path).attrs))
    return units


def told_apart(units: Sequence[Told]) -> set[str]:
    """Why units with these identities cannot share a cube."""
    problems = {line for one, two in combinations(units, 2) for line in told_otherwise(one, two)}
    models = [unit.model for unit in units]
    return problems | set(
        same_weights((model["name"], model["hf_id"], model["revision"]) for model in models)
    )


def told_otherwise(one: Told, two: Told) -> list[str]:
    """Why two units cannot share a cube: facts of one model differ, or concepts share an item id.

    Where the weights came from does not matter: their revision is compared as a setting.
    """
    problems = []
    if one.model["name"] == two.model["name"]:
        problems = [
            f"{name} = {two.model.get(name)!r} in {two.name}, {value!r} in {one.name}"
            for name, value in one.model.items()
            if name not in ("revision", "hf_id") and two.model.get(name) != value
        ]
    if one.concept != two.concept and (both := one.items & two.items):
        problems.append(f"item id {min(both)!r} is in {one.name} and in {two.name}")
    return problems


def other_settings(folder: Path, own: Sequence[Path]) -> list[dict[str, Any]]:
    """The settings of every unit and outcome in `folder`, except the units in `own`."""
    paths = {
        (path.parent, outcome): path
        for outcome in SHARD_KINDS
        for path in sorted(folder.glob(f"*/*/{outcome}-*.nc"))
    }
    return [settings_of(_load(path)) for (unit, _), path in paths.items() if unit not in own]


class UnitShards(NamedTuple):
    """The shards of one model x concept: vectors, and each outcome whose shards are complete."""

    vectors: xr.Dataset
    samples: xr.Dataset | None
    generations: xr.Dataset | None
    keys: dict[Path, str]
    lacking: list[str]
    """Lines on what is left out of the cube because shards are missing."""
    versions: set[str]
    """The library versions that its shards were made with, one JSON object each."""

    @property
    def layers(self) -> list[int]:
        """All layers of its outcomes."""
        held = [part["layer"].values.tolist() for part in self.outcomes]
        return sorted({int(layer) for layers in held for layer in layers})

    @property
    def outcomes(self) -> list[xr.Dataset]:
        """The complete outcomes."""
        return [part for part in (self.samples, self.generations) if part is not None]

    def said(self, name: str) -> Any:
        """An attribute that its shards record about the unit."""
        return json.loads(self.vectors.attrs[name])

    @property
    def model(self) -> Model:
        """Facts of its model."""
        return Model(**self.said("model"))


def consolidate(
    folder: Path, *, report: Callable[[str], None] = print
) -> tuple[xr.Dataset, xr.Dataset, dict[str, str]]:
    """The cube, the vectors and the key of each shard, of every unit with a complete outcome.

    A unit is a model x concept. The result depends only on the shards, not on the order or number
    of processes that made them; what is left out is reported. Raises ValueError where nothing is
    complete, for a shard that is damaged or of another unit, for samples that appear more than
    once, or where their settings keep them out of one cube.
    """
    folders = sorted({path.parent for path in folder.glob("*/*/*.nc")})
    every = [_unit(one) for one in folders if (one / "vectors.nc").exists()]
    units = [unit for unit in every if unit.outcomes]
    without = [f"{one} has no vectors.nc" for one in folders if not (one / "vectors.nc").exists()]
    for line in [*without, *(line for unit in every for line in unit.lacking)]:
        report(f"left out of the cube: {line}")
    if not units:
        raise ValueError(f"{folder} holds no model x concept whose shards are all there")
    settings = [settings_of(outcome) for unit in units for outcome in unit.outcomes]
    problems = {line for one, two in combinations(settings, 2) for line in differences(one, two)}
    problems |= told_apart([told_of(unit.vectors.attrs) for unit in units])
    raise_if_any(sorted(problems), what=f"one cube of the shards in {folder}")
    cube = _frame(units, strengths=settings[0]["strengths"])
    for unit in units:
        _fill(cube, unit)
    cube = cube.merge(_responses(units))
    check_cube(cube, what=f"the cube from {folder}")
    keys = {str(path.relative_to(folder)): one for unit in units for path, one in unit.keys.items()}
    return cube, _vectors_of(units), keys


def _unit(folder: Path) -> UnitShards:
    vectors = _load(folder / "vectors.nc")
    keys = {folder / "vectors.nc": vectors.attrs["key"]}
    joined: dict[str, xr.Dataset | None] = dict.fromkeys(SHARD_KINDS)
    lacking: list[str] = []
    versions = _versions([vectors])
    for outcome, join in {"samples": _joined_samples, "generations": _joined_generations}.items():
        by_path = {path: _load(path) for path in sorted(folder.glob(f"{outcome}-*.nc"))}
        raise_if_any(_strays(folder, vectors, by_path), what=f"one unit of the shards in {folder}")
        shards = list(by_path.values())
        if not shards:
            continue
        present = {int(label) for shard in shards for label in shard["sample"]}
        if missing := sorted(set(json.loads(shards[0].attrs["samples"])) - present):
            lacking.append(f"{folder} does not have the {outcome} of items {missing} yet")
        else:
            joined[outcome] = join(shards)
            versions |= _versions(shards)
            keys |= {path: shard.attrs["key"] for path, shard in by_path.items()}
    if not any(folder.glob("*-*.nc")):
        lacking.append(f"{folder} has only vectors")
    return UnitShards(vectors, **joined, keys=keys, lacking=lacking, versions=versions)


def _versions(shards: Iterable[xr.Dataset]) -> set[str]:
    """The library versions that the shards record."""
    attrs = [json.loads(shard.attrs.get("of_cube", "{}")) for shard in shards]
    return {of_cube["versions"] for of_cube in attrs if "versions" in of_cube}


def _strays(folder: Path, vectors: xr.Dataset, shards: Mapping[Path, xr.Dataset]) -> list[str]:
    """Why shards of an outcome do not belong to the unit in `folder`, or hold the same samples."""
    expected = settings_of(vectors) | {"vectors_sha256": vectors.attrs[netcdf.DIGEST]}
    named = {"model": folder.parent.name, "concept": folder.name}
    problems = [
        f"{folder / 'vectors.nc'}: {name} = {expected[name]!r}, but its folder is {label!r}"
        for name, label in named.items()
        if expected[name] != label
    ]
    holder: dict[int, Path] = {}
    for path, shard in shards.items():
        settings = settings_of(shard)
        expected = settings | expected
        problems += [
            f"{path}: {name} = {settings.get(name)!r}, but elsewhere in its unit {expected[name]!r}"
            for name in sorted(expected.keys() - PER_SHARD_SETTINGS)
            if settings.get(name) != expected[name]
        ]
        labels = {int(label) for label in shard["sample"]}
        others = {holder[label] for label in labels & holder.keys()}
        problems += [f"{path} and {other} hold the same samples" for other in sorted(others)]
        if unknown := sorted(labels - set(json.loads(shard.attrs["samples"]))):
            problems.append(f"{path}: its samples {unknown} are not among its unit's")
        holder |= dict.fromkeys(labels, path)
    return problems


def whole_outcomes(folder: Path) -> set[tuple[Path, str]]:
    """(folder of the unit, kind of shards) of every outcome whose shards are complete."""
    complete = set()
    for path in folder.glob("*/*/vectors.nc"):
        try:
            unit = _unit(path.parent)
        except ValueError:
            continue
        kinds = dict(zip(SHARD_KINDS, (unit.samples, unit.generations), strict=True))
        complete |= {(path.parent, kind) for kind, part in kinds.items() if part is not None}
    return complete


def _joined_samples(shards: Sequence[xr.Dataset]) -> xr.Dataset:
    """All samples of a unit, and the receipts of all its chunks combined."""
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
    """All responses; where recorded, the first position's log-probabilities by sample."""
    joined = xr.concat(
        [_table(shard) for shard in shards], dim="response", combine_attrs="override"
    )
    touched = [shard["generation_positions_touched"] for shard in shards]
    joined["generation_positions_touched"] = sum(touched[1:], touched[0])
    if all("first_logprob" in shard for shard in shards):
        first = xr.concat([shard["first_logprob"] for shard in shards], dim="sample")
        joined["first_logprob"] = first.sortby("sample")
    return joined


def _frame(units: Sequence[UnitShards], *, strengths: Sequence[float]) -> xr.Dataset:
    """A blank cube of every model, concept, layer and strength in `units`."""
    items = {unit.said("concept"): [Item(**item) for item in unit.said("items")] for unit in units}
    models = {unit.model.name: unit.model for unit in units}
    return blank_cube(
        sorted(models.values(), key=lambda model: model.n_params),
        dict(sorted(items.items())),
        layers=sorted({layer for unit in units for layer in unit.layers}),
        strengths=strengths,
        attrs=_joined([unit.said("of_cube") for unit in units])
        | {"versions": "\n".join(sorted(set().union(*(unit.versions for unit in units))))},
    )


def _joined(attrs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Attributes of one cube: each distinct value on a line, the inputs as one JSON object."""
    names = {name: None for one in attrs for name in one}
    joined = {name: "\n".join(sorted({a.get(name, "") for a in attrs} - {""})) for name in names}
    inputs: dict[str, str] = {}
    for one in attrs:
        inputs |= json.loads(one["inputs_sha256"])
    return joined | {"inputs_sha256": json.dumps(inputs, sort_keys=True)}


def _fill(cube: xr.Dataset, unit: UnitShards) -> None:
    at = {"model": unit.model.name, "concept": unit.said("concept")}
    at_layers = at | {"layer": unit.layers}
    for name in VECTOR_VARIABLES:
        _put(cube, name, at_layers, unit.vectors[name].sel(layer=unit.layers))
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
    """Parse the responses: each item's share of valid ones, and of these the share that match."""
    swept = dict(at) | {"layer": generations["layer"].values}
    letter = cube["letter"].sel(concept=at["concept"]).values
    table = _table(generations).to_dataframe()
    answers = table["response_text"].map(answer_of)
    table["valid"] = (answers != "").astype(float).where(table["response_finite"])
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
    if "first_logprob" in generations:
        _put(cube, "generation_logit_apart", swept, _difference_from_sweep(cube, generations, at))


def _difference_from_sweep(
    cube: xr.Dataset, generations: xr.Dataset, at: Mapping[str, str]
) -> xr.DataArray:
    """Largest difference (layer), in nats, of first-position log-probabilities from the sweep's.

    NaN at layers that were not swept. Raises ValueError where it is not rounding (in float32).
    """
    first = generations["first_logprob"]
    labels = dict(at) | {dim: first[dim].values for dim in ("layer", "strength", "sample")}
    gaps = xr.concat(
        [
            abs(first.sel(answer=answer) - cube[f"logprob_{answer}"].loc[labels])
            for answer in ("matching", "other")
        ],
        dim="answer",
        coords="minimal",
        compat="override",
    )
    every = ("answer", "strength", "sample")
    largest = gaps.max(every).where(gaps.notnull().all(every))
    if cube.attrs["dtype"] == "float32" and (largest > MAX_ROUNDING).any():
        raise ValueError(
            f"{at['model']} x {at['concept']}: log-probabilities at the first generated position "
            f"differ from the logit sweep's by {largest.max():.2g} nat (at most {MAX_ROUNDING} is "
            "rounding): the two are not of the same model, vectors or prompts. Delete one of the "
            "two kinds of shards, and resume."
        )
    return largest


def _table(generations: xr.Dataset) -> xr.Dataset:
    """The variables of a response, without the rest."""
    columns = [name for name in generations if generations[name].dims == ("response",)]
    return generations[columns].reset_coords(drop=True)


def _responses(units: Sequence[UnitShards]) -> xr.Dataset:
    """The responses of all units, each with its model and concept."""
    tables = []
    for unit in units:
        if unit.generations is not None:
            table = _table(unit.generations)
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
    """Write into a variable of the contract, which is created first where the cube lacks it."""
    if name not in cube:
        cube[name] = VARIABLES[name].full(cube.sizes)
    cube[name].loc[dict(at)] = values.values


def _vectors_of(units: Sequence[UnitShards]) -> xr.Dataset:
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
