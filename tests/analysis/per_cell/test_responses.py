import numpy as np
import pytest
from scipy import stats

from steercube.analysis.agreement.curves import correlation, fisher_z
from steercube.analysis.per_cell.bootstrap import half_weights, resample_weights
from steercube.analysis.per_cell.responses import (
    Answers,
    agreement_over_items,
    best_layer,
    generation_curve,
    item_agreement,
    logit_curve,
    split_half_reliability,
)

BUMP = np.exp(-((np.arange(20) - 12.0) ** 2) / 18)
"""An effect over layers."""


def simulated(
    rng: np.random.Generator,
    n_items: int,
    effect: float,
    *,
    own: float = 1.0,
    valid: float = 0.8,
) -> tuple[Answers, np.ndarray]:
    """Answers and shifts of items; `own` of the logit curve is the generation's, else another."""
    other = np.roll(BUMP, 9)
    shift = rng.normal(0, 2, (1, n_items)) + rng.normal(0, 1, (20, n_items))
    shift = shift + 4 * (own * BUMP + (1 - own) * other)[:, None]
    chance = rng.normal(0, 0.15, (1, 1, n_items))
    side = np.array([-0.5, 0.5])[:, None, None]
    p = np.clip(0.5 + chance + side * effect * BUMP[None, :, None], 0.02, 0.98)
    match = (rng.random((2, 20, n_items)) < p).astype(float)
    said = (rng.random((2, 20, n_items)) < valid).astype(float)
    return Answers(said, np.where(said > 0, match, np.nan)), shift


def test_a_curve_is_the_difference_of_two_rates_among_valid_answers() -> None:
    valid = np.array([[[1.0, 1, 0, 0.5]], [[1.0, 1, 1, 0]]])
    match = np.array([[[1.0, 0, np.nan, 1]], [[1.0, 1, 0, np.nan]]])
    answers = Answers(valid, match)
    expected = 2 / 3 - (1 + 0 + 0.5) / 2.5
    assert generation_curve(answers, np.ones(4))[0] == pytest.approx(expected)
    doubled = generation_curve(answers, np.array([2.0, 1, 1, 1]))[0]
    assert doubled == pytest.approx(3 / 4 - 2.5 / 3.5)
    assert np.isnan(generation_curve(answers, np.array([0.0, 0, 0, 1]))[0])


def test_the_logit_curve_is_the_mean_shift(rng: np.random.Generator) -> None:
    shift = rng.normal(size=(3, 7))
    np.testing.assert_allclose(logit_curve(shift, np.ones(7)), shift.mean(axis=1))
    weights = np.array([0.0, 1, 1, 0, 2, 0, 0])
    np.testing.assert_allclose(
        logit_curve(shift, weights), np.average(shift, axis=1, weights=weights)
    )


@pytest.mark.parametrize(
    ("own", "effect"), [(0.85, 0.8), (0.6, 0.8), (0.5, 0.3)], ids=["r 0.99", "r 0.77", "r 0.28"]
)
def test_what_is_free_of_noise_covers_the_true_curves(own: float, effect: float) -> None:
    """200 draws of 100 items; at 95% fewer than 90% has p = 0.002.

    r as measured is pulled towards 0, so that its own interval misses the true curves' r.
    """
    rng = np.random.default_rng(1)
    true = float(correlation(own * BUMP + (1 - own) * np.roll(BUMP, 9), BUMP))
    resamples = resample_weights(100, 500, rng)
    found = [
        agreement_over_items(*simulated(rng, 100, effect, own=own), resamples, 0.95)
        for _ in range(200)
    ]
    assert np.mean([one.noise_free_low <= true <= one.noise_free_high for one in found]) > 0.9
    noise_free = np.median([one.noise_free for one in found])
    assert noise_free == pytest.approx(true, abs=0.04)
    assert np.median([one.r for one in found]) < noise_free
    if own > 0.8:
        assert np.mean([one.low <= true <= one.high for one in found]) < 0.2


def test_the_measured_r_covers_what_other_items_would_give() -> None:
    """200 draws; at 95% fewer than 90% has p = 0.002."""
    rng = np.random.default_rng(3)
    resamples = resample_weights(100, 500, rng)
    found = [
        agreement_over_items(*simulated(rng, 100, 0.8, own=0.6), resamples, 0.95)
        for _ in range(200)
    ]
    expected = np.tanh(np.mean([np.arctanh(one.r) for one in found]))
    assert np.mean([one.low <= expected <= one.high for one in found]) > 0.9


def test_curves_without_a_shape_have_no_noise_free_interval(rng: np.random.Generator) -> None:
    shapeless = 0
    for _ in range(20):
        answers, shift = simulated(rng, 40, 0.0)
        found = agreement_over_items(answers, shift, resample_weights(40, 200, rng), 0.95)
        shapeless += np.isnan(found.noise_free_low)
        assert np.isfinite([found.r, found.low]).all()
    assert shapeless > 15


def test_the_error_of_z_is_that_of_new_samples(rng: np.random.Generator) -> None:
    resamples = resample_weights(100, 400, rng)
    drawn = [
        agreement_over_items(*simulated(rng, 100, 0.8, own=0.9), resamples, 0.95)
        for _ in range(150)
    ]
    spread = np.std([float(fisher_z(np.array(one.r))) for one in drawn], ddof=1)
    assert np.mean([one.z_error for one in drawn]) == pytest.approx(spread, rel=0.25)


def test_constant_answers_have_no_agreement(rng: np.random.Generator) -> None:
    answers, shift = simulated(rng, 30, 0.5)
    flat = Answers(np.ones_like(answers.valid), np.ones_like(answers.valid))
    found = agreement_over_items(flat, shift, resample_weights(30, 50, rng), 0.95)
    assert np.isnan([found.r, found.low, found.z_error, found.noise_free]).all()
    none = Answers(np.zeros_like(answers.valid), np.full_like(answers.valid, np.nan))
    resamples = resample_weights(30, 20, rng)
    assert best_layer(none, resamples, half_weights(30, 20, rng), np.ones((5, 30))) is None


def test_halves_tell_the_reliability_of_the_whole(rng: np.random.Generator) -> None:
    """Against the correlation of two independent samples of the same size."""
    halves = half_weights(100, 200, rng)
    found, between = [], []
    for _ in range(80):
        one, other = (simulated(rng, 100, 0.5)[0] for _ in range(2))
        curve = generation_curve
        found.append(split_half_reliability(curve(one, halves), curve(one, 1 - halves)))
        between.append(float(correlation(curve(one, np.ones(100)), curve(other, np.ones(100)))))
    assert np.mean(found) == pytest.approx(np.mean(between), abs=0.05)
    opposite = np.arange(20.0) + rng.normal(size=(100, 20))
    assert split_half_reliability(opposite, -opposite) == 0


def test_the_null_of_the_best_layer_is_what_no_effect_gives() -> None:
    """300 draws without an effect: p is uniform, and the maximum averages what was expected.

    The share of p <= 0.05 exceeds 9.5% with probability 0.001 if its level is right; a mean is off
    by more than 4 standard errors once in 15,000.
    """
    rng = np.random.default_rng(2)
    halves, resamples = half_weights(60, 100, rng), resample_weights(60, 100, rng)
    found = [
        best_layer(
            simulated(rng, 60, 0.0)[0], resamples, halves, rng.choice([-1.0, 1.0], (200, 60))
        )
        for _ in range(300)
    ]
    known = [one for one in found if one is not None]
    assert len(known) == 300
    p = np.array([one.p_value for one in known])
    assert (p <= 0.05).mean() < 0.095
    assert abs(p.mean() - 0.5) < 0.07
    excess = np.array([one.value - one.expected_under_null for one in known])
    assert abs(excess.mean()) < 4 * stats.sem(excess)
    assert np.mean([one.value for one in known]) > 0.15
    # What the other half shows at the selected layer knows nothing of the selection.
    held_out = np.array([one.split_half for one in known])
    assert abs(held_out.mean()) < 4 * stats.sem(held_out)


def test_an_effect_is_seen_and_its_best_layer_found(rng: np.random.Generator) -> None:
    answers, _ = simulated(rng, 100, 0.8)
    best = best_layer(
        answers,
        resample_weights(100, 200, rng),
        half_weights(100, 200, rng),
        rng.choice([-1.0, 1.0], (500, 100)),
    )
    assert best is not None
    assert abs(best.index - 12) <= 3
    assert best.p_value < 0.01
    assert 0.5 < best.split_half < best.value


def test_the_error_of_the_largest_value_is_that_of_new_samples(rng: np.random.Generator) -> None:
    """Where steering works; where it does nothing resamples vary more (`best_response_excess`)."""
    resamples, halves = resample_weights(100, 200, rng), half_weights(100, 2, rng)
    found = [
        best_layer(simulated(rng, 100, 0.8)[0], resamples, halves, np.ones((5, 100)))
        for _ in range(150)
    ]
    known = [one for one in found if one is not None]
    spread = np.std([one.value for one in known], ddof=1)
    assert np.mean([one.error for one in known]) == pytest.approx(spread, rel=0.25)


ONE_LETTER = np.full(100, "A")


def test_a_push_towards_a_letter_is_no_agreement_of_items(rng: np.random.Generator) -> None:
    letter = np.tile(["A", "B"], 500)
    side = np.where(letter == "A", 1.0, -1.0)
    change = np.where(rng.random(1000) < 0.5, side, 0.0)
    shift = side + rng.normal(size=(1, 1000))
    assert abs(item_agreement(changed(change), shift, letter, 0).r) < 0.1
    assert item_agreement(changed(change), shift, np.full(1000, "A"), 0).r > 0.3


def changed(change: np.ndarray) -> Answers:
    """Valid answers at one layer that change as given."""
    match = np.stack([(change < 0).astype(float), (change > 0).astype(float)])[:, None]
    return Answers(np.ones_like(match), match)


def test_items_agree_where_those_that_move_change_their_answer(rng: np.random.Generator) -> None:
    change = rng.integers(-1, 2, 60).astype(float)
    perfect = item_agreement(changed(change), 2 + 3 * change[None], ONE_LETTER[:60], 0)
    assert perfect.r == pytest.approx(1.0)
    assert (perfect.n_items, perfect.n_changed) == (60, int((change != 0).sum()))
    nothing = [
        item_agreement(changed(change), rng.normal(size=(1, 60)), ONE_LETTER[:60], 0).r
        for _ in range(200)
    ]
    assert abs(np.mean(nothing)) < 4 * stats.sem(nothing)


def test_items_without_an_answer_at_both_strengths_say_nothing(rng: np.random.Generator) -> None:
    change = np.tile([1.0, 0.0, -1.0, 0.0], 10)
    answers, shift = changed(change), rng.normal(size=(1, 40))
    answers.valid[1, 0, :8] = 0.0
    answers.match[1, 0, :8] = np.nan
    found = item_agreement(answers, shift, ONE_LETTER[:40], 0)
    part = item_agreement(changed(change[8:]), shift[:, 8:], ONE_LETTER[:32], 0)
    assert found == part
    assert found.n_items == 32


def test_a_few_changed_answers_are_no_correlation() -> None:
    change = np.array([1.0] * 4 + [0.0] * 30)
    assert np.isnan(item_agreement(changed(change), np.arange(34.0)[None], ONE_LETTER[:34], 0).r)
