"""On a GPU the same numbers as on the CPU, in float32; skipped where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from accelerate import dispatch_model

from steercube.collect.decoder import Decoder, decoder_of, evaluating
from steercube.collect.generate import check_generation_against_plain_loop
from steercube.collect.hooks import Cell
from steercube.collect.steer import steer
from steercube.collect.sweep import check_against_plain_loop
from steercube.cube import open_cube

DEVICE = "cuda"
KINDS = ("llama", "qwen3_moe", "gemma3", "gpt2", "bloom")
VECTORS = xr.DataArray(
    np.random.default_rng(0).normal(size=(5, tiny.HIDDEN)), dims=("layer", "hidden")
).astype("float32")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def on_device(kind: str, **options: Any) -> Decoder:
    made = tiny.model(kind, **options).requires_grad_(False).to(DEVICE)
    return decoder_of(made, tiny.tokenizer(), name=f"tiny-{kind}")


def grids(path: Path) -> dict[str, np.ndarray]:
    found = {
        f"{table}/{name}": values.values
        for table, every in open_cube(path).items()
        for name, values in every.data_vars.items()
    }
    vectors = xr.load_dataset(path.with_name("mine.vectors.nc"))
    return found | {str(name): values.values for name, values in vectors.data_vars.items()}


def require_equal(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for name, values in one.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(two[name], values, atol=2e-4, rtol=1e-4, err_msg=name)
        else:
            same = np.mean(values == two[name])
            assert same == 1, f"{name}: {same:.1%} are the same"


@pytest.mark.parametrize("kind", KINDS)
def test_a_collection_equals_the_cpus(kind: str, tmp_path: Path) -> None:
    """Vectors, controls, logits and generated answers; half of the shards made on each device."""
    cpu = tiny.collected(tmp_path / "cpu", tiny.decoder(kind))
    wanted = grids(cpu)
    gpu = tiny.collected(tmp_path / "gpu", on_device(kind))
    require_equal(wanted, grids(gpu))
    shards = sorted((tmp_path / "cpu").rglob("*-*.nc"))
    for shard in shards[::2]:
        shard.unlink()
    tiny.collected(tmp_path / "cpu", on_device(kind), resume=True)
    require_equal(wanted, grids(cpu))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("positions", ["all", "answer"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_checks_before_a_run_pass(
    kind: str, positions: str, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    decoder, prompts = on_device(kind, dtype=dtype), tiny.prompts(rng)
    cells = [Cell(layer, 1.0, torch.from_numpy(VECTORS.values[layer])) for layer in (1, 4)]
    answers = rng.integers(0, 300, (len(prompts), 2))
    with evaluating(decoder):
        check_against_plain_loop(decoder, prompts, answers, cells, positions=positions)
        check_generation_against_plain_loop(decoder, prompts, cells, positions=positions)


@pytest.mark.parametrize("cache", [{"use_cache": False}, {}, {"cache_implementation": "static"}])
def test_steering_under_generate_equals_the_cpus(cache: dict[str, Any]) -> None:
    """A static cache is what transformers compiles for on a GPU."""
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    how: dict[str, Any] = {
        **{"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None},
        **{"return_dict_in_generate": True, "output_logits": True},
    }

    def said(decoder: Decoder, **given: Any) -> Any:
        given |= {"input_ids": ids.to(decoder.device), "attention_mask": mask.to(decoder.device)}
        with steer(decoder, VECTORS, layer=[1, 3], strength={1: 1.0, 3: -2.0}) as steered:
            made = decoder.model.generate(**given, **how)
        assert steered.to_frame()["passes"].to_dict() == {1: 6, 3: 6}
        return made.sequences.cpu(), torch.stack(made.logits).cpu()

    (wanted, theirs), (found, ours) = said(tiny.decoder()), said(on_device("llama"), **cache)
    assert torch.equal(wanted, found)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_model_that_is_partly_in_the_cpus_memory(kind: str, tmp_path: Path) -> None:
    whole = grids(tiny.collected(tmp_path / "whole", on_device(kind)))
    model = tiny.model(kind).requires_grad_(False)
    places: dict[str, Any] = dict.fromkeys(("model.embed_tokens", "model.norm"), 0)
    places |= {"model.rotary_emb": 0, "lm_head": 0}
    places |= {f"model.layers.{at}": 0 if at < 3 else "cpu" for at in range(5)}
    model = dispatch_model(model, places, main_device=0)
    spread = decoder_of(model, tiny.tokenizer(), name=f"tiny-{kind}", revision="the same")
    require_equal(whole, grids(tiny.collected(tmp_path / "spread", spread)))
