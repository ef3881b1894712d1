"""Seconds per cell of the sweep on SmolLM2, by us and by the usual loops.  nox -s bench

A cell is one (layer, strength) of one prompt: every layer from 33% of depth, strengths -2, -1, 0,
1, 2. The floor counts the rows that go through a block: what has to be, over what the plain loop
sends through; for the positions of the answer it counts tokens, of which a row has only a few.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from steercube.collect.decoder import Decoder, load
from steercube.collect.hooks import Cell, steering
from steercube.collect.plan import layers_of
from steercube.collect.readout import Prompt, Readout, readout_of
from steercube.collect.sweep import forward, prepare, sweep
from steercube.concepts import Question, read_concepts
from steercube.models import read_models

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
N_PROMPTS = 2
CHUNK = 20
"""The plan's default."""


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


def in_chunks(decoder: Decoder, readout: Readout, questions: Sequence[Question]) -> None:
    """All positions steered, chunks of 20 items as they come against chunks in order of length."""
    prompts = [readout.prompt(question.prompt) for question in questions]
    answers = np.array([[readout.token(q.matching), readout.token(q.other)] for q in questions])
    lengths = np.array([len(prompt.ids) for prompt in prompts])
    vectors = torch.randn(3, 576, generator=torch.Generator().manual_seed(0))
    cells = [Cell(18 + 4 * i, s, v) for i, v in enumerate(vectors) for s in (-1.0, 1.0)]
    orders = {"as they come": np.arange(len(prompts)), "by length": np.argsort(lengths)}
    taken: dict[str, float] = {}
    for name, order in orders.items():
        parts = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
        padded = sum(lengths[part].max() * len(part) for part in parts) / lengths.sum()

        def run(parts: list[np.ndarray] = parts) -> None:
            for part in parts:
                of_part = [prompts[i] for i in part]
                sweep(decoder, of_part, answers[part], cells, positions="all", max_rows=1024)

        taken[name] = seconds_per_cell(run, 1)
        ratio = taken["as they come"] / taken[name]
        print(f"{f'chunks of {CHUNK}, {name}':<34}{taken[name]:9.2f} s, {ratio:.2f}x; "
              f"padding {padded:.2f}")  # fmt: skip


def directions(decoder: Decoder, prompt: Prompt, answer: np.ndarray) -> None:
    """What 19 further directions take, against their rows: nothing else may grow."""
    vectors = torch.randn(20, 576, generator=torch.Generator().manual_seed(0))
    taken = {
        n: seconds_per_cell(
            lambda n=n: sweep(
                decoder, [prompt], answer, [Cell(18, 1.0, v) for v in vectors[:n]],
                positions="answer", max_rows=96,
            ),
            1,
        )
        for n in (1, 10, 20)
    }  # fmt: skip
    first, second = (taken[10] - taken[1]) / 9, (taken[20] - taken[10]) / 10
    print(f"{'a further direction':<34}{1e3 * first:9.2f} ms a cell, the second ten of 20 "
          f"{1e3 * second:.2f} ms")  # fmt: skip


def main(folder: str) -> None:
    decoder = load(read_models("data/models.toml")["smollm2"])
    readout = readout_of(decoder.tokenizer)
    concepts = read_concepts("data/concepts")
    questions = concepts["corrigibility"].evaluation[:N_PROMPTS]
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
    directions(decoder, prompts[0], answers[:1])
    in_chunks(decoder, readout, concepts["survival_instinct"].evaluation[:40])


if __name__ == "__main__":
    main(sys.argv[1])
