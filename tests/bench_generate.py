"""Seconds of a generated token on SmolLM2: `model.generate` for each cell, and ours.  nox -s bench

8 layers x strengths -2, -1, 1, 2 x 16 prompts x 16 tokens, vectors added after the user's turn.
The usual loop decodes the 16 prompts of a cell as one left-padded batch, each behind its whole
prompt. The floor counts the tokens that go through the model: a prompt once for all its cells but
for the positions that are steered, and what is said.
"""

import sys
import time

import numpy as np
import torch

from steercube.collect.answers import Answers
from steercube.collect.decoder import Decoder, load
from steercube.collect.generate import PAD, Decoding, generate
from steercube.collect.hooks import Cell
from steercube.collect.plan import Plan
from steercube.collect.readout import Prompt, readout_of
from steercube.collect.run import ROWS_AT_ONCE
from steercube.collect.unit import Unit
from steercube.concepts import read_concepts
from steercube.models import read_models

N_PROMPTS, N_TOKENS = 16, 16
LAYERS = range(10, 26, 2)
STRENGTHS = (-2.0, -1.0, 1.0, 2.0)


def usual_loop(decoder: Decoder, prompts: list[Prompt], cell: Cell) -> np.ndarray:
    """One `generate` of all prompts, padded on the left, a hook on the cell's block."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids, mask = (torch.zeros(len(prompts), width, dtype=torch.long) for _ in range(2))
    steer = torch.zeros(len(prompts), width, 1)
    for row, prompt in enumerate(prompts):
        before = width - len(prompt.ids)
        ids[row, before:], mask[row, before:] = torch.tensor(prompt.ids), 1
        steer[row, before + prompt.answer_start :] = 1

    def add(_module: object, _args: object, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + cell.strength * cell.vector * (steer if hidden.shape[1] > 1 else 1)

    handle = decoder.blocks[cell.layer].register_forward_hook(add)
    with torch.inference_mode():
        said = decoder.model.generate(
            ids, attention_mask=mask, max_new_tokens=N_TOKENS, do_sample=False, pad_token_id=0
        )[:, width:]
    handle.remove()
    return said.numpy()


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether a row says the same, up to its end."""
    said = ours[ours != PAD]
    return bool((theirs[: len(said)] == said).all())


def main() -> None:
    decoder = load(read_models("data/models.toml")["smollm2"])
    concept = read_concepts("data/concepts")["corrigibility"]
    unit = Unit(decoder, readout_of(decoder.tokenizer), concept, Plan(positions="answer"), None)
    prompts = Answers(unit)._prompts(concept.evaluation[:N_PROMPTS])
    vectors = torch.randn(decoder.n_layers, 576, generator=torch.Generator().manual_seed(0))
    cells = [
        Cell(layer, strength, 3 * vectors[layer]) for layer in LAYERS for strength in STRENGTHS
    ]
    answers = np.zeros((N_PROMPTS, 1), dtype=int)
    every = "--every-cell" in sys.argv
    timed = cells if every else cells[:: len(STRENGTHS) + 1]

    usual_loop(decoder, prompts, cells[0])
    start = time.perf_counter()
    theirs = {cells.index(cell): usual_loop(decoder, prompts, cell) for cell in timed}
    usual = (time.perf_counter() - start) / len(timed)
    start = time.perf_counter()
    found = generate(
        decoder, prompts, answers, cells, positions="answer", decoding=Decoding(N_TOKENS),
        max_rows=ROWS_AT_ONCE["generations"]["cpu"],
    )  # fmt: skip
    # Ours says the unsteered answers as well, which the loop would need a 33rd cell for.
    ours = (time.perf_counter() - start) / (1 + len(cells))
    tokens = np.array([len(prompt.ids) for prompt in prompts])
    steered = np.array([len(prompt.ids) - prompt.answer_start for prompt in prompts])
    said = (found.tokens != PAD).sum() / (1 + len(cells))
    prefill = ((tokens - steered) / (1 + len(cells)) + steered).sum()
    floor = (prefill + said) / (tokens.sum() + N_PROMPTS * N_TOKENS)
    agree = [same(a, b) for i, rows in theirs.items()
             for a, b in zip(found.tokens[1 + i], rows, strict=True)]  # fmt: skip
    print(f"SmolLM2-135M, {len(cells)} cells of {N_PROMPTS} prompts of {tokens.mean():.0f} tokens, "
          f"{N_TOKENS} new ones, {torch.get_num_threads()} threads")  # fmt: skip
    print(f"{'model.generate, 16 prompts a cell':<34}{usual:9.2f} s a cell ({len(timed)} timed)")
    print(f"{'steercube':<34}{ours:9.2f} s a cell{usual / ours:8.1f}x; floor by tokens "
          f"{1 / floor:.1f}x; {np.mean(agree):.0%} of {len(agree)} answers the same")  # fmt: skip


if __name__ == "__main__":
    main()
