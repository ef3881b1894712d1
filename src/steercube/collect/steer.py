"""`steer`: add a vector to the residual stream of a model while it is used for something else."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from steercube.collect.decoder import Decoder, find_blocks, uncompiled
from steercube.collect.directions import layers_by_number
from steercube.collect.hooks import STEERED_NOW, on_output
from steercube.collect.plan import POSITIONS, layers_of
from steercube.collect.readout import Turns, turns_of
from steercube.collect.vectors import OWN
from steercube.schema import raise_if_any

__all__ = ["Steered", "steer"]


class Steered:
    """What steering has changed so far; printed, it is a line for each layer.

    Counted on the rows themselves: a position counts if its residual stream differs after the
    addition. Padding is not steered. Sums stay on the model's device until they are asked for.
    """

    def __init__(self) -> None:
        self._sums: dict[int, list[Any]] = {}

    def add(self, layer: int, before: Tensor, after: Tensor, where: Tensor) -> None:
        """Count one pass of a layer: residual streams (row, position, hidden) and where added."""
        before, after = before.detach(), after.detach()
        changed = (before != after).any(dim=-1)
        length = (after - before).float().norm(dim=-1)
        ratio = (length / before.float().norm(dim=-1).clamp_min(1e-30))[where].sum()
        now = [1, changed.any(dim=1).sum(), changed.sum(), where.sum(), ratio]
        held = self._sums.get(layer, [0] * len(now))
        self._sums[layer] = [one + other for one, other in zip(held, now, strict=True)]

    def to_frame(self) -> pd.DataFrame:
        """By layer: forward `passes`, changed `rows` and `positions`, and `added_over_residual`.

        The last is |added| / |residual|, averaged over the steered positions; rows are counted
        once for each pass.
        """
        rows = [
            {
                "layer": layer,
                **{"passes": passes, "rows": int(rows), "positions": int(positions)},
                "added_over_residual": float(ratio) / max(1, int(steered)),
            }
            for layer, (passes, rows, positions, steered, ratio) in sorted(self._sums.items())
        ]
        columns = ["layer", "passes", "rows", "positions", "added_over_residual"]
        return pd.DataFrame(rows, columns=columns).set_index("layer")

    def __repr__(self) -> str:
        if not self._sums:
            return "nothing steered: the model was not run"
        return "\n".join(
            f"layer {layer}: {row['positions']:.0f} positions in {row['passes']:.0f} forward "
            f"passes, |added| / |residual| {row['added_over_residual']:.2g}"
            for layer, row in self.to_frame().iterrows()
        )


@contextmanager
def steer(
    decoder: Decoder | Any,
    vectors: Any,
    *,
    layer: int | str | Sequence[int],
    strength: float | Mapping[int, float] = 1.0,
    direction: str = OWN,
    positions: str = "all",
) -> Iterator[Steered]:
    """Add strength x vector after block `layer` in every forward pass while this is open.

        h_L <- h_L + strength v_L

    - `decoder`: from `sc.decoder` or `sc.load`, or the bare model.
    - `vectors`: from `sc.extract`, with the `direction` to take; or an array or tensor, (layer,
      hidden), or (hidden) for the same at all layers.
    - `layer`: one, several, or a selection as "12:24" or "0.4:0.6".
    - `strength`: for all layers, or by layer, as {12: 1.0, 14: -0.5}.
    - `positions`: "all", or "answer" for those after the last user's turn, as in a sweep; this
      needs the tokenizer's chat template and token ids as the model's input.

    Works under `generate` with and without a cache, in batches, with padding on either side, in
    the mode that the model is in: `model.eval()` turns dropout off. What
    was compiled runs uncompiled meanwhile. Gradients flow through. What is yielded says what
    was touched; afterwards all hooks are removed. Raises ValueError for layers, directions or
    shapes that the model does not have and, with "answer", when the model is run on tokens whose
    last user's turn does not end.
    """
    model = decoder.model if isinstance(decoder, Decoder) else decoder
    blocks = decoder.blocks if isinstance(decoder, Decoder) else find_blocks(model)
    width = int(model.config.get_text_config().hidden_size)
    table = layers_by_number(vectors, (len(blocks), width), direction=direction)
    strengths = _strengths(layer, strength, len(blocks))
    if positions not in POSITIONS:
        raise ValueError(f"positions = {positions!r} is none of {', '.join(POSITIONS)}")
    where = _Where(_turns(decoder) if positions == "answer" else None)
    receipt, inner = Steered(), model.get_decoder()
    with ExitStack() as undo:
        undo.enter_context(uncompiled())
        # A model of images and text gives its decoder embeddings, and alone knows the token ids.
        for module in dict.fromkeys((model, inner)):
            look = where.look if module is inner else where.look_ahead
            undo.enter_context(module.register_forward_pre_hook(look, with_kwargs=True))
        for at, factor in strengths.items():
            added = factor * torch.from_numpy(table[at])
            undo.enter_context(on_output(blocks[at], _adding(at, added, where, receipt)))
        STEERED_NOW.append(inner)
        undo.callback(STEERED_NOW.remove, inner)
        yield receipt


def _adding(
    layer: int, vector: Tensor, where: "_Where", receipt: Steered
) -> Callable[[Tensor], Tensor]:
    ready: dict[Any, Tensor] = {}

    def add(hidden: Tensor) -> Tensor:
        form = (hidden.device, hidden.dtype)
        if form not in ready:
            ready[form] = vector.to(hidden.device).to(hidden.dtype)
            if not ready[form].isfinite().all():
                raise ValueError(f"the vector of layer {layer} is too large for {hidden.dtype}")
        at = where.of(hidden)
        steered = torch.where(at[:, :, None], hidden + ready[form], hidden)
        receipt.add(layer, hidden, steered, at)
        return steered

    return add


class _Where:
    """Where vectors are added in the pass under way, from the inputs that the model was given.

    `turns` are the texts by which the end of a user's turn is known; None for every position.
    """

    def __init__(self, turns: Turns | None) -> None:
        self.turns = turns
        self.ids: Tensor | None = None
        self.mask: Tensor | None = None
        self.after: Tensor | None = None
        self.answering = False
        self.n_cached = 0

    def look_ahead(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note the token ids that the whole model is given."""
        self.ids = _given(module, args, kwargs).get("input_ids")

    def look(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note the mask and where answers start; called before the decoder's forward."""
        given = _given(module, args, kwargs)
        ids = given.get("input_ids")
        ids, self.ids = (self.ids if ids is None else ids), None
        mask = given.get("attention_mask")
        self.mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        past = given.get("past_key_values")
        self.n_cached = int(past.get_seq_length()) if isinstance(past, Cache) else 0
        if self.turns is not None:
            self.after = self._answers(self.turns, ids)

    def _answers(self, turns: Turns, ids: Tensor | None) -> Tensor | None:
        """True (row, position) after the last user's turn; None for all positions that are run."""
        if ids is None:
            raise ValueError("positions='answer' needs token ids as the model's input")
        if self.n_cached and ids.shape[1] == 1 and self.answering:
            return None
        starts = [turns.answer_start(row) for row in ids.tolist()]
        if self.n_cached and self.answering and all(start is None for start in starts):
            return None  # several tokens of an answer that is under way
        if None in starts:
            raise ValueError(
                f"row {starts.index(None)} of this batch does not end a user's turn by the chat "
                "template, after which positions='answer' adds vectors. Render prompts whole, with "
                "tokenizer.apply_chat_template(..., add_generation_prompt=True), or use "
                "positions='all'"
            )
        self.answering = True
        at = torch.arange(ids.shape[1], device=ids.device)[None]
        return at >= torch.tensor(starts, device=ids.device)[:, None]

    def of(self, hidden: Tensor) -> Tensor:
        """True (row, position) where vectors are added."""
        n_rows, n_run = hidden.shape[:2]
        at = torch.ones(n_rows, n_run, dtype=torch.bool, device=hidden.device)
        if self.mask is not None:
            # A mask may be as long as the cache will be.
            here = self.mask[:, self.n_cached : self.n_cached + n_run]
            here = here if here.shape[1] == n_run else self.mask[:, -n_run:]
            at = at & here.to(hidden.device)
        return at if self.after is None else at & self.after.to(hidden.device)


def _given(module: nn.Module, args: Any, kwargs: Any) -> Mapping[str, Any]:
    """The inputs of a module by name, however they were given."""
    return inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments | kwargs


def _turns(decoder: Decoder | Any) -> Turns:
    found = turns_of(decoder.tokenizer) if isinstance(decoder, Decoder) else None
    if found is None:
        raise ValueError(
            "positions='answer' needs a tokenizer with a chat template, by which the end of the "
            "user's turn is known: give sc.decoder(model, tokenizer), or use positions='all'"
        )
    return found


def _strengths(
    layer: int | str | Sequence[int], strength: float | Mapping[int, float], n_layers: int
) -> dict[int, float]:
    """The strength of each layer that is steered."""
    layers = layers_of(layer, n_layers) if isinstance(layer, str) else np.atleast_1d(layer).tolist()
    by_layer = isinstance(strength, Mapping)
    given = strength if isinstance(strength, Mapping) else dict.fromkeys(layers, strength)
    problems = [] if layers else ["no layer is given"]
    problems += [
        f"layer {one} is not among the {n_layers} blocks, counted from 0"
        for one in layers
        if one not in range(n_layers)
    ]
    problems += [f"layer {one} has no strength" for one in layers if one not in given]
    problems += [
        f"strength of layer {one} is {given[one]!r}; it must be a finite number"
        for one in given
        if np.ndim(given[one]) or not np.isfinite(given[one])
    ]
    if by_layer:
        problems += [f"strength for layer {one}, which is not steered" for one in given
                     if one not in layers]  # fmt: skip
    raise_if_any(problems, what="sc.steer")
    return {int(one): float(given[one]) for one in layers}
