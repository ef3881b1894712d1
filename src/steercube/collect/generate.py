"""Full answers under steering: rows of different layers and strengths decoded together.

The batch is prefilled as in the sweep: the prompt is run once, and each cell's copy joins after
the block that it is steered at. Then every row has a past of its own and all go on together, one
token at a time, each steered in its own cell at every token that it says. A row that says an end
token, or `max_new_tokens`, leaves the batch.

Greedy by default. With a temperature each prompt has a random stream of its own, the same in every
cell, so an answer depends on neither its batch nor which other cells are run, and two cells of a
prompt differ by what was added alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steercube.collect.caches import Rows, SharedPrefix
from steercube.collect.decoder import Decoder
from steercube.collect.hooks import Cell, FanOut, RowSteering, Touched, steering
from steercube.collect.readout import Prompt
from steercube.collect.sweep import (
    Progress,
    Run,
    add_cells,
    add_prompts,
    fan_out,
    forward,
    groups,
    in_batches,
    largest_gap,
    logprobs_of,
    prepare,
    run_whole,
)

PAD, NONFINITE = -1, -2
"""What stands after the last token of an answer; where its logits were no numbers, and it ends."""
CHECKED_TOKENS = 6
"""Tokens that a run's check generates: a past that is wrong shows from the second on."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: the likeliest one, or with a temperature a random one.

    `recorded`, for a check: no token ends an answer, and the log-probability of each is kept.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    recorded: bool = False


@dataclass(frozen=True)
class Generated:
    """Token ids (1 + cells, prompt, position), end token included, PAD after it.

    `logprobs` (1 + cells, prompt, answer) are of the answers' tokens at the first generated
    position, `said` those of the tokens themselves where they were recorded, in nats; receipts are
    by layer, of prompts and answers together.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    said: np.ndarray
    touched: dict[int, Touched]
    max_rows: int


def generate(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    answers: np.ndarray,
    cells: Sequence[Cell],
    *,
    positions: str,
    decoding: Decoding,
    rngs: Sequence[np.random.Generator] = (),
    max_rows: int,
    progress: Progress = lambda n: None,
) -> Generated:
    """What the model answers to each prompt, unsteered (first) and in each cell.

    Vectors are added in the prompt as `positions` says and at every generated token. `rngs` are one
    a prompt, for a temperature. The result depends on neither `max_rows` nor the order of prompts.

    Raises ValueError for a model whose past is not keys and values alone, and for a temperature
    without `rngs`; see also `in_batches`.
    """
    require_own_keys(decoder)
    if decoding.temperature and len(rngs) != len(prompts):
        raise ValueError(f"{len(rngs)} rngs for {len(prompts)} prompts: each takes one")
    shape = (1 + len(cells), len(prompts))
    tokens = np.full((*shape, decoding.max_new_tokens), PAD)
    logprobs = np.full((*shape, answers.shape[1]), np.nan, dtype="float32")
    said = np.full(tokens.shape, np.nan)
    chances = np.array([rng.random(decoding.max_new_tokens) for rng in rngs])
    touched: dict[int, Touched] = {}

    def generate_batch(batch: list[int], max_rows: int) -> None:
        run = prepare(decoder, [prompts[i] for i in batch], positions=positions, keeps=True)
        drawn = chances[batch] if decoding.temperature else None
        receipts: dict[int, Touched] = {}
        for group in groups(len(cells), max_rows // len(batch) - 1):
            found = _generate_group(
                decoder, run, [cells[i] for i in group], answers[batch], decoding, drawn,
                unsteered=group.start == 0,
            )  # fmt: skip
            rows = [*([0] if group.start == 0 else []), *(1 + i for i in group)]
            tokens[np.ix_(rows, batch)] = found.tokens
            logprobs[np.ix_(rows, batch)] = found.logprobs
            said[np.ix_(rows, batch)] = found.said
            add_cells(receipts, found.touched)
        add_prompts(touched, receipts)
        progress(shape[0] * len(batch))

    max_rows = in_batches(prompts, shape[0], generate_batch, max_rows=max_rows)
    return Generated(tokens, logprobs, said, touched, max_rows)


def require_own_keys(decoder: Decoder) -> None:
    """Raise ValueError for a model whose rows cannot each have a past of their own here."""
    if not decoder.shares_prefix:
        raise ValueError(
            f"model {decoder.name!r}: some of its blocks keep more of the past than keys and "
            "values of their own, so rows of different cells cannot be decoded together. "
            "Collect it with --outcomes logit."
        )


class _Group(NamedTuple):
    """One pass's rows, by cell and prompt, as in `Generated`."""

    tokens: np.ndarray
    logprobs: np.ndarray
    said: np.ndarray
    touched: dict[int, Touched]


@torch.inference_mode()
def _generate_group(
    decoder: Decoder,
    run: Run,
    cells: Sequence[Cell],
    answers: np.ndarray,
    decoding: Decoding,
    chances: np.ndarray | None,
    *,
    unsteered: bool,
) -> _Group:
    """Prefill and decode a batch in some cells; `unsteered` says whether that copy goes on too."""
    batch, copies = len(answers), 1 + len(cells)
    pass_ = FanOut(cells, run.steer, run.last)
    logits = fan_out(decoder, run, pass_)
    past = _past(run).one_row_each(
        copies * batch, _n_run(run), room=max(0, decoding.max_new_tokens - 1)
    )
    # Each row's cell (0 is unsteered) and prompt, both as the caller counts them.
    order = np.array([0, *(1 + i for i in pass_.ordered)])
    of_cell, of_prompt = np.repeat(order, batch), np.tile(np.arange(batch), copies)
    logprobs = np.empty((copies, *answers.shape), dtype="float32")
    logprobs[order] = logprobs_of(logits, answers)
    tokens = np.full((copies, batch, decoding.max_new_tokens), PAD)
    said = np.full(tokens.shape, np.nan)
    ends = [NONFINITE, *([] if decoding.recorded else decoder.end_tokens)]
    in_cells = RowSteering(cells)
    live = _with_gaps_filled(unsteered | (of_cell > 0))
    past.keep(live)
    logits = logits[live]
    for step in range(decoding.max_new_tokens):
        at = of_cell[live], of_prompt[live]
        chosen = _chosen(logits, decoding, None if chances is None else chances[at[1], step])
        tokens[(*at, step)] = chosen
        if decoding.recorded:
            said[(*at, step)] = logprobs_of(logits, np.maximum(chosen, 0)[:, None])[0, :, 0]
        goes_on = ~np.isin(chosen, ends)
        if step + 1 == decoding.max_new_tokens or not goes_on.any():
            break
        stay = _with_gaps_filled(goes_on)
        live = live[stay]
        past.keep(stay)
        with in_cells.on(decoder.blocks, (of_cell[live] - 1).tolist()):
            logits = forward(decoder, _next(run, past, of_prompt[live], chosen[stay], step))[:, -1]
    touched = {
        layer: replace(one, positions=one.positions + int(in_cells.changed.get(layer, 0)))
        for layer, one in pass_.touched.items()
    }
    first = 0 if unsteered else 1
    return _Group(tokens[first:], logprobs[first:], said[first:], touched)


def _past(run: Run) -> SharedPrefix:
    assert isinstance(run.prefix, SharedPrefix), "the run was not prepared with `keeps`"
    return run.prefix


def _n_run(run: Run) -> Tensor:
    """How many tokens of each prompt (row) the pass ran; padding stands behind them."""
    return run.last + 1


def _next(run: Run, past: Rows, of_prompt: np.ndarray, chosen: np.ndarray, step: int) -> Run:
    """One more token of each row, behind its past."""
    device = run.ids.device
    prompt = torch.as_tensor(of_prompt, device=device)
    ids = torch.as_tensor(chosen, device=device)[:, None]
    if run.mask is None or run.positions is None:
        lengths, width = _n_run(run), run.ids.shape[1]
        held = torch.arange(width, device=device)[None] >= width - lengths[:, None]
    else:
        lengths, held = run.positions[:, -1] + 1, run.mask.bool()
    # Without padding no mask is needed, and attention without a mask is faster.
    mask = None
    if not held.all():
        said = torch.ones(len(ids), step + 1, dtype=torch.bool, device=device)
        mask = torch.cat([held[prompt], said], dim=1).long()
    every = torch.ones_like(ids, dtype=torch.bool)
    last = torch.zeros(len(ids), dtype=torch.long, device=device)
    return Run(ids, every, last, past, positions=lengths[prompt][:, None] + step, mask=mask)


def _with_gaps_filled(goes_on: np.ndarray) -> np.ndarray:
    """The rows that go on, each in its place but for the last ones, which fill the gaps.

    >>> _with_gaps_filled(np.array([True, False, True, True])).tolist()
    [0, 3, 2]
    """
    n = int(goes_on.sum())
    rows = np.arange(n)
    rows[~goes_on[:n]] = n + np.flatnonzero(goes_on[n:])
    return rows


def _chosen(logits: Tensor, decoding: Decoding, chances: np.ndarray | None) -> np.ndarray:
    """Token ids (row): the likeliest, or where each row's chance falls in the distribution.

    NONFINITE where the likeliest has no finite logit.
    """
    largest, likeliest = logits.max(-1)
    finite = largest.isfinite().cpu().numpy()
    if chances is None:
        return np.where(finite, likeliest.cpu().numpy(), NONFINITE)
    drawn = []
    # A few rows at a time, as in `logprobs_of`.
    for few, chance in zip(logits.split(64), torch.as_tensor(chances).split(64), strict=True):
        cumulative = (few.double() / decoding.temperature).softmax(-1).cumsum(-1)
        wanted = chance.to(few.device)[:, None] * cumulative[:, -1:]
        drawn.append(torch.searchsorted(cumulative, wanted, right=True)[:, 0])
    found = torch.cat(drawn).clamp(max=logits.shape[-1] - 1).cpu().numpy()
    return np.where(finite, found, NONFINITE)


@torch.inference_mode()
def check_generation_against_plain_loop(
    decoder: Decoder, prompts: Sequence[Prompt], cells: Sequence[Cell], *, positions: str
) -> float:
    """Largest difference, in nats, of generated tokens' log-probabilities from a full forward's.

    Prompts are decoded together and one by one, past any end token; each answer is run again behind
    its prompt, whole and without a cache. Raises ValueError where they differ by more than rounding
    explains (4 units in the last place of the largest logit, or 1e-3): a cache, a mask or the
    positions of that model are not what ours take them to be. Give prompts of unlike length.
    """
    apart, largest = 0.0, 0.0
    decoding = Decoding(CHECKED_TOKENS, recorded=True)
    for together in (prompts, *([prompt] for prompt in prompts)):
        none = np.zeros((len(together), 1), dtype=int)
        max_rows = len(together) * (1 + len(cells))
        try:
            found = generate(
                decoder, together, none, cells, positions=positions, decoding=decoding,
                max_rows=max_rows,
            )  # fmt: skip
        except (RuntimeError, TypeError, AttributeError, IndexError, AssertionError) as error:
            raise ValueError(
                f"model {decoder.name!r}: its rows cannot be decoded together "
                f"({type(error).__name__}: {error}). Collect it with --outcomes logit."
            ) from error
        for cell, tokens, said in zip(cells, found.tokens[1:], found.said[1:], strict=True):
            for prompt, own, own_said in zip(together, tokens, said, strict=True):
                own = np.maximum(own, 0)  # what was no number is none in the plain loop either
                logits = _plain_logits(decoder, prompt, own, cell, positions=positions)
                plain = logits.log_softmax(-1).gather(-1, torch.as_tensor(own)[:, None])[:, 0]
                apart = max(apart, largest_gap(own_said, plain.numpy()))
                largest = max(largest, float(logits.abs().max()))
    allowed = max(1e-3, 4 * torch.finfo(decoder.model.dtype).eps * largest)
    if not apart <= allowed:
        raise ValueError(
            f"model {decoder.name!r}: generated tokens differ from the plain loop's by {apart:.3g} "
            f"nat (at most {allowed:.3g} is rounding). Generation does not support this "
            "architecture; collect it with --outcomes logit, and please report its name."
        )
    return apart


def _plain_logits(
    decoder: Decoder, prompt: Prompt, tokens: np.ndarray, cell: Cell, *, positions: str
) -> Tensor:
    """Logits (position, vocabulary) that each of the answer's tokens follows, by a full forward."""
    whole = Prompt((*prompt.ids, *tokens.tolist()[:-1]), prompt.answer_start)
    run = run_whole(decoder, [whole], positions=positions)
    with steering(decoder.blocks[cell.layer], cell, run.steer):
        return forward(decoder, run)[0, len(prompt.ids) - 1 :].float().cpu()
