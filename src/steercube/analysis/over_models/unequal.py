r"""Labels whose models vary unequally: Welch's t, and the hierarchical model with two spreads.

With few models of one label, equal variances are an assumption that decides the interval. If they
do not hold, the pooled t covers too rarely where the rarer label varies more. Two ways beside it:

- Welch's t over model means (Welch 1947, Biometrika 34), which estimates each label's spread from
  its own models alone, and so says little where a label has two;
- the hierarchical model of `posterior` with $u_m \sim N(0, (sd_{model}\, \rho^{\pm 1/2})^2)$, + for
  the contrast's `high` label and - for its `low` one, so that their spreads have the ratio
  $\rho$, with $\log \rho \sim N(0, (\log 2)^2)$: 95% of ratios within a factor of four either way.
  Given $\rho$ it is the model of `posterior`; $\rho$ is integrated by Gauss-Hermite quadrature.

When to use them: beside the equal spreads, to see whether a result depends on these.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from steercube.analysis.over_models.cell_effects import TERMS, CellEffects
from steercube.analysis.over_models.posterior import Mixture, Posterior, fit
from steercube.estimate import Estimate

SD_LOG_RATIO = float(np.log(2))
N_RATIOS = 9


def fit_unequal(
    effects: CellEffects, *, terms: Sequence[str] = TERMS, n_nodes: int = 12
) -> Mixture:
    """The posterior with a spread of its own for the models of each label.

    Raises ValueError where `cell_effects.why_not` gives a reason.
    """
    nodes, mass = np.polynomial.hermite_e.hermegauss(N_RATIOS)

    def given(log_ratio: float) -> Posterior:
        return fit(with_ratio(effects, float(np.exp(log_ratio))), terms=terms, n_nodes=n_nodes)

    return Mixture.over(SD_LOG_RATIO * nodes, np.log(mass), given)


def with_ratio(effects: CellEffects, ratio: float) -> CellEffects:
    """The effects with models of the `high` label varying `ratio` times as much as the others."""
    spread = np.where(effects.is_high, ratio**0.5, ratio**-0.5)
    return replace(effects, spread=tuple(spread.tolist()))


def welch_t(values: np.ndarray, marked: np.ndarray, *, level: float) -> Estimate:
    r"""Mean of the marked minus mean of the others, each with its own sd.

    $\bar a - \bar b \pm t_{\nu} \sqrt{s_a^2 / n_a + s_b^2 / n_b}$ with the degrees of freedom
    $\nu = (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1))$, $v = s^2 / n$.
    """
    a, b = values[marked], values[~marked]
    value = float(a.mean() - b.mean()) if len(a) and len(b) else np.nan
    if min(len(a), len(b)) < 2:
        return Estimate(value, n=len(values), reason="one model has no spread within its label")
    test = stats.ttest_ind(a, b, equal_var=False)
    ends = test.confidence_interval(level)
    return Estimate(value, low=float(ends.low), high=float(ends.high), over="models", n=len(values))
