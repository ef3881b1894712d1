"""Tables as a post prints them: rounded, intervals beside their values, in Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steercube.analysis.agreement.generation import UPPER_BOUND
from steercube.analysis.over_models.training import UNDERSTATED
from steercube.analysis.per_cell.estimands import NAMES

NONE = "–"
Tables = Mapping[str, pd.DataFrame]


def printed_tables(tables: Tables) -> dict[str, str]:
    """The tables that a post prints, those that the study has rows for, by name."""
    made = {
        "about_models": about_models(tables["about_models"]),
        "about_concepts": tables["about_concepts"].rename(
            columns={"n_items": "items", "n_valid_items": "of two scored choices"}
        ),
        "models": models(tables["models"]),
        "concepts": concepts(tables["concepts"]),
        "depth": _with_interval(tables["depth"], "best depth", ["group"]),
        "training_effect": training_effect(tables["training_effect"]),
        "scale": scale(tables["scale_trends"]),
        "model_deviations": model_deviations(tables["model_deviations"]),
        "difficulty": difficulty(tables["difficulty"]),
        "extraction": extraction(tables["extraction"]),
        "agreement": agreement(tables["agreement"]),
        "conclusions": conclusions(tables["conclusions"]),
    }
    if "readings" in tables:
        made |= {
            "readings": confusion(tables["readings"]),
            "reading_forms": reading_forms(tables["readings"]),
            "reading_results": reading_results(tables["readings"]),
        }
    if "claims" in tables:
        made["claims"] = claims(tables["claims"])
    return {name: _markdown(table) for name, table in made.items() if len(table)}


def about_models(table: pd.DataFrame) -> pd.DataFrame:
    """The models with their sizes in the usual abbreviations."""
    sizes = {name: table[name].map(_size) for name in ("n_params", "n_active_params")}
    names = {
        "n_params": "parameters",
        "n_active_params": "active",
        "n_layers": "blocks",
        "layers_swept": "layers swept",
        "concepts_run": "concepts",
    }
    return table.assign(**sizes).rename(columns=names)


def _size(n_params: float) -> str:
    """Parameters in billions or millions: 4B, 134.5M.

    >>> _size(4e9), _size(134_500_000.0)
    ('4B', '134.5M')
    """
    return f"{n_params / 1e9:.4g}B" if n_params >= 1e9 else f"{n_params / 1e6:.4g}M"


def models(table: pd.DataFrame) -> pd.DataFrame:
    """Each model's average effect over the concepts it ran, a column an estimand."""
    every = table[table["concepts"] == "every concept it ran"]
    of_training = dict(zip(every["model"], every["training"], strict=True))
    wide = _pivot(every, "model")
    wide.insert(0, "training", [of_training[model] for model in wide.index])
    return wide.reset_index()


def concepts(table: pd.DataFrame) -> pd.DataFrame:
    """Each concept's average effect over the models that ran it, a column an estimand."""
    is_mean = (table["statistic"] == "mean") & (table["models"] == "every model that ran it")
    return _pivot(table[is_mean], "concept").reset_index()


def training_effect(table: pd.DataFrame) -> pd.DataFrame:
    """Full RL minus distilled in Cohen's d, by every method that gives a number."""
    if "estimate" not in table:
        return pd.DataFrame()
    of = table[(table["outcome"] == "cohens_d") & table["estimate"].notna()]
    return pd.DataFrame(
        {
            "method": of["method"],
            "takes as random": of["takes_as_random"],
            "held fixed beside training": of["adjusted"].map(_held_fixed),
            "full RL minus distilled, d": [_with_warning(r) for r in of.to_dict("records")],
            "p": of["p_value"].map(_decimals),
            "P(below zero)": of["probability_negative"].map(_decimals),
        }
    )


def _with_warning(row: Mapping[str, Any]) -> str:
    """The interval, and what its row says against it."""
    shown = _interval(row, "estimate")
    if str(row["diagnostics"]).startswith(UNDERSTATED):
        return f"{shown}, {row['diagnostics']}"
    return f"{shown}; {row['reason']}" if row["reason"] else shown


def _held_fixed(adjusted: str) -> str:
    return {"training": NONE, "training and scale": "size"}.get(
        adjusted, adjusted.removeprefix("training and ")
    )


def scale(table: pd.DataFrame) -> pd.DataFrame:
    """Slope of Cohen's d and of delta for a tenfold size, by total and by active parameters."""
    of = table[(table["method"] == "least squares") & table["value"].notna()]
    of = of[of["outcome"].isin(["cohens_d", "delta"])]
    units = {"cohens_d": "d", "delta": "delta (nat)"}
    sizes = {"n_params": "total", "n_active_params": "active"}
    column = [
        f"{units[o]}, {sizes[s]} parameters" for o, s in zip(of["outcome"], of["size"], strict=True)
    ]
    return _wide(of, "concept", column)


def model_deviations(table: pd.DataFrame) -> pd.DataFrame:
    """What each model lies above or below models of its training and size."""
    if "estimate" not in table:
        return pd.DataFrame()
    shown = _with_interval(table, "deviation, d", ["model", "training"], value="estimate")
    return shown.drop(columns="over").assign(
        **{"P(below zero)": table["probability_negative"].map(_decimals)}
    )


def difficulty(table: pd.DataFrame) -> pd.DataFrame:
    """What sets each concept apart, a column a property; none where it is not known."""
    known = table[table["value"].notna()]
    return _wide(known, "concept", list(known["statistic"]))


def extraction(table: pd.DataFrame) -> pd.DataFrame:
    """Does a property of the vector go with the effect."""
    known = table[table["value"].notna()]
    shown = _with_interval(known, "correlation with Cohen's d", ["property", "statistic"])
    return shown.drop(columns="over").assign(
        property=known["property"].str.replace("_", " "), p=known["p_value"].map(_decimals)
    )


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement of logits and answers over all models of a concept."""
    if not len(table):
        return table
    pooled = table[(table["model"] == "every model") & table["value"].notna()]
    bound = pooled["reason"].fillna("").str.startswith(UPPER_BOUND)
    named = pooled["statistic"].where(~bound, pooled["statistic"] + " (an upper bound)")
    return _with_interval(
        pooled.assign(statistic=named), "value [interval]", ["concept", "statistic"]
    )


def confusion(table: pd.DataFrame) -> pd.DataFrame:
    """Responses by the letter read anew, a row each, and by the published letter, a column each."""
    return _published_across(table[table["form"] == ""], [])


def reading_forms(table: pd.DataFrame) -> pd.DataFrame:
    """The same for each form of a response."""
    of_forms = table[table["form"] != ""]
    return _published_across(of_forms, ["form"]).rename(columns={"form": "form of the response"})


def _published_across(table: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    of = table[(table["statistic"] == "responses") & (table["read_as"] != "")]
    counts = of.assign(
        read_as=of["read_as"].map(_option),
        published_as="published: " + of["published_as"].map(_option),
        value=of["value"].map("{:,.0f}".format),
    )
    rows = ["concept", "model", *labels, "read_as"]
    wide = _across(counts, rows, "published_as", "value")
    return wide.rename(columns={"read_as": "read anew"})


def _option(letter: str) -> str:
    return "no choice" if letter == "none" else f"({letter})"


def reading_results(table: pd.DataFrame) -> pd.DataFrame:
    """What follows from each reading of the same responses, a column a reading."""
    of = table[(table["reading"] != "") & (table["statistic"] != "with a choice")]
    of = of[of["statistic"] != "layer of the best change"]
    shown = of.assign(shown=[_interval(row) for row in of.to_dict("records")])
    names = {"statistic": "result", "published": "published reading"}
    return _across(shown, ["concept", "model", "statistic"], "reading", "shown").rename(
        columns=names
    )


def _across(table: pd.DataFrame, labels: list[str], columns: str, values: str) -> pd.DataFrame:
    """One text a cell, a row for each of the labels and a column for each of `columns`."""
    wide = table.pivot_table(
        index=labels, columns=columns, values=values, aggfunc="first", sort=False
    )
    return wide.rename_axis(columns=None).reset_index()


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """The ledger: published, recomputed as printed, balanced, interval, verdict."""
    rows = table.to_dict("records")
    return pd.DataFrame(
        {
            "id": table["id"],
            "verdict": table["verdict"],
            "claim": table["claim"],
            "published": table["published"],
            "recomputed": table["recomputed_as_printed"],
            "balanced": [_as_published(row, "balanced") for row in rows],
            "interval": [_interval_as_published(row) for row in rows],
            "over": table["interval_over"],
            **_p_column(table),
            "reason": table["reason"],
        }
    )


def conclusions(table: pd.DataFrame) -> pd.DataFrame:
    """Every question with its verdict, its sentence, and its p where it has a test."""
    return table[["id", "verdict", "sentence"]].assign(**_p_column(table))


def _p_column(table: pd.DataFrame) -> dict[str, list[str]]:
    """The p-values with Holm's within their family, 0.067 (0.800); no column without a test."""
    pairs = list(zip(table["p_value"], table["p_holm"], strict=True))
    if not any(np.isfinite(p) for p, _ in pairs):
        return {}
    return {"p (Holm)": [f"{_p(p)} ({_p(holm)})" if np.isfinite(p) else NONE for p, holm in pairs]}


def _p(value: float) -> str:
    """A p-value to three decimals, or the digit that matters of a smaller one.

    >>> _p(0.0666), _p(0.0005)
    ('0.067', '0.0005')
    """
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _as_published(row: Mapping[str, Any], name: str) -> str:
    """A percentage where the claim is one."""
    if not np.isfinite(row[name]) or "%" not in row["published"]:
        return _decimals(row[name])
    return f"{row[name]:.0%}".replace("-", "−")


def _interval_as_published(row: Mapping[str, Any]) -> str:
    if not np.isfinite(row["low"]):
        return NONE
    return f"[{_as_published(row, 'low')}, {_as_published(row, 'high')}]"


def _pivot(table: pd.DataFrame, index: str) -> pd.DataFrame:
    names = NAMES | {"delta": "delta (nat)"}
    return _wide(table, index, [names.get(e, e) for e in table["estimand"]]).set_index(index)


def _wide(table: pd.DataFrame, index: str, columns: Sequence[str]) -> pd.DataFrame:
    """Values with their intervals, a row an `index`, in the order that they come in."""
    shown = pd.DataFrame(
        {
            index: table[index].to_numpy(),
            "column": list(columns),
            "shown": [_interval(row) for row in table.to_dict("records")],
        }
    )
    if not len(shown):
        return shown[[index]]
    order = {name: list(dict.fromkeys(shown[name])) for name in (index, "column")}
    wide = shown.pivot(index=index, columns="column", values="shown").fillna(NONE)
    return wide.loc[order[index], order["column"]].rename_axis(columns=None).reset_index()


def _with_interval(
    table: pd.DataFrame, name: str, labels: list[str], value: str = "value"
) -> pd.DataFrame:
    shown = [_interval(row, value) for row in table.to_dict("records")]
    return table[labels].assign(**{name: shown, "over": table["interval_over"]})


def _interval(row: Mapping[str, Any], value: str = "value") -> str:
    """0.97 [0.54, 1.35], with the corrected value beside one that no interval holds."""
    shown, corrected = _decimals(row[value]), row.get("corrected", np.nan)
    if not is_held(row[value], row["low"], row["high"]) and np.isfinite(corrected):
        shown += f" (corrected {_decimals(corrected)})"
    return f"{shown} {_ends(row)}".removesuffix(f" {NONE}")


def is_held(value: float, low: float, high: float) -> bool:
    """Whether a value lies in its interval; False where there is none.

    The value of a selected layer may lie outside, because its interval is about the effect less the
    optimism of the selection.
    """
    return bool(low <= value <= high)


def _ends(row: Mapping[str, Any]) -> str:
    if not np.isfinite(row["low"]):
        return NONE
    return f"[{_decimals(row['low'])}, {_decimals(row['high'])}]"


def _decimals(value: float) -> str:
    """Two decimals, more where two would show nothing, a minus sign that is one.

    >>> _decimals(-0.25), _decimals(0.0031), _decimals(float("nan"))
    ('−0.25', '0.0031', '–')
    """
    if not np.isfinite(value):
        return NONE
    text = f"{value:.2f}"
    if float(text) == 0 and value != 0:
        text = f"{value:.2g}"
    return text.replace("-", "−")


def _markdown(table: pd.DataFrame) -> str:
    header = "| " + " | ".join(map(plain, table.columns)) + " |"
    rule = "|" + " --- |" * table.shape[1]
    rows = ["| " + " | ".join(map(plain, row)) + " |" for row in table.fillna("").to_numpy()]
    return "\n".join([header, rule, *rows]) + "\n"


ACTIVE = re.compile(r"\](?=[(\[])|[|<$`*!\\]")
"""What begins a link, a picture, code, an equation or a cell."""
PRIVATE = re.compile("[\ue000-\uf8ff]")


def plain(value: Any) -> str:
    r"""A text of a cube as Markdown that shows it as it is, on one line.

    >>> print(plain("![x](y) a|b"))
    \![x\](y) a\|b
    """
    return ACTIVE.sub(r"\\\g<0>", " ".join(PRIVATE.sub("", str(value)).split()))
