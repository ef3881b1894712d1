"""How many rows of a prompt fit into a GPU's memory, so that long prompts run in smaller passes.

    bytes of a row = itemsize x max(in_pass, afterwards) + 4 x vocabulary
    in_pass        = hidden x (peak x n_run + READ x n_read) + kept x n_run
    afterwards     = kept x (n_positions + n_new)

n_run positions are run for the row, and n_read are read, from a prefix that all rows share but
whose keys and values are joined to each row's own. kept is the elements of a position's keys and
values in all blocks, for generation; logits are float32. This estimates what torch allocates. Where
it is too high, passes are smaller than they could be; where it is too low, memory runs out and the
rows are halved (`in_batches` in `sweep`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steercube.collect.decoder import Decoder
from steercube.collect.readout import Prompt

ATTENTION, DENSE, EXPERT, READ = 3.0, 2.75, 4.0, 2.5
"""Peaks of what torch allocated on CPU for small random models, in units of `hidden` elements a
position: ATTENTION + DENSE x intermediate / hidden in Llama's blocks (8.3 to 22.1 for ratios of 2
to 7; 12.5 at Llama 3's 3.5), ATTENTION + EXPERT x experts a token in Qwen3-MoE's (32.8 to 40.0 for
eight); READ for a position that is only read. GPT-2's MLP keeps more: 18.4 where this says 14."""
SHARE = 0.8
"""Share of the free memory that a pass may use: a prefix, and what cannot be used in pieces."""


def rows_that_fit(
    decoder: Decoder, prompts: Sequence[Prompt], *, shared: Sequence[int], n_new: int = 0
) -> np.ndarray:
    """How many rows of each prompt (prompt) fit into memory at a time; infinite without a GPU.

    The first `shared` positions (prompt) are run once for all rows; `n_new` tokens are generated.
    """
    free = free_bytes(decoder)
    if math.isinf(free):
        return np.full(len(prompts), np.inf)
    return np.array(
        [
            free / bytes_of_row(decoder.model, len(prompt.ids), shared=start, n_new=n_new)
            for prompt, start in zip(prompts, shared, strict=True)
        ]
    )


def free_bytes(decoder: Decoder) -> float:
    """Bytes that a pass may use on each GPU that holds a part of the model; infinite on others."""
    devices = {parameter.device for parameter in decoder.model.parameters()}
    return min((SHARE * _free(one) for one in devices if one.type == "cuda"), default=math.inf)


def _free(gpu: torch.device) -> int:
    """What is free, and what torch holds but does not use."""
    held = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
    return torch.cuda.mem_get_info(gpu)[0] + held


def bytes_of_row(model: Any, n_positions: int, *, shared: int, n_new: int) -> float:
    """Bytes that a row of `n_positions` takes at the peak of a pass, by the equation above."""
    config = model.config.get_text_config()
    hidden, heads = config.hidden_size, _field(config, "num_attention_heads", 1)
    n_experts = _field(config, "num_experts_per_tok", 0)
    width = _field(config, "intermediate_size", 4 * hidden)
    peak = ATTENTION + (EXPERT * n_experts if n_experts else DENSE * width / hidden)
    n_run, n_read = n_positions - shared, n_positions if shared else 0
    key = _field(config, "num_key_value_heads", heads) * _field(config, "head_dim", hidden / heads)
    kept = 2 * key * config.num_hidden_layers if n_new else 0
    in_pass = hidden * (peak * n_run + READ * n_read) + kept * n_run
    afterwards = kept * (n_positions + n_new)
    return model.dtype.itemsize * max(in_pass, afterwards) + 4 * config.vocab_size


def _field(config: Any, name: str, default: float) -> float:
    """A number of a config, the largest where it differs between blocks (Gemma 3n)."""
    value = getattr(config, name, None)
    return float(np.max(value)) if value else default
