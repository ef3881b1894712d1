import itertools

import numpy as np
import pytest
import xarray as xr
from builders import ROOT, make_cube, open_view, reduce_to_cells, study_of
from scipy import stats

from steercube.analysis.conclusions.effects import steering
from steercube.analysis.conclusions.multiplicity import holm
from steercube.analysis.per_cell.estimands import Samples, content_shift
from steercube.analysis.per_cell.steers import (
    N_FLIPS,
    content_t,
    sign_flip_test,
    sign_flips,
    without_letter_shift,
)
from steercube.analysis.simulated.steering import Steered, draw
from steercube.contract import STATUS
from steercube.streams import stream

STRENGTHS = np.array([-1.0, 1.0])


def samples_of(shift: np.ndarray, letter: str) -> Samples:
    return Samples(np.stack([-shift / 2, shift / 2], axis=1), STRENGTHS, np.array(list(letter)))


def own_t(samples: Samples) -> np.ndarray:
    """The statistic of each layer by the estimand itself."""
    value, se = content_shift(samples, np.ones(len(samples.letter)))
    return value / se


def test_the_statistic_is_the_estimand_over_its_error(rng: np.random.Generator) -> None:
    letter = "AB" * 8 + "A" * 5
    shift = rng.normal(size=(4, 21)) + 0.3
    flips = np.concatenate([np.ones((1, 21)), rng.choice([-1.0, 1.0], (20, 21))])
    found = content_t(shift, np.array(list(letter)), flips)
    for row, signs in zip(found, flips, strict=True):
        np.testing.assert_allclose(row, own_t(samples_of(shift * signs, letter)))


@pytest.mark.parametrize("letter", ["AB" * 6, "AAAAAAABBBBB"], ids=["balanced", "not"])
def test_few_items_have_the_p_of_every_assignment_of_signs(
    letter: str, rng: np.random.Generator
) -> None:
    """By a loop over all 4,096, with the letters' part fitted by numpy's least squares."""
    sign = np.where(np.array(list(letter)) == "A", 1.0, -1.0)
    shift = rng.normal(size=(3, 12)) + 0.4 + 0.8 * sign
    fitted = np.linalg.lstsq(sign[:, None], shift.T, rcond=None)[0]
    rest = shift - (sign[:, None] @ fitted).T
    observed = own_t(samples_of(shift, letter))
    largest, smallest = [], []
    for signs in itertools.product([1.0, -1.0], repeat=12):
        t = own_t(samples_of(rest * np.array(signs), letter))
        largest.append(t.max())
        smallest.append(t.min())
    found = sign_flip_test(samples_of(shift, letter), rng)
    assert found.p == pytest.approx(np.mean(np.array(largest) >= observed.max() - 1e-9))
    assert found.p_other_way == pytest.approx(np.mean(np.array(smallest) <= observed.min() + 1e-9))
    assert 1 / 4096 <= found.p < 1


def test_one_layer_has_scipys_p(rng: np.random.Generator) -> None:
    """Of 20,000 random assignments each, so that either p has a Monte Carlo error of 0.2%."""
    letter = "AB" * 15
    noise = rng.normal(size=(1, 30))
    samples = samples_of(noise - noise.mean() + 0.25, letter)
    rest = without_letter_shift(samples.shift, samples.letter)[0]

    def t(y: np.ndarray, axis: int) -> np.ndarray:
        a, b = y[..., ::2], y[..., 1::2]
        variance = (a.var(axis=-1) / 15 + b.var(axis=-1) / 15) * 30 / 28
        return (a.mean(axis=-1) + b.mean(axis=-1)) / np.sqrt(variance)

    expected = stats.permutation_test(
        (rest,), t, permutation_type="samples", vectorized=True, n_resamples=20_000,
        alternative="greater", rng=rng,
    )  # fmt: skip
    found = sign_flip_test(samples, rng)
    assert 0.02 < found.p < 0.5
    assert found.p == pytest.approx(expected.pvalue, abs=0.012)


def test_many_layers_cost_what_they_are_worth(rng: np.random.Generator) -> None:
    """The same layer many times is one layer; as many independent ones are Bonferroni's, nearly."""
    letter = "AB" * 20
    shift = rng.normal(size=(20, 40))
    shift[0] += 0.4
    one = sign_flip_test(samples_of(shift[:1], letter), stream("a")).p
    same = sign_flip_test(samples_of(np.repeat(shift[:1], 20, axis=0), letter), stream("a")).p
    many = sign_flip_test(samples_of(shift, letter), stream("a")).p
    assert same == one
    assert many == pytest.approx(1 - (1 - one) ** 20, rel=0.25)


def test_a_vector_that_only_favours_a_letter_does_not_steer(rng: np.random.Generator) -> None:
    """And one that steers does, the more so where the letter's part is taken off."""
    letter = "AB" * 20
    sign = np.where(np.array(list(letter)) == "A", 1.0, -1.0)
    noise = rng.normal(size=(5, 40))
    of_letter = samples_of(noise + 5 * sign, letter)
    assert sign_flip_test(of_letter, stream("a")) == pytest.approx(
        sign_flip_test(samples_of(noise, letter), stream("a"))
    )
    assert sign_flip_test(of_letter, stream("a")).p > 0.1
    assert sign_flip_test(samples_of(noise + 5 * sign + 1, letter), stream("a")).p < 0.001


def test_the_other_way_is_the_mirror_image(rng: np.random.Generator) -> None:
    letter = "AB" * 20
    shift = rng.normal(size=(5, 40)) - 0.6
    one = sign_flip_test(samples_of(shift, letter), stream("a"))
    two = sign_flip_test(samples_of(-shift, letter), stream("a"))
    assert one.p_other_way == two.p < 0.001
    assert one.p == two.p_other_way > 0.9


def test_signs_begin_with_the_sample_and_are_all_of_them_where_they_can_be() -> None:
    every = sign_flips(8, 256, stream("a"))
    assert (every[0] == 1).all()
    assert len(np.unique(every, axis=0)) == len(every) == 256
    drawn = sign_flips(40, N_FLIPS, stream("a"))
    assert drawn.shape == (N_FLIPS + 1, 40)
    assert (drawn[0] == 1).all()
    assert drawn[1:].mean() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("letter", "tested"), [("A" * 16 + "BBBB", False), ("A" * 15 + "BBBBB", True)]
)
def test_too_few_of_a_letter_are_not_tested(
    letter: str, tested: bool, rng: np.random.Generator
) -> None:
    found = sign_flip_test(samples_of(rng.normal(size=(2, 20)) + 1, letter), rng)
    assert np.isfinite(found.p) == np.isfinite(found.p_other_way) == tested


def test_items_that_do_not_move_do_not_steer(rng: np.random.Generator) -> None:
    """Nor does the absence of any spread end in a division; the same shift of all does steer."""
    still = sign_flip_test(samples_of(np.zeros((2, 20)), "AB" * 10), rng)
    assert still == (1.0, 1.0)
    alike = sign_flip_test(samples_of(np.ones((2, 20)), "AB" * 10), rng)
    assert alike.p < 0.001


def test_holm_is_that_of_statsmodels(rng: np.random.Generator) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = rng.uniform(size=17) ** 3
    expected = multitest.multipletests(p, method="holm")[1]
    np.testing.assert_allclose(holm(p), expected)
    with_gap = np.insert(p, 4, np.nan)
    np.testing.assert_allclose(np.delete(holm(with_gap), 4), expected)
    assert np.isnan(holm(with_gap)[4])


def test_cells_hold_the_test_of_their_samples(cube: xr.Dataset, cells: xr.Dataset) -> None:
    seed = cells.attrs["seed"]
    at = {"model": "middle", "concept": "humour"}
    run = cube.sel(at).transpose("layer", "strength", "sample")
    samples = Samples(
        run["logit_diff"].values.astype(float), cube["strength"].values, run["letter"].values
    )
    expected = sign_flip_test(samples, stream("signs of middle on humour", seed=seed))
    assert cells["steers_p"].sel(at) == expected.p
    assert cells["steers_other_way_p"].sel(at) == expected.p_other_way


def test_pairs_are_corrected_for_their_number(cells: xr.Dataset) -> None:
    p = [[0.001, 0.04], [0.009, 0.02], [np.nan, 0.012]]
    told = steering(study_of(cells.assign(steers_p=(("model", "concept"), p))))
    by_model = told.loc[["small", "middle", "large"]]
    corrected = by_model["p_steers_holm"].to_numpy()
    np.testing.assert_allclose(corrected, [0.005, 0.04, 0.036, 0.04, np.nan, 0.036])
    assert by_model["steers"].tolist() == ["yes", "yes", "yes", "yes", "unknown", "yes"]
    borderline = cells.assign(steers_p=(("model", "concept"), np.full((3, 2), 0.04)))
    weak = steering(study_of(borderline))
    assert set(weak["steers"]) == {"no"}
    assert "of a letter" in by_model["steers_reason"].iloc[4]


def test_cells_of_before_the_test_say_unknown() -> None:
    """Neither no nor an error, and what to do."""
    old = steering(study_of(open_view(ROOT / "tests" / "old" / "version-1.cells.nc")))
    assert set(old["steers"]) == set(old["steers_other_way"]) == {"unknown"}
    assert old["p_steers"].isna().all()
    assert old["steers_reason"].str.contains("make them again from the cube").all()


def test_what_a_model_never_ran_is_no_pair(rng: np.random.Generator) -> None:
    cube = make_cube(rng)
    for name in ("logit_diff", "logprob_matching", "logprob_other"):
        cube[name].loc[{"model": "small", "concept": "humour"}] = np.nan
    cube["cell_status"].loc[{"model": "small", "concept": "humour"}] = STATUS["not_run"]
    told = steering(study_of(reduce_to_cells(cube, n_resamples=20)))
    assert len(told) == 5
    assert ("small", "humour") not in told.index


def rejections(scenario: Steered, n: int, n_layers: int = 20) -> float:
    rng = stream(f"rejections in {scenario}")
    p = [sign_flip_test(draw(scenario, n_layers, rng), rng, n_flips=400).p for _ in range(n)]
    return float(np.mean(np.array(p) <= 0.05))


UNSTEERED = [
    Steered("plain"),
    Steered("a letter", letter=3.0, neighbours=0.5),
    Steered("letters in unequal numbers", letter=2.0, share_of_a=0.75),
    Steered("long tails", long_tails=True),
    Steered("few", n_items=20, letter=2.0),
    Steered("few, in unequal numbers", n_items=20, share_of_a=0.75, long_tails=True),
    Steered("many", n_items=100, letter=1.0, long_tails=True),
]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", UNSTEERED, ids=lambda s: s.name)
def test_no_more_than_five_in_a_hundred_unsteered_pairs_steer(scenario: Steered) -> None:
    """3,000 pairs each; 0.05 and three Monte Carlo errors."""
    assert rejections(scenario, 3000) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)


@pytest.mark.parametrize("scenario", UNSTEERED[1:2], ids=lambda s: s.name)
def test_a_letter_that_is_favoured_makes_no_false_alarms(scenario: Steered) -> None:
    """300 pairs; signs drawn for the shifts as they are would say that 12 in 100 steer."""
    assert rejections(scenario, 300) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    raw = np.mean([_p_with_the_letter_left_in(scenario, number) for number in range(300)])
    assert raw > 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def _p_with_the_letter_left_in(scenario: Steered, number: int) -> bool:
    rng = stream(f"letters left in, {number}")
    samples = draw(scenario, 20, rng)
    flips = sign_flips(scenario.n_items, 400, rng).astype(float)
    largest = content_t(samples.shift, samples.letter, flips).max(axis=-1)
    return bool(np.mean(largest >= largest[0]) <= 0.05)


@pytest.mark.parametrize(("content", "n_items"), [(0.3, 60), (0.5, 60), (1.0, 20)])
def test_effects_are_found(content: float, n_items: int) -> None:
    """More often than by Bonferroni's correction over the layers, less often than if the best one
    were known; 400 pairs, and three Monte Carlo errors."""
    found = rejections(Steered("steered", content=content, n_items=n_items, letter=1.0), 400)

    def power(level: float) -> float:
        critical = stats.t.isf(level, n_items - 2)
        return float(stats.nct.sf(critical, n_items - 2, content * np.sqrt(n_items)))

    error = 3 * np.sqrt(found * (1 - found) / 400)
    assert power(0.05 / 20) - error <= found <= power(0.05) + error
