"""Qwen3-8B's shape with random weights in bfloat16: 100 prompts, 24 layers, strengths -1 and +1.

Prints seconds, peak memory and the ratio to the plain loop, which is timed on every fourth layer.
`nox -s bench` runs it where there is a GPU; `--tiny` runs a small shape anywhere, to try it.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from steercube.collect.decoder import Decoder, decoder_of
from steercube.collect.generate import Decoding, generate
from steercube.collect.hooks import Cell, steering
from steercube.collect.readout import Prompt
from steercube.collect.sweep import POSITIONS, forward, prepare, sweep

SHAPE_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY = SHAPE_8B | {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
BATCH = 20
"""Prompts in a batch of the plain loop, so that it keeps the GPU as busy as ours does."""


def main(shape: dict[str, int], device: str) -> None:
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Qwen3Config(**shape), dtype=torch.bfloat16)
    decoder = decoder_of(model, None, name="random")
    rng = np.random.default_rng(0)
    lengths = rng.integers(80, 200, 100)
    prompts = [
        Prompt(tuple(rng.integers(0, shape["vocab_size"], n).tolist()), int(n) - 9) for n in lengths
    ]
    answers = rng.integers(0, shape["vocab_size"], (100, 2))
    grid = [
        Cell(layer, strength, torch.randn(shape["hidden_size"]))
        for layer in range(12, 36)
        for strength in (-1.0, 1.0)
    ]
    every_fourth = [cell for cell in grid if cell.layer % 4 == 0]
    run = prepare(decoder, prompts[:BATCH], positions="all")

    def plain() -> None:
        for cell in every_fourth:
            with torch.inference_mode(), steering(decoder.blocks[cell.layer], cell, run.steer):
                forward(decoder, run).float().log_softmax(-1)[:, -1].sum().item()

    plain()
    loop = seconds(plain) / len(every_fourth) * len(grid) * len(prompts) / BATCH
    print(
        f"plain loop {loop:8.1f} s for {len(grid)} cells of {len(prompts)} prompts (extrapolated)"
    )
    for positions in POSITIONS:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

        def ours(positions: str = positions) -> None:
            sweep(decoder, prompts, answers, grid, positions=positions, max_rows=1024)

        ours()
        took = seconds(ours)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
        print(
            f"ours, positions {positions:<7}{took:8.1f} s, peak {peak:.1f} GiB, {loop / took:.1f}x"
        )

    generated(decoder, prompts, [cell for cell in grid if cell.layer % 3 == 0])


def generated(decoder: Decoder, prompts: list[Prompt], cells: list[Cell]) -> None:
    """Seconds of 32 tokens a prompt in eight layers; the usual loop is timed in every fourth."""
    few = prompts[:16]
    width = max(len(prompt.ids) for prompt in few)
    ids, mask = (
        torch.zeros(len(few), width, dtype=torch.long, device=decoder.device) for _ in range(2)
    )
    for row, prompt in enumerate(few):
        ids[row, -len(prompt.ids) :] = torch.tensor(prompt.ids, device=decoder.device)
        mask[row, -len(prompt.ids) :] = 1

    def usual() -> None:
        for cell in cells[::4]:
            with (
                torch.inference_mode(),
                steering(decoder.blocks[cell.layer], cell, mask[:, :1] > 1),
            ):
                decoder.model.generate(
                    ids, attention_mask=mask, max_new_tokens=32, min_new_tokens=32,
                    do_sample=False, pad_token_id=0,
                )  # fmt: skip

    def ours() -> None:
        generate(
            decoder, prompts, np.zeros((len(prompts), 1), int), cells, positions="answer",
            decoding=Decoding(32), max_rows=1024,
        )  # fmt: skip

    usual()
    loop = seconds(usual) / len(cells[::4]) * len(cells) * len(prompts) / len(few)
    ours()
    took = seconds(ours)
    print(f"generate, 16 prompts a cell {loop:8.1f} s (extrapolated); ours {took:8.1f} s, "
          f"{loop / took:.1f}x")  # fmt: skip


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    if "--tiny" in sys.argv:
        main(TINY, "cpu")
    elif torch.cuda.is_available():
        main(SHAPE_8B, "cuda")
    else:
        print("no GPU here: Qwen3-8B's shape is not measured")
