"""Data flows one way, and only `collect` knows torch: read from the imports themselves."""

import ast
from pathlib import Path

import pytest

from steercube import analysis

PACKAGE = Path(analysis.__file__).parents[1]
COLLECTING = {"torch", "transformers", "accelerate", "gguf"}
STAGES = [
    *("schema", "streams", "netcdf", "cube", "answers", "concepts", "models", "study", "collect"),
    *("cells", "results", "analysis", "report", "analyze", "reproduce", "cli", "__main__"),
]
"""In the order in which data flow; none imports a later one."""


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
        assert not {m for m in imported(path) if stage_of(m)}
        return
    assert own in STAGES, f"say where {own} stands in the flow of data"
    later = STAGES[STAGES.index(own) + 1 :]
    assert not {m for m in imported(path) if stage_of(m) in later}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_collect_imports_torch(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "collect":
        return
    assert not {m for m in imported(path) if m.split(".")[0] in COLLECTING}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_imports_collect(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in ("collect", "cli.py"):
        return
    assert "collect" not in {stage_of(m) for m in imported(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pingouin_is_never_imported_by_importing_steercube(path: Path) -> None:
    top_level = [
        n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))
    ]
    assert not any("pingouin" in ast.unparse(node) for node in top_level)


def test_the_reading_of_imports_would_find_torch(tmp_path: Path) -> None:
    path = tmp_path / "guilty.py"
    path.write_text("def f():\n    import torch.nn\n    from steercube.report import write\n")
    assert {"torch.nn", "steercube.report", "steercube.report.write"} <= imported(path)
