r"""PyMC's NUTS on the same models, and the gates that a fit must pass before it is used.

The model of cells is that of `posterior.fit` with u, v and w integrated out,
y ~ N(X b, S + sd_model^2 Z Z' + sd_concept^2 Z Z' + sd_cell^2 I), which leaves no funnel; the
grid is exact, and NUTS must agree with it. The model of items samples every effect: models,
concepts and cells non-centred, items centred, as each has several observations.

Only this module uses PyMC and ArviZ; nothing else needs them.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from steercube.analysis.over_models.cell_effects import CellEffects
from steercube.analysis.over_models.items import ItemShifts
from steercube.analysis.over_models.posterior import PRIOR, SDS, Posterior, Prior
from steercube.netcdf import aside
from steercube.streams import SEED, stream

Progress = Callable[[int], None]
"""Called with the number of draws made since the last call."""

N_CHAINS = 4
MAX_R_HAT = 1.01
MIN_ESS = 400
MIN_BFMI = 0.2
MAX_MCSE = 4.0
"""Gates: Vehtari et al. 2021 (Bayesian Analysis 16(2)) for the first two; agreement with the grid
in Monte Carlo standard errors."""

ITEM_PRIOR = 1.0
"""Half-normal scale of sd_item and sd_residual, which hundreds of items determine."""
CELL_DRAWS = 1000
ITEM_DRAWS = 1500
"""Draws of each chain, after as many for tuning."""
HOW_TO_INSTALL = "pip install -c constraints.txt -e '.[stats]'"


def is_installed() -> bool:
    """Whether PyMC, of the extra `stats`, is installed."""
    return find_spec("pymc") is not None


def draws_to_make(n_draws: int) -> int:
    """Draws of all chains with those for tuning: what the calls of `progress` add up to."""
    return 2 * N_CHAINS * n_draws


@dataclass(frozen=True)
class Sampled:
    """A fit by NUTS: summaries (statistic to value) of each coefficient and sd by name.

    `diagnostics` has R-hat and both ESS of every parameter, also those of single groups and items.
    `idata` is ArviZ's InferenceData with the draws themselves; `save_posterior` writes it.
    """

    summary: dict[str, dict[str, float]]
    diagnostics: dict[str, dict[str, float]]
    n_divergences: int
    min_bfmi: float
    n_draws: int
    idata: Any

    @property
    def worst(self) -> dict[str, float]:
        """The least favourable of each diagnostic over all parameters; NaN if any is."""
        return {
            "r_hat": float(np.max([row["r_hat"] for row in self.diagnostics.values()])),
            "ess_bulk": float(np.min([row["ess_bulk"] for row in self.diagnostics.values()])),
            "ess_tail": float(np.min([row["ess_tail"] for row in self.diagnostics.values()])),
        }


def failed_gates(sampled: Sampled, exact: Posterior | None = None) -> list[str]:
    """Every gate that the fit fails, with the value and the rule; none for a usable fit."""
    worst = sampled.worst
    problems = []
    if not worst["r_hat"] < MAX_R_HAT:
        problems.append(f"R-hat {worst['r_hat']:.3f} is not under {MAX_R_HAT}")
    for name in ("ess_bulk", "ess_tail"):
        if not worst[name] >= MIN_ESS:
            problems.append(f"{name} {worst[name]:.0f} is under {MIN_ESS}")
    if sampled.n_divergences:
        problems.append(f"{sampled.n_divergences} divergence(s)")
    if not sampled.min_bfmi > MIN_BFMI:
        problems.append(f"E-BFMI {sampled.min_bfmi:.2f} is not over {MIN_BFMI}")
    if exact is not None:
        name, distance = furthest_from(exact, sampled)
        if not distance <= MAX_MCSE:
            problems.append(f"the mean of {name} is {distance:.1f} MCSE from the grid's")
    return problems


def gates_text(sampled: Sampled, exact: Posterior | None = None) -> str:
    """The diagnostics behind the gates, as text."""
    worst = sampled.worst
    text = (
        f"R-hat {worst['r_hat']:.4f}, ESS bulk {worst['ess_bulk']:.0f} and tail "
        f"{worst['ess_tail']:.0f} of {sampled.n_draws} draws, {sampled.n_divergences} divergences, "
        f"E-BFMI {sampled.min_bfmi:.2f}"
    )
    if exact is None:
        return text
    name, distance = furthest_from(exact, sampled)
    return f"{text}; furthest from the grid: the mean of {name}, {distance:.1f} MCSE"


def furthest_from(exact: Posterior, sampled: Sampled) -> tuple[str, float]:
    """The parameter whose mean is furthest from the grid's, and the distance in MCSE."""
    distance = {
        name: abs(row["mean"] - exact.expectation(name)) / row["mcse_mean"]
        for name, row in sampled.summary.items()
    }
    names = list(distance)
    name = names[int(np.argmax(list(distance.values())))]  # the first NaN, if there is one
    return name, distance[name]


def sample_cells(
    effects: CellEffects,
    *,
    terms: Sequence[str],
    prior: Prior = PRIOR,
    level: float = 0.95,
    seed: int = SEED,
    n_draws: int = CELL_DRAWS,
    progress: Progress = lambda n: None,
) -> Sampled:
    """NUTS on the model of cells, four chains of `n_draws`."""
    x = effects.design(terms)
    groups = {"sd_model": effects.model, "sd_concept": effects.concept}
    with packages() as (pm, az), pm.Model():
        beta, sds = _parameters(pm, terms, prior, effects.unit)
        covariance = effects.covariance + sds["sd_cell"] ** 2 * np.eye(len(x))
        for name, group in groups.items():
            covariance += sds[name] ** 2 * np.equal.outer(group, group)
        pm.MvNormal("y", _linear(x, beta), cov=covariance, observed=effects.value)
        return _sample(pm, az, [*beta, *sds], "cells", level, seed, n_draws, progress)


def sample_items(
    shifts: ItemShifts,
    *,
    terms: Sequence[str],
    prior: Prior = PRIOR,
    level: float = 0.95,
    seed: int = SEED,
    n_draws: int = ITEM_DRAWS,
    progress: Progress = lambda n: None,
) -> Sampled:
    """NUTS on the model of items, four chains of `n_draws` (minutes)."""
    x = shifts.design(terms)
    with packages() as (pm, az), pm.Model():
        beta, sds = _parameters(pm, terms, prior, 1.0)
        sds |= {name: pm.HalfNormal(name, ITEM_PRIOR) for name in ("sd_item", "sd_residual")}
        mean = _linear(x, beta)
        for name in SDS:
            z = pm.Normal(f"z_{name[3:]}", shape=int(shifts.index[name].max()) + 1)
            mean += sds[name] * z[shifts.index[name]]
        of_item = shifts.index["sd_item"]
        mean += pm.Normal("item", 0, sds["sd_item"], shape=int(of_item.max()) + 1)[of_item]
        pm.Normal("y", mean, sds["sd_residual"], observed=shifts.value)
        return _sample(pm, az, [*beta, *sds], "items", level, seed, n_draws, progress)


def _parameters(
    pm: Any, terms: Sequence[str], prior: Prior, unit: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("intercept", *terms)
    beta = {name: pm.Normal(name, 0, prior.of(name) * unit) for name in names}
    family = {name: pm.HalfCauchy if prior.is_cauchy(name) else pm.HalfNormal for name in SDS}
    return beta, {name: family[name](name, prior.of(name) * unit) for name in SDS}


def _linear(x: np.ndarray, beta: Mapping[str, Any]) -> Any:
    return sum(column * b for column, b in zip(x.T, beta.values(), strict=True))


def _sample(
    pm: Any,
    az: Any,
    names: Sequence[str],
    what: str,
    level: float,
    seed: int,
    n_draws: int,
    progress: Progress,
) -> Sampled:
    rng = stream(f"nuts of {what}", seed=seed)
    idata = pm.sample(
        n_draws,
        tune=n_draws,
        chains=N_CHAINS,
        # One process on one thread: small matrices gain nothing from threads, and processes that
        # inherit a pool of them wait for each other, ten times as long.
        cores=1,
        blas_cores=1,
        random_seed=int(rng.integers(2**31)),
        nuts_sampler="pymc",
        target_accept=0.99,
        progressbar=False,
        compute_convergence_checks=False,
        callback=lambda trace, draw: progress(1),
    )
    if idata.posterior.sizes["draw"] != n_draws:
        raise KeyboardInterrupt  # PyMC stops at it and returns the draws so far
    table = az.summary(idata, round_to="none")
    summary = {}
    for name in names:
        draws = idata.posterior[name].values.ravel()
        ends = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2]).tolist()
        row = dict(zip(("low", "median", "high"), ends, strict=True))
        row |= {k: float(table.at[name, k]) for k in ("mean", "sd", "mcse_mean")}
        summary[name] = row | {"negative": float(np.mean(draws < 0))}
    return Sampled(
        summary=summary,
        diagnostics={
            str(name): {k: float(table.at[name, k]) for k in ("r_hat", "ess_bulk", "ess_tail")}
            for name in table.index
        },
        n_divergences=int(idata.sample_stats["diverging"].sum()),
        min_bfmi=float(np.min(az.bfmi(idata))),
        n_draws=N_CHAINS * n_draws,
        idata=idata,
    )


def as_arviz(draws: xr.Dataset) -> Any:
    """Draws (chain, draw) as the installed ArviZ holds them: InferenceData, or a DataTree from 1.0.

    Without ArviZ they are a DataTree with the group `posterior`, which ArviZ 1.0 takes as it is.
    """
    if find_spec("arviz") is None:
        return xr.DataTree.from_dict({"posterior": draws})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    if hasattr(arviz, "InferenceData"):
        return arviz.InferenceData(posterior=draws)
    return xr.DataTree.from_dict({"posterior": draws})


CLOCK = {"process_time_diff", "perf_counter_diff", "perf_counter_start"}
DATED = {"created_at", "sampling_time"}
"""Variables and attributes in which PyMC records times."""


def save_posterior(sampled: Sampled, path: Path) -> None:
    """Write the draws as NetCDF, a group each for posterior, statistics and data, all or nothing.

    Times of sampling are left out, and variables sorted, as PyMC's are not: equal draws give equal
    files.
    """

    def reproducible(group: xr.Dataset) -> xr.Dataset:
        kept = group[sorted(set(map(str, group.data_vars)) - CLOCK)]
        kept.attrs = {name: value for name, value in group.attrs.items() if name not in DATED}
        return kept

    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as part:
        sampled.idata.map(reproducible).to_netcdf(str(part))


def read_posterior(path: str | Path) -> dict[str, xr.Dataset]:
    """The groups of a file of `save_posterior` by name; `posterior` has the draws.

    Each variable has the dimensions `chain` and `draw`. ArviZ need not be installed.
    """
    with xr.open_datatree(path) as tree:
        return {name: group.to_dataset().load() for name, group in tree.children.items()}


@contextmanager
def packages() -> Iterator[tuple[Any, Any]]:
    """PyMC and ArviZ, without progress lines and without ArviZ's notice of its next version.

    ArviZ gives that notice once a day, when it is imported, as a warning. Both write to the user's
    cache folders; raises ValueError if that is impossible.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import arviz
            import pymc
            from pytensor.configdefaults import config

            str(config.compiledir)  # reading it makes PyTensor create the folder
        except (OSError, ValueError) as error:
            raise ValueError(
                f"PyMC cannot write its caches ({error}); set HOME and XDG_CACHE_HOME to writable "
                "folders, or leave NUTS out with --without-nuts"
            ) from error
        logger = logging.getLogger("pymc")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield pymc, arviz
        finally:
            logger.setLevel(level)
