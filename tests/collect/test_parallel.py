"""Processes that hold a model together find what one process finds, on the CPU through gloo."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import tiny
import together
from builders import ROOT
from children import HANGS, write_concepts
from transformers import (
    AutoConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3MoeConfig,
)

from steercube import netcdf
from steercube.collect import parallel
from steercube.collect.parallel import Layout, bytes_of_part, layout_of, layouts_of, on_paper
from steercube.collect.plan import POSITIONS
from steercube.collect.rank import Rank
from steercube.collect.ways import work_of_part
from steercube.cube import open_cube

T = TypeVar("T")
Once = Callable[[str, Callable[[], T]], T]
TOLERANCE = 1e-5
"""In float32, absolute and relative; float32 itself has 7 digits."""
QWEN3_235B = Qwen3MoeConfig(
    **{"vocab_size": 151936, "hidden_size": 4096, "moe_intermediate_size": 1536},
    **{"num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 94},
    **{"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128},
)


def test_dense_models_are_split_by_key_value_heads() -> None:
    config = LlamaConfig(num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336)
    assert layouts_of(config, 64) == [Layout(2), Layout(4), Layout(8)]
    said = "16 processes cannot hold 8B together: 2, 4, 8 can.*--parallel tensor:8"
    with pytest.raises(ValueError, match=said):
        layout_of(config, 16, name="8B")


def test_experts_are_dealt_out_beyond_the_key_value_heads() -> None:
    """Qwen3-235B has four: on eight processes attention is in four parts, each stored in two."""
    assert layout_of(QWEN3_235B, 4, name="235B") == Layout(4, 1, 4)
    assert layout_of(QWEN3_235B, 8, name="235B") == Layout(4, 2, 8)
    with pytest.raises(ValueError, match="3 processes cannot hold 235B together: 2, 4, 8, 16"):
        layout_of(QWEN3_235B, 3, name="235B")
    paper = on_paper(QWEN3_235B, "bfloat16")
    assert bytes_of_part(paper, Layout(1)) == pytest.approx(470.2e9, rel=1e-3)
    experts = 94 * 128 * 3 * 4096 * 1536 * 2
    rest = bytes_of_part(paper, Layout(1)) - experts
    assert bytes_of_part(paper, Layout(4, 2, 8)) == pytest.approx((experts + rest) / 8, rel=0.02)


def test_a_model_without_a_plan_or_an_old_transformers_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for config in (BloomConfig(n_head=8), GPT2Config(), MambaConfig()):
        with pytest.raises(ValueError, match=f"has no plan that splits {config.model_type}"):
            layout_of(config, 2, name="mine")
    monkeypatch.setattr(parallel, "version", lambda name: "5.17.0")
    with pytest.raises(ValueError, match=r"needs transformers 5.23 or later, and 5.17.0"):
        layout_of(QWEN3_235B, 4, name="235B")


def test_one_process_holds_the_whole_model() -> None:
    for kind in together.SHAPES.values():
        model = tiny.model(kind[0], **kind[1])
        assert bytes_of_part(model, Layout(1)) == parallel.bytes_held(model)


@pytest.fixture(scope="module")
def models(once: Once[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    def save() -> Path:
        folder = tmp_path_factory.mktemp("models")
        for name, (kind, shape) in together.SHAPES.items():
            tiny.save(kind, folder / name, **shape)
        return folder

    return once("models of parallel", save)


@pytest.fixture(scope="module")
def few(models: Path, once: Once[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    def copy() -> Path:
        folder = tmp_path_factory.mktemp("few")
        for name in together.FEW:
            shutil.copytree(models / name, folder / name)
        return folder

    return once("few models of parallel", copy)


@pytest.fixture(scope="module")
def alone(models: Path, once: Once[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything collected by one process."""

    def collect() -> Path:
        out = tmp_path_factory.mktemp("alone")
        together.collect_all(models, out, Rank(), "float32")
        return out

    return once("collected alone", collect)


def launched(n: int, *words: object, timeout: float = HANGS) -> subprocess.CompletedProcess[str]:
    """`torchrun` of `n` processes."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(n), *map(str, words)),
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment()
    )


def environment() -> dict[str, str]:
    paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def launch(
    models: Path, few: Path, once: Once[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, int], Path]:
    """`launch(n, size)`: the folder of what `n` processes in groups of `size` collected.

    Of every model by one group, of a few by several.
    """

    def run(n: int, size: int) -> Path:
        def collect() -> Path:
            out = tmp_path_factory.mktemp(f"{n}-{size}")
            of = models if n == size else few
            done = launched(n, ROOT / "tests" / "together.py", of, out, size, "float32")
            assert done.returncode == 0, done.stderr[-3000:]
            return out

        return once(f"collected by {n} in {size}", collect)

    return run


def values_of(path: Path) -> dict[str, np.ndarray]:
    """Every variable of a cube."""
    return {
        f"{table}/{name}": values.values
        for table, every in open_cube(path).items()
        for name, values in every.data_vars.items()
    }


def require_alike(one: Path, other: Path) -> None:
    """Numbers within TOLERANCE; texts, and everything else, the same.

    A vector is a difference of residual streams, so it is compared in units of their length, at the
    layers that are swept.
    """
    ours, theirs = values_of(one), values_of(other)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(
                values, theirs[name], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name
            )
        else:
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    mine, yours = (netcdf.load(path.with_name("mine.vectors.nc")) for path in (one, other))
    length = open_cube(other)["vectors"]["residual_norm"]
    apart = np.sqrt(((mine["vector"] - yours["vector"]) ** 2).sum("hidden"))
    assert (apart.sel(layer=length["layer"]) <= TOLERANCE * length).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "size"), [(2, 2), (4, 4), (4, 2)])
def test_together_they_find_what_one_finds(
    n: int, size: int, launch: Callable[[int, int], Path], alone: Path
) -> None:
    """Vectors, logits, measures and generated tokens, for both ways of steering."""
    out = launch(n, size)
    for name in together.SHAPES if n == size else together.FEW:
        for positions in POSITIONS:
            require_alike(out / name / positions / "mine.nc", alone / name / positions / "mine.nc")


@pytest.mark.slow
@pytest.mark.parametrize(("n", "size"), [(2, 2), (4, 4), (4, 2)])
def test_each_holds_and_runs_its_part(
    n: int, size: int, launch: Callable[[int, int], Path], models: Path, alone: Path
) -> None:
    """By counting: bytes of weights and multiply-adds as estimated; rows divided among groups."""
    out = launch(n, size)
    ranks = [json.loads((out / f"rank-{i}.json").read_text()) for i in range(n)]
    of_one = json.loads((alone / "rank-0.json").read_text())
    for name in ranks[0]:
        config = AutoConfig.from_pretrained(models / name)
        paper, layout = on_paper(config, "float32"), layout_of(config, size, name=name)
        part = bytes_of_part(paper, layout)
        # Experts get unequal numbers of tokens, but all tokens of a group are sent to some.
        done = np.mean([counts[name]["multiply_adds"] for counts in ranks])
        share = done / of_one[name]["multiply_adds"]
        assert share == pytest.approx(work_of_part(paper, layout), rel=0.01)
        assert share < 0.8
        for counts in ranks:
            # FSDP cuts a weight into rows, of which the first processes may hold one more.
            assert counts[name]["bytes"] == pytest.approx(part, abs=256)
            assert counts[name]["n_params"] == of_one[name]["n_params"]
            assert counts[name]["bytes"] < 0.75 * of_one[name]["bytes"]
        groups = [ranks[i][name]["tokens"] for i in range(0, n, size)]
        for i in range(n):
            assert ranks[i][name]["tokens"] == groups[i // size]
        if len(groups) == 1:
            # And one token in each block, by which FSDP learns which module is the whole model.
            assert groups[0] == of_one[name]["tokens"]
        else:
            # Not half: the first group makes the vectors, and each checks itself.
            assert max(groups) < 0.9 * of_one[name]["tokens"]


@pytest.mark.slow
def test_shards_of_both_share_a_folder(
    few: Path, alone: Path, launch: Callable[[int, int], Path], tmp_path: Path
) -> None:
    """The same key: what one process began, two finish, and the other way round."""
    for begun, rest in ((alone, "0001"), (launch(2, 2), "0000")):
        for name in together.FEW:
            shutil.copytree(begun / name, tmp_path / begun.name / name)
        for shard in sorted((tmp_path / begun.name).rglob(f"*-{rest}.nc")):
            shard.unlink()
    back, again = tmp_path / launch(2, 2).name, tmp_path / alone.name
    done = launched(2, ROOT / "tests" / "together.py", few, again, 2, "float32")
    assert done.returncode == 0, done.stderr[-3000:]
    together.collect_all(few, back, Rank(), "float32")
    for name in together.FEW:
        for positions in POSITIONS:
            here = alone / name / positions / "mine.nc"
            require_alike(again / name / positions / "mine.nc", here)
            require_alike(back / name / positions / "mine.nc", here)


@pytest.mark.slow
def test_in_half_precision_they_differ_by_its_rounding(few: Path, tmp_path: Path) -> None:
    """About as much as one process in bfloat16 differs from float32."""
    folders = {name: tmp_path / name for name in ("exact", "alone", "both")}
    for folder in folders.values():
        folder.mkdir()
    together.collect_all(few, folders["exact"], Rank(), "float32")
    together.collect_all(few, folders["alone"], Rank(), "bfloat16")
    done = launched(2, ROOT / "tests" / "together.py", few, folders["both"], 2, "bfloat16")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in together.FEW:
        for positions in POSITIONS:
            exact, one, two = (
                values_of(folders[of] / name / positions / "mine.nc")["logit_diff/logit_diff"]
                for of in ("exact", "alone", "both")
            )
            rounding = np.sqrt(np.mean((one - exact) ** 2))
            assert 0 < rounding < 0.5
            assert np.sqrt(np.mean((two - one) ** 2)) < 2 * rounding


def arguments(models: Path, folder: Path, kind: str, *more: str) -> list[str]:
    concepts = folder / "concepts"
    if not concepts.exists():
        write_concepts(concepts, {"honesty": tiny.concept(n_pairs=4, n_items=12)})
    return [
        *("collect", "--model", str(models / kind), "--dtype", "float32", "--layers", "1:4"),
        *("--models", str(ROOT / "data" / "models.toml"), "--concepts", str(concepts)),
        *("--strengths=-1,1", "--chunk", "1", "--out", str(folder / "mine.nc"), *more),
    ]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_resume_goes_on(models: Path, tmp_path: Path) -> None:
    words = arguments(models, tmp_path, "qwen3_moe-2")
    running = subprocess.Popen(
        [sys.executable, "-m", "steercube.collect.launch", "4", *words, "--parallel", "tensor"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
    )  # fmt: skip
    folder = tmp_path / "mine.shards" / "qwen3_moe-2" / "honesty"
    until = time.monotonic() + HANGS
    while len(list(folder.glob("samples-*.nc"))) < 2:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    victim = psutil.Process(running.pid).children()[-1]
    assert victim.environ()["RANK"] != "0"
    victim.send_signal(signal.SIGKILL)
    _, said = running.communicate(timeout=HANGS)
    assert running.returncode != 0
    messages = [line for line in said.splitlines() if line.startswith("steercube: ")]
    assert 1 <= len(messages) <= 2, said
    assert all("continue with --resume" in line for line in messages)
    assert "Traceback" not in said
    n_kept = len(list(folder.glob("samples-*.nc")))
    assert 2 <= n_kept < 12
    resumed = launched(4, "-m", "steercube", *words, "--parallel", "tensor", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    (tmp_path / "one").mkdir()
    single = arguments(models, tmp_path / "one", "qwen3_moe-2")
    done = subprocess.run([sys.executable, "-m", "steercube", *single], cwd=ROOT, env=environment())
    assert done.returncode == 0
    require_alike(tmp_path / "mine.nc", tmp_path / "one" / "mine.nc")


def started(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "steercube", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
    )  # fmt: skip


def processes_of(running: subprocess.Popen[str], shards: Path) -> list[psutil.Process]:
    """Those that the command started, once there is a shard."""
    until = time.monotonic() + HANGS
    while not list(shards.glob("samples-*.nc")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    return psutil.Process(running.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False], ids=["early", "running"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_interrupts_the_command_ends_its_processes(
    number: int, code: int, early: bool, models: Path, tmp_path: Path
) -> None:
    """While they are being started, or when shards are made: one message, and none is left."""
    running = started(arguments(models, tmp_path, "qwen3", "--parallel", "tensor:2"))
    folder = tmp_path / "mine.shards" / "qwen3" / "honesty"
    if early:
        assert running.stdout is not None
        while "starting 2 processes" not in running.stdout.readline():
            assert running.poll() is None
        time.sleep(1)
        others = psutil.Process(running.pid).children(recursive=True)
    else:
        others = processes_of(running, folder)
        assert len(others) == 3
    running.send_signal(number)
    _, said = running.communicate(timeout=HANGS)
    assert running.returncode == code, said
    assert said.count("steercube: interrupted; finished work is kept") == 1
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(others, timeout=30)
    assert alive == []
    assert not list(folder.glob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("who", ["command", "launcher"])
def test_processes_end_with_what_started_them(who: str, models: Path, tmp_path: Path) -> None:
    """Also where it was killed, so that it could not end them."""
    running = started(arguments(models, tmp_path, "qwen3", "--parallel", "tensor:2"))
    others = processes_of(running, tmp_path / "mine.shards" / "qwen3" / "honesty")
    (launcher,) = psutil.Process(running.pid).children()
    os.kill(running.pid if who == "command" else launcher.pid, signal.SIGKILL)
    _, said = running.communicate(timeout=HANGS)
    if who == "launcher":
        assert running.returncode == 2
        assert "steercube: the launcher was ended by SIGKILL" in said
    _, alive = psutil.wait_procs(others, timeout=40)
    assert alive == []


@pytest.mark.slow
def test_a_failure_elsewhere_ends_those_who_wait(models: Path, tmp_path: Path) -> None:
    """Two launchers of one launch, as on two machines: what fails on one ends the other."""
    words = arguments(models, tmp_path, "qwen3")
    launcher = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}"),
        *("--rdzv-id", "steercube", "-m", "steercube", *words),
    ]
    node: Any = {"text": True, "cwd": ROOT, "env": environment(), "stderr": subprocess.PIPE}
    one = subprocess.Popen(launcher, stdout=subprocess.PIPE, **node)
    other = subprocess.Popen([*launcher, "--concepts", "nowhere"], stdout=subprocess.PIPE, **node)
    said = one.communicate(timeout=HANGS)[1] + other.communicate(timeout=HANGS)[1]
    assert one.returncode != 0
    assert other.returncode != 0
    assert said.count("steercube: ") == 1
    assert "nowhere" in said


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("localhost", 0))
        return int(made.getsockname()[1])


@pytest.mark.slow
def test_a_refusal_is_one_message(models: Path, tmp_path: Path) -> None:
    """Eight processes are more than llama's heads; nothing is loaded, and one of them says so."""
    words = arguments(models, tmp_path, "llama", "--parallel", "tensor:8")
    done: Any = subprocess.run(
        [sys.executable, "-m", "steercube", *words],
        capture_output=True, text=True, timeout=HANGS, cwd=ROOT, env=environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert "starting 8 processes: steercube collect" in done.stdout
    said = "8 processes cannot hold llama together: 2, 4 can"
    assert done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr
    assert "Loading weights" not in done.stderr
