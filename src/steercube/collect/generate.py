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
from steercube.collect.hooks import Cell, FanOut, Touched, steering, steering_rows
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
    logprobs_of,
    prepare,
    run_whole,
)

PAD = -1
"""What stands after the last token of an answer."""
CHECKED_TOKENS = 4
"""Tokens that a run's check generates: enough for two steps behind a past that was moved."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: the likeliest one, or with a temperature a random one."""

    max_new_tokens: int = 32
    temperature: float = 0.0


@dataclass(frozen=True)
class Generated:
    """Token ids (1 + cells, prompt, position), end token included, PAD after it.

    `logprobs` (1 + cells, prompt, answer) are of the answers' tokens at the first generated
    position, in nats; receipts are by layer, of prompts and answers together.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
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

    Raises ValueError for a model whose past is not keys and values alone; see also `in_batches`.
    """
    if not decoder.shares_prefix:
        raise ValueError(
            f"model {decoder.name!r} keeps more of its past than keys and values (its config's "
            "layer_types say what), so rows of different cells cannot be decoded together. "
            "Collect it with --outcomes logit."
        )
    shape = (1 + len(cells), len(prompts))
    tokens = np.full((*shape, decoding.max_new_tokens), PAD)
    logprobs = np.full((*shape, answers.shape[1]), np.nan, dtype="float32")
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
            add_cells(receipts, found.touched)
        add_prompts(touched, receipts)
        progress(shape[0] * len(batch))

    max_rows = in_batches(prompts, shape[0], generate_batch, max_rows=max_rows)
    return Generated(tokens, logprobs, touched, max_rows)


class _Group(NamedTuple):
    """One pass's rows: tokens (cell, prompt, position), logprobs (cell, prompt, answer)."""

    tokens: np.ndarray
    logprobs: np.ndarray
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
    changed: dict[int, Tensor] = {}
    live = _with_gaps_filled(unsteered | (of_cell > 0))
    past.keep(live)
    logits = logits[live]
    for step in range(decoding.max_new_tokens):
        at = of_cell[live], of_prompt[live]
        chosen = _chosen(logits, decoding, None if chances is None else chances[at[1], step])
        tokens[(*at, step)] = chosen
        goes_on = ~np.isin(chosen, decoder.end_tokens)
        if step + 1 == decoding.max_new_tokens or not goes_on.any():
            break
        stay = _with_gaps_filled(goes_on)
        live = live[stay]
        past.keep(stay)
        at_work = [cells[cell - 1] if cell else None for cell in of_cell[live]]
        with steering_rows(decoder.blocks, at_work, changed):
            logits = forward(decoder, _next(run, past, of_prompt[live], chosen[stay], step))[:, -1]
    touched = {
        layer: replace(one, positions=one.positions + int(changed.get(layer, 0)))
        for layer, one in pass_.touched.items()
    }
    first = 0 if unsteered else 1
    return _Group(tokens[first:], logprobs[first:], touched)


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
    """Token ids (row): the likeliest, or where each row's chance falls in the distribution."""
    if chances is None:
        return logits.argmax(-1).cpu().numpy()
    drawn = []
    # A few rows at a time, as in `logprobs_of`.
    for few, chance in zip(logits.split(64), torch.as_tensor(chances).split(64), strict=True):
        cumulative = (few.double() / decoding.temperature).softmax(-1).cumsum(-1)
        wanted = chance.to(few.device)[:, None] * cumulative[:, -1:]
        drawn.append(torch.searchsorted(cumulative, wanted, right=True)[:, 0])
    return torch.cat(drawn).clamp(max=logits.shape[-1] - 1).cpu().numpy()


@torch.inference_mode()
def check_generation_against_plain_loop(
    decoder: Decoder, prompts: Sequence[Prompt], cells: Sequence[Cell], *, positions: str
) -> float:
    """How far a few generated tokens fall short of the largest logit of a full forward, at most.

    Each answer is run again behind its prompt, whole, without a cache and alone. Raises ValueError
    where the shortfall exceeds what rounding explains (4 units in the last place of the largest
    logit, or 1e-3): a cache or a mask of that model does not do what ours takes it to do.
    """
    none = np.zeros((len(prompts), 1), dtype=int)
    found = generate(
        decoder, prompts, none, cells, positions=positions, decoding=Decoding(CHECKED_TOKENS),
        max_rows=len(prompts) * (1 + len(cells)),
    )  # fmt: skip
    short, largest = 0.0, 0.0
    for cell, of_cell in zip(cells, found.tokens[1:], strict=True):
        for prompt, padded in zip(prompts, of_cell, strict=True):
            tokens = padded[padded != PAD]
            whole = Prompt((*prompt.ids, *tokens.tolist()[:-1]), prompt.answer_start)
            run = run_whole(decoder, [whole], positions=positions)
            with steering(decoder.blocks[cell.layer], cell, run.steer):
                logits = forward(decoder, run)[0, len(prompt.ids) - 1 :].float().cpu()
            said = logits.gather(-1, torch.as_tensor(tokens)[:, None])[:, 0]
            short = max(short, float((logits.max(-1).values - said).max()))
            largest = max(largest, float(logits.abs().max()))
    allowed = max(1e-3, 4 * torch.finfo(decoder.model.dtype).eps * largest)
    if not short <= allowed:
        raise ValueError(
            f"model {decoder.name!r}: a generated token falls short of the plain loop's by "
            f"{short:.3g} (at most {allowed:.3g} is rounding). Generation does not support this "
            "architecture; collect it with --outcomes logit, and please report its name."
        )
    return short
