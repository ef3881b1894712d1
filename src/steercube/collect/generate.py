"""Full answers under steering: rows of different layers and strengths decoded together.

The batch is prefilled as in the sweep: the prompt is run once, and each steered copy joins after
the block that it is steered at. Then every row has its own past and all go on together, one token
at a time, each steered by its own vector at every token that it generates. A row leaves the batch
at an end token, or after `max_new_tokens`.

Greedy by default: the token of the largest logit, summed in float32. In bfloat16 `model.generate`
rounds logits first, so several may tie for the largest, and it takes the first of them; ours takes
the largest before rounding, so answers can diverge where two tokens are within 1/8 nat or so.
With a temperature each prompt has its own random stream, the same in every steered copy. So an
answer depends on neither its batch nor the other layers and strengths that are run, and two copies
of a prompt differ only by what was added.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steercube.collect.caches import Rows, SharedPrefix
from steercube.collect.decoder import Decoder
from steercube.collect.hooks import Cell, FanOut, RowSteering, Touched
from steercube.collect.memory import rows_that_fit
from steercube.collect.next_token import logprobs_of
from steercube.collect.readout import Prompt
from steercube.collect.sweep import (
    FROM_INSIDE,
    Progress,
    Run,
    add_cells,
    add_prompts,
    as_large_as_the_residual,
    copies_of,
    fan_out,
    forward,
    groups,
    in_batches,
    plain_loop,
    prepare,
    probes_of,
    require_alike,
    require_every_position,
    rounding_unit,
    shared_starts,
)

PAD, NONFINITE = -1, -2
"""Ids after the last token of an answer, and where logits were not finite, which ends it."""
CHECKED_TOKENS = 6
"""Tokens that the check before a run generates; a wrong past shows from the second on."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: the most likely one, or with a temperature a random one.

    With `probes` (token ids, for a check), no token ends an answer, and the log-probabilities of
    the probes are kept at each position.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    probes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generated:
    """Generated token ids (1 + cells, prompt, position), end token included, PAD after it.

    `logprobs` (1 + cells, prompt, answer) are those of the answers' tokens at the first generated
    position, `probed` (1 + cells, prompt, position, probe) those of the probes, in nats; `touched`
    has receipts by layer, of prompts and answers together.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    probed: np.ndarray
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
    """The model's answer to each prompt, unsteered (first) and for each of `cells`.

    Vectors are added in the prompt at `positions`, and at every generated token. A temperature
    needs one of `rngs` per prompt. The result depends on neither `max_rows` nor the prompts' order.

    Raises ValueError for a model whose past is more than keys and values, and for a temperature
    without `rngs`; see also `in_batches`.
    """
    require_own_keys(decoder)
    if decoding.temperature and len(rngs) != len(prompts):
        raise ValueError(f"{len(rngs)} rngs for {len(prompts)} prompts: give one per prompt")
    shape = (1 + len(cells), len(prompts))
    tokens = np.full((*shape, decoding.max_new_tokens), PAD)
    logprobs = np.full((*shape, answers.shape[1]), np.nan, dtype="float32")
    probed = np.full((*tokens.shape, len(decoding.probes)), np.nan)
    uniforms = np.array([rng.random(decoding.max_new_tokens) for rng in rngs])
    touched: dict[int, Touched] = {}

    def generate_batch(batch: list[int], max_rows: int) -> None:
        run = prepare(decoder, [prompts[i] for i in batch], positions=positions, keeps=True)
        numbers = uniforms[batch] if decoding.temperature else None
        receipts: dict[int, Touched] = {}
        for group in groups(len(cells), max_rows // len(batch) - 1):
            part = _generate_group(
                decoder, run, [cells[i] for i in group], answers[batch], decoding, numbers,
                unsteered=group.start == 0,
            )  # fmt: skip
            rows = [*([0] if group.start == 0 else []), *(1 + i for i in group)]
            tokens[np.ix_(rows, batch)] = part.tokens
            logprobs[np.ix_(rows, batch)] = part.logprobs
            probed[np.ix_(rows, batch)] = part.probed
            add_cells(receipts, part.touched)
        add_prompts(touched, receipts)
        progress(shape[0] * len(batch))

    fitting = rows_that_fit(
        decoder,
        prompts,
        shared=shared_starts(decoder, prompts, positions),
        n_new=decoding.max_new_tokens,
    )
    max_rows = in_batches(
        prompts,
        shape[0],
        generate_batch,
        max_rows=max_rows,
        fitting=fitting,
        alone=decoder.rank.size == 1,
    )
    return Generated(tokens, logprobs, probed, touched, max_rows)


def require_own_keys(decoder: Decoder) -> None:
    """Raise ValueError for a model whose rows cannot each have their own past."""
    if not decoder.shares_prefix:
        raise ValueError(
            f"model {decoder.name!r}: some of its blocks have a past that is more than their "
            "own keys and values, so rows that are steered differently cannot be decoded together. "
            "Collect it with --outcomes logit."
        )


class _Group(NamedTuple):
    """The results of one pass, by cell and prompt, as in `Generated`."""

    tokens: np.ndarray
    logprobs: np.ndarray
    probed: np.ndarray
    touched: dict[int, Touched]


@torch.no_grad()
def _generate_group(
    decoder: Decoder,
    run: Run,
    cells: Sequence[Cell],
    answers: np.ndarray,
    decoding: Decoding,
    uniforms: np.ndarray | None,
    *,
    unsteered: bool,
) -> _Group:
    """Prefill and decode a batch for some cells; `unsteered`: whether that copy is decoded too."""
    batch, copies = len(answers), 1 + len(cells)
    pass_ = FanOut(cells, run.steer)
    logits = fan_out(decoder, run, pass_)
    past = _past(run).one_row_each(
        copies * batch, _n_run(run), room=max(0, decoding.max_new_tokens - 1)
    )
    # Each row's cell (0 is unsteered) and prompt, both in the caller's order.
    order = np.array([0, *(1 + i for i in pass_.ordered)])
    row_cell, row_prompt = np.repeat(order, batch), np.tile(np.arange(batch), copies)
    logprobs = np.empty((copies, *answers.shape), dtype="float32")
    logprobs[order] = logprobs_of(logits, answers)
    tokens = np.full((copies, batch, decoding.max_new_tokens), PAD)
    probed = np.full((*tokens.shape, len(decoding.probes)), np.nan)
    ends = [NONFINITE, *([] if decoding.probes else decoder.end_tokens)]
    steering = RowSteering(cells)
    live = _with_gaps_filled(unsteered | (row_cell > 0))
    past.keep(live)
    logits = logits[live]
    for step in range(decoding.max_new_tokens):
        at = row_cell[live], row_prompt[live]
        drawn = None if uniforms is None else uniforms[at[1], step]
        chosen = decoder.rank.agreed(partial(_chosen, logits, decoding, drawn))
        tokens[(*at, step)] = chosen
        if decoding.probes:
            probed[(*at, step)] = logprobs_of(logits, np.tile(decoding.probes, (len(live), 1)))[0]
        goes_on = ~np.isin(chosen, ends)
        if step + 1 == decoding.max_new_tokens or not goes_on.any():
            break
        stay = _with_gaps_filled(goes_on)
        live = live[stay]
        past.keep(stay)
        with steering.on(decoder.blocks, (row_cell[live] - 1).tolist()):
            logits = forward(decoder, _next(run, past, row_prompt[live], chosen[stay], step))[:, -1]
    touched = {
        layer: replace(one, positions=one.positions + int(steering.changed.get(layer, 0)))
        for layer, one in pass_.touched.items()
    }
    first = 0 if unsteered else 1
    return _Group(tokens[first:], logprobs[first:], probed[first:], touched)


def _past(run: Run) -> SharedPrefix:
    assert isinstance(run.prefix, SharedPrefix), "the run was not prepared with `keeps`"
    return run.prefix


def _n_run(run: Run) -> Tensor:
    """How many tokens of each prompt (row) the pass ran; padding follows them."""
    return run.last + 1


def _next(run: Run, past: Rows, row_prompt: np.ndarray, chosen: np.ndarray, step: int) -> Run:
    """The run of one more token of each row, after its past."""
    device = run.ids.device
    prompt = torch.as_tensor(row_prompt, device=device)
    ids = torch.as_tensor(chosen, device=device)[:, None]
    if run.mask is None or run.positions is None:
        lengths, width = _n_run(run), run.ids.shape[1]
        held = torch.arange(width, device=device)[None] >= width - lengths[:, None]
    else:
        lengths, held = run.positions[:, -1] + 1, run.mask.bool()
    # Without padding no mask is needed, and attention without a mask is faster.
    mask = None
    if not held.all():
        generated = torch.ones(len(ids), step + 1, dtype=torch.bool, device=device)
        mask = torch.cat([held[prompt], generated], dim=1).long()
    every = torch.ones_like(ids, dtype=torch.bool)
    last = torch.zeros(len(ids), dtype=torch.long, device=device)
    return Run(ids, every, last, past, positions=lengths[prompt][:, None] + step, mask=mask)


def _with_gaps_filled(goes_on: np.ndarray) -> np.ndarray:
    """Indices of the rows that go on, in place, except that the last ones fill the gaps.

    >>> _with_gaps_filled(np.array([True, False, True, True])).tolist()
    [0, 3, 2]
    """
    n = int(goes_on.sum())
    rows = np.arange(n)
    rows[~goes_on[:n]] = n + np.flatnonzero(goes_on[n:])
    return rows


def _chosen(logits: Tensor, decoding: Decoding, uniforms: np.ndarray | None) -> np.ndarray:
    """Token ids (row): the most likely, or each row's uniform number through the inverse CDF.

    NONFINITE where the largest logit is not finite.
    """
    largest, likeliest = logits.max(-1)
    finite = largest.isfinite().cpu().numpy()
    if uniforms is None:
        return np.where(finite, likeliest.cpu().numpy(), NONFINITE)
    drawn = []
    # A few rows at a time, as in `logprobs_of`.
    for few, uniform in zip(logits.split(64), torch.as_tensor(uniforms).split(64), strict=True):
        cumulative = (few.double() / decoding.temperature).softmax(-1).cumsum(-1)
        wanted = uniform.to(few.device)[:, None] * cumulative[:, -1:]
        drawn.append(torch.searchsorted(cumulative, wanted, right=True)[:, 0])
    tokens = torch.cat(drawn).clamp(max=logits.shape[-1] - 1).cpu().numpy()
    return np.where(finite, tokens, NONFINITE)


@torch.no_grad()
def check_generation_against_plain_loop(
    decoder: Decoder, prompts: Sequence[Prompt], cells: Sequence[Cell], *, positions: str
) -> float:
    """Largest difference, in nats, of log-probabilities between generation and a full forward.

    Prompts are decoded together and one by one, past any end token, at |added| = |residual|; each
    answer is run again after its prompt, whole and without a cache, and compared at each of its
    positions. Raises ValueError where vectors were not added at every position, and where the two
    differ by more than rounding explains (see `require_alike`): a cache, a mask or the positions of
    that model are not what this code assumes. Give prompts of different lengths.
    """
    require_own_keys(decoder)
    cells = as_large_as_the_residual(decoder, prompts, cells)
    probes = probes_of(decoder)
    largest = 0.0
    for batches in ([prompts], [[prompt] for prompt in prompts]):
        parts = [_decoded(decoder, batch, cells, probes, positions=positions) for batch in batches]
        tokens, probed = (
            np.concatenate([getattr(part, name)[1:] for part in parts], axis=1)
            for name in ("tokens", "probed")
        )
        difference = _require_like_plain(
            decoder, prompts, cells, probes, tokens, probed, positions=positions
        )
        largest = max(largest, difference)
        touched: dict[int, Touched] = {}
        for part in parts:
            add_prompts(touched, part.touched)
        require_every_position(
            decoder, touched, prompts, cells, positions=positions, generated=CHECKED_TOKENS - 1
        )
    return largest


def _decoded(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    cells: Sequence[Cell],
    probes: np.ndarray,
    *,
    positions: str,
) -> Generated:
    """`generate` in one pass. Raises ValueError for a model that cannot decode rows together."""
    decoding = Decoding(CHECKED_TOKENS, probes=tuple(probes.tolist()))
    none = np.zeros((len(prompts), 1), dtype=int)
    max_rows = max(2, len(prompts) * (1 + len(cells)))
    try:
        return generate(
            decoder, prompts, none, cells, positions=positions, decoding=decoding, max_rows=max_rows
        )
    except (*FROM_INSIDE, AssertionError) as error:
        raise ValueError(
            f"model {decoder.name!r}: its rows cannot be decoded together "
            f"({type(error).__name__}: {error}). Collect it with --outcomes logit."
        ) from error


def _require_like_plain(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    cells: Sequence[Cell],
    probes: np.ndarray,
    tokens: np.ndarray,
    probed: np.ndarray,
    *,
    positions: str,
) -> float:
    """`require_alike`, with the plain loop run on each cell's own `tokens` (cell, prompt, step)."""
    # Any id may replace NONFINITE and PAD: logits there are NaN in the plain loop, too.
    ids = np.maximum(tokens, 0).tolist()
    whole = [
        [
            Prompt((*prompt.ids, *answer[:-1]), prompt.answer_start)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        for answers in ids
    ]

    def plain(copies: int = 0, strength: float | None = None) -> np.ndarray:
        return np.concatenate(
            [
                plain_loop(
                    decoder,
                    answered,
                    np.tile(probes, (len(prompts), 1)),
                    [cell if strength is None else replace(cell, strength=strength)],
                    positions=positions,
                    copies=copies,
                    n_last=CHECKED_TOKENS,
                )
                for cell, answered in zip(cells, whole, strict=True)
            ]
        )

    return require_alike(
        [probed],
        plain=plain(),
        again=plain(copies=copies_of(prompts)),
        unsteered=lambda: plain(strength=0.0),
        eps=rounding_unit(decoder),
        what=f"model {decoder.name!r}: generated tokens' log-probabilities differ from the plain "
        "loop's",
        remedy="Generation does not support this architecture; collect it with --outcomes logit, "
        "and please report its name.",
    )
