"""Fixtures: a tiny cube, its cells, and the committed cells of the study."""

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

import filelock
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, SIX_MODELS, make_cube, open_view, reduce_to_cells, study_of

from steercube.analysis.conclusions.claims import read_ledger
from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.over_models import leave_one_out
from steercube.analysis.view import Study
from steercube.cells import open_cells

pytest_plugins = ["fault_ledger"]

SLOW = ("faults",)
"""Folders of tests that `nox -s tests` leaves to `nox -s tests-all`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of one of these folders is a slow one."""
    for item in items:
        if item.path.parent.name in SLOW:
            item.add_marker(pytest.mark.slow)


T = TypeVar("T")
Tables = dict[str, pd.DataFrame]
Once = Callable[[str, Callable[[], T]], T]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once[T]:
    """`once(name, make)`: what `make` returns, made in one process of a run and read by others."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def made(name: str, make: Callable[[], T]) -> T:
        path = folder / f"{name}.pickle"
        with filelock.FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())

    return made


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250101)


@pytest.fixture
def cube(rng: np.random.Generator) -> xr.Dataset:
    return make_cube(rng)


@pytest.fixture(scope="session")
def cells() -> xr.Dataset:
    return reduce_to_cells(make_cube(np.random.default_rng(20250101)), n_resamples=500)


@pytest.fixture(scope="session")
def small_tables(cells: xr.Dataset, once: Once[Tables]) -> Tables:
    """Every table of the tiny cube."""
    return once("small tables", lambda: conclude(study_of(cells)))


@pytest.fixture(scope="session")
def swept() -> xr.Dataset:
    """Cells with a generation sweep: its curve is the logits' for honesty, noise for humour."""
    rng = np.random.default_rng(9)
    cube = make_cube(rng, layers=tuple(range(1, 8)))
    delta = cube["logit_diff"].sel(strength=1.0) - cube["logit_diff"].sel(strength=-1.0)
    signal = delta.mean("sample") * 0.1
    noise = signal.copy(data=rng.normal(scale=0.1, size=signal.shape))
    curve = signal.where(signal["concept"] == "honesty", noise)
    baseline = 0.5 + 0.02 * rng.normal(size=signal.shape)
    rate = xr.concat(
        [(0.5 + side * curve / 2).assign_coords(strength=side) for side in (-1.0, 1.0)]
        + [signal.copy(data=baseline).assign_coords(strength=0.0)],
        dim="strength",
        coords="minimal",
        compat="override",
    ).sortby("strength")
    cube["generation_rate"] = rate.clip(0, 1).transpose("model", "concept", "layer", "strength")
    cube["generation_valid_rate"] = xr.full_like(signal, 0.9)
    cube["generation_n_prompts"] = (("model", "concept"), np.full((3, 2), 20.0))
    return reduce_to_cells(cube, n_resamples=50)


@pytest.fixture(scope="session")
def six() -> xr.Dataset:
    """Cells of six models as in the study, three concepts."""
    n_items = {"one": 20, "two": 24, "three": 22}
    cube = make_cube(np.random.default_rng(3), models=SIX_MODELS, n_items=n_items)
    return reduce_to_cells(cube, n_resamples=200)


@pytest.fixture(scope="session")
def study_cells() -> xr.Dataset:
    """The committed cells of the real study."""
    return open_view(ROOT / "data" / "qwen3.cells.nc")


@pytest.fixture(scope="session")
def study_tables(once: Once[Tables]) -> Tables:
    """Every table of the real study, its ledger included."""
    ledger = read_ledger(ROOT / "paper" / "claims.toml")
    study = Study.of(open_cells(ROOT / "data" / "qwen3.cells.nc"), ledger.contrast)
    return once("study tables", lambda: conclude(study, ledger.claims))


@pytest.fixture(scope="session")
def every_table(study_tables: Tables) -> Tables:
    """Those of the study, and of SmolLM2 what the study has none of: directions, other measures."""
    from steercube.report.post import read_table  # the browser's session has no bibtexparser

    folder = ROOT / "paper" / "smollm2" / "tables"
    return {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))} | study_tables


@pytest.fixture
def few_priors(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """One other scale a prior instead of six, where tables are made for another purpose."""
    if "committed" not in request.node.name:
        scales = {name: of[-1:] for name, of in leave_one_out.PRIOR_SCALES.items()}
        monkeypatch.setattr(leave_one_out, "PRIOR_SCALES", scales)
