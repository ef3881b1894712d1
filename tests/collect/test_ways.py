"""Which way to put a model on the GPUs: by hand-counted bytes, and the page's tables."""

from types import SimpleNamespace
from typing import Any

import gpus_table
import pytest
import tiny
import together
import torch

from steercube.cli import _processes, _without, main
from steercube.collect import launch, parallel
from steercube.collect.decoder import paper_of
from steercube.collect.memory import SHARE, bytes_of_row, memory_for_weights
from steercube.collect.parallel import Layout, bytes_of_part, on_paper
from steercube.collect.ways import ENOUGH, FEW, OVERHEAD, best_way, ways, work_of_part
from steercube.models import Entry, Weights


def test_the_page_has_the_tables_of_today() -> None:
    page = gpus_table.PAGE.read_text(encoding="utf-8")
    assert gpus_table.with_table(page) == page, "run tests/gpus_table.py"
    assert page.count("**8 GPUs, which hold the model together**") == 1


def test_a_model_on_paper_is_the_model() -> None:
    for kind, shape in together.SHAPES.values():
        model = tiny.model(kind, **shape)
        paper = on_paper(model.config, "float32")
        assert bytes_of_part(paper, Layout(1)) == bytes_of_part(model, Layout(1))
        assert all(weight.device.type == "meta" for weight in paper.parameters())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8])
def test_the_groups_use_every_gpu_and_need_room(n: int) -> None:
    model = on_paper(gpus_table.CONFIGS["235B-A22B"], "bfloat16")
    found = ways(model, n, 141e9)
    assert [way.size for way in found] == [*(s for s in (1, 2, 4, 8) if s <= n), 0]
    for way in found:
        assert n - way.size < way.size * way.n_groups <= n or way.size == 0
        free = 141e9 - OVERHEAD - way.weights
        row = bytes_of_row(model, 200, shared=0, n_new=0)
        assert way.rows == max(0, int(SHARE * free / row))
    assert best_way(found).size == (4 if n >= 4 else 0)
    assert bool(found[-1].rest) == (n < 4)


def test_the_smallest_group_with_room_is_taken() -> None:
    model = on_paper(gpus_table.CONFIGS["32B"], "bfloat16")
    row = bytes_of_row(model, 200, shared=0, n_new=0)
    for held, size in ((bytes_of_part(model, Layout(n)), n) for n in (1, 2, 4)):
        just = OVERHEAD + held + ENOUGH * row / SHARE
        assert best_way(ways(model, 8, just * 1.001)).size == size
        assert best_way(ways(model, 8, just * 0.999)).size == (2 * size)


def test_a_group_with_few_rows_is_better_than_one_process_over_all_gpus() -> None:
    """In which one GPU works and the others wait; but a handful of rows is no better."""
    model = on_paper(gpus_table.CONFIGS["32B"], "bfloat16")
    row = bytes_of_row(model, 200, shared=0, n_new=0)
    held = bytes_of_part(model, Layout(2))
    for n_rows, size in ((FEW, 2), (FEW - 1, 0)):
        gpu = OVERHEAD + held + (n_rows + 0.5) * row / SHARE
        best = best_way(ways(model, 3, gpu))
        assert (best.size, best.n_groups) == (size, 1)
    assert best.words == "one process over all GPUs"
    assert best_way(ways(model, 1, 24e9)).words == (
        "one process over all GPUs and with the CPU's memory"
    )


def test_work_is_that_of_the_weights_a_token_meets() -> None:
    """Two of four experts; with two heads on four processes, attention is in two parts."""
    model = tiny.model("qwen3_moe", num_attention_heads=8, num_key_value_heads=2)
    block = model.model.layers[0]
    attention = sum(w.numel() for w in block.self_attn.parameters() if w.ndim > 1)
    experts = sum(w.numel() for w in block.mlp.experts.parameters()) / 2
    router = block.mlp.gate.weight.numel()
    whole = attention + experts + router
    for layout in (Layout(1), Layout(2, 1, 2), Layout(2, 2, 4)):
        part = attention / layout.tensor + experts / layout.tensor + router
        assert work_of_part(model, layout) == pytest.approx(part / whole)
    assert work_of_part(tiny.model("llama"), Layout(2)) == pytest.approx(0.5)


def test_weights_leave_room_for_rows() -> None:
    """Weights that fit leave what rows want, or all that is left; else rows get half at most."""
    model = on_paper(gpus_table.CONFIGS["8B"], "bfloat16")
    row = bytes_of_row(model, 200, shared=0, n_new=0) / SHARE
    plenty = memory_for_weights(model, {0: 80e9, "cpu": 500e9}, rows=1024)
    assert plenty[0] == pytest.approx(80e9 - 1024 * row, rel=1e-6)
    assert plenty["cpu"] == 500e9
    tight = memory_for_weights(model, {0: 20e9, 1: 20e9}, rows=10_000)
    assert tight[0] == tight[1] == pytest.approx(1.1 * 16.38e9 / 2, rel=1e-3)
    small = memory_for_weights(model, {0: 10e9, "cpu": 500e9}, rows=10_000)
    assert small[0] == 5e9
    few = memory_for_weights(model, {0: 10e9, "cpu": 500e9}, rows=16)
    assert few[0] == pytest.approx(10e9 - 16 * row, rel=1e-6)


def test_the_choice_is_printed_with_the_others(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry("mine", Weights(str(tiny.save("qwen3_moe", tmp_path)), dtype="float32"))
    paper, can_be_spread = paper_of(entry)
    assert can_be_spread
    rows = ENOUGH * bytes_of_row(paper, 200, shared=0, n_new=0)
    enough = OVERHEAD + bytes_of_part(paper, Layout(2, 1, 2)) + rows / SHARE + 1000
    lines: list[str] = []
    monkeypatch.setattr(launch, "gpus", lambda: (4, enough))
    way = launch.choose(entry, lines.append)
    assert way is not None
    assert lines[0] == f"mine on 4 x {enough / 1e9:.0f} GB: {way.words}"
    assert len(lines) == 1 + 4
    assert way.size == 2
    with monkeypatch.context() as old:
        old.setattr(parallel, "version", lambda name: "5.17.0")
        alone = launch.choose(entry, lines.append)
    assert alone is not None
    assert alone.size == 1
    monkeypatch.setattr(launch, "gpus", lambda: (0, 0.0))
    assert launch.choose(entry, lines.append) is None
    assert lines[-1] == "mine: no GPU here, so one process on the CPU"


def test_the_smallest_gpu_that_torch_sees_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        launch.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="85e9\n42e9\n")
    )
    assert launch.gpus() == (2, 42e9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert launch.gpus() == (0, 0.0)


@pytest.mark.parametrize(
    ("n_gpus", "given", "started"),
    [
        (0, "tensor", 2),
        (0, "tensor:4", 4),
        (6, "tensor:4", 4),
        (8, "tensor:4", 8),
        (6, "tensor", 6),
    ],
)
def test_as_many_processes_are_started_as_gpus_allow(
    n_gpus: int, given: str, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "gpus", lambda: (n_gpus, 80e9))
    options: Any = SimpleNamespace(parallel=given)
    entry = Entry("mine", Weights("nowhere"))
    assert _processes(options, entry) == (started, given, "")


@pytest.mark.parametrize(("n_gpus", "given"), [(1, "tensor"), (4, "tensor:8"), (1, "tensor:2")])
def test_a_group_without_enough_gpus_is_refused(
    n_gpus: int, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "gpus", lambda: (n_gpus, 80e9))
    options: Any = SimpleNamespace(parallel=given)
    with pytest.raises(ValueError, match=f"{given}: a group needs .* there are {n_gpus} here"):
        _processes(options, Entry("mine", Weights("nowhere")))


def test_the_processes_get_the_command_without_the_choice(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups get their size; processes with the whole model, no device map of the entry's."""
    assert _without(["a", "--parallel", "auto", "b", "--parallel=x"], "--parallel") == ["a", "b"]
    monkeypatch.delenv("RANK", raising=False)
    started: list[Any] = []

    def start(n: int, words: Any, environment: Any) -> int:
        started.append((n, *words[-2:]))
        return 3

    monkeypatch.setattr(launch, "start", start)
    command = ["collect", "--model", "32B", "--models", "data/models.toml"]
    command += ["--out", str(tmp_path / "mine.nc")]
    for size, spread in ((4, ("--parallel", "tensor:4")), (1, ("--device-map", ""))):
        way = SimpleNamespace(size=size, n_groups=8 // size)
        monkeypatch.setattr(launch, "choose", lambda *_, way=way, **__: way)
        with pytest.raises(SystemExit, match="3"):
            main([*command, "--parallel", "auto"])
        assert started[-1] == (8, *spread)
        assert "starting 8 processes: steercube collect --model 32B" in capsys.readouterr().out


def test_words_of_parallel_are_checked(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["collect", "--model", "32B", "--models", "data/models.toml"]
    command += ["--out", str(tmp_path / "mine.nc")]
    for more, said in (
        (["--parallel", "pipeline"], "--parallel pipeline: write auto, tensor or tensor:4"),
        (["--parallel", "tensor:1"], "--parallel tensor:1: write auto, tensor or tensor:4"),
        (["--parallel", "tensor", "--device-map", "auto"], "both spread the model"),
    ):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for more, said in (
        (["--parallel", "auto"], "--parallel auto starts the processes itself"),
        (["--parallel", "tensor:2"], "3 processes do not divide into groups of 2"),
    ):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err


def test_a_mixture_that_does_not_say_how_many_experts_a_token_has_uses_all() -> None:
    model = tiny.model("qwen3_moe")
    known = work_of_part(model, Layout(2, 1, 2))
    del model.config.num_experts_per_tok
    assert work_of_part(model, Layout(2, 1, 2)) == pytest.approx(known, rel=0.05)
