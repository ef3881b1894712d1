"""Collection from Python: a model in memory, its vectors, its sweep; the same steps as `collect`.

The model is left as it was given: its mode, gradients, hooks and device.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr

from steercube.collect.decoder import Decoder, decoder_of, evaluating
from steercube.collect.decoder import load as load_entry
from steercube.collect.directions import array_of, checked_directions, read_directions
from steercube.collect.plan import Plan
from steercube.collect.run import ROWS_A_PAIR, collect_units, rows_at_once, units_of
from steercube.collect.unit import Unit
from steercube.collect.vectors import OWN
from steercube.concepts import Concept
from steercube.contract import Model
from steercube.cube import Cube, open_cube
from steercube.models import MODELS, entries_in, find_model
from steercube.progress import Report, stage
from steercube.schema import name_violations, raise_if_any
from steercube.words import did_you_mean

__all__ = ["decoder", "extract", "load", "sweep"]

OF_EXTRACTION = ("controls", "convention", "n_pairs", "seed")
"""Fields of a plan that its vectors depend on."""
MEASURED = {"measures": "outcomes"}
"""Options of `sweep` by another name than the plan's."""


def decoder(
    model: Any,
    tokenizer: Any,
    *,
    name: str = "",
    training: str = "other",
    revision: str = "",
    facts: Model | None = None,
) -> Decoder:
    """A loaded Hugging Face model, or a PEFT model, with its tokenizer, ready to extract and sweep.

    `name` is what the cube calls it (default: the last part of the config's `_name_or_path`).
    `training` is your own label, such as "base" or "instruct", by which models can be compared;
    other facts (layers, parameters, family) are counted from the weights unless `facts` are given.
    `revision` identifies the weights; without it they are read once, and hashed.

    The model is not changed. Raises ValueError if its decoder blocks cannot be found.
    """
    name = name or Path(str(model.config._name_or_path)).name or str(model.config.model_type)
    raise_if_any(name_violations("model", [name]), what="sc.decoder (give it a name=)")
    found = decoder_of(model, tokenizer, name=name, revision=revision, facts=facts)
    return found if facts else replace(found, facts=replace(found.facts, training=training))


def load(
    source: str,
    *,
    models: str | Path = MODELS,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    offload: str | Path | None = None,
) -> Decoder:
    """A model from the hub ("owner/name"), a folder, a .gguf file, or an entry of `models`.

    A folder or repository with only a LoRA adapter is loaded on the base model it names. The
    weights are put on the GPU, if there is one; `device_map="auto"` spreads them, with a folder
    `offload` also to disk. `dtype` is float32, bfloat16 (default) or float16.

    Raises ValueError, with what to do, for weights that are missing, damaged or incomplete.
    """
    entry = find_model(source, entries_in(models), where=models)
    given = {"revision": revision, "dtype": dtype, "device_map": device_map}
    known: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    weights = replace(entry.weights, **known)
    with stage(f"loading {entry.name}"):
        return load_entry(replace(entry, weights=weights), offload_folder=offload)


def extract(
    decoder: Decoder,
    concept: Concept,
    *,
    controls: Sequence[str] = (),
    convention: str = "same",
    n_pairs: int | None = None,
    seed: int = Plan.seed,
) -> xr.Dataset:
    """The concept's steering vector at every layer, by Contrastive Activation Addition.

        v_L = mean over pairs of (h_L at the matching letter - h_L at the other letter)

    `vector` (direction, layer, hidden), float32, is what strength 1 adds; the direction `own` is
    the concept's. `controls` are directions to compare it with, as `"random:19"`, `"shuffled:19"`
    and `"letter"`. For each layer also `vector_norm`, `residual_norm`, and cosines that say how
    well the pairs agree (`steercube.collect.vectors`). `convention="study"` reads h at a block's
    input instead of its output. `n_pairs` uses the first few pairs, letters balanced.
    """
    plan = Plan(controls=tuple(controls), convention=convention, n_pairs=n_pairs, seed=seed)
    (unit,) = units_of(decoder, [concept], plan, "unused.nc")
    with evaluating(decoder.model), stage(
        f"{decoder.name}: vectors of {concept.name}", total=len(unit.concept.train), unit="pair"
    ) as under_way:  # fmt: skip
        found = unit.computed_vectors(
            batch_size=max(1, rows_at_once(decoder, plan, "samples") // ROWS_A_PAIR),
            progress=under_way.advance,
        )
    options = {name: getattr(plan, name) for name in OF_EXTRACTION}
    return found.assign_attrs(
        model=decoder.name,
        concept=concept.name,
        options=json.dumps(options),
        extraction_sha256=_extraction(unit, found),
    )


def _extraction(unit: Unit, vectors: xr.Dataset) -> str:
    """SHA-256 of the vectors and of all that they were extracted from."""
    every = unit.vector_settings
    settings = {name: every[name] for name in every if name not in ("positions", "concept_sha256")}
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    table = vectors["vector"].transpose("direction", "layer", "hidden")
    sha.update(json.dumps(table["direction"].values.tolist()).encode())
    sha.update(np.ascontiguousarray(table.values).tobytes())
    return sha.hexdigest()


def sweep(
    decoder: Decoder,
    concept: Concept,
    vectors: Any = None,
    *,
    directions: Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    report: Report = print,
    **options: Any,
) -> Cube:
    """The concept's items under its vector, at every layer and strength, as a cube.

    - `vectors`: of `extract`, or your own: an array or tensor (layer, hidden), or a Dataset or
      DataArray with these dims, of which the direction `own` is the concept's. None extracts them.
    - `strengths`: what the vector is multiplied by, such as (-1, 0, 1); 0 is always among them.
    - `layers`: "all", "12,18,24", "12:24", or depths as "0.3:1.0".
    - `positions`: "all", or "answer" for those after the user's turn only.
    - `measures`: "logit", "generation", or both.
    - `directions`: your own beside it: arrays (hidden) or (layer, hidden) by name, or a file.
    - `out`: the cube's file. Finished chunks are kept beside it, and `resume=True` goes on from
      them; other concepts and models that are collected into the same file join the cube. Without
      `out` everything is kept in memory, and lost if it is interrupted.
    - all other options are the fields of `steercube.collect.plan.Plan`.

    A few cells are compared with the plain loop before the sweep is trusted. Raises ValueError for
    an option that cannot be used, vectors of another model, concept or shape, or a difference from
    the plain loop.
    """
    # One name or number is as good as a list of one.
    listed = {
        MEASURED.get(name, name): (value,)
        if name in ("measures", "strengths", "controls") and isinstance(value, str | int | float)
        else tuple(value) if isinstance(value, list | np.ndarray) else value
        for name, value in options.items()
    }  # fmt: skip
    _require_known(listed)
    known = getattr(vectors, "attrs", {})
    plan = _plan(listed, json.loads(known.get("options", "{}")))
    if known.get("concept", concept.name) != concept.name:
        raise ValueError(
            f"these are the vectors of {known['concept']!r}, and the items are of "
            f"{concept.name!r}: to see what they do there, give them as directions="
            f"{{{known['concept']!r}: vectors['vector'].sel(direction='own')}}, beside the "
            "concept's own"
        )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.nc" if out is None else Path(out)
        units = _units(decoder, concept, plan, path, vectors, directions)
        collect_units(units, path, resume=resume, report=report if out else _unwritten(report))
        return open_cube(path)


def _with_the_plans_options(function: Callable[..., Any]) -> None:
    """Show the fields of the plan in the signature, where an editor or `help` looks for them."""
    names = {plan: own for own, plan in MEASURED.items()}
    own = inspect.signature(function)
    shown = [
        inspect.Parameter(
            names.get(field.name, field.name),
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=field.type,
        )
        for field in fields(Plan)
    ]
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    first = [p for p in kept if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    rest = [p for p in kept if p.kind is inspect.Parameter.KEYWORD_ONLY]
    function.__signature__ = own.replace(parameters=[*first, *shown, *rest])  # type: ignore[attr-defined]


_with_the_plans_options(sweep)


def _require_known(options: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(Plan)]
    shown = sorted({*known, *MEASURED} - set(MEASURED.values()))
    raise_if_any(
        [f"no option is called {n!r}{did_you_mean(n, shown)}" for n in options if n not in known],
        what="sc.sweep",
    )


def _plan(given: Mapping[str, Any], extracted: Mapping[str, Any]) -> Plan:
    """The plan of the sweep, with the options that its vectors were extracted with."""
    extracted = {**extracted, **{k: tuple(v) for k, v in extracted.items() if isinstance(v, list)}}
    raise_if_any(
        [
            f"{name} = {given[name]!r}, but the vectors were extracted with {extracted[name]!r}"
            for name in extracted
            if given.get(name, extracted[name]) != extracted[name]
        ],
        what="sc.sweep (leave these to sc.extract)",
    )
    return Plan(**{**extracted, **given})


def _units(
    decoder: Decoder,
    concept: Concept,
    plan: Plan,
    out: Path,
    vectors: Any,
    directions: Mapping[str, Any] | str | Path | None,
) -> list[Unit]:
    """The unit of a sweep, with the vectors that it is given."""
    shape = (decoder.n_layers, decoder.hidden_size)
    given = _directions(directions, decoder.name, shape)
    if vectors is None:
        return units_of(decoder, [concept], plan, out, given=given)
    (unit,) = units_of(decoder, [concept], plan, out)
    if isinstance(vectors, xr.Dataset) and not given:
        extracted_sha256 = vectors.attrs.get("extraction_sha256")
        if extracted_sha256 and extracted_sha256 == _extraction(unit, vectors):
            return [replace(unit, extracted=vectors.drop_attrs(deep=False))]
    arrays = _arrays(vectors, shape)
    own = arrays.pop(OWN)
    raise_if_any(
        [f"direction {name!r} is given twice" for name in arrays if name in given],
        what="sc.sweep",
    )
    # Their names and values are all that is known of them: controls are not drawn again.
    plan = replace(plan, controls=())
    return units_of(decoder, [concept], plan, out, own=own, given={**arrays, **given})


def _arrays(vectors: Any, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays (layer, hidden) by direction, of which one is OWN."""
    table = vectors["vector"] if isinstance(vectors, xr.Dataset) else vectors
    if not isinstance(table, xr.DataArray):
        values = array_of(table)
        dims = ("layer", "hidden") if values.ndim == 2 else None
        table = xr.DataArray(values, dims=dims)
    if "direction" not in table.dims:
        table = table.drop_vars("direction", errors="ignore").expand_dims(direction=[OWN])
    problems = [
        f"has no dim {dim!r}; it has {', '.join(map(str, table.dims))}"
        for dim in ("layer", "hidden")
        if dim not in table.dims
    ]
    if not problems:
        table = table.transpose("direction", "layer", "hidden")
        if table.shape[1:] != shape:
            problems.append(
                f"has {table.sizes['layer']} layers of {table.sizes['hidden']} values; the model "
                f"has {shape[0]} blocks of {shape[1]}, so give all of them"
            )
        if not np.isfinite(table).all():
            problems.append("holds values that are not finite")
        if OWN not in table["direction"].values:
            names = ", ".join(map(str, table["direction"].values))
            problems.append(f"has no direction {OWN!r}, the concept's vector, among {names}")
    raise_if_any(problems, what="the array of vectors")
    return {str(d): table.sel(direction=d).values.astype("float32")
            for d in table["direction"].values}  # fmt: skip


def _directions(
    given: Mapping[str, Any] | str | Path | None, model: str, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    if not given:
        return {}
    if isinstance(given, str | Path):
        return read_directions(given, model=model, shape=shape)
    arrays = {name: array_of(values) for name, values in given.items()}
    return checked_directions(arrays, model=model, shape=shape, what="directions")


def _unwritten(report: Report) -> Report:
    """`report` without the lines on a file that nobody asked for."""
    return lambda line: None if line.startswith("wrote ") else report(line)
