"""What is done to a model while it runs: record, steer, fan out, read out. Always undone again.

All of it works on the decoder blocks and the output embedding from outside; no model's forward is
written again here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

Edit = Callable[[Tensor], Tensor]
HALVES = (torch.bfloat16, torch.float16)
AT_ONCE = 2**22
"""Numbers of an unembedding that are held in float32 at a time (16 MiB of several GB)."""


@contextmanager
def record(blocks: Sequence[nn.Module], *, at: Tensor, of_input: bool = False) -> Iterator[Any]:
    """A list that the next forward fills with the residual stream of each block, in order.

    Each entry is (row, hidden), at position `at` (row) of the block's output, or of its input.
    """
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        seen.append(hidden[rows, at.to(hidden.device)])
        return hidden

    with ExitStack() as undo:
        for block in blocks:
            undo.enter_context(_on_input(block, keep) if of_input else _on_output(block, keep))
        yield seen


@dataclass(frozen=True)
class Cell:
    """One steered copy of the batch: `vector` (hidden) times `strength` added after `layer`."""

    layer: int
    strength: float
    vector: Tensor

    def added_to(self, hidden: Tensor) -> Tensor:
        """strength x vector (hidden), as it is added to such a residual stream."""
        return (self.strength * self.vector.to(hidden.device)).to(hidden.dtype)


@dataclass(frozen=True)
class Touched:
    """What was really done after one block: a receipt.

    `ratio` is |added| / |residual|, its mean over steered positions and then over prompts, measured
    on the rows themselves at the largest |strength|.
    """

    rows: int
    positions: int
    ratio: float
    n_prompts: int

    def with_more_cells(self, other: "Touched") -> "Touched":
        """Of the same prompts."""
        return Touched(
            self.rows + other.rows,
            self.positions + other.positions,
            max(self.ratio, other.ratio),
            self.n_prompts,
        )

    def with_more_prompts(self, other: "Touched") -> "Touched":
        """Of the same cells."""
        n = self.n_prompts + other.n_prompts
        ratio = (self.ratio * self.n_prompts + other.ratio * other.n_prompts) / n
        return Touched(self.rows + other.rows, self.positions + other.positions, ratio, n)


@contextmanager
def steering(block: nn.Module, cell: Cell, steer: Tensor) -> Iterator[None]:
    """The plain way: `block` adds the cell's vector where `steer` (row, position) is True."""
    with _on_output(block, lambda hidden: hidden + _added(cell, hidden, steer)):
        yield


def _added(cell: Cell, hidden: Tensor, steer: Tensor) -> Tensor:
    return cell.added_to(hidden) * steer.to(hidden.device)[:, :, None]


class RowSteering:
    """Rows of one batch, each steered in its own of `cells` at every position that is run.

    `changed` counts, by layer, the positions that a vector changed, on the device.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self.changed: dict[int, Tensor] = {}
        self._added: dict[int, Tensor] = {}

    @contextmanager
    def on(self, blocks: Sequence[nn.Module], of_row: Sequence[int]) -> Iterator[None]:
        """While this is open; `of_row` is each row's index into `cells`, -1 for none."""
        rows: dict[int, list[tuple[int, int]]] = {}
        for row, cell in enumerate(of_row):
            if cell >= 0:
                rows.setdefault(self.cells[cell].layer, []).append((row, cell))
        with ExitStack() as undo:
            for layer, of_layer in rows.items():
                undo.enter_context(_on_output(blocks[layer], self._edit(layer, of_layer)))
            yield

    def _edit(self, layer: int, of_layer: Sequence[tuple[int, int]]) -> Edit:
        own = [i for i, cell in enumerate(self.cells) if cell.layer == layer]
        place = {cell: i for i, cell in enumerate(own)}

        def edit(hidden: Tensor) -> Tensor:
            if layer not in self._added:
                added = [self.cells[i].added_to(hidden) for i in own]
                self._added[layer] = torch.stack(added)[:, None]
            rows, cells = torch.tensor(
                [(row, place[cell]) for row, cell in of_layer], device=hidden.device
            ).T
            added = self._added[layer][cells].expand(-1, hidden.shape[1], -1)
            steered = hidden.index_add(0, rows, added)
            moved = (steered[rows] != hidden[rows]).any(dim=-1).sum()
            self.changed[layer] = self.changed[layer] + moved if layer in self.changed else moved
            return steered

        return edit


@dataclass
class FanOut:
    """After each layer of `cells`, one steered copy of the batch for each of them.

    Rows come out as (1 + len(cells)) x batch, the unsteered ones first, then cells by layer and in
    the order given. A copy that starts after block L has never been in the blocks up to L. Only
    position `last` (row) leaves the last block. `steer` is (row, position), True where vectors
    are added.
    """

    cells: Sequence[Cell]
    steer: Tensor
    last: Tensor
    touched: dict[int, Touched] = field(default_factory=dict)

    @property
    def ordered(self) -> list[int]:
        """Index into `cells` of each block of rows after the first."""
        return sorted(range(len(self.cells)), key=lambda i: self.cells[i].layer)

    @contextmanager
    def on(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """The model fans out while this is open."""
        by_layer: dict[int, list[Cell]] = {}
        for cell in self.cells:
            by_layer.setdefault(cell.layer, []).append(cell)
        n_rows = len(self.last)
        with ExitStack() as undo:
            for layer, block in enumerate(blocks):
                undo.enter_context(_repeating_companions(block, n_rows))
                if layer in by_layer:
                    undo.enter_context(_on_output(block, self._copies(layer, by_layer[layer])))
            undo.enter_context(_on_output(blocks[-1], self._only_last))
            yield

    def _copies(self, layer: int, cells: Sequence[Cell]) -> Edit:
        def fan_out(hidden: Tensor) -> Tensor:
            base = hidden[: len(self.last)]
            steered = [base + _added(cell, base, self.steer) for cell in cells]
            largest = max(range(len(cells)), key=lambda i: abs(cells[i].strength))
            self.touched[layer] = _receipt(base, steered, largest, self.steer)
            return torch.cat([hidden, *steered])

        return fan_out

    def _only_last(self, hidden: Tensor) -> Tensor:
        last = self.last.to(hidden.device).repeat(hidden.shape[0] // len(self.last))
        return hidden[torch.arange(len(last), device=hidden.device), last][:, None]


def _receipt(base: Tensor, steered: Sequence[Tensor], largest: int, steer: Tensor) -> Touched:
    """Measured on the rows: in how many of them, and where, a copy differs from the batch."""
    at = steer.to(base.device)
    changed = [(copy != base).any(dim=-1) for copy in steered]
    added = (steered[largest] - base).float().norm(dim=-1)
    ratio = added / base.float().norm(dim=-1).clamp_min(1e-30)
    return Touched(
        rows=int(sum(copy.any(dim=-1).sum() for copy in changed)),
        positions=int(sum(copy.sum() for copy in changed)),
        ratio=float(((ratio * at).sum(dim=-1) / at.sum(dim=-1)).mean()),
        n_prompts=len(base),
    )


def _on_output(block: nn.Module, edit: Edit) -> RemovableHandle:
    """While the handle is open, what `block` returns is edited."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        # A block returns its hidden states, or a tuple that begins with them.
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return block.register_forward_hook(hook)


def _on_input(block: nn.Module, edit: Edit) -> RemovableHandle:
    """While the handle is open, what `block` is given is edited."""

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edit(kwargs["hidden_states"])}

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def _repeating_companions(block: nn.Module, n_rows: int) -> RemovableHandle:
    """Whatever else the block is given for each of `n_rows` rows is repeated for their copies.

    Masks, positions, rotary angles: any tensor whose first of several dimensions has `n_rows`.
    One row serves all copies by broadcasting.
    """

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        copies = hidden.shape[0] // n_rows
        if copies == 1 or n_rows == 1:
            return None
        return (
            (*args[:1], *(_repeated(a, n_rows, copies) for a in args[1:])),
            {
                name: value if value is hidden else _repeated(value, n_rows, copies)
                for name, value in kwargs.items()
            },
        )

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def _repeated(value: Any, n_rows: int, copies: int) -> Any:
    if isinstance(value, Tensor):
        fits = value.ndim > 1 and value.shape[0] == n_rows
        return value.repeat(copies, *[1] * (value.ndim - 1)) if fits else value
    if isinstance(value, (tuple, list)):
        return type(value)(_repeated(part, n_rows, copies) for part in value)
    if isinstance(value, Mapping) and not isinstance(value, Cache):
        return {name: _repeated(part, n_rows, copies) for name, part in value.items()}
    return value


@contextmanager
def reading_out(head: nn.Module | None, at: Tensor | None = None) -> Iterator[None]:
    """`head`, the output embedding, is given positions `at` (row, n) only and returns float32.

    In bfloat16 a logit near 20 is rounded to the next 1/8 nat. Products of two half-precision
    numbers are exact in float32, so here only their sum is rounded, and what the model does to
    logits afterwards (softcapping, scaling) is in float32 too. A float32 or quantised `head`
    computes as it always does. Its weights are seen where its own forward has them, so they may be
    tied, or loaded by accelerate for this one call.
    """
    if head is None:
        yield
        return
    replaced = vars(head).get("forward")
    of_the_model = head.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if at is not None:
            rows = torch.arange(len(hidden), device=hidden.device)[:, None]
            hidden = hidden[rows, at.to(hidden.device)]
        with _LinearInFloat32():
            return of_the_model(hidden, *args, **kwargs)

    head.forward = forward
    try:
        yield
    finally:
        if replaced is None:
            del head.forward
        else:
            head.forward = replaced


class _LinearInFloat32(TorchFunctionMode):
    """`linear` of half-precision weights returns float32; everything else is as it was."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is nn.functional.linear and _is_of_halves(*args, **given):
            return _linear_in_float32(*args, **given)
        return func(*args, **given)


def _is_of_halves(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether these are plain half-precision tensors, not quantised or distributed ones."""
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.dtype in HALVES and input.dtype == weight.dtype


def _linear_in_float32(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias (..., vocabulary), summed and returned in float32."""
    rows = input.flatten(0, -2)
    if _multiplies_into_float32(rows.device, rows.dtype):
        out = torch.mm(rows, weight.T, out_dtype=torch.float32)
    else:
        rows = rows.float()
        out = rows.new_empty(len(rows), len(weight))
        n_words = max(1, AT_ONCE // weight.shape[1])
        for some, words in zip(out.split(n_words, dim=1), weight.split(n_words), strict=True):
            some.copy_(rows @ words.float().T)
    if bias is not None:
        out += bias.float()
    return out.view(*input.shape[:-1], len(weight))


@cache
def _multiplies_into_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch there multiplies halves straight into float32: CUDA does, from 2.8 on."""
    one = torch.ones(8, 8, device=device, dtype=dtype)
    try:
        return bool(torch.mm(one, one, out_dtype=torch.float32).dtype == torch.float32)
    except (RuntimeError, TypeError):
        return False
