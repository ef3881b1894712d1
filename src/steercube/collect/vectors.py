"""Steering vectors by Contrastive Activation Addition (Rimsky et al. 2023, arXiv:2312.06681).

    v_L = mean over pairs of (h_L at the matching letter - h_L at the other letter)

h_L is the residual stream after block L, at the token of the answer letter, after the same prompt.
Other directions, to compare its effect with, come with the vector if asked for: random ones, and
vectors of the same pairs with the matching and the other side swapped in half of them, both scaled
to its norm; and that of the letters, the mean residual stream at (A) minus that at (B), at its own
norm, which moves the logits of any model that reads the letters.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr

from steercube.collect.decoder import Decoder
from steercube.collect.hooks import record
from steercube.collect.memory import lacks_memory
from steercube.collect.readout import Prompt, Readout
from steercube.collect.sweep import Progress, Run, forward, not_alone, prepare
from steercube.concepts import Question
from steercube.contract import LETTER, SCORED_LETTERS

OWN = "own"
"""Name of the concept's own vector among the directions."""
N_SPLITS = 100
"""Random halvings of the pairs that `split_half_cosine` is averaged over."""


def vectors(
    decoder: Decoder,
    readout: Readout,
    pairs: Sequence[Question],
    *,
    convention: str,
    directions: Sequence[str] = (),
    given: Mapping[str, np.ndarray] | None = None,
    stream: Callable[[str], np.random.Generator],
    batch_size: int = 8,
    progress: Progress = lambda n: None,
) -> xr.Dataset:
    """The vectors of every block, and how well the pairs agree on their direction.

    `vector` (direction, layer, hidden), float32, as added at strength 1: the concept's OWN, then
    `directions` in their order: random/0, shuffled/3, letter, or names in `given`, which maps them
    to arrays (layer, hidden). For each layer: `vector_norm` |v|;
    `residual_norm`, the mean of |h| over both sides; `split_half_cosine`, the mean over random
    halvings of the cosine of the halves' vectors; `pairwise_cosine`, the mean cosine of two pairs'
    differences; `letter_cosine`, the cosine of the vector and the direction of the letters,
    whose square is their share of the vector. `stream(name)` is the random stream of a direction;
    that of the empty name is for random/0, shuffled/0 and the halvings.
    """
    matching, other = letter_residuals(
        decoder,
        readout,
        pairs,
        convention=convention,
        batch_size=batch_size,
        progress=progress,
    )
    differences = matching - other
    mean = differences.mean(axis=0)
    letters = np.array([pair.matching for pair in pairs])
    rng = stream("")
    signs = np.where(letters == SCORED_LETTERS[0], 1.0, -1.0)
    drawn = {
        "shuffled/0": _shuffled(differences, letters, rng),
        "random/0": _with_norm_of(mean, rng.normal(size=mean.shape)),
        LETTER: np.tensordot(signs, differences, axes=1) / len(pairs),
        **(given or {}),
    }
    for name in directions:
        if name not in drawn:
            own = stream(name)
            drawn[name] = (
                _with_norm_of(mean, own.normal(size=mean.shape))
                if name.startswith("random/")
                else _shuffled(differences, letters, own)
            )
    every = np.stack([mean, *(drawn[name] for name in directions)])
    return xr.Dataset(
        {
            "vector": (("direction", "layer", "hidden"), every.astype("float32")),
            "vector_norm": ("layer", np.linalg.norm(mean, axis=-1)),
            "residual_norm": (
                "layer",
                np.linalg.norm(np.concatenate([matching, other]), axis=-1).mean(axis=0),
            ),
            "split_half_cosine": ("layer", split_half_cosine(differences, letters, rng)),
            "pairwise_cosine": ("layer", pairwise_cosine(differences)),
            "letter_cosine": ("layer", _cosine(mean, drawn[LETTER])),
        },
        coords={"direction": [OWN, *directions], "layer": np.arange(decoder.n_layers)},
    )


def of_arrays(arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """The dataset of `vectors` for given arrays (layer, hidden) by direction, OWN the first.

    It holds no residual norm and no cosines: these are of the pairs, which the arrays may not be.
    """
    every = np.stack([*arrays.values()]).astype("float32")
    return xr.Dataset(
        {
            "vector": (("direction", "layer", "hidden"), every),
            "vector_norm": ("layer", np.linalg.norm(every[0].astype("float64"), axis=-1)),
        },
        coords={"direction": list(arrays), "layer": np.arange(every.shape[1])},
    )


def _shuffled(differences: np.ndarray, letters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The vector (layer, hidden) with sides swapped in half of the pairs, scaled to its norm."""
    shuffled = np.tensordot(_halving_signs(letters, rng), differences, axes=1) / len(letters)
    return _with_norm_of(differences.mean(axis=0), shuffled)


@torch.no_grad()
def letter_residuals(
    decoder: Decoder,
    readout: Readout,
    pairs: Sequence[Question],
    *,
    convention: str = "same",
    batch_size: int = 8,
    progress: Progress = lambda n: None,
) -> tuple[np.ndarray, np.ndarray]:
    """h (pair, layer, hidden), float64, at the matching letter and at the other one.

    Both letters follow the same prompt, which is run once; `batch_size` prompts at a time.
    """
    prompts = [readout.prompt(pair.prompt) for pair in pairs]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    residuals: dict[str, dict[int, np.ndarray]] = {"matching": {}, "other": {}}
    while order:
        batch = order[:batch_size]
        try:
            run = prepare(decoder, [_open_ended(prompts[i]) for i in batch], positions="answer")
            for side, by_pair in residuals.items():
                letters = [readout.token(getattr(pairs[i], side)) for i in batch]
                rows = _residuals(decoder, run.ending_in(letters), of_input=convention == "study")
                by_pair |= dict(zip(batch, rows, strict=True))
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            if decoder.rank.size > 1:
                raise not_alone(batch_size) from error
            if batch_size == 1:
                raise MemoryError("one training pair does not fit into memory") from error
            batch_size //= 2
            continue
        order = order[len(batch) :]
        progress(len(batch))
    matching, other = (
        np.stack([by_pair[i] for i in range(len(prompts))]) for by_pair in residuals.values()
    )
    return matching, other


def _residuals(decoder: Decoder, run: Run, *, of_input: bool) -> np.ndarray:
    """h (row, layer, hidden) at the last position of each row, float64."""
    with record(decoder.blocks, at=run.last, of_input=of_input) as seen:
        forward(decoder, run, at=run.last[:, None])
    return torch.stack([h.double().cpu() for h in seen], dim=1).numpy()


def _open_ended(prompt: Prompt) -> Prompt:
    """The prompt and a position for a letter, which alone counts as the answer."""
    return Prompt((*prompt.ids, 0), answer_start=len(prompt.ids))


def split_half_cosine(
    differences: np.ndarray, letters: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Mean cosine (layer) of the mean differences (pair, layer, hidden) of two random halves.

    0 for pairs with nothing in common, near 1 for a direction that either half would give. The
    halves are balanced by letter: otherwise one has too many of a letter and the other too few, and
    the letter's direction, the largest of all, would make them opposite.
    """
    signs = np.stack([_halving_signs(letters, rng) for _ in range(N_SPLITS)])
    one, two = (np.einsum("sn,nlh->slh", signs == half, differences) for half in (1, -1))
    return _cosine(one, two).mean(axis=0)


def pairwise_cosine(differences: np.ndarray) -> np.ndarray:
    """Mean cosine (layer) of two different pairs' differences (pair, layer, hidden).

    mean_{i != j} u_i . u_j = (|sum u|^2 - n) / (n (n - 1)), u the differences at unit length.
    """
    n = len(differences)
    norms = np.linalg.norm(differences, axis=-1, keepdims=True)
    unit = differences / np.where(norms > 0, norms, 1)
    total = np.einsum("lh,lh->l", unit.sum(axis=0), unit.sum(axis=0))
    return (total - np.einsum("nlh,nlh->l", unit, unit)) / (n * (n - 1))


def _cosine(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
    return np.einsum("...h,...h->...", one, two) / np.where(norms > 0, norms, 1)


def _with_norm_of(reference: np.ndarray, direction: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(direction, axis=-1, keepdims=True)
    length = np.linalg.norm(reference, axis=-1, keepdims=True)
    return direction / np.where(norm > 0, norm, 1) * length


def _halving_signs(letters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """+1 and -1 (pair), half of each among pairs of the same letter.

    As the signs of a shuffled vector they cancel both the concept and the letter in the mean;
    freely drawn signs would by chance leave some of the letter's direction.
    """
    signs = np.empty(len(letters))
    for letter in np.unique(letters):
        pairs = np.flatnonzero(letters == letter)
        balanced = np.resize(rng.permutation([1.0, -1.0]), len(pairs))
        signs[pairs] = rng.permutation(balanced)
    return signs
