from typing import Any

import numpy as np
import pytest
import tiny
import torch

from steercube.collect import hooks
from steercube.collect.decoder import Decoder
from steercube.collect.hooks import Cell, steering
from steercube.collect.readout import Prompt
from steercube.collect.sweep import POSITIONS, check_against_plain_loop, sweep

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
@pytest.mark.parametrize("kind", ["qwen3_moe", "gemma3"])
def test_batches_and_the_order_of_prompts_change_nothing(
    kind: str, positions: str, asked: tuple[list[Prompt], np.ndarray]
) -> None:
    decoder, (prompts, answers) = tiny.decoder(kind), asked
    one_by_one = sweep(decoder, prompts, answers, cells(), positions=positions, max_rows=7)
    for max_rows in (2, 5, 14, 100):
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


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
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


def limited(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, n_rows: int) -> list[int]:
    """The decoder's second block has memory for so many rows; returns the sizes it was given."""
    sizes: list[int] = []
    block = decoder.blocks[1]
    forward = block.forward

    def checked(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(hidden_states))
        if len(hidden_states) > n_rows:
            raise torch.OutOfMemoryError("no memory for these rows")
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
    """Seen with several prompts only: one row serves all copies by broadcasting."""
    repeated = hooks._repeated

    def in_another_order(value: Any, n_rows: int, copies: int) -> Any:
        found = repeated(value, n_rows, copies)
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


def test_in_bfloat16_it_agrees_as_far_as_rounding_goes(
    asked: tuple[list[Prompt], np.ndarray],
) -> None:
    decoder = tiny.decoder("qwen3", dtype=torch.bfloat16)
    largest = max(
        float(decoder.model(input_ids=torch.tensor([p.ids])).logits.abs().max()) for p in asked[0]
    )
    assert check(decoder, asked) < 2 * torch.finfo(torch.bfloat16).eps * largest
