"""The command line: `steercube <command>`; each nox session is one of these."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steercube import __version__

if TYPE_CHECKING:
    from steercube.concepts import Concept


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0, or 2 with one message for input that cannot be used.

    130 where Ctrl-C ended it, 143 where SIGTERM did and 141 where nobody reads on, as a shell would
    say.
    """
    options = parser().parse_args(arguments)
    _print_everywhere()
    try:
        with _terminable():
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, MemoryError) as error:
        if options.debug:
            raise
        print(f"steercube: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(
            "steercube: interrupted; what was finished is kept (collect goes on with --resume)",
            file=sys.stderr,
        )
        return 143 if isinstance(stopped, Terminated) else 130
    return 0


def _print_everywhere() -> None:
    """What a terminal's encoding cannot show is printed as an escape; no result hangs on it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: as at Ctrl-C, what is half written is removed and locks are let go."""


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises; only the main thread may say so."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(
        prog="steercube", description="Steering sweeps: cube, cells, conclusions."
    )
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(required=True, metavar="command")

    analyze = commands.add_parser(
        "analyze", help="every study in the data folder to tables, numbers and figures"
    )
    analyze.add_argument("study", nargs="?", help="only this one (default: all)")
    analyze.add_argument("--data", default="data", help="folder of cubes and cells")
    analyze.add_argument("--paper", default="paper", help="folder of results and claims.toml")
    analyze.add_argument(
        "--full",
        action="store_true",
        help="also the slow fits of single items, from the cube (about 15 minutes)",
    )
    analyze.add_argument(
        "--without-nuts",
        dest="nuts",
        action="store_false",
        help="do not check the exact posterior by sampling (a minute less)",
    )
    analyze.set_defaults(run=_analyze)

    written = commands.add_parser(
        "paper", help="the post of every analysed study, as Markdown and as one HTML page"
    )
    written.add_argument("study", nargs="?", help="only this one (default: all)")
    written.add_argument("--paper", default="paper", help="folder of results and of the template")
    written.set_defaults(run=_paper)

    repeated = commands.add_parser(
        "reproduce", help="analyze and paper anew in an empty folder, compared with what is there"
    )
    repeated.add_argument("study", nargs="?", help="only this one (default: all)")
    repeated.add_argument("--data", default="data", help="folder of cubes and cells")
    repeated.add_argument("--paper", default="paper", help="folder of results")
    repeated.set_defaults(run=_reproduce)

    calibrated = commands.add_parser(
        "calibrate", help="coverage of the intervals on simulated sweeps of a study's shape"
    )
    calibrated.add_argument("study", nargs="?", default="qwen3")
    calibrated.add_argument("--data", default="data", help="folder of cells")
    calibrated.add_argument("--paper", default="paper", help="folder of results")
    calibrated.add_argument("--simulations", type=int, default=1000, help="sweeps a scenario")
    calibrated.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    calibrated.add_argument(
        "--only",
        metavar="PART",
        action="append",
        help="coverage (of the training effect), sbc (ranks in the posterior) or operating (every "
        "other statistic); may be given more than once (default: all)",
    )
    calibrated.set_defaults(run=_calibrate)

    imported = commands.add_parser(
        "import-study", help="the published study to data/qwen3.nc, fetched or from a folder"
    )
    imported.add_argument(
        "--from",
        dest="folder",
        default=os.environ.get("STEERCUBE_STUDY_DIR"),
        help="folder laid out as the study's repository (default: $STEERCUBE_STUDY_DIR, else "
        "fetch the pinned files)",
    )
    imported.add_argument("--models", default=MODELS, help="facts about the models")
    imported.add_argument("--out", default="data/qwen3.nc", help="cube to write")
    imported.set_defaults(run=_import_study)

    _add_collect(commands)

    consolidated = commands.add_parser(
        "consolidate", help="the cube of all finished shards, when no collector is running"
    )
    consolidated.add_argument("--out", required=True, help="the cube, named as when collecting")
    consolidated.set_defaults(run=_consolidate)

    checked = commands.add_parser(
        "check-concepts", help="balance, duplicates and leaks of concept files, with file and line"
    )
    checked.add_argument("source", nargs="?", default="data/concepts", help="folder or file")
    checked.set_defaults(run=_check_concepts)

    show = commands.add_parser("show", help="what a cube or a cells file holds")
    show.add_argument("file")
    show.set_defaults(run=_show)
    return top


MODELS = "data/models.toml"
"""Where entries of models are looked up, unless another file is named."""


QUICK: dict[str, Any] = {
    **{"n_pairs": 16, "n_items": 10, "layers": "0.33:1.0:5", "chunk": 10},
    **{"generation_samples": 3, "max_new_tokens": 12},
}
"""What `collect --quick` sweeps, where nothing else is asked for."""


OF_GENERATION = (
    *("generation_layers", "generation_strengths", "generation_samples"),
    *("max_new_tokens", "temperature", "repeats"),
)
"""Options that say nothing where nothing is generated."""


def _add_collect(commands: Any) -> None:
    collect = commands.add_parser(
        "collect", help="vectors and the sweep of one model, to shards and a cube"
    )
    add = collect.add_argument
    add(
        "--model", required=True, help="an entry of models.toml, a folder, or owner/name on the hub"
    )
    add("--models", default=MODELS, help="the entries")
    add("--revision", help="branch or commit of the weights (default: the entry's, else main)")
    add("--dtype", help="float32, bfloat16 or float16 (default: the entry's, else bfloat16)")
    add("--device-map", help="auto: spread over GPUs, memory and disk (default: the entry's)")
    add("--offload", help="folder for weights that fit nowhere else")
    add(
        "--concepts",
        default=None,
        help="names out of the concept set, or a set itself: study, a folder or a .jsonl file",
    )
    add("--concept-set", default="data/concepts", help="the set that names are looked up in")
    add("--out", required=True, help="the cube to write; shards lie beside it")
    add("--strengths", type=_numbers, help="as --strengths=-2,-1,0,1,2 (default: -1,0,1)")
    add("--layers", help="all, 12,18,24, 12:24, or depths (default: 0.33:1.0)")
    add("--positions", help="all (default), or answer: only those after the user's turn")
    add("--convention", help="same (default), or study: read at a block's input")
    add("--controls", type=_names, help="random,shuffled: swept beside the vectors")
    add("--pairs", dest="n_pairs", type=int, help="use only the first so many training pairs")
    add("--items", dest="n_items", type=int, help="use only the first so many evaluation items")
    add(
        "--chunk",
        type=int,
        help="items a shard (default: 20), which is what a killed run loses at most",
    )
    add("--outcomes", type=_names, help="logit (default), generation, or both with a comma")
    add("--generation-layers", help="layers to generate at (default: those of --layers)")
    add("--generation-strengths", type=_numbers, help="strengths to generate at (default: all)")
    add("--generation-samples", type=int, help="generate for the first so many items only")
    add("--max-new-tokens", type=int, help="length of a response at most (default: 32)")
    add("--temperature", type=float, help="0 (default) for the likeliest tokens")
    add("--repeats", type=int, help="responses a cell and item, at a temperature (default: 1)")
    add("--max-rows", type=int, help="rows in one pass (default: by device)")
    add("--seed", type=int, help="of the controls, the halvings and answers at a temperature")
    add("--resume", action="store_true", help="go on with the shards that are there")
    add("--quick", action="store_true", help="a first small cube, <out>-quick.nc")
    collect.set_defaults(run=_collect)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers as -1,0,1") from None
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: write each number once")
    return numbers


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


# Commands import what they need, so that `show` and `--help` do not wait for matplotlib.


def _analyze(options: argparse.Namespace) -> None:
    from steercube.analyze import analyze

    analyze(options.data, options.paper, study=options.study, full=options.full, nuts=options.nuts)


def _paper(options: argparse.Namespace) -> None:
    from steercube.report.paper import write_papers

    write_papers(options.paper, study=options.study)


def _reproduce(options: argparse.Namespace) -> None:
    from steercube.reproduce import reproduce

    reproduce(options.data, options.paper, study=options.study)


def _calibrate(options: argparse.Namespace) -> None:
    from steercube.analyze import calibrate
    from steercube.schema import name_violations, raise_if_any

    raise_if_any(name_violations("study", [options.study]), what="calibrate")
    calibrate(
        options.study,
        options.data,
        options.paper,
        n_simulations=options.simulations,
        n_workers=options.workers,
        **({"only": options.only} if options.only else {}),
    )


def _import_study(options: argparse.Namespace) -> None:
    from steercube.cube import save_cube
    from steercube.models import read_facts
    from steercube.study import study_cube, study_files

    _require_folder_of(options.out)
    models = read_facts(options.models)
    found = study_files(options.folder or None)
    cube = study_cube(found, models)
    save_cube(cube, options.out)
    print(f"wrote {options.out}\n\n{cube.steercube}")


def _collect(options: argparse.Namespace) -> None:
    from steercube.models import DTYPES, find_model, read_models

    # Only the usual place may be empty: a model needs no entry where a folder or a hub has it.
    is_there = options.models != MODELS or Path(options.models).exists()
    entries = read_models(options.models) if is_there else {}
    entry = find_model(options.model, entries)
    given = {"revision": options.revision, "dtype": options.dtype, "device_map": options.device_map}
    if options.dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype {options.dtype}: is none of {', '.join(DTYPES)}")
    weights = replace(entry.weights, **{k: v for k, v in given.items() if v is not None})
    concepts = _chosen_concepts(options)
    _require_folder_of(options.out)
    quick = QUICK if options.quick else {}
    try:
        from steercube.collect.decoder import load
        from steercube.collect.plan import Plan, layers_of
        from steercube.collect.run import collect
    except ImportError as error:
        raise ValueError(
            f"collecting needs more packages ({error}); "
            "install them with `pip install -c constraints.txt -e '.[collect]'`"
        ) from error
    asked: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(Plan)}
    plan = Plan(**quick | {name: value for name, value in asked.items() if value is not None})
    ignored = [f"--{name.replace('_', '-')}" for name in OF_GENERATION if asked[name] is not None]
    if ignored and "generation" not in plan.outcomes:
        raise ValueError(
            f"{', '.join(ignored)} without generation: add --outcomes logit,generation, or leave "
            "them out"
        )
    if entry.facts:  # before minutes of loading
        for selection in filter(None, (plan.layers, plan.generation_layers)):
            layers_of(selection, entry.facts.n_layers)
    decoder = load(replace(entry, weights=weights), offload_folder=options.offload)
    out = Path(options.out)
    if options.quick:
        out = out.with_name(f"{out.name.removesuffix('.nc')}-quick.nc")
    collect(decoder, concepts, plan, out, resume=options.resume)


def _chosen_concepts(options: argparse.Namespace) -> "dict[str, Concept]":
    """A whole set, or those of `--concept-set` that `--concepts` names."""
    from steercube.concepts import read_concepts
    from steercube.study import concept_paths, study_concepts, study_files

    def of_set(source: str) -> "dict[str, Concept]":
        if source != "study":
            return read_concepts(source)
        folder = os.environ.get("STEERCUBE_STUDY_DIR")
        return study_concepts(study_files(folder, paths=concept_paths()))

    wanted = options.concepts
    if wanted is None:
        return of_set(options.concept_set)
    if wanted == "study" or (wanted and Path(wanted).exists()):
        return of_set(wanted)
    concepts = of_set(options.concept_set)
    unknown = sorted(set(_names(wanted)) - set(concepts))
    if unknown or not _names(wanted):
        raise ValueError(
            f"--concepts {','.join(unknown) or wanted}: none of {', '.join(concepts)} "
            f"(the set {options.concept_set}), nor a set: study, a folder or a file"
        )
    return {name: concepts[name] for name in _names(wanted)}


def _require_folder_of(out: str) -> None:
    path = Path(out)
    if not path.parent.is_dir() or path.is_dir() or not path.name.endswith(".nc"):
        raise ValueError(f"--out {out}: name a .nc file in a folder that exists")
    if path.name.startswith(".") or path.name.endswith((".cells.nc", ".vectors.nc")):
        raise ValueError(
            f"--out {out}: is no name for a cube; .cells.nc and .vectors.nc are other files, and a "
            "name that begins with '.' is hidden"
        )


def _consolidate(options: argparse.Namespace) -> None:
    from steercube.collect.run import write_cube

    write_cube(Path(options.out))


def _check_concepts(options: argparse.Namespace) -> None:
    from steercube.concepts import check_concepts

    for name, facts in check_concepts(options.source).items():
        print(f"{name}: {facts}")


def _show(options: argparse.Namespace) -> None:
    from steercube.cells import check_cells, summarise_cells
    from steercube.cube import check_cube, summarise_cube
    from steercube.netcdf import load

    ds = load(options.file)
    if "estimand" in ds.dims:
        check_cells(ds, what=options.file)
        print(summarise_cells(ds))
    else:
        check_cube(ds, what=options.file)
        print(summarise_cube(ds))
