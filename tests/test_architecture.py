"""Data flows one way, and only `collect` knows torch: read from the imports themselves."""

import ast
from pathlib import Path

import pytest

from steercube import analysis

PACKAGE = Path(analysis.__file__).parents[1]
COLLECTING = {"torch", "transformers", "accelerate", "gguf"}
STAGES = [
    *("words", "schema", "numerals", "streams", "progress", "netcdf", "measures", "contract"),
    *("labels", "cube", "merging", "summary", "replacing", "from_table", "answers"),
    *(
        "concepts",
        "concept_rows",
        "responses",
        "models",
        "published_capability",
        "published_study",
        "collect",
        "cells",
    ),
    *("version_1", "contrast", "estimate"),
    *("analysis", "report", "analyze", "files", "notebook", "accessor"),
    *("reproduce", "cli", "__main__"),
]
"""In the order in which data flow; none imports a later one."""
WHEN_ASKED = {
    **{"cube": {"summary", "version_1"}, "cells": {"version_1"}},
    **{"schema": {"notebook", "accessor"}},
}
"""What is imported inside a function: to print a cube, to open a file of version 1, or for the
statistics of what one holds (`.steercube`)."""
EVERY_FUNCTION = {"collect", "concept_rows", "files", "notebook", "responses", "accessor"}
"""Where the functions of `import steercube` are."""


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def stage_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "steercube" and len(parts) > 1 and parts[1] in STAGES else None


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_stage_imports_a_later_one(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        assert {stage for m in imported(path) if (stage := stage_of(m))} == EVERY_FUNCTION
        return
    assert own in STAGES, f"say where {own} stands in the flow of data"
    later = set(STAGES[STAGES.index(own) + 1 :])
    found = {stage for m in imported(path) if (stage := stage_of(m)) in later}
    assert found == WHEN_ASKED.get(own, set())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_collect_imports_torch(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "collect":
        return
    assert not {m for m in imported(path) if m.split(".")[0] in COLLECTING}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_and_the_api_import_collect(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in ("collect", "cli.py", "__init__.py"):
        return
    assert "collect" not in {stage_of(m) for m in imported(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pingouin_is_never_imported_by_importing_steercube(path: Path) -> None:
    top_level = [
        n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))
    ]
    assert not any("pingouin" in ast.unparse(node) for node in top_level)


ONLY_IN_NUTS = {"arviz", "pymc", "pytensor"}


def looked_for(path: Path) -> set[str]:
    """Packages that a file imports, or asks for by name."""
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    asked = {
        call.args[0].value
        for call in calls
        if ast.unparse(call.func).endswith(("find_spec", "import_module", "version"))
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }
    return {name.split(".")[0] for name in imported(path) | asked}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_one_module_knows_arviz_and_pymc(path: Path) -> None:
    """Their next major versions cost that file alone."""
    if path == PACKAGE / "analysis" / "over_models" / "nuts.py":
        assert looked_for(path) >= ONLY_IN_NUTS
        return
    assert not looked_for(path) & ONLY_IN_NUTS
    attributes = [
        n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
    ]
    assert "idata" not in attributes


def test_no_test_imports_arviz_or_pymc() -> None:
    """At import ArviZ warns once a day, which fails whatever test is the first of the day."""
    tests = sorted(Path(__file__).parent.rglob("*.py"))
    assert len(tests) > 50
    assert not [
        path.name
        for path in tests
        if {name.split(".")[0] for name in imported(path)} & ONLY_IN_NUTS
    ]


def test_the_reading_of_imports_would_find_torch(tmp_path: Path) -> None:
    path = tmp_path / "guilty.py"
    path.write_text(
        "def f():\n    import torch.nn\n    from steercube.report import write\n"
        "    find_spec('pymc')\n"
    )
    assert {"torch.nn", "steercube.report", "steercube.report.write"} <= imported(path)
    assert looked_for(path) >= {"torch", "pymc"}
