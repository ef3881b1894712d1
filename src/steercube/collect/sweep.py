"""One pass of a batch of prompts for every layer and strength.

The plain loop runs the whole model for each (layer, strength). Here the batch runs once; after
block L, a copy of its rows with strength x v_L added joins for each strength, and all rows go on to
the end. Blocks up to L are not repeated for it, strength 0 is computed once, every weight is read
once, and only the last position reaches the final norm and the unembedding.

`positions` says where vectors are added. "all": at every position. "answer": at those after the
user's turn (Rimsky et al. 2023, arXiv:2312.06681). Nothing before these depends on the vector, so
the keys and values of the prompt are computed once and shared, and only the rest is run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from steercube.collect.caches import SharedPrefix
from steercube.collect.decoder import Decoder
from steercube.collect.hooks import Cell, FanOut, Touched, reading_out, record, steering
from steercube.collect.memory import lacks_memory, rows_that_fit
from steercube.collect.next_token import NextToken, logprobs_of, read
from steercube.collect.readout import Prompt

N_PROBES = 64
ALLOWED, FLOOR, CEILING, LEAST = 3.0, 12.0, 20.0, 1e-3
"""Tolerance of a check, see `require_alike`. In units in the last place of the logits' standard
deviation, correct bfloat16 models of 5 to 30 blocks differed by up to 5; half a vector makes 30."""
FROM_INSIDE = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)
"""Raised by a model that is run in a way that it was not written for."""
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Run:
    """A batch ready for the decoder: the tokens to run, and the cached prefix that they follow.

    ids, steer (row, position); last (row); `positions` (row, position) and `mask` (row, slot) are
    given only with a prefix.
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
    """Log-probabilities in nats, float32: (1 + cells, prompt, answer); receipts by layer.

    `values` (1 + cells, prompt, measure) are of the measures that were asked for.
    """

    logprobs: np.ndarray
    values: np.ndarray
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
    measured: Sequence[NextToken] = (),
    progress: Progress = lambda n: None,
) -> Swept:
    """Log-probability of each answer of each prompt, unsteered (first) and for each of `cells`.

    `answers` holds token ids (prompt, answer), `measured` further measures of the same
    distributions. At most `max_rows` rows are in a pass, fewer of long
    prompts if a GPU's memory is estimated to take fewer (`memory`); where even these do not fit,
    half as many, down to two. The result depends on neither, nor on the order of the prompts.
    `progress` is called with the number of rows just finished.

    Raises ValueError for `max_rows` below two, MemoryError where two rows do not fit.
    """
    shape = (1 + len(cells), len(prompts))
    logprobs = np.full((*shape, answers.shape[1]), np.nan, dtype="float32")
    values = np.full((*shape, len(measured)), np.nan, dtype="float32")
    touched: dict[int, Touched] = {}

    def sweep_batch(batch: list[int], max_rows: int) -> None:
        run = prepare(decoder, [prompts[i] for i in batch], positions=positions)
        part = _every_cell(
            decoder, run, cells, answers[batch], max_rows=max_rows, measured=measured
        )
        logprobs[:, batch], values[:, batch], receipts = part
        add_prompts(touched, receipts)
        progress((1 + len(cells)) * len(batch))

    fitting = rows_that_fit(decoder, prompts, shared=shared_starts(decoder, prompts, positions))
    max_rows = in_batches(
        prompts,
        1 + len(cells),
        sweep_batch,
        max_rows=max_rows,
        fitting=fitting,
        alone=decoder.rank.size == 1,
    )
    return Swept(logprobs, values, touched, max_rows)


def in_batches(
    prompts: Sequence[Prompt],
    rows_each: int,
    do: Callable[[list[int], int], None],
    *,
    max_rows: int,
    fitting: np.ndarray,
    alone: bool = True,
) -> int:
    """Call `do(indices of prompts, rows)` for all prompts; returns `max_rows`, or what fitted.

    A batch has as many prompts as fit into `rows` at `rows_each`, which are at most `max_rows` and
    `fitting` (prompt), by estimate, for each of its prompts, but at least two; where memory runs
    out, `max_rows` becomes half of these. Raises ValueError for `max_rows` below two, MemoryError
    where two do not fit, or memory runs out in one of several processes that hold the model
    together (not `alone`): the others are in the middle of the pass, and wait for it.
    """
    if max_rows < 2:
        raise ValueError(f"max_rows = {max_rows}: at least 2, a prompt and its steered copy")
    # Prompts of similar length run together, so that little is padded.
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    while waiting:
        # Entry n is of a batch of the next n + 1 prompts.
        rows = np.clip(np.minimum.accumulate(fitting[waiting]), 2, max_rows).astype(int)
        n = max(1, int((rows_each * np.arange(1, 1 + len(rows)) <= rows).sum()))
        try:
            do(waiting[:n], int(rows[n - 1]))
        except (RuntimeError, MemoryError) as error:
            max_rows = _fewer_rows(error, int(rows[n - 1]), alone=alone)
            continue
        waiting = waiting[n:]
    return max_rows


def add_prompts(touched: dict[int, Touched], receipts: Mapping[int, Touched]) -> None:
    """Add to `touched` the receipts, by layer, of more prompts in the same cells."""
    for layer, one in receipts.items():
        touched[layer] = touched[layer].with_more_prompts(one) if layer in touched else one


def _every_cell(
    decoder: Decoder,
    run: Run,
    cells: Sequence[Cell],
    answers: np.ndarray,
    *,
    max_rows: int,
    measured: Sequence[NextToken],
) -> tuple[np.ndarray, np.ndarray, dict[int, Touched]]:
    """A batch's log-probabilities and measures for all cells, in passes; receipts by layer."""
    shape = (1 + len(cells), len(answers))
    logprobs = np.empty((*shape, answers.shape[1]), dtype="float32")
    values = np.empty((*shape, len(measured)), dtype="float32")
    touched: dict[int, Touched] = {}
    for group in groups(len(cells), max_rows // len(answers) - 1):
        pass_ = FanOut([cells[i] for i in group], run.steer)
        rows = [0, *(1 + group[i] for i in pass_.ordered)]
        logprobs[rows], values[rows] = read(fan_out(decoder, run, pass_), answers, measured)
        add_cells(touched, pass_.touched)
    return logprobs, values, touched


def add_cells(touched: dict[int, Touched], receipts: Mapping[int, Touched]) -> None:
    """Add to `touched` the receipts, by layer, of more cells of the same prompts."""
    for layer, one in receipts.items():
        touched[layer] = touched[layer].with_more_cells(one) if layer in touched else one


def groups(n_cells: int, at_most: int) -> list[range]:
    """Indices of cells in passes of at most `at_most`; one empty pass where there are no cells."""
    if n_cells == 0:
        return [range(0)]
    return [range(start, min(start + at_most, n_cells)) for start in range(0, n_cells, at_most)]


def _fewer_rows(error: Exception, rows: int, *, alone: bool) -> int:
    """Half of `rows`; re-raises what is no lack of memory, raises MemoryError at two rows."""
    if not lacks_memory(error):
        raise error
    if not alone:
        raise not_alone(rows) from error
    if rows <= 2:
        raise MemoryError(
            "one prompt and one steered copy of it do not fit into memory. Spread the model "
            'with device_map = "auto", use a smaller dtype, or leave out the longest prompts.'
        ) from error
    return max(2, rows // 2)


def not_alone(rows: int) -> MemoryError:
    """The error of one of several processes that hold a model together and ran out of memory."""
    return MemoryError(
        f"{rows} rows in a pass do not fit into the memory of one of the processes that hold the "
        f"model together; start again with --resume --max-rows {max(2, rows // 2)}"
    )


@torch.no_grad()
def prepare(
    decoder: Decoder, prompts: Sequence[Prompt], *, positions: str, keeps: bool = False
) -> Run:
    """The batch on the device; with "answer", after the cached keys and values of its beginning.

    `keeps` is for generation, where rows go on after the pass: see `SharedPrefix`.
    """
    starts = _starts(prompts, positions)
    n_run = max(len(p.ids) - start for p, start in zip(prompts, starts, strict=True))
    prefix = SharedPrefix(decoder.n_layers, keeps=keeps)
    if decoder.shares_prefix and n_run < min(len(p.ids) for p in prompts):
        return _after_prefix(decoder, prompts, starts, n_run, prefix)
    whole = run_whole(decoder, prompts, positions=positions)
    if not keeps:
        return whole
    prefix.share()
    return replace(whole, prefix=prefix)


def _starts(prompts: Sequence[Prompt], positions: str) -> list[int]:
    """The first position of each prompt at which vectors are added."""
    return [0 if positions == "all" else prompt.answer_start for prompt in prompts]


def shared_starts(decoder: Decoder, prompts: Sequence[Prompt], positions: str) -> list[int]:
    """How many of the first positions of each prompt are run once for all its copies."""
    return _starts(prompts, positions) if decoder.shares_prefix else [0] * len(prompts)


def run_whole(decoder: Decoder, prompts: Sequence[Prompt], *, positions: str) -> Run:
    """The batch without a prefix, padded on the right, where causal attention needs no mask."""
    starts = _starts(prompts, positions)
    ids, lengths = _padded([p.ids for p in prompts], decoder.device)
    at = torch.arange(ids.shape[1], device=ids.device)[None]
    begin = torch.tensor(starts, device=ids.device)[:, None]
    return Run(ids, steer=(at >= begin) & (at < lengths[:, None]), last=lengths - 1)


def _after_prefix(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    starts: Sequence[int],
    n_run: int,
    prefix: SharedPrefix,
) -> Run:
    """The last `n_run` tokens of every prompt, after the keys and values of the earlier ones."""
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
    """Ids (row, position), padded on the right with an id that is never attended to; lengths."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    width = int(lengths.max())
    ids = [[*row, *[0] * (width - len(row))] for row in rows]
    return torch.tensor(ids, device=device), lengths


def forward(decoder: Decoder, run: Run, *, at: Tensor | None = None) -> Tensor:
    """Logits (row, position, vocabulary) of the model, but summed in float32.

    `at` (row, n) selects positions; without it, all that the last block outputs.
    """
    given = {"position_ids": run.positions, "attention_mask": run.mask}
    with reading_out(decoder.model.get_output_embeddings(), at):
        logits: Tensor = decoder.model(
            input_ids=run.ids,
            past_key_values=run.prefix,
            use_cache=run.prefix is not None,
            **{name: value for name, value in given.items() if value is not None},
        ).logits
    if at is None or logits.shape[1] == at.shape[1]:
        return logits
    # A model without an output embedding of its own returned all positions.
    return logits.gather(1, at[:, :, None].expand(-1, -1, logits.shape[-1]).to(logits.device))


@torch.no_grad()
def fan_out(decoder: Decoder, run: Run, pass_: FanOut) -> Tensor:
    """Logits (rows, vocabulary) at each row's last position."""
    at = run.last.repeat(1 + len(pass_.cells))[:, None]
    with pass_.on(decoder.blocks):
        return forward(decoder, run, at=at)[:, 0]


def largest_gap(one: np.ndarray, two: np.ndarray) -> float:
    """Largest |one - two|; 0 where both are NaN, infinite where only one is.

    >>> largest_gap(np.array([1.0, np.nan]), np.array([1.5, np.nan]))
    0.5
    """
    return float(_gaps(one, two).max())


def _gaps(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    both = np.isnan(one) & np.isnan(two)
    with np.errstate(invalid="ignore"):  # inf - inf
        return np.nan_to_num(abs(np.where(both, 0.0, one - two)), nan=np.inf)


def probes_of(decoder: Decoder) -> np.ndarray:
    """Tokens spread over the vocabulary, whose log-probabilities a check compares.

    Together they show how far the last hidden state is off, where one or two could agree by luck.
    """
    n_words = decoder.model.config.get_text_config().vocab_size
    return np.unique(np.linspace(0, n_words - 1, N_PROBES).astype(int))


@torch.no_grad()
def as_large_as_the_residual(
    decoder: Decoder, prompts: Sequence[Prompt], cells: Sequence[Cell]
) -> list[Cell]:
    """The cells, rescaled so that |added| = |residual| where the answer is read.

    A wrong pass then differs by about the size of the residual stream itself, far above what
    rounding explains. A vector of norm 0 is not rescaled.
    """
    norms = []
    for prompt in prompts:
        run = run_whole(decoder, [prompt], positions="all")
        with record(decoder.blocks, at=run.last) as seen:
            forward(decoder, run, at=run.last[:, None])
        norms.append([float(hidden.double().norm()) for hidden in seen])
    residual = np.mean(norms, axis=0)
    added = [float(cell.vector.double().norm()) for cell in cells]
    return [
        replace(cell, strength=float(np.copysign(residual[cell.layer] / norm, cell.strength)))
        if norm > 0
        else cell
        for cell, norm in zip(cells, added, strict=True)
    ]


@torch.no_grad()
def check_against_plain_loop(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    answers: np.ndarray,
    cells: Sequence[Cell],
    *,
    positions: str,
) -> float:
    """Largest difference, in nats, between one pass and a full forward for each prompt and cell.

    Prompts are run together and one by one, at |added| = |residual|, and compared at the answers'
    tokens and at probe tokens. Raises ValueError where a vector was not added at every intended
    position, and where the two differ by more than rounding explains (see `require_alike`): the
    model's blocks are then given, or keep, something that the hooks do not repeat for the copies,
    and results would be wrong.
    """
    cells = as_large_as_the_residual(decoder, prompts, cells)
    tokens = np.concatenate(
        [answers, np.tile(probes_of(decoder), (len(prompts), 1))], axis=1
    )  # (prompt, token)
    passes = []
    for n_together in (len(prompts), 1):
        max_rows = max(2, n_together * (1 + len(cells)))
        try:
            swept = sweep(decoder, prompts, tokens, cells, positions=positions, max_rows=max_rows)
        except FROM_INSIDE as error:
            raise ValueError(
                f"model {decoder.name!r}: its blocks cannot be run on more rows than the model was "
                f"given ({type(error).__name__}: {error}). This architecture is not supported."
            ) from error
        passes.append(swept)
    plain = partial(plain_loop, decoder, prompts, tokens, positions=positions)
    difference = require_alike(
        [swept.logprobs[1:] for swept in passes],
        plain=plain(cells)[:, :, 0],
        again=plain(cells, copies=copies_of(prompts))[:, :, 0],
        unsteered=lambda: plain([replace(cell, strength=0.0) for cell in cells[:1]])[:, :, 0],
        eps=rounding_unit(decoder),
        what=f"model {decoder.name!r}: one pass for all vectors differs from the plain loop",
        remedy="This architecture is not supported; please report its name.",
    )
    for swept in passes:
        require_every_position(decoder, swept.touched, prompts, cells, positions=positions)
    return difference


def copies_of(prompts: Sequence[Prompt]) -> int:
    """How often to repeat the prompts in a batch, so that it has several rows."""
    return 1 if len(prompts) > 1 else 2


def require_every_position(
    decoder: Decoder,
    touched: Mapping[int, Touched],
    prompts: Sequence[Prompt],
    cells: Sequence[Cell],
    *,
    positions: str,
    generated: int = 0,
) -> None:
    """Raise ValueError unless each vector changed every position where it should be added.

    `generated` is how many tokens after each prompt are among them. Changes are counted, so even a
    single missed row or position is seen, where no logit might show it.
    """
    starts = _starts(prompts, positions)
    each = sum(len(p.ids) - start + generated for p, start in zip(prompts, starts, strict=True))
    for layer in sorted({cell.layer for cell in cells}):
        n_cells = sum(cell.layer == layer and bool(cell.vector.any()) for cell in cells)
        one = touched[layer]
        changed, wanted = (one.rows, one.positions), (n_cells * len(prompts), n_cells * each)
        if changed != wanted:
            raise ValueError(
                f"model {decoder.name!r}: after block {layer}, vectors changed {changed[0]} rows "
                f"at {changed[1]} positions in all, instead of {wanted[0]} at {wanted[1]}. This "
                "architecture is not supported; please report its name."
            )


def require_alike(
    ours: Sequence[np.ndarray],
    *,
    plain: np.ndarray,
    again: np.ndarray,
    unsteered: Callable[[], np.ndarray],
    eps: float,
    what: str,
    remedy: str,
) -> float:
    """Largest |ours - plain| in nats; ValueError where it is more than rounding.

    All are log-probabilities (cell, prompt, ...): `ours` by this package, `plain` by the plain
    loop, `again` by it at another batch size, `unsteered` by it without vectors. A row is a cell
    and prompt; its difference is the root mean square over its tokens. Each of `ours` is refused

    - where its median row differs from `plain` by more than ALLOWED times the median row's
      difference between `again` and `plain`. At least LEAST nat and FLOOR units in the last place
      of the logits' standard deviation are allowed, because that one may by chance be below
      rounding; at most CEILING units, because more is not rounding: the rows of a batch then
      affect each other. The median, because rounding makes a mixture of experts choose another
      expert in a row now and then, while wrong code is wrong in most rows.
    - where any row differs by more than half of what its vector does there. A row without its
      vector differs by all of it.
    """
    spread = np.std(plain, axis=tuple(range(2, plain.ndim)))
    unit = eps * float(np.median(np.nan_to_num(spread)))
    own = float(np.median(_by_row(again, plain)))
    allowed = max(LEAST, float(np.clip(ALLOWED * own, FLOOR * unit, CEILING * unit)))
    for gap in (_by_row(one, plain) for one in ours):
        if (gap <= allowed).all():
            continue
        effect = _by_row(plain, np.broadcast_to(unsteered(), plain.shape))
        if not np.median(gap) <= allowed or not (gap <= np.maximum(allowed, effect / 2)).all():
            raise ValueError(
                f"{what} by {np.median(gap):.3g} nat in the median row and {gap.max():.3g} in the "
                f"worst. Rounding explains {allowed:.3g}; the vectors themselves change "
                f"{np.median(effect):.3g}. {remedy}"
            )
    return max(largest_gap(one, plain) for one in ours)


def rounding_unit(decoder: Decoder) -> float:
    """The unit in the last place of the model's matrix products, relative to 1."""
    dtype = decoder.model.dtype
    lowered = {"high": 2.0**-10, "medium": 2.0**-7}
    float32_unit = lowered.get(torch.get_float32_matmul_precision(), 0.0)
    return max(torch.finfo(dtype).eps, float32_unit if dtype == torch.float32 else 0.0)


def _by_row(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Root mean square difference (cell, prompt) over other dims, infinite where one is NaN."""
    return np.sqrt((_gaps(one, two) ** 2).mean(axis=tuple(range(2, one.ndim))))


@torch.no_grad()
def plain_loop(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    tokens: np.ndarray,
    cells: Sequence[Cell],
    *,
    positions: str,
    copies: int = 0,
    n_last: int = 1,
) -> np.ndarray:
    """Log-probabilities (cell, prompt, position, token) by a full forward for each cell.

    Those of `tokens` (prompt, token), at the last `n_last` positions. Prompts are run one by one
    or, with `copies`, all together, each so many times.
    """
    every = range(len(prompts))
    batches = [[*every] * copies] if copies else [[i] for i in every]
    out = np.empty((len(cells), len(prompts), n_last, tokens.shape[1]))
    for batch in batches:
        run = run_whole(decoder, [prompts[i] for i in batch], positions=positions)
        at = run.last[:, None] + torch.arange(1 - n_last, 1, device=run.last.device)
        wanted = tokens[batch].repeat(n_last, axis=0)
        for row, cell in enumerate(cells):
            with steering(decoder.blocks[cell.layer], cell, run.steer):
                logits = forward(decoder, run, at=at)
            out[row, batch] = logprobs_of(logits.flatten(0, 1), wanted)[0].reshape(
                len(batch), n_last, -1
            )
    return out
