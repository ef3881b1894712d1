from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, GPTBigCodeConfig

from steercube.collect import hooks
from steercube.collect.decoder import Decoder, decoder_of
from steercube.collect.hooks import Cell, FanOut, steering
from steercube.collect.plan import POSITIONS
from steercube.collect.readout import Prompt
from steercube.collect.sweep import (
    as_large_as_the_residual,
    check_against_plain_loop,
    lacks_memory,
    require_alike,
    sweep,
)

LAYERS = (1, 3, 4)
STRENGTHS = (-2.0, 1.0)


def cells(hidden: int = tiny.HIDDEN, layers: tuple[int, ...] = LAYERS) -> list[Cell]:
    generator = torch.Generator().manual_seed(1)
    vectors = {layer: torch.randn(hidden, generator=generator) for layer in layers}
    return [Cell(layer, s, vectors[layer]) for layer in layers for s in STRENGTHS]


@pytest.fixture
def asked(rng: np.random.Generator) -> tuple[list[Prompt], np.ndarray]:
    return tiny.prompts(rng), rng.integers(0, 300, (6, 2))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_one_pass_is_the_plain_loop(
    kind: str, positions: str, asked: tuple[list[Prompt], np.ndarray]
) -> None:
    decoder = tiny.decoder(kind)
    found = sweep(decoder, *asked, cells(), positions=positions, max_rows=21).logprobs
    plain = tiny.plain_loop(decoder, *asked, cells(), positions)
    np.testing.assert_allclose(found, plain, atol=1e-4, rtol=0)
    # The loop itself steers: every cell moves some prompt's logits.
    assert (abs(plain[1:] - plain[0]).max(axis=(1, 2)) > 0.05).all()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", ["qwen3_moe", "gemma3", *tiny.OLDER])
def test_batches_and_the_order_of_prompts_change_nothing(
    kind: str, positions: str, asked: tuple[list[Prompt], np.ndarray]
) -> None:
    decoder, (prompts, answers) = tiny.decoder(kind), asked
    one_by_one = sweep(decoder, prompts, answers, cells(), positions=positions, max_rows=7)
    for max_rows in (2, 5, 14, 28, 100):
        again = sweep(decoder, prompts, answers, cells(), positions=positions, max_rows=max_rows)
        np.testing.assert_allclose(again.logprobs, one_by_one.logprobs, atol=1e-4)
        assert again.touched.keys() == one_by_one.touched.keys()
        for layer, receipt in again.touched.items():
            assert receipt.rows == one_by_one.touched[layer].rows
            assert receipt.positions == one_by_one.touched[layer].positions
            assert receipt.ratio == pytest.approx(one_by_one.touched[layer].ratio, rel=1e-4)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = sweep(
        decoder,
        [prompts[i] for i in order],
        answers[order],
        cells(),
        positions=positions,
        max_rows=14,
    )
    np.testing.assert_allclose(shuffled.logprobs, one_by_one.logprobs[:, order], atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", *tiny.OLDER])
def test_padding_on_the_left_gives_the_same(
    kind: str, asked: tuple[list[Prompt], np.ndarray]
) -> None:
    """A batch that others would pad on the left, through the model's own mask and positions."""
    decoder, (prompts, answers) = tiny.decoder(kind), asked
    found = sweep(decoder, prompts, answers, [], positions="all", max_rows=10).logprobs[0]
    width = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p.ids)) + list(p.ids) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts])
    with torch.no_grad():
        logits = decoder.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        ).logits[:, -1]
    left = logits.log_softmax(-1).gather(-1, torch.as_tensor(answers))
    np.testing.assert_allclose(found, left.numpy(), atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_strength_0_is_the_unhooked_model_bit_for_bit(
    positions: str, asked: tuple[list[Prompt], np.ndarray]
) -> None:
    decoder, (prompts, answers) = tiny.decoder("qwen3"), asked
    zero = [Cell(cell.layer, 0.0, cell.vector) for cell in cells()]
    for prompt, answer in zip(prompts, answers, strict=True):
        # The same position and no more, so that the unembedding's product has the same shape.
        with torch.inference_mode():
            ids = torch.tensor([prompt.ids])
            logits = decoder.model(input_ids=ids, logits_to_keep=1).logits[0, -1]
        unhooked = logits.log_softmax(-1)[answer].numpy()
        found = sweep(decoder, [prompt], answer[None], [], positions="all", max_rows=2).logprobs
        assert (found[0, 0] == unhooked).all()
        with torch.inference_mode(), steering(decoder.blocks[2], zero[2], torch.ones(1, 1)):
            nothing_added = decoder.model(input_ids=ids, logits_to_keep=1).logits[0, -1]
        assert (nothing_added == logits).all()
        # Copies run in one larger product, whose rounding depends on its size.
        copies = sweep(decoder, [prompt], answer[None], zero, positions=positions, max_rows=7)
        np.testing.assert_allclose(copies.logprobs[:, 0], np.tile(unhooked, (7, 1)), atol=1e-5)


def test_receipts_count_what_was_touched(asked: tuple[list[Prompt], np.ndarray]) -> None:
    decoder, (prompts, answers) = tiny.decoder("llama"), asked
    for positions in POSITIONS:
        found = sweep(decoder, prompts, answers, cells(), positions=positions, max_rows=30)
        steered = sum(len(p.ids) - (0 if positions == "all" else p.answer_start) for p in prompts)
        for receipt in found.touched.values():
            assert receipt.rows == len(prompts) * len(STRENGTHS)
            assert receipt.positions == steered * len(STRENGTHS)
            assert receipt.n_prompts == len(prompts)
    faint = [Cell(2, strength, torch.ones(tiny.HIDDEN)) for strength in (1.0, 1e-12)]
    one_of_two = sweep(decoder, prompts, answers, faint, positions="all", max_rows=30).touched[2]
    assert one_of_two.rows == len(prompts)
    zero = [Cell(2, 1.0, torch.zeros(tiny.HIDDEN))]
    nothing = sweep(decoder, prompts, answers, zero, positions="all", max_rows=30).touched[2]
    assert (nothing.rows, nothing.positions, nothing.ratio) == (0, 0, 0.0)


def test_the_ratio_is_that_of_the_residual_stream(
    asked: tuple[list[Prompt], np.ndarray],
) -> None:
    decoder, (prompts, answers) = tiny.decoder("llama"), asked
    vector = torch.randn(tiny.HIDDEN)
    cell = [Cell(2, 3.0, vector)]
    found = sweep(decoder, prompts[:1], answers[:1], cell, positions="all", max_rows=2).touched[2]
    with torch.no_grad():
        hidden = decoder.model(
            input_ids=torch.tensor([prompts[0].ids]), output_hidden_states=True
        ).hidden_states[3][0]
    ratio = (3 * vector.norm() / hidden.norm(dim=-1)).mean()
    assert found.ratio == pytest.approx(float(ratio), rel=1e-5)


def limited(
    decoder: Decoder,
    monkeypatch: pytest.MonkeyPatch,
    n_rows: int,
    error: Exception | None = None,
) -> list[int]:
    """The decoder's second block has memory for so many rows; returns the sizes it was given."""
    sizes: list[int] = []
    block = decoder.blocks[1]
    forward = block.forward

    def checked(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(hidden_states))
        if len(hidden_states) > n_rows:
            raise error or torch.OutOfMemoryError("no memory for these rows")
        return forward(hidden_states, *args, **kwargs)

    monkeypatch.setattr(block, "forward", checked)
    return sizes


def test_without_memory_the_bound_halves_and_nothing_else_changes(
    asked: tuple[list[Prompt], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, (prompts, answers) = tiny.decoder("llama"), asked
    wanted = [Cell(layer, s, c.vector) for c in cells() for layer in (0,) for s in (1.0, 2.0)]
    plenty = sweep(decoder, prompts, answers, wanted, positions="all", max_rows=100)
    told: list[int] = []
    sizes = limited(decoder, monkeypatch, 5)
    scarce = sweep(
        decoder, prompts, answers, wanted, positions="all", max_rows=100, progress=told.append
    )
    np.testing.assert_allclose(scarce.logprobs, plenty.logprobs, atol=1e-4)
    assert scarce.touched[0].rows == plenty.touched[0].rows
    assert scarce.max_rows == 3
    assert max(sizes) > 5
    assert sum(told) == (1 + len(wanted)) * len(prompts)


def test_where_one_cell_does_not_fit_the_error_says_so(
    asked: tuple[list[Prompt], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny.decoder("llama")
    limited(decoder, monkeypatch, 0)
    with pytest.raises(MemoryError, match="one prompt and one steered copy"):
        sweep(decoder, *asked, cells(), positions="all", max_rows=64)
    with pytest.raises(ValueError, match="max_rows = 1"):
        sweep(decoder, *asked, cells(), positions="all", max_rows=1)


def test_another_error_is_not_taken_for_a_lack_of_memory(
    asked: tuple[list[Prompt], np.ndarray],
) -> None:
    wrong_size = [Cell(1, 1.0, torch.ones(tiny.HIDDEN + 1))]
    with pytest.raises(RuntimeError, match="size of tensor"):
        sweep(tiny.decoder("llama"), *asked, wrong_size, positions="all", max_rows=8)


def check(
    decoder: Decoder, asked: tuple[list[Prompt], np.ndarray], positions: str = "all"
) -> float:
    prompts, answers = asked
    return check_against_plain_loop(decoder, prompts[:2], answers[:2], cells(), positions=positions)


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_check_passes_a_model_that_works(
    positions: str, asked: tuple[list[Prompt], np.ndarray]
) -> None:
    assert check(tiny.decoder("gemma3"), asked, positions) < 1e-4


def test_the_check_refuses_a_model_whose_rows_see_each_other(
    asked: tuple[list[Prompt], np.ndarray],
) -> None:
    """As a mixture of experts of limited capacity would."""
    decoder = tiny.decoder("llama")
    decoder.blocks[2].register_forward_hook(
        lambda module, args, out: out + 0.01 * out.mean(0, True)
    )
    with pytest.raises(ValueError, match="differs from the plain loop by"):
        check(decoder, asked)


def test_the_check_refuses_companions_that_are_repeated_wrongly(
    asked: tuple[list[Prompt], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen with several prompts only: of one prompt, all copies are given the same."""
    repeated = hooks._repeated

    def in_another_order(value: Any, *args: Any) -> Any:
        found = repeated(value, *args)
        return found.flip(0) if isinstance(found, torch.Tensor) and found is not value else found

    monkeypatch.setattr(hooks, "_repeated", in_another_order)
    with pytest.raises(ValueError, match="differs from the plain loop by"):
        check(tiny.decoder("llama"), asked, "answer")


def test_the_check_refuses_blocks_that_cannot_take_more_rows(
    asked: tuple[list[Prompt], np.ndarray],
) -> None:
    decoder = tiny.decoder("llama")
    decoder.blocks[2].register_forward_hook(lambda module, args, out: out + out[:2].repeat(3, 1, 1))
    with pytest.raises(ValueError, match="its blocks cannot be run on more rows"):
        check(decoder, asked)


def test_what_a_block_raises_for_more_rows_is_told_in_words(
    asked: tuple[list[Prompt], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As XGLM's for a mask of one row."""
    decoder, (prompts, answers) = tiny.decoder("llama"), asked
    limited(decoder, monkeypatch, 2, ValueError("Attention mask should be of size (3, 1, 9, 9)"))
    with pytest.raises(ValueError, match=r"more rows than the model was given \(ValueError: Att"):
        check_against_plain_loop(
            decoder, prompts[:2], answers[:2], cells(layers=(0,)), positions="all"
        )


def test_the_check_refuses_a_decoder_that_counts_its_rows_afterwards(
    asked: tuple[list[Prompt], np.ndarray],
) -> None:
    """GPT-BigCode's gives its last block's output the number of rows that it was given."""
    config = GPTBigCodeConfig(**tiny.SHAPE, vocab_size=300)
    model = AutoModelForCausalLM.from_config(config)
    decoder = decoder_of(model, tiny.tokenizer(), name="bigcode")
    for positions in POSITIONS:
        with pytest.raises(ValueError, match=r"'bigcode': its blocks cannot be run on more rows"):
            check(decoder, asked, positions)


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_the_check_passes_what_rounding_does(
    kind: str, dtype: torch.dtype, asked: tuple[list[Prompt], np.ndarray]
) -> None:
    for positions in POSITIONS:
        check(tiny.decoder(kind, dtype=dtype), asked, positions)


def half_a_vector(of: FanOut, layer: int, cells: list[Cell]) -> Any:
    return COPIES(of, layer, [replace(cell, strength=cell.strength / 2) for cell in cells])


def a_row_without(of: FanOut, layer: int, cells: list[Cell]) -> Any:
    """After the receipt, so that only the numbers can show it."""
    edit, n_rows = COPIES(of, layer, cells), len(of.steer)

    def edited(hidden: torch.Tensor) -> torch.Tensor:
        out = edit(hidden).clone()
        out[-1] = hidden[n_rows - 1]
        return out

    return edited


def one_position_too_few(of: FanOut, layer: int, cells: list[Cell]) -> Any:
    """The first of them, which no logit is read from."""
    steer = of.steer.clone()
    for row in steer:
        row[row.nonzero()[0]] = False
    return COPIES(replace(of, steer=steer), layer, cells)


COPIES = FanOut._copies


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3", "gpt2", "gptj", "bloom"])
@pytest.mark.parametrize("wrong", [half_a_vector, a_row_without, one_position_too_few])
def test_the_check_refuses_vectors_that_are_not_whole(
    wrong: Callable[..., Any],
    kind: str,
    dtype: torch.dtype,
    asked: tuple[list[Prompt], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = tiny.decoder(kind, dtype=dtype)
    monkeypatch.setattr(FanOut, "_copies", wrong)
    for positions in POSITIONS:
        with pytest.raises(ValueError, match="not supported"):
            check(of, asked, positions)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3", "gpt2", "gptj", "bloom"])
@pytest.mark.parametrize("step", [-1, 1])
def test_the_check_refuses_a_layer_off_by_one(
    step: int,
    kind: str,
    dtype: torch.dtype,
    asked: tuple[list[Prompt], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And says so by its logits: the receipts are of the layers that were asked for."""
    on = FanOut.on

    def shifted(of: FanOut, blocks: tuple[torch.nn.Module, ...]) -> Any:
        by_layer = [blocks[(layer + step) % len(blocks)] for layer in range(len(blocks))]
        return on(of, by_layer)

    monkeypatch.setattr(FanOut, "on", shifted)
    prompts, answers = asked
    of = tiny.decoder(kind, dtype=dtype)
    for positions in POSITIONS:
        with pytest.raises(ValueError, match=r"differs from the plain loop|cannot be run on more"):
            check_against_plain_loop(
                of, prompts[:2], answers[:2], cells(layers=(2,)), positions=positions
            )


def test_the_check_needs_no_vector_but_says_nothing_of_one_that_is_zero(
    asked: tuple[list[Prompt], np.ndarray],
) -> None:
    prompts, answers = asked
    zero = [Cell(1, 1.0, torch.zeros(tiny.HIDDEN)), *cells(layers=(3,))]
    assert (
        check_against_plain_loop(tiny.decoder(), prompts[:2], answers[:2], zero, positions="all")
        < 1e-4
    )


def test_a_checks_vectors_are_as_large_as_the_residual_stream(
    asked: tuple[list[Prompt], np.ndarray],
) -> None:
    of, (prompts, answers) = tiny.decoder("gemma3"), asked
    scaled = as_large_as_the_residual(of, prompts[:1], cells())
    found = sweep(of, prompts[:1], answers[:1], scaled, positions="answer", max_rows=7)
    assert [cell.strength < 0 for cell in scaled] == [cell.strength < 0 for cell in cells()]
    for receipt in found.touched.values():
        assert receipt.ratio == pytest.approx(1, rel=0.5)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, other allocations: 2 GB)"),
        RuntimeError("level_zero backend failed with error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"),
        MemoryError("Unable to allocate 1.2 GiB for an array"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_a_lack_of_memory_is_known_by_every_name(
    error: Exception, asked: tuple[list[Prompt], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lacks_memory(error)
    decoder = tiny.decoder("llama")
    limited(decoder, monkeypatch, 5, error)
    assert sweep(decoder, *asked, cells(), positions="all", max_rows=64).max_rows == 32


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling ..."),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        OSError("out of memory"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_another_error_is_raised_as_it_is(
    error: Exception, asked: tuple[list[Prompt], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not lacks_memory(error)
    decoder = tiny.decoder("llama")
    limited(decoder, monkeypatch, 5, error)
    with pytest.raises(type(error)) as raised:
        sweep(decoder, *asked, cells(), positions="all", max_rows=64)
    assert raised.value is error


def last_hidden_and_logits(of: Decoder, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the output embedding at the last position, and the model's own logits."""
    seen: list[torch.Tensor] = []
    handle = of.model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.inference_mode():
        # Without a cache, as a sweep runs it: CodeGen rounds keys otherwise where it has one.
        logits = of.model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1]
    handle.remove()
    return seen[0][:, -1], logits


def with_large_logits(of: Decoder) -> Decoder:
    """Logits near 20 have steps of 1/8 in bfloat16."""
    head = of.model.get_output_embeddings()
    head.weight.data *= 20 / head(torch.ones(1, tiny.HIDDEN, dtype=head.weight.dtype)).abs().max()
    return of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_logits_of_halves_are_summed_in_float32(kind: str, dtype: torch.dtype) -> None:
    """Against float64 from the same hidden state; the model's own are far from it."""
    of = with_large_logits(tiny.decoder(kind, dtype=dtype))
    ids = torch.arange(12)[None]
    every = np.arange(300)[None]
    hidden, own = last_hidden_and_logits(of, ids)
    exact = hidden.double() @ of.model.get_output_embeddings().weight.double().T
    exact = exact.log_softmax(-1)[0].numpy()
    prompt = Prompt(tuple(range(12)), 9)
    found = sweep(of, [prompt], every, [], positions="all", max_rows=2).logprobs[0, 0]
    assert abs(found - exact).max() < 1e-3
    rounding = 0.03 if dtype == torch.bfloat16 else 0.004
    assert abs(own.float().log_softmax(-1)[0].numpy() - exact).max() > rounding


def test_capped_logits_are_capped_in_float32() -> None:
    """What a model does after its output embedding (Gemma 2's cap) sees float32 too."""
    of = with_large_logits(tiny.decoder("gemma3", dtype=torch.bfloat16))
    of.model.config.final_logit_softcapping = 15.0
    hidden, own = last_hidden_and_logits(of, torch.arange(12)[None])
    exact = hidden.double() @ of.model.get_output_embeddings().weight.double().T
    exact = (15 * torch.tanh(exact / 15)).log_softmax(-1)[0].numpy()
    found = sweep(
        of, [Prompt(tuple(range(12)), 9)], np.arange(300)[None], [], positions="all", max_rows=2
    ).logprobs[0, 0]
    assert abs(found - exact).max() < 1e-3
    assert abs(own.float().log_softmax(-1)[0].numpy() - exact).max() > 0.01


def alike(found: np.ndarray, *, own: float = 0.0) -> float:
    """`require_alike` of log-probabilities (2 cells, 2 prompts, 500 tokens) of spread 1."""
    rng = np.random.default_rng(1)
    return require_alike(
        [found],
        plain=PLAIN,
        again=PLAIN + own * rng.normal(size=PLAIN.shape),
        unsteered=lambda: PLAIN + rng.normal(size=PLAIN.shape),
        eps=2.0**-7,
        what="ours differs",
        remedy="",
    )


PLAIN = np.random.default_rng(0).normal(size=(2, 2, 500))
UNIT = 2.0**-7


def test_what_a_check_allows_follows_the_plain_loops_own_difference() -> None:
    """Of one unit, 12 are allowed; of five, 15; never more than 20."""
    noise = np.random.default_rng(2).normal(size=PLAIN.shape) * UNIT
    for own, most in ((0.0, 12), (1.0, 12), (5.0, 15), (100.0, 20)):
        alike(PLAIN + 0.9 * most * noise, own=own * UNIT)
        with pytest.raises(ValueError, match="ours differs by"):
            alike(PLAIN + 1.1 * most * noise, own=own * UNIT)


def test_one_row_may_be_rounded_to_another_expert_but_not_lack_its_vector() -> None:
    noise = np.random.default_rng(2).normal(size=500)
    for of_the_effect, refused in ((0.3, False), (1.0, True)):
        found = PLAIN.copy()
        found[1, 0] += of_the_effect * noise
        if refused:
            with pytest.raises(ValueError, match="ours differs by"):
                alike(found)
        else:
            assert alike(found) == pytest.approx(0.3 * abs(noise).max())


def test_what_is_no_number_is_no_small_difference() -> None:
    found = PLAIN.copy()
    found[0, 0, 3] = np.nan
    with pytest.raises(ValueError, match="inf in the worst"):
        alike(found)
