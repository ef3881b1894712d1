"""Which questions are asked of a study, and the evidence on each.

Questions are those that a study of this kind asks (the contrast in every outcome, whether models
rank concepts alike, whether logits and answers agree), and those of the published claims about it.
A published claim that nothing differs turns its question into a claim of none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from steercube.analysis.agreement.agreement import (
    agreement_and_effect,
    agreement_over_concepts,
    matched_minus_mismatched,
    model_agreement,
)
from steercube.analysis.agreement.generation import layer_curves
from steercube.analysis.conclusions.claims import STATISTICS, Claim
from steercube.analysis.conclusions.conclusions import (
    AGREE,
    FAMILIES,
    HEADLINES,
    OTHER_CLAIMS,
    OTHER_OUTCOMES,
    SIZES_OF_CONCEPTS,
    SPECIFIC,
    Question,
)
from steercube.analysis.conclusions.evidence import carries, of_contrast, terms_of
from steercube.analysis.conclusions.grades import Evidence
from steercube.analysis.margins import CORRELATION, STANDARDISED, Margins
from steercube.analysis.over_models.cell_effects import (
    OUTCOMES,
    TERMS,
    cell_effects,
    margins_of,
    why_not,
)
from steercube.analysis.over_models.comparisons import columns_holding
from steercube.analysis.over_models.concordance import concept_share
from steercube.analysis.over_models.confounders import GOES_WITH, rivals
from steercube.analysis.over_models.contrast_effect import EXACT, MODELS, covariates
from steercube.analysis.over_models.design import (
    MOST_UNITS,
    POWER,
    chance_of_mean,
    chance_of_term,
    fewest,
    fewest_for_none,
    models_needed,
)
from steercube.analysis.over_models.posterior import OfPosterior, fit
from steercube.analysis.over_models.slopes import concept_slope
from steercube.analysis.per_cell.estimands import ESTIMANDS, NAMES, UNITS
from steercube.analysis.view import Study
from steercube.contrast import Contrast
from steercube.estimate import Estimate, Student, normal_quantile
from steercube.numerals import signed

PLACES = {
    "best_depth": "depth of the best layer",
    "depth_centroid": "centroid of the effect over depth",
}
IN_HEADLINES = ("cohens_d", "best_depth")
"""Outcomes of the contrast that a summary names."""
SPREAD_OF_Z = 0.5
"""Sd over models of Fisher's z of two curves, assumed where the design alone is judged: that of
models whose true z varies by 0.3 and is measured with an error of 0.4."""


NO_DISTRIBUTION = "its interval is of one level only: name another `question` for it in the ledger"


def questions(study: Study, claims: Sequence[Claim] = ()) -> list[Question]:
    """Every question of a study and of the claims about it, family by family."""
    asked = list(_usual(study, claims))
    ids = {question.id for question in asked}
    asked += [_of_claim(study, c) for c in claims if _stands_alone(c) and c.answers not in ids]
    asked.sort(key=lambda question: FAMILIES.index(question.family))
    return [_with_claims(question, claims) for question in asked]


def _stands_alone(claim: Claim) -> bool:
    """Whether a claim is interpretive and no question of its own id is asked anyway."""
    return STATISTICS[claim.statistic].is_difference and claim.answers == claim.id


def _with_claims(question: Question, claims: Sequence[Claim]) -> Question:
    """The question with what its published claims say against the data they were made from.

    Whether a concept's agreement is specific rests on the data of its agreement.
    """
    of = {question.id, question.id.replace("specific-", "agreement-", 1)}
    caveats = [c.caveat for c in claims if c.answers in of and c.caveat]
    return replace(question, remarks=(*question.remarks, *dict.fromkeys(caveats)))


def _asserts_none(claims: Sequence[Claim], id: str) -> bool:
    return any(c.asserts_none for c in claims if c.answers == id)


def _usual(study: Study, claims: Sequence[Claim]) -> Iterator[Question]:
    if study.contrast is not None:
        for outcome in OUTCOMES:
            yield _of_contrast(study, study.contrast, outcome)
    for claim in claims:
        if claim.statistic == "scale_slope" and claim.published in ("+", "-"):
            yield _of_slope(study, claim)
    yield _of_ranking(study)
    concepts = [c for c in study.concepts if layer_curves(study, concept=c)]
    for concept in concepts:
        none = _asserts_none(claims, f"agreement-{_dashed(concept)}")
        yield _of_agreement(study, concept, none=none)
        yield _of_specificity(study, concept)
    if concepts:
        yield _of_tracking(study)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _worded(name: str) -> str:
    return name.replace("_", " ")


def _of_contrast(study: Study, contrast: Contrast, outcome: str) -> Question:
    """b_contrast of the hierarchical model, with what goes with the label held fixed."""
    place, effects = outcome not in NAMES, cell_effects(study, outcome)
    claimed, terms = (1 if place else -1), terms_of(effects)
    fixed = f"with {contrast.held} held fixed; " if terms == TERMS else ""
    high = contrast.high
    question = Question(
        f"{contrast.by}-{outcome}".replace("_", "-"),
        HEADLINES if outcome in IN_HEADLINES else OTHER_OUTCOMES,
        f"{contrast.models_of(high)} steer best later in the network ({fixed}{PLACES[outcome]})"
        if place
        else f"{contrast.named(high)} lowers the effect of steering ({fixed}{NAMES[outcome]})",
        Evidence(claimed, effects.margins.small),
        units=OUTCOMES[outcome].units,
        simulated_as=_simulated_as(contrast, outcome, terms),
        level=study.level,
    )
    if reason := why_not(effects, terms):
        return replace(question, reason=reason)
    posterior, margins = fit(effects, terms=terms), effects.margins
    against = rivals(study, effects.models, depth=outcome in ESTIMANDS)
    needed = models_needed(study, effects, margins.medium)
    return replace(
        question,
        evidence=of_contrast(effects, claimed=claimed, level=study.level, rivals=against),
        value=posterior.quantile("contrast", 0.5),
        known=OfPosterior(posterior, "contrast"),
        over="items, concepts, models" if effects.n_concepts > 1 else "items, models",
        n=effects.n_models,
        large=margins.large,
        needed=_needed(
            needed, f"models of each {contrast.by}, balanced in size,", margins, question.units
        ),
    )


def _simulated_as(contrast: Contrast, outcome: str, terms: tuple[str, ...]) -> str:
    """The statistic that `calibrate` simulates of an outcome; empty if it simulates none."""
    if outcome in PLACES:
        return f"training effect on the {_worded(outcome)} (hierarchical)"
    if outcome == "cohens_d":
        return f"training effect ({EXACT}; {MODELS}; {covariates(contrast, terms)})"
    return ""


def _needed(n: int | None, units: str, margins: Margins, of: str) -> str:
    """What would decide, in words."""
    medium = f"a medium effect of {margins.medium:.2g} {'' if of == '1' else of}".rstrip()
    if n is None:
        return f"even {MOST_UNITS} {units} would not be enough to show {medium}"
    return f"about {n} {units} would show {medium} in {POWER:.0%} of sweeps"


def _question_of(
    question: Question,
    study: Study,
    compute: Callable[[Study], Estimate],
    margins: Margins,
    *,
    units: str = "models",
) -> Question:
    """A question answered by one statistic: its evidence, and which models carry it.

    `units` are what its interval is over.
    """
    estimate, claimed = compute(study), question.evidence.claimed
    if estimate.known is None:
        return replace(question, reason=estimate.reason or NO_DISTRIBUTION)
    evidence = Evidence.of(estimate.known, claimed, margins.small, study.level)
    evidence = replace(evidence, low=estimate.low, high=estimate.high)
    if claimed and evidence.side:
        carried = tuple(carriers(study, compute, estimate.value))
        evidence = replace(evidence, carried_by=carried)
    needed = ""
    if isinstance(estimate.known, Student) and estimate.over in ("models", "concepts"):
        needed = _needed_of(
            estimate.known, estimate.n, claimed, margins, units, question.units, study.level
        )
    return replace(
        question,
        evidence=evidence,
        value=estimate.value,
        known=estimate.known,
        over=estimate.over,
        n=estimate.n,
        large=margins.large,
        needed=needed,
    )


def _needed_of(
    known: Student, n: int, claimed: int, margins: Margins, units: str, unit: str, level: float
) -> str:
    """What would decide a question that Student's t answers, in words."""
    scaled = float if known.through is float else np.arctanh
    sd, lost = known.scale * float(np.sqrt(n)), n - known.df
    if claimed:
        medium = float(scaled(margins.medium))
        found = fewest(medium, sd=sd, df=known.df, lost=lost, level=level)
        return _needed(found, units, margins, unit)
    enough = fewest_for_none(
        float(scaled(margins.small)), sd=sd, df=known.df, lost=lost, level=level
    )
    if enough is None:
        return f"even {MOST_UNITS} {units} would not be enough to show that it is negligible"
    return f"about {enough} {units} would show that it is negligible in {POWER:.0%} of sweeps"


def carriers(
    study: Study, compute: Callable[[Study], Estimate], whole: float, *, concepts: bool = False
) -> Iterator[str]:
    """Models, and `concepts`, without which an estimate changes sign or loses more than half."""
    parts = [("model", name) for name in study.models if len(study.models) > 1]
    parts += [("concept", name) for name in study.concepts if concepts and len(study.concepts) > 1]
    for kind, name in parts:
        if text := carries(name, whole, compute(study.without(**{kind: name})).value):
            yield text


def _of_slope(study: Study, claim: Claim) -> Question:
    """A concept's slope on total parameters in Cohen's d, from the model with random slopes."""
    concept, outcome = claim.arguments["concept"], "cohens_d"
    claimed = -1 if claim.published == "-" else 1
    harder = "harder" if claimed < 0 else "easier"
    question = Question(
        claim.answers,
        SIZES_OF_CONCEPTS,
        f"{_worded(concept)} is {harder} to steer in larger models (Cohen's d for a tenfold size)",
        Evidence(claimed, STANDARDISED.small),
        units="1",
        simulated_as="scale slope of a concept",
        level=study.level,
    )
    if concept not in study.concepts:
        return replace(question, reason=f"there is no concept {concept!r} here")
    compute = partial(concept_slope, estimand=outcome, concept=concept)
    asked = _question_of(question, study, compute, STANDARDISED)
    effects = cell_effects(study, outcome, holding="n_params")
    if asked.known is None:
        return asked
    large, ran = STANDARDISED.large, effects.concept == effects.concepts.index(concept)
    size = effects.predictors["scale"][effects.model[ran]]
    x = np.stack([np.ones(len(size)), size], axis=1)
    chance = chance_of_term(effects, x, large, n_concepts=1, level=study.level)
    evidence = replace(asked.evidence, chance=chance)
    sd = (evidence.high - evidence.low) / 2 / normal_quantile(study.level) * len(size) ** 0.5
    needed = fewest(STANDARDISED.medium, sd=sd, df=len(size) - 2, lost=2, level=study.level)
    asked = replace(asked, needed=_needed(needed, "models like these", STANDARDISED, "1"))
    if evidence.side:
        active = concept_slope(study, estimand=outcome, concept=concept, size="n_active_params")
        if not min(claimed * active.low, claimed * active.high) > 0:
            ends = signed(f"{active.value:.2f} [{active.low:.2f}, {active.high:.2f}]")
            carried = (*evidence.carried_by, f"by active parameters it is {ends}")
            evidence = replace(evidence, carried_by=carried)
        if study.contrast is not None and study.has_contrast:
            of_size = [r for r in rivals(study, effects.models, depth=False) if r.name == "size"]
            apart = tuple(
                f"{study.contrast.by} (r = {r.correlation:.2f})"
                for r in of_size
                if r.separates or abs(r.correlation) >= GOES_WITH
            )
            evidence = replace(evidence, confounded_with=apart)
    return replace(asked, evidence=evidence, large=large)


def _of_ranking(study: Study) -> Question:
    """The share of the variance over concepts that models have in common, with its test."""
    question = Question(
        "ranking",
        HEADLINES,
        "models rank the concepts alike in part (the share of the variance over concepts, in "
        "Cohen's d, that models have in common)",
        Evidence(1, CORRELATION.small, never_negative=True),
        units="1",
        simulated_as="share of variance common to models",
        level=study.level,
    )
    compute = partial(concept_share, estimand="cohens_d")
    estimate = compute(study)
    if estimate.known is None:
        return replace(question, reason=estimate.reason)
    evidence = replace(
        Evidence.of(estimate.known, 1, CORRELATION.small, study.level),
        p_value=estimate.p_value,
        never_negative=True,
    )
    if evidence.side:
        carried = tuple(carriers(study, compute, estimate.value, concepts=True))
        evidence = replace(evidence, carried_by=carried)
    return replace(
        question,
        evidence=evidence,
        value=estimate.value,
        known=estimate.known,
        over=estimate.over,
        n=cell_effects(study, "cohens_d").n_models,
    )


def _of_agreement(study: Study, concept: str, *, none: bool) -> Question:
    """Mean r of a concept's models."""
    agree = "are unrelated as to" if none else "agree on"
    question = Question(
        f"agreement-{_dashed(concept)}",
        AGREE,
        f"logits and answers {agree} which layers steer {_worded(concept)} (r)",
        Evidence(0 if none else 1, CORRELATION.small),
        units="1",
        simulated_as="agreement over models",
        level=study.level,
    )
    asked = _question_of(question, study, partial(model_agreement, concept=concept), CORRELATION)
    return _with_chance(asked, study, float(np.arctanh(CORRELATION.large)))


def _of_specificity(study: Study, concept: str) -> Question:
    """r with a concept's own logits minus r with other concepts' logits."""
    question = Question(
        f"specific-{_dashed(concept)}",
        SPECIFIC,
        f"the answers to {_worded(concept)} follow its own logits better than other concepts' "
        "logits (difference in r)",
        Evidence(1, CORRELATION.small),
        units="1",
        simulated_as="own minus others' r",
        level=study.level,
    )
    compute = partial(matched_minus_mismatched, concept=concept)
    return _with_chance(
        _question_of(question, study, compute, CORRELATION), study, CORRELATION.large
    )


def _with_chance(question: Question, study: Study, large: float) -> Question:
    """With the chance to see a large mean over these models, by SPREAD_OF_Z."""
    if question.known is None or question.over != "models":
        return question
    beyond = large - (0 if question.evidence.claimed else question.evidence.margin)
    chance = chance_of_mean(question.n, beyond, spread=SPREAD_OF_Z, lost=1, level=study.level)
    return replace(question, evidence=replace(question.evidence, chance=chance))


def _of_tracking(study: Study) -> Question:
    """Whether a concept's r rises with its effect, over concepts."""
    question = Question(
        "agreement-tracks-steering",
        HEADLINES,
        "concepts that steer well have logits and answers that agree (r per unit of d)",
        Evidence(1, CORRELATION.small),
        units="1",
        simulated_as="slope of r on the effect",
        level=study.level,
    )
    compute = partial(agreement_over_concepts, estimand="cohens_d")
    asked = _question_of(question, study, compute, CORRELATION, units="concepts")
    if asked.known is None:
        return asked
    pairs = agreement_and_effect(study, "cohens_d")
    effect = pairs.groupby("concept")["effect"].mean()
    n_models = pairs["model"].nunique()
    spread = SPREAD_OF_Z / float(np.sqrt(n_models) * effect.std(ddof=0))
    chance = chance_of_mean(asked.n, CORRELATION.large, spread=spread, lost=2, level=study.level)
    return replace(asked, evidence=replace(asked.evidence, chance=chance))


def _of_claim(study: Study, claim: Claim) -> Question:
    """A published claim of a difference, or of none, that no usual question asks."""
    statistic, estimand = STATISTICS[claim.statistic], claim.arguments.get("estimand", "")
    units = "" if statistic.margins else UNITS.get(estimand, "1")
    margins = statistic.margins or _margins(study, estimand)
    claimed = 0 if claim.asserts_none else (-1 if claim.published.startswith("-") else 1)
    question = Question(
        claim.id,
        OTHER_CLAIMS,
        claim.text,
        Evidence(claimed, margins.small),
        units=units,
        simulated_as=statistic.simulated_as,
        level=study.level,
    )

    def compute(of_study: Study) -> Estimate:
        return statistic.compute(of_study, **claim.arguments)

    if absent := claim.absent(study):
        return replace(question, reason=absent)
    asked = _question_of(question, study.comparing(claim.contrast), compute, margins)
    if asked.known is None or claim.statistic != "label_difference":
        return asked
    beyond = margins.large - (0 if claimed else margins.small)
    chance = _chance_of_labels(study, claim, beyond)
    return replace(asked, evidence=replace(asked.evidence, chance=chance))


def _chance_of_labels(study: Study, claim: Claim, effect: float) -> float:
    """The chance to see a difference of two labels with others held fixed, from the design."""
    of, models = claim.arguments, study.models
    effects = cell_effects(study, of["estimand"]) if of["estimand"] in OUTCOMES else None
    if effects is None or effects.reason:
        return np.nan
    kept = np.isin(study.facts(of["by"], models), (of["low"], of["high"]))
    is_high = (study.facts(of["by"], models) == of["high"])[kept]
    x = columns_holding(is_high, study.facts(of["holding"], models)[kept])
    n_concepts = len(of.get("concepts") or study.concepts)
    return chance_of_term(effects, x, effect, n_concepts=n_concepts, level=study.level)


def _margins(study: Study, estimand: str) -> Margins:
    """What is small of an estimand: in sds, or in the units of the measure."""
    if UNITS.get(estimand) == "1":
        return STANDARDISED
    effects = study.best(estimand or "delta").values
    defined = effects[np.isfinite(effects)]
    unit = float(np.sqrt(np.mean(defined**2))) if defined.size else 1.0
    return margins_of(study.measure, unit)
