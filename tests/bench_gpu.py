"""The engine on a GPU, at Qwen3-8B's shape with random weights in bfloat16: speed and agreement.

Each row of the table is one function. A row is printed as soon as it is measured, and the table
last; `--out FILE` keeps it as Markdown, written anew after every row. The exit code is 1 where a
comparison fails. On an H200 it takes less than two minutes; `--tiny` runs a small shape anywhere.
It runs from a checkout: `PYTHONPATH=src python tests/bench_gpu.py --out FILE`.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from bench_shape import ANSWER_TOKENS, FULL, STRENGTHS, TINY, Bench, Sizes, bench_of, experts_of

import steercube
from steercube import netcdf
from steercube.collect import generate as generating
from steercube.collect import sweep as sweeping
from steercube.collect.decoder import ALLOCATOR, Decoder, evaluating
from steercube.collect.hooks import Cell, steering
from steercube.collect.memory import bytes_of_row
from steercube.collect.plan import POSITIONS, Plan
from steercube.collect.readout import Prompt, readout_of
from steercube.collect.run import collect
from steercube.collect.vectors import OWN
from steercube.cube import open_cube


def where(bench: Bench) -> str:
    """Versions and device."""
    device = platform.processor() or platform.machine()
    if bench.on_gpu:
        of = torch.cuda.get_device_properties(bench.decoder.device)
        device = f"{of.name}, {of.total_memory / 2**30:.0f} GiB"
    return (
        f"{device}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, steercube {steercube.__version__}"
    )


def peak_rate(bench: Bench) -> str:
    """The rate of a bfloat16 product of square matrices, which shares below are of."""
    n = bench.sizes.matmul
    square = torch.randn(n, n, device=bench.decoder.device, dtype=torch.bfloat16)
    for _ in range(3):
        square @ square
    took, _ = bench.seconds(lambda: [square @ square for _ in range(10)])
    bench.found["peak"] = 10 * 2 * n**3 / took
    return f"{bench.found['peak'] / 1e12:.3g} TFLOP/s ({n} x {n} x {n})"


def plain_loop(bench: Bench) -> str:
    """A forward a cell, in ours' batches of like length, logits at the last position only."""
    grid, n_cells = bench.cells(bench.sizes.layers), 2 * len(bench.sizes.layers)
    timed = grid[:: bench.sizes.every]
    size = max(1, bench.sizes.max_rows // (1 + n_cells))
    cut = [bench.prompts[i : i + size] for i in range(0, len(bench.prompts), size)]
    batches = [sweeping.run_whole(bench.decoder, batch, positions="all") for batch in cut]

    @torch.inference_mode()
    def loop(cells: Sequence[Cell]) -> None:
        for cell in cells:
            for run in batches:
                with steering(bench.decoder.blocks[cell.layer], cell, run.steer):
                    sweeping.forward(bench.decoder, run, at=run.last[:, None]).log_softmax(-1)

    loop(timed[:1])
    took, _ = bench.seconds(lambda: loop(timed))
    bench.found["plain"] = took / len(timed) * n_cells
    return (
        f"{bench.found['plain']:.1f} s for {n_cells} cells x {len(bench.prompts)} prompts: "
        f"{len(timed)} cells timed, times {n_cells / len(timed):.1f}"
    )


def one_pass(bench: Bench, positions: str) -> str:
    """Ours, for all cells; the floor is the arithmetic that must be done at the measured peak."""
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    took, swept = bench.seconds(lambda: bench.sweep(positions))
    bench.found[positions] = swept.logprobs
    floor = bench.flops(positions) / bench.found["peak"]
    memory = "no GPU memory"
    if bench.on_gpu:
        bench.found[f"memory, {positions}"] = torch.cuda.max_memory_allocated()
        most = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        memory = "{:.1f} GiB at most, in {:.1f} of segments".format(*(n / 2**30 for n in most))
    return (
        f"{took:.1f} s, {bench.found['plain'] / took:.1f} times as fast as the plain loop; floor "
        f"{floor:.2g} s, {floor / took:.0%} of peak; {memory}"
    )


def checks(bench: Bench, of: str) -> str:
    """A check of a run, on the shortest and longest prompt: the largest difference allowed to pass.

    At |added| = |residual|, for both ways of steering.
    """
    few = [0, len(bench.prompts) - 1]
    prompts, answers = [bench.prompts[i] for i in few], bench.answers[few]
    cells = bench.cells([bench.sizes.layers[0], bench.sizes.layers[-1]])[::2]

    def gap(positions: str) -> float:
        if of == "logits":
            return sweeping.check_against_plain_loop(
                bench.decoder, prompts, answers, cells, positions=positions
            )
        return generating.check_generation_against_plain_loop(
            bench.decoder, prompts, cells, positions=positions
        )

    return ", ".join(f"{name} {gap(name):.2g} nat at most" for name in POSITIONS)


@torch.inference_mode()
def unembedding(bench: Bench) -> str:
    """Log-probabilities against float64 from the same last hidden state; the model's own too."""
    run = sweeping.run_whole(bench.decoder, bench.prompts[:1], positions="all")
    head, seen = bench.decoder.model.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    own = bench.decoder.model(input_ids=run.ids, logits_to_keep=1).logits[0, -1]
    hook.remove()
    hidden = seen[0][0, -1].double()
    exact = torch.cat([some.double() @ hidden for some in head.weight.split(4096)])
    ours = sweeping.forward(bench.decoder, run, at=run.last[:, None])[0, 0]
    apart = [
        float((one.double().log_softmax(-1) - exact.log_softmax(-1)).abs().max())
        for one in (ours, own)
    ]
    if not apart[0] < 1e-3:
        raise ValueError(f"ours {apart[0]:.2g} nat, and 1e-3 is allowed")
    return f"ours {apart[0]:.1g} nat at most, the model's own bfloat16 {apart[1]:.1g}"


def generation(bench: Bench) -> str:
    """Ours against `model.generate` with hooks, greedy, vectors after the user's turn."""
    sizes = bench.sizes
    prompts = bench.prompts[:: max(1, len(bench.prompts) // sizes.n_generated)][: sizes.n_generated]
    grid = bench.cells(sizes.generation_layers)
    timed = range(0, len(grid), sizes.every // 2)

    def ours(n_tokens: int = sizes.n_tokens) -> np.ndarray:
        with evaluating(bench.decoder):
            return generating.generate(
                bench.decoder, prompts, np.zeros((len(prompts), 1), int), grid, positions="answer",
                decoding=generating.Decoding(n_tokens), max_rows=sizes.max_rows,
            ).tokens  # fmt: skip

    ours(2)
    generated_plainly(bench, prompts, grid[0])
    took, tokens = bench.seconds(ours)
    plain, wanted = bench.seconds(
        lambda: [generated_plainly(bench, prompts, grid[i]) for i in timed]
    )
    scale = len(grid) / len(timed)
    same = np.mean([tokens[1 + i] == one for i, one in zip(timed, wanted, strict=True)])
    return (
        f"{took:.1f} s for {len(grid)} cells x {len(prompts)} prompts x {sizes.n_tokens} tokens; "
        f"model.generate {plain * scale:.1f} s ({len(timed)} cells timed, times {scale:.1f}), "
        f"{plain * scale / took:.1f} times as long; {same:.1%} of tokens are the same (answers "
        "part where bfloat16 ties)"
    )


@torch.inference_mode()
def generated_plainly(bench: Bench, prompts: Sequence[Prompt], cell: Cell) -> np.ndarray:
    """Tokens (prompt, position) by `model.generate` of a batch padded on the left."""
    width = max(len(prompt.ids) for prompt in prompts)
    rows = [
        [[0] * (width - len(p.ids)) + list(p.ids), [0] * (width - len(p.ids)) + [1] * len(p.ids)]
        for p in prompts
    ]
    ids, mask = torch.tensor(rows, device=bench.decoder.device).unbind(1)

    def add(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        steered = hidden.clone()
        steered[:, -ANSWER_TOKENS:] += cell.added_to(hidden)
        return steered

    hook = bench.decoder.blocks[cell.layer].register_forward_hook(add)
    said = bench.decoder.model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=bench.sizes.n_tokens,
        pad_token_id=0,
    )  # fmt: skip
    hook.remove()
    return said[:, width:].cpu().numpy()


def memory_of_rows(bench: Bench, decoder: Decoder) -> str:
    """What rows of the longest prompts take in a sweep, beside what `memory` estimates."""
    if not bench.on_gpu:
        return "no GPU memory"
    longest = bench.prompts[-4:]
    cells = [Cell(0, 1.0, torch.ones(decoder.hidden_size))] * (bench.sizes.max_rows // 16)
    n_rows, said = len(longest) * (1 + len(cells)), []
    for positions in POSITIONS:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        sweeping.sweep(
            decoder, longest, bench.answers[-4:], cells, positions=positions, max_rows=n_rows
        )
        took = (torch.cuda.max_memory_allocated() - held) / n_rows
        estimated = np.mean([
            bytes_of_row(
                decoder.model,
                len(prompt.ids),
                shared=0 if positions == "all" else prompt.answer_start,
                n_new=0,
            )
            for prompt in longest
        ])  # fmt: skip
        each = took / (2 * decoder.hidden_size * np.mean([len(p.ids) for p in longest]))
        said.append(
            f"{positions} {took / 2**20:.2f} MiB a row ({each:.1f} x positions x hidden elements), "
            f"estimated {estimated / 2**20:.2f} MiB"
        )
    return f"{n_rows} rows; {'; '.join(said)}"


def mixture(bench: Bench) -> str:
    """Qwen3-30B-A3B's blocks: the memory of rows, and the checks of a run."""
    decoder = experts_of(bench.sizes, bench.decoder.device)
    few = [0, len(bench.prompts) - 1]
    prompts, answers = [bench.prompts[i] for i in few], bench.answers[few]
    cells = [Cell(layer, 1.0, torch.ones(decoder.hidden_size)) for layer in (0, 3)]
    gaps = []
    for positions in POSITIONS:
        gap = sweeping.check_against_plain_loop(
            decoder, prompts, answers, cells, positions=positions
        )
        gaps.append(f"{positions} {gap:.2g} nat at most")
    return f"{memory_of_rows(bench, decoder)}; one pass and plain loop: {', '.join(gaps)}"


def less_memory(bench: Bench) -> str:
    """The sweep again where its rows do not fit: it halves them and finds the same."""
    before = bench.found["all"]
    with little_memory(bench):
        swept = bench.sweep("all")
    gap = sweeping.largest_gap(swept.logprobs, before)
    said = f"{bench.sizes.max_rows} rows, then {swept.max_rows}; {gap:.2g} nat apart"
    if swept.max_rows >= bench.sizes.max_rows or not gap < np.std(before) / 4:
        raise ValueError(said)
    return said


@contextmanager
def little_memory(bench: Bench) -> Iterator[None]:
    """A third of what the sweep took beside the weights; without a GPU an error that says so."""
    if bench.on_gpu:
        torch.cuda.empty_cache()
        held, device = torch.cuda.memory_allocated(), bench.decoder.device
        limit = held + (bench.found["memory, all"] - held) / 3
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def refuse(_module: Any, args: Any) -> None:
        if len(args[0]) > bench.sizes.max_rows / 3:
            raise torch.OutOfMemoryError("made up: out of memory")

    hook = bench.decoder.blocks[-1].register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def collected(bench: Bench) -> str:
    """`collect` to shards and a cube in a temporary folder, against a sweep of the same chunks."""
    if not all(map(find_spec, ("netCDF4", "cftime"))):
        return "left out: netCDF4 and cftime are not installed"
    layers, concept = [*bench.sizes.layers[:: len(bench.sizes.layers) - 1]], tiny.concept(n_items=8)
    plan = Plan(
        layers=",".join(map(str, layers)), strengths=STRENGTHS, max_new_tokens=4, chunk=4,
        outcomes=("logit", "generation"), max_rows=64, generation_samples=4,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.nc"
        took, _ = bench.seconds(
            lambda: collect(bench.decoder, {"honesty": concept}, plan, out, report=lambda _: None)
        )
        n_shards = len(list(Path(folder).rglob("*-*.nc")))
        kept = open_cube(out)["logit_diff"]["logit_diff"].sel(model="random", concept="honesty")
        vectors = netcdf.load(out.with_name("bench.vectors.nc"))["vector"]
    readout = readout_of(bench.decoder.tokenizer)
    vectors = vectors.sel(model="random", concept="honesty", direction=OWN)
    cells = [
        Cell(layer, strength, torch.from_numpy(vectors.sel(layer=layer).values))
        for layer in layers
        for strength in STRENGTHS
    ]
    # As `collect` cuts them: a shard is of items whose prompts are of like length.
    by_length = sorted(
        range(8), key=lambda i: len(readout.prompt(concept.evaluation[i].prompt).ids)
    )
    direct = []
    for items in (by_length[:4], by_length[4:]):
        chunk = [concept.evaluation[i] for i in items]
        prompts = [readout.prompt(question.prompt) for question in chunk]
        answers = np.array([[readout.token(q.matching), readout.token(q.other)] for q in chunk])
        with evaluating(bench.decoder):
            swept = sweeping.sweep(
                bench.decoder, prompts, answers, cells, positions=plan.positions, max_rows=64
            )
        direct.append(swept.logprobs[1:])
    matching, other = np.moveaxis(np.concatenate(direct, axis=1), -1, 0)
    kept = kept.sel(layer=layers, strength=list(STRENGTHS), sample=by_length)
    kept = kept.transpose("layer", "strength", "sample").values.reshape(matching.shape)
    gap = sweeping.largest_gap(kept, matching - other)
    said = f"{took:.1f} s, {n_shards} shards; the cube is {gap:.2g} nat from a direct sweep"
    if not gap < 1e-3:
        raise ValueError(said)
    return said


ROWS: dict[str, Callable[[Bench], str]] = {
    "device and versions": where,
    "bfloat16 product": peak_rate,
    "plain loop": plain_loop,
    "one pass, positions all": lambda bench: one_pass(bench, "all"),
    "one pass, positions answer": lambda bench: one_pass(bench, "answer"),
    "one pass and plain loop": lambda bench: checks(bench, "logits"),
    "generated tokens and plain loop": lambda bench: checks(bench, "generation"),
    "logits and float64": unembedding,
    "generation, positions answer": generation,
    "memory of rows": lambda bench: memory_of_rows(bench, bench.decoder),
    "mixture of experts": mixture,
    "too little memory": less_memory,
    "collect and a direct sweep": collected,
}


def main(argv: Sequence[str] | None = None, *, tiny_sizes: Sizes = TINY) -> int:
    """Measure every row, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a small shape on the CPU")
    parser.add_argument("--out", type=Path, help="file for the table, as Markdown")
    given = parser.parse_args(argv)
    if not given.tiny and not torch.cuda.is_available():
        print("no GPU here: Qwen3-8B's shape is not measured (--tiny runs a small one anywhere)")
        return 0
    os.environ.setdefault(*ALLOCATOR)
    bench = bench_of(tiny_sizes, "cpu") if given.tiny else bench_of(FULL, "cuda")
    lines, failed = ["| what | measured |", "|---|---|"], False
    for name, row in ROWS.items():
        try:
            measured = row(bench)
        except Exception as error:  # one row's failure must not lose the others
            measured, failed = f"FAILED: {type(error).__name__}: {error}", True
        print(f"{name}: {measured}", flush=True)
        lines.append(f"| {name} | {measured.replace('|', chr(92) + '|')} |")
        if given.out:
            given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
