from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from steercube.collect import memory
from steercube.collect.decoder import Decoder, decoder_of
from steercube.collect.generate import Decoding, generate
from steercube.collect.hooks import Cell
from steercube.collect.memory import SHARE, bytes_of_row, free_bytes, rows_that_fit
from steercube.collect.plan import POSITIONS
from steercube.collect.rank import Rank
from steercube.collect.readout import Prompt
from steercube.collect.sweep import sweep

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
N_POSITIONS, N_ANSWER, N_NEW = 120, 4, 16
PROMPTS = [Prompt(tuple(range(N_POSITIONS)), N_POSITIONS - N_ANSWER)] * 4
CELLS = [Cell(layer, 1.0, torch.ones(128)) for layer in (0,) * 9 + (1, 2, 3, 3)]
N_ROWS = len(PROMPTS) * (1 + len(CELLS))


def wide(kind: str) -> Decoder:
    config = (
        LlamaConfig(**SHAPE, intermediate_size=448)
        if kind == "dense"
        else Qwen3MoeConfig(
            **SHAPE, head_dim=16, num_experts=16, num_experts_per_tok=8, moe_intermediate_size=48
        )
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    return decoder_of(model, tiny.tokenizer(), name=kind)


def most_allocated(run: Callable[[], object]) -> int:
    """Bytes that torch held at most, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(np.cumsum([change for _, change in changes]))


@pytest.mark.parametrize("generates", [False, True], ids=["sweep", "generation"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_row_takes_what_is_estimated(kind: str, positions: str, generates: bool) -> None:
    """Or up to a half less, but no more."""
    decoder, none = wide(kind), np.zeros((len(PROMPTS), 1), dtype=int)
    asked: tuple[Any, ...] = (decoder, PROMPTS, none, CELLS)
    given: dict[str, Any] = {"positions": positions, "max_rows": N_ROWS}
    measured = most_allocated(
        lambda: (
            generate(*asked, **given, decoding=Decoding(N_NEW))
            if generates
            else sweep(*asked, **given)
        )
    )
    shared = 0 if positions == "all" else N_POSITIONS - N_ANSWER
    n_new = N_NEW if generates else 0
    estimated = bytes_of_row(decoder.model, N_POSITIONS, shared=shared, n_new=n_new)
    assert 1 <= estimated * N_ROWS / measured < 1.5


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_longer_prompts_take_more_in_every_architecture(kind: str) -> None:
    model = tiny.model(kind)
    for n_new in (0, 8):
        short, shared, long = (
            bytes_of_row(model, n, shared=start, n_new=n_new)
            for n, start in ((40, 0), (80, 76), (80, 0))
        )
        assert 300 * 4 < short < long
        assert shared < long


def test_blocks_of_several_widths_count_as_the_widest() -> None:
    model = tiny.model("llama")
    narrow = bytes_of_row(model, 40, shared=0, n_new=0)
    vars(model.config)["intermediate_size"] = [48, 480, 48]
    wide = bytes_of_row(model, 40, shared=0, n_new=0)
    assert wide - narrow == pytest.approx(4 * 40 * 2.75 * (480 - 48))


def test_without_a_gpu_memory_sets_no_bound() -> None:
    decoder = tiny.decoder()
    assert free_bytes(decoder) == np.inf
    assert (rows_that_fit(decoder, PROMPTS, shared=[0] * 4) == np.inf).all()


def test_the_fullest_gpu_counts_and_what_torch_holds_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, held, used = {0: 900, 1: 500}, {0: 300, 1: 300}, {0: 100, 1: 250}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu.index], 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda gpu: held[gpu.index])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda gpu: used[gpu.index])
    places = [torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")]
    parameters = [SimpleNamespace(device=place) for place in places]
    model = SimpleNamespace(parameters=lambda: parameters)
    decoder: Any = SimpleNamespace(model=model, rank=Rank())
    assert free_bytes(decoder) == SHARE * 550


def passes(decoder: Decoder) -> list[tuple[int, int]]:
    """Rows and positions that the last block is given from now on."""
    seen: list[tuple[int, int]] = []
    decoder.blocks[-1].register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape[:2]))
    )
    return seen


@pytest.mark.parametrize("positions", POSITIONS)
def test_long_prompts_get_fewer_rows_and_nothing_else_changes(
    positions: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, prompts = tiny.decoder(), tiny.prompts(rng, n=12)
    answers = rng.integers(0, 300, (12, 2))
    cells = [Cell(2, s, torch.ones(tiny.HIDDEN)) for s in (-1.0, 1.0)]
    given: dict[str, Any] = {"positions": positions, "max_rows": 12}
    plenty = sweep(decoder, prompts, answers, cells, **given)
    lengths = [len(p.ids) for p in prompts]
    fit = bytes_of_row(decoder.model, max(lengths), shared=0, n_new=0)
    monkeypatch.setattr(memory, "free_bytes", lambda decoder: 3.5 * fit)
    shapes = passes(decoder)
    scarce = sweep(decoder, prompts, answers, cells, **given)
    np.testing.assert_allclose(scarce.logprobs, plenty.logprobs, atol=1e-4)
    assert scarce.max_rows == plenty.max_rows == 12
    if positions == "all":
        rows, widths = np.array(shapes).T
        assert (rows * widths <= 3.5 * max(lengths)).all()
        assert rows[widths.argmax()] == 3
        assert rows[widths.argmin()] > 3
    of_little = generate(decoder, prompts, answers, cells, **given, decoding=Decoding(4))
    monkeypatch.undo()
    of_plenty = generate(decoder, prompts, answers, cells, **given, decoding=Decoding(4))
    np.testing.assert_array_equal(of_little.tokens, of_plenty.tokens)


def test_memory_that_runs_out_halves_the_rows_that_were_tried(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the bound on rows, which may be far above them."""
    decoder, prompts = tiny.decoder(), tiny.prompts(rng)
    answers = rng.integers(0, 300, (6, 2))
    cells = [Cell(2, s, torch.ones(tiny.HIDDEN)) for s in (-1.0, 1.0)]
    row = bytes_of_row(decoder.model, max(len(p.ids) for p in prompts), shared=0, n_new=0)
    monkeypatch.setattr(memory, "free_bytes", lambda decoder: 12 * row)
    plenty = sweep(decoder, prompts, answers, cells, positions="all", max_rows=1000)

    def refuse(_module: Any, args: Any) -> None:
        if len(args[0]) > 8:
            raise torch.OutOfMemoryError("made up")

    decoder.blocks[-1].register_forward_pre_hook(refuse)
    shapes = passes(decoder)
    scarce = sweep(decoder, prompts, answers, cells, positions="all", max_rows=1000)
    np.testing.assert_allclose(scarce.logprobs, plenty.logprobs, atol=1e-4)
    assert scarce.max_rows < 12
    assert max(rows for rows, _ in shapes) <= 8
