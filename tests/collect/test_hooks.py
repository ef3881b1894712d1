from contextlib import ExitStack
from typing import Any

import pytest
import tiny
import torch
from accelerate import cpu_offload
from torch.utils._python_dispatch import TorchDispatchMode

from steercube.collect import hooks
from steercube.collect.hooks import Cell, FanOut, RowSteering, reading_out, record, steering


def hooks_on(blocks: tuple[torch.nn.Module, ...]) -> int:
    return sum(len(b._forward_hooks) + len(b._forward_pre_hooks) for b in blocks)


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    blocks = tiny.decoder("llama").blocks
    ids = torch.zeros(1, dtype=torch.long)
    cell = Cell(1, 1.0, torch.ones(tiny.HIDDEN))
    steer = torch.ones(1, 3, dtype=torch.bool)
    for opened in (
        lambda: record(blocks, at=ids),
        lambda: steering(blocks[1], cell, steer),
        lambda: FanOut([cell], steer).on(blocks),
        lambda: RowSteering([cell]).on(blocks, [-1, 0]),
    ):
        with opened():
            assert hooks_on(blocks) > 0
        with pytest.raises(KeyError), opened():
            raise KeyError
        assert hooks_on(blocks) == 0


def test_the_output_of_a_block_is_the_next_hidden_state_but_for_the_last() -> None:
    """Hugging Face's last hidden state is taken after the final norm; the hook's is not."""
    decoder = tiny.decoder("qwen3")
    ids = torch.arange(12).view(2, 6)
    with record(decoder.blocks, at=torch.tensor([5, 3])) as seen, torch.no_grad():
        out = decoder.model(input_ids=ids, output_hidden_states=True)
    assert len(seen) == decoder.n_layers
    for layer, found in enumerate(seen[:-1]):
        expected = out.hidden_states[layer + 1][[0, 1], [5, 3]]
        torch.testing.assert_close(found, expected)
    last = out.hidden_states[-1][[0, 1], [5, 3]]
    assert not torch.allclose(seen[-1], last)
    torch.testing.assert_close(decoder.model.get_decoder().norm(seen[-1]), last)


def test_the_input_of_a_block_is_the_output_of_the_one_before() -> None:
    decoder = tiny.decoder("gemma3")
    at = torch.tensor([4])
    with (
        record(decoder.blocks, at=at) as outputs,
        record(decoder.blocks, at=at, of_input=True) as inputs,
        torch.no_grad(),
    ):
        decoder.model(input_ids=torch.arange(6)[None])
    for output, following in zip(outputs[:-1], inputs[1:], strict=True):
        torch.testing.assert_close(output, following)


def test_steering_adds_where_it_is_told_to_and_in_every_row() -> None:
    decoder = tiny.decoder("llama")
    ids = torch.arange(12).view(2, 6)
    steer = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]]).bool()
    vector = torch.randn(tiny.HIDDEN)
    residuals: list[torch.Tensor] = []
    decoder.blocks[3].register_forward_pre_hook(lambda module, args: residuals.append(args[0]))
    for strength in (0.0, 2.0):
        with steering(decoder.blocks[2], Cell(2, strength, vector), steer), torch.no_grad():
            decoder.model(input_ids=ids)
    added = residuals[1] - residuals[0]
    torch.testing.assert_close(added[steer], (2 * vector).expand(5, -1), atol=1e-5, rtol=0)
    assert (added[~steer] == 0).all()


def test_each_row_is_steered_in_its_own_cell() -> None:
    """Rows of one batch against the plain way, one by one; the same is counted as changed."""
    decoder = tiny.decoder("llama")
    cells = [
        Cell(layer, s, torch.ones(tiny.HIDDEN)) for layer, s in ((3, 2.0), (1, -1.0), (3, 1.0))
    ]
    of_row = [2, -1, 1, 0]
    ids = torch.arange(16).view(4, 4)
    rows = RowSteering(cells)
    with torch.no_grad():
        with rows.on(decoder.blocks, of_row):
            together = decoder.model(input_ids=ids).logits
        every = torch.ones(1, 4, dtype=torch.bool)
        for row, index in enumerate(of_row):
            with ExitStack() as undo:
                if index >= 0:
                    cell = cells[index]
                    undo.enter_context(steering(decoder.blocks[cell.layer], cell, every))
                alone = decoder.model(input_ids=ids[row : row + 1]).logits
            torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=0)
    assert {layer: int(n) for layer, n in rows.changed.items()} == {1: 4, 3: 8}


class NumbersRead(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a GPU would have to finish."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_receipts_are_read_after_the_pass() -> None:
    decoder = tiny.decoder("llama")
    cells = [Cell(layer, 1.0, torch.ones(tiny.HIDDEN)) for layer in (0, 1, 1, 3)]
    pass_ = FanOut(cells, torch.ones(2, 6, dtype=torch.bool))
    with torch.no_grad(), NumbersRead() as read:
        decoder.model(input_ids=torch.arange(12).view(2, 6))
        of_the_model = read.n
        with pass_.on(decoder.blocks):
            decoder.model(input_ids=torch.arange(12).view(2, 6))
        assert read.n == 2 * of_the_model
        touched = pass_.touched
        assert read.n == 2 * of_the_model + 3 * 3
    assert {layer: one.positions for layer, one in touched.items()} == {0: 12, 1: 24, 3: 12}


HALF = torch.bfloat16


def head(words: int = 300, size: int = tiny.HIDDEN, *, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(size, words, bias=bias, dtype=HALF)


def exact(of: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    found = hidden.double() @ of.weight.double().T
    return found if of.bias is None else found + of.bias.double()


@pytest.mark.parametrize("bias", [False, True])
def test_the_output_embedding_reads_some_positions_in_float32(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "AT_ONCE", 7 * tiny.HIDDEN)
    of, hidden = head(bias=bias), torch.randn(2, 5, tiny.HIDDEN, dtype=HALF)
    at = torch.tensor([[4], [2]])
    with torch.no_grad(), reading_out(of, at):
        found = of(hidden)
    wanted = exact(of, hidden[[0, 1], [4, 2]])[:, None]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted.float(), atol=1e-5, rtol=0)
    assert of(hidden).dtype == HALF
    assert "forward" not in vars(of)


def test_an_error_in_the_output_embedding_leaves_it_as_it_was() -> None:
    of = head()
    with pytest.raises(RuntimeError), reading_out(of):
        of(torch.zeros(1, tiny.HIDDEN + 1, dtype=HALF))
    assert "forward" not in vars(of)
    with reading_out(None):
        pass


def test_a_float32_output_embedding_computes_bit_for_bit_as_ever() -> None:
    of, hidden = head().float(), torch.randn(2, 5, tiny.HIDDEN)
    with reading_out(of):
        assert torch.equal(of(hidden), torch.nn.functional.linear(hidden, of.weight, of.bias))


def test_a_quantised_output_embedding_computes_as_it_does() -> None:
    """It multiplies by means of its own, whatever they are."""

    class Quantised(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden @ torch.ones(tiny.HIDDEN, 3, dtype=HALF)

    with reading_out(Quantised()):
        assert Quantised()(torch.ones(1, tiny.HIDDEN, dtype=HALF)).dtype == HALF


def test_weights_that_accelerate_holds_elsewhere_are_read_where_it_puts_them() -> None:
    of, hidden = head(), torch.randn(2, 1, tiny.HIDDEN, dtype=HALF)
    wanted = exact(of, hidden)
    cpu_offload(of, execution_device=torch.device("cpu"))
    assert of.weight.device.type == "meta"
    given = of.forward
    with torch.no_grad(), reading_out(of):
        found = of(hidden)
    assert of.forward == given
    torch.testing.assert_close(found, wanted.float(), atol=1e-5, rtol=0)


def test_no_float32_copy_of_the_output_embedding_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "AT_ONCE", 16 * tiny.HIDDEN)
    of, hidden = head(words=5000, bias=False), torch.randn(3, 1, tiny.HIDDEN, dtype=HALF)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                sizes.append(out.numel())
            return out

    with torch.no_grad(), reading_out(of), Sizes():
        of(hidden)
    assert max(sizes) == 3 * 5000  # the logits themselves
    assert sorted(set(sizes))[-2] <= 16 * tiny.HIDDEN
