"""Logits that are no numbers or do not move, memory that runs out, errors in the middle."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from builders import fill, make_cube, reduce_to_cells, study_of

from steercube.analysis.conclusions.tables import conclude
from steercube.cells import REASONS
from steercube.collect.decoder import Decoder, decoder_of
from steercube.collect.hooks import Cell
from steercube.collect.sweep import sweep
from steercube.contract import STATUS
from steercube.cube import open_cube

pytestmark = pytest.mark.usefixtures("few_priors")

PLAN = replace(
    tiny.PLAN, controls=(), outcomes=("logit",), generation_layers="", generation_samples=None
)
"""The sweep of logits alone."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return logits(tiny.collected(tmp_path_factory.mktemp("sound"), plan=PLAN))


def logits(path: Path) -> xr.Dataset:
    return open_cube(path)["logit_diff"]


class Spoiled:
    """A model that gives `value` for every logit of one of its calls, which it counts."""

    def __init__(self, call: int = 0, value: float = 0.0) -> None:
        self.of, self.n_calls = tiny.decoder(), 0
        self.call, self.value = call, value
        self.of.model.get_output_embeddings().register_forward_hook(self.spoil)

    def spoil(self, _module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        self.n_calls += 1
        return torch.full_like(logits, self.value) if self.n_calls == self.call else logits


@pytest.fixture(scope="module")
def n_calls(tmp_path_factory: pytest.TempPathFactory) -> int:
    counted = Spoiled()
    tiny.collected(tmp_path_factory.mktemp("counted"), counted.of, PLAN)
    return counted.n_calls


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])
def test_cells_whose_logits_are_no_numbers_are_marked(
    value: float, n_calls: int, sound: xr.Dataset, tmp_path: Path, fault: Callable[[str], Any]
) -> None:
    """The last calls are those of the sweep; before it, the check would refuse the model."""
    line, n_spoiled = fault("logits that are no numbers"), 0
    for call in (n_calls, n_calls - 1, n_calls - 2):
        folder = tmp_path / str(call)
        folder.mkdir()
        with np.errstate(all="ignore"):
            cube = logits(tiny.collected(folder, Spoiled(call, value).of, PLAN))
        whole = np.isfinite(cube["logit_diff"]).where(cube["item_id"] != "", True)
        whole = whole.all(("strength", "sample"))
        swept = sound["cell_status"] == STATUS["complete"]
        marked = cube["cell_status"] == STATUS["nonfinite"]
        kept = (cube["logit_diff"] == sound["logit_diff"]) | sound["logit_diff"].isnull()
        line.tried(
            f"{value} in call {call}",
            silently_wrong=bool((marked != (swept & ~whole)).any()),
            lost=bool((~kept.all(("strength", "sample")) & ~marked).any()),
        )
        n_spoiled += bool(marked.any())
    assert n_spoiled == 3


def test_a_marked_layer_is_left_out_and_said(fault: Callable[[str], Any]) -> None:
    line = fault("logits that are no numbers")
    cube = make_cube(np.random.default_rng(1), n_items={"honesty": 24})
    at = {"model": "small", "concept": "honesty"}
    best = int(reduce_to_cells(cube, n_resamples=50)["selected_layer"].sel(at))
    values = np.full(24, 0.3)
    values[5] = np.inf
    fill(cube, "small", "honesty", best, 1.0, values)
    cube["cell_status"].loc[at | {"layer": best}] = STATUS["nonfinite"]
    cells = reduce_to_cells(cube, n_resamples=50)
    effect = cells.sel(at | {"layer": best}).sel(estimand="cohens_d")
    said = int(effect["reason"]) == REASONS["nonfinite"] and bool(effect["estimate"].isnull())
    row = conclude(study_of(cells))["effects"].set_index("model").loc["small"]
    line.tried("the best layer", silently_wrong=not said or int(row["layer"]) == best)
    assert np.isfinite(row["cohens_d"])


def test_logits_that_do_not_move_have_no_d_and_a_reason(fault: Callable[[str], Any]) -> None:
    line = fault("logits that do not move")
    cube = make_cube(np.random.default_rng(1), n_items={"honesty": 24})
    for layer in map(int, cube["layer"].values):
        for strength in (-1.0, 0.0, 1.0):
            fill(cube, "small", "honesty", layer, strength, np.full(24, 0.5))
    cells = reduce_to_cells(cube, n_resamples=50)
    of = cells.sel(model="small", concept="honesty")
    d = of.sel(estimand="cohens_d")
    for layer in (3, 4, 5, 6):
        at = d.sel(layer=layer)
        undefined = bool(at["estimate"].isnull())
        line.tried(
            f"layer {layer}",
            silently_wrong=not undefined or int(at["reason"]) != REASONS["zero_variance"],
        )
    assert (of.sel(estimand="delta")["estimate"].dropna("layer") == 0).all()


def limited(of: Decoder, n_rows: int) -> None:
    """The second block has memory for so many rows."""
    block = of.blocks[1]
    forward = block.forward

    def checked(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(hidden_states) > n_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(hidden_states, *args, **kwargs)

    block.forward = checked  # type: ignore[method-assign]


def test_results_are_equal_at_every_bound_of_the_rows(
    sound: xr.Dataset, tmp_path: Path, fault: Callable[[str], Any]
) -> None:
    line = fault("memory that runs out")
    for n_rows in (2, 3, 4, 6, 9, 14, 30):
        of = tiny.decoder()
        limited(of, n_rows)
        (tmp_path / str(n_rows)).mkdir()
        cube = logits(tiny.collected(tmp_path / str(n_rows), of, PLAN))
        apart = float(abs(cube["logit_diff"] - sound["logit_diff"]).max())
        same_cells = (cube["cell_status"] == sound["cell_status"]).all()
        line.tried(f"{n_rows} rows", silently_wrong=not apart < 1e-4, lost=not same_cells)


def test_too_little_memory_for_one_row_is_a_clear_error(
    tmp_path: Path, fault: Callable[[str], Any]
) -> None:
    line = fault("memory that runs out")
    of = tiny.decoder()
    limited(of, 0)
    with pytest.raises(MemoryError, match="memory"):
        tiny.collected(tmp_path, of, PLAN)
    line.tried("no row", silently_wrong=(tmp_path / "mine.nc").exists())
    resumed = tiny.collected(tmp_path, tiny.decoder(), PLAN, resume=True)
    assert (logits(resumed)["cell_status"] == STATUS["complete"]).any()


def hooks_on(of: Decoder) -> int:
    modules = list(of.model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_an_error_in_the_middle_of_a_cell_leaves_no_hook_and_no_change(
    fault: Callable[[str], Any],
) -> None:
    line = fault("an error in the middle of a cell")
    of = tiny.decoder()
    prompts = tiny.prompts(np.random.default_rng(0))
    answers = np.tile([4, 9], (len(prompts), 1))
    cells = [Cell(layer, 2.0, torch.ones(tiny.HIDDEN)) for layer in (1, 3)]
    ids = torch.tensor([prompts[0].ids])
    n_hooks = hooks_on(of)
    with torch.no_grad():
        before = of.model(input_ids=ids).logits
    for layer in range(of.n_layers):
        for call in (1, 2, 3):
            broken = _failing(of, layer, call)
            with pytest.raises(ZeroDivisionError):
                sweep(of, prompts, answers, cells, positions="all", max_rows=4)
            broken.remove()
            with torch.no_grad():
                after = of.model(input_ids=ids).logits
            left = hooks_on(of) - n_hooks
            line.tried(
                f"layer {layer}, call {call}",
                silently_wrong=left != 0 or not torch.equal(before, after),
            )


def _failing(of: Decoder, layer: int, call: int) -> Any:
    n_calls = 0

    def fail(*_: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            raise ZeroDivisionError

    return of.blocks[layer].register_forward_hook(fail)


def test_a_model_without_blocks_is_refused_with_the_modules_seen(
    fault: Callable[[str], Any],
) -> None:
    line = fault("a model whose blocks cannot be found")
    bare = torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.Linear(4, 3))
    made = tiny.model("llama")
    made.get_decoder = lambda: bare
    with pytest.raises(ValueError, match="Embedding") as error:
        decoder_of(made, tiny.tokenizer(), name="bare")
    line.tried("no list of blocks", silently_wrong="Linear" not in str(error.value))
