from collections.abc import Callable

import numpy as np
import pingouin
import pytest
from scipy import stats

from steercube.analysis.per_cell.estimands import ESTIMANDS, Samples, letter_shift

STRENGTHS = np.array([-1.0, 0.0, 1.0])


def make_samples(rng: np.random.Generator, n: int = 60, *, shift: float = 1.0) -> Samples:
    """Skewed values of unequal spread, correlated between strengths."""
    common = rng.exponential(size=n)
    values = np.stack([common + rng.normal(scale=0.5 + s, size=n) + s * shift for s in (0, 1, 2)])
    return Samples(values, STRENGTHS, np.where(np.arange(n) % 3 == 0, "A", "B"))


def value(name: str, samples: Samples, weights: np.ndarray | None = None) -> float:
    weights = np.ones(len(samples.letter)) if weights is None else weights
    return float(ESTIMANDS[name](samples, weights).value)


@pytest.fixture
def samples(rng: np.random.Generator) -> Samples:
    return make_samples(rng)


def test_cohens_d_is_pingouins(samples: Samples) -> None:
    theirs = pingouin.compute_effsize(samples.positive, samples.negative, eftype="cohen")
    assert value("cohens_d", samples) == pytest.approx(theirs, rel=1e-12)


def test_hedges_g_is_pingouins_where_strengths_are_uncorrelated(rng: np.random.Generator) -> None:
    """With r = 0 the degrees of freedom are those of two groups; theirs approximates J."""
    x = rng.normal(size=40)
    y = rng.normal(size=40)
    y = y - x * stats.linregress(x, y).slope
    samples = Samples(np.stack([x, x, y + 1]), STRENGTHS, np.array(["A", "B"] * 20))
    theirs = pingouin.compute_effsize(samples.positive, samples.negative, eftype="hedges")
    assert value("hedges_g", samples) == pytest.approx(theirs, rel=1e-4)


def test_hedges_g_has_no_small_sample_bias(rng: np.random.Generator) -> None:
    """20,000 samples of 12 items: the standard error of the mean g is 0.005, d's bias 0.04."""
    n, rho, truth = 12, 0.6, 1.0
    noise = rng.normal(size=(2, 20_000, n))
    negative, positive = noise[0], rho * noise[0] + np.sqrt(1 - rho**2) * noise[1] + truth
    values = np.stack([negative, negative, positive], axis=1)
    samples = Samples(values, STRENGTHS, np.array(["A", "B"] * (n // 2)))
    weights = np.ones(n)
    assert ESTIMANDS["hedges_g"](samples, weights).value.mean() == pytest.approx(truth, abs=0.02)
    assert ESTIMANDS["cohens_d"](samples, weights).value.mean() > truth + 0.03


def test_d_z_is_the_paired_t(samples: Samples) -> None:
    t = stats.ttest_rel(samples.positive, samples.negative).statistic
    assert value("d_z", samples) == pytest.approx(t / np.sqrt(60), rel=1e-12)


def test_delta_and_its_standard_error_are_the_textbooks(samples: Samples) -> None:
    effect = ESTIMANDS["delta"](samples, np.ones(60))
    assert effect.value == pytest.approx(samples.shift.mean())
    assert effect.se == pytest.approx(stats.sem(samples.shift), rel=1e-12)


def test_glass_deltas_divide_by_one_strength(samples: Samples) -> None:
    delta = value("delta", samples)
    by_negative = delta / samples.negative.std(ddof=1)
    assert value("glass_delta_negative", samples) == pytest.approx(by_negative)
    by_baseline = delta / samples.baseline.std(ddof=1)
    assert value("glass_delta_baseline", samples) == pytest.approx(by_baseline)


def test_content_and_letter_part_add_up_to_each_letters_shift(samples: Samples) -> None:
    content, letter = value("content_shift", samples), value("letter_shift", samples)
    of_a = samples.shift[samples.letter == "A"].mean()
    of_b = samples.shift[samples.letter == "B"].mean()
    assert content + letter == pytest.approx(of_a)
    assert content - letter == pytest.approx(of_b)


def test_within_letter_d_ignores_a_preference_for_a_letter(samples: Samples) -> None:
    bias = np.where(samples.letter == "A", 5.0, -5.0)
    biased = Samples(samples.values + bias, STRENGTHS, samples.letter)
    assert value("within_letter_d", biased) == pytest.approx(value("within_letter_d", samples))
    assert value("cohens_d", biased) < 0.5 * value("cohens_d", samples)


def test_within_letter_d_by_hand(samples: Samples) -> None:
    pooled = []
    for x in (samples.positive, samples.negative):
        parts = [x[samples.letter == letter] for letter in "AB"]
        pooled.append(sum((len(p) - 1) * p.var(ddof=1) for p in parts) / (60 - 2))
    expected = value("content_shift", samples) / np.sqrt(np.mean(pooled))
    assert value("within_letter_d", samples) == pytest.approx(expected)


@pytest.mark.parametrize("n", [57, 60])
def test_trimmed_d_is_made_of_scipys_trimmed_means_and_winsorised_variances(n: int) -> None:
    samples = make_samples(np.random.default_rng(6), n=n)
    ends = (samples.positive, samples.negative)
    means = [stats.trim_mean(x, 0.2) for x in ends]
    spreads = [np.var(stats.mstats.winsorize(x, (0.2, 0.2)), ddof=1) for x in ends]
    expected = 0.642 * (means[0] - means[1]) / np.sqrt(np.mean(spreads))
    assert value("trimmed_d", samples) == pytest.approx(expected, rel=1e-12)


def test_the_factor_of_trimmed_d_is_the_sd_of_a_winsorised_normal() -> None:
    q = stats.norm.ppf(0.8)
    variance = 0.6 - 2 * q * stats.norm.pdf(q) + 2 * 0.2 * q**2
    assert np.sqrt(variance) == pytest.approx(0.642, abs=5e-4)


def test_cliffs_delta_is_that_of_every_pair_and_of_mann_whitneys_u(samples: Samples) -> None:
    """Also where values are equal, here rounded to whole numbers."""
    for values in (samples.values, np.round(samples.values)):
        tied = Samples(values, STRENGTHS, samples.letter)
        found = value("cliffs_delta", tied)
        every = np.sign(tied.positive[:, None] - tied.negative)
        assert found == pytest.approx(every.mean(), rel=1e-12)
        u = stats.mannwhitneyu(tied.positive, tied.negative).statistic
        assert found == pytest.approx(2 * u / 60**2 - 1, rel=1e-12)


def test_strengths_that_do_not_overlap_have_a_cliffs_delta_of_one(samples: Samples) -> None:
    """And no standard error, of which the cells say that nothing varies."""
    apart = Samples(samples.values + 100 * STRENGTHS[:, None], STRENGTHS, samples.letter)
    effect = ESTIMANDS["cliffs_delta"](apart, np.ones(60))
    assert (effect.value, effect.se) == (1, 0)


@pytest.mark.parametrize("d", [0.5, 2.0])
def test_robust_effects_agree_with_cohens_d_where_values_are_normal(d: float) -> None:
    """40,000 items: the largest standard error is 0.012, of the trimmed d at 2."""
    rng = np.random.default_rng(12)
    noise = rng.normal(size=(2, 40_000))
    negative, positive = noise[0], 0.6 * noise[0] + 0.8 * noise[1] + d
    samples = Samples(np.stack([negative, negative, positive]), STRENGTHS, np.full(40_000, "A"))
    assert value("cohens_d", samples) == pytest.approx(d, abs=0.04)
    assert value("trimmed_d", samples) == pytest.approx(d, abs=0.04)
    expected = 2 * stats.norm.cdf(d / np.sqrt(2)) - 1
    assert value("cliffs_delta", samples) == pytest.approx(expected, abs=0.02)


def test_one_outlier_moves_cohens_d_and_no_robust_effect() -> None:
    rng = np.random.default_rng(7)
    negative = rng.normal(size=80)
    values = np.stack([negative, negative, 0.6 * negative + 0.8 * rng.normal(size=80) + 1.5])
    clean = Samples(values, STRENGTHS, np.full(80, "A"))
    outlier = Samples(
        np.where(np.arange(80) == 3, 400 * values, values), STRENGTHS, np.full(80, "A")
    )
    assert value("cohens_d", outlier) < 0.3 * value("cohens_d", clean)
    for name, moved in {"trimmed_d": 0.08, "cliffs_delta": 0.03}.items():
        assert value(name, outlier) == pytest.approx(value(name, clean), abs=moved)
        one, other = (float(ESTIMANDS[name](s, np.ones(80)).se) for s in (clean, outlier))
        assert other == pytest.approx(one, rel=0.15)


def test_cliffs_delta_is_the_same_on_any_monotone_scale(samples: Samples) -> None:
    bent = Samples(np.exp(samples.values), STRENGTHS, samples.letter)
    assert value("cliffs_delta", bent) == value("cliffs_delta", samples)


def test_the_trimmed_d_of_a_slope_is_that_of_the_trimmed_means(rng: np.random.Generator) -> None:
    strengths = np.array([-1.0, 0.5, 1.0, 2.0])
    samples = Samples(rng.normal(size=(4, 40)), strengths, np.full(40, "A"), "slope")
    means = [stats.trim_mean(x, 0.2) for x in samples.values]
    spreads = [np.var(stats.mstats.winsorize(samples.values[at], 0.2), ddof=1) for at in (0, 3)]
    expected = 0.642 * stats.linregress(strengths, means).slope / np.sqrt(np.mean(spreads))
    assert value("trimmed_d", samples) == pytest.approx(expected)


def test_slope_and_anti_steerable_share(samples: Samples) -> None:
    slopes = np.array([stats.linregress(STRENGTHS, x).slope for x in samples.values.T])
    assert value("steerability_slope", samples) == pytest.approx(slopes.mean())
    assert value("anti_steerable_share", samples) == pytest.approx((slopes < 0).mean())


def test_slope_needs_no_symmetric_strengths(rng: np.random.Generator) -> None:
    strengths = np.array([-1.0, 0.5, 1.0, 2.0])
    samples = Samples(rng.normal(size=(4, 20)), strengths, np.array(["A", "B"] * 10))
    slopes = [stats.linregress(strengths, x).slope for x in samples.values.T]
    assert value("steerability_slope", samples) == pytest.approx(np.mean(slopes))


@pytest.mark.parametrize("name", [name for name in ESTIMANDS if name != "d_z"])
def test_no_shift_is_no_effect(name: str, samples: Samples) -> None:
    still = Samples(np.stack([samples.baseline] * 3), STRENGTHS, samples.letter)
    assert value(name, still) == pytest.approx(0, abs=1e-12)


def test_shifts_that_cancel_are_no_d_z(samples: Samples) -> None:
    centred = samples.values - samples.values.mean(axis=1, keepdims=True)
    assert value("d_z", Samples(centred, STRENGTHS, samples.letter)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ESTIMANDS)
def test_swapping_the_strengths_sign_flips_the_effect(name: str, samples: Samples) -> None:
    flipped = Samples(samples.values[::-1], STRENGTHS, samples.letter)
    if name == "anti_steerable_share":
        assert value(name, flipped) == pytest.approx(1 - value(name, samples))
    elif name == "glass_delta_negative":
        by_positive = value("delta", samples) / samples.positive.std(ddof=1)
        assert value(name, flipped) == pytest.approx(-by_positive)
    else:
        assert value(name, flipped) == pytest.approx(-value(name, samples))


@pytest.mark.parametrize("name", ESTIMANDS)
def test_relabelling_the_letters(name: str, samples: Samples) -> None:
    """Everything but the letter part is the same whichever letter is called A."""
    letter = np.where(samples.letter == "A", "B", "A")
    sign = -1 if name == letter_shift.__name__ else 1
    swapped = Samples(samples.values, STRENGTHS, letter)
    assert value(name, swapped) == pytest.approx(sign * value(name, samples))


SCALES = {"delta", "content_shift", "letter_shift", "steerability_slope"}


@pytest.mark.parametrize("name", ESTIMANDS)
def test_scaling_the_logits(name: str, samples: Samples) -> None:
    scaled = Samples(3 * samples.values, STRENGTHS, samples.letter)
    factor = 3 if name in SCALES else 1
    assert value(name, scaled) == pytest.approx(factor * value(name, samples))


@pytest.mark.parametrize("name", ESTIMANDS)
def test_weights_are_counts(name: str, samples: Samples, rng: np.random.Generator) -> None:
    """A weighted statistic is that of the items repeated, and so is its standard error."""
    counts = rng.integers(0, 4, size=60)
    repeated = Samples(
        np.repeat(samples.values, counts, axis=1), STRENGTHS, np.repeat(samples.letter, counts)
    )
    weighted = ESTIMANDS[name](samples, counts.astype(float))
    plain = ESTIMANDS[name](repeated, np.ones(counts.sum()))
    assert weighted.value == pytest.approx(plain.value)
    assert weighted.se == pytest.approx(plain.se)


@pytest.mark.parametrize("name", ESTIMANDS)
def test_leading_dims_are_computed_one_by_one(name: str, rng: np.random.Generator) -> None:
    layers = [make_samples(np.random.default_rng(seed)) for seed in range(3)]
    stacked = Samples(np.stack([s.values for s in layers]), STRENGTHS, layers[0].letter)
    together = ESTIMANDS[name](stacked, np.ones(60))
    assert together.value == pytest.approx([value(name, s) for s in layers])


def jackknife(statistic: Callable[[np.ndarray], float], n: int) -> float:
    left_out = [statistic(1 - np.eye(n)[i]) for i in range(n)]
    return float(np.sqrt((n - 1) * np.var(left_out)))


@pytest.mark.parametrize("name", [name for name in ESTIMANDS if name != "trimmed_d"])
def test_the_closed_form_standard_error_is_the_jackknifes(name: str) -> None:
    """Two routes to the same variance; they differ by O(1/n), 5% at 300 items of long tails.

    Not of trimmed_d, since the jackknife is inconsistent for quantiles (Efron 1982, section 3.4).
    """
    samples = make_samples(np.random.default_rng(3), n=300)
    se = float(ESTIMANDS[name](samples, np.ones(300)).se)
    assert se == pytest.approx(jackknife(lambda w: value(name, samples, w), 300), rel=0.05)


def test_the_standard_error_of_d_is_its_spread_over_samples() -> None:
    """4,000 samples of 100 items: the sd's own relative error is 1.1%."""
    rng = np.random.default_rng(11)
    draws = [ESTIMANDS["cohens_d"](make_samples(rng, 100), np.ones(100)) for _ in range(4000)]
    spread = np.std([float(d.value) for d in draws])
    assert np.mean([float(d.se) for d in draws]) == pytest.approx(spread, rel=0.06)


@pytest.mark.parametrize("name", ["trimmed_d", "cliffs_delta"])
@pytest.mark.parametrize("rho", [0.0, 0.8], ids=["unpaired", "paired"])
@pytest.mark.parametrize("n", [30, 100])
def test_the_standard_error_of_robust_effects_is_their_spread(
    name: str, rho: float, n: int
) -> None:
    """4,000 samples of heavy tails (t with 3 degrees of freedom), in which that of d is 15% low."""
    rng = np.random.default_rng(13)
    noise = rng.standard_t(3, size=(2, 4000, n))
    negative, positive = noise[0], rho * noise[0] + np.sqrt(1 - rho**2) * noise[1] + 1
    samples = Samples(np.stack([negative, positive], axis=1), STRENGTHS[[0, 2]], np.full(n, "A"))
    effect = ESTIMANDS[name](samples, np.ones(n))
    assert effect.se.mean() == pytest.approx(effect.value.std(), rel=0.06)


def test_zero_variance_is_undefined_not_zero(samples: Samples) -> None:
    constant = Samples(np.ones((3, 60)), STRENGTHS, samples.letter)
    assert np.isnan(value("cohens_d", constant))


def test_a_strength_that_was_not_swept_is_nan(samples: Samples) -> None:
    pair = Samples(samples.values[[0, 2]], STRENGTHS[[0, 2]], samples.letter)
    assert np.isnan(value("glass_delta_baseline", pair))
    assert value("cohens_d", pair) == pytest.approx(value("cohens_d", samples))
