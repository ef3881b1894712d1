"""The conclusions as tidy tables: one row a statement, every number with its interval."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from steercube.analysis.agreement.agreement import (
    MEAN_R,
    MISMATCHED,
    agreement_against_effect,
    agreement_by_blocks,
    agreement_effect_correlation,
    curve_agreement,
    disattenuated,
    matched_minus_mismatched,
    model_agreement,
    pooled_agreement,
    published_against_responses,
    published_reading_agreement,
    reliabilities,
    repeated_measures,
    response_agreement,
    response_reliability,
    shift_test,
)
from steercube.analysis.agreement.generation import (
    best_generation,
    best_generation_excess,
    best_generation_layer,
    best_response,
    expected_maximum,
    generation,
    generation_delta,
    has_other_responses,
    is_counted,
    layer_curves,
)
from steercube.analysis.conclusions.claims import Claim, ledger
from steercube.analysis.conclusions.conclusions import conclusions
from steercube.analysis.conclusions.counts import (
    about_concepts,
    about_models,
    counts,
    counts_of_claims,
    counts_of_pairs,
)
from steercube.analysis.conclusions.multiplicity import families, with_holm
from steercube.analysis.conclusions.selection import direction_flag, largest_effect, layer_flag
from steercube.analysis.conclusions.sensitivity import sensitivity
from steercube.analysis.over_models.components import variance_components
from steercube.analysis.over_models.concordance import (
    concept_share,
    concept_share_of_all,
    concordance_of_ranks,
    pairwise_concordance,
    rank_agreement,
)
from steercube.analysis.over_models.contrasts import scale_slope
from steercube.analysis.over_models.depth import (
    depth_difference,
    model_depth,
    selection_interval,
    training_depth,
)
from steercube.analysis.over_models.design import design_table
from steercube.analysis.over_models.leave_one_out import leave_one_out, prior_sensitivity
from steercube.analysis.over_models.means import (
    HIGH,
    LOW,
    best_effects,
    complete_concepts,
    complete_models,
    concept_mean,
    level_of,
    mean_over_models,
    model_mean,
    swept_models,
)
from steercube.analysis.over_models.multiverse import Multiverse, multiverse
from steercube.analysis.over_models.nuts import Sampled
from steercube.analysis.over_models.posterior import (
    OUTCOMES,
    fit,
    primary_terms,
    usable_effects,
)
from steercube.analysis.over_models.predictive import predictive_checks
from steercube.analysis.over_models.questions import difficulty, extraction, model_deviations
from steercube.analysis.over_models.scale import SCALED, scale_trends
from steercube.analysis.over_models.training import training_effects
from steercube.analysis.per_cell.estimands import ESTIMANDS
from steercube.analysis.per_cell.readings import readings
from steercube.analysis.per_cell.steers import steering
from steercube.cells import (
    CONTROL_VARIABLES,
    OF_THE_VECTOR,
    REASONS,
    unrecorded_estimands,
    with_every_estimand,
)
from steercube.estimate import Estimate
from steercube.streams import stream

AVERAGED = ("delta", "cohens_d", "within_letter_d", "glass_delta_negative", "glass_delta_baseline")
"""Estimands that the tables of models and concepts average."""

Labels = Mapping[str, Any]
Report = Callable[[str], None]


class Tables(Mapping[str, pd.DataFrame]):
    """The tables of a study by name, each made when it is first asked for, and then kept.

    A table that is made from others asks for them here, so none is made twice.
    """

    def __init__(
        self,
        cells: xr.Dataset,
        claims: Sequence[Claim] = (),
        sampled: Mapping[str, Sampled] | None = None,
        report: Report = lambda name: None,
    ) -> None:
        self.cells, self.claims, self.sampled, self.report = cells, claims, sampled, report
        left_out = {
            "controls": not any(name in cells for name in CONTROL_VARIABLES),
            "claims": not claims,
            "readings": "n_readings" not in cells,
        }
        self._makers = {k: make for k, make in MAKERS.items() if not left_out.get(k)}
        self._made: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._made:
            make = self._makers[name]
            self.report(name)
            self._made[name] = make(self)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    @cached_property
    def multiverse(self) -> Multiverse:
        """Every specification, which two tables tell of."""
        return multiverse(self.cells)


def conclude(
    cells: xr.Dataset,
    claims: Sequence[Claim] = (),
    *,
    sampled: Mapping[str, Sampled] | None = None,
    only: Collection[str] | None = None,
    report: Report = lambda name: None,
) -> dict[str, pd.DataFrame]:
    """Every table of a study, by name, or `only` the ones named.

    Without claims there is no table of claims, without controls in the cells none of controls,
    without a published reading of responses none of readings.
    `sampled` are NUTS fits of the hierarchical model, by outcome, to stand beside the exact one.
    `report` is called with the name of each table when it is begun.

    Raises ValueError for cells without any effect, and for a name that is no table's.
    """
    if not swept_models(cells):
        raise ValueError(
            "the cells hold no effect: every (model, concept, layer) is unrun, failed, not finite "
            "or of too few items; `reason` in the cells says which."
        )
    if unknown := sorted(set(only or ()) - set(MAKERS)):
        raise ValueError(f"only = {unknown}: not among the tables, {', '.join(MAKERS)}")
    tables = Tables(with_every_estimand(cells), claims, sampled, report)
    return {name: tables[name] for name in tables if only is None or name in only}


def _counts(tables: Tables) -> pd.DataFrame:
    found = [counts(tables.cells), counts_of_pairs(tables["effects"])]
    if tables.claims:
        found.append(counts_of_claims(tables["claims"]))
    return pd.concat(found)


def _specifications(tables: Tables) -> pd.DataFrame:
    every = tables.multiverse
    return pd.DataFrame([{"reason": every.reason}]) if every.reason else every.table


def multiverse_summary(every: Multiverse) -> pd.DataFrame:
    """Medians of all specifications with their joint p; the share of variance of each choice."""
    if every.reason:
        return pd.DataFrame([{"reason": every.reason}])
    summary = [
        {"statistic": name} | dict(zip(("value", "p_value", "least_p", "n"), median, strict=True))
        for name, median in every.medians.items()
    ]
    shares = [{"statistic": f"share of variance: {k}", "value": v} for k, v in every.shares.items()]
    return pd.DataFrame([*summary, *shares])


def concordance(cells: xr.Dataset) -> pd.DataFrame:
    """Do models rank the concepts alike: the share they have in common, W, and single models."""
    rows: list[tuple[Labels, Estimate]] = []
    every = {"model": "every model", "model_other": "every model"}
    for estimand in SCALED:
        of_all = {
            "share of variance common to models": concept_share(cells, estimand=estimand),
            "share of variance between concepts": concept_share_of_all(cells, estimand=estimand),
            "Kendall's W": concordance_of_ranks(cells, estimand=estimand),
        }
        for statistic, found in of_all.items():
            rows.append(({"estimand": estimand, "statistic": statistic} | every, found))
        labels = {"estimand": estimand, "statistic": "rank correlation with the others"}
        for model, found in rank_agreement(cells, estimand=estimand):
            rows.append((labels | {"model": model, "model_other": "the others"}, found))
        labels = {"estimand": estimand, "statistic": "Kendall's tau"}
        for (one, other), found in pairwise_concordance(cells, estimand=estimand):
            rows.append((labels | {"model": one, "model_other": other}, found))
    return _table(rows)


def checks(cells: xr.Dataset) -> pd.DataFrame:
    """Prior and posterior predictive checks of the primary model, every outcome."""
    rows: list[dict[str, Any]] = []
    for outcome in OUTCOMES:
        try:
            effects = usable_effects(cells, outcome, ())
        except ValueError as error:
            rows.append({"outcome": outcome, "reason": str(error)})
            continue
        rng = stream(f"predictive checks of {outcome}", seed=int(cells.attrs["seed"]))
        posterior = fit(effects, terms=primary_terms(effects))
        rows += predictive_checks(posterior, rng, level=level_of(cells))
    return pd.DataFrame(rows)


def _table(rows: Sequence[tuple[Labels, Estimate]]) -> pd.DataFrame:
    """Labels and estimates as columns; a span becomes its two ends."""
    records = []
    for labels, estimate in rows:
        fields = asdict(estimate)
        smallest, largest = fields.pop("span")
        fields["interval_over"] = fields.pop("over")
        records.append(dict(labels) | fields | {"smallest": smallest, "largest": largest})
    table = pd.DataFrame(records)
    return table[[c for c in table if c != "reason"] + ["reason"]] if len(table) else table


def effects(cells: xr.Dataset) -> pd.DataFrame:
    """Best layer of each (model, concept) with every estimand there.

    `optimism`, `corrected`, `se` and `split_half` are Cohen's d's; those of another estimand carry
    its name. Rows that were never run say why and hold no number; the others say which estimands
    the cells lack. `steers` is the verdict of a test over all layers
    (`steercube.analysis.per_cell.steers`), not of the interval at the best one. What is beside that
    layer is in `layer_flag`; `largest_effect` is Cohen's d where |delta| is largest, with its sign,
    and `direction_flag` says whether that is the other way.
    """
    rows = []
    lacking = ", ".join(unrecorded_estimands(cells))
    told = steering(cells)
    for model in swept_models(cells):
        for concept in map(str, cells["concept"].values):
            cell = cells.sel(model=model, concept=concept)
            of_layers = cell["estimate"]
            cell = cell[[n for n in cell.data_vars if str(n).startswith("selected_")]]
            layer = float(cell["selected_layer"])
            depth = selection_interval(cells, model, concept)
            row = {
                "model": model,
                "concept": concept,
                "training": cell["training"].item(),
                "layer": layer if np.isnan(layer) else int(layer),
                "depth": depth.value,
                "depth_low": depth.low,
                "depth_high": depth.high,
                "depth_reason": depth.reason,
                "n": int(cell["n_items"]),
            }
            for name in ESTIMANDS:
                row |= _selected_columns(cell.sel(estimand=name), name)
            row |= _steering_columns(told, model, concept)
            row |= _selection_columns(of_layers, layer, row["steers_other_way"])
            row["reason"] = _reason_text(cell.sel(estimand="cohens_d")) or (
                f"not recorded: {lacking}" if lacking else ""
            )
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype({"layer": "Int64", "largest_effect_layer": "Int64"})


def _steering_columns(told: pd.DataFrame, model: str, concept: str) -> dict[str, Any]:
    """What the test over layers says of a pair; empty where it was never run."""
    if (model, concept) in told.index:
        return told.loc[(model, concept)].to_dict()
    return {name: np.nan if name.startswith("p_") else "" for name in told}


def _selection_columns(of_layers: xr.DataArray, best: float, other_way: str) -> dict[str, Any]:
    delta = of_layers.sel(estimand="delta")
    largest = largest_effect(delta, of_layers.sel(estimand="cohens_d"))
    swept = delta["layer"].values[delta.notnull().values]
    return {
        "layer_flag": layer_flag(swept, best, int(of_layers["n_layers"])),
        "largest_effect": largest.effect,
        "largest_effect_layer": largest.layer,
        "direction_flag": direction_flag(largest, other_way),
    }


def _selected_columns(cell: xr.Dataset, name: str) -> dict[str, float]:
    estimate, optimism = float(cell["selected_estimate"]), float(cell["selected_optimism"])
    prefix = "" if name == "cohens_d" else f"{name}_"
    return {
        name: estimate,
        f"{name}_low": float(cell["selected_low"]),
        f"{name}_high": float(cell["selected_high"]),
        f"{prefix}optimism": optimism,
        f"{prefix}corrected": estimate - optimism,
        f"{prefix}se": float(cell["selected_se"]),
        f"{prefix}split_half": float(cell["selected_split_half"]),
    }


def _reason_text(cell: xr.Dataset) -> str:
    reason = int(cell["selected_reason"])
    return "" if not reason else next(n for n, v in REASONS.items() if v == reason)


def layer_effects(cells: xr.Dataset) -> pd.DataFrame:
    """Every layer of every (model, concept): main estimands, with pointwise t intervals.

    The intervals take the layer as given; for the layer that was selected use `effects`.
    """
    names = ["delta", "cohens_d", "within_letter_d", "letter_shift"]
    run = cells["estimate"].sel(estimand="delta").notnull()
    half = stats.t.ppf((1 + level_of(cells)) / 2, cells["n_items"].values - 1)
    columns: dict[str, xr.DataArray] = {"depth": cells["depth"]}
    for name in names:
        estimate = cells["estimate"].sel(estimand=name, drop=True)
        margin = cells["standard_error"].sel(estimand=name, drop=True) * xr.DataArray(
            half, dims="concept"
        )
        columns |= {name: estimate, f"{name}_low": estimate - margin}
        columns[f"{name}_high"] = estimate + margin
    columns["selection_frequency"] = cells["selection_frequency"]
    columns |= {name: cells[name] for name in OF_THE_VECTOR if name in cells}
    if "generation_rate" in cells:
        columns["generation_delta"] = generation_delta(cells)
        if "generation_valid_rate" in cells:
            columns["generation_valid_rate"] = cells["generation_valid_rate"]
        run = run | columns["generation_delta"].notnull()
    bare = {name: column.reset_coords(drop=True) for name, column in columns.items()}
    order = ["model", "concept", "layer"]
    ds = xr.Dataset(bare).assign(run=run.reset_coords(drop=True))
    by_size = cells["model"].values[np.argsort(cells["n_params"].values, kind="stable")]
    frame = ds.sel(model=by_size).to_dataframe(dim_order=order).reset_index()
    return frame[frame["run"]].drop(columns="run").reset_index(drop=True)


def controls(cells: xr.Dataset) -> pd.DataFrame:
    """What the vector does beside directions of equal norm that are not the concept's.

    `best_...` is at the layer of the direction's own largest delta, so that a control is selected
    as the vector is; `..._at_vectors_layer` at the vector's. Point estimates: the interval of the
    vector's is in `effects`.
    """
    rows = []
    directions = {"concept": "estimate"} | {
        name.removeprefix("estimate_"): name for name in CONTROL_VARIABLES if name in cells
    }
    chosen = cells["selected_layer"]
    for model in swept_models(cells):
        for concept in map(str, cells["concept"].values):
            layer = chosen.sel(model=model, concept=concept).item()
            for direction, name in directions.items():
                of_layers = cells[name].sel(model=model, concept=concept)
                has_effect = of_layers.sel(estimand="delta").notnull().values
                of_layers = of_layers.isel(layer=np.flatnonzero(has_effect))
                if np.isnan(layer) or not of_layers.sizes["layer"]:
                    continue
                best = of_layers["layer"][int(of_layers.sel(estimand="delta").argmax("layer"))]
                row = {"model": model, "concept": concept, "direction": direction}
                for estimand in ("delta", "cohens_d"):
                    of_estimand = of_layers.sel(estimand=estimand)
                    row[f"{estimand}_at_vectors_layer"] = of_estimand.sel(layer=layer).item()
                    row[f"best_{estimand}"] = of_estimand.sel(layer=best).item()
                rows.append(row | {"vectors_layer": int(layer), "best_layer": int(best)})
    return pd.DataFrame(rows)


def models(cells: xr.Dataset) -> pd.DataFrame:
    """Average best-layer effect of each model, over its own concepts and over complete ones."""
    rows = []
    sets = {"every concept it ran": None, "concepts that every model ran": complete_concepts(cells)}
    for estimand in AVERAGED:
        for over, which in sets.items():
            for model in swept_models(cells):
                effects = best_effects(cells, estimand, models=[model], concepts=which)
                labels = {
                    "model": model,
                    "training": cells["training"].sel(model=model).item(),
                    "n_params": cells["n_params"].sel(model=model).item(),
                    "estimand": estimand,
                    "concepts": over,
                    "n_concepts": int(effects.notnull().sum()),
                }
                mean = model_mean(cells, estimand=estimand, model=model, concepts=which)
                rows.append((labels, mean))
            for training in sorted(set(cells["training"].sel(model=swept_models(cells)).values)):
                labels = {
                    "model": f"mean of {training} models",
                    "training": str(training),
                    "n_params": np.nan,
                    "estimand": estimand,
                    "concepts": over,
                    "n_concepts": len(which if which is not None else cells["concept"]),
                }
                mean = mean_over_models(
                    cells, estimand=estimand, training=str(training), concepts=which
                )
                rows.append((labels, mean))
    return _table(rows)


def concepts(cells: xr.Dataset) -> pd.DataFrame:
    """Average best-layer effect of each concept over models, and its slope on scale."""
    rows = []
    sets = {
        "every model that ran it": None,
        "models that ran every concept": complete_models(cells),
    }
    for estimand in AVERAGED:
        for over, which in sets.items():
            for concept in map(str, cells["concept"].values):
                labels = {"concept": concept, "estimand": estimand, "models": over}
                for name, statistic in {
                    "mean": concept_mean,
                    "slope on log10 parameters": scale_slope,
                }.items():
                    estimate = statistic(cells, estimand=estimand, concept=concept, models=which)
                    rows.append((labels | {"statistic": name}, estimate))
    return _table(rows)


def depth(cells: xr.Dataset) -> pd.DataFrame:
    """Typical best depth of each model and each training, and the difference between trainings."""
    rows: list[tuple[Labels, Estimate]] = []
    swept = swept_models(cells)
    training_of = {m: cells["training"].sel(model=m).item() for m in swept}
    for model, training in training_of.items():
        rows.append(({"group": model, "training": training}, model_depth(cells, model=model)))
    for training in sorted(set(training_of.values())):
        labels = {"group": f"{training} models", "training": training}
        rows.append((labels, training_depth(cells, training=training)))
    if {LOW, HIGH} <= set(training_of.values()):
        rows.append(({"group": f"{HIGH} minus {LOW}", "training": ""}, depth_difference(cells)))
    return _table(rows)


PUBLISHED_METHOD = "r, layers of all models pooled (published method)"
R_OVER_LAYERS = "r over layers"
SHIFTS = "r against circular shifts"
R_EVERY_RESPONSE = "r over layers, every response"
EFFECTS_OF_AGREEMENT = ("cohens_d", "within_letter_d", "delta")
"""Effects that agreement is compared with."""


def agreement(cells: xr.Dataset) -> pd.DataFrame:
    """Agreement of logits and generations by layer: as published, model by model, and pooled."""
    rows: list[tuple[Labels, Estimate]] = []
    concepts = [
        str(c) for c in cells["concept"].values if layer_curves(cells, concept=str(c), models=None)
    ]
    for concept in concepts:
        for model in layer_curves(cells, concept=concept, models=None):
            labels = {"concept": concept, "model": model}
            found = _agreement_of_model(cells, concept, model)
            rows += [(labels | {"statistic": name}, estimate) for name, estimate in found.items()]
        labels = {"concept": concept, "model": "every model"}
        statistics: dict[str, Callable[..., Estimate]] = {
            PUBLISHED_METHOD: pooled_agreement,
            MEAN_R: model_agreement,
            SHIFTS: shift_test,
            "mean r, models and blocks of layers resampled": agreement_by_blocks,
            MISMATCHED: matched_minus_mismatched,
            "repeated-measures r (pingouin)": repeated_measures,
            "mean best generation delta": best_generation,
            "mean best generation delta less its null": best_generation_excess,
        }
        names = layer_curves(cells, concept=concept, models=None)
        if any(has_other_responses(cells, model, concept) for model in names):
            statistics[f"{MEAN_R}, every response where known"] = partial(
                model_agreement, every_response=True
            )
        for name, statistic in statistics.items():
            rows.append((labels | {"statistic": name}, statistic(cells, concept=concept)))
    labels = {"concept": "every concept", "model": "every model"}
    for estimand in EFFECTS_OF_AGREEMENT if concepts else ():
        for name, of_effect in {
            f"slope of r on {estimand}": agreement_against_effect,
            f"correlation of r with {estimand}": agreement_effect_correlation,
        }.items():
            estimate = of_effect(cells, estimand=estimand)
            rows.append((labels | {"statistic": name}, estimate))
    return _table(rows)


def _agreement_of_model(cells: xr.Dataset, concept: str, model: str) -> dict[str, Estimate]:
    """What one pair of curves says, by the name of the statistic; nothing that has no number."""
    reliable = reliabilities(cells, concept=concept, model=model)
    curves = layer_curves(cells, concept=concept, models=[model])
    counted = is_counted(cells, model, concept)
    found = {
        R_OVER_LAYERS: curve_agreement(cells, concept=concept, model=model),
        SHIFTS: shift_test(cells, concept=concept, models=[model]),
        "reliability of the logit curve": reliable["logit"],
        "reliability of the generation curve": reliable["generation"],
        "r without noise (disattenuated)": disattenuated(cells, concept=concept, model=model),
        MISMATCHED: matched_minus_mismatched(cells, concept=concept, models=[model]),
        "best generation layer": best_generation_layer(cells, concept=concept, model=model),
        "best generation delta": best_response(cells, concept=concept, model=model)
        if counted
        else Estimate(
            float(curves[model][1].max()),
            expected_under_null=expected_maximum(cells, concept=concept, model=model),
            n=1,
            reason="one maximum over layers has no interval of its own",
        ),
    }
    if has_other_responses(cells, model, concept):
        from_responses = response_agreement(cells, concept=concept, model=model)
        alike = cells["responses_read_alike"].sel(model=model, concept=concept)
        found |= {
            R_EVERY_RESPONSE: from_responses,
            f"{SHIFTS}, every response": shift_test(
                cells, concept=concept, models=[model], every_response=True
            ),
            "reliability of the responses' curve": response_reliability(
                cells, concept=concept, model=model
            ),
            f"{R_EVERY_RESPONSE}, without noise": disattenuated(
                cells, concept=concept, model=model, every_response=True
            ),
            f"{R_EVERY_RESPONSE} as the study read it": published_reading_agreement(
                cells, concept=concept, model=model
            ),
            "best generation delta, every response": best_response(
                cells, concept=concept, model=model
            ),
            "r of the published and the counted generation curve": published_against_responses(
                cells, concept=concept, model=model
            ),
            "share of responses read as published": Estimate(
                float(alike), n=int(from_responses.n), reason="a census of the responses"
            ),
        }
    return found


MAKERS: dict[str, Callable[[Tables], pd.DataFrame]] = {
    "about_models": lambda t: about_models(t.cells),
    "about_concepts": lambda t: about_concepts(t.cells),
    "counts": _counts,
    "effects": lambda t: effects(t.cells),
    "layer_effects": lambda t: layer_effects(t.cells),
    "models": lambda t: models(t.cells),
    "concepts": lambda t: concepts(t.cells),
    "depth": lambda t: depth(t.cells),
    "generation": lambda t: generation(t.cells),
    "agreement": lambda t: agreement(t.cells),
    "readings": lambda t: readings(t.cells),
    "sensitivity": lambda t: _table(sensitivity(t.cells)),
    "model_deviations": lambda t: pd.DataFrame(model_deviations(t.cells)),
    "difficulty": lambda t: _table(list(difficulty(t.cells))),
    "extraction": lambda t: _table(list(extraction(t.cells))),
    "controls": lambda t: controls(t.cells),
    "training_effect": lambda t: pd.DataFrame(training_effects(t.cells, sampled=t.sampled)),
    "scale_trends": lambda t: with_holm(_table(scale_trends(t.cells)), "method"),
    "variance_components": lambda t: pd.DataFrame(variance_components(t.cells, sampled=t.sampled)),
    "concordance": lambda t: concordance(t.cells),
    "multiverse": _specifications,
    "multiverse_summary": lambda t: multiverse_summary(t.multiverse),
    "design": lambda t: pd.DataFrame(design_table(t.cells)),
    "leave_one_out": lambda t: pd.DataFrame(leave_one_out(t.cells)),
    "prior_sensitivity": lambda t: pd.DataFrame(prior_sensitivity(t.cells)),
    "predictive_checks": lambda t: checks(t.cells),
    "conclusions": lambda t: with_holm(conclusions(t.cells, t, t.claims)),
    "claims": lambda t: with_holm(ledger(t.cells, t.claims)),
    "multiplicity": families,
}
"""Every table of a study and how it is made, in the order of the analysis."""
