"""The ways to put a model on the GPUs of one machine, what each takes, and which to choose.

A way puts `size` processes, a GPU each, together around one copy of the model, and as many such
groups as there are GPUs for; the groups share the chunks. The smaller a group, the less its
processes wait for each other, so the best way is the smallest group on whose GPUs the weights leave
room for enough rows. Where none does, one process runs the model over all GPUs, one after another,
and keeps what does not fit in the CPU's memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steercube.collect.memory import SHARE, USUAL_POSITIONS, bytes_of_row, memory_for_weights
from steercube.collect.parallel import (
    Layout,
    bytes_of_part,
    layouts_of,
    n_experts_of,
    split_modules,
    values_of,
)

OVERHEAD = 2 * 2**30
"""Bytes of a GPU that torch, CUDA and NCCL take before anything is loaded, generously."""
ENOUGH, FEW = 128, 16
"""Rows in a pass below which weights are read too often for what is done with them; and below which
one process over all GPUs is better still."""


@dataclass(frozen=True)
class Way:
    """How `n_groups` groups of `size` processes hold a model, in bytes of one GPU.

    `rows` of USUAL_POSITIONS fit in `room`. `work` is the share of a row's multiply-adds that a GPU
    does, of the rows of its group. With size 0 one process runs the model over all GPUs, and `rest`
    bytes of the weights are in the CPU's memory.
    """

    size: int
    n_groups: int
    weights: float
    room: float
    rows: int
    work: float = 1.0
    rest: float = 0.0

    @property
    def words(self) -> str:
        """How the model is held, in a few words."""
        if self.size == 0:
            more = " and with the CPU's memory" if self.rest else ""
            return f"one process over all GPUs{more}"
        if self.size == 1:
            return f"{self.n_groups} GPUs, each with the model" if self.n_groups > 1 else "one GPU"
        if self.n_groups == 1:
            return f"{self.size} GPUs, which hold the model together"
        return f"{self.n_groups} groups of {self.size} GPUs, which hold the model together"


def ways(model: Any, n_gpus: int, gpu: float) -> list[Way]:
    """Every way to put `model` (from `on_paper`) on GPUs of `gpu` bytes, the smallest group first.

        rows = SHARE (gpu - OVERHEAD - weights) / bytes of a row

    with the weights of `bytes_of_part` and the row of `bytes_of_row`. GPUs beyond the last whole
    group are not used. One process over all GPUs comes last.
    """
    row = bytes_of_row(model, USUAL_POSITIONS, shared=0, n_new=0)
    free = gpu - OVERHEAD

    def way(size: int, n_groups: int, weights: float, **more: float) -> Way:
        room = max(0.0, SHARE * (free - weights))
        return Way(size, n_groups, weights, room, int(room / row), **more)

    found = [
        way(
            layout.size,
            n_gpus // layout.size,
            bytes_of_part(model, layout),
            work=work_of_part(model, layout),
        )
        for layout in (Layout(1), *layouts_of(model.config, n_gpus))
    ]
    limits = memory_for_weights(model, dict.fromkeys(range(n_gpus), free))
    whole = bytes_of_part(model, Layout(1))
    rest = max(0.0, whole - sum(limits.values()))
    return [*found, way(0, 1, (whole - rest) / n_gpus, rest=rest)]


def best_way(found: Sequence[Way]) -> Way:
    """The smallest group with room for ENOUGH rows, else that with most; below FEW one process."""
    groups = [way for way in found if way.size]
    enough = (way for way in groups if way.rows >= ENOUGH)
    most = max(groups, key=lambda way: way.rows)
    return next(enough, most if most.rows >= FEW else found[-1])


def work_of_part(model: Any, layout: Layout) -> float:
    """The share of a row's multiply-adds in the blocks that each process of a group does.

        split / tensor + experts stored / n + the rest

    over the same sum on one process. Only those experts count that a token is routed to, at even
    routing; the `stored` processes with the same part of attention send the same tokens.
    """
    text = model.config.get_text_config()
    n_experts = n_experts_of(text)
    used = max(values_of(text, "num_experts_per_tok"), default=n_experts) / max(1, n_experts)
    split = split_modules(text)
    part = whole = 0.0
    for name, weight in model.get_decoder().named_parameters():
        module = f".{name.rpartition('.')[0]}"
        if weight.ndim < 2 or module.endswith("embed_tokens"):
            continue
        if ".experts." in name:
            done, parts = used * weight.numel(), layout.experts / layout.stored
        else:
            done, parts = weight.numel(), layout.tensor if module.endswith(split) else 1
        whole += done
        part += done / parts
    return part / whole
