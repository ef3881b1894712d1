"""One copy of a model on several processes: what each holds, by transformers' own parallelism.

n processes hold a model together. Attention is split by heads, and so is every MLP (Shoeybi et al.
2019, arXiv:1909.08053), so a process holds and computes 1/n of a block. In a mixture of experts a
process holds 1/n of the experts, whole, and is sent the tokens that are routed to them. Attention
cannot be split further than into key-value heads: a mixture of experts on more processes splits it
into as many parts as the heads allow, and stores each part in pieces that are put together when the
block is run (FSDP). Processes with the same part then do the same work. The unembedding is whole on
every process, so that logits are summed in float32 as on one.

The residual stream is the same on every process, so hooks on blocks see what they see on one.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version
from transformers import AutoModelForCausalLM

OLDEST = "5.23"
"""The first release of transformers with all of `DistributedConfig` that is used here."""
WHOLE = "replicated_with_grad_allreduce"
"""transformers' rule for a module that every process holds whole."""
SENT = "all_to_all"
"""transformers' way to bring tokens to experts in which a process runs only the tokens of its own;
by itself it runs all of them on every process where these share a batch."""


@dataclass(frozen=True)
class Layout:
    """Into how many parts attention is split, stored and the experts are dealt out."""

    tensor: int
    stored: int = 1
    experts: int = 1

    @property
    def size(self) -> int:
        """How many processes hold the model."""
        return self.tensor * self.stored

    def config(self, model: Any) -> Any:
        """transformers' `DistributedConfig` of it, for a model on paper."""
        from transformers.distributed import DistributedConfig

        return DistributedConfig(
            tp_size=self.tensor,
            fsdp_size=self.stored,
            ep_size=self.experts,
            ep_implementation=SENT if self.experts > 1 else "auto",
            tp_plan=dict.fromkeys(_whole(model), WHOLE),
        )


def layout_of(config: Any, n_processes: int, *, name: str) -> Layout:
    """How the model of a transformers config is held by `n_processes` together.

    Raises ValueError where it cannot be, with the numbers of processes that can.
    """
    if not is_recent():
        raise ValueError(
            f"--parallel needs transformers {OLDEST} or later, and {version('transformers')} is "
            "installed: pip install -U transformers"
        )
    found = _layout(config, n_processes)
    if found is None:
        possible = [str(one.size) for one in layouts_of(config, _most(config))]
        kind = config.get_text_config().model_type
        rest = (
            f"{', '.join(possible)} can. Start that many, or a multiple in groups, such as "
            f"--parallel tensor:{possible[-1]}"
            if possible
            else f"transformers has no plan that splits {kind}"
        )
        raise ValueError(f"{n_processes} processes cannot hold {name} together: {rest}")
    return found


def is_recent() -> bool:
    """Whether the installed transformers can spread a model over processes."""
    return Version(version("transformers")) >= Version(OLDEST)


def layouts_of(config: Any, at_most: int) -> list[Layout]:
    """How two processes can hold the model together, and more of them, up to `at_most`."""
    found = (_layout(config, n) for n in range(2, at_most + 1))
    return [layout for layout in found if layout]


def _layout(config: Any, n: int) -> Layout | None:
    text = config.get_text_config()
    by_heads = getattr(text, "base_model_tp_plan", None)
    heads, keys, width = _sizes(text)
    n_experts = n_experts_of(text)
    if n_experts:
        if n_experts % n or not getattr(text, "base_model_ep_plan", None):
            return None
        if not by_heads:  # GPT-OSS: attention stays whole
            return Layout(n, experts=n)
        split = max(t for t in range(1, n + 1) if not (n % t or keys % t or heads % t))
        return Layout(split, n // split, n)
    return Layout(n) if by_heads and not (heads % n or keys % n or width % n) else None


def _sizes(config: Any) -> tuple[int, int, int]:
    """Attention heads, key-value heads and MLP width; 1, which no number divides, for none."""
    heads = min(values_of(config, "num_attention_heads"), default=1)
    keys = min(values_of(config, "num_key_value_heads"), default=heads)
    return heads, keys, min(values_of(config, "intermediate_size"), default=1)


def values_of(config: Any, name: str) -> list[Any]:
    """The numbers that a config has by this name: one, one for each block, or none."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers' word for "differs between blocks" (Gemma 4)
        value = [getattr(block, name, None) for block in config.per_layer_config]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [number for number in values if number]


def _most(config: Any) -> int:
    """No more processes than this can hold it."""
    text = config.get_text_config()
    return n_experts_of(text) or _sizes(text)[0]


def n_experts_of(config: Any) -> int:
    """Experts of a block, 0 in a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((max(n) for name in names if (n := values_of(config, name))), 0)


def bytes_held(model: Any) -> int:
    """Bytes of the weights that this process holds."""
    return sum(
        (weight.to_local() if hasattr(weight, "to_local") else weight).nbytes
        for weight in model.parameters()
    )


def bytes_of_part(model: Any, layout: Layout) -> float:
    """Bytes of the weights that each process holds, by names and shapes of a model on paper.

    unembedding + split / (tensor x stored) + experts / n + the rest / stored
    """
    text = model.config.get_text_config()
    split = split_modules(text)
    if split and not text.tie_word_embeddings:
        split = (*split, ".embed_tokens")
    total = 0.0
    for name, weight in model.named_parameters():
        module = f".{name.rpartition('.')[0]}"
        if ".experts." in name:
            parts = layout.experts
        elif module.endswith(split):
            parts = layout.size
        elif module == ".lm_head":  # put together once, and kept
            parts = 1
        else:
            parts = layout.stored
        total += weight.nbytes / parts
    return total


def split_modules(config: Any) -> tuple[str, ...]:
    """Ends of the names of the modules of a block that are split."""
    plan = getattr(config, "base_model_tp_plan", None) or {}
    return tuple(f".{name.rpartition('.*.')[2]}" for name, rule in plan.items() if rule != WHOLE)


def _whole(model: Any) -> list[str]:
    """The unembedding, and the embedding if it is the same weights, by their modules' names."""
    modules = [model.get_output_embeddings()]
    if model.config.get_text_config().tie_word_embeddings:
        modules.append(model.get_input_embeddings())
    return [name for name, module in model.named_modules() if any(module is m for m in modules)]


def on_paper(config: Any, dtype: str) -> Any:
    """The model of a transformers config, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
