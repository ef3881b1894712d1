from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import xarray as xr

from steercube import netcdf
from steercube.collect.decoder import decoder_of
from steercube.collect.hooks import Cell
from steercube.collect.readout import readout_of
from steercube.collect.run import shards_of
from steercube.contract import STATUS, measure_name
from steercube.cube import open_cube

run = tiny.collected
LOGITS = replace(tiny.PLAN, outcomes=("logit",))
HONESTY = {"honesty": tiny.CONCEPTS["honesty"]}


def test_the_cube_holds_what_the_plain_loop_gives(whole: Path) -> None:
    cube = open_cube(whole)
    of_vectors = netcdf.load(shards_of(whole) / "tiny-llama" / "humour" / "vectors.nc")
    decoder = tiny.decoder()
    readout = readout_of(decoder.tokenizer)
    items = tiny.CONCEPTS["humour"].evaluation
    prompts = [readout.prompt(item.prompt) for item in items]
    answers = np.array([[readout.token(i.matching), readout.token(i.other)] for i in items])
    at = {"model": "tiny-llama", "concept": "humour"}
    grids = {
        "own": cube["logit_diff"],
        "random/0": cube["logit_diff/random"].sel(direction="random/0"),
        "shuffled/0": cube["logit_diff/shuffled"].sel(direction="shuffled/0"),
    }
    for direction, grid in grids.items():
        vector = of_vectors["vector"].sel(direction=direction, layer=3)
        cell = Cell(3, 2.0, torch.from_numpy(vector.values))
        plain = tiny.plain_loop(decoder, prompts, answers, [cell], "all")
        for strength, row in {0.0: plain[0], 2.0: plain[1]}.items():
            found = grid["logit_diff"].sel(at).sel(layer=3, strength=strength)
            np.testing.assert_allclose(found, row[:, 0] - row[:, 1], atol=1e-4)


def test_a_shards_receipts_are_added_up(whole: Path) -> None:
    """Every item at every steered strength, whatever the chunks, for the concept's own vector."""
    cube = open_cube(whole)
    own = cube["logit_diff"]
    assert (own["rows_touched"] == 12 * 3).all()
    assert (own["positions_touched"] > own["rows_touched"]).all()
    assert (own["added_over_residual"] > 0).all()
    assert set(cube["logit_diff/random"].data_vars) == {"logit_diff", "cell_status"}


def test_controls_may_be_many_at_fewer_layers_and_items(tmp_path: Path) -> None:
    plan = replace(LOGITS, controls=("random:3", "letter"), control_layers="2,4", control_items=6)
    cube = open_cube(run(tmp_path, plan=plan))
    of_logits = [path for path in cube.grids if path.startswith("logit_diff")]
    assert of_logits == ["logit_diff", "logit_diff/letter", "logit_diff/random"]
    directions = {"random": [f"random/{i}" for i in range(3)], "letter": ["letter"]}
    for family, names in directions.items():
        grid = cube[f"logit_diff/{family}"]
        assert grid["direction"].values.tolist() == names
        assert grid["layer"].values.tolist() == [2, 4]
        assert grid["logit_diff"].notnull().all()
        assert (grid["cell_status"] == STATUS["complete"]).all()
        for letters in grid["letter"].values:
            assert sorted(letters) == ["A"] * 3 + ["B"] * 3
        own = cube["logit_diff"]["logit_diff"].sel(layer=grid["layer"], sample=grid["sample"])
        still = grid["logit_diff"].sel(strength=0.0) - own.sel(strength=0.0)
        np.testing.assert_allclose(still, 0, atol=1e-5)
        moved = abs(grid["logit_diff"].sel(strength=2.0) - own.sel(strength=2.0)).max("sample")
        assert (moved > 1e-3).all()
    assert cube["logit_diff"]["layer"].values.tolist() == [1, 2, 3, 4]
    assert cube["logit_diff"].sizes["sample"] == 12
    n_shards = {kind: len(list(tmp_path.rglob(f"{kind}-*.nc"))) for kind in ("samples", "controls")}
    assert n_shards == {"samples": 2 * 3, "controls": 2 * 2}


def test_one_random_direction_is_the_first_of_many(tmp_path: Path) -> None:
    """So that more can be added in another cube, and compared with what is there."""
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = replace(LOGITS, controls=(f"random:{number}",), layers="2")
        grid = open_cube(run(folder, plan=plan, concepts=HONESTY))["logit_diff/random"]
        found.append(grid["logit_diff"].sel(direction="random/0"))
    xr.testing.assert_allclose(*found, atol=1e-5)


def test_controls_of_concepts_with_letters_in_another_order_share_a_grid(tmp_path: Path) -> None:
    """The first items of either letter are then other ones, and each concept lacks some."""
    items = tiny.CONCEPTS["humour"].evaluation
    sorted_items = tuple(sorted(items, key=lambda item: item.matching))
    concepts = HONESTY | {"humour": replace(tiny.CONCEPTS["humour"], evaluation=sorted_items)}
    plan = replace(LOGITS, controls=("random",), control_items=4)
    grid = open_cube(run(tmp_path, plan=plan, concepts=concepts))["logit_diff/random"]
    asked = grid["logit_diff"].notnull().all(("model", "direction", "layer", "strength"))
    held = {
        name: grid["sample"].values[asked.sel(concept=name).values].tolist() for name in concepts
    }
    assert held == {"honesty": [0, 1, 2, 3], "humour": [0, 1, 6, 7]}
    assert (grid["cell_status"] == STATUS["complete"]).all()


def test_logits_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    plan = replace(LOGITS, strengths=(-1.0, 1.0, 1e39), controls=("random",))
    with np.errstate(all="ignore"):
        cube = open_cube(run(tmp_path, plan=plan, concepts=HONESTY))
    for path, grid in cube.grids.items():
        assert (grid["cell_status"] == STATUS["nonfinite"]).all(), path
        assert grid[measure_name(path)].sel(strength=1.0).notnull().all(), path


def test_hooks_that_do_nothing_are_an_error(tmp_path: Path) -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        for parameter in tiny.blocks_of(model)[-1].parameters():
            parameter.zero_()
    decoder = decoder_of(model, tiny.tokenizer(), name="tiny-llama")
    # Every difference between the letters is taken out of the stream before it is read.
    for block in decoder.blocks:
        block.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    with pytest.raises(ValueError, match=r"tiny-llama x honesty: no logit moved at strength \+2"):
        run(tmp_path, decoder)
    assert not list(tmp_path.rglob("samples-*.nc"))
