"""The plan of a collection: layers, strengths, positions, items, outcomes, directions."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from steercube.contract import LETTER, MIN_STRENGTH_GAP
from steercube.schema import raise_if_any
from steercube.streams import SEED
from steercube.words import did_you_mean

__all__ = ["CONVENTIONS", "POSITIONS", "Plan", "layers_of"]

POSITIONS = {"all": "every position", "answer": "the positions after the user's turn"}
"""Where vectors are added."""
CONVENTIONS = {
    "same": "vector read at the output of block L, added at its output",
    "study": "vector read at the input of block L, added at its output",
}
"""Where a vector is read and added; the study's is off by one block."""
RANDOM, SHUFFLED = "random", "shuffled"
DRAWN = (RANDOM, SHUFFLED)
CONTROLS = (*DRAWN, LETTER)
"""Families of directions to compare a concept's vector with; those in DRAWN may have several."""
MIN_TEMPERATURE = 1e-3
"""Temperatures between 0 and this are refused: they would be greedy decoding, up to rounding."""
OUTCOMES = ("logit", "generation")
"""What can be measured: log-probabilities of the two answers, and generated answers."""


@dataclass(frozen=True)
class Plan:
    """What to sweep. `layers`, here and of controls and generation, is as in `layers_of`.

    `strengths` multiply the vector; 0 is always among them. `controls` are families of CONTROLS,
    with a number for those in DRAWN: `random:19`. Controls and generation use the same layers,
    strengths and items as the sweep unless their own are given. `n_pairs`, `n_items`,
    `control_items` and `generation_samples` keep the first few; None keeps all. `chunk` is the
    number of items in a shard; where weights are on disk each chunk reads them all, so make it
    large. `max_rows` bounds the rows in one forward pass, and does not change the result; 0
    chooses by device.
    """

    strengths: tuple[float, ...] = (-1.0, 0.0, 1.0)
    layers: str = "0.33:1.0"
    positions: str = "all"
    convention: str = "same"
    controls: tuple[str, ...] = ()
    control_layers: str = ""
    control_items: int | None = None
    n_pairs: int | None = None
    n_items: int | None = None
    chunk: int = 20
    max_rows: int = 0
    seed: int = SEED
    outcomes: tuple[str, ...] = ("logit",)
    generation_layers: str = ""
    generation_strengths: tuple[float, ...] = ()
    generation_samples: int | None = None
    max_new_tokens: int = 32
    temperature: float = 0.0
    repeats: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be swept; strength 0 is always added."""
        object.__setattr__(self, "strengths", tuple(sorted({0.0, *map(float, self.strengths)})))
        problems = [
            f"{name} = {value!r} is none of {', '.join(allowed)}{did_you_mean(value, allowed)}"
            for name, value, allowed in (
                ("positions", self.positions, tuple(POSITIONS)),
                ("convention", self.convention, tuple(CONVENTIONS)),
                *(("controls", family_of(control), CONTROLS) for control in self.controls),
                *(("outcomes", outcome, OUTCOMES) for outcome in self.outcomes),
            )
            if value not in allowed
        ]
        if len(self.strengths) < 2 or not np.isfinite(self.strengths).all():
            problems.append(f"strengths = {self.strengths}: give finite ones, at least one not 0")
        problems += [
            f"strengths = {one}, {other}: practically equal; keep one of them, or choose strengths "
            f"that differ by at least {MIN_STRENGTH_GAP} (0 is always one of them)"
            for one, other in pairwise(self.strengths)
            if other - one < MIN_STRENGTH_GAP
        ]
        if self.chunk < 1 or self.max_rows < 0 or self.max_rows == 1:
            problems.append(
                f"chunk = {self.chunk}, max_rows = {self.max_rows}: chunk at least 1, max_rows "
                "0 or at least 2 (a prompt and its steered copy)"
            )
        for name in ("n_pairs", "n_items", "generation_samples", "control_items"):
            if (value := getattr(self, name)) is not None and value < 2:
                problems.append(f"{name} = {value}: at least 2")
        families = [family_of(control) for control in self.controls]
        if len(set(families)) < len(families) or self.seed < 0:
            problems.append(
                f"controls = {self.controls}, seed = {self.seed}: no control twice, seed at least 0"
            )
        problems += [
            f"controls = {control!r}: write a family and how many of it, such as random:19; "
            f"{LETTER} has one"
            for control in self.controls
            if not _number_of(control)
        ]
        raise_if_any([*problems, *self._generation_problems()], what="the plan")

    def _generation_problems(self) -> list[str]:
        problems = []
        if not self.outcomes or len(set(self.outcomes)) < len(self.outcomes):
            problems.append(f"outcomes = {self.outcomes}: one or both of {', '.join(OUTCOMES)}")
        if self.generation_strengths and (
            not set(self.generation_strengths) <= set(self.strengths)
            or not any(self.generation_strengths)
        ):
            problems.append(
                f"generation_strengths = {self.generation_strengths}: must be some of the "
                f"strengths that are swept, {self.strengths}, not 0 alone"
            )
        if (
            self.max_new_tokens < 1
            or not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < np.inf)
            or self.repeats < 1
        ):
            problems.append(
                f"max_new_tokens = {self.max_new_tokens}, temperature = {self.temperature}, "
                f"repeats = {self.repeats}: at least 1, temperature 0 or at least {MIN_TEMPERATURE}"
            )
        elif self.repeats > 1 and not self.temperature:
            problems.append(
                f"repeats = {self.repeats} at temperature 0: all answers would be the same"
            )
        return problems

    @property
    def directions(self) -> list[str]:
        """Names of the controls' directions, such as random/0, random/1, letter."""
        return [
            f"{family_of(control)}/{i}" if family_of(control) in DRAWN else control
            for control in self.controls
            for i in range(_number_of(control))
        ]

    @property
    def generated(self) -> tuple[float, ...]:
        """The strengths at which answers are generated, without 0."""
        return tuple(sorted(set(self.generation_strengths) - {0.0})) or self.steered

    @property
    def steered(self) -> tuple[float, ...]:
        """The strengths without 0."""
        return tuple(strength for strength in self.strengths if strength != 0)

    @property
    def largest(self) -> float:
        """The strength of largest absolute value."""
        return max(self.strengths, key=abs)


def family_of(control: str) -> str:
    """The family of a control as the plan writes it, without its number.

    >>> family_of("random:19")
    'random'
    """
    return control.partition(":")[0]


def _number_of(control: str) -> int:
    """How many directions a control asks for; 0 if its number is malformed."""
    family, _, number = control.partition(":")
    if family == LETTER:
        return 0 if number else 1
    return int(number or 1) if (number or "1").isdecimal() else 0


def layers_of(selection: str, n_layers: int) -> list[int]:
    """The layers that a selection names, increasing; a range includes both ends.

    `all`; `12,18,24`; `12:24` (layers); `0.33:1.0` (depths, layer / n_layers); `0.33:1.0:3` (every
    third of them). Raises ValueError for a selection that is malformed or not within the model.

    >>> layers_of("0.33:1.0", 12), layers_of("2:4", 12), layers_of("0,11", 12)
    ([4, 5, 6, 7, 8, 9, 10, 11], [2, 3, 4], [0, 11])
    """
    every = range(n_layers)
    try:
        if selection == "all":
            chosen = list(every)
        elif ":" in selection:
            low, high, *step = selection.split(":")
            unit = n_layers if "." in low + high else 1
            if len(step) > 1:
                raise ValueError
            within = [layer for layer in every if float(low) <= layer / unit <= float(high)]
            chosen = within[:: int(step[0]) if step else 1]
        else:
            chosen = sorted({int(layer) for layer in selection.split(",")})
    except ValueError:
        chosen = []
    if not chosen or not set(chosen) <= set(every):
        raise ValueError(
            f"layers {selection!r} select none, or some that are not among the {n_layers} blocks "
            "(counted from 0). Write all, 12,18,24 or 12:24, or depths as 0.33:1.0."
        )
    return chosen
