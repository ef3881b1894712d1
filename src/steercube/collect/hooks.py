"""Temporary changes to a running model: record, steer, fan out, read out. Always undone.

All of them work from outside, on the decoder blocks and the output embedding; no model's forward
is reimplemented here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

Edit = Callable[[Tensor], Tensor]
HALVES = (torch.bfloat16, torch.float16)
STEERED_NOW: list[nn.Module] = []
"""The decoders that `steer` is adding vectors to."""
AT_ONCE = 2**22
"""Weights of an unembedding that are in float32 at a time (16 MiB, not several GB)."""


@contextmanager
def record(blocks: Sequence[nn.Module], *, at: Tensor, of_input: bool = False) -> Iterator[Any]:
    """A list that the next forward fills with the residual stream of each block, in order.

    Each entry is (row, hidden), at position `at` (row) of the block's output, or input.
    """
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        seen.append(hidden[rows, at.to(hidden.device)])
        return hidden

    with ExitStack() as undo:
        for block in blocks:
            undo.enter_context(_on_input(block, keep) if of_input else on_output(block, keep))
        yield seen


@dataclass(frozen=True)
class Cell:
    """A steered copy of a batch (not a cube's cell): strength x vector (hidden) after `layer`."""

    layer: int
    strength: float
    vector: Tensor

    def added_to(self, hidden: Tensor) -> Tensor:
        """strength x vector (hidden), on the device and in the dtype of the residual stream."""
        return (self.strength * self.vector.to(hidden.device)).to(hidden.dtype)


@dataclass(frozen=True)
class Touched:
    """A receipt, measured on the rows: what vectors really changed after one block.

    Counts of changed rows and positions, and `ratio`, |added| / |residual| at the largest
    |strength|, averaged over steered positions and then over prompts.
    """

    rows: int
    positions: int
    ratio: float
    n_prompts: int

    def with_more_cells(self, other: "Touched") -> "Touched":
        """One receipt of both, for more cells of the same prompts."""
        return Touched(
            self.rows + other.rows,
            self.positions + other.positions,
            max(self.ratio, other.ratio),
            self.n_prompts,
        )

    def with_more_prompts(self, other: "Touched") -> "Touched":
        """One receipt of both, for more prompts in the same cells."""
        n = self.n_prompts + other.n_prompts
        ratio = (self.ratio * self.n_prompts + other.ratio * other.n_prompts) / n
        return Touched(self.rows + other.rows, self.positions + other.positions, ratio, n)


@contextmanager
def steering(block: nn.Module, cell: Cell, steer: Tensor) -> Iterator[None]:
    """Plain steering: `block` adds the cell's vector where `steer` (row, position) is True."""
    with on_output(block, lambda hidden: hidden + _added(cell, hidden, steer)):
        yield


def _added(cell: Cell, hidden: Tensor, steer: Tensor) -> Tensor:
    return cell.added_to(hidden) * steer.to(hidden.device)[:, :, None]


class RowSteering:
    """Steering of each row of a batch by its own one of `cells`, at every position that is run.

    `changed` counts, by layer, the positions that a vector changed; it stays on the device.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self.changed: dict[int, Tensor] = {}
        self._added: dict[int, Tensor] = {}

    @contextmanager
    def on(self, blocks: Sequence[nn.Module], row_cells: Sequence[int]) -> Iterator[None]:
        """Steer while this is open; `row_cells` is each row's index into `cells`, -1 for none."""
        by_layer: dict[int, list[tuple[int, int]]] = {}
        for row, cell in enumerate(row_cells):
            if cell >= 0:
                by_layer.setdefault(self.cells[cell].layer, []).append((row, cell))
        with ExitStack() as undo:
            for layer, steered_rows in by_layer.items():
                undo.enter_context(on_output(blocks[layer], self._edit(layer, steered_rows)))
            yield

    def _edit(self, layer: int, steered_rows: Sequence[tuple[int, int]]) -> Edit:
        own = [i for i, cell in enumerate(self.cells) if cell.layer == layer]
        place = {cell: i for i, cell in enumerate(own)}

        def edit(hidden: Tensor) -> Tensor:
            if layer not in self._added:
                added = [self.cells[i].added_to(hidden) for i in own]
                self._added[layer] = torch.stack(added)[:, None]
            rows, cells = torch.tensor(
                [(row, place[cell]) for row, cell in steered_rows], device=hidden.device
            ).T
            added = self._added[layer][cells].expand(-1, hidden.shape[1], -1)
            steered = hidden.index_add(0, rows, added)
            moved = (steered[rows] != hidden[rows]).any(dim=-1).sum()
            self.changed[layer] = self.changed[layer] + moved if layer in self.changed else moved
            return steered

        return edit


@dataclass
class FanOut:
    """One pass of a batch in which a steered copy joins for each of `cells`, after its layer.

    Rows come out as (1 + len(cells)) x batch, the unsteered ones first, then cells by layer and in
    the order given. A copy that starts after block L is not run through the blocks up to L.
    `steer` (row, position) is True where vectors are added. `receipts` has, by layer, the first
    three fields of `Touched`; they stay on the device, which would otherwise wait after each block.
    """

    cells: Sequence[Cell]
    steer: Tensor
    receipts: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def touched(self) -> dict[int, Touched]:
        """The receipts by layer, as numbers; waits for the device to finish the pass."""
        return {
            layer: Touched(int(rows), int(positions), float(ratio), len(self.steer))
            for layer, (rows, positions, ratio) in self.receipts.items()
        }

    @property
    def ordered(self) -> list[int]:
        """Index into `cells` of each steered copy, in the order in which they come out."""
        return sorted(range(len(self.cells)), key=lambda i: self.cells[i].layer)

    @contextmanager
    def on(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Fan out while this is open."""
        by_layer: dict[int, list[Cell]] = {}
        for cell in self.cells:
            # Here, because to copy a vector to the device is to wait for it.
            moved = replace(cell, vector=cell.vector.to(self.steer.device))
            by_layer.setdefault(cell.layer, []).append(moved)
        n_rows = len(self.steer)
        with ExitStack() as undo:
            for layer, block in enumerate(blocks):
                undo.enter_context(_repeat_other_inputs(block, n_rows))
                if layer in by_layer:
                    undo.enter_context(on_output(block, self._copies(layer, by_layer[layer])))
            yield

    def _copies(self, layer: int, cells: Sequence[Cell]) -> Edit:
        def fan_out(hidden: Tensor) -> Tensor:
            base = hidden[: len(self.steer)]
            steered = [base + _added(cell, base, self.steer) for cell in cells]
            largest = max(range(len(cells)), key=lambda i: abs(cells[i].strength))
            self.receipts[layer] = _receipt(base, steered, largest, self.steer)
            return torch.cat([hidden, *steered])

        return fan_out


def _receipt(
    base: Tensor, steered: Sequence[Tensor], largest: int, steer: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """In how many rows and positions a copy differs from the batch, and the ratio of `Touched`."""
    at = steer.to(base.device)
    changed = torch.stack([(copy != base).any(dim=-1) for copy in steered])
    added = (steered[largest] - base).float().norm(dim=-1)
    ratio = added / base.float().norm(dim=-1).clamp_min(1e-30)
    return (
        changed.any(dim=-1).sum(),
        changed.sum(),
        ((ratio * at).sum(dim=-1) / at.sum(dim=-1)).mean(),
    )


def on_output(block: nn.Module, edit: Edit) -> RemovableHandle:
    """Edit what `block` returns, until the handle is closed."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        # A block returns its hidden states, or a tuple that begins with them.
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return block.register_forward_hook(hook)


def _on_input(block: nn.Module, edit: Edit) -> RemovableHandle:
    """Edit the hidden states that `block` is given, until the handle is closed."""

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edit(kwargs["hidden_states"])}

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def _repeat_other_inputs(block: nn.Module, n_rows: int) -> RemovableHandle:
    """Repeat for the copies whatever else the block is given for each of `n_rows` rows.

    Masks, positions, rotary angles: any tensor of several dimensions, the first of size `n_rows`,
    and `ROWS_X_HEADS`. One row that serves several by broadcasting stays as it is.
    """

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        copies = hidden.shape[0] // n_rows
        if copies == 1:
            return None
        return (
            (*args[:1], *(_repeated(a, n_rows, copies) for a in args[1:])),
            {
                name: value if value is hidden else _repeated(value, n_rows, copies, name)
                for name, value in kwargs.items()
            },
        )

    return block.register_forward_pre_hook(hook, with_kwargs=True)


ROWS_X_HEADS = ("alibi",)
"""Inputs of a block whose first dimension is rows x heads (Bloom)."""
HEADS = ("position_bias",)
"""Inputs of a block whose first dimension is heads, the same for all rows (MPT)."""


def _repeated(value: Any, n_rows: int, copies: int, name: str = "") -> Any:
    if isinstance(value, Tensor):
        of_rows = value.ndim > 1 and value.shape[0] == n_rows and name not in HEADS
        if not of_rows and name not in ROWS_X_HEADS:
            return value
        # A view of one row takes no memory. Most models broadcast it; XGLM wants it for every row.
        if len(value) == 1:
            return value.expand(copies, *value.shape[1:])
        return value.repeat(copies, *[1] * (value.ndim - 1))
    if isinstance(value, (tuple, list)):
        return type(value)(_repeated(part, n_rows, copies) for part in value)
    if isinstance(value, Mapping) and not isinstance(value, Cache):
        return {name: _repeated(part, n_rows, copies) for name, part in value.items()}
    return value


@contextmanager
def reading_out(head: nn.Module | None, at: Tensor | None = None) -> Iterator[None]:
    """Make `head`, the output embedding, read only positions `at` (row, n) and return float32.

    In bfloat16 a logit near 20 is rounded to a multiple of 1/8 nat. Products of two half-precision
    numbers are exact in float32, so here only their sum is rounded, and what the model does to
    logits afterwards (softcapping, scaling) is in float32 too. A float32 or quantised `head`
    computes as usual. Its weights are read inside its own forward, so they may be tied, or loaded
    by accelerate for this one call.
    """
    if head is None:
        yield
        return
    own_forward = vars(head).get("forward")
    original = head.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if at is not None:
            rows = torch.arange(len(hidden), device=hidden.device)[:, None]
            hidden = hidden[rows, at.to(hidden.device)]
        with _LinearInFloat32():
            return original(hidden, *args, **kwargs)

    head.forward = forward
    try:
        yield
    finally:
        if own_forward is None:
            del head.forward
        else:
            head.forward = own_forward


class _LinearInFloat32(TorchFunctionMode):
    """Makes `linear` of half-precision weights return float32; all else is unchanged."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is nn.functional.linear and _is_half_precision(*args, **given):
            return _linear_in_float32(*args, **given)
        return func(*args, **given)


def _is_half_precision(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
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
        for part, words in zip(out.split(n_words, dim=1), weight.split(n_words), strict=True):
            part.copy_(rows @ words.float().T)
    if bias is not None:
        out += bias.float()
    return out.view(*input.shape[:-1], len(weight))


@cache
def _multiplies_into_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch on `device` multiplies halves straight into float32: CUDA does, from 2.8 on."""
    one = torch.ones(8, 8, device=device, dtype=dtype)
    try:
        return bool(torch.mm(one, one, out_dtype=torch.float32).dtype == torch.float32)
    except (RuntimeError, TypeError):
        return False
