"""One pass of a batch of prompts for every layer and strength.

The plain loop runs the whole model for each (layer, strength). Here the batch runs once; after
block L a copy of its rows with strength x v_L joins for each cell, and all rows go on to the end.
Blocks below L are never repeated, strength 0 is computed once, every weight is read once, and only
the last position reaches the final norm and the unembedding.

`positions` says where vectors are added. "all": at every position. "answer": at those after the
user's turn (Rimsky et al. 2023, arXiv:2312.06681); then nothing before them depends on the cell,
so the keys and values of the prompt are computed once and shared, and only the rest is run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from steercube.collect.caches import SharedPrefix
from steercube.collect.decoder import Decoder
from steercube.collect.hooks import Cell, FanOut, Touched, steering
from steercube.collect.readout import Prompt

POSITIONS = {"all": "every position", "answer": "the positions after the user's turn"}
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Run:
    """A batch ready for the decoder: what is run, and what it is run behind.

    ids, steer (row, position); last (row); `positions` (row, position) and `mask` (row, slot) are
    given only behind a prefix.
    """

    ids: Tensor
    steer: Tensor
    last: Tensor
    prefix: Cache | None = None
    positions: Tensor | None = None
    mask: Tensor | None = None

    def ending_in(self, tokens: Sequence[int]) -> "Run":
        """The same run with another token at each row's last position."""
        ids = self.ids.clone()
        ids[torch.arange(len(ids)), self.last] = torch.tensor(tokens, device=ids.device)
        return replace(self, ids=ids)


@dataclass(frozen=True)
class Swept:
    """Log-probabilities in nats, float32: (1 + cells, prompt, answer); receipts by layer."""

    logprobs: np.ndarray
    touched: dict[int, Touched]
    max_rows: int


def sweep(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    answers: np.ndarray,
    cells: Sequence[Cell],
    *,
    positions: str,
    max_rows: int,
    progress: Progress = lambda n: None,
) -> Swept:
    """Log-probability of each answer of each prompt, unsteered (first) and in each cell.

    `answers` holds token ids (prompt, answer). At most `max_rows` rows are in a pass; where they do
    not fit into memory, half as many, down to one cell. The result depends on neither, nor on the
    order of the prompts. `progress` is told of every finished cell x prompt.

    Raises ValueError for fewer than two rows, MemoryError where one cell does not fit.
    """
    out = np.full((1 + len(cells), *answers.shape), np.nan, dtype="float32")
    touched: dict[int, Touched] = {}

    def sweep_batch(batch: list[int], max_rows: int) -> None:
        run = prepare(decoder, [prompts[i] for i in batch], positions=positions)
        out[:, batch], receipts = _every_cell(
            decoder, run, cells, answers[batch], max_rows=max_rows
        )
        add_prompts(touched, receipts)
        progress((1 + len(cells)) * len(batch))

    max_rows = in_batches(prompts, 1 + len(cells), sweep_batch, max_rows=max_rows)
    return Swept(out, touched, max_rows)


def in_batches(
    prompts: Sequence[Prompt],
    rows_each: int,
    do: Callable[[list[int], int], None],
    *,
    max_rows: int,
) -> int:
    """`do(indices of prompts, max_rows)` for all prompts, and the rows that fitted into memory.

    As many prompts together as `rows_each` lets into `max_rows`; where memory runs out, half of
    those rows. Raises ValueError for fewer than two rows, MemoryError where two do not fit.
    """
    if max_rows < 2:
        raise ValueError(f"max_rows = {max_rows}: one cell takes 2 rows, the prompt and its copy")
    # Prompts of like length run together, so that little is padded.
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    while waiting:
        batch = waiting[: max(1, max_rows // rows_each)]
        try:
            do(batch, max_rows)
        except RuntimeError as error:
            max_rows = _fewer_rows(error, max_rows)
            continue
        waiting = waiting[len(batch) :]
    return max_rows


def add_prompts(touched: dict[int, Touched], receipts: Mapping[int, Touched]) -> None:
    """Receipts, by layer, of more prompts in the same cells."""
    for layer, one in receipts.items():
        touched[layer] = touched[layer].with_more_prompts(one) if layer in touched else one


def _every_cell(
    decoder: Decoder, run: Run, cells: Sequence[Cell], answers: np.ndarray, *, max_rows: int
) -> tuple[np.ndarray, dict[int, Touched]]:
    """A batch's log-probabilities in all cells, in as many passes as `max_rows` asks for."""
    out = np.empty((1 + len(cells), *answers.shape), dtype="float32")
    touched: dict[int, Touched] = {}
    for group in groups(len(cells), max_rows // len(answers) - 1):
        pass_ = FanOut([cells[i] for i in group], run.steer, run.last)
        unsteered, *steered = logprobs_of(fan_out(decoder, run, pass_), answers)
        if 0 in group or not group:
            out[0] = unsteered
        for i, found in zip(pass_.ordered, steered, strict=True):
            out[1 + group[i]] = found
        add_cells(touched, pass_.touched)
    return out, touched


def add_cells(touched: dict[int, Touched], receipts: Mapping[int, Touched]) -> None:
    """Receipts, by layer, of more cells of the same prompts."""
    for layer, one in receipts.items():
        touched[layer] = touched[layer].with_more_cells(one) if layer in touched else one


def groups(n_cells: int, at_most: int) -> list[range]:
    """Cells in passes of at most so many; one empty pass where there is none."""
    if n_cells == 0:
        return [range(0)]
    return [range(start, min(start + at_most, n_cells)) for start in range(0, n_cells, at_most)]


def _fewer_rows(error: Exception, max_rows: int) -> int:
    """Half of `max_rows`. Anything but a lack of memory, or of two rows' memory, is raised."""
    lacking = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
    if not lacking:
        raise error
    if max_rows <= 2:
        raise MemoryError(
            "one prompt and one steered copy of it do not fit into memory. Spread the model "
            'with device_map = "auto", use a smaller dtype, or leave out the longest prompts.'
        ) from error
    return max(2, max_rows // 2)


@torch.inference_mode()
def prepare(
    decoder: Decoder, prompts: Sequence[Prompt], *, positions: str, keeps: bool = False
) -> Run:
    """The batch on the device; with "answer", behind the keys and values of its beginning.

    `keeps` is for passes after which the rows go on: see `SharedPrefix`.
    """
    starts = _starts(prompts, positions)
    n_run = max(len(p.ids) - start for p, start in zip(prompts, starts, strict=True))
    prefix = SharedPrefix(decoder.n_layers, keeps=keeps)
    if decoder.shares_prefix and n_run < min(len(p.ids) for p in prompts):
        return _behind_prefix(decoder, prompts, starts, n_run, prefix)
    whole = run_whole(decoder, prompts, positions=positions)
    if not keeps:
        return whole
    prefix.share()
    return replace(whole, prefix=prefix)


def _starts(prompts: Sequence[Prompt], positions: str) -> list[int]:
    """The first position of each prompt at which vectors are added."""
    return [0 if positions == "all" else prompt.answer_start for prompt in prompts]


def run_whole(decoder: Decoder, prompts: Sequence[Prompt], *, positions: str) -> Run:
    """Padding stands on the right, where causal attention never looks; so no mask is needed."""
    starts = _starts(prompts, positions)
    ids, lengths = _padded([p.ids for p in prompts], decoder.device)
    at = torch.arange(ids.shape[1], device=ids.device)[None]
    begin = torch.tensor(starts, device=ids.device)[:, None]
    return Run(ids, steer=(at >= begin) & (at < lengths[:, None]), last=lengths - 1)


def _behind_prefix(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    starts: Sequence[int],
    n_run: int,
    prefix: SharedPrefix,
) -> Run:
    """The last `n_run` tokens of every prompt, behind the keys and values of the others."""
    ids, lengths = _padded([p.ids[:-n_run] for p in prompts], decoder.device)
    decoder.model.get_decoder()(input_ids=ids, past_key_values=prefix, use_cache=True)
    prefix.share(lengths)
    run_ids, _ = _padded([p.ids[-n_run:] for p in prompts], decoder.device)
    at = torch.arange(n_run, device=ids.device)[None]
    begin = torch.tensor(starts, device=ids.device) - lengths
    slots = torch.arange(ids.shape[1], device=ids.device)[None]
    held = slots >= ids.shape[1] - lengths[:, None]
    return Run(
        run_ids,
        steer=at >= begin[:, None],
        last=torch.full_like(lengths, n_run - 1),
        prefix=prefix,
        positions=lengths[:, None] + at,
        mask=torch.cat([held, torch.ones_like(run_ids, dtype=torch.bool)], dim=1).long(),
    )


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (row, position), padded on the right with an id that is never looked at; lengths."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    width = int(lengths.max())
    ids = [[*row, *[0] * (width - len(row))] for row in rows]
    return torch.tensor(ids, device=device), lengths


def forward(decoder: Decoder, run: Run) -> Tensor:
    """Logits as the model gives them, whatever hooks are on."""
    given = {"position_ids": run.positions, "attention_mask": run.mask}
    return decoder.model(
        input_ids=run.ids,
        past_key_values=run.prefix,
        use_cache=run.prefix is not None,
        **{name: value for name, value in given.items() if value is not None},
    ).logits


@torch.inference_mode()
def fan_out(decoder: Decoder, run: Run, pass_: FanOut) -> Tensor:
    """Logits (rows, vocabulary) at each row's last position, as the model gives them."""
    with pass_.on(decoder.blocks):
        return forward(decoder, run)[:, -1]


def logprobs_of(logits: Tensor, answers: np.ndarray) -> np.ndarray:
    """Log-probabilities (1 + cells, row, answer) over the whole vocabulary, float32."""
    copies = len(logits) // len(answers)
    tokens = torch.as_tensor(answers, device=logits.device).repeat(copies, 1)
    # A few rows at a time: float32 logits of every row and word would be the largest array of all.
    found = [
        few.float().log_softmax(-1).gather(-1, wanted)
        for few, wanted in zip(logits.split(64), tokens.split(64), strict=True)
    ]
    return torch.cat(found).view(copies, *answers.shape).cpu().numpy()


def largest_gap(one: np.ndarray, two: np.ndarray) -> float:
    """Largest |one - two|; none where neither is a number, infinite where only one is.

    >>> largest_gap(np.array([1.0, np.nan]), np.array([1.5, np.nan]))
    0.5
    """
    both = np.isnan(one) & np.isnan(two)
    return float(np.nan_to_num(abs(np.where(both, 0.0, one - two)), nan=np.inf).max())


@torch.inference_mode()
def check_against_plain_loop(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    answers: np.ndarray,
    cells: Sequence[Cell],
    *,
    positions: str,
) -> float:
    """Largest difference, in nats, between one pass and a full forward for each prompt and cell.

    Prompts are run together and one by one. Raises ValueError where either exceeds what rounding
    explains (4 units in the last place of the largest logit, or 1e-3): such a model's blocks are
    given, or keep, something that the hooks do not repeat, and it would be measured wrongly.
    """
    plain, largest = _plain_loop(decoder, prompts, answers, cells, positions=positions)
    apart = 0.0
    for n_together in (len(prompts), 1):
        max_rows = n_together * (1 + len(cells))
        try:
            found = sweep(
                decoder, prompts, answers, cells, positions=positions, max_rows=max_rows
            ).logprobs[1:]
        except (RuntimeError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"model {decoder.name!r}: its blocks cannot be run on more rows than the model was "
                f"given ({type(error).__name__}: {error}). This architecture is not supported."
            ) from error
        apart = max(apart, largest_gap(found, plain))
    allowed = max(1e-3, 4 * torch.finfo(decoder.model.dtype).eps * largest)
    if not apart <= allowed:
        raise ValueError(
            f"model {decoder.name!r}: one pass for all cells differs from the plain loop by "
            f"{apart:.3g} nat (at most {allowed:.3g} is rounding). This architecture is not "
            "supported; please report its name."
        )
    return apart


def _plain_loop(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    answers: np.ndarray,
    cells: Sequence[Cell],
    *,
    positions: str,
) -> tuple[np.ndarray, float]:
    """Log-probabilities (cell, prompt, answer) by full forwards; the largest logit."""
    out, largest = np.empty((len(cells), *answers.shape)), 0.0
    for row, cell in enumerate(cells):
        for column, prompt in enumerate(prompts):
            run = run_whole(decoder, [prompt], positions=positions)
            with steering(decoder.blocks[cell.layer], cell, run.steer):
                logits = forward(decoder, run)[0, -1].float().cpu()
            out[row, column] = logits.log_softmax(-1)[torch.as_tensor(answers[column])]
            largest = max(largest, float(logits.abs().max()))
    return out, largest
