"""What the tests of faults do in processes of their own: collect, import, save, and then die."""

import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, wraps
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pooch
import tiny
import xarray as xr
from builders import ROOT, make_cube, open_view
from tqdm import tqdm

from steercube import analyze as analyze_module
from steercube import netcdf, published_study
from steercube.cli import main
from steercube.collect import consolidate as consolidate_module
from steercube.collect import decoder as decoder_module
from steercube.collect import run as run_module
from steercube.collect import shards as shards_module
from steercube.collect.answers import Answers
from steercube.collect.decoder import Decoder
from steercube.collect.logits import Logits
from steercube.collect.run import shards_of, write_cube
from steercube.concepts import Concept
from steercube.cube import open_cube, save_cube
from steercube.models import read_facts
from steercube.published_study import study_cube

FORK = get_context("forkserver")
# Only what is installed: a fork server does not look for modules among the tests.
FORK.set_forkserver_preload(
    ["steercube.collect.run", "steercube.analyze", "transformers.models.llama.modeling_llama"]
)

Faults = Callable[[str], Any]
"""The fixture `fault`: a line of the ledger by its name."""

PLAN = replace(
    tiny.PLAN,
    layers="2:3",
    strengths=(-1.0, 1.0),
    controls=("random",),
    chunk=2,
    generation_layers="3",
    generation_samples=4,
    max_new_tokens=3,
)
CONCEPTS = {name: tiny.concept(name, n_pairs=4, n_items=6) for name in ("honesty", "humour")}
ONE = {"honesty": CONCEPTS["honesty"]}
SHARDS = [
    "vectors.nc",
    *(f"samples-{i:04d}.nc" for i in range(3)),
    *(f"controls-{i:04d}.nc" for i in range(3)),
    *(f"generations-{i:04d}.nc" for i in range(2)),
]
"""Of either concept."""


def collected(folder: Path, of: Decoder | None = None, **options: Any) -> Path:
    """A small collection, gone on with where there is one."""
    return tiny.collected(folder, of, **({"plan": PLAN, "concepts": ONE, "resume": True} | options))


HANGS = 600.0
"""Seconds after which nothing but a process that hangs is still running, however busy the cores."""


def start(task: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = FORK.Process(target=task, args=arguments)
    process.start()
    return process


def finish(task: Callable[..., None], *arguments: Any) -> int:
    """The exit code of the task in a process of its own."""
    process = start(task, *arguments)
    process.join(HANGS)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def commanded(
    arguments: list[str], said: Path, prepare: Callable[..., None] | None = None, *given: Any
) -> None:
    """The command line; what it prints goes to a file, its exit code is the process's."""
    with said.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if prepare is not None:
        prepare(*given)
    sys.exit(main(arguments))


def heed_interrupts() -> None:
    """As at a terminal: what a shell starts in the background inherits that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def signalled(task: Callable[..., None], number: int, at: str, k: int, *arguments: Any) -> None:
    """The task, with a signal to itself at the k-th time that it comes to `at`."""
    heed_interrupts()
    signal_at(number, at, k)
    task(*arguments)


PLACES: dict[str, tuple[Any, str]] = {
    "writing": (xr.Dataset, "to_netcdf"),
    "flushing": (os, "fsync"),
    "renaming": (Path, "replace"),
    "reading": (netcdf, "load_groups"),
    "a unit": (consolidate_module, "unit_of"),
    "merging": (consolidate_module, "merge_cubes"),
    "saving": (run_module, "save_cube"),
}


def signal_at(number: int, at: str, k: int) -> None:
    """At the k-th pass of a block, or before, amid or after the k-th call of one of PLACES."""
    calls = 0

    def is_due() -> bool:
        nonlocal calls
        calls += 1
        return calls == k

    if at == "pass":
        before = tiny.decoder_of

        def counting(*given: Any, **options: Any) -> Decoder:
            made = before(*given, **options)
            for block in made.blocks:
                block.register_forward_hook(
                    lambda *_: os.kill(os.getpid(), number) if is_due() else None
                )
            return made

        tiny.decoder_of = decoder_module.decoder_of = counting
        return
    when, _, place = at.partition(" ")
    owner, name = PLACES[place]
    original = getattr(owner, name)

    def patched(*given: Any, **options: Any) -> Any:
        due = is_due()
        if due and when == "before":
            os.kill(os.getpid(), number)
        found = original(*given, **options)
        if due and when == "amid":
            os.truncate(given[1], Path(given[1]).stat().st_size // 2)
        if due:
            os.kill(os.getpid(), number)
        return found

    setattr(owner, name, patched)


class Passes:
    """How often a block of the model was run, in all and for each shard and check."""

    def __init__(self) -> None:
        self.n = 0
        self.steps: dict[str, int] = {}
        self.decoder = tiny.decoder()
        for block in self.decoder.blocks:
            block.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.n += 1

    def needed(self, shards: set[str]) -> int:
        """For these shards, and for the check of each outcome that some of them are of.

        Controls are checked with the samples, as the same code sweeps both.
        """
        kinds = {name.split("-")[0] for name in shards} - {"vectors.nc"}
        checks = {"samples" if kind == "controls" else kind for kind in kinds}
        return sum(self.steps[name] for name in shards | checks)


def measured(folder: Path) -> Passes:
    """A whole run from the beginning, and what each of its steps takes."""
    passes, seen = Passes(), 0

    def step(name: str) -> None:
        nonlocal seen
        passes.steps[name] = passes.n - seen
        seen = passes.n

    renaming = Path.replace
    checks = {outcome: outcome.check for outcome in (Logits, Answers)}

    def renamed(path: Path, target: Path) -> Path:
        if target.name in SHARDS:
            step(target.name)
        return renaming(path, target)

    def stepping(check: Callable[..., str]) -> Callable[..., str]:
        @wraps(check)
        def checked(outcome: Any, of_vectors: xr.Dataset) -> str:
            said = check(outcome, of_vectors)
            step(outcome.kind)
            return said

        return checked

    try:
        Path.replace = renamed  # type: ignore[method-assign, assignment]
        for outcome, check in checks.items():
            outcome.check = stepping(check)  # type: ignore[method-assign]
        collected(folder, passes.decoder, resume=False)
    finally:
        Path.replace = renaming  # type: ignore[method-assign]
        for outcome, check in checks.items():
            outcome.check = check  # type: ignore[method-assign]
    return passes


def cube_of(seed: int, n_items: int = 200) -> xr.Dataset:
    return make_cube(np.random.default_rng(seed), n_items={"honesty": n_items, "humour": n_items})


def saved(path: Path, seed: int) -> None:
    save_cube(cube_of(seed), path)


def saved_in_turn(path: Path, seeds: list[int], n: int, ready: Connection) -> None:
    cubes = [cube_of(seed, 40) for seed in seeds]
    ready.send("ready")
    for i in range(n):
        save_cube(cubes[i % len(cubes)], path)


def consolidated_in_turn(out: Path, other: Path, n: int, ready: Connection) -> None:
    """The cube of `other` shards, and of its own again."""
    own = shards_of(out)
    away = own.with_name("away")
    ready.send("ready")
    for _ in range(n):
        own.rename(away)
        other.rename(own)
        write_cube(out, report=lambda line: None)
        own.rename(other)
        away.rename(own)
        write_cube(out, report=lambda line: None)


def consolidated(out: Path) -> None:
    write_cube(out, report=lambda line: None)


def paused(folder: Path, channel: Connection) -> None:
    """A collector that waits, in its third pass, for a word."""
    decoder = tiny.decoder()
    calls = 0

    def wait(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            channel.send("ready")
            channel.recv()

    decoder.blocks[0].register_forward_hook(wait)
    collected(folder, decoder)


def no_larger_than(limit: int) -> None:
    """Files of this process; more is an OSError, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def as_nobody(*first: list[str]) -> None:
    """After what needs to be imported was, since nobody may read where it lies."""
    # Else tqdm shares a lock with other processes, which nobody may remove.
    tqdm.set_lock(threading.RLock())
    for arguments in first:
        main(arguments)
    os.setgid(65534)
    os.setuid(65534)


def with_cells(cells: Path) -> None:
    """`analyze` without its reduction, whose result is new."""
    found = open_view(cells)
    analyze_module.cells_of = lambda *_, **__: (found, True)


def with_cells_and_limit(cells: Path, limit: int) -> None:
    with_cells(cells)
    no_larger_than(limit)


def opened_as_nobody(paths: list[Path], said: Path) -> None:
    """What opening files without permission says."""
    for path in paths:
        netcdf.load_groups(path)
    with said.open("w") as file:
        as_nobody()
        for path in paths:
            for opener in (open_cube, partial(shards_module.find_shard, settings={})):
                try:
                    opener(path)
                    print("read", file=file)
                except Exception as error:
                    print(type(error).__name__, error, file=file)


class CommandLine(NamedTuple):
    """A model and a concept on the disk, and the cube of a run that nothing interrupted."""

    model: Path
    concepts: Path
    whole: Path

    def arguments(self, out: Path, *more: str) -> list[str]:
        return [
            *("collect", "--model", str(self.model), "--dtype", "float32"),
            *("--models", str(ROOT / "data" / "models.toml"), "--concepts", str(self.concepts)),
            *("--layers", "2,3", "--strengths=-1,1", "--chunk", "2", "--out", str(out), *more),
        ]


def command_line(folder: Path, *, n_items: int) -> CommandLine:
    concepts = {"honesty": tiny.concept(n_pairs=4, n_items=n_items)}
    made = CommandLine(
        tiny.save("llama", folder / "tiny"),
        write_concepts(folder / "concepts", concepts),
        folder / "whole.nc",
    )
    assert main(made.arguments(made.whole)) == 0
    return made


def write_concepts(folder: Path, concepts: Mapping[str, Concept]) -> Path:
    folder.mkdir()
    for name, concept in concepts.items():
        lines = [
            {
                "id": q.id,
                "split": split,
                "question": q.prompt.split("\n")[0],
                "choices": {"A": "yes", "B": "no"},
                "matching": q.matching,
            }
            for split, questions in (("train", concept.train), ("eval", concept.evaluation))
            for q in questions
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def write_study(folder: Path) -> None:
    """A small study, laid out as the published one: one model, one concept, every kind of file."""
    n, layers = 6, (10, 11)
    prompts = [f"Question {i}?\n (A) yes\n (B) no" for i in range(n)]
    letters = ["AB"[i % 2] for i in range(n)]
    entries = [
        {
            "prompt": p,
            "matching_answer": f"({x})",
            "not_matching_answer": f"({'BA'['AB'.index(x)]})",
        }
        for p, x in zip(prompts, letters, strict=True)
    ]
    grid = [(layer, s, i) for layer in layers for s in published_study.STRENGTHS for i in range(n)]
    sweep = pd.DataFrame(
        [
            ("4B", "self_awareness", layer, s, i, f"({letters[i]})", -2.0 - s, -3.0, 1.0 - s,
             (1.0 - s) * (1 if letters[i] == "A" else -1))
            for layer, s, i in grid
        ],
        columns=published_study.SWEEP_COLUMNS,
    )  # fmt: skip
    rates = pd.DataFrame([(10, 0.5, 0.6, 0.4, 0.2, 0.9)], columns=published_study.RATE_COLUMNS)
    responses = pd.DataFrame(
        [(layer, s, i, prompts[i], f"({letters[i]}", f"({letters[i]})", True, True)
         for layer, s, i in grid],
        columns=published_study.RESPONSE_COLUMNS,
    )  # fmt: skip
    tables = {
        "results/logit_diff_sweep/self_awareness/Qwen_Qwen3_4B/sweep.csv": sweep,
        "results/layer_search/self_awareness_text_model/Qwen_Qwen3_4B/rates.csv": rates,
        "results/results_100prompt/self_awareness/Qwen3-4B/responses.csv": responses,
    }
    for path, table in tables.items():
        (folder / path).parent.mkdir(parents=True)
        table.to_csv(folder / path, index=False)
    path = "data/self_awareness/self_awareness_eval_prompts.json"
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_text(json.dumps(entries))


def imported(
    folder: Path, out: Path, said: Path, prepare: Callable[..., None] | None = None, *given: Any
) -> None:
    """`import-study` of a small study, whose files are taken for the published ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    known = {str(path.relative_to(folder)): pooch.file_hash(str(path)) for path in files}
    published_study.registry = lambda: known
    models = str(ROOT / "data" / "models.toml")
    commanded(
        ["import-study", "--from", str(folder), "--models", models, "--out", str(out)],
        said,
        prepare,
        *given,
    )


def study_of(folder: Path) -> xr.Dataset:
    """The cube of a small study, its provenance apart."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path for path in files}
    known = published_study.registry
    try:
        published_study.registry = lambda: dict.fromkeys(found, "")
        return study_cube(found, read_facts(ROOT / "data" / "models.toml"))
    finally:
        published_study.registry = known
