"""The command line: `steercube <command>`; each nox session is one of these."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from steercube import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0, or 2 with one message for input that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        print(f"steercube: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steercube: interrupted; earlier results are as they were", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steercube", description="Steering sweeps: cube, cells, conclusions."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="command")

    analyze = commands.add_parser(
        "analyze", help="every study in the data folder to tables, numbers and figures"
    )
    analyze.add_argument("study", nargs="?", help="only this one (default: all)")
    analyze.add_argument("--data", default="data", help="folder of cubes and cells")
    analyze.add_argument("--paper", default="paper", help="folder of results and claims.toml")
    analyze.set_defaults(run=_analyze)

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
    imported.add_argument("--models", default="data/models.toml", help="facts about the models")
    imported.add_argument("--out", default="data/qwen3.nc", help="cube to write")
    imported.set_defaults(run=_import_study)

    show = commands.add_parser("show", help="what a cube or a cells file holds")
    show.add_argument("file")
    show.set_defaults(run=_show)
    return parser


# Commands import what they need, so that `show` and `--help` do not wait for matplotlib.


def _analyze(options: argparse.Namespace) -> None:
    from steercube.analyze import analyze

    analyze(options.data, options.paper, study=options.study)


def _import_study(options: argparse.Namespace) -> None:
    from steercube.cube import save_cube
    from steercube.study import read_models, study_cube, study_files

    out = Path(options.out)
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"--out {out}: name a file in a folder that exists")
    models = read_models(options.models)
    found = study_files(options.folder or None)
    cube = study_cube(found, models)
    save_cube(cube, options.out)
    print(f"wrote {options.out}\n\n{cube.steercube}")


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
