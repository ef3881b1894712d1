r"""Changes of rates of answers: of generated answers, of capability, on other concepts' items.

Each change is of one model on the same items at two strengths (`per_cell.changes`). Over models it
is the mean of theirs, Student's t over models with the error of the items that they share
(`means.shared_t`).

No margin decides here, as one means something only if it was named before the data were seen.
Instead `loss_excluded` says beyond which loss the interval excludes every one, and
`change_excluded` beyond which change in either direction: the smallest margins for which no loss,
and no change, would be shown. A p is the exact test of McNemar (1947) of the items that rise
against those that fall, over the items with answers at both strengths.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom, binomtest
from statsmodels.stats.multitest import multipletests

from steercube.analysis.over_models.means import mean_of_models, shared_t
from steercube.analysis.view import Study
from steercube.cells import ANSWER_MODELS, CHANGES
from steercube.contract import MIN_ITEMS
from steercube.estimate import SIGNIFICANT, Estimate
from steercube.measures import GENERATION_MATCH, READ

Row = tuple[dict[str, Any], Estimate]
EVERY_MODEL, EVERY, OWN_MINUS_OTHER = "every model", "every", "own minus other"
NO_LAYER = -1
OF = ["measure", "outcome", "reading", "concept", "direction", "low_strength", "high_strength"]
"""What a change is of, beside the model and the layer."""
TESTED = "changes from strength zero"
EXCLUDING = "of these, intervals that exclude zero"
BELOW = "of these, p below 0.05"
BY_CHANCE = "expected below 0.05 by chance"
TOO_FEW = "too few discordant questions for a p below 0.05"
SMALLEST = "smallest p, corrected (Holm)"
LARGEST_LOSS = "largest of the losses beyond which intervals {} exclude all"


def changes(study: Study) -> list[Row]:
    """Changes of the rates of answers at every layer, with the interval of one layer alone."""
    return [_of_model(row) for row in _records(_of(study, "changes"))]


def capability(study: Study) -> list[Row]:
    """Changes of what was answered correctly, for each model and over models, with their margins.

    Of binary measures other than generated answers. At the end, of the changes from strength zero:
    how many of single models exclude zero or have a p below 0.05, how many would have one by
    chance, given how many questions change at all, the smallest p corrected for their number, and
    the largest `loss_excluded` of single models and over models.
    """
    rows = _with_models(study, _of(study, "capability"))
    single = [
        (labels, estimate)
        for labels, estimate in rows
        if labels["model"] != EVERY_MODEL and labels["low_strength"] == 0
    ]
    single = [(labels, estimate) for labels, estimate in single if np.isfinite(estimate.value)]
    p = np.array([estimate.p_value for _, estimate in single])
    by_chance = [_chance(int(labels["n_rise"] + labels["n_fall"])) for labels, _ in single]
    losses = {
        over: [
            labels["loss_excluded"]
            for labels, estimate in rows
            if estimate.over == over and labels["low_strength"] == 0
        ]
        for over in ("items", "models")
    }
    found = {
        TESTED: Estimate(float(len(p))),
        EXCLUDING: Estimate(float(sum(e.excludes_zero for _, e in single)), n=len(single)),
        BELOW: Estimate(float((p < SIGNIFICANT).sum()), n=len(p)),
        BY_CHANCE: Estimate(float(sum(by_chance)), n=len(p)),
        TOO_FEW: Estimate(float(by_chance.count(0.0)), n=len(p)),
        SMALLEST: Estimate(_smallest_corrected(p), n=len(p)),
    } | {
        LARGEST_LOSS.format(f"over {over}"): Estimate(max(of, default=np.nan), n=len(of))
        for over, of in losses.items()
    }
    about = {"model": EVERY}
    return rows + [
        (about | {"statistic": name}, estimate) for name, estimate in found.items() if rows
    ]


@cache
def _chance(n_changed: int) -> float:
    """The probability, without an effect, that McNemar's test of so many items rejects."""
    rises = np.arange(n_changed + 1)
    p = np.array([binomtest(int(k), n_changed).pvalue if n_changed else 1.0 for k in rises])
    return float(binom.pmf(rises, n_changed, 0.5)[p < SIGNIFICANT].sum())


def _smallest_corrected(p: np.ndarray) -> float:
    return float(multipletests(p, method="holm")[1].min()) if len(p) else np.nan


def specificity(study: Study) -> list[Row]:
    """What each vector does to the answers on its own concept's items, and on other concepts'.

    Of answers as read anew, where no layer is recorded: changes of validity and of the match of
    valid answers, for each model and over models. `items` says whose they are; rows of `own minus
    other` are a model's change on its own items less the mean of those on the others, and their
    mean over models. That a vector moves its own items more can also be due to these: items that
    no vector moves say nothing.
    """
    table = _of(study, "specificity")
    rows = _with_models(study, table)
    for labels, _ in rows:
        labels["items"] = "own" if labels["concept"] == labels["direction"] else "other"
    return rows + _own_minus_other(study, table)


def _own_minus_other(study: Study, table: pd.DataFrame) -> list[Row]:
    """Over models: the change of answers to a vector's own items less the mean of those to others.

    Concepts share no item, so a model's differences have no error in common with another's but
    that of its items, which the t over models holds.
    """
    rows: list[Row] = []
    of_vector = [name for name in OF if name != "concept"]
    counted = table[_has_answers(table)]
    for names, part in counted.groupby(of_vector, sort=False):
        is_own = part["concept"] == part["direction"]
        own = part[is_own].set_index("model")["change"]
        other = part[~is_own].groupby("model")["change"].mean()
        difference = (own - other).dropna()
        if len(difference):
            labels = dict(zip(of_vector, names, strict=True)) | {"concept": OWN_MINUS_OTHER}
            labels |= {"model": EVERY_MODEL, "layer": NO_LAYER, "statistic": "difference"}
            estimate = mean_of_models(difference.to_numpy(), study.level)
            rows.append((labels | {"items": OWN_MINUS_OTHER}, estimate))
    return rows


def _has_answers(table: pd.DataFrame) -> pd.Series:
    """Whether there are enough answers at both strengths for a rate to mean anything."""
    return table[["n_low", "n_high"]].min(axis=1) >= MIN_ITEMS


BY_MODEL, AS_COUNTED = "average change, mixed model", "change, as counted"
LOG_ODDS_RATIO = "log odds ratio, mixed model"
COLUMNS = {BY_MODEL: "average_change", AS_COUNTED: "change", LOG_ODDS_RATIO: "log_odds_ratio"}
"""Of the records of answer models, by the statistic that they hold."""


def answer_models(study: Study) -> list[Row]:
    """Changes of answers at the layers near the logits' best: by a mixed model, and as counted.

    For each model, concept and outcome, with every answer known. Rows of a fit that was refused
    have its reason.
    """
    rows = []
    for row in _records(study.records[ANSWER_MODELS]):
        labels = {name: row[name] for name in ("concept", "model", "outcome")}
        labels["layers"] = f"{row['first_layer']:.0f} to {row['last_layer']:.0f}"
        sds = {name: row[name] for name in ("sd_item", "sd_item_change")}
        for statistic, name in COLUMNS.items():
            low, high = float(row[f"{name}_low"]), float(row[f"{name}_high"])
            estimate = Estimate(
                float(row[name]),
                low=low,
                high=high,
                over="items" if np.isfinite(low) else "",
                n=int(row["n_items"]),
                reason="" if np.isfinite(row[name]) else row["reason"],
            )
            more = {} if statistic == AS_COUNTED else sds
            rows.append((labels | {"statistic": statistic} | more, estimate))
    return rows


def _is_placed(table: pd.DataFrame) -> pd.Series:
    return table["layer"] != NO_LAYER


def _is_answer(table: pd.DataFrame) -> pd.Series:
    return table["measure"] == GENERATION_MATCH.name


CHOSEN: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "changes": _is_placed,
    "capability": lambda table: ~_is_placed(table) & ~_is_answer(table),
    "specificity": lambda table: (
        ~_is_placed(table)
        & _is_answer(table)
        & (table["reading"].isin([READ, ""]))
        & (table["direction"] != "")
    ),
}
"""Which changes each table is of."""


def holds(study: Study, name: str) -> bool:
    """Whether the cells hold a change for the table `name`."""
    return CHANGES in study.records and len(_of(study, name)) > 0


def _of(study: Study, name: str) -> pd.DataFrame:
    table = study.records[CHANGES]
    return table[CHOSEN[name](table)]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")


def _with_models(study: Study, table: pd.DataFrame) -> list[Row]:
    """Rows without a layer: of every model, each followed by the mean over models."""
    rows = []
    for _, alike in table.groupby(OF, sort=False):
        rows += [_of_model(row) for row in _records(alike)]
        rows.append(_over_models(study, alike))
    return rows


def _of_model(row: dict[str, Any]) -> Row:
    value, low, high = (float(row[name]) for name in ("change", "change_low", "change_high"))
    n_rise, n_changed = int(row["n_rise"]), int(row["n_rise"] + row["n_fall"])
    p_value = float(binomtest(n_rise, n_changed).pvalue) if n_changed else 1.0
    reason = "" if np.isfinite(value) else "no answer is valid at one of the strengths"
    estimate = Estimate(
        value,
        low=low,
        high=high,
        over="items" if np.isfinite(low) else "",
        n=int(row["n_items"]),
        p_value=p_value if np.isfinite(value) else np.nan,
        reason=reason,
    )
    counted = ("n_pairs", "n_rise", "n_fall", "rate_low", "rate_high", "change_of_pairs")
    labels = {name: row[name] for name in OF} | {"model": row["model"], "layer": row["layer"]}
    counts = {name: row[name] for name in counted}
    return labels | {"statistic": "change"} | counts | _margins(estimate), estimate


def _over_models(study: Study, alike: pd.DataFrame) -> Row:
    """The mean over models of one change, with the covariance of their errors over items.

    Models with fewer than MIN_ITEMS answers at one of the strengths are left out.
    """
    known = alike[np.isfinite(alike["change"]) & _has_answers(alike)]
    labels = {name: alike[name].iloc[0] for name in OF}
    labels |= {"model": EVERY_MODEL, "layer": NO_LAYER, "statistic": "change"}
    if not len(known):
        undefined = Estimate.undefined(f"no model has {MIN_ITEMS} answers at both strengths")
        return labels | _margins(undefined), undefined
    shared = np.full((len(known), len(known)), known["shared_variance"].mean())
    estimate = shared_t(known["change"].to_numpy(), shared, study.level)
    rates = {
        name: float(known[name].mean()) for name in ("rate_low", "rate_high", "change_of_pairs")
    }
    return labels | rates | _margins(estimate), estimate


def _margins(estimate: Estimate) -> dict[str, float]:
    """The smallest loss, and change, beyond which the interval excludes all."""
    return {
        "loss_excluded": max(0.0, -estimate.low) if np.isfinite(estimate.low) else np.nan,
        "change_excluded": max(abs(estimate.low), abs(estimate.high)),
    }
