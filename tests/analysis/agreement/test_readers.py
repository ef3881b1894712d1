import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import make_cube, make_model, reduce_to_cells, study_of

from steercube.analysis.agreement.readers import (
    SWEEP,
    _denominators,
    corrected,
    corrected_change,
    readers,
)
from steercube.analysis.per_cell.readers import readers as count_readings
from steercube.analysis.view import Study
from steercube.cells import READERS
from steercube.measures import PUBLISHED, READ

PERFECT = np.diag([400.0, 400.0, 400.0])


def grid(match: list[float], valid: list[float], letter: list[str]) -> xr.Dataset:
    """Answers of one model at one strength, as a reader A-minded reads them, and anew."""
    dims = ("reading", "model", "concept", "strength", "sample")
    reads_a = [[float(x == "A") for x in letter]]
    shape = (2, 1, 1, 1, len(letter))
    return xr.Dataset(
        {
            "generation_match": (dims, np.reshape([*match, *reads_a[0]], shape)),
            "generation_valid": (dims, np.reshape([*valid, *np.ones(len(letter))], shape)),
        },
        coords={
            **{"reading": [READ, PUBLISHED], "model": ["m"], "concept": ["c"], "strength": [0.0]},
            "letter": (("concept", "sample"), [letter]),
            "item_valid": (("concept", "sample"), np.ones((1, len(letter)), bool)),
        },
    )


def test_a_matrix_counts_letters_and_none() -> None:
    found = count_readings(
        grid([1.0, 0.0, 1.0, np.nan], [1.0, 1.0, 1.0, 0.0], ["A", "A", "B", "B"])
    )
    counts = found.set_index(["letter", "read_as", "read_as_other"])["n"].to_dict()
    assert counts == {
        ("A", "A", "A"): 1,
        ("A", "B", "A"): 1,
        ("B", "B", "A"): 1,
        ("B", "none", "A"): 1,
    }
    assert (found["n_items"] == 4).all()


def test_items_of_other_letters_have_no_row() -> None:
    assert count_readings(grid([1.0, 1.0], [1.0, 1.0], ["A", "D"]))["n"].sum() == 1


def ends(star: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(star, [0.025, 0.5, 0.975])
    return low, middle, high


def test_a_reader_without_errors_leaves_the_change_as_it_is(rng: np.random.Generator) -> None:
    low, high = np.array([200, 600, 200]), np.array([480, 320, 200])
    _, middle, _ = ends(corrected_change(low, high, PERFECT, rng))
    assert middle == pytest.approx(0.6 - 0.25, abs=0.01)


def test_a_reader_that_says_the_same_of_every_answer_leaves_nothing(
    rng: np.random.Generator,
) -> None:
    blind = np.array([[200.0, 0, 0], [200.0, 0, 0], [0, 0, 200.0]])
    low, _, high = ends(corrected_change(np.array([90, 0, 10]), np.array([90, 0, 10]), blind, rng))
    assert high - low > 1.2


def test_a_known_misreading_is_undone(rng: np.random.Generator) -> None:
    """Half of the other answers are read as matching; the true rates are 0.3 and 0.6."""
    matrix = np.array([[3000.0, 0, 0], [1500, 1500, 0], [0, 0, 3000]])
    low, high = np.array([6500, 3500, 0]), np.array([8000, 2000, 0])
    below, middle, above = ends(corrected_change(low, high, matrix, rng))
    assert middle == pytest.approx(0.3, abs=0.03)
    assert below < 0.3 < above


def test_a_larger_matrix_leaves_less_doubt(rng: np.random.Generator) -> None:
    matrix = np.array([[30.0, 0, 0], [15, 15, 0], [0, 0, 30]])
    low, high = np.array([65, 35, 0]), np.array([80, 20, 0])
    widths = []
    for times in (1, 100):
        below, _, above = ends(corrected_change(low, high, times * matrix, rng))
        widths.append(above - below)
    assert widths[1] < widths[0]


@pytest.fixture
def study(rng: np.random.Generator) -> Study:
    cube = make_cube(rng, models=(make_model("4B"),), n_items={"honesty": 12})
    cells = reduce_to_cells(cube, n_resamples=50)
    counts = pd.DataFrame(
        {
            **{"model": "4B", "concept": "honesty", "direction": ["", "", "honesty", ""]},
            **{"reading": READ, "reading_other": PUBLISHED, "letter": ["A", "A", "A", "B"]},
            **{"read_as": ["A", "B", "A", "B"], "read_as_other": ["A", "A", "A", "B"]},
            **{"n": [30.0, 10.0, 5.0, 10.0], "n_items": [12.0, 12.0, 5.0, 12.0]},
        }
    )
    made = study_of(cells)
    return Study(made.cells, made.contrast, records={READERS: counts})


def test_shares_are_of_what_one_reader_read(study: Study) -> None:
    rows = {
        (labels["direction"], labels["statistic"], labels["read_as"]): estimate
        for labels, estimate in readers(study)
    }
    assert rows["", "read alike", ""].value == pytest.approx(40 / 50)
    assert rows["", "misread", "B"].value == pytest.approx(10 / 20)
    assert rows["", "misread", "A"].value == 0
    assert np.isnan(rows["honesty", "misread", "B"].value)


@pytest.mark.parametrize(
    ("rates", "valid_rate", "expected"),
    [
        ([0.5, 0.5, 0.9], 1.0, [20, 20, 20]),
        ([2 / 11, 1 / 3, 11 / 13], 42 / 60, [11, 18, 13]),
        ([0.123456, 0.5, 0.5], 0.9, [18, 18, 18]),
    ],
)
def test_denominators_are_those_that_make_every_rate_a_fraction(
    rates: list[float], valid_rate: float, expected: list[int]
) -> None:
    assert _denominators(np.array(rates), valid_rate, 20).tolist() == expected


def test_without_published_rates_there_is_nothing_to_correct(study: Study) -> None:
    assert corrected(study) == []


def test_published_rates_are_corrected_by_each_matrix(study: Study) -> None:
    cells = study.cells
    rate = xr.DataArray(
        np.tile([0.5, 0.5, 0.9], (1, 1, cells.sizes["layer"], 1)),
        dims=("model", "concept", "layer", "strength"),
        coords={d: cells[d].values for d in ("model", "concept", "layer")}
        | {"strength": [-1.0, 0.0, 1.0]},
    )
    known = cells.assign(
        generation_rate=rate.reindex(strength=cells["strength"].values),
        generation_valid_rate=rate.isel(strength=0, drop=True) * 0 + 1,
        generation_n_prompts=rate.isel(strength=0, layer=0, drop=True) * 0 + 20,
    )
    rows = corrected(Study(known, study.contrast, records=study.records))
    assert [labels["matrix_of"] for labels, _ in rows] == [SWEEP, "the runs without a layer"]
    for labels, estimate in rows:
        assert labels["published"] == pytest.approx(0.4)
        assert estimate.low < estimate.value < estimate.high
        assert estimate.n == 20
    assert rows[0][0]["n_matrix"] == 12
