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
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steercube.collect.parallel import values_of

if TYPE_CHECKING:
    from steercube.collect.decoder import Decoder
    from steercube.collect.readout import Prompt

ATTENTION, DENSE, EXPERT, READ = 3.5, 2.75, 4.0, 2.5
"""Peaks of what torch allocated, in units of `hidden` elements a position.

ATTENTION + DENSE x intermediate / hidden in dense blocks (on an H200, 11.8 in Qwen3-8B's, where the
ratio is 3; on a CPU 8.3 to 22.1 for ratios of 2 to 7), ATTENTION + EXPERT x experts a token in
Qwen3-MoE's (34.8 on the H200, 32.8 to 40.0 on a CPU, for eight); READ for a position that is only
read. GPT-2's MLP keeps more: 18.4 where this says 14.5. Where several processes hold a model, a row
takes less on each than this (by an eighth or more, on a CPU), so passes are smaller than they could
be."""
SHARE = 0.8
"""Share of the free memory that a pass may use: a prefix, and what cannot be used in pieces."""
MOST_ROWS = 1024
"""Rows of a pass on a GPU, if they fit: more are no faster."""
USUAL_POSITIONS = 200
"""Positions of a prompt, where its rows are estimated before there are prompts."""


OUT_OF_MEMORY = re.compile(
    r"out.of.(device.|host.)?memory|allocate memory|not enough memory|ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)
"""Out-of-memory messages of torch (CUDA, MPS, CPU), cuBLAS and cuDNN."""
UNEVEN = 1.1
"""Most weights on one of several GPUs, in units of their mean: blocks are not cut."""


def rows_that_fit(
    decoder: "Decoder", prompts: Sequence["Prompt"], *, shared: Sequence[int], n_new: int = 0
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


def free_bytes(decoder: "Decoder") -> float:
    """Bytes that a pass may use on each GPU that holds a part of the model; infinite on others.

    The least of all processes that hold it together, so that they make the same passes.
    """
    devices = {parameter.device for parameter in decoder.model.parameters()}
    gpus = [SHARE * _free(one) for one in devices if one.type == "cuda"]
    return decoder.rank.least(min(gpus)) if gpus else math.inf


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
    """A number of a config, the largest where it differs between blocks (Gemma 3n, Gemma 4)."""
    return float(max(values_of(config, name), default=default))


def lacks_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed: torch, a library under it or the system lacks memory.

    >>> lacks_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."))
    True
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


def memory_for_weights(
    model: Any, free: Mapping[int | str, float], *, rows: int = MOST_ROWS
) -> dict[int | str, int]:
    """Bytes of each device's `free` ones that weights may take, so that rows have room.

    For `device_map="auto"`, which by itself fills each GPU to nine tenths. A GPU (its number) keeps
    room for `rows` of USUAL_POSITIONS, but no more than what all weights leave, if they fit on the
    GPUs. If they do not, some are moved there for every pass, and half of each GPU is for rows at
    most: half the rows are twice the passes. `model` needs no weights.
    """
    gpus = {device: held for device, held in free.items() if isinstance(device, int)}
    wanted = rows * bytes_of_row(model, USUAL_POSITIONS, shared=0, n_new=0) / SHARE
    each = UNEVEN * sum(weight.nbytes for weight in model.parameters()) / max(1, len(gpus))
    fits = each <= min(gpus.values(), default=0)
    limits: dict[int | str, float] = {
        device: max(held - wanted, each if fits else held / 2) for device, held in gpus.items()
    }
    return {device: int(limits.get(device, held)) for device, held in free.items()}
