"""One model x concept of a collection: its vectors, its cells and what identifies them."""

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
from steercube.collect.hooks import Cell
from steercube.collect.plan import Plan
from steercube.collect.readout import Prompt, Readout
from steercube.collect.shards import Told, find_shard, save_shard, told_of
from steercube.collect.sweep import POSITIONS, Progress
from steercube.collect.vectors import CONVENTIONS, vectors
from steercube.concepts import Concept, Question
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
    def vectors_path(self) -> Path:
        """The file of the vectors."""
        return self.folder / "vectors.nc"

    def vectors(self, *, batch_size: int, progress: Progress = lambda n: None) -> xr.Dataset:
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
                progress=progress,
            )
            save_shard(made, self.vectors_path, self._vector_settings, **self.described)
            found = netcdf.load(self.vectors_path)
        return found

    def found_vectors(self) -> xr.Dataset | None:
        """The vectors' shard, if there is a sound one of these settings."""
        return find_shard(self.vectors_path, self._vector_settings)

    def cells(
        self,
        of_vectors: xr.Dataset,
        layers: Sequence[int],
        strengths: Sequence[float],
        *,
        directions: Sequence[str] = ("concept",),
    ) -> list[Cell]:
        """What is added, by direction, layer and strength, in that order."""
        table = of_vectors["vector"].transpose("direction", "layer", "hidden")
        return [
            Cell(layer, strength, torch.from_numpy(table.sel(direction=name, layer=layer).values))
            for name in directions
            for layer in layers
            for strength in strengths
        ]

    def answers(self, questions: Sequence[Question]) -> np.ndarray:
        """Token ids (question, answer): of the matching letter, and of the other one."""
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
    def told(self) -> Told:
        """What its shards will say of it, or say already."""
        return told_of({name: json.dumps(value) for name, value in self.described.items()})

    @property
    def _vector_settings(self) -> dict[str, Any]:
        asked = self.concept.train
        prompts = [self.readout.prompt(pair.prompt) for pair in asked]
        return self.settings | {"pairs_sha256": sha256_of((asked, prompts, self.answers(asked)))}

    @property
    def described(self) -> dict[str, Any]:
        """What a shard says about the cube that it is a part of."""
        n_pairs, n_items = len(self.concept.train), len(self.concept.evaluation)
        facts = replace(self.decoder.facts, revision=self.decoder.revision)
        versions = {name: version(name) for name in RECORDED_VERSIONS}
        return {
            "model": asdict(facts),
            "concept": self.concept.name,
            "items": [asdict(question.item) for question in self.concept.evaluation],
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
            }
            | ({"prompt_date": self.readout.date} if self.readout.date else {}),
        }


def sha256_of(asked: tuple[Sequence[Question], Sequence[Prompt], np.ndarray]) -> str:
    """Of questions as text and as token ids, and of the tokens of their answers."""
    questions, prompts, answers = asked
    return hashlib.sha256(repr((questions, prompts, answers.tolist())).encode()).hexdigest()
