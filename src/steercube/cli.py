"""The command line: `steercube <command>`; most nox sessions run one of these commands."""

import argparse
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from steercube import __version__
from steercube.models import MODELS
from steercube.progress import stage
from steercube.words import did_you_mean

if TYPE_CHECKING:
    from steercube.collect.plan import Plan
    from steercube.concepts import Concept
    from steercube.contrast import Contrast
    from steercube.measures import Measure
    from steercube.models import Entry

STARTED = "STEERCUBE_STARTED"
"""Set in the processes that `collect --parallel` starts."""
INTERNAL = 70
"""Exit code of a bug in steercube (EX_SOFTWARE of sysexits.h); 2 is for input errors."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return exit code 0, or 2 with one message for input that cannot be used.

    Other codes: 70 for an internal error, whose traceback `--debug` shows, and as in a shell 130
    after Ctrl-C, 143 after SIGTERM and 141 if the reader of stdout closed the pipe.
    """
    words = sys.argv[1:] if arguments is None else arguments
    options = parsed(words)
    options.given = list(words)
    _escape_unprintable()
    try:
        with _terminable():
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the pipe, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, MemoryError) as error:
        if options.debug:
            raise
        _say(str(error))
        return 2
    except ImportError as error:
        if options.debug:
            raise
        _say(_how_to_install(error))
        return 2
    except Exception as error:
        if options.debug:
            raise
        message = " ".join(str(error).split())
        _say(
            f"internal error: {type(error).__name__}: {message}; run it as `steercube "
            f"--debug {options.command} ...` for the traceback, and please report that"
        )
        return INTERNAL
    except KeyboardInterrupt as stopped:
        if STARTED not in os.environ:  # else the command that started this one says it
            _say("interrupted; finished work is kept (collect continues with --resume)")
        return 143 if isinstance(stopped, Terminated) else 130
    return 0


def _say(message: str) -> None:
    """Print why the command ends; among the processes of one launch, only the first to fail does.

    The others fail because of it, or in the same way.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from steercube.collect.rank import Rank

        with suppress(ValueError):  # that RANK is no rank may be what is said
            if not Rank.of_environment().first_to_fail():
                return
    print(f"steercube: {message}", file=sys.stderr)


def _escape_unprintable() -> None:
    """Print characters that the terminal's encoding lacks as escapes; results are not affected."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: as after Ctrl-C, half-written files are removed and locks released."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise Terminated on SIGTERM; signal handlers can only be set in the main thread."""

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


def _how_to_install(error: ImportError) -> str:
    """Message for a missing package, or a release that is too old, with the install command."""
    return (
        f"a package is not installed, or too old ({error}); install everything steercube can use "
        "with `pip install -c constraints.txt -e '.[collect,stats,paper]'`"
    )


class _Parser(argparse.ArgumentParser):
    """argparse's parser, but errors are one line, without the usage that lists all options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` lists what there is)\n")


LIST_BELOW_ZERO = re.compile(r"-\.?\d.*", re.DOTALL)
"""A list of numbers that begins with a negative one, which argparse takes for an option."""


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options given by the words of a command line.

    Exits with code 2 and one line for an unknown command or option, suggesting the nearest one.
    """
    words: list[str] = []
    for word in arguments:
        is_value = LIST_BELOW_ZERO.fullmatch(word) and words and words[-1].startswith("--")
        if is_value and "=" not in words[-1] and words[-1] != "--":
            words[-1] += f"={word}"
        else:
            words.append(word)
    top, commands = _parsers()
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in commands:
        top.error(f"no command is called {first!r}{did_you_mean(first, commands)}")
    options, unknown = top.parse_known_args(words)
    if unknown:
        command = commands[options.command]
        known = re.findall(r"--[a-z][\w-]*", command.format_help())
        names = [word.split("=")[0] for word in unknown if word.startswith("-")]
        errors = [f"no option is called {name}{did_you_mean(name, known)}" for name in names]
        if values := [repr(word) for word in unknown if not word.startswith("-")]:
            errors.append(f"unexpected: {', '.join(values)} (write lists without spaces: -1,0,1)")
        command.error("; ".join(errors))
    return options


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    return _parsers()[0]


def _parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of the command line, and the parser of each command by its name."""
    top = _Parser(prog="steercube", description="Steering sweeps: cube, cells, conclusions.")
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(required=True, dest="command", metavar="command")

    analyze = commands.add_parser(
        "analyze", help="tables, numbers and figures of every study in the data folder"
    )
    analyze.add_argument("study", nargs="?", help="only this one (default: all)")
    analyze.add_argument("--data", default="data", help="folder of cubes and cells")
    analyze.add_argument("--paper", default="paper", help="folder of results and claims.toml")
    _add_contrast(analyze)
    analyze.add_argument(
        "--measure", help="the measure that conclusions are about (default: logit_diff)"
    )
    analyze.add_argument(
        "--compare",
        type=_strengths,
        metavar="LOW:HIGH",
        help="strengths whose difference is the effect, such as -4:4, or slope for the slope over "
        "all strengths (default: those in the measure's record, -1:1)",
    )
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
        "reproduce", help="run analyze and paper in an empty folder; compare with the results here"
    )
    repeated.add_argument("study", nargs="?", help="only this one (default: all)")
    repeated.add_argument("--data", default="data", help="folder of cubes and cells")
    repeated.add_argument("--paper", default="paper", help="folder of results")
    repeated.set_defaults(run=_reproduce)

    calibrated = commands.add_parser(
        "calibrate", help="coverage of the intervals on simulated sweeps shaped like a study"
    )
    calibrated.add_argument("study", nargs="?", default="qwen3")
    calibrated.add_argument("--data", default="data", help="folder of cells")
    calibrated.add_argument("--paper", default="paper", help="folder of results")
    _add_contrast(calibrated)
    calibrated.add_argument("--simulations", type=int, default=1000, help="sweeps per scenario")
    calibrated.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    calibrated.add_argument(
        "--only",
        metavar="PART",
        action="append",
        help="coverage (of the training effect), sbc (ranks in the posterior), operating (every "
        "other statistic), grades or answers; may be given more than once (default: all)",
    )
    calibrated.set_defaults(run=_calibrate)

    imported = commands.add_parser(
        "import-study", help="write the published study to data/qwen3.nc; fetched, or from a folder"
    )
    imported.add_argument(
        "--from",
        dest="folder",
        default=os.environ.get("STEERCUBE_STUDY_DIR"),
        help="folder laid out as the study's repository (default: $STEERCUBE_STUDY_DIR, else "
        "fetch the pinned files)",
    )
    imported.add_argument(
        "--capability",
        action="store_true",
        help="with the runs on GSM8K, TriviaQA and other behaviours' items (60 MB more)",
    )
    imported.add_argument("--models", default=MODELS, help="facts about the models")
    imported.add_argument("--out", default="data/qwen3.nc", help="cube to write")
    imported.set_defaults(run=_import_study)

    _add_collect(commands)
    _add_add_measure(commands)
    of_responses = _add_responses(commands)

    consolidated = commands.add_parser(
        "consolidate", help="write the cube of all finished shards, if no collector is running"
    )
    consolidated.add_argument("--out", required=True, help="the cube, named as when collecting")
    consolidated.set_defaults(run=_consolidate)

    merged = commands.add_parser("merge", help="merge several cubes that agree into one")
    merged.add_argument("cubes", nargs="+", help="the cubes")
    merged.add_argument("--out", required=True, help="the cube to write; may be one of them")
    merged.set_defaults(run=_merge)

    checked = commands.add_parser(
        "check-concepts", help="report imbalance, duplicates and leaks in concept files, by line"
    )
    checked.add_argument("source", nargs="?", default="data/concepts", help="folder or file")
    checked.set_defaults(run=_check_concepts)

    show = commands.add_parser("show", help="what a cube or a cells file holds")
    show.add_argument("file")
    show.set_defaults(run=_show)
    by_name: Mapping[str, argparse.ArgumentParser] = {**commands.choices, **of_responses}
    for command in by_name.values():
        # Accept --debug after the command too, where most people write it.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return top, by_name


QUICK: dict[str, Any] = {
    **{"n_pairs": 16, "n_items": 10, "layers": "0.33:1.0:5", "chunk": 10},
    **{"generation_samples": 3, "max_new_tokens": 12},
}
"""Options that `collect --quick` sets unless they are given."""


GENERATION_OPTIONS = (
    *("generation_layers", "generation_strengths", "generation_samples"),
    *("max_new_tokens", "temperature", "repeats"),
)
"""Options that have no effect without generation."""
CONTROL_OPTIONS = ("control_layers", "control_items")
"""Options that have no effect without other directions."""


def _add_contrast(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--contrast",
        metavar="VARIABLE:LOW:HIGH",
        help="models to compare, HIGH minus LOW: a variable of the models and two of its labels, "
        "such as training:base:instruct (default: the contrast in the study's ledger)",
    )


def _strengths(text: str) -> tuple[float, float] | str:
    """Two strengths, low and high, or slope."""
    if text == "slope":
        return text
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write two strengths, low and high, as -4:4, or slope"
        ) from None
    return low, high


def _add_collect(commands: Any) -> None:
    collect = commands.add_parser(
        "collect", help="extract vectors and sweep one model; writes shards and a cube"
    )
    add = collect.add_argument
    add(
        "--model",
        required=True,
        help="an entry of models.toml, a folder, a .gguf file, or owner/name on the hub",
    )
    add("--models", default=MODELS, help="the entries")
    add("--revision", help="branch or commit of the weights (default: the entry's, else main)")
    add("--dtype", help="float32, bfloat16 or float16 (default: the entry's, else bfloat16)")
    add("--device-map", help="auto: spread over GPUs, memory and disk (default: the entry's)")
    add(
        "--parallel",
        help="auto: what suits the model and the GPUs here; tensor: all processes hold the model "
        "together, tensor:4 four of them",
    )
    add("--offload", help="folder for weights that fit neither on the GPUs nor in memory")
    add(
        "--concepts",
        default=None,
        help="names in the concept set, or a set itself: study, a folder or a .jsonl file",
    )
    add("--concept-set", default="data/concepts", help="the set that names are looked up in")
    add("--out", required=True, help="the cube to write; shards go in a folder beside it")
    add("--strengths", type=_numbers, help="as -2,-1,0,1,2 (default: -1,0,1)")
    add("--layers", help="all, 12,18,24, 12:24, or depths (default: 0.33:1.0)")
    add("--positions", help="all (default), or answer: only those after the user's turn")
    add("--convention", help="same (default), or study: read at a block's input")
    add("--controls", type=_names, help="random:19,shuffled:19,letter: directions to compare with")
    add("--control-layers", help="layers to sweep these at (default: those of --layers)")
    add("--control-items", type=int, help="sweep these on the first N items only")
    add("--directions", help="your own, to sweep beside: .npz, .safetensors, or a .vectors.nc")
    add("--pairs", dest="n_pairs", type=int, help="use only the first N training pairs")
    add("--items", dest="n_items", type=int, help="use only the first N evaluation items")
    add(
        "--chunk",
        type=int,
        help="items per shard (default: 20); a killed run loses at most one shard",
    )
    add("--outcomes", type=_names, help="logit (default), generation, or both with a comma")
    add("--generation-layers", help="layers to generate at (default: those of --layers)")
    add("--generation-strengths", type=_numbers, help="strengths to generate at (default: all)")
    add("--generation-samples", type=int, help="generate for the first N items only")
    add("--max-new-tokens", type=int, help="most tokens of a response (default: 32)")
    add("--temperature", type=float, help="0 (default) for the likeliest tokens")
    add("--repeats", type=int, help="responses per cell and item, if sampled (default: 1)")
    add("--max-rows", type=int, help="rows in one pass (default: by device)")
    add("--seed", type=int, help="for the controls, the split halves and sampled answers")
    add("--resume", action="store_true", help="continue from the existing shards")
    add("--quick", action="store_true", help="a first small cube, <out>-quick.nc")
    collect.set_defaults(run=_collect)


def _add_add_measure(commands: Any) -> None:
    command = commands.add_parser(
        "add-measure", help="make a measure of a cube from a table of values (CSV or JSONL)"
    )
    add = command.add_argument
    add(
        "table",
        help="columns model, concept, item, strength, value; optional: layer, direction, repeat, "
        "letter",
    )
    add("--name", required=True, help="the measure, such as judge_score")
    add("--to", metavar="CUBE", help="the cube that has the models and items (default: none)")
    add("--out", required=True, help="the cube to write")
    add("--models", default=MODELS, help="facts of the models, where there is no --to")
    _add_record(command)
    command.set_defaults(run=_add_measure)


def _add_record(command: argparse.ArgumentParser) -> None:
    """The options that are the record of a measure."""
    add = command.add_argument
    add("--kind", help="continuous (default), or binary: 0 or 1, or a share of repeats")
    add("--units", help="of the values (default: 1)")
    add("--words", help="what is measured, for a sentence")
    add("--toward", help="what a larger value means")
    add("--layer-by", help="the measure whose effect selects the layer (default: its own)")
    add("--compare", type=_strengths, metavar="LOW:HIGH", help="as of analyze (default: -1:1)")


def _add_responses(commands: Any) -> dict[str, argparse.ArgumentParser]:
    """The commands on responses, by their two words."""
    both = commands.add_parser(
        "responses", help="responses of a cube to a file for a judge, and scores back as a measure"
    ).add_subparsers(required=True, dest="command", metavar="export|import")
    export = both.add_parser("export", help="write every response to a JSONL file, one a line")
    export.add_argument("cube")
    export.add_argument("--out", required=True, help="the .jsonl file to write")
    export.add_argument(
        "--blind", action="store_true", help="without labels, in an order that says nothing"
    )
    export.set_defaults(run=_export_responses, command="responses export")

    scored = both.add_parser("import", help="make scores of the responses a measure of the cube")
    add = scored.add_argument
    add("scores", help="a JSONL file with key, text_sha256 or text, and value (null: no score)")
    add("--name", required=True, help="the measure, such as judge_score")
    add("--to", metavar="CUBE", required=True, help="the cube that the responses are of")
    add("--out", required=True, help="the cube to write")
    add("--column", default="value", help="the one that holds the score (default: value)")
    _add_record(scored)
    scored.set_defaults(run=_import_scores, command="responses import")
    return {"responses export": export, "responses import": scored}


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


# Commands import what they need, so that `show` and `--help` need not import matplotlib.


def _analyze(options: argparse.Namespace) -> None:
    from steercube.analyze import analyze

    analyze(
        options.data,
        options.paper,
        study=options.study,
        contrast=_contrast(options),
        measure=options.measure,
        compare=options.compare,
        full=options.full,
        nuts=options.nuts,
    )


def _contrast(options: argparse.Namespace) -> "Contrast | None":
    from steercube.contrast import parse_contrast

    return None if options.contrast is None else parse_contrast(options.contrast)


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
        contrast=_contrast(options),
        n_simulations=options.simulations,
        n_workers=options.workers,
        **({"only": options.only} if options.only else {}),
    )


def _import_study(options: argparse.Namespace) -> None:
    from steercube.cube import save_cube
    from steercube.models import read_facts
    from steercube.published_study import needed, study_cube, study_files
    from steercube.replacing import require_no_loss

    _require_folder_of(options.out)
    models = read_facts(options.models)
    wanted = needed(capability=options.capability)
    paths = study_files(options.folder or None, paths=wanted)
    cube = study_cube(paths, models)
    require_no_loss(Path(options.out), cube)
    save_cube(cube, options.out)
    print(f"wrote {options.out}\n\n{cube}")


def _collect(options: argparse.Namespace) -> None:
    entry = _chosen_model(options)
    concepts = _chosen_concepts(options)
    _require_folder_of(options.out)
    try:
        from steercube.collect.decoder import load
        from steercube.collect.plan import layers_of
        from steercube.collect.rank import Rank, end_with_parent
        from steercube.collect.run import collect
    except ImportError as error:
        raise ValueError(
            f"collecting needs more packages ({error}); "
            "install them with `pip install -c constraints.txt -e '.[collect]'`"
        ) from error
    plan = _plan(options)
    if entry.facts:  # before minutes of loading
        for selection in filter(None, (plan.layers, plan.generation_layers, plan.control_layers)):
            layers_of(selection, entry.facts.n_layers)
    if options.parallel and "RANK" not in os.environ:
        n_processes, parallel, device_map = _processes(options, entry)
        if n_processes > 1:
            _start(n_processes, parallel, options.given)
        options.parallel = None
        entry = replace(entry, weights=replace(entry.weights, device_map=device_map))
    rank = Rank.of_environment(_group_size(options))
    if rank.count > 1:
        end_with_parent()
    leads = rank.leads
    if leads:
        for line in _warnings(plan, concepts, n_answered=options.generation_samples):
            print(line)
        print(f"loading {entry.name} ({entry.weights.location}, {entry.weights.dtype})", flush=True)
    out = Path(options.out)
    if options.quick:
        out = out.with_name(f"{out.name.removesuffix('.nc')}-quick.nc")
    with rank.together():
        with stage(f"loading {entry.name}", shown=leads):
            decoder = load(entry, offload_folder=options.offload, rank=rank)
        collect(decoder, concepts, plan, out, directions=options.directions, resume=options.resume)


def _group_size(options: argparse.Namespace) -> int | None:
    """How many processes hold the model together, by `--parallel`; None for all of a launch."""
    if options.parallel is None:
        return 1
    if options.parallel == "auto":
        raise ValueError(
            "--parallel auto starts the processes itself: leave out the launcher, or give "
            "--parallel tensor"
        )
    kind, _, size = options.parallel.partition(":")
    if kind != "tensor" or (size and not (size.isdecimal() and int(size) > 1)):
        raise ValueError(f"--parallel {options.parallel}: write auto, tensor or tensor:4")
    return int(size) if size else None


def _start(n_processes: int, parallel: str, words: Sequence[str]) -> NoReturn:
    """Run this command in `n_processes` processes, and exit as they do."""
    from steercube.collect.launch import start

    # An entry's own device map would spread the model of every process over all GPUs.
    spread = ["--parallel", parallel] if parallel else ["--device-map", ""]
    words = [*_without(words, "--parallel"), *spread]
    print(f"starting {n_processes} processes: steercube {shlex.join(words)}", flush=True)
    raise SystemExit(start(n_processes, words, {STARTED: "1"}))


def _without(words: Sequence[str], option: str) -> list[str]:
    """The words of a command line without an option and its value."""
    kept, skip = [], False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = word == option
    return kept


def _processes(options: argparse.Namespace, entry: "Entry") -> tuple[int, str, str]:
    """How many processes to start on this machine, their `--parallel`, and their device map."""
    from steercube.collect.launch import choose, gpus

    if options.parallel != "auto":
        size, n_gpus = _group_size(options) or 0, gpus()[0]
        n_processes = n_gpus // size * size if size else n_gpus
        if n_gpus and n_processes < 2:
            raise ValueError(
                f"--parallel {options.parallel}: a group needs {size or 'at least 2'} GPUs, and "
                f"there are {n_gpus} here"
            )
        return n_processes or size or 2, options.parallel, ""
    way = choose(entry, report=print)
    if way is None:
        return 1, "", entry.weights.device_map
    if way.size == 0:
        return 1, "", "auto"
    return way.size * way.n_groups, f"tensor:{way.size}" if way.size > 1 else "", ""


def _chosen_model(options: argparse.Namespace) -> "Entry":
    """The entry that `--model` names, with the weights' options applied."""
    from steercube.models import DTYPES, entries_in, find_model

    entry = find_model(options.model, entries_in(options.models), where=options.models)
    if options.dtype not in (None, *DTYPES):
        raise ValueError(
            f"--dtype {options.dtype}: is none of {', '.join(DTYPES)}"
            f"{did_you_mean(options.dtype, DTYPES)}"
        )
    device_map = options.device_map
    if options.parallel is not None:
        if device_map:
            raise ValueError("--device-map and --parallel both spread the model: give one of them")
        device_map = ""
    given = {"revision": options.revision, "dtype": options.dtype, "device_map": device_map}
    given = {name: value for name, value in given.items() if value is not None}
    return replace(entry, weights=replace(entry.weights, **given))


def _plan(options: argparse.Namespace) -> "Plan":
    """The plan of the sweep: options that were given, then those of `--quick`, then defaults."""
    from steercube.collect.plan import Plan

    given: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(Plan)}
    given = {name: value for name, value in given.items() if value is not None}
    plan = Plan(**(QUICK if options.quick else {}) | given)
    ignored = [f"--{name.replace('_', '-')}" for name in GENERATION_OPTIONS if name in given]
    if ignored and "generation" not in plan.outcomes:
        raise ValueError(
            f"{', '.join(ignored)} without generation: add --outcomes logit,generation, or leave "
            "them out"
        )
    for_controls = [f"--{n.replace('_', '-')}" for n in CONTROL_OPTIONS if n in given]
    if for_controls and not plan.controls and not options.directions:
        raise ValueError(
            f"{', '.join(for_controls)} without --controls or --directions: add one of these, or "
            "leave them out"
        )
    return plan


def _warnings(
    plan: "Plan", concepts: "Mapping[str, Concept]", *, n_answered: int | None
) -> Iterator[str]:
    """A line for everything that the analysis of a valid collection will lack.

    `n_answered` is the number of items to generate answers for, if it was given.
    """
    from steercube.measures import Measure

    swept = {"--strengths": plan.strengths}
    if "generation" in plan.outcomes:
        swept["--generation-strengths"] = plan.generated
    if "logit" not in plan.outcomes:
        yield (
            "warning: --outcomes without logit: `steercube analyze` computes effects and selects "
            "layers from logits, so it will report no effects for this cube"
        )
    for option, strengths in swept.items():
        if lacking := [f"{s:+g}" for s in Measure.compare if s not in strengths]:
            low, high = min(strengths), max(strengths)
            yield (
                f"warning: {option} without {' and '.join(lacking)}: `steercube analyze` compares "
                f"+1 with -1 unless told to compare others, such as --compare {low:g}:{high:g}"
            )
    for concept in concepts.values():
        yield from _concept_warnings(concept, plan, n_answered)


def _concept_warnings(whole: "Concept", plan: "Plan", n_answered: int | None) -> Iterator[str]:
    """Warnings for one concept: fewer questions than requested, too few, or all of one letter."""
    from steercube.contract import MIN_ITEMS

    concept = whole.cut_to(n_pairs=plan.n_pairs, n_items=plan.n_items)
    for option, what, given, there in (
        ("--pairs", "pairs", plan.n_pairs, whole.train),
        ("--items", "items", plan.n_items, whole.evaluation),
        ("--generation-samples", "items to answer", n_answered, concept.evaluation),
    ):
        if given and given > len(there):
            yield f"{concept.name}: has only {len(there)} {what} ({option} {given})"
    n_items = len(concept.evaluation)
    if n_items < MIN_ITEMS:
        yield (
            f"warning: {concept.name}: {n_items} items are too few; `steercube analyze` reports no "
            f"effect for fewer than {MIN_ITEMS}"
        )
    elif n_answered is not None and n_answered < MIN_ITEMS:
        yield (
            f"warning: {concept.name}: answers to {n_answered} items are too few; `steercube "
            f"analyze` compares them with logits only for {MIN_ITEMS} or more"
        )
    for what, questions, consequence in (
        ("pairs", concept.train, "the vector is partly that letter's direction"),
        ("items", concept.evaluation, "a push towards that letter looks like an effect"),
    ):
        if len(letters := {question.matching for question in questions}) == 1:
            yield (
                f"warning: {concept.name}: the matching answer of all {len(questions)} {what} is "
                f"{letters.pop()}, so that {consequence}; balance them (`steercube check-concepts`)"
            )


def _chosen_concepts(options: argparse.Namespace) -> "dict[str, Concept]":
    """A whole set of concepts, or the concepts of `--concept-set` that `--concepts` names."""
    from steercube.concepts import read_concepts
    from steercube.published_study import concept_paths, study_concepts, study_files

    def read_set(source: str) -> "dict[str, Concept]":
        if source != "study":
            return read_concepts(source)
        folder = os.environ.get("STEERCUBE_STUDY_DIR")
        return study_concepts(study_files(folder, paths=concept_paths()))

    wanted = options.concepts
    if wanted is None:
        return read_set(options.concept_set)
    if wanted == "study" or (wanted and Path(wanted).exists()):
        return read_set(wanted)
    if "/" in wanted or wanted.endswith(".jsonl"):
        return read_concepts(wanted)  # raises an error that it does not exist
    concepts = read_set(options.concept_set)
    unknown = sorted(set(_names(wanted)) - set(concepts))
    if unknown or not _names(wanted):
        raise ValueError(
            f"--concepts {','.join(unknown) or wanted}: none of {', '.join(concepts)} "
            f"(the set {options.concept_set}), nor a set: study, a folder or a file"
            f"{did_you_mean((unknown or [wanted])[0], ['study', *concepts])}"
        )
    return {name: concepts[name] for name in _names(wanted)}


def _require_folder_of(out: str) -> None:
    path = Path(out)
    if not path.parent.is_dir() or path.is_dir() or not path.name.endswith(".nc"):
        raise ValueError(f"--out {out}: name a .nc file in a folder that exists")
    if path.name.startswith(".") or path.name.endswith((".cells.nc", ".vectors.nc")):
        raise ValueError(
            f"--out {out}: cannot name a cube: .cells.nc and .vectors.nc are used for other files, "
            "and names that begin with '.' are hidden"
        )


def _add_measure(options: argparse.Namespace) -> None:
    from steercube.cube import open_cube, save_cube
    from steercube.from_table import measure_cube, read_rows
    from steercube.models import read_facts
    from steercube.replacing import require_no_loss

    _require_folder_of(options.out)
    measure = _measure(options)
    beside = open_cube(options.to) if options.to else None
    models = {} if beside else read_facts(options.models)
    rows = read_rows(options.table)
    cube = measure_cube(rows, measure, beside=beside, models=models, source=options.table)
    require_no_loss(Path(options.out), cube, measure=measure.name)
    save_cube(cube, options.out)
    print(f"wrote {options.out}\n\n{cube}")


def _measure(options: argparse.Namespace) -> "Measure":
    """The record of a measure that the options give."""
    from steercube.measures import Measure
    from steercube.schema import name_violations, raise_if_any

    raise_if_any(name_violations("measure", [options.name]), what="--name")
    record = ("kind", "units", "words", "toward", "layer_by", "compare")
    given = {name: getattr(options, name) for name in record}
    return Measure(options.name, **{k: v for k, v in given.items() if v is not None})


def _export_responses(options: argparse.Namespace) -> None:
    from steercube.cube import open_cube
    from steercube.responses import export_responses

    n = export_responses(open_cube(options.cube), options.out, blind=options.blind)
    print(f"wrote {options.out}: {n:,} responses")


def _import_scores(options: argparse.Namespace) -> None:
    from steercube.cube import open_cube, save_cube
    from steercube.replacing import require_no_loss
    from steercube.responses import import_scores

    _require_folder_of(options.out)
    measure, beside = _measure(options), open_cube(options.to)
    cube = import_scores(beside, options.scores, measure, column=options.column)
    require_no_loss(Path(options.out), cube, measure=measure.name)
    save_cube(cube, options.out)
    print(f"wrote {options.out}\n\n{cube}")


def _consolidate(options: argparse.Namespace) -> None:
    from steercube.collect.run import write_cube

    _require_folder_of(options.out)
    write_cube(Path(options.out))


def _merge(options: argparse.Namespace) -> None:
    from steercube.replacing import merge_files

    _require_folder_of(options.out)
    merge_files(options.cubes, options.out)


def _check_concepts(options: argparse.Namespace) -> None:
    from steercube.concepts import check_concepts

    for name, facts in check_concepts(options.source).items():
        print(f"{name}: {facts}")


def _show(options: argparse.Namespace) -> None:
    from steercube.files import open as open_file

    print(open_file(options.file))
