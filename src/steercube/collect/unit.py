"""One model x concept of a collection: its vectors, its cells and what identifies them."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from steercube import __version__, netcdf
from steercube.collect.decoder import Decoder
from steercube.collect.hooks import Cell
from steercube.collect.plan import CONVENTIONS, POSITIONS, Plan
from steercube.collect.readout import Prompt, Readout
from steercube.collect.shards import find_shard, save_shard
from steercube.collect.sweep import Progress
from steercube.collect.vectors import OWN, of_arrays, vectors
from steercube.concepts import Concept, Question
from steercube.streams import stream

RECORDED_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Unit:
    """One concept to collect on one model, and the folder of its shards."""

    decoder: Decoder
    readout: Readout
    concept: Concept
    plan: Plan
    folder: Path
    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    """A user's own directions (layer, hidden) by name."""
    own: np.ndarray | None = None
    """A user's own vector of the concept (layer, hidden), in place of the one of its pairs."""
    extracted: xr.Dataset | None = None
    """Its vectors, where they were extracted with these settings before."""
    read_at: str = ""
    """The cube's `layer_convention`, where it is not that of the plan."""

    @property
    def directions(self) -> list[str]:
        """Every direction but the concept's own: those of the plan, then the user's."""
        return [*self.plan.directions, *(name for name in self.given if name != self.concept.name)]

    @property
    def vectors_path(self) -> Path:
        """The file of the vectors."""
        return self.folder / "vectors.nc"

    def vectors(self, *, batch_size: int, progress: Progress = lambda n: None) -> xr.Dataset:
        """The vectors, from their shard; computed and saved first where there is none."""
        rank = self.decoder.rank
        saved = rank.agreed(self.found_vectors)
        if saved is not None:
            return saved
        computed = self.computed_vectors(batch_size=batch_size, progress=progress)

        def save() -> xr.Dataset:
            save_shard(computed, self.vectors_path, self.vector_settings, **self.described)
            return netcdf.load(self.vectors_path)

        return rank.agreed(save)

    def computed_vectors(
        self, *, batch_size: int, progress: Progress = lambda n: None
    ) -> xr.Dataset:
        """The vectors, extracted from the pairs; a user's own as they are."""
        if self.extracted is not None:
            return self.extracted
        if self.own is not None:
            return of_arrays({OWN: self.own, **self.given})
        return vectors(
            self.decoder,
            self.readout,
            self.concept.train,
            convention=self.plan.convention,
            directions=self.directions,
            given=self.given,
            stream=self._stream,
            batch_size=batch_size,
            progress=progress,
        )

    def _stream(self, name: str) -> np.random.Generator:
        """The random stream of one direction; that of the empty name is for all other draws."""
        path = "/".join(filter(None, [self.decoder.name, self.concept.name, name]))
        return stream(path, seed=self.plan.seed)

    def found_vectors(self) -> xr.Dataset | None:
        """The vectors' shard, None if missing or damaged; ValueError if of other settings."""
        return find_shard(self.vectors_path, self.vector_settings)

    def cells(
        self,
        vectors: xr.Dataset,
        layers: Sequence[int],
        strengths: Sequence[float],
        *,
        directions: Sequence[str] = (OWN,),
    ) -> list[Cell]:
        """One steered copy for each direction, layer and strength, in that order."""
        table = vectors["vector"].transpose("direction", "layer", "hidden")
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
        """The settings that the values of all its shards depend on."""
        return {
            "model": self.decoder.name,
            "concept": self.concept.name,
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
    def vector_settings(self) -> dict[str, Any]:
        """The settings that its vectors depend on."""
        pairs = self.concept.train
        prompts = [self.readout.prompt(pair.prompt) for pair in pairs]
        return (
            self.settings
            | {
                "controls": list(self.plan.controls),
                "directions_sha256": self._given_sha256,
                "pairs_sha256": sha256_of((pairs, prompts, self.answers(pairs))),
            }
            | ({} if self.own is None else {"own_sha256": _sha256(self.own)})
        )

    @property
    def _given_sha256(self) -> dict[str, str]:
        return {name: _sha256(self.given[name]) for name in self.directions if name in self.given}

    @property
    def described(self) -> dict[str, Any]:
        """Attributes of every shard: its model, concept and items, and those of its cube."""
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
                "layer_convention": self.read_at or CONVENTIONS[self.plan.convention],
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


def _sha256(values: np.ndarray) -> str:
    return hashlib.sha256(values.astype("float32").tobytes()).hexdigest()


def sha256_of(inputs: tuple[Sequence[Question], Sequence[Prompt], np.ndarray]) -> str:
    """SHA-256 of the questions, their prompts' token ids and their answers' tokens."""
    questions, prompts, answers = inputs
    return hashlib.sha256(repr((questions, prompts, answers.tolist())).encode()).hexdigest()
