"""Seconds and peak memory of each stage on the study.  nox -s bench"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from builders import TRAINING, make_cube, make_model, open_view, reduce_to_cells

from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.over_models.cell_effects import TERMS, cell_effects
from steercube.analysis.over_models.item_fits import item_fits
from steercube.analysis.over_models.nuts import sample_cells
from steercube.analysis.over_models.posterior import fit
from steercube.analysis.view import Study
from steercube.analyze import read_ledgers, write_conclusions
from steercube.cube import open_cube

Result = TypeVar("Result")


def timed(what: str, run: Callable[[], Result]) -> Result:
    start = time.perf_counter()
    result = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:<44}{time.perf_counter() - start:8.1f} s   peak {peak:6.0f} MB")
    return result


def large_study() -> Study:
    """Forty models of two trainings, ten concepts and sixty layers, with a few resamples."""
    rng = np.random.default_rng(5)
    models = tuple(
        make_model(
            f"model {at}",
            "rl" if at % 3 == 0 else "distilled",
            n_params=1e9 * 1.16**at,
            n_layers=60 + at % 8,
            architecture="moe" if at % 4 == 1 else "dense",
        )
        for at in range(40)
    )
    n_items = {f"concept {at}": 30 + at for at in range(10)}
    cube = make_cube(rng, models=models, n_items=n_items, layers=tuple(range(60)))
    return Study(reduce_to_cells(cube, n_resamples=100), TRAINING)


def main() -> None:
    cube_path, cells_path = Path("data/qwen3.nc"), Path("data/qwen3.cells.nc")
    if cube_path.exists():
        cube = timed("open the cube", lambda: open_cube(cube_path))
        timed(
            "cells without resampling (2 resamples)", lambda: reduce_to_cells(cube, n_resamples=2)
        )
        timed("cells with 10,000 joint resamples", lambda: reduce_to_cells(cube))
    else:
        print(f"{cube_path} is absent (nox -s import-study): stage one is not measured")
    ledger = read_ledgers("paper")["qwen3"]
    cells = timed("open the cells", lambda: open_view(cells_path))

    def study() -> Study:
        """With nothing kept of what was computed before."""
        return Study(cells, ledger.contrast)

    if cube_path.exists():
        timed("single items: REML crossed, MixedLM", lambda: item_fits(cube["logit_diff"], study()))
    effects = cell_effects(study())
    timed("the exact posterior of contrast and scale", lambda: fit(effects))
    timed("NUTS on the model of cells", lambda: sample_cells(effects, terms=TERMS))
    timed("every table and the ledger", lambda: conclude(study(), ledger.claims))
    with tempfile.TemporaryDirectory() as folder:
        timed(
            "stage two whole: tables, figures, files",
            lambda: write_conclusions(
                "qwen3", study(), folder, ledger=ledger, report=lambda line: None
            ),
        )
    large = timed("a cube of 40 x 10 x 60, and its cells", large_study)
    timed("every table of it", lambda: conclude(large))


if __name__ == "__main__":
    sys.exit(main())
