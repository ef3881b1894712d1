"""Seconds per cell of the sweep on SmolLM2, by us and by the usual loops.  nox -s bench

A cell is one (layer, strength) of one prompt: every layer from 33% of depth, strengths -2, -1, 0,
1, 2. The floor counts the rows that go through a block: what has to be, over what the plain loop
sends through; for the positions of the answer it counts tokens, of which a row has only a few.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from steercube.collect.decoder import Decoder, load
from steercube.collect.hooks import Cell, steering
from steercube.collect.plan import layers_of
from steercube.collect.readout import Prompt, readout_of
from steercube.collect.sweep import forward, prepare, sweep
from steercube.concepts import read_concepts
from steercube.models import read_models

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
N_PROMPTS = 2


def plain_loop(
    decoder: Decoder, prompts: list[Prompt], answers: np.ndarray, grid: list[Cell]
) -> None:
    """One full forward for each layer, strength and prompt; logits of every position."""
    for prompt, answer in zip(prompts, answers, strict=True):
        run = prepare(decoder, [prompt], positions="all")
        for cell in grid:
            with torch.inference_mode(), steering(decoder.blocks[cell.layer], cell, run.steer):
                forward(decoder, run)[0, -1].log_softmax(-1)[answer]


def seconds_per_cell(run: Callable[[], object], n_cells: int) -> float:
    """The faster of two runs: what else the machine does can only add."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) / n_cells


def main(folder: str) -> None:
    decoder = load(read_models("data/models.toml")["smollm2"])
    readout = readout_of(decoder.tokenizer)
    questions = read_concepts("data/concepts")["corrigibility"].evaluation[:N_PROMPTS]
    prompts = [readout.prompt(question.prompt) for question in questions]
    answers = np.array([[readout.token(q.matching), readout.token(q.other)] for q in questions])
    layers = layers_of("0.33:1.0", decoder.n_layers)
    vectors = torch.randn(decoder.n_layers, 576, generator=torch.Generator().manual_seed(0))
    grid = [Cell(layer, strength, vectors[layer]) for layer in layers for strength in STRENGTHS]
    cells = [cell for cell in grid if cell.strength != 0]
    n = len(grid) * len(prompts)

    # What the other library's script, in an environment of its own, runs too.
    asked = {
        "ids": [prompt.ids for prompt in prompts],
        "answers": answers.tolist(),
        "layers": layers,
        "strengths": STRENGTHS,
    }
    Path(folder, "bench.json").write_text(json.dumps(asked))

    steered_rows = sum(decoder.n_layers - 1 - cell.layer for cell in cells)
    plain_rows = decoder.n_layers * len(grid)
    tokens = np.array([len(prompt.ids) for prompt in prompts])
    run = np.array([len(prompt.ids) - prompt.answer_start for prompt in prompts])
    floors = {
        "all": (decoder.n_layers + steered_rows) / plain_rows,
        "answer": float(
            (decoder.n_layers * tokens + steered_rows * run).sum() / (plain_rows * tokens).sum()
        ),
    }
    print(f"SmolLM2-135M, {len(prompts)} prompts of {tokens.mean():.0f} tokens, {len(grid)} cells, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    plain = seconds_per_cell(lambda: plain_loop(decoder, prompts, answers, grid), n)
    print(f"{'plain loop':<34}{1e3 * plain:9.2f} ms a cell")
    for positions, floor in floors.items():
        ours = seconds_per_cell(
            lambda p=positions: sweep(decoder, prompts, answers, cells, positions=p, max_rows=96), n
        )
        print(
            f"{f'steercube, positions {positions}':<34}{1e3 * ours:9.2f} ms a cell"
            f"{plain / ours:8.1f}x the plain loop; floor {1 / floor:.1f}x, "
            f"time / floor {ours / plain / floor:.2f}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
