"""One model x concept of a collection: its vectors, then its samples chunk by chunk, as shards."""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from steercube import __version__, netcdf
from steercube.collect.decoder import Decoder
from steercube.collect.hooks import Cell, Touched
from steercube.collect.plan import Plan, layers_of
from steercube.collect.readout import Prompt, Readout
from steercube.collect.shards import find_shard, save_shard
from steercube.collect.sweep import POSITIONS, Swept, check_against_plain_loop, sweep
from steercube.collect.vectors import CONVENTIONS, vectors
from steercube.concepts import Concept, Question
from steercube.schema import raise_if_any
from steercube.streams import stream

RECORDED_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Unit:
    """What is to be collected of one concept on one model, and where its shards lie."""

    decoder: Decoder
    readout: Readout
    concept: Concept
    plan: Plan
    folder: Path

    @property
    def layers(self) -> list[int]:
        """The layers swept."""
        return layers_of(self.plan.layers, self.decoder.n_layers)

    @property
    def directions(self) -> list[str]:
        """The vector itself, then its controls."""
        return ["concept", *self.plan.controls]

    @property
    def n_cells(self) -> int:
        """Cells of each sample, the unsteered one included."""
        return 1 + len(self.directions) * len(self.layers) * len(self.plan.steered)

    @property
    def chunks(self) -> dict[range, Path]:
        """Samples of each shard, and its file."""
        n, size = len(self.concept.evaluation), self.plan.chunk
        chunks = [range(start, min(start + size, n)) for start in range(0, n, size)]
        return {c: self.folder / f"samples-{c.start:04d}-{c.stop - 1:04d}.nc" for c in chunks}

    @property
    def vectors_path(self) -> Path:
        """The file of the vectors."""
        return self.folder / "vectors.nc"

    def vectors(self, *, batch_size: int) -> xr.Dataset:
        """The vectors, from their shard; made and saved first where there is none."""
        found = self.found_vectors()
        if found is None:
            rng = stream(f"{self.decoder.name}/{self.concept.name}", seed=self.plan.seed)
            made = vectors(
                self.decoder,
                self.readout,
                self.concept.train,
                convention=self.plan.convention,
                rng=rng,
                batch_size=batch_size,
            )
            save_shard(made, self.vectors_path, self._vector_settings, **self._described)
            found = netcdf.load(self.vectors_path)
        return found

    def found_vectors(self) -> xr.Dataset | None:
        """The vectors' shard, if there is a sound one of these settings."""
        return find_shard(self.vectors_path, self._vector_settings)

    def pending(self, chunks: Sequence[range], of_vectors: xr.Dataset) -> list[range]:
        """Those of `chunks` without a sound shard of these settings.

        Raises ValueError for shards of these settings' kind that are cut into other chunks.
        """
        strays = set(self.folder.glob("samples-*.nc")) - set(self.chunks.values())
        raise_if_any(
            [f"{path} is not one of them" for path in sorted(strays)],
            what=f"shards of {self.plan.chunk} out of {len(self.concept.evaluation)} samples each "
            "(use the earlier --chunk and --items, another --out, or delete them)",
        )
        return [
            chunk
            for chunk in chunks
            if find_shard(self.chunks[chunk], self._sample_settings(chunk, of_vectors)) is None
        ]

    def samples(self, chunk: range, of_vectors: xr.Dataset, *, max_rows: int, progress: Any) -> int:
        """Sweep the samples of `chunk` and save their shard; returns the rows that fit a pass."""
        questions = self._questions(chunk)
        swept = sweep(
            self.decoder,
            self._prompts(chunk),
            self._answers(questions),
            self.cells(of_vectors),
            positions=self.plan.positions,
            max_rows=max_rows,
            progress=progress,
        )
        made = self._labelled(swept, questions, chunk)
        self._require_movement(made)
        settings = self._sample_settings(chunk, of_vectors)
        save_shard(made, self.chunks[chunk], settings, **self._described)
        return swept.max_rows

    def check(self, of_vectors: xr.Dataset) -> float:
        """Compare some cells of two prompts with the plain loop: how far they are apart, in nats.

        Raises ValueError where that is more than rounding.
        """
        some = {self.layers[0], self.layers[-1]}
        cells = [
            cell
            for cell in self.cells(of_vectors, directions=["concept"])
            if cell.layer in some and cell.strength == self.plan.largest
        ]
        two = range(min(2, len(self.concept.evaluation)))
        return check_against_plain_loop(
            self.decoder,
            self._prompts(two),
            self._answers(self._questions(two)),
            cells,
            positions=self.plan.positions,
        )

    def cells(self, of_vectors: xr.Dataset, directions: Sequence[str] = ()) -> list[Cell]:
        """What is added, by direction, layer and strength, in that order."""
        table = of_vectors["vector"].transpose("direction", "layer", "hidden")
        return [
            Cell(layer, strength, torch.from_numpy(table.sel(direction=name, layer=layer).values))
            for name in directions or self.directions
            for layer in self.layers
            for strength in self.plan.steered
        ]

    def _questions(self, chunk: range) -> list[Question]:
        return [self.concept.evaluation[i] for i in chunk]

    def _prompts(self, chunk: range) -> list[Prompt]:
        return [self.readout.prompt(question.prompt) for question in self._questions(chunk)]

    def _answers(self, questions: Sequence[Question]) -> np.ndarray:
        token = self.readout.token
        return np.array([[token(q.matching), token(q.other)] for q in questions])

    @property
    def settings(self) -> dict[str, Any]:
        """What the values of all its shards depend on."""
        return {
            "model": self.decoder.name,
            "concept": self.concept.name,
            "strengths": list(self.plan.strengths),
            "positions": self.plan.positions,
            "revision": self.decoder.revision,
            "dtype": self.decoder.dtype,
            "chat_template_sha256": self.readout.template_sha256,
            "read_token": self.readout.description,
            "convention": self.plan.convention,
            "seed": self.plan.seed,
            "steercube": __version__,
            "concept_sha256": self.concept.sha256,
        }

    @property
    def _vector_settings(self) -> dict[str, Any]:
        asked = self.concept.train
        prompts = [self.readout.prompt(pair.prompt) for pair in asked]
        return self.settings | {"pairs_sha256": _sha256((asked, prompts, self._answers(asked)))}

    def _sample_settings(self, chunk: range, of_vectors: xr.Dataset) -> dict[str, Any]:
        questions = self._questions(chunk)
        asked = (questions, self._prompts(chunk), self._answers(questions))
        return self.settings | {
            "items_sha256": _sha256(asked),
            "vectors_sha256": of_vectors.attrs[netcdf.DIGEST],
            "layers": self.layers,
            "controls": list(self.plan.controls),
            "n_items": len(self.concept.evaluation),
        }

    @property
    def _described(self) -> dict[str, Any]:
        """What a shard says about the cube that it is a part of."""
        n_pairs, n_items = len(self.concept.train), len(self.concept.evaluation)
        facts = replace(self.decoder.facts, revision=self.decoder.revision)
        versions = {name: version(name) for name in RECORDED_VERSIONS}
        return {
            "model": asdict(facts),
            "concept": self.concept.name,
            "n_items": n_items,
            "of_cube": {
                "title": "Steering sweep collected with steercube",
                "source": f"{facts.hf_id} at {facts.revision}; {self.concept.source}",
                "history": f"steercube {__version__} collect: {self.decoder.name} x "
                f"{self.concept.name}, {n_pairs} pairs, {n_items} items",
                "layer_convention": CONVENTIONS[self.plan.convention],
                "positions_steered": POSITIONS[self.plan.positions],
                "read_token": self.readout.description,
                "chat_template_sha256": self.readout.template_sha256,
                "dtype": self.decoder.dtype,
                "seed": str(self.plan.seed),
                "versions": json.dumps(
                    {"steercube": __version__, "python": platform.python_version()} | versions
                ),
                "inputs_sha256": json.dumps({self.concept.name: self.concept.sha256}),
            },
        }

    def _labelled(self, swept: Swept, questions: Sequence[Question], chunk: range) -> xr.Dataset:
        """Log-probabilities by direction, layer, strength and sample; strength 0 at every layer."""
        grid: dict[str, list[Any]] = {
            "direction": self.directions,
            "layer": self.layers,
            "strength": list(self.plan.steered),
            "sample": list(chunk),
            "answer": ["matching", "other"],
        }
        shape = [len(labels) for labels in grid.values()]
        steered = xr.DataArray(swept.logprobs[1:].reshape(shape), grid, dims=list(grid))
        unsteered = xr.DataArray(swept.logprobs[0], dims=("sample", "answer"))
        unsteered = unsteered.expand_dims(
            direction=self.directions, layer=self.layers, strength=[0.0]
        )
        logprob = xr.concat([steered, unsteered], dim="strength").sortby("strength")
        touched = [swept.touched[layer] for layer in self.layers]
        return xr.Dataset(
            {
                "logprob_matching": logprob.sel(answer="matching", drop=True),
                "logprob_other": logprob.sel(answer="other", drop=True),
                "item_id": ("sample", [q.id for q in questions]),
                "letter": ("sample", [q.matching for q in questions]),
                "item_valid": ("sample", [q.valid for q in questions]),
                **_receipts(touched),
            }
        )

    def _require_movement(self, made: xr.Dataset) -> None:
        """Raise ValueError where the largest strength moved no logit: hooks that did nothing."""
        diff = (made["logprob_matching"] - made["logprob_other"]).sel(direction="concept")
        moved = abs(diff.sel(strength=self.plan.largest) - diff.sel(strength=0.0))
        if (moved != 0).any():
            return
        raise ValueError(
            f"{self.decoder.name} x {self.concept.name}: no logit moved at strength "
            f"{self.plan.largest:+g} in any layer. |added| / |residual| was "
            f"{float(made['added_over_residual'].max()):.3g} and "
            f"{int(made['rows_touched'].sum())} rows were touched: the vectors are zero, too small "
            "for the dtype, or the hooks do not reach this model. Nothing was saved of it."
        )


def _receipts(touched: Sequence[Touched]) -> dict[str, Any]:
    return {
        "rows_touched": ("layer", [float(one.rows) for one in touched]),
        "positions_touched": ("layer", [float(one.positions) for one in touched]),
        "added_over_residual": ("layer", [one.ratio for one in touched]),
    }


def _sha256(asked: tuple[Sequence[Question], Sequence[Prompt], np.ndarray]) -> str:
    """Of questions as text and as token ids, and of the tokens of their answers."""
    questions, prompts, answers = asked
    return hashlib.sha256(repr((questions, prompts, answers.tolist())).encode()).hexdigest()
