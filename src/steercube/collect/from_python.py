"""Collection from Python: a model in memory, its vectors, its sweep; the same steps as `collect`.

The model is left as it was given: its mode, gradients, hooks and device.
"""

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr

from steercube.collect.decoder import Decoder, decoder_of, evaluating
from steercube.collect.decoder import load as load_entry
from steercube.collect.directions import checked_directions, layers_by_number, read_directions
from steercube.collect.plan import Plan
from steercube.collect.run import ROWS_A_PAIR, collect_units, rows_at_once, units_of
from steercube.collect.unit import Unit
from steercube.collect.vectors import OWN
from steercube.concepts import Concept
from steercube.contract import MIN_ITEMS, Model
from steercube.cube import Cube, open_cube
from steercube.models import DTYPES, MODELS, entries_in, find_model
from steercube.progress import Report, stage
from steercube.schema import name_violations, raise_if_any
from steercube.words import did_you_mean

__all__ = ["decoder", "extract", "load", "sweep"]

OF_EXTRACTION = ("controls", "convention", "n_pairs", "seed")
"""Fields of a plan that its vectors depend on."""
NOT_OF_VECTORS = ("positions", "concept_sha256")
"""Settings of a unit that its vectors do not depend on."""
MEASURED = {"measures": "outcomes"}
"""Options of `sweep` by another name than the plan's."""
SEVERAL = ("strengths", "controls", "outcomes", "generation_strengths")
"""Fields of a plan that hold several of something; one is as good as a list of one."""
LAYERS = ("layers", "control_layers", "generation_layers")
KINDS_OF_OPTIONS = {
    **dict.fromkeys(LAYERS, int | str | Sequence[int]),
    **dict.fromkeys(SEVERAL, str | Sequence[str]),
    **dict.fromkeys(("strengths", "generation_strengths"), float | Sequence[float]),
}
"""What options of `sweep` may be, where that is more than the plan holds."""
UNKNOWN = "vector given by its user, added at the output of block L"
"""`layer_convention` of a vector of unknown origin."""


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

    The model is not changed; if you train it, cast it or choose another adapter, make the decoder
    again. Raises ValueError if its decoder blocks cannot be found, TypeError for anything but a
    model and a tokenizer.
    """
    if not hasattr(model, "config") or not callable(tokenizer):
        raise TypeError(
            "sc.decoder takes a loaded transformers or PEFT model and its tokenizer, and was given "
            f"{type(model).__name__} and {type(tokenizer).__name__}"
        )
    name = name or Path(str(model.config._name_or_path)).name or str(model.config.model_type)
    problems = name_violations("model", [name]) + name_violations("training", [str(training)])
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        problems.append(f"{type(model).__name__} has no output embedding, so no logits to read")
    raise_if_any(problems, what="sc.decoder")
    found = decoder_of(model, tokenizer, name=name, revision=revision, facts=facts)
    return found if facts else replace(found, facts=replace(found.facts, training=str(training)))


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
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype = {dtype!r} is none of {', '.join(DTYPES)}")
    weights = replace(entry.weights, **known)
    with stage(f"loading {entry.name}"):
        return load_entry(replace(entry, weights=weights), offload_folder=offload)


def extract(
    decoder: Decoder,
    concept: Concept,
    *,
    controls: str | Sequence[str] = (),
    convention: str = "same",
    n_pairs: int | None = None,
    seed: int = Plan.seed,
) -> xr.Dataset:
    """The concept's steering vector at every layer, by Contrastive Activation Addition.

        v_L = mean over pairs of (h_L at the matching letter - h_L at the other letter)

    `vector` (direction, layer, hidden), float32, is what strength 1 adds; the direction `own` is
    the concept's. `controls` are directions to compare it with, as `"random:19"`, `"shuffled:19"`
    and `"letter"`. For each layer also `vector_norm`, `residual_norm`, and cosines that say how
    well the pairs agree (`steercube.collect.vectors`). `convention="study"` reads h at the input of
    a block instead of its output, as the published study did. `n_pairs` uses the first few pairs,
    letters balanced.
    """
    _require_kinds(decoder, concept)
    options = {"controls": controls, "convention": convention, "n_pairs": n_pairs, "seed": seed}
    plan = _plan(options, {})
    (unit,) = units_of(decoder, [concept], plan, "unused.nc")
    with evaluating(decoder), stage(
        f"{decoder.name}: vectors of {concept.name}", total=len(unit.concept.train), unit="pair"
    ) as under_way:  # fmt: skip
        found = unit.computed_vectors(
            batch_size=max(1, rows_at_once(decoder, plan, "samples") // ROWS_A_PAIR),
            progress=under_way.advance,
        )
    attrs = {
        "model": decoder.name,
        "revision": decoder.revision,
        "concept": concept.name,
        "options": json.dumps({name: getattr(plan, name) for name in OF_EXTRACTION}),
        "pairs_sha256": _pairs_sha256(unit),
    }
    found["vector"].attrs = attrs
    return found.assign_attrs(**attrs, extraction_sha256=_extraction(unit, found))


def _pairs_sha256(unit: Unit) -> str:
    return str(unit.vector_settings["pairs_sha256"])


def _extraction(unit: Unit, vectors: xr.Dataset) -> str:
    """SHA-256 of the vectors and of all that they were extracted from."""
    every = unit.vector_settings
    settings = {name: every[name] for name in every if name not in NOT_OF_VECTORS}
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    table = vectors["vector"].transpose("direction", "layer", "hidden")
    labels = [table[dim].values.tolist() for dim in ("direction", "layer")]
    sha.update(json.dumps(labels).encode())
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

    What is swept:

    - `vectors`: from `extract`, or your own: an array or tensor (layer, hidden), or a Dataset or
      DataArray with these dims, of which the direction `own` is the concept's. None extracts them.
    - `strengths`: what the vector is multiplied by, such as (-1, 0, 1); 0 is always among them.
    - `layers`: "all", 14, [12, 18, 24], "12:24", or depths as "0.3:1.0".
    - `positions`: "all", or "answer" for those after the user's turn only.
    - `measures`: "logit", "generation", or both.
    - `n_items`: only the first few, letters balanced.
    - `directions`: your own beside it: arrays (hidden) or (layer, hidden) by name, or a file.
    - `controls`: if `vectors` is None, directions to compare with, as "random:19". They and
      `directions` are swept at `control_layers` and on `control_items` items, if these are given.
    - `convention`, `n_pairs`, `seed`: of the extraction, as in `extract`.

    Generated answers have their own `generation_layers`, `generation_strengths` (default: those
    above) and `generation_samples` (items), of at most `max_new_tokens`; with a `temperature` they
    are sampled, `repeats` times each.

    How it runs:

    - `out`: the cube's file. Finished chunks are kept beside it ("mine.shards" for "mine.nc"), and
      `resume=True` goes on from them; other concepts and models that are collected into the same
      file join the cube. Without `out` all is kept in memory, and lost if it is interrupted.
    - `chunk`: items in a chunk. `max_rows`: rows in a forward pass, 0 for as many as fit.
    - `report`: called with each line of text, in place of `print`.

    A few cells are compared with the plain loop before the sweep is trusted. The model runs in
    evaluation mode, without dropout, and is left as it was. Raises ValueError for an option that
    cannot be used, vectors of another model, concept or shape, or a difference from the plain loop.
    """
    _require_kinds(decoder, concept)
    n_items = options.get("n_items") or len(concept.evaluation)
    if min(n_items, len(concept.evaluation)) < MIN_ITEMS:
        warnings.warn(f"{n_items} items are too few: effects need {MIN_ITEMS}", stacklevel=2)
    given = {MEASURED.get(name, name): value for name, value in options.items()}
    _require_known(given)
    known = _known(vectors)
    plan = _plan(given, json.loads(known.get("options", "{}")))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.nc" if out is None else Path(out)
        (unit,) = units_of(decoder, [concept], plan, path)
        _require_its_own(unit, known)
        unit = _with_vectors(unit, vectors, directions, known)
        collect_units([unit], path, resume=resume, report=report, brief=True)
        return open_cube(path)


def _known(vectors: Any) -> dict[str, Any]:
    """What vectors say of themselves: by their attributes, or their labels in a sweep's file."""
    table = vectors["vector"] if isinstance(vectors, xr.Dataset) else vectors
    if not isinstance(table, xr.DataArray):
        return {}
    labels = {dim: str(table[dim].item()) for dim in ("model", "concept")
              if dim in table.coords and table[dim].size == 1}  # fmt: skip
    whole = vectors.attrs if "layer_convention" in vectors.attrs else {}
    return {**labels, **whole, **table.attrs}


def _require_its_own(unit: Unit, known: Mapping[str, Any]) -> None:
    """Raise ValueError for vectors that were extracted from another model, concept or pairs."""
    name = unit.concept.name
    for what, own in (("model", unit.decoder.name), ("revision", unit.decoder.revision)):
        if known.get(what, own) != own:
            raise ValueError(
                f"these vectors were extracted from the {what} {known[what]!r}, and this is "
                f"{own!r}: to see what they do here, give them as directions, beside the "
                "concept's own"
            )
    if known.get("concept", name) != name:
        other = known["concept"]
        raise ValueError(
            f"these are the vectors of {other!r}, and the items are of {name!r}: to see what they "
            f"do there, give them as directions={{{other!r}: vectors}}, beside the concept's own"
        )
    if known.get("pairs_sha256", _pairs_sha256(unit)) != _pairs_sha256(unit):
        raise ValueError(
            f"these vectors were extracted from other pairs than those of this {name!r}; give "
            "concepts names of their own, or extract again"
        )


def _with_the_plans_options(function: Callable[..., Any]) -> None:
    """Show the fields of the plan in the signature, where an editor or `help` looks for them."""
    names = {plan: own for own, plan in MEASURED.items()}
    own = inspect.signature(function)
    shown = [
        inspect.Parameter(
            names.get(field.name, field.name),
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=KINDS_OF_OPTIONS.get(field.name, field.type),
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
    given = {name: _listed(name, value) for name, value in given.items()}
    extracted = {name: _listed(name, value) for name, value in extracted.items()}
    raise_if_any(
        [
            f"{name} = {given[name]!r}, but the vectors were extracted with {extracted[name]!r}"
            for name in extracted
            if given.get(name, extracted[name]) != extracted[name]
        ],
        what="sc.sweep (leave these to sc.extract)",
    )
    return Plan(**{**extracted, **given})


def _listed(name: str, value: Any) -> Any:
    """A value as the plan holds it: several of something as a tuple, layers as text."""
    if name in SEVERAL:
        if isinstance(value, str):
            value = value.split(",")
        several = tuple(value) if np.ndim(value) else (value,)
        if "strengths" in name:
            return tuple(map(_number, several))
        return tuple(map(str, several))
    if name in LAYERS and not isinstance(value, str):
        return ",".join(str(layer) for layer in np.atleast_1d(value).tolist())
    return value


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"strengths: {value!r} is no number; write them as (-1, 0, 1)") from None


def _with_vectors(unit: Unit, vectors: Any, directions: Any, known: Mapping[str, Any]) -> Unit:
    """The unit with the vectors and directions that it is given."""
    shape = (unit.decoder.n_layers, unit.decoder.hidden_size)
    given = _directions(directions, unit, shape)
    if vectors is None:
        return replace(unit, given=given)
    if isinstance(vectors, xr.Dataset):
        bare = vectors.drop_attrs(deep=True)
        whole_table = set(bare["vector"].dims) == {"direction", "layer", "hidden"}
        sha256 = vectors.attrs.get("extraction_sha256")
        if sha256 and whole_table and sha256 == _extraction(unit, bare):
            return replace(unit, given=given, extracted=_with_directions(bare, given))
    table = vectors["vector"] if isinstance(vectors, xr.Dataset) else vectors
    names = [OWN]
    if isinstance(table, xr.DataArray) and "direction" in table.dims:
        names = [str(name) for name in table["direction"].values]
    arrays = {name: layers_by_number(table, shape, direction=name) for name in names}
    own = arrays.pop(OWN, None)
    problems = [f"direction {name!r} is given twice" for name in arrays if name in given]
    if own is None:
        problems.append(f"no direction is {OWN!r}, the concept's vector, among {', '.join(names)}")
    raise_if_any(problems, what="sc.sweep")
    # Their names and values are all that is known of them: controls are not drawn again.
    return replace(
        unit,
        plan=replace(unit.plan, controls=()),
        own=own,
        given={**arrays, **given},
        read_at="" if "options" in known else known.get("layer_convention", UNKNOWN),
    )


def _with_directions(vectors: xr.Dataset, given: Mapping[str, np.ndarray]) -> xr.Dataset:
    """The vectors and, after them, the given directions (layer, hidden) by name."""
    names = [*vectors["direction"].values, *given]
    every = np.stack(
        [*vectors["vector"].transpose("direction", "layer", "hidden"), *given.values()]
    )
    table = xr.DataArray(every, {"direction": names}, ("direction", "layer", "hidden"))
    whole = vectors.drop_dims("direction").assign(vector=table)
    return whole[list(vectors.data_vars)]


def _directions(given: Any, unit: Unit, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """A user's own directions, from memory or a file; none that the concept's vector is called."""
    if not given:
        return {}
    model = unit.decoder.name
    if isinstance(given, str | Path):
        found = read_directions(given, model=model, shape=shape)
    else:
        arrays = {name: _named(name, values, shape) for name, values in given.items()}
        found = checked_directions(arrays, model=model, shape=shape, what="directions")
    if unit.concept.name in found:
        raise ValueError(
            f"directions: {unit.concept.name!r} is the name of the concept itself; give its own "
            "vector as vectors=, and this one another name"
        )
    return found


def _named(name: str, values: Any, shape: tuple[int, int]) -> np.ndarray:
    try:
        return layers_by_number(values, shape)
    except ValueError as error:
        raise ValueError(f"direction {name!r}: {error}") from error


def _require_kinds(decoder: Any, concept: Any) -> None:
    for given, kind, made_by in (
        (decoder, Decoder, "sc.decoder(model, tokenizer) or sc.load(...)"),
        (concept, Concept, "sc.concept(pairs, items)"),
    ):
        if not isinstance(given, kind):
            raise TypeError(f"{type(given).__name__} is not a {kind.__name__}: {made_by} makes one")
