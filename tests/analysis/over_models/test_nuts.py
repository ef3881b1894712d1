import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_effects

from steercube.analysis.over_models.items import ItemShifts
from steercube.analysis.over_models.nuts import (
    Sampled,
    draws_to_make,
    failed_gates,
    furthest_from,
    gates_text,
    packages,
    read_posterior,
    sample_cells,
    sample_items,
    save_posterior,
)
from steercube.analysis.over_models.posterior import Posterior, fit

TERM = ("contrast",)


@pytest.fixture(scope="module")
def exact() -> Posterior:
    return fit(make_effects(np.random.default_rng(4)), terms=TERM)


@pytest.fixture(scope="module")
def sampled(exact: Posterior) -> Sampled:
    """One real run, some 20 s, most of them compiling."""
    seen: list[int] = []
    found = sample_cells(exact.effects, terms=TERM, n_draws=1200, progress=seen.append)
    assert sum(seen) == draws_to_make(1200)
    return found


@pytest.mark.slow
def test_nuts_agrees_with_the_grid(exact: Posterior, sampled: Sampled) -> None:
    """Fixed seed; each of five means within 4 MCSE, false alarms 1 in 3,000."""
    assert failed_gates(sampled, exact) == []
    row = sampled.summary["contrast"]
    assert row["low"] == pytest.approx(exact.quantile("contrast", 0.025), abs=0.06)
    assert row["negative"] == pytest.approx(exact.cdf("contrast", 0.0), abs=0.04)
    assert "divergences" in gates_text(sampled, exact)


@pytest.mark.slow
def test_another_models_grid_is_noticed(exact: Posterior, sampled: Sampled) -> None:
    """The positive control: the same cells, half a unit higher."""
    other = replace(exact.effects, value=exact.effects.value + 0.5)
    problems = failed_gates(sampled, fit(other, terms=TERM))
    assert len(problems) == 1
    assert "the mean of intercept" in problems[0]
    assert furthest_from(exact, sampled)[1] < 4


def doctored(sampled: Sampled, **of_contrast: float) -> Sampled:
    kept = {"summary": sampled.summary, "diagnostics": sampled.diagnostics}
    changed = {
        name: of | {"contrast": {k: of_contrast.get(k, v) for k, v in of["contrast"].items()}}
        for name, of in kept.items()
    }
    return replace(sampled, **changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: doctored(s, r_hat=1.02), "R-hat 1.020 is not under 1.01"),
        (lambda s: doctored(s, r_hat=np.nan), "R-hat nan"),
        (lambda s: doctored(s, ess_bulk=399.0), "ess_bulk 399 is under 400"),
        (lambda s: doctored(s, ess_tail=12.0), "ess_tail 12 is under 400"),
        (lambda s: replace(s, n_divergences=1), "1 divergence"),
        (lambda s: replace(s, min_bfmi=0.1), "E-BFMI 0.10 is not over 0.2"),
        (lambda s: doctored(s, mean=3.0), "MCSE from the grid's"),
        (lambda s: doctored(s, mean=np.nan), "contrast is nan MCSE"),
        (lambda s: doctored(s, ess_bulk=np.nan), "ess_bulk nan"),
        (lambda s: replace(s, min_bfmi=np.nan), "E-BFMI nan"),
    ],
    ids=[
        "r_hat",
        "nan",
        "bulk",
        "tail",
        "divergence",
        "bfmi",
        "grid",
        "nan mean",
        "nan bulk",
        "nan bfmi",
    ],
)
@pytest.mark.slow
def test_every_gate_can_fail(exact: Posterior, sampled: Sampled, change: object, said: str) -> None:
    problems = failed_gates(change(sampled), exact)  # type: ignore[operator]
    assert any(said in problem for problem in problems)


@pytest.mark.slow
def test_the_model_of_items_finds_its_truth() -> None:
    """A short run: the residual's and the items' sd, settled by 1,200 rows, within 15%."""
    rng = np.random.default_rng(2)
    model, item = np.repeat(np.arange(6), 200), np.tile(np.arange(200), 6)
    concept = item // 50
    cell = model * 4 + concept
    x = (model >= 4) - 1 / 3
    value = 1 + 0.4 * x + 0.1 * rng.normal(size=6)[model] + 0.2 * rng.normal(size=4)[concept]
    value = value + 0.1 * rng.normal(size=24)[cell] + 0.5 * rng.normal(size=200)[item]
    value = value + 0.7 * rng.normal(size=1200)
    index = {"sd_model": model, "sd_concept": concept, "sd_cell": cell, "sd_item": item}
    shifts = ItemShifts(value, index, {"contrast": x}, n_models=6)
    summary = sample_items(shifts, terms=TERM, n_draws=150).summary
    assert summary["sd_residual"]["median"] == pytest.approx(0.7, rel=0.15)
    assert summary["sd_item"]["median"] == pytest.approx(0.5, rel=0.15)
    assert summary["contrast"]["low"] < 0.4 < summary["contrast"]["high"]


def test_equal_draws_are_equal_files(tmp_path: Path) -> None:
    """PyMC orders what it says of its draws by the hash seed, and tells the time."""
    draws = np.random.default_rng(0).normal(size=(4, 9))
    written = []
    for number, order in enumerate((("lp", "energy"), ("energy", "lp"))):
        stats = dict.fromkeys(order, draws) | {"perf_counter_diff": draws + number}
        with packages() as (_, arviz):
            idata = arviz.from_dict(posterior={"contrast": draws}, sample_stats=stats)
        idata.posterior.attrs["sampling_time"] = float(number)
        path = tmp_path / str(number) / "cells.nc"
        save_posterior(Sampled({}, {}, 0, 1.0, 9, idata), path)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    found = read_posterior(path)
    np.testing.assert_array_equal(found["posterior"]["contrast"], draws)
    assert set(found["sample_stats"].data_vars) == {"lp", "energy"}


def imported_under(home: Path | str, code: str) -> subprocess.CompletedProcess[str]:
    """What `code` does in a process with that home, where every warning is an error."""
    homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(home))
    kept = {k: v for k, v in os.environ.items() if k not in ("MPLCONFIGDIR", "PYTENSOR_FLAGS")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=kept | homes,
        capture_output=True,
        text=True,
    )


GUARDED = (
    "from steercube.analysis.over_models.nuts import packages\nwith packages(): print('imported')"
)


def test_an_empty_home_is_enough_to_import_what_sampling_needs(tmp_path: Path) -> None:
    done = imported_under(tmp_path, GUARDED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", "")


def test_without_the_guard_an_empty_home_is_not_enough(tmp_path: Path) -> None:
    """The positive control: ArviZ's notice of the day. Once it is gone, so may the guard be."""
    done = imported_under(tmp_path, "import arviz")
    assert done.returncode == 1
    assert "FutureWarning" in done.stderr


def test_a_home_that_cannot_be_written_to_is_one_message() -> None:
    """No folder can be made under a file, whoever asks, root too."""
    done = imported_under("/dev/null", GUARDED)
    assert "ValueError: PyMC cannot write its caches" in done.stderr
    assert "set HOME and XDG_CACHE_HOME" in done.stderr
