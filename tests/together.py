"""What each process of a launch does in the tests of `--parallel`: collect, count, say it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from steercube.collect.decoder import Decoder, load
from steercube.collect.parallel import bytes_held
from steercube.collect.plan import POSITIONS
from steercube.collect.rank import Rank
from steercube.models import Entry, Weights

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "llama": ("llama", HEADS),
    "qwen3": ("qwen3", HEADS),
    "gemma3": ("gemma3", HEADS),
    "qwen3_moe": ("qwen3_moe", HEADS),
    "qwen3_moe-2": ("qwen3_moe", HEADS | {"num_key_value_heads": 2}),
    "gpt_oss": ("gpt_oss", HEADS),
}
"""Models that four processes can hold; the fifth by storing attention in pieces."""
FEW = ("qwen3", "qwen3_moe-2")
CONCEPTS = {"honesty": tiny.concept(n_pairs=8, n_items=6)}
# Blocks 0 and 1 of the models with windows see so little before the letter that nothing is left of
# the pairs' mean difference there but rounding.
PLAN = replace(
    tiny.PLAN,
    layers="2:3",
    strengths=(-1.0, 1.0),
    controls=("random",),
    chunk=2,
    generation_layers="3",
    generation_samples=4,
    max_new_tokens=4,
)


class Counted:
    """Counts of what a decoder runs: rows x positions x blocks, and forward passes."""

    def __init__(self, of: Decoder) -> None:
        self.tokens = self.passes = 0
        for block in of.blocks:
            block.register_forward_pre_hook(self._add)

    def _add(self, module: Any, args: Any) -> None:
        self.tokens += args[0].shape[0] * args[0].shape[1]
        self.passes += 1


class MultiplyAdds(TorchDispatchMode):
    """Counts of the multiply-adds of matrix products, but for those within attention."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in ("mm", "addmm", "_grouped_mm"):
            self.n += out.numel() * args[name == "addmm"].shape[-1]
        return out


@torch.no_grad()
def multiply_adds(of: Decoder) -> int:
    """Those of this process in a forward pass of 16 x 64 tokens, the unembedding left out."""
    ids = torch.randint(0, 300, (16, 64), generator=torch.Generator().manual_seed(0))
    with MultiplyAdds() as counted:
        of.model(input_ids=ids, logits_to_keep=1)
    head = of.model.get_output_embeddings()
    return counted.n - 16 * head.in_features * head.out_features


def loaded(folder: Path, rank: Rank | None = None, dtype: str = "float32") -> Decoder:
    return load(Entry(folder.name, Weights(str(folder), dtype=dtype)), rank=rank)


def collect_all(models: Path, out: Path, rank: Rank, dtype: str) -> None:
    """Every model of a folder, both positions; counts of each process in a file of its own."""
    counts = {}
    for folder in sorted(models.iterdir()):
        decoder = loaded(folder, rank, dtype)
        counted = Counted(decoder)
        for positions in POSITIONS:
            of_positions = out / folder.name / positions
            tiny.collected(
                of_positions, decoder, replace(PLAN, positions=positions), concepts=CONCEPTS,
                resume=True,
            )  # fmt: skip
        counts[folder.name] = {
            "multiply_adds": multiply_adds(decoder),
            **{"bytes": bytes_held(decoder.model), "n_params": decoder.facts.n_params},
            **{"tokens": counted.tokens, "passes": counted.passes},
        }
    (out / f"rank-{rank.index}.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    size, dtype = int(sys.argv[3]), sys.argv[4]
    rank = Rank.of_environment(size)
    with rank.together():
        collect_all(Path(sys.argv[1]), Path(sys.argv[2]), rank, dtype)
