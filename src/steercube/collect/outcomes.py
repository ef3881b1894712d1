"""What all outcomes of a unit share: chunks of items with a shard for each, settings, checks.

An outcome is one kind of measurement of a model x concept: log-probabilities of the answers
(`logits`), the same for other directions, or full responses (`answers`). It owns its settings, how
its shards are made, and how they become grids of the cube, so that the code that runs, resumes and
consolidates treats all outcomes alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from steercube.collect.hooks import Cell, Touched
from steercube.collect.readout import Prompt
from steercube.collect.shards import has_shard, save_shard
from steercube.collect.sweep import Progress
from steercube.collect.unit import Unit
from steercube.concepts import Question
from steercube.replacing import Extent
from steercube.schema import raise_if_any


class Outcome(Protocol):
    """One kind of measurement of a unit; `items` are indices into the concept's evaluation."""

    @property
    def unit(self) -> Unit:
        """The model x concept that is measured."""

    @property
    def kind(self) -> str:
        """The beginning of its shards' file names, a key of `consolidate.TABLES_OF`."""

    @property
    def items(self) -> list[int]:
        """The items that it measures."""

    @property
    def n_rows(self) -> int:
        """Rows per item, the unsteered one included."""

    @property
    def extents(self) -> dict[str, Extent]:
        """By path of a grid, the labels at which the cube will hold values of this unit."""

    @property
    def grids(self) -> dict[str, dict[str, Any]]:
        """By path of a grid, the strengths and settings that must be equal in all units."""

    def settings(self, items: Sequence[int], vectors: xr.Dataset) -> dict[str, Any]:
        """The settings that the values of a shard of these items depend on."""

    def length(self, item: int) -> int:
        """Tokens of the item's prompt."""

    def make(
        self, items: Sequence[int], vectors: xr.Dataset, *, max_rows: int, progress: Progress
    ) -> tuple[xr.Dataset, int]:
        """The shard of these items, and the largest number of rows that fitted in one pass."""

    def check(self, vectors: xr.Dataset) -> str:
        """Compare with the plain loop; a line on the difference, ValueError if it is too large."""


def chunks(outcome: Outcome) -> dict[tuple[int, ...], Path]:
    """The file of each shard, by the items in it.

    Items are cut in order of their prompts' length, so that those of a chunk need little padding.
    """
    size, folder = outcome.unit.plan.chunk, outcome.unit.folder
    by_length = sorted(outcome.items, key=lambda item: (outcome.length(item), item))
    cut = [tuple(by_length[start : start + size]) for start in range(0, len(by_length), size)]
    return {chunk: folder / f"{outcome.kind}-{at:04d}.nc" for at, chunk in enumerate(cut)}


def pending(
    outcome: Outcome, wanted: Sequence[tuple[int, ...]], vectors: xr.Dataset
) -> list[tuple[int, ...]]:
    """The chunks of `wanted` whose shard is missing or damaged.

    Raises ValueError for shards that were made with other settings or hold other chunks.
    """
    files = chunks(outcome)
    strays = set(outcome.unit.folder.glob(f"{outcome.kind}-*.nc")) - set(files.values())
    raise_if_any(
        [f"{path} belongs to another division" for path in sorted(strays)],
        what=f"dividing {len(outcome.items)} items into shards of {outcome.unit.plan.chunk} (use "
        "the earlier --chunk and number of items, choose another --out, or delete those shards)",
    )
    return [
        chunk for chunk in wanted if not has_shard(files[chunk], outcome.settings(chunk, vectors))
    ]


def save_chunk(
    outcome: Outcome,
    chunk: tuple[int, ...],
    vectors: xr.Dataset,
    *,
    max_rows: int,
    progress: Progress,
) -> int:
    """Measure the items of `chunk` and save their shard; return how many rows fitted in a pass."""
    shard, max_rows = outcome.make(chunk, vectors, max_rows=max_rows, progress=progress)
    if not outcome.unit.decoder.rank.speaks:
        return max_rows
    save_shard(
        shard,
        chunks(outcome)[chunk],
        outcome.settings(chunk, vectors),
        **outcome.unit.described,
        samples=outcome.items,
        grids=outcome.grids,
    )
    return max_rows


def extent(
    unit: Unit,
    items: Sequence[int],
    layers: Sequence[int],
    steered: Sequence[float],
    directions: Sequence[str] = (),
) -> Extent:
    """The extent of a unit in a grid; strength 0 is always part of it."""
    ids = {unit.concept.evaluation[i].item.item_id for i in items}
    return Extent(set(directions), set(layers), {0.0, *steered}, ids)


def first_items(unit: Unit, at_most: int | None) -> list[int]:
    """The first items of the concept, balanced by matching letter."""
    concept = unit.concept
    kept = concept.cut_to(n_pairs=None, n_items=at_most).evaluation
    ids = {question.id for question in kept}
    return [i for i, question in enumerate(concept.evaluation) if question.id in ids]


def questions_of(unit: Unit, items: Sequence[int]) -> list[Question]:
    """The evaluation items of these indices."""
    return [unit.concept.evaluation[i] for i in items]


def shortest_and_longest(unit: Unit, items: Sequence[int]) -> list[Question]:
    """The items with the shortest and longest prompt, to check padding and long contexts too."""
    questions = questions_of(unit, items)
    by_length = sorted(questions, key=lambda question: len(question.prompt))
    return [by_length[0], by_length[-1]] if len(by_length) > 1 else by_length


def outermost(
    unit: Unit, vectors: xr.Dataset, layers: Sequence[int], strength: float
) -> list[Cell]:
    """The steered copies at the first and the last layer."""
    return unit.cells(vectors, sorted({layers[0], layers[-1]}), [strength])


def with_unsteered(values: np.ndarray, grid: Mapping[str, Sequence[Any]]) -> xr.DataArray:
    """Values (1 + cells, sample, ...) as an array with dims and labels of `grid`, and strength 0.

    The first of `values` is unsteered; it is repeated for every other label of the cells. In `grid`
    the dims of cells come first, in the cells' order, then `sample` and what follows it.
    """
    steered = xr.DataArray(values[1:].reshape([len(x) for x in grid.values()]), grid, list(grid))
    of_samples = list(grid)[list(grid).index("sample") :]
    zero = xr.DataArray(values[0], {d: grid[d] for d in of_samples}, of_samples)
    unsteered = zero.expand_dims({d: x for d, x in grid.items() if d not in of_samples})
    unsteered = unsteered.isel(strength=[0]).assign_coords(strength=[0.0])
    return xr.concat([steered, unsteered], dim="strength").sortby("strength")


def receipts(touched: Mapping[int, Touched], layers: Sequence[int]) -> dict[str, Any]:
    """Counts of what the hooks changed, and |added| / |residual|, as variables with dim layer."""
    every = [touched[layer] for layer in layers]
    return {
        "rows_touched": ("layer", [float(one.rows) for one in every]),
        "positions_touched": ("layer", [float(one.positions) for one in every]),
        "added_over_residual": ("layer", [one.ratio for one in every]),
    }


def prompts_of(unit: Unit, questions: Sequence[Question]) -> list[Prompt]:
    """The prompts of these items, up to where the letter is read."""
    return [unit.readout.prompt(question.prompt) for question in questions]
