r"""Do intervals have their nominal coverage? Coverage, false alarms, recovery on simulated sweeps.

Sweeps of the study's shape are simulated with a known training effect, variance components, letter
preference and selection of layers, go through stage one, and every method of
`steercube.analysis.over_models.contrast_effect` gives its interval. Simulation-based calibration
(Talts et al. 2018, arXiv:1804.06788) checks the exact posterior itself: truths drawn from its prior
must have ranks that are uniform. Other statistics are simulated in
`steercube.analysis.simulated.operating`.
"""

from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from steercube.analysis.over_models.cell_effects import TERMS, CellEffects, cell_effects
from steercube.analysis.over_models.contrast_effect import by_method
from steercube.analysis.over_models.posterior import PRIOR, fit
from steercube.analysis.simulated.answers import answers_coverage
from steercube.analysis.simulated.grading import grading
from steercube.analysis.simulated.keeping import Keep, made_anew
from steercube.analysis.simulated.operating import operating_characteristics
from steercube.analysis.simulated.sweeps import Scenario, prior_cells, simulate
from steercube.analysis.view import Study
from steercube.estimate import SIGNIFICANT
from steercube.streams import stream

SCENARIOS = (
    *(Scenario(training=b, sd_model=sd) for sd in (0.15, 0.3) for b in (0.0, -0.3)),
    Scenario(training=0.0, sd_model=0.0),
    Scenario(training=0.0, sd_model=0.6),
    Scenario(training=0.0, sd_model=0.15, scale=0.2),
    Scenario(training=0.0, sd_model=0.2, uneven=2.0),
    Scenario(training=0.0, sd_model=0.15, uneven=3.0),
)
N_INTENDED = 4
"""The first N_INTENDED scenarios are those that the interval is designed for; the others, with half
as many sweeps, show how it does elsewhere."""

N_SIMULATIONS = 1_000
N_RESAMPLES = 1_000
METHOD = ["method", "random_effects", "covariates"]
TRUTH = ["training", "sd_model", "scale", "uneven"]
PARTS = ("coverage", "sbc", "operating", "grades", "answers")
"""Parts that can be simulated alone; `coverage` makes the table `recovery` too."""

Row = dict[str, Any]


def calibrate(
    study: Study,
    *,
    n_simulations: int = N_SIMULATIONS,
    n_workers: int = 2,
    only: Collection[str] = PARTS,
    keep: Keep = made_anew,
    report: Callable[[str], None] = print,
) -> dict[str, pd.DataFrame]:
    """Tables `coverage`, `recovery`, `sbc`, `operating`, `grades`, `answers`, or some parts' alone.

    They are the same whatever the number of workers. `keep` saves what each scenario gave, so that
    a run which was cut off goes on. Raises ValueError for a name that is no part.
    """
    if unknown := sorted(set(only) - set(PARTS)):
        raise ValueError(f"only = {unknown}: not among the parts, {', '.join(PARTS)}")
    tables: dict[str, pd.DataFrame] = {}
    with ProcessPoolExecutor(n_workers) as pool:
        in_chunks = partial(pool.map, chunksize=5)
        if "coverage" in only:
            tables |= _contrast_effects(study, n_simulations, in_chunks, keep, report)
        if "sbc" in only:
            report(f"{n_simulations} truths from the prior")
            one_rank = partial(_ranks, cell_effects(study), study.seed)
            simulated = partial(_listed, in_chunks, one_rank, n_simulations)
            ranks = keep(f"ranks, {n_simulations}", simulated)
            tables["sbc"] = uniformity(pd.DataFrame(ranks))
        if "operating" in only:
            tables["operating"] = operating_characteristics(
                study,
                n_simulations=n_simulations,
                map_numbers=in_chunks,
                keep=keep,
                report=report,
            )
        if "answers" in only:
            tables["answers"] = answers_coverage(
                n_simulations=n_simulations,
                seed=study.seed,
                map_scenarios=pool.map,
                keep=keep,
                report=report,
            )
        if "grades" in only:
            tables["grades"] = grading(
                study,
                n_simulations=n_simulations,
                map_numbers=in_chunks,
                keep=keep,
                report=report,
            )
    return tables


def _contrast_effects(
    study: Study,
    n_simulations: int,
    map_numbers: Callable[..., Any],
    keep: Keep,
    report: Callable[[str], None],
) -> dict[str, pd.DataFrame]:
    """Tables `coverage` and `recovery`: the training effect, by every method and scenario."""
    intervals: list[Row] = []
    sds: list[Row] = []
    for number, scenario in enumerate(SCENARIOS):
        n_sweeps = n_simulations if number < N_INTENDED else -(-n_simulations // 2)
        report(f"{n_sweeps} sweeps of {scenario}")
        one = partial(_one_sweep, study, scenario)
        sweeps = partial(_listed, map_numbers, one, n_sweeps)
        for of_effect, of_sds in keep(f"{n_sweeps} sweeps of {scenario}", sweeps):
            intervals += of_effect
            sds += of_sds
    return {
        "coverage": coverage(pd.DataFrame(intervals)),
        "recovery": recovery(pd.DataFrame(sds), study.level),
    }


def _listed(map_numbers: Callable[..., Any], one: Callable[[int], Any], n: int) -> list[Any]:
    return list(map_numbers(one, range(n)))


def _one_sweep(study: Study, scenario: Scenario, number: int) -> tuple[list[Row], list[Row]]:
    """Every method's interval of b_contrast, and the sds of the primary fit, in one sweep."""
    assert study.contrast is not None
    rng = study.stream(f"sweep {number} of {scenario}")
    effects = simulate(study, scenario, rng).effects
    fits = by_method(
        effects,
        contrast=study.contrast,
        level=study.level,
        seed=study.seed + number,
        n_resamples=N_RESAMPLES,
    )
    truth = {name: getattr(scenario, name) for name in TRUTH}
    intervals = [
        truth
        | {name: getattr(effect, name) for name in METHOD}
        | {name: getattr(effect, name) for name in ("estimate", "low", "high", "p_value")}
        for effect in fits
    ]
    posterior = fit(effects, terms=TERMS)
    sds = [
        truth
        | {"component": name, "true": getattr(scenario, name)}
        | {
            "median": posterior.quantile(name, 0.5),
            "below": posterior.cdf(name, getattr(scenario, name)),
        }
        for name in posterior.sds
    ]
    return intervals, sds


def coverage(intervals: pd.DataFrame) -> pd.DataFrame:
    """Per scenario and method: how often the truth is covered, and how often 0 is rejected.

    `rejected` is the false-alarm rate where the truth is 0 and the power elsewhere, by the interval
    or, for a test, by its p; `standard_error` is the coverage's over simulations.
    """
    covered = (intervals["low"] <= intervals["training"]) & (
        intervals["training"] <= intervals["high"]
    )
    has_interval = intervals["low"].notna()
    by_interval = (intervals["low"] > 0) | (intervals["high"] < 0)
    table = intervals.assign(
        coverage=covered.where(has_interval).astype(float),
        rejected=by_interval.where(has_interval, intervals["p_value"] <= SIGNIFICANT).astype(float),
        width=intervals["high"] - intervals["low"],
        bias=intervals["estimate"] - intervals["training"],
    )
    groups = table.groupby([*TRUTH, *METHOD], sort=False)
    means = groups[["coverage", "rejected", "width", "bias"]].mean()
    n = groups.size()
    share = means["coverage"]
    means.insert(1, "standard_error", np.sqrt(share * (1 - share) / n))
    return means.assign(n_simulations=n).reset_index()


def recovery(sds: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Per scenario and sd: the truth, the median's mean and spread, and the interval's coverage."""
    tail = (1 - level) / 2
    covered = sds["below"].between(tail, 1 - tail).astype(float)
    groups = sds.assign(coverage=covered).groupby([*TRUTH, "component"], sort=False)
    return pd.DataFrame(
        {
            "true": groups["true"].first(),
            "mean_of_medians": groups["median"].mean(),
            "sd_of_medians": groups["median"].std(),
            "coverage": groups["coverage"].mean(),
            "n_simulations": groups.size(),
        }
    ).reset_index()


def _ranks(effects: CellEffects, seed: int, number: int) -> Row:
    """Posterior ranks, as shares, of the parameters of one truth drawn from the prior."""
    rng = stream(f"truth {number} from the prior", seed=seed)
    drawn, truth = prior_cells(effects, PRIOR, rng)
    posterior = fit(drawn, terms=TERMS)
    return {name: posterior.cdf(name, value) for name, value in truth.items()}


def uniformity(ranks: pd.DataFrame, n_bins: int = 20) -> pd.DataFrame:
    """Per parameter: counts of the ranks in bins of equal width, and the p of their uniformity."""
    rows = []
    for name, values in ranks.items():
        counts, _ = np.histogram(values, bins=n_bins, range=(0, 1))
        row = {
            "parameter": name,
            "p_value": float(stats.kstest(values, "uniform").pvalue),
            "n_simulations": len(values),
        }
        rows.append(row | {f"bin_{i + 1}": int(count) for i, count in enumerate(counts)})
    return pd.DataFrame(rows)
