"""The plan of a collection: which layers, strengths, positions, items and outcomes."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from steercube.collect.sweep import POSITIONS
from steercube.collect.vectors import CONVENTIONS, DIRECTIONS
from steercube.schema import raise_if_any
from steercube.streams import SEED
from steercube.words import did_you_mean

CONTROLS = DIRECTIONS[1:]
MIN_STRENGTH_GAP = 1e-4
"""Strengths that are closer are taken for one strength written twice."""
MIN_TEMPERATURE = 1e-3
"""A smaller temperature is greedy decoding, up to rounding."""
OUTCOMES = ("logit", "generation")
"""What can be measured: log-probabilities of the two answers, and generated answers."""


@dataclass(frozen=True)
class Plan:
    """What to sweep. `layers` is a selection (see `layers_of`).

    `chunk` is items per shard; with weights on disk each chunk reads them all, so make it large.
    `max_rows` bounds the rows in one pass; 0 chooses by device. The result does not depend on it.
    Generation uses the same layers, strengths and items unless its own are given.
    """

    strengths: tuple[float, ...] = (-1.0, 0.0, 1.0)
    layers: str = "0.33:1.0"
    positions: str = "all"
    convention: str = "same"
    controls: tuple[str, ...] = ()
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
                *(("controls", control, CONTROLS) for control in self.controls),
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
        for name in ("n_pairs", "n_items", "generation_samples"):
            if (value := getattr(self, name)) is not None and value < 2:
                problems.append(f"{name} = {value}: at least 2")
        if len(set(self.controls)) < len(self.controls) or self.seed < 0:
            problems.append(
                f"controls = {self.controls}, seed = {self.seed}: no control twice, seed at least 0"
            )
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
    def generated(self) -> tuple[float, ...]:
        """The strengths of generation, without 0."""
        return tuple(sorted(set(self.generation_strengths) - {0.0})) or self.steered

    @property
    def steered(self) -> tuple[float, ...]:
        """The strengths without 0."""
        return tuple(strength for strength in self.strengths if strength != 0)

    @property
    def largest(self) -> float:
        """The strength of largest absolute value."""
        return max(self.strengths, key=abs)


def layers_of(selection: str, n_layers: int) -> list[int]:
    """The layers that a selection names; a range includes both ends.

    `all`; `12,18,24`; `12:24` (layers); `0.33:1.0` (depths, layer / n_layers); `0.33:1.0:3` (every
    third of them).

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
