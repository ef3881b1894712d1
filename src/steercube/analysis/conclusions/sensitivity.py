"""Does a headline depend on one model, one concept or a few invalid items? Each without it."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from steercube.analysis.agreement.agreement import model_agreement
from steercube.analysis.agreement.generation import layer_curves
from steercube.analysis.over_models.comparisons import depth_difference, training_gap
from steercube.analysis.over_models.concordance import concept_share
from steercube.analysis.over_models.means import concept_mean, mean_over_models
from steercube.analysis.view import Study
from steercube.estimate import Estimate

Headline = Callable[[Study], Estimate]


def headlines(study: Study) -> dict[str, Headline]:
    """The statistics over all concepts that a study's conclusions rest on, by name."""
    found: dict[str, Headline] = {"mean cohens_d": partial(mean_over_models, estimand="cohens_d")}
    if study.contrast is not None:
        by = study.contrast.by
        for estimand in ("cohens_d", "within_letter_d", "delta"):
            found[f"{by} gap in {estimand}"] = partial(training_gap, estimand=estimand)
        found["depth difference"] = depth_difference
    return found | {"concept share in cohens_d": partial(concept_share, estimand="cohens_d")}


def headlines_of_concept(study: Study, concept: str) -> dict[str, Headline]:
    """Those about one concept, which no other concept can change."""
    found: dict[str, Headline] = {
        f"cohens_d of {concept}": partial(concept_mean, estimand="cohens_d", concept=concept),
    }
    if layer_curves(study, concept=concept):
        found[f"agreement on {concept}"] = partial(model_agreement, concept=concept)
    return found


def without(study: Study) -> Iterator[tuple[str, str, Study]]:
    """(kind, what, the study without it) for nothing, each model, each concept, invalid items."""
    yield "nothing", "", study
    for model in study.models if len(study.cells["model"]) > 1 else ():
        yield "model", model, study.without(model=model)
    for concept in study.concepts if len(study.concepts) > 1 else ():
        yield "concept", concept, study.without(concept=concept)
    if study.some_items_are_invalid:
        yield "invalid items", "", study.valid_items


def sensitivity(study: Study) -> list[tuple[dict[str, str], Estimate]]:
    """Every headline with every part left out in turn, labels and estimate; the whole first."""
    every = headlines(study)
    of_concepts: dict[str, Headline] = {}
    for concept in study.concepts:
        of_concepts |= headlines_of_concept(study, concept)
    rows = []
    for kind, what, part in without(study):
        for name, headline in (every if kind == "concept" else every | of_concepts).items():
            estimate = headline(part)
            if kind == "nothing" or np.isfinite(estimate.value):
                rows.append(({"headline": name, "without": kind, "left_out": what}, estimate))
    return rows
