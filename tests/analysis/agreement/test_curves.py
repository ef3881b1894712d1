import numpy as np
import pytest
from scipy import stats

from steercube.analysis.agreement.curves import (
    MAX_Z,
    N_BLOCKS,
    block_length,
    block_resamples,
    circular_shift_p,
    correlation,
    fisher_z,
    scaled,
    second_difference_reliability,
    shifted_correlations,
    spearman_brown,
)


def smooth(rng: np.random.Generator, n: int, n_layers: int, neighbours: float) -> np.ndarray:
    """Curves (curve, layer) whose neighbouring layers correlate."""
    curves = rng.normal(size=(n, n_layers))
    for layer in range(1, n_layers):
        curves[:, layer] = (
            neighbours * curves[:, layer - 1] + np.sqrt(1 - neighbours**2) * curves[:, layer]
        )
    return curves


def test_scaling_maps_a_curve_to_zero_and_one() -> None:
    curve = scaled(np.array([3.0, -1.0, 1.0]))
    assert (curve.min(), curve.max()) == (0, 1)


def test_correlation_is_pearsons_and_undefined_where_a_curve_is_flat(
    rng: np.random.Generator,
) -> None:
    x, y = rng.normal(size=(2, 5, 12))
    expected = [stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(correlation(x, y), expected)
    assert np.isnan(correlation(np.full(12, 0.1) + 0.2, y[0]))
    np.testing.assert_allclose(correlation(3 * x + 1, y), correlation(x, y))


def test_fishers_z_is_bounded() -> None:
    assert fisher_z(np.array(0.5)) == pytest.approx(np.arctanh(0.5))
    assert fisher_z(np.array(1.0)) == pytest.approx(MAX_Z)


def test_blocks_hold_neighbours_and_every_layer_as_often(rng: np.random.Generator) -> None:
    drawn = block_resamples(25, 20_000, rng)
    assert drawn.shape == (20_000, 25)
    step = np.diff(drawn, axis=1) % 25
    assert block_length(25) == 7
    assert (step == 1).mean() > 6 / 7
    count = np.bincount(drawn.ravel(), minlength=25) / drawn.size
    np.testing.assert_allclose(count, 1 / 25, rtol=0.05)


@pytest.mark.parametrize("neighbours", [0.0, 0.8])
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_the_interval_over_blocks_covers(neighbours: float, shared: float) -> None:
    """300 pairs of curves of 43 layers at a known r.

    At 95% fewer than 90.5% has p = 0.001. Layers taken as independent would do for the first only.
    """
    rng = np.random.default_rng(8)
    t, inside, naive = stats.t.ppf(0.975, N_BLOCKS - 1), 0, 0
    for _ in range(300):
        common, one, other = smooth(rng, 3, 43, neighbours)
        x, y = (np.sqrt(shared) * common + np.sqrt(1 - shared) * own for own in (one, other))
        drawn = block_resamples(43, 300, rng)
        error = fisher_z(correlation(x[drawn], y[drawn])).std(ddof=1)
        away = abs(fisher_z(correlation(x, y)) - np.arctanh(shared))
        inside += away <= t * error
        naive += away <= 1.96 / np.sqrt(43 - 3)
    assert inside / 300 > 0.905
    assert naive / 300 < 0.8 or neighbours == 0


def test_shifting_by_nothing_is_the_correlation_itself(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 9))
    shifted = shifted_correlations(x, y)
    assert shifted[0] == pytest.approx(correlation(x, y))
    assert shifted[2] == pytest.approx(stats.pearsonr(x, np.roll(y, 2)).statistic)


@pytest.mark.parametrize("neighbours", [0.0, 0.6, 0.9])
def test_shifts_keep_their_level_for_curves_that_have_nothing_in_common(neighbours: float) -> None:
    """600 pairs of 25 layers; r's own p, of independent layers, is wrong by far where they are not.

    With a true level of 5% the share exceeds 8% with probability 0.001. A circle joins the ends of
    curves that are no circle, which costs a little at strong correlation: up to 10% is allowed.
    """
    rng = np.random.default_rng(5)
    x, y = smooth(rng, 600, 25, neighbours), smooth(rng, 600, 25, neighbours)
    p = np.array([circular_shift_p([pair], 0, rng) for pair in zip(x, y, strict=True)])
    naive = np.array([stats.pearsonr(*pair).pvalue for pair in zip(x, y, strict=True)])
    assert (p <= 0.05).mean() < (0.10 if neighbours > 0.8 else 0.08)
    if neighbours > 0.8:
        assert (naive <= 0.05).mean() > 0.3


def test_shifts_of_several_models_keep_their_level_and_see_what_is_there() -> None:
    rng = np.random.default_rng(6)
    null, seen = [], []
    for _ in range(200):
        pairs = list(zip(*smooth(rng, 8, 25, 0.8).reshape(2, 4, 25), strict=True))
        null.append(circular_shift_p(pairs, 300, rng))
        seen.append(circular_shift_p([(x, x + 0.7 * y) for x, y in pairs], 300, rng))
    assert np.mean(np.array(null) <= 0.05) < 0.11
    assert np.mean(np.array(seen) <= 0.05) > 0.9


def test_roughness_tells_noise_from_shape(rng: np.random.Generator) -> None:
    """The true reliability is the share of the shape in the variance."""
    shape = np.sin(np.linspace(0, np.pi, 40))
    for noise in (0.05, 0.2):
        expected = shape.var(ddof=1) / (shape.var(ddof=1) + noise**2)
        found = [
            second_difference_reliability(shape + noise * rng.normal(size=40)) for _ in range(400)
        ]
        assert np.mean(found) == pytest.approx(expected, abs=0.03)
    assert second_difference_reliability(rng.normal(size=400)) < 0.2


def test_spearman_brown_steps_up_to_the_whole() -> None:
    assert spearman_brown(np.array(1.0)) == 1
    assert spearman_brown(np.array(0.5)) == pytest.approx(2 / 3)
