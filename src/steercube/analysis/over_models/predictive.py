r"""Does the hierarchical model fit these data? Prior and posterior predictive checks.

Each draw takes sds from the grid, slopes given these, and then cells of *new* models and concepts
with the design and covariance over items of the real ones: y ~ N(X b, V(sds)). A statistic of the
real cells in the tail of the simulated ones is one that the model does not account for.
"""

from typing import Any

import numpy as np

from steercube.analysis.over_models.cell_effects import CellEffects, primary_terms, usable_outcomes
from steercube.analysis.over_models.means import root_of
from steercube.analysis.over_models.posterior import Posterior, posterior_of
from steercube.analysis.view import Study

N_DRAWS = 4_000


def statistics(effects: CellEffects, y: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics to check, by name: spreads and extremes of cells `y` (..., cell), dims (...).

    Model and concept means are plain means over the cells that were run.
    """
    of_model = _averaging(effects.model) @ y[..., None]
    of_concept = _averaging(effects.concept) @ y[..., None]
    model, concept = of_model[..., 0], of_concept[..., 0]
    rest = y - model[..., effects.model] - concept[..., effects.concept]
    rest = rest + y.mean(axis=-1, keepdims=True)
    return {
        "mean": y.mean(axis=-1),
        "smallest cell": y.min(axis=-1),
        "largest cell": y.max(axis=-1),
        "sd of model means": model.std(axis=-1),
        "sd of concept means": concept.std(axis=-1),
        "sd of what is left": rest.std(axis=-1),
        "largest of what is left": np.abs(rest).max(axis=-1),
        "smallest model mean": model.min(axis=-1),
    }


def _averaging(index: np.ndarray) -> np.ndarray:
    """The matrix that averages cells within each group, dims (group, cell)."""
    indicator = np.eye(int(index.max()) + 1)[index].T
    return indicator[indicator.any(axis=1)] / indicator.sum(axis=1)[indicator.any(axis=1), None]


def prior_draws(posterior: Posterior, rng: np.random.Generator) -> np.ndarray:
    """Cells simulated from the prior alone, dims (draw, cell)."""
    prior, unit = posterior.prior, posterior.effects.unit
    names = ("intercept", *posterior.terms)
    beta = np.column_stack([prior.draw(name, unit, rng, N_DRAWS) for name in names])
    sds = {name: prior.draw(name, unit, rng, N_DRAWS) for name in posterior.sds}
    return _cells(posterior, beta, sds, rng)


def posterior_draws(posterior: Posterior, rng: np.random.Generator) -> np.ndarray:
    """Cells of new models and concepts simulated from the posterior, dims (draw, cell)."""
    node, beta = posterior.drawn(rng, N_DRAWS)
    return _cells(posterior, beta, {name: sd[node] for name, sd in posterior.sds.items()}, rng)


def _cells(
    posterior: Posterior, beta: np.ndarray, sds: dict[str, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    effects, index = posterior.effects, posterior.effects.index()
    y = beta @ effects.design(posterior.terms).T
    for name, sd in sds.items():
        z = rng.standard_normal((N_DRAWS, int(index[name].max()) + 1))
        y = y + sd[:, None] * z[:, index[name]]
    return y + rng.standard_normal(y.shape) @ root_of(effects.covariance).T


def predictive_checks(study: Study) -> list[dict[str, Any]]:
    """Prior and posterior predictive checks of the primary model, every outcome."""
    rows: list[dict[str, Any]] = []
    for outcome, effects, reason in usable_outcomes(study):
        if reason:
            rows.append({"outcome": outcome, "reason": reason})
            continue
        rng = study.stream(f"predictive checks of {outcome}")
        posterior = posterior_of(study, outcome, primary_terms(effects))
        rows += checks(posterior, rng, level=study.level)
    return rows


def checks(posterior: Posterior, rng: np.random.Generator, *, level: float) -> list[dict[str, Any]]:
    """Each statistic as observed, its interval under prior and posterior, and its p-value.

    `p_value` is posterior predictive and two-sided: small where the model does not account for the
    observed value.
    """
    effects = posterior.effects
    drawn = {
        "prior": statistics(effects, prior_draws(posterior, rng)),
        "posterior": statistics(effects, posterior_draws(posterior, rng)),
    }
    rows = []
    for name, value in statistics(effects, effects.value).items():
        row = {"outcome": effects.outcome, "statistic": name, "observed": float(value)}
        for kind, simulated in drawn.items():
            ends = np.quantile(simulated[name], [(1 - level) / 2, 0.5, (1 + level) / 2]).tolist()
            row |= dict(zip((f"{kind}_low", f"{kind}_median", f"{kind}_high"), ends, strict=True))
        above = float(np.mean(drawn["posterior"][name] >= value))
        rows.append(row | {"p_value": 2 * min(above, 1 - above)})
    return rows
