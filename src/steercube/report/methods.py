"""The appendix of definitions: the docstrings of what computes each number, as Markdown."""

import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType

from steercube.analysis.agreement import agreement, curves, generation
from steercube.analysis.conclusions import claims, multiplicity, selection
from steercube.analysis.conclusions import conclusions as verdicts
from steercube.analysis.conclusions import counts as sweep
from steercube.analysis.over_models import (
    concordance,
    contrasts,
    depth,
    predictive,
    questions,
    training,
)
from steercube.analysis.over_models import means as averages
from steercube.analysis.over_models import posterior as hierarchy
from steercube.analysis.per_cell import bootstrap as resample
from steercube.analysis.per_cell import estimands as effects
from steercube.analysis.per_cell import readings, steers

Documented = Callable[..., object] | ModuleType

SECTIONS: dict[str, tuple[Documented, ...]] = {
    "Effects of steering": (effects, *effects.ESTIMANDS.values()),
    "Does a vector steer": (steers, steers.content_t),
    "Intervals and selection": (
        resample,
        selection,
        averages.model_mean,
        averages.t_over_models,
    ),
    "Training and size": (
        hierarchy,
        training,
        contrasts.training_gap,
        contrasts.permutation_p,
        contrasts.scale_slope,
        predictive,
    ),
    "Concepts and models": (
        concordance.concept_share,
        concordance.concept_test,
        concordance.kendalls_w,
        concordance.rank_agreement,
        questions.model_deviations,
        questions.difficulty,
        questions.relative_to_others,
        questions.extraction,
    ),
    "Depth": (depth.best_depths, depth.depth_centroids, depth.depth_difference),
    "Agreement of logits and answers": (
        curves,
        agreement.model_agreement,
        agreement.matched_minus_mismatched,
        agreement.agreement_against_effect,
        generation.expected_maximum,
        generation.best_generation_excess,
        readings,
    ),
    "Verdicts": (verdicts, claims, multiplicity, sweep.counts_of_claims),
}
"""What is defined where, in the order that a reader meets it."""

EXAMPLE = re.compile(r"(?:^[^\n]*:\n\n)?^[ \t]*>>>.*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


def methods() -> str:
    """Every definition with its equation, units and source, as its docstring gives them."""
    return "\n\n".join(
        f"### {heading}\n\n" + "\n\n".join(map(_definition, documented))
        for heading, documented in SECTIONS.items()
    )


def _definition(documented: Documented) -> str:
    if inspect.ismodule(documented):
        name, path = documented.__name__.rsplit(".", 1)[1].replace("_", " "), documented.__name__
    else:
        name = effects.NAMES.get(documented.__name__, documented.__name__.replace("_", " "))
        path = f"{documented.__module__}.{documented.__name__}"
    lines = [f"**{name[0].upper()}{name[1:]}** (`{path}`)", *_paragraphs(documented)]
    unit = effects.UNITS.get(path.rsplit(".", 1)[1])
    if unit:
        lines.append(f"Unit: {unit}." if unit != "1" else "Without unit.")
    return "\n\n".join(lines)


def _paragraphs(documented: Documented) -> Iterator[str]:
    """The docstring without its examples; what was indented is code."""
    text = EXAMPLE.sub("", inspect.getdoc(documented) or "")
    for part in re.split(r"\n\s*\n", text):
        if part.strip() and not part.startswith("Example"):
            yield part
