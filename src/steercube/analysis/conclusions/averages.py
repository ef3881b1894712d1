"""The tables of averages: of each model, of each concept, and of the depth of best layers."""

from typing import Any

import numpy as np

from steercube.analysis.over_models.comparisons import depth_difference
from steercube.analysis.over_models.depth import model_depth, training_depth
from steercube.analysis.over_models.means import concept_mean, mean_over_models, model_mean
from steercube.analysis.view import Study
from steercube.estimate import Estimate

AVERAGED = ("delta", "cohens_d", "within_letter_d", "glass_delta_negative", "glass_delta_baseline")
"""Estimands that are averaged over models and concepts."""
EVERY_CONCEPT, COMPLETE_CONCEPTS = "every concept it ran", "concepts that every model ran"
EVERY_MODEL, COMPLETE_MODELS = "every model that ran it", "models that ran every concept"

Rows = list[tuple[dict[str, Any], Estimate]]


def models(study: Study) -> Rows:
    """Average best-layer effect of each model, over its own concepts and over complete ones."""
    rows: Rows = []
    training_of = dict(zip(study.models, map(str, study.facts("training")), strict=True))
    sets = {EVERY_CONCEPT: None, COMPLETE_CONCEPTS: study.complete_concepts()}
    for estimand in AVERAGED:
        for over, which in sets.items():
            common = {"estimand": estimand, "concepts": over}
            for model, training in training_of.items():
                ran = study.best(estimand, models=[model], concepts=which).notnull().sum()
                labels: dict[str, Any] = {"model": model, "training": training}
                labels["n_params"] = study.facts("n_params", [model]).item()
                mean = model_mean(study, estimand=estimand, model=model, concepts=which)
                rows.append((labels | common | {"n_concepts": int(ran)}, mean))
            for training in sorted(set(training_of.values())):
                labels = {"model": f"mean of {training} models", "training": training}
                n_concepts = len(study.concepts if which is None else which)
                mean = mean_over_models(study, estimand=estimand, training=training, concepts=which)
                labels = labels | {"n_params": np.nan} | common | {"n_concepts": n_concepts}
                rows.append((labels, mean))
    return rows


def concepts(study: Study) -> Rows:
    """Average best-layer effect of each concept over models."""
    rows: Rows = []
    sets = {EVERY_MODEL: None, COMPLETE_MODELS: study.complete_models()}
    for estimand in AVERAGED:
        for over, which in sets.items():
            for concept in study.concepts:
                labels = {"concept": concept, "estimand": estimand, "models": over}
                labels["statistic"] = "mean"
                mean = concept_mean(study, estimand=estimand, concept=concept, models=which)
                rows.append((labels, mean))
    return rows


def depth(study: Study) -> Rows:
    """Typical best depth of each model and each training, and the difference of the contrast."""
    training_of = dict(zip(study.models, map(str, study.facts("training")), strict=True))
    rows: Rows = [
        ({"group": model, "training": training}, model_depth(study, model=model))
        for model, training in training_of.items()
    ]
    for training in sorted(set(training_of.values())):
        labels = {"group": f"{training} models", "training": training}
        rows.append((labels, training_depth(study, training=training)))
    if study.contrast is not None and study.has_contrast:
        difference = f"{study.contrast.high} minus {study.contrast.low}"
        rows.append(({"group": difference, "training": ""}, depth_difference(study)))
    return rows
