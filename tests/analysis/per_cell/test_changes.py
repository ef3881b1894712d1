import numpy as np
import pytest
import xarray as xr
from scipy import stats
from score_interval import score_interval

from steercube.analysis.per_cell.changes import (
    MATCH,
    VALID,
    change_interval,
    changes,
    rate,
    tango,
)
from steercube.analysis.simulated.answers import PAIRED, REPEATED, Asked, _paired
from steercube.measures import GENERATION_MATCH, READ, Measure

Array = np.ndarray
PAIRS = [(5, 2, 30), (0, 0, 20), (0, 7, 40), (12, 0, 12), (30, 25, 200), (1, 1, 100)]


@pytest.mark.parametrize(("rise", "fall", "n"), PAIRS)
def test_tangos_interval_inverts_the_score_test(rise: int, fall: int, n: int) -> None:
    low, high = tango(np.array([rise]), np.array([fall]), np.array([n]), 0.95)
    assert (low[0], high[0]) == pytest.approx(score_interval(rise, fall, n), abs=2e-5)


def test_pairs_that_all_agree_have_a_known_interval() -> None:
    """Then q = 0 and the end solves n t = z^2 (1 - t)."""
    z2 = stats.norm.ppf(0.975) ** 2
    low, high = tango(np.array([0.0]), np.array([0.0]), np.array([200.0]), 0.95)
    assert high[0] == pytest.approx(z2 / (200 + z2))
    assert low[0] == pytest.approx(-high[0])


@pytest.mark.parametrize(("rise", "fall", "n"), PAIRS)
def test_zero_is_inside_where_mcnemars_test_does_not_reject(rise: int, fall: int, n: int) -> None:
    low, high = tango(np.array([rise]), np.array([fall]), np.array([n]), 0.95)
    rejects = rise + fall > 0 and (rise - fall) ** 2 / (rise + fall) > stats.chi2.ppf(0.95, 1)
    assert (low[0] > 0 or high[0] < 0) == rejects


def shares(rng: np.random.Generator, n: int, *, valid: float = 1.0) -> tuple[Array, Array]:
    return (rng.random((2, n)) < valid).astype(float), (rng.random((2, n)) < 0.6).astype(float)


def ends(valid: Array, match: Array, **options: bool) -> tuple[float, float]:
    low, high = (rate(v, m) for v, m in zip(valid, match, strict=True))
    found = change_interval(low, high, 0.95, **options)
    return float(found[0]), float(found[1])


def test_with_every_answer_valid_it_is_tangos(rng: np.random.Generator) -> None:
    valid, match = shares(rng, 50)
    rise = ((match[1] == 1) & (match[0] == 0)).sum()
    fall = ((match[1] == 0) & (match[0] == 1)).sum()
    low, high = tango(np.array(rise), np.array(fall), np.array(50), 0.95)
    assert ends(valid, match) == pytest.approx((float(low), float(high)))


@pytest.mark.parametrize("repeated", [False, True])
def test_turning_the_strengths_round_turns_the_interval_round(
    rng: np.random.Generator, repeated: bool
) -> None:
    valid, match = shares(rng, 40, valid=0.7)
    low, high = ends(valid, match, repeated=repeated)
    turned = ends(valid[::-1], match[::-1], repeated=repeated)
    assert turned == pytest.approx((-high, -low))


@pytest.mark.parametrize("repeated", [False, True])
def test_the_order_of_items_does_not_matter(rng: np.random.Generator, repeated: bool) -> None:
    valid, match = shares(rng, 40, valid=0.7)
    order = rng.permutation(40)
    assert ends(valid[:, order], match[:, order], repeated=repeated) == pytest.approx(
        ends(valid, match, repeated=repeated)
    )


def test_invalid_answers_have_no_match(rng: np.random.Generator) -> None:
    valid, match = shares(rng, 40, valid=0.6)
    hidden = np.where(valid > 0, match, np.nan)
    assert ends(valid, hidden) == ends(valid, match)


def test_nothing_valid_has_no_interval() -> None:
    assert all(np.isnan(end) for end in ends(np.zeros((2, 10)), np.ones((2, 10))))


def test_items_that_agree_with_themselves_narrow_the_interval(rng: np.random.Generator) -> None:
    valid, match = shares(rng, 100)
    alike = np.stack([match[0], np.where(rng.random(100) < 0.1, 1 - match[0], match[0])])
    widths = [np.diff(ends(valid, m, repeated=True))[0] for m in (match, alike)]
    assert widths[1] < 0.7 * widths[0]


def grid(**more: object) -> xr.Dataset:
    """Two models, two items and an invalid one, strengths -1, 0 and 1, without a layer."""
    dims = ("reading", "model", "concept", "layer", "strength", "sample")
    valid = np.ones((1, 2, 1, 1, 3, 3))
    match = np.zeros_like(valid)
    match[0, 0, 0, 0, 2] = 1.0  # the first model matches at +1 alone
    valid[0, 1, 0, 0, 0, 1] = 0.0  # the second has an invalid answer at -1
    return xr.Dataset(
        {
            "generation_match": (dims, np.where(valid > 0, match, np.nan)),
            "generation_valid": (dims, valid),
        },
        coords={
            **{"reading": [READ], "model": ["small", "large"], "concept": ["honesty"]},
            **{"layer": [-1], "strength": [-1.0, 0.0, 1.0], "sample": [0, 1, 2]},
            "item_id": (("concept", "sample"), [["a", "b", "c"]]),
            "item_valid": (("concept", "sample"), [[True, True, False]]),
        },
    )


def test_a_row_for_each_pair_of_strengths_and_outcome() -> None:
    table = changes(grid(), GENERATION_MATCH, 0.95)
    assert len(table) == 3 * 2 * 2  # pairs of strengths, outcomes, models
    assert set(table["outcome"]) == {VALID, MATCH}
    pairs = set(zip(table["low_strength"], table["high_strength"], strict=True))
    assert pairs == {(0.0, -1.0), (0.0, 1.0), (-1.0, 1.0)}
    at = table[(table["low_strength"] == -1) & (table["model"] == "small")].set_index("outcome")
    assert at.loc[MATCH, ["n_items", "n_pairs", "n_rise", "n_fall"]].tolist() == [2, 2, 2, 0]
    assert at.loc[MATCH, "change"] == 1
    assert at.loc[VALID, "change"] == 0
    large = table[(table["low_strength"] == -1) & (table["model"] == "large")].set_index("outcome")
    assert large.loc[VALID, "change"] == 0.5
    assert large.loc[MATCH, ["n_low", "n_high", "n_pairs"]].tolist() == [1, 2, 1]
    assert at.loc[MATCH, "change_of_pairs"] == 1
    assert large.loc[MATCH, "change_of_pairs"] == 0


def test_another_measure_has_one_outcome_and_all_items() -> None:
    part = grid().sel(reading=READ, drop=True).drop_vars("generation_valid")
    named = part.rename(generation_match="correct").fillna(0.0)
    table = changes(named, Measure("correct", kind="binary", compare="slope"), 0.95)
    assert set(table["outcome"]) == {MATCH}
    assert (table["n_items"] == 3).all()


def test_models_that_err_on_the_same_items_share_their_error(rng: np.random.Generator) -> None:
    n = 200
    change = rng.integers(0, 2, n)
    match = np.zeros((2, 1, 1, 2, n))
    match[..., 1, :] = change
    places = ("model", "concept", "layer", "strength", "sample")
    ds = xr.Dataset(
        {"correct": (places, match)},
        coords={
            **{"model": ["a", "b"], "concept": ["c"], "layer": [-1], "strength": [0.0, 1.0]},
            "sample": np.arange(n),
            "item_id": (("concept", "sample"), [[f"i{i:03d}" for i in range(n)]]),
            "item_valid": (("concept", "sample"), np.ones((1, n), bool)),
        },
    )
    table = changes(ds, Measure("correct", kind="binary"), 0.95)
    share = change.mean()
    np.testing.assert_allclose(table["shared_variance"], share * (1 - share) / n)


@pytest.mark.slow
@pytest.mark.parametrize("n_items", [20, 100, 200])
def test_intervals_cover(n_items: int) -> None:
    """10,000 sweeps: a share of 0.95 has an error of 0.002."""
    rng = np.random.default_rng(0)
    for alike in (0.0, 0.8):
        (_, held), *_ = _paired(Asked(n_items, 0.3, 0.6, alike), 10_000, rng)
        assert 0.935 < np.mean(held) < 0.975
    found = {
        name: np.mean(held)
        for name, held in _paired(Asked(n_items, 0.3, 0.6, 0.5, repeats=3), 4_000, rng)
    }
    assert 0.93 < found[REPEATED] < 0.975
    assert PAIRED not in found


def test_a_bootstrap_has_no_interval_where_no_item_changes(rng: np.random.Generator) -> None:
    match = np.tile(rng.integers(0, 2, 30), (2, 1)).astype(float)
    low, high = (rate(np.ones(30), one) for one in match)
    assert (low.error == high.error).all()
    below, above = change_interval(low, high, 0.95)
    assert below < 0 < above
