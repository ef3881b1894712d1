from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr

from steercube.collect.decoder import Decoder
from steercube.collect.readout import readout_of
from steercube.collect.vectors import (
    OWN,
    letter_residuals,
    pairwise_cosine,
    split_half_cosine,
    vectors,
)
from steercube.concepts import Question

PAIRS = tiny.concept(n_pairs=10).train


def stream(name: str) -> np.random.Generator:
    """The random stream of a name."""
    return np.random.default_rng(list(name.encode()))


def extract(decoder: Decoder, pairs: tuple[Question, ...] = PAIRS, **options: object) -> xr.Dataset:
    given = {"convention": "same", "stream": stream, **options}
    return vectors(decoder, readout_of(decoder.tokenizer), pairs, **given)


def published_method(decoder: Decoder, read: Callable[[int, tuple], torch.Tensor]) -> np.ndarray:
    """CAA as its paper has it: one text a side, unbatched, the mean of the differences in turn."""
    sums = np.zeros((decoder.n_layers, tiny.HIDDEN))
    for pair in PAIRS:
        for side, sign in ((pair.matching, 1), (pair.other, -1)):
            chat = [{"role": "user", "content": pair.prompt}]
            text = decoder.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            ids = decoder.tokenizer(f"{text}({side})", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                states = decoder.model(input_ids=ids, output_hidden_states=True).hidden_states
            # The letter is the last token but one, before the closing bracket.
            for layer in range(decoder.n_layers):
                sums[layer] += sign * read(layer, states)[0, -2].double().numpy()
    return sums / len(PAIRS)


@pytest.mark.parametrize("letters_joined", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma3", *tiny.OLDER])
def test_vectors_are_those_of_the_published_method(kind: str, letters_joined: bool) -> None:
    decoder = tiny.decoder(kind, letters_joined=letters_joined)
    found = extract(decoder)["vector"].sel(direction=OWN).values
    published = published_method(decoder, lambda layer, states: states[layer + 1])
    np.testing.assert_allclose(found[:-1], published[:-1], atol=1e-4)
    # The published reading of the last layer is taken after the final norm; ours is not.
    assert not np.allclose(found[-1], published[-1], atol=1e-2)


def test_the_studys_convention_reads_what_enters_a_block() -> None:
    decoder = tiny.decoder("qwen3")
    found = extract(decoder, convention="study")["vector"].sel(direction=OWN).values
    published = published_method(decoder, lambda layer, states: states[layer])
    np.testing.assert_allclose(found, published, atol=1e-4)
    ours = extract(decoder)["vector"].sel(direction=OWN).values
    np.testing.assert_allclose(ours[:-1], found[1:], atol=1e-4)


def test_swapping_the_pairs_flips_the_vector() -> None:
    decoder = tiny.decoder("qwen3_moe")
    swapped = tuple(replace(p, matching=p.other, other=p.matching) for p in PAIRS)
    one, two = (extract(decoder, pairs) for pairs in (PAIRS, swapped))
    own = {"direction": OWN}
    np.testing.assert_allclose(one["vector"].sel(own), -two["vector"].sel(own), atol=1e-5)
    for name in ("vector_norm", "residual_norm", "pairwise_cosine"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_batches_do_not_change_a_vector() -> None:
    decoder = tiny.decoder("gemma3")
    readout = readout_of(decoder.tokenizer)
    one, many = (letter_residuals(decoder, readout, PAIRS, batch_size=n) for n in (1, 7))
    np.testing.assert_allclose(one, many, atol=1e-4)
    assert one[0].dtype == np.float64


@pytest.mark.parametrize(
    "lack",
    [
        torch.OutOfMemoryError("no memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=str,
)
def test_without_memory_batches_halve(lack: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny.decoder("llama")
    readout = readout_of(decoder.tokenizer)
    plenty = letter_residuals(decoder, readout, PAIRS)
    forward = decoder.blocks[0].forward

    def limited(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(hidden_states) > limit:
            raise lack
        return forward(hidden_states, *args, **kwargs)

    monkeypatch.setattr(decoder.blocks[0], "forward", limited)
    limit = 3
    np.testing.assert_allclose(letter_residuals(decoder, readout, PAIRS), plenty, atol=1e-4)
    limit = 0
    with pytest.raises(MemoryError, match="one training pair"):
        letter_residuals(decoder, readout, PAIRS)
    lack = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        letter_residuals(decoder, readout, PAIRS)


def test_drawn_directions_have_the_vectors_norm_and_are_others() -> None:
    names = ["random/0", "random/1", "shuffled/0", "shuffled/1"]
    found = extract(tiny.decoder("llama"), directions=names)
    assert found["direction"].values.tolist() == [OWN, *names]
    norms = np.linalg.norm(found["vector"].values, axis=-1)
    np.testing.assert_allclose(norms, np.tile(norms[0], (5, 1)), rtol=1e-5)
    np.testing.assert_allclose(norms[0], found["vector_norm"], rtol=1e-5)
    unit = (found["vector"] / found["vector_norm"]).transpose("layer", "direction", "hidden").values
    cosines = unit @ unit.transpose(0, 2, 1)
    apart = cosines[:, ~np.eye(5, dtype=bool)]
    assert (abs(apart) < 0.95).all()


def test_a_direction_does_not_depend_on_which_others_are_drawn() -> None:
    """Neither do the split halves, so that directions can be added in a later collection."""
    decoder = tiny.decoder("llama")
    alone = extract(decoder)
    for names in (["random/0"], ["shuffled/0", "random/2"], ["letter", "random/0", "random/2"]):
        found = extract(decoder, directions=names)
        np.testing.assert_array_equal(found["split_half_cosine"], alone["split_half_cosine"])
        every = extract(decoder, directions=["random/0", "random/2", "shuffled/0", "letter"])
        for name in (OWN, *names):
            np.testing.assert_array_equal(
                *(ds["vector"].sel(direction=name) for ds in (found, every))
            )


def test_the_letters_direction_is_the_difference_of_the_letters() -> None:
    """(A) minus (B), whichever of them matches; of its own norm."""
    decoder = tiny.decoder("llama")
    matching, other = letter_residuals(decoder, readout_of(decoder.tokenizer), PAIRS)
    first = np.array([pair.matching == "A" for pair in PAIRS])[:, None, None]
    difference = np.where(first, matching - other, other - matching).mean(axis=0)
    found = extract(decoder, directions=["letter"])
    np.testing.assert_allclose(found["vector"].sel(direction="letter"), difference, atol=1e-5)
    own = found["vector"].sel(direction=OWN).values
    cosine = (own * difference).sum(-1) / np.linalg.norm(own, axis=-1)
    cosine /= np.linalg.norm(difference, axis=-1)
    np.testing.assert_allclose(found["letter_cosine"], cosine, atol=1e-5)


def test_pairs_that_all_match_in_a_letter_have_its_direction() -> None:
    pairs = tuple(replace(pair, matching="A", other="B") for pair in PAIRS)
    found = extract(tiny.decoder("llama"), pairs)
    np.testing.assert_allclose(found["letter_cosine"], 1, atol=1e-6)


def test_shuffled_sides_leave_neither_concept_nor_letter() -> None:
    """Differences that are a concept plus a letter, and nothing else, shuffle to nothing."""
    from steercube.collect.vectors import _halving_signs

    rng = np.random.default_rng(0)
    letters = np.array(["A", "B"] * 20)
    concept, letter = rng.normal(size=(2, 1, 6))
    differences = concept + 5 * letter * np.where(letters == "A", 1, -1)[:, None]
    signs = _halving_signs(letters, rng)
    assert sorted(set(signs)) == [-1, 1]
    np.testing.assert_allclose(signs @ differences, 0, atol=1e-10)
    # Free signs would leave the letter in.
    free = rng.choice([-1.0, 1.0], size=40)
    assert np.linalg.norm(free @ differences) > 1


def simulated(rng: np.random.Generator, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Differences (pair, layer, hidden): a common direction, a letter's direction, noise."""
    letters = np.array(["A", "B"] * 30)
    common, letter = rng.normal(size=(2, 1, 3, 50))
    sign = np.where(letters == "A", 1, -1)[:, None, None]
    return effect * common + 3 * letter * sign + rng.normal(size=(60, 3, 50)), letters


def test_halves_agree_on_a_direction_and_on_nothing_else(rng: np.random.Generator) -> None:
    there, letters = simulated(rng, 1.0)
    absent, _ = simulated(rng, 0.0)
    assert (split_half_cosine(there, letters, rng) > 0.9).all()
    assert (abs(split_half_cosine(absent, letters, rng)) < 0.35).all()


def test_pairwise_cosine_is_the_mean_over_pairs_of_pairs(rng: np.random.Generator) -> None:
    differences, _ = simulated(rng, 1.0)
    unit = differences / np.linalg.norm(differences, axis=-1, keepdims=True)
    every = [
        unit[i, layer] @ unit[j, layer]
        for layer in (1,)
        for i in range(60)
        for j in range(60)
        if i != j
    ]
    assert pairwise_cosine(differences)[1] == pytest.approx(np.mean(every))
    assert pairwise_cosine(np.zeros((4, 1, 5)))[0] == 0


def test_a_direction_that_was_put_in_is_found() -> None:
    """An embedding of `A` that says something all its own, and pairs that all match in A."""
    pairs = tuple(replace(pair, matching="A", other="B") for pair in PAIRS)
    said = torch.ones(tiny.HIDDEN)

    def cosine_with_what_was_said(added: float) -> float:
        decoder = tiny.decoder("llama")
        letter = readout_of(decoder.tokenizer).token("A")
        decoder.model.get_input_embeddings().weight.data[letter] += added * said
        first = extract(decoder, pairs, convention="study")["vector"].values[0, 0]
        return float(first @ said.numpy() / np.linalg.norm(first) / said.norm())

    assert cosine_with_what_was_said(3.0) > 0.99
    assert abs(cosine_with_what_was_said(0.0)) < 0.5
