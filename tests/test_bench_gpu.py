"""The GPU check runs anywhere at a very small size, says what failed, and needs no netCDF4."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bench_gpu
import bench_shape
import pytest
from builders import ROOT

SIZES = replace(
    bench_shape.TINY,
    shape=bench_shape.SMALL | {"num_hidden_layers": 4},
    n_prompts=4,
    lengths=(12, 16),
    layers=(1, 2, 3),
    generation_layers=(1, 2),
    n_generated=2,
    n_tokens=4,
    max_rows=28,
    matmul=32,
    every=2,
)


def test_every_row_is_measured_and_the_table_comes_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    assert bench_gpu.main(["--tiny", "--out", str(out)], tiny_sizes=SIZES) == 0
    table = out.read_text()
    assert capsys.readouterr().out.endswith(table)
    rows = dict(line.strip("| ").split(" | ") for line in table.splitlines()[2:])
    assert rows.keys() == bench_gpu.ROWS.keys()
    assert "FAILED" not in table
    assert "the cube is 0 nat from a direct sweep" in rows["collect and a direct sweep"]
    assert "28 rows, then 7" in rows["too little memory"]


def test_a_comparison_that_fails_is_said_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> float:
        raise ValueError("differs from the plain loop")

    monkeypatch.setattr(bench_gpu.sweeping, "check_against_plain_loop", refuse)
    some = ("device and versions", "one pass and plain loop", "bfloat16 product")
    monkeypatch.setattr(bench_gpu, "ROWS", {name: bench_gpu.ROWS[name] for name in some})
    out = tmp_path / "table.md"
    assert bench_gpu.main(["--tiny", "--out", str(out)], tiny_sizes=SIZES) == 1
    table = out.read_text()
    assert "FAILED: ValueError: differs from the plain loop" in table
    assert "TFLOP/s" in table


def test_the_arithmetic_is_that_of_the_weights_and_of_attention() -> None:
    """One block and one token: 2 operations a weight, 4 a number of the queries, and the words."""
    shape = SIZES.shape | {"num_hidden_layers": 1}
    sizes = replace(SIZES, shape=shape, n_prompts=1, lengths=(1, 1), layers=())
    bench = bench_shape.bench_of(sizes, "cpu")
    linear = [m for m in bench.decoder.blocks[0].modules() if type(m).__name__ == "Linear"]
    n_weights = sum(module.weight.numel() for module in linear)
    words = bench.decoder.model.get_output_embeddings().weight.numel()
    assert bench.flops("all") == 2 * n_weights + 4 * 4 * 16 + 2 * words
    # Two layers' cells double the rows behind them, and what is before the answer is run once.
    more = replace(SIZES, layers=(0,))
    of_all, of_answer, of_none = (
        bench_shape.bench_of(each, "cpu").flops(positions)
        for each, positions in ((more, "all"), (more, "answer"), (replace(more, layers=()), "all"))
    )
    assert of_none < of_answer < of_all


@pytest.mark.slow
def test_without_netcdf_a_bare_machine_runs_it_but_for_the_files() -> None:
    program = """
import sys
sys.modules["netCDF4"] = sys.modules["cftime"] = sys.modules["gguf"] = None
sys.modules["pooch"] = None
import bench_gpu
print(bench_gpu.collected(None))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "tests", capture_output=True, text=True
    )
    assert done.stdout.strip() == "left out: netCDF4 and cftime are not installed", done.stderr
