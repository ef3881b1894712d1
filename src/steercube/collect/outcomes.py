"""The two outcomes measured for a unit, in chunks: log-probabilities of answers, full responses.

Both have the same interface, so that the code that runs, resumes and consolidates them need not
know which is which: items, the shards that these are cut into, the settings that a shard is made
with, how to make one, and a comparison with the plain loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.collect.generate import (
    NONFINITE,
    Decoding,
    Generated,
    check_generation_against_plain_loop,
    generate,
)
from steercube.collect.hooks import Cell, Touched
from steercube.collect.plan import layers_of
from steercube.collect.readout import Prompt
from steercube.collect.shards import ALIKE_WHERE_GENERATED, find_shard, save_shard
from steercube.collect.sweep import Progress, Swept, check_against_plain_loop, sweep
from steercube.collect.unit import Unit, sha256_of
from steercube.concepts import Question
from steercube.cube import UNSTEERED
from steercube.replacing import Extent
from steercube.schema import raise_if_any
from steercube.streams import stream


class Outcome(Protocol):
    """One kind of measurement of a unit; `items` are indices into the concept's evaluation."""

    @property
    def unit(self) -> Unit:
        """The model x concept that is measured."""

    @property
    def name(self) -> str:
        """How the names of its shards begin, one of `shards.SHARD_KINDS`."""

    @property
    def items(self) -> list[int]:
        """The items that it measures."""

    @property
    def extent(self) -> Extent:
        """The layers, strengths and items that a cube will hold of it."""

    @property
    def n_cells(self) -> int:
        """Rows per item, the unsteered one included."""

    @property
    def shared_settings(self) -> dict[str, Any]:
        """Settings of all its shards, which decide what other shards can be in the same cube."""

    def settings(self, items: Sequence[int], vectors: xr.Dataset) -> dict[str, Any]:
        """The settings that the values of a shard of these items depend on."""

    def make(
        self, items: Sequence[int], vectors: xr.Dataset, *, max_rows: int, progress: Progress
    ) -> tuple[xr.Dataset, int]:
        """The shard of these items, and how many rows fitted into a pass."""

    def check(self, vectors: xr.Dataset) -> str:
        """A line on a comparison with the plain loop; ValueError if they differ."""


def outcomes_of(unit: Unit) -> list[Outcome]:
    """The outcomes that the unit's plan asks for."""
    by_name: dict[str, Outcome] = {"logit": LogitSweep(unit), "generation": Generation(unit)}
    return [by_name[name] for name in unit.plan.outcomes]


def chunks(outcome: Outcome) -> dict[tuple[int, ...], Path]:
    """The file of each shard, by the items in it."""
    items, size = outcome.items, outcome.unit.plan.chunk
    cut = [tuple(items[start : start + size]) for start in range(0, len(items), size)]
    folder, name = outcome.unit.folder, outcome.name
    return {chunk: folder / f"{name}-{chunk[0]:04d}-{chunk[-1]:04d}.nc" for chunk in cut}


def pending(
    outcome: Outcome, wanted: Sequence[tuple[int, ...]], vectors: xr.Dataset
) -> list[tuple[int, ...]]:
    """The chunks of `wanted` whose shard is missing or damaged.

    Raises ValueError for shards that were made with other settings, or cut into other chunks.
    """
    files = chunks(outcome)
    strays = set(outcome.unit.folder.glob(f"{outcome.name}-*.nc")) - set(files.values())
    raise_if_any(
        [f"{path} is not one of these shards" for path in sorted(strays)],
        what=f"cutting {len(outcome.items)} items into shards of {outcome.unit.plan.chunk} "
        "(use the earlier --chunk and numbers of items, another --out, or delete the others)",
    )
    return [
        chunk
        for chunk in wanted
        if find_shard(files[chunk], outcome.settings(chunk, vectors)) is None
    ]


def save_chunk(
    outcome: Outcome,
    chunk: tuple[int, ...],
    vectors: xr.Dataset,
    *,
    max_rows: int,
    progress: Progress,
) -> int:
    """Measure the items of `chunk` and save their shard; returns how many rows fit a pass."""
    shard, max_rows = outcome.make(chunk, vectors, max_rows=max_rows, progress=progress)
    save_shard(
        shard,
        chunks(outcome)[chunk],
        outcome.settings(chunk, vectors),
        **outcome.unit.described,
        samples=outcome.items,
    )
    return max_rows


def _extent(
    unit: Unit, items: Sequence[int], layers: Sequence[int], steered: Sequence[float]
) -> Extent:
    ids = {unit.concept.evaluation[i].item.item_id for i in items}
    return Extent(set(layers), {0.0, *steered}, ids)


@dataclass(frozen=True)
class LogitSweep:
    """Log-probabilities of both answers at every layer and strength, for controls too."""

    unit: Unit
    name = "samples"

    @property
    def items(self) -> list[int]:
        """All evaluation items."""
        return list(range(len(self.unit.concept.evaluation)))

    @property
    def layers(self) -> list[int]:
        """The layers swept."""
        return layers_of(self.unit.plan.layers, self.unit.decoder.n_layers)

    @property
    def extent(self) -> Extent:
        """The layers, strengths and items that a cube will hold of it."""
        return _extent(self.unit, self.items, self.layers, self.unit.plan.steered)

    @property
    def directions(self) -> list[str]:
        """The vector itself, then its controls."""
        return ["concept", *self.unit.plan.controls]

    @property
    def n_cells(self) -> int:
        """Rows per item, the unsteered one included."""
        return 1 + len(self.directions) * len(self.layers) * len(self.unit.plan.steered)

    @property
    def shared_settings(self) -> dict[str, Any]:
        """The unit's settings."""
        return self.unit.settings

    def settings(self, items: Sequence[int], vectors: xr.Dataset) -> dict[str, Any]:
        """The settings that the values of a shard depend on."""
        questions = _questions(self.unit, items)
        inputs = (questions, self._prompts(questions), self.unit.answers(questions))
        return self.shared_settings | {
            "items_sha256": sha256_of(inputs),
            "vectors_sha256": vectors.attrs[netcdf.DIGEST],
            "layers": self.layers,
            "controls": list(self.unit.plan.controls),
            "n_items": len(self.items),
        }

    def make(
        self, items: Sequence[int], vectors: xr.Dataset, *, max_rows: int, progress: Progress
    ) -> tuple[xr.Dataset, int]:
        """Log-probabilities by direction, layer, strength and sample; how many rows fitted."""
        questions = _questions(self.unit, items)
        swept = sweep(
            self.unit.decoder,
            self._prompts(questions),
            self.unit.answers(questions),
            self.unit.cells(
                vectors, self.layers, self.unit.plan.steered, directions=self.directions
            ),
            positions=self.unit.plan.positions,
            max_rows=max_rows,
            progress=progress,
        )
        shard = self._labelled(swept, items)
        self._require_movement(shard)
        return shard, swept.max_rows

    def check(self, vectors: xr.Dataset) -> str:
        """Compare two prompts at two layers with the plain loop; returns a line on the difference.

        Raises ValueError where it is more than rounding.
        """
        questions = _shortest_and_longest(self.unit, self.items)
        difference = check_against_plain_loop(
            self.unit.decoder,
            self._prompts(questions),
            self.unit.answers(questions),
            _outermost(self.unit, vectors, self.layers, self.unit.plan.largest),
            positions=self.unit.plan.positions,
        )
        return f"one pass for all vectors is within {difference:.1g} nat of the plain loop"

    def _prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        return [self.unit.readout.prompt(question.prompt) for question in questions]

    def _labelled(self, swept: Swept, items: Sequence[int]) -> xr.Dataset:
        """The sweep with its labels; strength 0 is repeated at every layer."""
        grid: dict[str, list[Any]] = {
            "direction": self.directions,
            "layer": self.layers,
            "strength": list(self.unit.plan.steered),
            "sample": list(items),
            "answer": ["matching", "other"],
        }
        logprob = _with_unsteered(swept.logprobs, grid)
        return xr.Dataset(
            {
                "logprob_matching": logprob.sel(answer="matching", drop=True),
                "logprob_other": logprob.sel(answer="other", drop=True),
                **_receipts(swept.touched, self.layers),
            }
        )

    def _require_movement(self, shard: xr.Dataset) -> None:
        """Raise ValueError where the largest strength moved no logit: the hooks did nothing."""
        largest = self.unit.plan.largest
        diff = (shard["logprob_matching"] - shard["logprob_other"]).sel(direction="concept")
        moved = abs(diff.sel(strength=largest) - diff.sel(strength=0.0))
        if (moved != 0).any():
            return
        raise ValueError(
            f"{self.unit.decoder.name} x {self.unit.concept.name}: no logit moved at strength "
            f"{largest:+g} in any layer. |added| / |residual| was "
            f"{float(shard['added_over_residual'].max()):.3g} and "
            f"{int(shard['rows_touched'].sum())} rows changed: the vectors are zero, too small "
            "for the dtype, or the hooks do not reach this model. No shard was saved."
        )


@dataclass(frozen=True)
class Generation:
    """The model's full answers at every layer and strength of the concept's vector.

    Each begins as an answer to a user would: right after the opening of the assistant's turn,
    without the `(` that the logit readout of some tokenizers adds there.
    """

    unit: Unit
    name = "generations"

    @property
    def items(self) -> list[int]:
        """The first ones, as many as the plan says, balanced by matching letter."""
        concept = self.unit.concept
        kept = concept.cut_to(n_pairs=None, n_items=self.unit.plan.generation_samples).evaluation
        ids = {question.id for question in kept}
        return [i for i, question in enumerate(concept.evaluation) if question.id in ids]

    @property
    def layers(self) -> list[int]:
        """The layers at which answers are generated."""
        plan = self.unit.plan
        return layers_of(plan.generation_layers or plan.layers, self.unit.decoder.n_layers)

    @property
    def extent(self) -> Extent:
        """The layers, strengths and items that a cube will hold of it."""
        return _extent(self.unit, self.items, self.layers, self.unit.plan.generated)

    @property
    def n_cells(self) -> int:
        """Responses per item, the unsteered ones included."""
        return self.unit.plan.repeats * (1 + len(self.layers) * len(self.unit.plan.generated))

    @property
    def shared_settings(self) -> dict[str, Any]:
        """The unit's settings, and how tokens are chosen."""
        plan = self.unit.plan
        return self.unit.settings | {name: getattr(plan, name) for name in ALIKE_WHERE_GENERATED}

    def settings(self, items: Sequence[int], vectors: xr.Dataset) -> dict[str, Any]:
        """The settings that the responses of a shard depend on."""
        questions = _questions(self.unit, items)
        plan = self.unit.plan
        inputs = (questions, self._prompts(questions), self.unit.answers(questions))
        return self.shared_settings | {
            "items_sha256": sha256_of(inputs),
            "vectors_sha256": vectors.attrs[netcdf.DIGEST],
            "generation_layers": self.layers,
            "generation_strengths": list(plan.generated),
            "generation_samples": len(self.items),
        }

    def make(
        self, items: Sequence[int], vectors: xr.Dataset, *, max_rows: int, progress: Progress
    ) -> tuple[xr.Dataset, int]:
        """A table of responses, receipts, the first position's logits; how many rows fitted."""
        questions = _questions(self.unit, items)
        plan = self.unit.plan
        run = partial(
            generate,
            self.unit.decoder,
            self._prompts(questions),
            self.unit.answers(questions),
            self.unit.cells(vectors, self.layers, plan.generated),
            positions=plan.positions,
            decoding=Decoding(plan.max_new_tokens, plan.temperature),
            progress=progress,
        )
        repeats = []
        for repeat in range(plan.repeats):
            repeats.append(run(rngs=self._rngs(questions, repeat), max_rows=max_rows))
            max_rows = repeats[-1].max_rows
        shard = self._labelled(repeats, items)
        if not shard["generation_positions_touched"].any():
            raise ValueError(
                f"{self.unit.decoder.name} x {self.unit.concept.name}: no position was changed at "
                f"strengths {plan.generated}: the vectors are zero, too small for the dtype, or "
                "the hooks do not reach this model. No shard was saved."
            )
        return shard, max_rows

    def check(self, vectors: xr.Dataset) -> str:
        """Compare two prompts at two layers with the plain loop; returns a line on the difference.

        Raises ValueError where it is more than rounding.
        """
        questions = _shortest_and_longest(self.unit, self.items)
        difference = check_generation_against_plain_loop(
            self.unit.decoder,
            self._prompts(questions),
            _outermost(self.unit, vectors, self.layers, max(self.unit.plan.generated, key=abs)),
            positions=self.unit.plan.positions,
        )
        ignored = self.unit.decoder.not_applied
        return f"generated tokens are within {difference:.1g} nat of the plain loop" + (
            f"; of the model's generation config, not applied: {ignored}" if ignored else ""
        )

    def _prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        bare = replace(self.unit.readout, answer_prefix="")
        return [bare.prompt(question.prompt) for question in questions]

    def _rngs(self, questions: Sequence[Question], repeat: int) -> list[np.random.Generator]:
        """One per question, whichever others are run, and the same in every steered copy."""
        names = (f"answers of {self.unit.decoder.name}/{q.id}/{repeat}" for q in questions)
        return [stream(name, seed=self.unit.plan.seed) for name in names]

    def _labelled(self, repeats: Sequence[Generated], items: Sequence[int]) -> xr.Dataset:
        plan = self.unit.plan
        grid: dict[str, list[Any]] = {
            "layer": self.layers,
            "strength": list(plan.generated),
            "sample": list(items),
            "answer": ["matching", "other"],
        }
        cells = [(UNSTEERED, 0.0)]
        cells += [(layer, s) for layer in self.layers for s in plan.generated]
        ends = self.unit.decoder.end_tokens
        rows = [
            {
                "response_text": self._text(tokens),
                "response_finished": bool(np.isin(tokens, ends).any()),
                "response_finite": bool((tokens != NONFINITE).all()),
                "response_layer": layer,
                "response_strength": strength,
                "response_sample": sample,
                "response_repeat": repeat,
            }
            for repeat, one in enumerate(repeats)
            for (layer, strength), answers in zip(cells, one.tokens, strict=True)
            for sample, tokens in zip(items, answers, strict=True)
        ]
        shard = xr.Dataset(
            {name: ("response", np.array([row[name] for row in rows])) for name in rows[0]}
        )
        if not self.unit.readout.answer_prefix:
            shard["first_logprob"] = _with_unsteered(repeats[0].logprobs, grid)
        touched = [_receipts(one.touched, self.layers)["positions_touched"][1] for one in repeats]
        shard["generation_positions_touched"] = ("layer", np.sum(touched, axis=0))
        return shard.assign_coords(layer=self.layers, sample=list(items))

    def _text(self, tokens: np.ndarray) -> str:
        ids = tokens[(tokens >= 0) & ~np.isin(tokens, self.unit.decoder.end_tokens)]
        text = self.unit.decoder.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        # Text in a NetCDF file cannot hold this character.
        return str(text).replace("\0", "�")


def _questions(unit: Unit, items: Sequence[int]) -> list[Question]:
    return [unit.concept.evaluation[i] for i in items]


def _shortest_and_longest(unit: Unit, items: Sequence[int]) -> list[Question]:
    """The items with the shortest and longest prompt, to check padding and long contexts too."""
    questions = _questions(unit, items)
    by_length = sorted(questions, key=lambda question: len(question.prompt))
    return [by_length[0], by_length[-1]] if len(by_length) > 1 else by_length


def _outermost(
    unit: Unit, vectors: xr.Dataset, layers: Sequence[int], strength: float
) -> list[Cell]:
    """The steered copies at the first and the last layer."""
    return unit.cells(vectors, sorted({layers[0], layers[-1]}), [strength])


def _with_unsteered(values: np.ndarray, grid: dict[str, list[Any]]) -> xr.DataArray:
    """Values (1 + cells, sample, answer) in the dims of `grid`; strength 0 at every layer."""
    steered = xr.DataArray(values[1:].reshape([len(x) for x in grid.values()]), grid, list(grid))
    zero = xr.DataArray(values[0], dims=("sample", "answer"))
    unsteered = zero.expand_dims({d: x for d, x in grid.items() if d not in ("sample", "answer")})
    unsteered = unsteered.isel(strength=[0]).assign_coords(strength=[0.0])
    return xr.concat([steered, unsteered.assign_coords(answer=grid["answer"])],
                     dim="strength").sortby("strength")  # fmt: skip


def _receipts(touched: dict[int, Touched], layers: Sequence[int]) -> dict[str, Any]:
    receipts = [touched[layer] for layer in layers]
    return {
        "rows_touched": ("layer", [float(one.rows) for one in receipts]),
        "positions_touched": ("layer", [float(one.positions) for one in receipts]),
        "added_over_residual": ("layer", [one.ratio for one in receipts]),
    }
