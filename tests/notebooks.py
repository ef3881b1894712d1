"""Run the notebooks in docs/ and save what they show.  python tests/notebooks.py [name ...]

Progress bars and other lines on stderr are left out of what is saved.
"""

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / "docs"
LARGEST = 20_000
"""Characters of HTML that an output may have."""
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


def run(path: Path, parameters: str = "") -> Any:
    """The notebook after running every cell in its folder; `parameters` follow their own cell."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if parameters and "parameters" in cell.metadata.get("tags", []):
            cell.source += f"\n{parameters}"
    client = NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    return notebook


def main(names: list[str]) -> None:
    """Run the notebooks of these names, or all, and save them in place."""
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            notebook = run(path)
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)
                if cell.cell_type == "code":
                    cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
                    for output in cell.outputs:
                        # A tree as a page holds all its values; its text says as much.
                        if len(output.get("data", {}).get("text/html", "")) > LARGEST:
                            del output["data"]["text/html"]
            nbformat.write(notebook, path)
            print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
