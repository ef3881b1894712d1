"""Cached keys and values: one prefix shared by all steered copies, then one past for each row.

`SharedPrefix` serves the sweep: the prefixes of a batch of prompts are run once, and every steered
copy of the batch attends to them. `Rows` serves generation: each row then has its own past, in one
block of memory with room for the tokens to come. The place of a finished row is taken by the last
row that is still running, so no more rows are moved than have finished.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class SharedPrefix(Cache):
    """Keys and values of a batch of prompt prefixes, computed once for any number of copies.

    With `keeps`, what a pass appends to them is stored until the next pass, for `one_row_each`.
    """

    def __init__(self, n_layers: int, *, keeps: bool = False) -> None:
        super().__init__(layers=[_SharedLayer() for _ in range(n_layers)])
        self.keeps = keeps

    def share(self, lengths: Tensor | None = None) -> None:
        """Make the prefix read-only, with each row's `lengths` tokens moved to its last slots.

        The rows were padded on the right, but the tokens after a prefix must be next to its last
        token, because sliding windows count slots. The keys already have their rotary positions.
        """
        for layer in self.layers:
            if lengths is not None:
                layer.keys, layer.values = (
                    _at_the_end(states, lengths) for states in (layer.keys, layer.values)
                )
            layer.shared, layer.keeps = True, self.keeps

    def one_row_each(self, n_rows: int, lengths: Tensor, *, room: int) -> "Rows":
        """The past of each of `n_rows` rows after a pass with `keeps`, with `room` more slots each.

        Rows are copies x batch, the unsteered batch first. A copy that joined after block L has
        the unsteered batch's past up to L, so each block ran only the rows that had joined by
        then, which come first. The `lengths` (batch) tokens run in each row move to its last slots.
        """
        return Rows([layer.one_row_each(n_rows, lengths, room) for layer in self.layers])


class _SharedLayer(DynamicLayer):
    """One block's keys and values; once `shared`, all copies of the batch read the same ones."""

    shared = False
    keeps = False
    added: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.shared:
            return super().update(key_states, value_states, *args, **kwargs)
        if self.keeps:
            self.added = key_states, value_states
        if not self.get_seq_length():
            return key_states, value_states
        return _after(self.keys, key_states), _after(self.values, value_states)

    def one_row_each(self, n_rows: int, lengths: Tensor, room: int) -> "_RowLayer":
        added, self.added = self.added, None
        assert added is not None, "the previous pass was run without `keeps`"
        prefixes = (self.keys, self.values) if self.get_seq_length() else (None, None)
        keys, values = (
            _spread(new, prefix, n_rows, lengths, room)
            for new, prefix in zip(added, prefixes, strict=True)
        )
        return _RowLayer(keys, values, filled=keys.shape[-2] - room)


class Rows(Cache):
    """The past of each row of a batch, extended token by token."""

    def __init__(self, layers: list["_RowLayer"]) -> None:
        super().__init__(layers=layers)

    def keep(self, rows: np.ndarray) -> None:
        """Keep only `rows`: the old index of each new row, its own or that of one moved there."""
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        for layer in self.layers:
            layer.keep(len(rows), moved, rows[moved])


class _RowLayer(DynamicLayer):
    """One block's keys and values (row, head, slot, size); the first `filled` slots are in use."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        super().__init__()
        self.keys, self.values, self.filled = keys, values, filled
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        end = self.filled + key_states.shape[-2]
        self.keys[..., self.filled : end, :] = key_states
        self.values[..., self.filled : end, :] = value_states
        self.filled = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_seq_length(self) -> int:
        return self.filled

    def keep(self, n_rows: int, places: np.ndarray, rows: np.ndarray) -> None:
        for states in (self.keys, self.values):
            states[places, :, : self.filled] = states[rows, :, : self.filled]
        self.keys, self.values = self.keys[:n_rows], self.values[:n_rows]


def _after(prefix: Tensor, new: Tensor, room: int = 0) -> Tensor:
    """`new` (copies x batch, head, position, ...) after the `prefix` (batch, ...) of each copy."""
    batch, heads, width, size = prefix.shape
    joined = new.new_empty((len(new), heads, width + new.shape[-2] + room, size))
    joined.view(-1, batch, *joined.shape[1:])[..., :width, :] = prefix
    joined[..., width : width + new.shape[-2], :] = new
    return joined


def _spread(new: Tensor, prefix: Tensor | None, n_rows: int, lengths: Tensor, room: int) -> Tensor:
    """What a pass added, for all `n_rows`, after the prefix and before `room` empty slots."""
    batch = len(lengths)
    if (lengths < new.shape[-2]).any():
        new = _at_the_end(new, lengths.repeat(len(new) // batch))
    not_yet_joined = new[:batch].repeat((n_rows - len(new)) // batch, 1, 1, 1)
    all_rows = torch.cat([new, not_yet_joined])
    if prefix is None:
        prefix = new[:batch, :, :0]
    return _after(prefix, all_rows, room)


def _at_the_end(states: Tensor, lengths: Tensor) -> Tensor:
    """The first `lengths` (row) slots of (row, head, slot, size), moved to the end of the row."""
    width = states.shape[-2]
    slots = torch.arange(width, device=states.device)
    source = (slots[None, :] - (width - lengths.to(states.device))[:, None]).clamp(min=0)
    return states.gather(-2, source[:, None, :, None].expand_as(states))
