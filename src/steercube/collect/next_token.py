"""What is read from the distribution of the next token, at the position before the answer letter.

These are the log-probabilities of both answers, and measures of the whole distribution, which need
no further forward pass. To add such a measure, write its function and its record in NEXT_TOKEN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steercube.measures import LOGIT_DIFF, MEASURES, Measure

ESTIMANDS = ("delta", "cohens_d", "d_z")
"""Estimands of these measures."""
NEVER = -1e30
"""Log-probability, in nats, that stands for -inf: times the probability 0 it is 0, not NaN."""
AT_ONCE = 64
"""Rows converted to float32 at a time: all rows times the vocabulary would not fit in memory."""


@dataclass(frozen=True)
class Rows:
    """Next-token distributions of some rows, as log-probabilities in nats.

    `steered` (row, vocabulary) is a row's distribution and `unsteered` that of its prompt without
    steering, both clamped to at least NEVER. `p` (row, vocabulary) are the probabilities of
    `steered`. `answers` (row, answer) are the token ids of the matching and the other answer.
    """

    steered: Tensor
    unsteered: Tensor
    p: Tensor
    answers: Tensor


@dataclass(frozen=True)
class NextToken:
    """A measure, and the function that computes its value for each row, dims (row)."""

    measure: Measure
    of: Callable[[Rows], Tensor]


def kl_unsteered(rows: Rows) -> Tensor:
    r"""KL divergence $\sum_t p_t (\ln p_t - \ln q_t)$, in nats; p with steering and q without."""
    return torch.einsum("rt,rt->r", rows.p, rows.steered - rows.unsteered)


def answer_mass(rows: Rows) -> Tensor:
    """The probability of either answer, P(A) + P(B)."""
    return rows.p.gather(-1, rows.answers).sum(-1)


def entropy(rows: Rows) -> Tensor:
    r"""Shannon entropy $-\sum_t p_t \ln p_t$, in nats."""
    return -torch.einsum("rt,rt->r", rows.p, rows.steered)


def _measure(name: str, units: str, words: str, toward: str) -> Measure:
    """A record whose effect is +1 minus 0, at the layer that the logit difference selects."""
    return Measure(
        name,
        units=units,
        words=words,
        toward=toward,
        layer_by=LOGIT_DIFF.name,
        compare=(0.0, 1.0),
        estimands=ESTIMANDS,
    )


NEXT_TOKEN = [
    NextToken(
        _measure(
            "kl_unsteered",
            "nat",
            "KL divergence of the next token's distribution from that without steering",
            "a larger change of the distribution",
        ),
        kl_unsteered,
    ),
    NextToken(
        _measure("answer_mass", "1", "probability of (A) and (B) together", "an answer"),
        answer_mass,
    ),
    NextToken(
        _measure("entropy", "nat", "entropy of the next token's distribution", "less certainty"),
        entropy,
    ),
]


def collected() -> dict[str, Measure]:
    """The record of every measure that a collection can write, by name."""
    return MEASURES | {one.measure.name: one.measure for one in NEXT_TOKEN}


def read(
    logits: Tensor, answers: np.ndarray, measured: Sequence[NextToken] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (1 + cells, prompt, answer), and values (1 + cells, prompt, measure).

    `logits` (row, vocabulary) are those of every prompt without steering, then of every prompt with
    the first cell's steering, and so on. `answers` are token ids (prompt, answer), `measured` the
    measures. Both results are float32; log-probabilities (nats) are over the whole vocabulary.
    """
    n_prompts, copies = len(answers), len(logits) // len(answers)
    tokens = torch.as_tensor(answers, device=logits.device).repeat(copies, 1)
    own = torch.arange(n_prompts, device=logits.device).repeat(copies)
    unsteered = _distributions(logits[:n_prompts]) if measured else logits[:n_prompts]
    logprobs, values = [], []
    parts = zip(*(rows.split(AT_ONCE) for rows in (logits, tokens, own)), strict=True)
    for few, wanted, prompts in parts:
        every = few.float().log_softmax(-1)
        logprobs.append(every.gather(-1, wanted))
        if measured:
            steered = every.clamp_min(NEVER)
            rows = Rows(steered, unsteered[prompts], steered.exp(), wanted)
            values.append(torch.stack([one.of(rows) for one in measured], dim=-1))
        else:
            values.append(every[:, :0])
    read_out = (torch.cat(rows).view(copies, n_prompts, -1) for rows in (logprobs, values))
    one, two = (rows.cpu().numpy() for rows in read_out)
    return one, two


def _distributions(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).clamp_min(NEVER)


def logprobs_of(logits: Tensor, answers: np.ndarray) -> np.ndarray:
    """Log-probabilities (1 + cells, prompt, answer) in nats, float32, as in `read`."""
    return read(logits, answers)[0]
