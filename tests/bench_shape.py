"""What the GPU benchmark runs: Qwen3-8B's shape with random weights in bfloat16, or a small one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tiny
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from steercube.collect import sweep as sweeping
from steercube.collect.decoder import Decoder, decoder_of, evaluating
from steercube.collect.hooks import Cell
from steercube.collect.readout import Prompt


@dataclass(frozen=True)
class Sizes:
    """What is run. Every `every`th cell is timed in a plain loop, and scaled to all of them."""

    shape: dict[str, int]
    n_prompts: int
    lengths: tuple[int, int]
    layers: tuple[int, ...]
    generation_layers: tuple[int, ...]
    n_generated: int
    n_tokens: int
    max_rows: int
    matmul: int
    experts: dict[str, int]
    every: int = 8


QWEN3_8B = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
SMALL = {
    "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
# Qwen3-30B-A3B's, with 4 of its 48 blocks.
QWEN3_30B_A3B = {
    "vocab_size": 151936, "hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 4, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128,
}  # fmt: skip
SMALL_EXPERTS = SMALL | {
    "moe_intermediate_size": 24, "num_experts": 16, "num_experts_per_tok": 8, "num_hidden_layers": 4
}  # fmt: skip
FULL = Sizes(
    QWEN3_8B, 100, (80, 200), tuple(range(12, 36)), tuple(range(12, 36, 3)), 32, 32, 1024, 8192,
    QWEN3_30B_A3B,
)  # fmt: skip
TINY = Sizes(
    SMALL, 24, (20, 50), tuple(range(2, 8)), (2, 4, 5, 7), 8, 16, 104, 512, SMALL_EXPERTS, every=4
)
STRENGTHS = (-1.0, 1.0)
ANSWER_TOKENS = 9
"""Positions after the user's turn, as in Qwen3's chat template."""


@dataclass
class Bench:
    """What the rows share: the model, what it is asked, and what earlier rows found."""

    sizes: Sizes
    decoder: Decoder
    prompts: list[Prompt]
    answers: np.ndarray
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.decoder.device.type == "cuda"

    def cells(self, layers: Sequence[int]) -> list[Cell]:
        generator = torch.Generator().manual_seed(1)
        size = self.sizes.shape["hidden_size"]
        vectors = {layer: torch.randn(size, generator=generator) for layer in layers}
        return [Cell(layer, strength, vectors[layer]) for layer in layers for strength in STRENGTHS]

    def sweep(self, positions: str) -> sweeping.Swept:
        grid, max_rows = self.cells(self.sizes.layers), self.sizes.max_rows
        with evaluating(self.decoder):
            return sweeping.sweep(
                self.decoder,
                self.prompts,
                self.answers,
                grid,
                positions=positions,
                max_rows=max_rows,
            )

    def seconds(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """How long it takes, what is queued on the device included, and what it returns."""
        finish = torch.cuda.synchronize if self.on_gpu else lambda: None
        finish()
        start = time.perf_counter()
        result = run()
        finish()
        return time.perf_counter() - start, result

    def flops(self, positions: str) -> float:
        """Operations that no order of work can avoid, padding not counted.

        What is before the first steered position is run once for all cells; behind it each block
        runs the unsteered row and those of the cells at lower layers.
        """
        shape = self.sizes.shape
        hidden, heads = shape["hidden_size"], shape["num_attention_heads"] * shape["head_dim"]
        keys = shape["num_key_value_heads"] * shape["head_dim"]
        weights = hidden * (2 * heads + 2 * keys + 3 * shape["intermediate_size"])
        steered = [layer for layer in self.sizes.layers for _ in STRENGTHS]
        total = 0.0
        for prompt in self.prompts:
            end = len(prompt.ids)
            start = 0 if positions == "all" else prompt.answer_start
            for block in range(shape["num_hidden_layers"]):
                rows = 1 + sum(layer < block for layer in steered)
                for n_rows, low, high in ((1, 0, start), (rows, start, end)):
                    # A token attends to those up to itself: scores and sums are 2 products each.
                    seen = (high * (high + 1) - low * (low + 1)) / 2
                    total += n_rows * (2 * weights * (high - low) + 4 * heads * seen)
            total += (1 + len(steered)) * 2 * hidden * shape["vocab_size"]
        return total


def bench_of(sizes: Sizes, device: str) -> Bench:
    """The model, made on the device, and random prompts of unlike lengths, in order of length."""
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(*sizes.lengths, sizes.n_prompts, endpoint=True))
    n_words = sizes.shape["vocab_size"]
    prompts = [
        Prompt(tuple(rng.integers(0, n_words, n).tolist()), int(n) - ANSWER_TOKENS) for n in lengths
    ]
    answers = rng.integers(0, n_words, (sizes.n_prompts, 2))
    return Bench(sizes, random_decoder(Qwen3Config(**sizes.shape), device), prompts, answers)


def random_decoder(config: Any, device: str | torch.device) -> Decoder:
    """A model with random weights in bfloat16, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    return decoder_of(model.eval(), tiny.tokenizer(), name="random")


def experts_of(sizes: Sizes, device: str | torch.device) -> Decoder:
    """The mixture of experts."""
    return random_decoder(Qwen3MoeConfig(**sizes.experts), device)
