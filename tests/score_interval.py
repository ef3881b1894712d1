"""Tango's score interval by numerical maximisation, to check the one of the package against."""

import numpy as np
from scipy import optimize, stats


def score_interval(rise: int, fall: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The changes of a paired share that the score test does not reject."""
    return _end(rise, fall, n, -1, level), _end(rise, fall, n, 1, level)


def _end(rise: int, fall: int, n: int, sign: int, level: float) -> float:
    z = float(stats.norm.ppf((1 + level) / 2))
    change = (rise - fall) / n
    if change == sign:
        return float(sign)

    def distance(t: float) -> float:
        variance = n * max(2 * _most_likely(rise, fall, n, t) + t - t**2, 1e-300)
        return float((rise - fall - n * t) / np.sqrt(variance) + sign * z)

    inside, outside = change + sign * 1e-9, sign * (1 - 1e-9)
    if distance(inside) * distance(outside) > 0:
        return float(sign)
    return float(optimize.brentq(distance, *sorted((inside, outside)), xtol=1e-10))


def _most_likely(rise: int, fall: int, n: int, t: float) -> float:
    """The share of pairs that fall, of greatest likelihood where a share t more of them rise."""
    counts = np.array([rise, fall, n - rise - fall])

    def loss(q: float) -> float:
        shares = np.maximum([q + t, q, 1 - 2 * q - t], 1e-300)
        return -float((counts * np.log(shares))[counts > 0].sum())

    bounds = (max(0.0, -t), (1 - t) / 2)
    found = optimize.minimize_scalar(
        loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}
    )
    return float(found.x)
