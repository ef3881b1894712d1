"""Answers of rows that are decoded together are those of one plain `generate` a cell."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy import stats

from steercube.collect import generate as generate_module
from steercube.collect.decoder import Decoder
from steercube.collect.generate import (
    NONFINITE,
    PAD,
    Decoding,
    check_generation_against_plain_loop,
    generate,
)
from steercube.collect.hooks import Cell, RowSteering
from steercube.collect.plan import POSITIONS
from steercube.collect.readout import Prompt
from steercube.collect.sweep import Run, sweep

QUICK = ("llama", "qwen3", "qwen3_moe", "gemma3", "gpt2", "gptj")
KINDS = (
    *QUICK,
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in tiny.OLDER if kind not in QUICK),
)
SEEDS = {"bloom": 1}
"""Of the models whose answers would end at too few lengths with seed 0."""
N_TOKENS = 8
ENDS = list(range(0, 300, 8))
"""One token in eight ends an answer, so rows finish at every step."""


def decoder(kind: str = "llama", **options: Any) -> Decoder:
    made = tiny.decoder(kind, **options)
    made.model.generation_config.eos_token_id = ENDS
    return made


def cells() -> list[Cell]:
    generator = torch.Generator().manual_seed(1)
    vectors = {layer: torch.randn(tiny.HIDDEN, generator=generator) for layer in (1, 3, 4)}
    return [Cell(layer, s, vectors[layer]) for layer in vectors for s in (-2.0, 1.0)]


@pytest.fixture
def prompts(rng: np.random.Generator) -> list[Prompt]:
    return tiny.prompts(rng)


def plain_loop(
    of: Decoder, prompts: list[Prompt], grid: list[Cell], positions: str, **options: Any
) -> np.ndarray:
    """`model.generate` for each cell and prompt alone, a hook on its block; PAD at the end."""
    out = np.full((1 + len(grid), len(prompts), N_TOKENS), PAD)
    for row, cell in enumerate([None, *grid]):
        for column, prompt in enumerate(prompts):
            start = 0 if positions == "all" else prompt.answer_start
            block = tiny.blocks_of(of.model)[cell.layer if cell else 0]
            handle = block.register_forward_hook(tiny.adding(cell, start)) if cell else None
            with torch.no_grad():
                said = of.model.generate(
                    torch.tensor([prompt.ids]),
                    max_new_tokens=N_TOKENS,
                    do_sample=False,
                    pad_token_id=0,
                    **options,
                )[0, len(prompt.ids) :]
            if handle:
                handle.remove()
            out[row, column, : len(said)] = said.numpy()
    return out


def answered(of: Decoder, prompts: list[Prompt], **options: Any) -> np.ndarray:
    given = {
        "positions": "all",
        "decoding": Decoding(N_TOKENS),
        "max_rows": 100,
    }
    none = np.zeros((len(prompts), 1), dtype=int)
    return generate(of, prompts, none, cells(), **(given | options)).tokens


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_plain_loop(
    kind: str, positions: str, prompts: list[Prompt]
) -> None:
    of = decoder(kind, seed=SEEDS.get(kind, 0))
    plain = plain_loop(of, prompts, cells(), positions)
    for max_rows in (100, 14, 3):
        found = answered(of, prompts, positions=positions, max_rows=max_rows)
        np.testing.assert_array_equal(found, plain)
    # The answers are worth comparing: they end at several lengths, and every cell changes some.
    lengths = (plain != PAD).sum(axis=-1)
    assert len(np.unique(lengths)) > 3
    assert (plain[1:] != plain[0]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_decoding_without_a_cache_says_the_same(
    kind: str, positions: str, prompts: list[Prompt]
) -> None:
    of = decoder(kind)
    uncached = plain_loop(of, prompts[:3], cells(), positions, use_cache=False)
    np.testing.assert_array_equal(answered(of, prompts[:3], positions=positions), uncached)


def test_steering_holds_while_an_answer_is_generated(prompts: list[Prompt]) -> None:
    """A loop that steers the prompt alone says something else."""
    of, cell = decoder(), cells()[0]
    found = answered(of, prompts)

    def prompt_only(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + cell.strength * cell.vector if hidden.shape[1] > 1 else hidden

    differs = []
    for column, prompt in enumerate(prompts):
        handle = of.blocks[cell.layer].register_forward_hook(prompt_only)
        said = of.model.generate(
            torch.tensor([prompt.ids]), max_new_tokens=N_TOKENS, do_sample=False, pad_token_id=0
        )[0, len(prompt.ids) :].numpy()
        handle.remove()
        differs.append(not np.array_equal(found[1, column, : len(said)], said))
    assert any(differs)


def test_the_first_position_is_the_logit_sweeps(
    prompts: list[Prompt], rng: np.random.Generator
) -> None:
    of, answers = decoder("gemma3"), rng.integers(0, 300, (len(prompts), 2))
    for positions in POSITIONS:
        swept = sweep(of, prompts, answers, cells(), positions=positions, max_rows=21)
        found = generate(
            of, prompts, answers, cells(), positions=positions, decoding=Decoding(3), max_rows=100
        )
        np.testing.assert_allclose(found.logprobs, swept.logprobs, atol=1e-4, rtol=0)
        for layer, one in found.touched.items():
            in_the_prompt = swept.touched[layer]
            assert one.rows == in_the_prompt.rows
            at_most = 2 * 2 * len(prompts)  # two steps after the first token, two strengths
            assert in_the_prompt.positions < one.positions <= in_the_prompt.positions + at_most


def test_every_position_of_a_row_that_goes_on_is_touched(prompts: list[Prompt]) -> None:
    of = decoder()
    of.model.generation_config.eos_token_id = None
    found = generate(
        of, prompts, np.zeros((6, 1), int), cells(), positions="answer", decoding=Decoding(5),
        max_rows=50,
    )  # fmt: skip
    in_the_prompt = sum(len(p.ids) - p.answer_start for p in prompts)
    for one in found.touched.values():
        assert one.positions == 2 * (in_the_prompt + 4 * len(prompts))


def test_a_temperature_draws_alike_in_every_batch(prompts: list[Prompt]) -> None:
    of = decoder("qwen3")

    def drawn(which: list[int], seed: int = 0, **options: Any) -> np.ndarray:
        rngs = [np.random.default_rng([seed, i]) for i in which]
        decoding = Decoding(N_TOKENS, temperature=1.0)
        asked = [prompts[i] for i in which]
        return answered(of, asked, decoding=decoding, rngs=rngs, **options)

    together = drawn([0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(drawn([4, 2], max_rows=3), together[:, [4, 2]])
    assert (drawn([0, 1, 2, 3, 4, 5], seed=1) != together).any()
    assert (answered(of, prompts) != together).any()


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """Chi-squared over 20,000 draws of one row; a correct sampler fails once in a thousand."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(1, 12)), dtype=torch.float32)
    n = 20_000
    drawn = generate_module._chosen(
        logits.expand(n, -1), Decoding(1, temperature=0.7), rng.random(n)
    )
    expected = n * (logits[0].double() / 0.7).softmax(-1).numpy()
    observed = np.bincount(drawn, minlength=12)
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    unscaled = n * logits[0].double().softmax(-1).numpy()
    assert stats.chisquare(observed, unscaled).pvalue < 1e-6


def test_memory_that_runs_out_while_decoding_halves_the_rows(
    prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    of, most_rows = decoder(), []
    forward = generate_module.forward

    def small(decoder: Decoder, run: Any) -> Any:
        if len(run.ids) > 20:
            raise torch.OutOfMemoryError("out of memory")
        most_rows.append(len(run.ids))
        return forward(decoder, run)

    whole = answered(of, prompts)
    monkeypatch.setattr(generate_module, "forward", small)
    found = generate(
        of, prompts, np.zeros((6, 1), int), cells(), positions="all",
        decoding=Decoding(N_TOKENS), max_rows=100,
    )  # fmt: skip
    np.testing.assert_array_equal(found.tokens, whole)
    assert found.max_rows < 100
    assert max(most_rows) <= 20
    assert not any(block._forward_hooks for block in of.blocks)


def test_a_model_that_keeps_more_than_keys_and_values_is_refused(prompts: list[Prompt]) -> None:
    of = decoder("gemma3")
    of.model.config.layer_types = ["linear_attention"] * 5
    with pytest.raises(ValueError, match="--outcomes logit"):
        answered(of, prompts)


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_the_check_before_a_run_passes_what_is_right(
    kind: str, dtype: torch.dtype, prompts: list[Prompt]
) -> None:
    of = decoder(kind, dtype=dtype)
    for positions in POSITIONS:
        apart = check_generation_against_plain_loop(
            of, prompts[:2], cells()[::3], positions=positions
        )
        assert apart < 1e-4 or dtype != torch.float32


EDIT, ON = RowSteering._edit, RowSteering.on


def half_a_vector(of: RowSteering, layer: int, of_layer: Any) -> Any:
    """While decoding alone: the prompt is steered as it should be."""
    halved = RowSteering([replace(cell, strength=cell.strength / 2) for cell in of.cells])
    halved.changed = of.changed
    return EDIT(halved, layer, of_layer)


def a_row_without(of: RowSteering, layer: int, of_layer: Any) -> Any:
    return EDIT(of, layer, of_layer[:-1] or of_layer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt2", "gptj"])
@pytest.mark.parametrize("wrong", [half_a_vector, a_row_without])
def test_the_check_before_a_run_refuses_vectors_that_are_not_whole(
    wrong: Callable[..., Any],
    kind: str,
    dtype: torch.dtype,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RowSteering, "_edit", wrong)
    of = decoder(kind, dtype=dtype)
    for positions in POSITIONS:
        with pytest.raises(ValueError, match="please report its name"):
            check_generation_against_plain_loop(of, prompts[:2], cells()[:2], positions=positions)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_check_before_a_run_refuses_a_layer_off_by_one_or_none(
    dtype: torch.dtype, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = decoder(dtype=dtype)
    for wrong in (
        lambda rows, blocks, of_row: ON(rows, (blocks[0], *blocks[:-1]), of_row),
        lambda rows, blocks, of_row: ON(rows, blocks, [-1] * len(of_row)),
    ):
        monkeypatch.setattr(RowSteering, "on", wrong)
        with pytest.raises(ValueError, match="please report its name"):
            check_generation_against_plain_loop(of, prompts[:2], cells()[:2], positions="all")


def test_the_greedy_token_in_bfloat16_is_the_likeliest_before_rounding(
    prompts: list[Prompt],
) -> None:
    """Words 7 and 8 are so near that bfloat16 ties them, and a plain argmax takes the first."""
    of = decoder(dtype=torch.bfloat16)
    of.model.generation_config.eos_token_id = None
    head = of.model.get_output_embeddings()
    with torch.no_grad():
        prompt = torch.tensor([prompts[0].ids])
        hidden = of.model.get_decoder()(input_ids=prompt).last_hidden_state[0, -1]
        head.weight.data *= 0.01
        head.weight.data[7] = 20 * hidden / hidden.float().square().sum()
        head.weight.data[8] = head.weight[7]
        middling = int(hidden.abs().argsort()[16])
        head.weight.data[8, middling] *= 1 + 2**-6
        rounded, exact = head(hidden), hidden.double() @ head.weight.double().T
    if exact[8] < exact[7]:
        head.weight.data[[7, 8]] = head.weight.data[[8, 7]]
        exact[[7, 8]] = exact[[8, 7]]
    assert rounded[7] == rounded[8]
    assert exact.argmax() == 8
    found = answered(of, prompts[:1], decoding=Decoding(1))
    assert found[0, 0, 0] == 8


def one_too_far(run: Run) -> Run:
    """As by a model that counts positions otherwise."""
    return replace(run, positions=run.positions + 1)


def padding_seen(run: Run) -> Run:
    """As by a model that does not take the mask."""
    return replace(run, mask=None)


@pytest.mark.parametrize("wrong", [one_too_far, padding_seen])
@pytest.mark.parametrize("positions", POSITIONS)
def test_the_check_before_a_run_refuses_a_past_that_is_wrong(
    wrong: Callable[[Run], Run],
    positions: str,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By how far the log-probabilities are apart: the likeliest token often stays the same."""
    of, following = decoder(), generate_module._next
    two = sorted(prompts, key=lambda prompt: len(prompt.ids))[:: len(prompts) - 1]
    monkeypatch.setattr(generate_module, "_next", lambda *args: wrong(following(*args)))
    with pytest.raises(ValueError, match="differ from the plain loop's by"):
        check_generation_against_plain_loop(of, two, cells()[:2], positions=positions)


def test_the_check_before_a_run_refuses_a_past_that_is_no_number(
    prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN of ours against a number of the plain loop's is not a small difference."""
    choose = generate_module._chosen

    def broken(logits: torch.Tensor, *args: Any) -> np.ndarray:
        return choose(logits.fill_(float("nan")), *args)

    monkeypatch.setattr(generate_module, "_chosen", broken)
    with pytest.raises(ValueError, match="differ from the plain loop's by inf"):
        check_generation_against_plain_loop(decoder(), prompts[:2], cells(), positions="all")


def test_a_model_that_cannot_run_such_rows_is_refused_in_words(
    prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise IndexError("tuple index out of range")

    monkeypatch.setattr(generate_module, "_next", fails)
    with pytest.raises(ValueError, match=r"rows cannot be decoded together \(IndexError: tuple"):
        check_generation_against_plain_loop(decoder(), prompts[:2], cells(), positions="all")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_end_the_answer(
    temperature: float, prompts: list[Prompt]
) -> None:
    """Only in the cell that has them."""
    of = decoder()
    broken = Cell(3, 1.0, torch.full((tiny.HIDDEN,), float("nan")))
    none = np.zeros((len(prompts), 1), dtype=int)
    found = generate(
        of, prompts, none, [*cells(), broken], positions="all",
        decoding=Decoding(N_TOKENS, temperature),
        rngs=[np.random.default_rng(i) for i in range(len(prompts))] if temperature else (),
        max_rows=100,
    ).tokens  # fmt: skip
    assert (found[-1, :, 0] == NONFINITE).all()
    assert (found[-1, :, 1:] == PAD).all()
    assert not (found[:-1] == NONFINITE).any()


def test_a_temperature_needs_a_stream_for_each_prompt(prompts: list[Prompt]) -> None:
    with pytest.raises(ValueError, match="0 rngs for 6 prompts"):
        answered(decoder(), prompts, decoding=Decoding(3, temperature=1.0))


def test_what_a_generation_config_asks_of_the_greedy_is_named() -> None:
    of = decoder()
    assert of.not_applied == ""
    of.model.generation_config.repetition_penalty = 1.05
    of.model.generation_config.top_k = 20
    assert of.not_applied == "repetition_penalty = 1.05"
