"""Contract 1, the cube: every sample of a steering sweep, labelled, in one file.

Dimensions are `model, concept, layer, strength, sample`, ragged in layer and sample and padded
with NaN. `layer` counts decoder blocks from 0. `logit_diff` is the log-probability of the answer
that matches the concept minus that of the other one, in nats. Collectors and importers write
this file; the later stages (cells, conclusions, figures) read it and nothing else.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.schema import (
    Variable,
    attribute_violations,
    name_violations,
    raise_if_any,
    require_version,
    structure_violations,
)

SCHEMA_VERSION = 1
DIMS = ("model", "concept", "layer", "strength", "sample")
LABELS = dict(zip(DIMS, "UUifi", strict=True))
"""Kind of the labels of each dimension: U is text, i integers, f floats."""
CELL = ("model", "concept", "layer")
STATUS = {"not_applicable": 0, "not_run": 1, "complete": 2, "failed": 3, "nonfinite": 4}
ARCHITECTURES = ("dense", "moe")
SCORED_LETTERS = ("A", "B")

MODEL_VARIABLES = {
    "n_layers": Variable(("model",), "i", "number of decoder blocks", "1"),
    "n_params": Variable(("model",), "f", "total parameters", "1"),
    "n_active_params": Variable(("model",), "f", "parameters active per token", "1"),
    "training": Variable(("model",), "U", "training method"),
    "architecture": Variable(("model",), "U", "dense or mixture of experts"),
    "family": Variable(("model",), "U", "model family"),
    "hf_id": Variable(("model",), "U", "Hugging Face id"),
    "revision": Variable(("model",), "U", "commit of the weights, empty where unrecorded"),
    "depth": Variable(("model", "layer"), "f", "layer / number of layers", "1"),
}
ITEM_VARIABLES = {
    "item_id": Variable(("concept", "sample"), "U", "item, unique across concepts"),
    "letter": Variable(("concept", "sample"), "U", "letter of the matching answer"),
    "item_valid": Variable(
        ("concept", "sample"), "b", "matching answer is a scored letter, of two choices"
    ),
}
SAMPLE_VARIABLES = {
    "logprob_matching": Variable(
        DIMS, "f", "log-probability of the matching answer", "nat", dtype="float32"
    ),
    "logprob_other": Variable(
        DIMS, "f", "log-probability of the other answer", "nat", dtype="float32"
    ),
    "logit_diff": Variable(DIMS, "f", "matching minus other", "nat", dtype="float32"),
    "logit_diff_random": Variable(
        DIMS,
        "f",
        "matching minus other, steered in a random direction of the vector's norm",
        "nat",
        required=False,
        dtype="float32",
    ),
    "logit_diff_shuffled": Variable(
        DIMS,
        "f",
        "matching minus other, steered by the vector of the pairs with shuffled sides",
        "nat",
        required=False,
        dtype="float32",
    ),
    "generation_match": Variable(
        DIMS,
        "f",
        "share of the item's valid generated answers that match",
        "1",
        required=False,
        dtype="float32",
    ),
    "generation_valid": Variable(
        DIMS,
        "f",
        "share of the item's generated answers that are valid",
        "1",
        required=False,
        dtype="float32",
    ),
    "published_match": Variable(
        DIMS, "f", "generation_match as published", "1", required=False, dtype="float32"
    ),
    "published_valid": Variable(
        DIMS, "f", "generation_valid as published", "1", required=False, dtype="float32"
    ),
}
ANSWER_VARIABLES = (
    *("generation_match", "generation_valid"),
    *("published_match", "published_valid"),
)
RATE_VARIABLES = {
    "generation_rate": Variable(
        (*CELL, "strength"),
        "f",
        "share of matching among valid generated answers, published as a rate",
        "1",
        required=False,
    ),
    "generation_valid_rate": Variable(
        CELL, "f", "share of valid generated answers, pooled over strengths", "1", required=False
    ),
    "generation_n_prompts": Variable(
        ("model", "concept"), "f", "prompts behind each generation rate", "1", required=False
    ),
}
RATES = ("generation_rate", "generation_valid_rate")
STATUS_VARIABLES = {
    "cell_status": Variable(
        CELL, "i", "what became of the logit sweep here", flags=STATUS, dtype="int8"
    ),
}
VECTOR_VARIABLES = {
    "vector_norm": Variable(CELL, "f", "norm of the steering vector", "1", required=False),
    "residual_norm": Variable(
        CELL, "f", "mean norm of the residual stream where the vector was read", "1", required=False
    ),
    "split_half_cosine": Variable(
        CELL, "f", "mean cosine of the vectors of two halves of the pairs", "1", required=False
    ),
    "pairwise_cosine": Variable(
        CELL, "f", "mean cosine of two pairs' differences", "1", required=False
    ),
}
RECEIPT_VARIABLES = {
    "rows_touched": Variable(CELL, "f", "rows that a vector changed", "1", required=False),
    "positions_touched": Variable(
        CELL, "f", "positions that a vector changed", "1", required=False
    ),
    "added_over_residual": Variable(
        CELL, "f", "|added| / |residual| at the largest strength, as measured", "1", required=False
    ),
    "generation_positions_touched": Variable(
        CELL,
        "f",
        "positions of prompts and answers that a vector changed in generation",
        "1",
        required=False,
    ),
    "generation_logit_apart": Variable(
        CELL,
        "f",
        "largest difference of the first generated position's log-probabilities from the sweep's",
        "nat",
        required=False,
    ),
}
RESPONSE_VARIABLES = {
    "response_text": Variable(("response",), "U", "generated response", required=False),
    "response_model": Variable(("response",), "U", "its model", required=False),
    "response_concept": Variable(("response",), "U", "its concept", required=False),
    "response_layer": Variable(
        ("response",), "i", "its layer; -1 where one unsteered response serves all", required=False
    ),
    "response_strength": Variable(("response",), "f", "its strength", required=False),
    "response_sample": Variable(("response",), "i", "its sample", required=False),
    "response_repeat": Variable(
        ("response",), "i", "which of the cell's responses to the item", required=False
    ),
    "response_finished": Variable(
        ("response",), "b", "it ended by itself, not at the limit of tokens", required=False
    ),
    "response_finite": Variable(
        ("response",), "b", "its logits were finite; else it is no answer at all", required=False
    ),
}
PLACE = (
    *("response_model", "response_concept", "response_layer"),
    *("response_strength", "response_sample"),
)
"""A response's place: its cell, strength and sample. `response_repeat` numbers repeats there."""
UNSTEERED_STRENGTH = 0.0
UNSTEERED = -1
"""`response_layer` of an unsteered response, which is shared by every layer."""
COORDINATES = MODEL_VARIABLES | ITEM_VARIABLES
VARIABLES = (
    COORDINATES
    | SAMPLE_VARIABLES
    | RATE_VARIABLES
    | STATUS_VARIABLES
    | VECTOR_VARIABLES
    | RECEIPT_VARIABLES
    | RESPONSE_VARIABLES
)
GIVEN_ATTRIBUTES = {
    "title": "what the cube holds",
    "source": "where the samples come from",
    "history": "what was done, line by line",
    "layer_convention": "where the vector is read and where it is added",
    "positions_steered": "which token positions are steered",
    "read_token": "which tokens are scored, and where",
    "dtype": "number format of the forward passes",
    "seed": "seed of every random choice, or why there is none",
    "versions": "software that made the samples",
    "inputs_sha256": "JSON of input name to SHA-256",
}
CONTROLS = ("logit_diff_random", "logit_diff_shuffled")
NORMS = ("vector_norm", "residual_norm")
LOGPROBS = ("logprob_matching", "logprob_other")
ROUNDING = 1e-4
"""Nats, or shares, by which a float32 may exceed its bounds."""
BOUNDS = (
    dict.fromkeys((*ANSWER_VARIABLES, *RATES), (0, 1))
    | dict.fromkeys((*NORMS, *RECEIPT_VARIABLES, "generation_n_prompts"), (0, np.inf))
    | dict.fromkeys(("split_half_cosine", "pairwise_cosine"), (-1 - ROUNDING, 1 + ROUNDING))
)
MAX_JOINT_LOGPROB = 0.01
"""Nats by which the two answers' joint log-probability may exceed 0: bfloat16 rounds to 0.004."""
MAX_GAP_FLOAT32, MAX_GAP_16_BITS = 1e-3, 0.5
"""Largest difference, in nats, of two computations of one unsteered value. In 16 bits, logits
near 20 are multiples of 1/8, and a logit difference has the rounding of two logits."""
MIN_STRENGTH_GAP = 1e-4
"""Strengths closer than this are the same strength up to rounding."""
ALIKE = ("layer_convention", "positions_steered")
ALIKE_OF_A_MODEL = ("dtype", "read_token")
"""Attributes that must be the same throughout a cube, and for all samples of one model."""
ATTRIBUTES = GIVEN_ATTRIBUTES | {"schema_version": "which contract this is"}


@dataclass(frozen=True)
class Model:
    """Facts about a model that are known before it runs; sizes in parameters."""

    name: str
    n_layers: int
    n_params: float
    n_active_params: float
    training: str
    architecture: str
    family: str
    hf_id: str
    revision: str = ""


@dataclass(frozen=True)
class Item:
    """One evaluation item of a concept: its id and the letter of the matching answer."""

    item_id: str
    letter: str
    valid: bool = True


def blank_cube(
    models: Sequence[Model],
    items: Mapping[str, Sequence[Item]],
    *,
    layers: Sequence[int],
    strengths: Sequence[float],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """A cube with every cell not run, for a collector or an importer to fill.

    `attrs` are GIVEN_ATTRIBUTES; raises ValueError that lists the missing ones. Fill
    `logprob_matching`, `logprob_other` and their difference `logit_diff` (nats) for every item at
    every strength of a cell, and mark the cell complete. Effects need the strengths -1 and +1 and
    ten items per concept.

    >>> model = Model("tiny", n_layers=4, n_params=1e6, n_active_params=1e6, training="instruct",
    ...               architecture="dense", family="tiny", hf_id="me/tiny")
    >>> items = {"honesty": [Item(f"honesty/{i}", "AB"[i % 2]) for i in range(12)]}
    >>> cube = blank_cube([model], items, layers=[1, 2], strengths=[-1, 0, 1],
    ...                   attrs=dict.fromkeys(GIVEN_ATTRIBUTES, "made up"))
    >>> for layer in (1, 2):
    ...     for strength in (-1, 0, 1):
    ...         at = {"model": "tiny", "concept": "honesty", "layer": layer, "strength": strength}
    ...         cube["logprob_matching"].loc[at] = -4.0 + 0.2 * strength * np.arange(12)
    ...         cube["logprob_other"].loc[at] = -4.0
    ...     cube["cell_status"].loc["tiny", "honesty", layer] = STATUS["complete"]
    >>> cube["logit_diff"] = cube["logprob_matching"] - cube["logprob_other"]
    >>> check_cube(cube)
    """
    raise_if_any(attribute_violations(attrs, GIVEN_ATTRIBUTES), what="attrs")
    ds = xr.Dataset(
        coords={
            "model": [model.name for model in models],
            "concept": list(items),
            "layer": np.array(sorted(layers), dtype="int64"),
            "strength": np.array(sorted(strengths), dtype="float64"),
            "sample": np.arange(max(map(len, items.values()))),
        }
    )
    facts = {
        name: [getattr(m, name) for m in models] for name in MODEL_VARIABLES if name != "depth"
    }
    for name, values in facts.items():
        ds[name] = ("model", np.array(values), MODEL_VARIABLES[name].attrs)
    ds["depth"] = _depth(ds)
    for name, field in {"item_id": "item_id", "letter": "letter", "item_valid": "valid"}.items():
        padded = [
            [getattr(item, field) for item in concept_items]
            + [ITEM_VARIABLES[name].fill] * (ds.sizes["sample"] - len(concept_items))
            for concept_items in items.values()
        ]
        ds[name] = (("concept", "sample"), np.array(padded), ITEM_VARIABLES[name].attrs)
    for name, variable in (SAMPLE_VARIABLES | STATUS_VARIABLES).items():
        if variable.required:
            ds[name] = variable.full(ds.sizes)
    ds["cell_status"] = _status_where_unrun(ds)
    return ds.set_coords(list(COORDINATES)).assign_attrs(
        Conventions="CF-1.11, ACDD-1.3", schema_version=SCHEMA_VERSION, **attrs
    )


def _depth(ds: xr.Dataset) -> xr.DataArray:
    """depth = layer / n_layers, the study's definition; NaN beyond a model's last block."""
    depth = ds["layer"] / ds["n_layers"]
    return (
        depth.where(depth < 1)
        .transpose("model", "layer")
        .assign_attrs(MODEL_VARIABLES["depth"].attrs)
    )


def _status_where_unrun(ds: xr.Dataset) -> xr.DataArray:
    """`cell_status`, with not_applicable at, and only at, layers that the model lacks."""
    lacking = ds["layer"] >= ds["n_layers"]
    status = ds["cell_status"].where(~lacking, STATUS["not_applicable"])
    status = status.where(lacking | (status != STATUS["not_applicable"]), STATUS["not_run"])
    return (
        status.transpose(*CELL).astype("int8").assign_attrs(STATUS_VARIABLES["cell_status"].attrs)
    )


def save_cube(cube: xr.Dataset, path: str | Path) -> str:
    """Check the cube, write it whole or not at all, and return the SHA-256 of its content."""
    check_cube(cube)
    if cube.sizes.get("response") == 0:
        # A text variable without rows would be read back from the file as bytes.
        cube = cube.drop_dims("response")
    return netcdf.save(cube, path)


def open_cube(path: str | Path) -> xr.Dataset:
    """The cube in `path`, checked. Raises ValueError with every violation, FileNotFoundError."""
    cube = netcdf.load(path)
    check_cube(cube, what=str(path))
    return cube


def _reinstall(cube: xr.Dataset) -> str:
    """How to install the steercube version that wrote `cube`, according to its history."""
    wrote = re.search(r"steercube (\d[\w.]*)", str(cube.attrs.get("history", "")))
    if not wrote:
        return "install the steercube version that wrote it; its history does not say which"
    return (
        f"install steercube {wrote[1]}, which wrote it, from its wheel or from the tag v{wrote[1]}"
    )


def check_cube(cube: xr.Dataset, *, what: str = "the cube") -> None:
    """Raise one ValueError that lists every rule of the contract that `cube` breaks."""
    if "estimand" in cube.dims:
        raise ValueError(f"{what} holds cells, not a cube; name such a file <study>.cells.nc")
    require_version(cube, "schema_version", SCHEMA_VERSION, what=what, remedy=_reinstall(cube))
    problems = attribute_violations(cube.attrs, ATTRIBUTES)
    problems += structure_violations(cube, VARIABLES, index_dims=LABELS)
    problems += [f"dimension {dim!r} is empty" for dim in DIMS if cube.sizes.get(dim) == 0]
    if not problems:
        problems = [
            *_label_problems(cube),
            *_model_problems(cube),
            *_item_problems(cube),
            *_sample_problems(cube),
            *_readout_problems(cube),
            *_unsteered_problems(cube),
            *_response_problems(cube),
        ]
    raise_if_any(problems, what=what)


def _label_problems(cube: xr.Dataset) -> list[str]:
    problems = [
        problem
        for dim in ("model", "concept")
        for problem in name_violations(dim, map(str, cube[dim].values))
    ]
    problems += [
        f"model {str(model)!r} is named like an average over models; give it another name"
        for model in cube["model"].values
        if str(model).startswith("mean of ")
    ]
    if (np.diff(cube["layer"].values) <= 0).any():
        problems.append("'layer' must increase; sort the cube by it")
    if not np.isfinite(cube["strength"]).all():
        problems.append("'strength' has a label that is not finite")
    problems += [
        f"'strength' has the labels {one!r} and {other!r}, which count as one strength: labels "
        f"must be at least {MIN_STRENGTH_GAP:g} apart; give both the same label"
        for one, other in pairwise(np.sort(cube["strength"].values).tolist())
        if other - one < MIN_STRENGTH_GAP
    ]
    return problems


COMMIT_OF_HUB = re.compile("[0-9a-f]{7,64}")


def same_weights(models: Iterable[tuple[str, str, str]]) -> list[str]:
    """A line for each set of weights with several names, from (name, hf_id, revision) of models.

    A hash of the content (`files:...`) identifies weights by itself, a commit together with its
    repository; models for which neither was recorded are skipped.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for name, hf_id, revision in dict.fromkeys(models):
        if ":" in revision:
            names.setdefault(("", revision), []).append(name)
        elif hf_id and COMMIT_OF_HUB.fullmatch(revision):
            names.setdefault((hf_id, revision), []).append(name)
    return [
        f"models {' and '.join(map(repr, sorted(same)))} are the same weights, "
        f"{' at '.join(filter(None, weights))}: a cube holds a model once, under one name and in "
        "one number format. Leave one of them out, or keep it in a cube of its own (another --out)"
        for weights, same in names.items()
        if len(set(same)) > 1
    ]


def _model_problems(cube: xr.Dataset) -> list[str]:
    facts = (cube[name].values.tolist() for name in ("model", "hf_id", "revision"))
    problems = same_weights(zip(*facts, strict=True))
    architectures = zip(cube["model"].values, cube["architecture"].values, strict=True)
    wrong = {str(model): str(name) for model, name in architectures if name not in ARCHITECTURES}
    if wrong:
        problems.append(f"'architecture' of {wrong} is none of {', '.join(ARCHITECTURES)}")
    problems += name_violations("training", sorted(set(map(str, cube["training"].values))))
    if (cube["layer"] < 0).any():
        problems.append("'layer' has a negative label; layers count blocks from 0")
    n_params, n_active = cube["n_params"], cube["n_active_params"]
    if (cube["n_layers"] < 1).any() or not ((n_params > 0) & (n_params < np.inf)).all():
        problems.append("'n_layers' and 'n_params' must be positive and finite for every model")
    elif not ((n_active > 0) & (n_active <= n_params)).all():
        problems.append("'n_active_params' must be positive, and at most 'n_params'")
    elif not np.allclose(cube["depth"].transpose("model", "layer"), _depth(cube), equal_nan=True):
        problems.append("'depth' is not layer / n_layers, or not NaN beyond the last block")
    return problems


def _item_problems(cube: xr.Dataset) -> list[str]:
    ids, letters, valid = (
        cube[name].transpose("concept", "sample").values
        for name in ("item_id", "letter", "item_valid")
    )
    present = ids != ""
    problems = []
    named, count = np.unique(ids[present], return_counts=True)
    if (count > 1).any():
        problems.append(f"'item_id' must be unique across concepts; repeated: {named[count > 1]}")
    if (letters[present] == "").any():
        problems.append("'letter' is empty for an item that has an id")
    scored = np.isin(letters, SCORED_LETTERS)
    if (valid & ~scored).any():
        problems.append(f"'item_valid' is True where 'letter' is none of {SCORED_LETTERS}")
    for concept in cube["concept"].values[~present.any(axis=1)]:
        problems.append(f"concept {str(concept)!r} has no item")
    return problems


def _sample_problems(cube: xr.Dataset) -> list[str]:
    problems = []
    present = cube["item_id"] != ""
    status = cube["cell_status"]
    unknown = sorted(set(np.unique(status).tolist()) - set(STATUS.values()))
    if unknown:
        problems.append(f"'cell_status' holds {unknown}; it may hold {STATUS}")
    problems += [
        f"{name!r} has values at padding samples (those with no item_id)"
        for name in SAMPLE_VARIABLES
        if name in cube and (cube[name].notnull() & ~present).any()
    ]
    beyond = cube["layer"] >= cube["n_layers"]
    problems += [
        f"{name!r} has values at layers that the model does not have, in {_name_cells(outside)}"
        for name, variable in (SAMPLE_VARIABLES | VECTOR_VARIABLES | RECEIPT_VARIABLES).items()
        if name in cube and (outside := _recorded(cube[name]) & beyond).any()
    ]
    complete = _whole(cube["logit_diff"], present)
    sound = complete
    for name in CONTROLS:
        if name in cube:
            not_run = cube[name].isnull().all(("strength", "sample"))
            sound = sound & (_whole(cube[name], present) | not_run)
    recorded = _recorded(cube["logit_diff"])
    rules = {
        "complete, but values are missing": (status == STATUS["complete"]) & ~complete,
        "not run or not applicable, but has values": (
            status.isin([STATUS["not_run"], STATUS["not_applicable"]]) & recorded
        ),
        "nonfinite, but every value is finite": (status == STATUS["nonfinite"]) & sound,
        "applicable, but the model has no such layer": (
            (status != STATUS["not_applicable"]) & (cube["layer"] >= cube["n_layers"])
        ),
        "not applicable, but the model has the layer": (
            (status == STATUS["not_applicable"]) & (cube["layer"] < cube["n_layers"])
        ),
    }
    problems += [
        f"'cell_status' is {rule}, in {_name_cells(broken)}"
        for rule, broken in rules.items()
        if broken.any()
    ]
    if {"generation_valid", "generation_match"} <= set(cube.variables):
        answered = cube["generation_valid"] > 0
        if (answered & cube["generation_match"].isnull()).any():
            problems.append("'generation_match' is missing where 'generation_valid' is above 0")
    for name in (*CONTROLS, *NORMS):
        if name in cube and np.isinf(cube[name].where(status == STATUS["complete"])).any():
            problems.append(f"{name!r} is infinite in a complete cell")
    return problems


def _readout_problems(cube: xr.Dataset) -> list[str]:
    """Values outside their bounds, and log-probabilities that contradict each other."""
    matching, other, diff = (cube[name].transpose(*DIMS) for name in (*LOGPROBS, "logit_diff"))
    finite = np.isfinite(diff.values)
    bounded = [(cube[name], *bounds) for name, bounds in BOUNDS.items() if name in cube]
    bounded += [(values.where(finite), -np.inf, ROUNDING) for values in (matching, other)]
    problems = out_of_bounds(bounded)
    with np.errstate(invalid="ignore"):
        error = abs(diff - (matching - other))
        both = matching.copy(data=np.where(finite, np.logaddexp(matching, other), np.nan))
    if (error.where(finite) > ROUNDING).any() or (error.isnull() & finite).any():
        problems.append("'logit_diff' is not logprob_matching - logprob_other (to 1e-4 nat)")
    if (most := float(both.max())) > MAX_JOINT_LOGPROB:
        problems.append(
            "'logprob_matching' and 'logprob_other' belong to two answers that exclude each other, "
            f"but their probabilities add up to {np.exp(most):.3g}{_where(both, most)}"
        )
    return problems


def out_of_bounds(bounded: Iterable[tuple[xr.DataArray, float, float]]) -> list[str]:
    """The smallest and largest values that are outside their bounds (low, high), and where."""
    return [
        f"{values.name!r} must be in [{low:g}, {high:g}]; it is {value:g}{_where(values, value)}"
        for values, low, high in bounded
        for value in {float(values.min()), float(values.max())}
        if value < low or value > high
    ]


def _unsteered_problems(cube: xr.Dataset) -> list[str]:
    """Values at strength 0 that depend on the layer or the direction, though nothing is added."""
    if 0.0 not in cube["strength"].values:
        return []
    unsteered = cube.sel(strength=0.0)
    complete = (unsteered["cell_status"] == STATUS["complete"]) & (
        abs(unsteered["logit_diff"]) < np.inf
    )
    room = MAX_GAP_FLOAT32 if cube.attrs["dtype"] == "float32" else MAX_GAP_16_BITS
    problems = []
    for name in ("logit_diff", *LOGPROBS):
        values = unsteered[name].where(complete)
        gap = values - values.min("layer")
        if (most := float(gap.max())) > room:
            problems.append(
                f"{name!r} at strength 0 differs between layers of one model and concept, by "
                f"{most:.3g} nat{_where(gap, most)} (at most {room:g} is rounding): without "
                "steering there is one value for all layers"
            )
    for name in CONTROLS:
        if name in cube:
            gap = abs(unsteered[name].where(complete) - unsteered["logit_diff"])
            if (most := float(gap.max())) > room:
                problems.append(
                    f"{name!r} at strength 0 differs from 'logit_diff' there, by {most:.3g} nat"
                    f"{_where(gap, most)} (at most {room:g} is rounding): nothing is added there"
                )
    return problems


def _where(array: xr.DataArray, value: float) -> str:
    """First position of the value, as text to append to a message: " at model/concept/..."."""
    at = np.argwhere(array.values == np.asarray(value, dtype=array.dtype))[0]
    labels = [str(array[dim].values[i]) for dim, i in zip(array.dims, at, strict=True)]
    return f" at {'/'.join(labels)}"


def _recorded(values: xr.DataArray) -> xr.DataArray:
    """Mask of the cells that hold any value."""
    return values.notnull().any(set(values.dims) - set(CELL))


def _whole(values: xr.DataArray, present: xr.DataArray) -> xr.DataArray:
    """Mask of the cells in which every item has a finite value at every strength."""
    finite: xr.DataArray = xr.apply_ufunc(np.isfinite, values)
    return (finite | ~present).all(("strength", "sample"))


def _response_problems(cube: xr.Dataset) -> list[str]:
    if "response_text" not in cube:
        return []
    problems = [
        f"variable {name!r} is missing; each response needs {RESPONSE_VARIABLES[name].long_name}"
        for name in PLACE
        if name not in cube
    ]
    if not problems:
        problems = [
            f"{len(strays)} response(s) have a {dim} that the cube lacks, such as {strays[0]}"
            for dim in DIMS
            if len(strays := _strays(cube, dim))
        ]
    if not problems:
        problems = _misplaced_responses(cube)
    if not problems and "response_repeat" in cube:
        table = cube[[*PLACE, "response_repeat"]].to_dataframe()
        if twice := int(table.duplicated([*PLACE, "response_repeat"]).sum()):
            problems.append(f"{twice} response(s) are duplicated: same item, cell and repeat")
    return problems


def _misplaced_responses(cube: xr.Dataset) -> list[str]:
    """Responses to items that their concept lacks, or at layers that their model lacks."""
    place = {name: cube[name].values for name in PLACE}
    concept = cube.indexes["concept"].get_indexer(place["response_concept"])
    sample = cube.indexes["sample"].get_indexer(place["response_sample"])
    no_item = cube["item_id"].transpose("concept", "sample").values[concept, sample] == ""
    model = cube.indexes["model"].get_indexer(place["response_model"])
    no_layer = place["response_layer"] >= cube["n_layers"].values[model]
    return [
        f"{int(wrong.sum())} response(s) are {what}, such as "
        + "/".join(str(values[wrong][0]) for values in place.values())
        for what, wrong in {
            "to an item that their concept lacks": no_item,
            "at a layer that their model lacks": no_layer,
        }.items()
        if wrong.any()
    ]


def _strays(cube: xr.Dataset, dim: str) -> np.ndarray:
    """Labels of responses that are not labels of the cube's dimension `dim`."""
    labels, known = cube[f"response_{dim}"].values, cube[dim].values
    if dim == "layer":
        known = np.append(known, UNSTEERED)
    elif dim == "strength":
        labels, known = (values.astype("float32") for values in (labels, known))
    return labels[~np.isin(labels, known)]


def _name_cells(mask: xr.DataArray, *, at_most: int = 3) -> str:
    mask = mask.transpose(*CELL)
    named = [
        "/".join(str(mask[dim].values[i]) for dim, i in zip(CELL, where, strict=True))
        for where in np.argwhere(mask.values)[:at_most]
    ]
    rest = int(mask.sum()) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def merge_cubes(cubes: Sequence[xr.Dataset]) -> xr.Dataset:
    """One cube with every cell of `cubes`; where two hold the same cell they must agree.

    A recorded value replaces a missing one; a response that both hold is kept once. Raises
    ValueError that lists every variable whose recorded values differ, and where, inputs of the
    same name and ALIKE attributes that differ, and variables that are not in the contract.
    """
    if not cubes:
        raise ValueError("merging needs at least one cube")
    for cube in cubes:
        check_cube(cube)
    first, *others = cubes
    merged = first
    for other in others:
        merged = _merge_two(merged, other)
    check_cube(merged, what="the merged cube")
    return merged


def _merge_two(left: xr.Dataset, right: xr.Dataset) -> xr.Dataset:
    labels = {
        dim: _union(left.indexes[dim].tolist(), right.indexes[dim].tolist(), dim) for dim in DIMS
    }
    problems = [
        f"{name!r} is not a variable of the contract and cannot be merged: drop it from the cube"
        for name in sorted({*left.variables, *right.variables} - {*VARIABLES, *DIMS}, key=str)
    ]
    merged = xr.Dataset(coords=labels)
    for name, variable in VARIABLES.items():
        if name in RESPONSE_VARIABLES or not (name in left or name in right):
            continue
        one, two = (_spread(cube, name, variable, merged) for cube in (left, right))
        missing_one, missing_two = (
            _missing(array, name, cube, merged) for array, cube in ((one, left), (two, right))
        )
        conflict = ~missing_one & ~missing_two & (one != two)
        if conflict.any():
            problems.append(f"{name!r} differs at {int(conflict.sum())} place(s) held by both")
        merged[name] = one.where(~missing_one, two).assign_attrs(variable.attrs)
    responses, conflicts = _merge_responses(left, right)
    attrs, unlike = _merge_attrs(left, right)
    raise_if_any([*problems, *conflicts, *unlike], what="merging these cubes")
    merged["cell_status"] = _status_where_unrun(merged)
    merged["depth"] = _depth(merged)
    merged = merged.merge(responses)
    return merged.set_coords(list(COORDINATES)).assign_attrs(attrs)


def _union(left: list[Any], right: list[Any], dim: str) -> list[Any]:
    both = left + [label for label in right if label not in left]
    return both if dim in ("model", "concept") else sorted(both)


def _spread(cube: xr.Dataset, name: str, variable: Variable, over: xr.Dataset) -> xr.DataArray:
    """The variable on the labels of `over`, with its fill value where `cube` has none."""
    if name not in cube:
        return xr.DataArray(variable.full(over.sizes), coords={d: over[d] for d in variable.dims})
    labels = {dim: over[dim] for dim in variable.dims}
    array = cube[name].reset_coords(drop=True).transpose(*variable.dims)
    fill = STATUS["not_run"] if variable.flags else variable.fill
    return array.reindex(labels, fill_value=fill)


def _missing(array: xr.DataArray, name: str, cube: xr.Dataset, over: xr.Dataset) -> xr.DataArray:
    """Mask of values that `cube` lacks; a False counts as recorded only for an item it has."""
    variable = VARIABLES[name]
    if name in ITEM_VARIABLES:
        return _spread(cube, "item_id", VARIABLES["item_id"], over) == ""
    if variable.flags:
        return array.isin([STATUS["not_run"], STATUS["not_applicable"]])
    return array.isnull() if variable.kind == "f" else array == variable.fill


def _merge_responses(left: xr.Dataset, right: xr.Dataset) -> tuple[xr.Dataset, list[str]]:
    """Responses of both cubes without duplicates, and a line if any of them differ."""
    held = [
        cube[[name for name in RESPONSE_VARIABLES if name in cube]].reset_coords(drop=True)
        for cube in (left, right)
        if "response_text" in cube
    ]
    shared = [name for name in RESPONSE_VARIABLES if all(name in part for part in held)]
    if len(held) < 2:
        return (held[0] if held else xr.Dataset()), []
    joined = xr.concat([part[shared] for part in held], dim="response")
    table = joined.to_dataframe()[shared]
    table["number"] = np.concatenate([_repeat_numbers(part) for part in held])
    repeated = table.duplicated([*PLACE, "number"])
    differing = table[repeated & ~table.duplicated([*shared, "number"])]
    problems = []
    if n := len(differing):
        first = "/".join(str(value) for value in differing.iloc[0][list(PLACE)])
        problems.append(f"'response_text' differs in {n} response(s), first at {first}")
    return joined.isel(response=np.flatnonzero(~repeated)), problems


def _repeat_numbers(responses: xr.Dataset) -> np.ndarray:
    """Number of each response among those to its item in its cell; by order if not recorded."""
    if "response_repeat" in responses:
        return responses["response_repeat"].values
    return responses[list(PLACE)].to_dataframe().groupby(list(PLACE)).cumcount().to_numpy()


def _merge_attrs(left: xr.Dataset, right: xr.Dataset) -> tuple[dict[str, Any], list[str]]:
    """Attributes of both, and a line for each difference that forbids merging them.

    Equal lines of an attribute are kept once and others joined, so that no provenance is lost.
    """
    merged = dict(left.attrs)
    for name, value in right.attrs.items():
        if isinstance(merged.get(name), str) and isinstance(value, str):
            lines = dict.fromkeys([*merged[name].split("\n"), *value.split("\n")])
            merged[name] = "\n".join(lines)
        else:
            merged.setdefault(name, value)
    merged.pop(netcdf.DIGEST, None)
    same_model = bool(set(left["model"].values.tolist()) & set(right["model"].values.tolist()))
    unlike = [
        f"{name!r} is {left.attrs[name]!r} in one and {right.attrs[name]!r} in the other"
        for name in (*ALIKE, *(ALIKE_OF_A_MODEL if same_model else ()))
        if not _alike(left.attrs[name], right.attrs[name])
    ]
    one, two = _inputs(left), _inputs(right)
    if one is None or two is None:
        return merged, unlike
    unlike += [
        f"the input {name!r} is {one[name]!r} in one and {two[name]!r} in the other"
        for name in sorted(one.keys() & two.keys())
        if one[name] != two[name]
    ]
    return merged | {"inputs_sha256": json.dumps(one | two, sort_keys=True)}, unlike


def _alike(one: str, two: str) -> bool:
    """Whether the lines of one are a subset of the other's; a merged cube has the lines of both."""
    lines, others = (set(str(text).split("\n")) for text in (one, two))
    return lines <= others or others <= lines


def _inputs(cube: xr.Dataset) -> dict[str, str] | None:
    """SHA-256 of each input by its name; None where a cube made by hand has it in another form."""
    try:
        inputs = json.loads(cube.attrs["inputs_sha256"])
    except ValueError:
        return None
    return inputs if isinstance(inputs, dict) else None


def summarise_cube(cube: xr.Dataset) -> str:
    """Readable summary: models, concepts, layers, coverage, missing cells."""
    status = cube["cell_status"]
    lines = [
        f"{cube.attrs.get('title', 'A steering cube')}",
        f"  strengths {', '.join(f'{s:+g}' for s in cube['strength'].values)}; "
        f"steered at {cube.attrs.get('positions_steered', '?')}; "
        f"{cube.attrs.get('layer_convention', '?')}",
        "",
        f"  {'model':<12}{'training':<11}{'blocks':>7}  {'layers swept':<14}complete",
    ]
    for model in cube["model"].values:
        of_model = status.sel(model=model)
        swept = cube["layer"].values[(of_model == STATUS["complete"]).any("concept")]
        span = f"{swept.min()}-{swept.max()} ({len(swept)})" if len(swept) else "none"
        complete = int((of_model == STATUS["complete"]).sum())
        facts = cube.sel(model=model)
        lines.append(
            f"  {model:<12}{facts['training'].item():<11}{facts['n_layers'].item():>7}  "
            f"{span:<14}{complete} cells"
        )
    lines += ["", f"  {'concept':<28}{'items':>6}{'valid':>7}"]
    for concept in cube["concept"].values:
        of_concept = cube.sel(concept=concept)
        n_items = int((of_concept["item_id"] != "").sum())
        lines.append(f"  {concept:<28}{n_items:>6}{int(of_concept['item_valid'].sum()):>7}")
    lines += ["", *(_missing_lines(cube) or ["  no model x concept is missing"])]
    lines += _one_letter_lines(cube)
    if "response_text" in cube:
        lines.append(f"  {cube.sizes['response']} generated responses with their text")
    if "generation_valid" in cube:
        share = float(cube["generation_valid"].mean())
        lines.append(f"  generated answers are valid in {share:.0%} of cells and items")
    if "generation_logit_apart" in cube:
        lines.append(
            "  the first generated position is within "
            f"{float(cube['generation_logit_apart'].max()):.1g} nat of the logit sweep"
        )
    return "\n".join(lines)


def _one_letter_lines(cube: xr.Dataset) -> list[str]:
    """Warnings for models that choose the same letter in every item of a concept."""
    if UNSTEERED_STRENGTH not in cube["strength"].values:
        return []
    every = cube["logit_diff"].sel(strength=UNSTEERED_STRENGTH).transpose(*CELL, "sample")
    unsteered = every.max("layer")  # the same at every layer that was swept
    lines = []
    for concept in cube["concept"].values:
        letters = cube["letter"].sel(concept=concept)
        scored = letters.isin(SCORED_LETTERS)
        matches_a = (letters == SCORED_LETTERS[0]).where(scored)
        for model in cube["model"].values:
            diff = unsteered.sel(model=model, concept=concept).where(scored)
            known = diff.notnull()
            chooses_a = ((diff > 0) == (matches_a == 1)).values[known.values]
            if len(chooses_a) and len(np.unique(letters.values[known.values])) > 1:
                share = chooses_a.mean()
                if share in (0, 1):
                    letter = SCORED_LETTERS[0 if share else 1]
                    lines.append(
                        f"  warning: {model} prefers ({letter}) in all {len(chooses_a)} items of "
                        f"{concept} without steering; an effect there may be a letter bias"
                    )
    return lines


def _missing_lines(cube: xr.Dataset) -> list[str]:
    status = cube["cell_status"]
    lines = []
    for name in ("failed", "nonfinite"):
        broken = status == STATUS[name]
        if broken.any():
            lines.append(f"  {name}: {_name_cells(broken)}")
    for model in cube["model"].values:
        unrun = (status.sel(model=model) != STATUS["complete"]).all("layer")
        concepts = cube["concept"].values[unrun.values]
        if len(concepts):
            lines.append(f"  never run with logits: {model} x {', '.join(concepts)}")
    return lines


@xr.register_dataset_accessor("steercube")  # type: ignore[no-untyped-call]  # xarray's own
class _Summary:
    """`cube.steercube` at a Python prompt prints the summary of the cube."""

    def __init__(self, cube: xr.Dataset) -> None:
        self._cube = cube

    def __repr__(self) -> str:
        return summarise_cube(self._cube)
