"""`steer`: add a vector to the residual stream of a model while it is used for something else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from steercube.collect.decoder import Decoder, find_blocks
from steercube.collect.directions import array_of
from steercube.collect.hooks import on_output
from steercube.collect.plan import POSITIONS, layers_of
from steercube.collect.readout import closings
from steercube.collect.vectors import OWN
from steercube.schema import raise_if_any
from steercube.words import did_you_mean

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
        changed = (before != after).any(dim=-1)
        lengths = [
            (after - before).detach().float().norm(dim=-1),
            before.detach().float().norm(dim=-1),
        ]
        ratio = (lengths[0] / lengths[1].clamp_min(1e-30))[where].sum()
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

    - `decoder`: of `sc.decoder` or `sc.load`, or the bare model.
    - `vectors`: of `sc.extract`, with the `direction` to take; or an array or tensor, (hidden) for
      the same at all layers or (layer, hidden).
    - `layer`: one, several, or a selection as "12:24" or "0.4:0.6".
    - `strength`: for all layers, or by layer, as {12: 1.0, 14: -0.5}.
    - `positions`: "all", or "answer" for those after the last user's turn, as in a sweep; this
      needs the tokenizer's chat template and token ids as the model's input.

    Works under `generate` with and without a cache, in batches, with padding on either side.
    Gradients flow through. The yielded receipt says what was touched; afterwards all hooks are
    removed. Raises ValueError for layers, directions or shapes that the model does not have and,
    with "answer", when the model is run on tokens without a user's turn.
    """
    model = decoder.model if isinstance(decoder, Decoder) else decoder
    blocks = decoder.blocks if isinstance(decoder, Decoder) else find_blocks(model)
    table = _by_layer(vectors, direction, len(blocks), _width(model))
    strengths = _strengths(layer, strength, len(blocks))
    if positions not in POSITIONS:
        raise ValueError(f"positions = {positions!r} is none of {', '.join(POSITIONS)}")
    where = _Where(_closings(decoder) if positions == "answer" else None)
    receipt = Steered()
    with ExitStack() as undo:
        undo.enter_context(
            model.get_decoder().register_forward_pre_hook(where.look, with_kwargs=True)
        )
        for at, factor in strengths.items():
            added = factor * torch.from_numpy(table[at])
            undo.enter_context(on_output(blocks[at], _adding(at, added, where, receipt)))
        yield receipt


def _adding(
    layer: int, vector: Tensor, where: "_Where", receipt: Steered
) -> Callable[[Tensor], Tensor]:
    def add(hidden: Tensor) -> Tensor:
        at = where.of(hidden)
        steered = hidden + vector.to(hidden.device).to(hidden.dtype) * at[:, :, None]
        receipt.add(layer, hidden, steered, at)
        return steered

    return add


class _Where:
    """Where vectors are added in the pass under way, from the inputs that the model was given.

    `closings` are token ids that may follow the user's own text; None for every position.
    """

    def __init__(self, closings: Sequence[Sequence[int]] | None) -> None:
        self.closings = closings
        self.mask: Tensor | None = None
        self.after: Tensor | None = None

    def look(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note the mask and the starts of the answers; called before the decoder's forward."""
        mask = kwargs.get("attention_mask")
        self.mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self.after = None
        if self.closings is not None and not _cached(kwargs):
            ids = kwargs.get("input_ids", args[0] if args else None)
            if ids is None:
                raise ValueError("positions='answer' needs token ids as the model's input")
            self.after = _after_last(ids, self.closings)

    def of(self, hidden: Tensor) -> Tensor:
        """True (row, position) where vectors are added."""
        n_rows, n_run = hidden.shape[:2]
        at = torch.ones(n_rows, n_run, dtype=torch.bool, device=hidden.device)
        for part in (self.mask, self.after):
            if part is not None:
                at = at & part[:, -n_run:].to(hidden.device)
        return at


def _cached(kwargs: Mapping[str, Any]) -> bool:
    """Whether earlier positions are in a cache, so that only later ones are run."""
    past = kwargs.get("past_key_values")
    return past is not None and past.get_seq_length() > 0


def _after_last(ids: Tensor, closings: Sequence[Sequence[int]]) -> Tensor:
    """True (row, position) from the beginning of the last closing in each row on."""
    rows = ids.tolist()
    starts = [max(_last(row, closing) for closing in closings) for row in rows]
    if -1 in starts:
        raise ValueError(
            f"row {starts.index(-1)} of this batch does not have the end of a user's turn of the "
            "chat template, after which positions='answer' adds vectors. Render prompts with "
            "tokenizer.apply_chat_template(..., add_generation_prompt=True), or use "
            "positions='all'"
        )
    at = torch.arange(ids.shape[1], device=ids.device)[None]
    return at >= torch.tensor(starts, device=ids.device)[:, None]


def _last(row: Sequence[int], part: Sequence[int]) -> int:
    """Where `part` begins for the last time in `row`; -1 if it does not."""
    for at in range(len(row) - len(part), -1, -1):
        if list(row[at : at + len(part)]) == list(part):
            return at
    return -1


def _closings(decoder: Decoder | Any) -> list[list[int]]:
    tokenizer = decoder.tokenizer if isinstance(decoder, Decoder) else None
    found = closings(tokenizer) if tokenizer is not None else []
    if not found:
        raise ValueError(
            "positions='answer' needs a tokenizer with a chat template, by which the end of the "
            "user's turn is known: give sc.decoder(model, tokenizer), or use positions='all'"
        )
    return found


def _width(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)


def _by_layer(vectors: Any, direction: str, n_layers: int, width: int) -> np.ndarray:
    """The vector of each layer (layer, hidden), float32."""
    table = vectors["vector"] if isinstance(vectors, xr.Dataset) else vectors
    if isinstance(table, xr.DataArray) and "direction" in table.dims:
        names = [str(name) for name in table["direction"].values]
        if direction not in names:
            raise ValueError(
                f"direction {direction!r} is none of {', '.join(names)}"
                f"{did_you_mean(direction, names)}"
            )
        table = table.sel(direction=direction)
    if isinstance(table, xr.DataArray):
        table = table.transpose(..., "layer", "hidden", missing_dims="ignore")
    values = array_of(table).astype("float32")
    if values.shape not in ((width,), (n_layers, width)):
        raise ValueError(
            f"the vectors have the shape {values.shape}; this model needs ({width},), or "
            f"({n_layers}, {width}) for a vector of each block"
        )
    return np.broadcast_to(values, (n_layers, width)).copy()


def _strengths(
    layer: int | str | Sequence[int], strength: float | Mapping[int, float], n_layers: int
) -> dict[int, float]:
    """The strength of each layer that is steered."""
    if isinstance(layer, str):
        layers = layers_of(layer, n_layers)
    else:
        layers = [int(one) for one in np.atleast_1d(layer)]
    given = strength if isinstance(strength, Mapping) else dict.fromkeys(layers, strength)
    problems = [
        f"layer {one} is not among the {n_layers} blocks, counted from 0"
        for one in layers
        if not 0 <= one < n_layers
    ]
    problems += [f"layer {one} has no strength" for one in layers if one not in given]
    problems += [f"strength of layer {one} is not finite" for one in given
                 if not np.isfinite(given[one])]  # fmt: skip
    problems += [f"strength for layer {one}, which is not steered" for one in given
                 if one not in layers]  # fmt: skip
    raise_if_any(problems, what="sc.steer")
    return {one: float(given[one]) for one in layers}
