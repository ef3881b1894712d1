"""The same bytes whatever the threads, hash seed, locale and time zone; equal logits in company."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from builders import SIX_MODELS, make_cube

from steercube.collect.hooks import Cell
from steercube.collect.sweep import sweep
from steercube.cube import save_cube

ENVIRONMENTS = {
    "one thread": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "1"},
    "two threads, another hash seed, locale and time zone": {
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "PYTHONHASHSEED": "4711",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LANG": "de_DE.UTF-8",
        "TZ": "Asia/Kathmandu",
    },
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_analysis_writes_the_same_bytes_everywhere(
    tmp_path: Path, fault: Callable[[str], Any]
) -> None:
    line = fault("another environment")
    """From the cube: its cells, tables, figures and numbers."""
    cube = make_cube(np.random.default_rng(3), models=SIX_MODELS, n_items={"one": 20, "two": 24})
    made = []
    for number, environment in enumerate(ENVIRONMENTS.values()):
        folder = tmp_path / str(number)
        (folder / "data").mkdir(parents=True)
        save_cube(cube, folder / "data" / "mine.nc")
        command = [sys.executable, "-m", "steercube", "analyze", "--without-nuts"]
        command += ["--data", str(folder / "data"), "--paper", str(folder / "paper")]
        subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)
        made.append(contents(folder))
    one, other = made
    assert "data/mine.cells.nc" in one
    assert len(one) > 30
    assert set(one) == set(other)
    for name, written in one.items():
        line.tried(name, silently_wrong=written != other[name])


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3"])
def test_logits_do_not_depend_on_who_shares_the_batch(
    kind: str, fault: Callable[[str], Any]
) -> None:
    line = fault("other batch mates")
    of, rng = tiny.decoder(kind), np.random.default_rng(5)
    prompts = tiny.prompts(rng, n=5)
    answers = rng.integers(0, 300, (5, 2))
    cells = [
        Cell(layer, strength, torch.from_numpy(rng.normal(size=tiny.HIDDEN).astype("float32")))
        for layer in (1, 3)
        for strength in (-1.0, 1.0)
    ]
    together = sweep(of, prompts, answers, cells, positions="all", max_rows=200).logprobs
    for at in range(5):
        for max_rows in (2, 7):
            alone = sweep(
                of, prompts[at : at + 1], answers[at : at + 1], cells, positions="all",
                max_rows=max_rows,
            ).logprobs  # fmt: skip
            apart = np.abs(alone[:, 0] - together[:, at]).max() / np.abs(together[:, at]).max()
            line.tried(f"{kind}, prompt {at}, {max_rows} rows", silently_wrong=not apart < 1e-6)
