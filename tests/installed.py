"""An installed steercube in an empty folder, far from any clone: `nox -s build` runs it.

    python installed.py CUBE

Analyzes the cube in data/, writes the post, shows the file; then the same with folders elsewhere.
From Python, opens the cube and its study, where torch is not installed.
"""

import pydoc
import shutil
import subprocess
import sys
from pathlib import Path

import steercube


def run(*arguments: str) -> None:
    """The installed command; whatever else it does, it must succeed."""
    print("steercube", *arguments, flush=True)
    subprocess.run([Path(sys.executable).with_name("steercube"), *arguments], check=True)


def main(cube: Path) -> None:
    """Every step of a user who has no GPU and no clone."""
    assert "site-packages" in str(steercube.__file__), f"{steercube.__file__} is not installed"
    for data, paper, options in (
        ("data", "paper", []),
        ("far/cubes", "far/results", ["--data", "far/cubes", "--paper", "far/results"]),
    ):
        Path(data).mkdir(parents=True)
        file = Path(shutil.copy(cube, data))
        run("analyze", *options)
        run("paper", *options[2:])
        run("show", str(file))
        results = Path(paper) / file.name.removesuffix(".nc")
        for name in ("post.md", "post.html", "numbers.json"):
            assert (results / name).stat().st_size > 1000, results / name
    assert sorted(path.name for path in Path().iterdir()) == ["data", "far", "paper"]
    study = steercube.open(next(Path("data").glob("*.cells.nc"))).steercube
    assert study.plot.heatmap().has_data()
    print(study.effects("cohens_d").to_string(), "", sep="\n")
    assert "sc.sweep(" in pydoc.render_doc(steercube)
    try:
        steercube.sweep()
    except ImportError as error:
        print(error)
    else:
        raise AssertionError("torch is installed here, so nothing was tried without it")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
