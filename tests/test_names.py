"""What a docstring, a comment or a message names is there: modules, what is in them, options."""

import argparse
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from builders import ROOT

from steercube.cli import parser

SOURCE = ROOT / "src" / "steercube"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {
    path.stem: ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    for path in FILES
    if not path.stem.startswith("__")
}
OF_OTHERS = {"--no-deps", "--query-gpu", "--format", "cube.steercube", "cells.steercube"}
"""Options of pip and of nvidia-smi; what xarray calls the summary of any cube."""


def is_there(dotted: str) -> bool:
    """Whether a name that begins with the package, or with one of its modules, leads anywhere."""
    first, *rest = dotted.split(".")
    parts = ["steercube", *rest] if first == "steercube" else [*MODULES[first].split("."), *rest]
    at = max(k for k in range(1, len(parts) + 1) if _is_module(".".join(parts[:k])))
    found = import_module(".".join(parts[:at]))
    for name in parts[at:]:
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def options(of: argparse.ArgumentParser) -> set[str]:
    found = {option for action in of._actions for option in action.option_strings}
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for command in action.choices.values() for option in options(command)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_names_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    named = re.findall(rf"`((?:steercube|{'|'.join(MODULES)})(?:\.[A-Za-z_]\w*)+)`", text)
    files = re.compile(r".*\.(nc|toml|json|jsonl|md|html|j2)")
    checked = [name for name in named if not files.fullmatch(name) and name not in OF_OTHERS]
    assert [name for name in checked if not is_there(name)] == []
    offered = options(parser()) | OF_OTHERS
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - offered == set()


def test_a_name_that_leads_nowhere_is_seen() -> None:
    assert is_there("shards.HOLDS")
    assert is_there("steercube.analysis.per_cell.estimands.cohens_d")
    assert not is_there("shards.OUTCOMES")
    assert not is_there("steercube.analysis.nowhere")
