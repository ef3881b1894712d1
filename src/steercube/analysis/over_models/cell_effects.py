"""The effects of all (model, concept) cells, their error covariance, and their predictors.

Every analysis over models and concepts is fitted to these: the posterior, REML, NUTS, the
bootstraps and the simulations. A cell here is a (model, concept) at its selected layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from steercube.analysis.margins import DEPTH, LOG_ODDS, STANDARDISED, Margins
from steercube.analysis.over_models.depth import best_depths, depth_centroids
from steercube.analysis.per_cell.estimands import ESTIMANDS
from steercube.analysis.view import Study, kept
from steercube.measures import LOGIT_DIFF, Measure

TERMS = ("contrast", "scale")
"""Terms of a model of effects: the contrast's label, and log10 of the size held fixed."""


IN_CONCEPT = " in "
"""Joins a term and a concept in the name of the concept's own deviation from the term's slope."""


def concept_terms(effects: "CellEffects", term: str = "scale") -> tuple[str, ...]:
    """The names of every concept's own deviation from the slope of a term."""
    return tuple(f"{term}{IN_CONCEPT}{concept}" for concept in effects.concepts)


@dataclass(frozen=True)
class Outcome:
    """A response variable: `unit` is the size that priors are scaled by, `margins` what is small.

    Delta has the units of its measure, so both are None: the unit is the root mean square of the
    effects, as models differ too much in the scale of their logits for a fixed one, and the margin
    that of the measure's record; of a logit difference, that of log odds.
    """

    units: str
    unit: float | None
    margins: Margins | None


OUTCOMES = {
    "cohens_d": Outcome("1", 1.0, STANDARDISED),
    "within_letter_d": Outcome("1", 1.0, STANDARDISED),
    "delta": Outcome("nat", None, None),
    "best_depth": Outcome("fraction of depth", 0.25, DEPTH),
    "depth_centroid": Outcome("fraction of depth", 0.25, DEPTH),
}
"""Response variables by name: estimands, and depths in the network. The first is primary."""


@dataclass(frozen=True, eq=False)
class CellEffects:
    """Effects of the n cells that were run, with their errors and predictors.

    `value` (n,) minus its optimism, `covariance` (n, n) over items, `model` and `concept` (n,)
    indices into `models` and `concepts`; `predictors` (model,) by term, centred over models.
    `unit` is the size that priors are scaled by, `margins` say what is small; `left_out` names
    cells that were run but have no usable effect or error, `others` the models with neither label
    of the contrast. `n_items` (concept,) is how many items the covariance was estimated from; empty
    if it is exact. `spread` (model,) is the factor by which each model's sd exceeds sd_model; empty
    if all share it. If there are no cells, `reason` says why. `posteriors` caches the fits.
    """

    outcome: str
    value: np.ndarray
    covariance: np.ndarray
    model: np.ndarray
    concept: np.ndarray
    models: tuple[str, ...]
    concepts: tuple[str, ...]
    predictors: dict[str, np.ndarray]
    unit: float = 1.0
    margins: Margins = STANDARDISED
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    n_items: tuple[int, ...] = ()
    spread: tuple[float, ...] = ()
    lacks_contrast: str = ""
    reason: str = ""
    posteriors: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def rope(self) -> float:
        """Half-width of the region of practical equivalence of b_contrast."""
        return self.margins.small

    @property
    def n_models(self) -> int:
        """Models with a cell."""
        return len(np.unique(self.model))

    @property
    def n_concepts(self) -> int:
        """Concepts with a cell."""
        return len(np.unique(self.concept))

    @property
    def is_high(self) -> np.ndarray:
        """Which models have the contrast's `high` label, dims (model,)."""
        return self.predictors["contrast"] > 0

    @property
    def table(self) -> np.ndarray:
        """The values, NaN where not run, dims (model, concept)."""
        table = np.full((len(self.models), len(self.concepts)), np.nan)
        table[self.model, self.concept] = self.value
        return table

    def index(self) -> dict[str, np.ndarray]:
        """The group of each cell for each random effect, by name of its sd, dims (cell,) each."""
        own = np.arange(len(self.value))
        return {"sd_model": self.model, "sd_concept": self.concept, "sd_cell": own}

    def design(self, terms: Sequence[str]) -> np.ndarray:
        """Intercept and terms of each cell, dims (cell, coefficient)."""
        columns = [self._column(term) for term in terms]
        return np.stack([np.ones(len(self.value)), *columns], axis=1)

    def _column(self, term: str) -> np.ndarray:
        """The values of a term, or of its deviation in one concept, dims (cell,)."""
        of_models, _, concept = term.partition(IN_CONCEPT)
        values = self.predictors[of_models][self.model]
        return values * (self.concept == self.concepts.index(concept)) if concept else values

    def only(self, cells: np.ndarray) -> "CellEffects":
        """Some of the cells, with predictors still centred over all models."""
        return replace(
            self,
            value=self.value[cells],
            covariance=self.covariance[np.ix_(cells, cells)],
            model=self.model[cells],
            concept=self.concept[cells],
        )


@kept
def cell_effects(
    study: Study, outcome: str = "cohens_d", *, holding: str | None = None
) -> CellEffects:
    """The outcome of every cell that was run, minus its optimism, with its covariance over items.

    Models with other labels are left out if both labels of the contrast are present. `holding` is
    the variable of the models behind the term `scale`, by default the contrast's. If the cells lack
    the outcome or keep no error of it, no cell is returned and `reason` says why.
    """
    holding = holding or (study.contrast.holding if study.contrast else "n_params")
    models, concepts = study.compared, study.concepts
    extracted = _outcome(study, outcome, models, concepts)
    if isinstance(extracted, str):
        return _no_effects(outcome, extracted)
    table, covariance = extracted
    usable = np.isfinite(table) & np.isfinite(np.einsum("cmm->mc", covariance))
    left_out = _unusable(study, models, concepts, usable)
    rows, columns = np.flatnonzero(usable.any(axis=1)), np.flatnonzero(usable.any(axis=0))
    models, concepts = [models[m] for m in rows], [concepts[c] for c in columns]
    usable, table = usable[np.ix_(rows, columns)], table[np.ix_(rows, columns)]
    covariance = covariance[np.ix_(columns, rows, rows)]
    concept, model = np.nonzero(usable.T)
    unit, recorded = OUTCOMES[outcome].unit, study.measure
    if unit is None and np.isfinite(recorded.prior_unit):
        unit = recorded.prior_unit
    if unit is None:
        unit = float(np.sqrt(np.mean(table[usable] ** 2))) if usable.any() else 1.0
    same = concept[:, None] == concept[None, :]
    between = np.where(same, covariance[concept[:, None], model[:, None], model[None, :]], 0.0)
    return CellEffects(
        outcome=outcome,
        value=table[model, concept],
        covariance=between,
        model=model,
        concept=concept,
        models=tuple(models),
        concepts=tuple(concepts),
        predictors=predictors_of(study, models, holding),
        unit=unit or 1.0,
        margins=OUTCOMES[outcome].margins or margins_of(recorded, unit or 1.0),
        left_out=left_out,
        others=tuple(m for m in study.models if m not in study.compared),
        n_items=tuple(int(n) for n in study.cells["n_items"].sel(concept=concepts).values),
        lacks_contrast=study.needs_contrast,
    )


def margins_of(measure: Measure, unit: float) -> Margins:
    """What is small in a measure's own units: its record's margin, that of log odds, or of `unit`.

    Without either, effects are standardised by `unit`, the root mean square of the best effects.
    """
    if np.isfinite(measure.rope):
        return STANDARDISED.times(measure.rope / STANDARDISED.small)
    return LOG_ODDS if measure.name == LOGIT_DIFF.name else STANDARDISED.times(unit)


def _no_effects(outcome: str, reason: str) -> CellEffects:
    none = np.array([], dtype=int)
    return CellEffects(
        outcome, np.array([]), np.zeros((0, 0)), none, none, (), (), {}, reason=reason
    )


def _unusable(
    study: Study, models: Sequence[str], concepts: Sequence[str], usable: np.ndarray
) -> tuple[str, ...]:
    """Names of the cells that were run but have no finite effect or error."""
    layer = study.cells["selected_layer"].sel(model=list(models), concept=list(concepts))
    missing = layer.notnull().transpose("model", "concept").values & ~usable
    return tuple(f"{models[m]} on {concepts[c]}" for m, c in zip(*np.nonzero(missing), strict=True))


def _outcome(
    study: Study, outcome: str, models: Sequence[str], concepts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | str:
    """The outcome (model, concept) with its covariance (concept, model, model_other), or why not"""
    cells, at = study.cells, {"model": list(models), "concept": list(concepts)}
    if outcome in ESTIMANDS:
        if reason := study.lacks(outcome):
            return reason
        value, optimism = (
            study.best(outcome, models=models, concepts=concepts, of=f"selected_{name}")
            for name in ("estimate", "optimism")
        )
        value, covariance = value - optimism, cells["selected_covariance"].sel(estimand=outcome)
    else:
        name = "selected_depth" if outcome == "best_depth" else "depth_centroid"
        value = (best_depths if outcome == "best_depth" else depth_centroids)(study).sel(at)
        if f"{name}_covariance" not in cells:
            return "these cells keep no error of depths; make them again from their cube"
        covariance = cells[f"{name}_covariance"]
    covariance = covariance.sel(at | {"model_other": list(models)})
    between: np.ndarray = covariance.transpose("concept", "model", "model_other").values
    if outcome == "best_depth":
        between = between + _rounding(study, models)[:, None] * np.eye(len(models))
    table: np.ndarray = value.transpose("model", "concept").values.astype(float)
    return table, between


def _rounding(study: Study, models: Sequence[str]) -> np.ndarray:
    """Variance from rounding a depth to a swept layer, step^2 / 12, dims (model,)."""
    swept = study.cells["estimate"].sel(estimand="delta").notnull().any("concept")
    depth = study.cells["depth"]
    steps = [np.diff(depth.sel(model=m).values[swept.sel(model=m).values]) for m in models]
    return np.array([step.mean() ** 2 / 12 if len(step) else 1 / 12 for step in steps])


def predictors_of(study: Study, models: Sequence[str], holding: str) -> dict[str, np.ndarray]:
    """Predictors (model,) by term, centred; terms that do not vary over them are left out."""
    size = np.log10(study.facts(holding, models))
    predictors = {}
    if study.contrast is not None and study.has_contrast:
        is_high = study.is_high(models).astype(float)
        if len(models) and np.ptp(is_high) > 0:
            predictors["contrast"] = is_high
    if len(models) and np.ptp(size) > 0:
        predictors["scale"] = size
    return {term: values - values.mean() for term, values in predictors.items()}


def why_not(effects: CellEffects, terms: Sequence[str]) -> str:
    """Why these terms cannot be estimated from the spread between models here; empty if they can.

    Concepts' deviations from a slope have priors, so that they can be estimated wherever it can.
    """
    terms, n_models = [term for term in terms if IN_CONCEPT not in term], effects.n_models
    if not n_models:
        left_out = ", ".join(effects.left_out)
        return effects.reason or f"no cell has a usable effect and error: {left_out}"
    lacking = [term for term in terms if term not in effects.predictors]
    if "contrast" in lacking:
        return effects.lacks_contrast or "needs a contrast of models"
    if lacking:
        return "needs models of unlike size"
    if n_models < len(terms) + 2:
        return (
            f"{len(terms)} term(s) and the spread between models need {len(terms) + 2} models; "
            f"{n_models} ran"
        )
    design = effects.design(terms)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return f"{' and '.join(terms)} cannot be separated in these models"
    if effects.n_concepts == 1 and (same := _same_models(effects)):
        return f"{' and '.join(same)} hold the same values: leave one of them out"
    return ""


def _same_models(effects: CellEffects) -> tuple[str, ...]:
    """Two models with the same effect and error, in cells of one concept; empty if there are none.

    With more concepts, sd_cell distinguishes even such models.
    """
    sd = np.sqrt(np.diag(effects.covariance))
    for one, other in combinations(range(len(effects.value)), 2):
        same_error = effects.covariance[one, other] >= (1 - 1e-9) * sd[one] * sd[other]
        if same_error and np.isclose(effects.value[one], effects.value[other], rtol=1e-9):
            return tuple(effects.models[effects.model[i]] for i in (one, other))
    return ()


def primary_terms(effects: CellEffects) -> tuple[str, ...]:
    """The terms that these cells can estimate: contrast and scale, one of them, or none."""
    for terms in (TERMS, *((term,) for term in TERMS)):
        if not why_not(effects, terms):
            return terms
    return ()


def usable_outcomes(
    study: Study, terms: Sequence[str] = ()
) -> Iterator[tuple[str, CellEffects, str]]:
    """Every outcome with its effects, and why these terms cannot be estimated, or empty."""
    for outcome in OUTCOMES:
        effects = cell_effects(study, outcome)
        yield outcome, effects, why_not(effects, terms)


def fitted_to(study: Study) -> str:
    """The models, labels, concepts and terms of a fit of items, as text that identifies it."""
    by = study.contrast.by if study.contrast else "training"
    labels = study.facts(by, study.compared).tolist()
    terms = [by if term == "contrast" else term for term in primary_terms(cell_effects(study))]
    return repr([list(zip(study.compared, labels, strict=True)), study.concepts, terms])
