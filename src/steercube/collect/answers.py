"""The outcome `generation`: the model's full answers at every layer and strength."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.answers import READER, answer_of
from steercube.collect.generate import (
    NONFINITE,
    Decoding,
    Generated,
    check_generation_against_plain_loop,
    generate,
)
from steercube.collect.logits import placed
from steercube.collect.outcomes import (
    extent,
    first_items,
    outermost,
    questions_of,
    receipts,
    shortest_and_longest,
    with_unsteered,
)
from steercube.collect.plan import layers_of
from steercube.collect.readout import Prompt
from steercube.collect.sweep import Progress
from steercube.collect.unit import Unit, sha256_of
from steercube.concepts import Question
from steercube.contract import RESPONSE_VARIABLES, RESPONSES, UNSTEERED
from steercube.measures import GENERATION_MATCH, LOGIT_DIFF
from steercube.replacing import Extent
from steercube.streams import stream

DECODING = ("max_new_tokens", "temperature", "repeats")
"""Fields of the plan, and attributes in the cube, that say how tokens are chosen."""
MAX_ROUNDING = 1e-3
"""Largest rounding difference, in nats, of one log-probability computed twice in float32."""


@dataclass(frozen=True)
class Answers:
    """The model's full answers at every layer and strength of the concept's vector.

    Each begins as an answer to a user would: right after the opening of the assistant's turn,
    without the `(` that the logit readout of some tokenizers adds there.
    """

    unit: Unit
    kind = "generations"

    @property
    def items(self) -> list[int]:
        """The first items, as many as the plan says, balanced by matching letter."""
        return first_items(self.unit, self.unit.plan.generation_samples)

    @property
    def layers(self) -> list[int]:
        """The layers at which answers are generated."""
        plan = self.unit.plan
        return layers_of(plan.generation_layers or plan.layers, self.unit.decoder.n_layers)

    @property
    def n_rows(self) -> int:
        """Responses per item, the unsteered ones included."""
        return self.unit.plan.repeats * (1 + len(self.layers) * len(self.unit.plan.generated))

    @property
    def extents(self) -> dict[str, Extent]:
        """By path of a grid, the labels at which the cube will hold answers of this unit."""
        generated = self.unit.plan.generated
        return {GENERATION_MATCH.name: extent(self.unit, self.items, self.layers, generated)}

    @property
    def grids(self) -> dict[str, dict[str, Any]]:
        """By path of a grid, the strengths and DECODING, which must be equal in all units."""
        plan = self.unit.plan
        decoding = {name: getattr(plan, name) for name in DECODING}
        return {GENERATION_MATCH.name: {"strengths": sorted([*plan.generated, 0.0]), **decoding}}

    def settings(self, items: Sequence[int], vectors: xr.Dataset) -> dict[str, Any]:
        """The settings that the responses of a shard depend on."""
        questions = questions_of(self.unit, items)
        plan = self.unit.plan
        inputs = (questions, self._prompts(questions), self.unit.answers(questions))
        return self.unit.settings | {
            **{name: getattr(plan, name) for name in DECODING},
            "items_sha256": sha256_of(inputs),
            "vectors_sha256": vectors.attrs[netcdf.DIGEST],
            "generation_layers": self.layers,
            "generation_strengths": list(plan.generated),
            "generation_samples": len(self.items),
            "chunk": plan.chunk,
        }

    def length(self, item: int) -> int:
        """Tokens of the item's prompt."""
        return len(self._prompts(questions_of(self.unit, [item]))[0].ids)

    def make(
        self, items: Sequence[int], vectors: xr.Dataset, *, max_rows: int, progress: Progress
    ) -> tuple[xr.Dataset, int]:
        """The shard, and how many rows fitted in a pass. ValueError where nothing changed.

        It has the responses (dim response), the positions touched (layer) and, where the prompts
        are those of the logit sweep, the log-probabilities at the first position.
        """
        questions = questions_of(self.unit, items)
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
        questions = shortest_and_longest(self.unit, self.items)
        difference = check_generation_against_plain_loop(
            self.unit.decoder,
            self._prompts(questions),
            outermost(self.unit, vectors, self.layers, max(self.unit.plan.generated, key=abs)),
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
        """A random stream for each question, the same at every layer and strength."""
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
            shard["first_logprob"] = with_unsteered(repeats[0].logprobs, grid)
        touched = [receipts(one.touched, self.layers)["positions_touched"][1] for one in repeats]
        shard["generation_positions_touched"] = ("layer", np.sum(touched, axis=0))
        return shard.assign_coords(layer=self.layers, sample=list(items))

    def _text(self, tokens: np.ndarray) -> str:
        ids = tokens[(tokens >= 0) & ~np.isin(tokens, self.unit.decoder.end_tokens)]
        text = self.unit.decoder.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        # Text in a NetCDF file cannot hold this character.
        return str(text).replace("\0", "�")


def tables(
    shards: Sequence[xr.Dataset], facts: xr.Dataset, held: dict[str, xr.Dataset]
) -> dict[str, xr.Dataset]:
    """The grid of answers of one unit and its responses, from all of its shards.

    `facts` are those of its model and concept, `held` its grids so far. If the grid of the logits
    is among these, the first generated position is compared with it.
    """
    responses = xr.concat([_table(shard) for shard in shards], "response", combine_attrs="override")
    names = {name: str(name).removeprefix("response_") for name in responses.data_vars}
    responses = responses.rename(names)
    grid = _rates(responses, facts)
    touched = [shard["generation_positions_touched"] for shard in shards]
    grid["generation_positions_touched"] = sum(touched[1:], touched[0])
    if LOGIT_DIFF.name in held and all("first_logprob" in shard for shard in shards):
        first = xr.concat([shard["first_logprob"] for shard in shards], dim="sample")
        swept = held[LOGIT_DIFF.name].isel(model=0, concept=0)
        grid["generation_logit_apart"] = _difference_from_sweep(swept, first)
    n = responses.sizes["response"]
    responses = responses.assign(
        {dim: ("response", np.full(n, facts[dim].item())) for dim in ("model", "concept")}
    )
    named = {
        name: ("response", responses[name].values, variable.attrs)
        for name, variable in RESPONSE_VARIABLES.items()
        if name in responses
    }
    return {GENERATION_MATCH.name: placed(grid, facts), RESPONSES: xr.Dataset(named)}


def _table(shard: xr.Dataset) -> xr.Dataset:
    """The variables of a shard that have the dim response alone."""
    columns = [name for name in shard if shard[name].dims == ("response",)]
    return shard[columns].reset_coords(drop=True)


def _rates(responses: xr.Dataset, facts: xr.Dataset) -> xr.Dataset:
    """The grid of each item's share of valid responses, and of matches among these."""
    letter = facts["letter"].isel(concept=0).values
    table = responses.to_dataframe()
    answers = table["text"].map(answer_of)
    table["generation_valid"] = (answers != "").astype(float).where(table["finite"])
    matches = (answers == letter[table["sample"]]).where((answers != "") & table["finite"])
    table["generation_match"] = matches.astype(float)
    place = ["layer", "strength", "sample"]
    means = table.groupby(place)[["generation_valid", "generation_match"]].mean()
    steered = means.drop(UNSTEERED).to_xarray()
    unsteered = means.loc[[UNSTEERED]].to_xarray().squeeze("layer", drop=True)
    every = [steered, unsteered.expand_dims(layer=steered["layer"])]
    grid = xr.concat(every, dim="strength").sortby("strength").astype("float32")
    grid["generation_match"].attrs = GENERATION_MATCH.attrs | {"reader": READER}
    return grid


def _difference_from_sweep(swept: xr.Dataset, first: xr.DataArray) -> xr.DataArray:
    """Largest difference (layer), in nats, of first-position log-probabilities from the sweep's.

    `swept` is the logits' grid of one model and concept. NaN at layers that were not swept. Raises
    ValueError where it is not rounding (in float32).
    """
    gaps = xr.concat(
        [
            abs(first.sel(answer=answer, drop=True) - _alike(swept[f"logprob_{answer}"], first))
            for answer in ("matching", "other")
        ],
        dim="answer",
        coords="minimal",
        compat="override",
    )
    every = ("answer", "strength", "sample")
    largest = gaps.max(every).where(gaps.notnull().all(every))
    if swept.attrs["dtype"] == "float32" and (largest > MAX_ROUNDING).any():
        raise ValueError(
            f"{swept['model'].item()} x {swept['concept'].item()}: log-probabilities at the first "
            f"generated position differ from the logit sweep's by {largest.max():.2g} nat (at most "
            f"{MAX_ROUNDING} is rounding): the two are not of the same model, vectors or prompts. "
            "Delete one of the two kinds of shards, and resume."
        )
    return largest


def _alike(values: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """The values at the layers, strengths and samples of `other`; NaN where they lack one."""
    dims = ("layer", "strength", "sample")
    return values.reset_coords(drop=True).reindex({dim: other[dim].values for dim in dims})
