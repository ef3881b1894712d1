"""Measures: what a sweep records of every model, concept, layer, strength and item.

A measure's record lives in the attributes of its variable, so a file explains itself, and a
measure that comes from a table (a judge's score, whether an answer was correct) needs no code.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from steercube.schema import Variable

__all__ = ["MEASURES", "Measure", "measure_of"]

KINDS = {
    "continuous": "any number",
    "binary": "0 or 1, or the share of an item's repeats that are 1",
}
SLOPE = "slope"
"""Value of `Measure.compare` for an effect that is the slope over all strengths."""
CELL = ("model", "concept", "layer")
"""Dimensions of a cell."""
READ, PUBLISHED = "read anew", "published"
"""Labels of `reading`: answers read by `steercube.answers`, and as a study published them."""
ESTIMAND_UNITS = {
    "delta": "nat",
    "cohens_d": "1",
    "hedges_g": "1",
    "glass_delta_negative": "1",
    "glass_delta_baseline": "1",
    "d_z": "1",
    "within_letter_d": "1",
    "content_shift": "nat",
    "letter_shift": "nat",
    "steerability_slope": "nat per unit strength",
    "anti_steerable_share": "1",
    "trimmed_d": "1",
    "cliffs_delta": "1",
}
"""Every estimand, with its units for a measure in nats. Cells may lack some of them;
`cells.with_every_estimand` adds these as NaN."""
NEEDED_ESTIMANDS = ("delta", "cohens_d")
"""Estimands without which cells support no conclusion."""
SAMPLES = "samples"
"""Placeholder, in the dims of a column, for all dims of its measure."""


@dataclass(frozen=True)
class Measure:
    """The record of one measure: what its values are, and how an effect is computed from them.

    - `name`: the variable, and the path of its grid in a cube.
    - `kind`: one of KINDS; `units`: of its values ("1" for none).
    - `words`: its name in a sentence; `toward`: what a larger value means.
    - `layer_by`: the measure whose largest effect selects the layer; empty for the measure itself.
    - `compare`: the two strengths, low and high, whose difference is the effect; or SLOPE.
    - `estimands`: those to compute; empty for all.
    - `prior_unit`: the effect that priors are scaled by, and `rope`: the half-width of the region
      of practical equivalence, both in `units`; NaN for the root mean square of the effects, and a
      tenth of it.
    - `columns`: further variables of its grid, by name.
    - `settings`: names of attributes that say how its values were made; they must be equal in
      cubes that are merged.
    """

    name: str
    kind: str = "continuous"
    units: str = "1"
    words: str = ""
    toward: str = ""
    layer_by: str = ""
    compare: tuple[float, float] | str = (-1.0, 1.0)
    estimands: tuple[str, ...] = ()
    prior_unit: float = np.nan
    rope: float = np.nan
    columns: Mapping[str, Variable] = field(default_factory=dict)
    settings: tuple[str, ...] = ()

    @property
    def attrs(self) -> dict[str, Any]:
        """The record as attributes of the measure's variable."""
        compare = self.compare if isinstance(self.compare, str) else list(self.compare)
        return {
            "long_name": self.words or self.name.replace("_", " "),
            "units": self.units,
            "kind": self.kind,
            "toward": self.toward,
            "layer_by": self.layer_by or self.name,
            "compare": compare,
            "estimands": " ".join(self.estimands),
            "prior_unit": self.prior_unit,
            "rope": self.rope,
        }

    def ends(self, strengths: Iterable[float]) -> tuple[float, float]:
        """The compared strengths, low and high; for a slope, the smallest and largest swept."""
        if isinstance(self.compare, str):
            return min(strengths), max(strengths)
        return self.compare

    @property
    def compared(self) -> str:
        """The compared strengths in words.

        >>> Measure("x").compared, Measure("x", compare="slope").compared
        ('+1 minus -1', 'slope over all strengths')
        """
        if isinstance(self.compare, str):
            return "slope over all strengths"
        low, high = (f"{strength:+g}" if strength else "0" for strength in self.compare)
        return f"{high} minus {low}"

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that can occur."""
        return (0.0, 1.0) if self.kind == "binary" else (-np.inf, np.inf)


def measure_of(name: str, attrs: Mapping[str, Any]) -> Measure:
    """The record of the measure `name`, from the attributes of its variable.

    Missing attributes, and the columns, are taken from MEASURES if the measure is one of these,
    else from the defaults of `Measure`. Unusable values are kept: `record_violations` names them.
    """
    known = MEASURES.get(name, Measure(name))
    compare = attrs.get("compare", known.compare)
    return replace(
        known,
        kind=str(attrs.get("kind", known.kind)),
        units=str(attrs.get("units", known.units)),
        words=str(attrs.get("long_name", known.words)),
        toward=str(attrs.get("toward", known.toward)),
        layer_by=str(attrs.get("layer_by", known.layer_by)),
        compare=compare
        if isinstance(compare, str)
        else tuple(map(_number, np.ravel(compare).tolist())),
        estimands=tuple(str(attrs.get("estimands", " ".join(known.estimands))).split()),
        prior_unit=_number(attrs.get("prior_unit", known.prior_unit)),
        rope=_number(attrs.get("rope", known.rope)),
    )


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def record_violations(measure: Measure) -> list[str]:
    """One line for each field of a measure's record that cannot be used; empty if it is sound."""
    problems = []
    if measure.kind not in KINDS:
        problems.append(
            f"attribute 'kind' of {measure.name!r} is {measure.kind!r}; it is one of "
            + ", ".join(f"{kind} ({values})" for kind, values in KINDS.items())
        )
    problems += [
        f"attribute 'estimands' of {measure.name!r} names {name!r}; there are "
        + ", ".join(ESTIMAND_UNITS)
        for name in measure.estimands
        if name not in ESTIMAND_UNITS
    ]
    if not (measure.compare == SLOPE or _is_two_strengths(measure.compare)):
        problems.append(
            f"attribute 'compare' of {measure.name!r} is {measure.compare!r}; it is {SLOPE!r} or "
            "two different strengths, the low one first"
        )
    return problems + [
        f"attribute {name!r} of {measure.name!r} is {value!r}; it is a number"
        for name, value in {"prior_unit": measure.prior_unit, "rope": measure.rope}.items()
        if not isinstance(value, float)
    ]


def _is_two_strengths(compare: tuple[float, ...] | str) -> bool:
    numbers = [] if isinstance(compare, str) else [x for x in compare if isinstance(x, float)]
    if not len(compare) == len(numbers) == 2:
        return False
    low, high = numbers
    return -np.inf < low < high < np.inf


def estimands_of(measure: Measure) -> list[str]:
    """The estimands to compute for a measure, in the order of ESTIMAND_UNITS."""
    asked = {*NEEDED_ESTIMANDS, *measure.estimands} if measure.estimands else ESTIMAND_UNITS
    return [name for name in ESTIMAND_UNITS if name in asked]


def _column(meaning: str, units: str = "1", dims: tuple[str, ...] = CELL) -> Variable:
    return Variable(dims, "f", meaning, units, required=False)


def _of_samples(meaning: str, units: str = "1", *, required: bool = False) -> Variable:
    return Variable((SAMPLES,), "f", meaning, units, required=required, dtype="float32")


RECEIPTS = {
    "rows_touched": _column("rows that a vector changed"),
    "positions_touched": _column("positions that a vector changed"),
    "added_over_residual": _column("|added| / |residual| at the largest strength, as measured"),
}
"""Counts taken by the hooks while they steer, which show that the vectors reached the model."""
LOGIT_DIFF = Measure(
    "logit_diff",
    units="nat",
    words="log-probability of the matching answer minus that of the other one",
    toward="the matching answer",
    columns={
        "logprob_matching": _of_samples(
            "log-probability of the matching answer", "nat", required=True
        ),
        "logprob_other": _of_samples("log-probability of the other answer", "nat", required=True),
        **RECEIPTS,
    },
)
GENERATION_MATCH = Measure(
    "generation_match",
    kind="binary",
    words="share of the item's valid generated answers that match",
    toward="the matching answer",
    settings=("max_new_tokens", "temperature", "repeats", "reader"),
    columns={
        "generation_valid": _of_samples("share of the item's generated answers that are valid"),
        "generation_positions_touched": _column(
            "positions of prompts and answers that a vector changed in generation"
        ),
        "generation_logit_apart": _column(
            "largest difference of the first generated position's log-probabilities from the "
            "sweep's",
            "nat",
        ),
    },
)
GENERATION_RATE = Measure(
    "generation_rate",
    kind="binary",
    words="share of matching among valid generated answers, published as a rate",
    toward="the matching answer",
    columns={
        "generation_valid_rate": _column("share of valid generated answers, pooled over strengths"),
        "generation_n_prompts": _column(
            "prompts behind each generation rate", dims=("model", "concept")
        ),
    },
)
MEASURES = {m.name: m for m in (LOGIT_DIFF, GENERATION_MATCH, GENERATION_RATE)}
"""The measures that steercube itself collects or imports."""
