"""The contract of a cube: its variables, dimensions, attributes and bounds (`steercube.cube`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steercube.measures import CELL, LOGIT_DIFF, MEASURES, SAMPLES, Measure
from steercube.schema import Variable

__all__ = ["GIVEN_ATTRIBUTES", "STATUS", "Item", "Model"]

SCHEMA_VERSION = 2
CONTRACT: dict[str, Any] = {"Conventions": "CF-1.11, ACDD-1.3", "schema_version": SCHEMA_VERSION}
"""Attributes of every cube."""
DIMS = ("direction", "model", "concept", "layer", "strength", "sample", "reading")
LABELS = dict(zip(DIMS, "UUUifiU", strict=True))
"""Kind of the labels of each dimension: U is text, i integers, f floats."""
OF_EVERY_GRID = ("model", "concept", "strength")
"""Dimensions that no grid may lack."""
STATUS = {"not_applicable": 0, "not_run": 1, "complete": 2, "failed": 3, "nonfinite": 4}
"""Values of `cell_status`: what became of each (model, concept, layer)."""
ARCHITECTURES = ("dense", "moe")
SCORED_LETTERS = ("A", "B")
LETTER = "letter"
"""Name of the direction of the letters: mean residual stream at (A) minus that at (B)."""
RESPONSES, VECTORS = "responses", "vectors"
"""Names of the tables beside the grids."""
MODEL_VARIABLES = {
    "n_layers": Variable(("model",), "i", "number of decoder blocks", "1"),
    "n_params": Variable(("model",), "f", "total parameters", "1"),
    "n_active_params": Variable(("model",), "f", "parameters active per token", "1"),
    "training": Variable(("model",), "U", "training method"),
    "architecture": Variable(("model",), "U", "dense or mixture of experts"),
    "family": Variable(("model",), "U", "model family"),
    "hf_id": Variable(("model",), "U", "Hugging Face id"),
    "revision": Variable(("model",), "U", "commit of the weights, empty where unrecorded"),
}
ITEM_VARIABLES = {
    "item_id": Variable(("concept", "sample"), "U", "item, unique across concepts"),
    "letter": Variable(("concept", "sample"), "U", "letter of the matching answer", required=False),
    "item_valid": Variable(
        ("concept", "sample"), "b", "matching answer is a scored letter, of two choices"
    ),
}
SHARED = MODEL_VARIABLES | ITEM_VARIABLES
"""Facts of models and items, which the grids of a cube share; a file holds them once."""
DEPTH = Variable(("model", "layer"), "f", "layer / number of layers", "1")
CELL_STATUS = Variable(
    CELL, "i", "outcome of the sweep here", required=False, flags=STATUS, dtype="int8"
)
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
    "letter_cosine": Variable(
        CELL, "f", "cosine of the vector and the letter's direction", "1", required=False
    ),
}
RESPONSE_VARIABLES = {
    "text": Variable(("response",), "U", "generated response", required=False),
    "model": Variable(("response",), "U", "its model", required=False),
    "concept": Variable(("response",), "U", "its concept", required=False),
    "direction": Variable(
        ("response",), "U", "its direction, if not its concept's own", required=False
    ),
    "layer": Variable(
        ("response",), "i", "its layer; -1 where one unsteered response serves all", required=False
    ),
    "strength": Variable(("response",), "f", "its strength", required=False),
    "sample": Variable(("response",), "i", "its sample", required=False),
    "repeat": Variable(
        ("response",), "i", "which of the cell's responses to the item", required=False
    ),
    "finished": Variable(
        ("response",), "b", "it ended by itself, not at the limit of tokens", required=False
    ),
    "finite": Variable(
        ("response",), "b", "its logits were finite; else it is no answer at all", required=False
    ),
}
PLACE = ("model", "concept", "layer", "strength", "sample")
"""What a response is to: its cell, strength and item. `repeat` numbers several to the same."""
UNSTEERED_STRENGTH = 0.0
UNSTEERED = -1
"""`layer` of an unsteered response, which is the same for every layer and is held once."""
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
UNKNOWN = "not recorded"
"""An attribute that nobody wrote down."""
NORMS = ("vector_norm", "residual_norm")
LOGPROBS = ("logprob_matching", "logprob_other")
COSINES = ("split_half_cosine", "pairwise_cosine", "letter_cosine")
ROUNDING = 1e-4
"""How far (nats, or shares) rounding to float32 may take a value beyond its bounds."""
AT_LEAST_0 = (
    *(*NORMS, "rows_touched", "positions_touched", "added_over_residual"),
    *("generation_positions_touched", "generation_logit_apart", "generation_n_prompts"),
)
BOUNDS = (
    dict.fromkeys(AT_LEAST_0, (0.0, np.inf))
    | dict.fromkeys(("generation_valid", "generation_valid_rate"), (0.0, 1.0))
    | dict.fromkeys(COSINES, (-1 - ROUNDING, 1 + ROUNDING))
)
MAX_JOINT_LOGPROB = 0.01
"""Nats by which the two answers' joint log-probability may exceed 0: bfloat16 rounds to 0.004."""
MAX_GAP_FLOAT32, MAX_GAP_16_BITS = 1e-3, 0.5
"""Largest difference, in nats, of two computations of one unsteered value. In 16 bits, logits
near 20 are multiples of 1/8, and a logit difference has the rounding of two logits."""
MIN_ITEMS = 10
"""Fewest items for which a bootstrap is meaningful; with fewer, statistics are NaN."""
MIN_STRENGTH_GAP = 1e-4
"""Strengths closer than this are the same strength up to rounding."""
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
    """One evaluation item of a concept: its id and the letter of the matching answer.

    It is `valid` if it offers two choices and the matching one is a scored letter.
    """

    item_id: str
    letter: str
    valid: bool = True


NAMES_IN_A_GRID = {
    *("cell_status", *DIMS, *MEASURES),
    *(column for measure in MEASURES.values() for column in measure.columns),
}
"""What a family of directions cannot be called: its group stands beside these variables."""
NAMES_OF_TABLES = {
    *(RESPONSES, VECTORS),
    *("generation", "item_fits", "changes", "readers", "answer_models"),
}
"""Tables beside the grids, of a cube or of its cells."""
NAMES_IN_A_FILE = {*NAMES_IN_A_GRID, *NAMES_OF_TABLES, "depth", *SHARED}
"""What a user's measure cannot be called."""


def measure_name(path: str) -> str:
    """The measure that the path of a grid names.

    >>> measure_name("logit_diff/random")
    'logit_diff'
    """
    return path.partition("/")[0]


def family_of(direction: str) -> str:
    """The family of a direction, whose members share a grid.

    >>> family_of("random/3"), family_of("letter")
    ('random', 'letter')
    """
    return direction.partition("/")[0]


def own_name(family: str) -> str:
    """The label of a concept's own vector among the directions of a family in the cells.

    >>> own_name("random")
    'random/own'
    """
    return f"{family}/own"


def variables_of(measure: Measure, dims: Sequence[str]) -> dict[str, Variable]:
    """The variables, by name, that the grid of a measure may hold if its values have `dims`.

    These are the measure itself, its columns, `cell_status`, and the facts of models and items. In
    a grid with directions none but the measure is required of the measure's own variables.
    """
    cell = tuple(dim for dim in dims if dim in ("direction", *CELL))
    dtype = "float32" if "sample" in dims else ""
    own = Variable(tuple(dims), "f", measure.attrs["long_name"], measure.units, dtype=dtype)
    held = {measure.name: own}
    status = replace(CELL_STATUS, required=measure.name == LOGIT_DIFF.name)
    for name, column in ({**measure.columns, "cell_status": status}).items():
        of = {(SAMPLES,): tuple(dims), CELL: cell}.get(column.dims, column.dims)
        held[name] = replace(column, dims=of, required=column.required and "direction" not in dims)
    return held | {name: v for name, v in SHARED.items() if set(v.dims) <= set(dims)}
