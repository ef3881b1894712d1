r"""How often each grade is given, and how often wrongly, where the truth is known.

The rules of `steercube.analysis.conclusions.grades` are applied to simulated sweeps as they are to
a study: of the study's own design, and of 6, 9 and 20 models of each label, balanced in size; with
no effect, a small, a medium and a large one; to claims of a difference and to claims of none.

A grade is *wrong* if it says what is not so: *supported*, however qualified, where there is no
difference of the claimed sign; *contradicted* where there is none of the other sign; *negligible*,
or a claim of none *supported*, where the difference is at least the margin, and such a claim
*contradicted* where it is smaller. `headlines` are the questions that a
summary names, all of them without an effect: how often any is supported or contradicted, with
Holm's correction and without. Of questions other than the contrast the interval and the p alone are
judged, not what carries them; the larger designs are drawn from the hierarchical model itself, with
errors of cells like the study's.

A claim's sign is fixed before a sweep is drawn, so support where there is no effect should come in
2.5% of them, and support or contradiction in 5%.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import statsmodels.api as sm

from steercube.analysis.agreement.agreement import model_agreement
from steercube.analysis.conclusions.evidence import of_contrast, terms_of
from steercube.analysis.conclusions.grades import (
    CONTRADICTED,
    EVERY_SUPPORT,
    GRADES,
    NEGLIGIBLE,
    SUPPORTED,
    UNDECIDED,
    Evidence,
    grade,
)
from steercube.analysis.conclusions.multiplicity import holm
from steercube.analysis.margins import CORRELATION, STANDARDISED
from steercube.analysis.over_models.cell_effects import CellEffects, primary_terms
from steercube.analysis.over_models.concordance import (
    WITHIN,
    concept_test,
    share_of_variance,
)
from steercube.analysis.over_models.confounders import Rival, rivals
from steercube.analysis.over_models.contrast_effect import adjusted_means
from steercube.analysis.over_models.posterior import OfPosterior, fit
from steercube.analysis.over_models.slopes import fit_slopes, slope_of
from steercube.analysis.simulated.keeping import Keep, made_anew
from steercube.analysis.simulated.operating import (
    CONCEPT,
    N_DRAWS,
    Curves,
    Places,
    curves_of,
    simulated_places,
    study_of_curves,
    tracked,
)
from steercube.analysis.simulated.sweeps import Scenario, Shape, simulate, simulate_cells
from steercube.analysis.view import Study
from steercube.estimate import SIGNIFICANT

OWN = "the study's"
DESIGNS: dict[str, tuple[int, int] | None] = {
    OWN: None,
    "6 + 6": (6, 6),
    "9 + 9": (9, 9),
    "20 + 20": (20, 20),
}
"""Numbers of `high` and `low` models; the study's own design also has its gaps and confounders."""
EFFECTS = {"none": 0.0, "small": 0.2, "0.3": 0.3, "medium": 0.5, "large": 0.8}
"""Sizes of true effects, standardised."""
NODES = 10
"""Nodes of the grid of each sd: fewer than for a study, for speed."""

Row = dict[str, Any]
Map = Callable[[Callable[[int], "list[Graded]"], Iterable[int]], Iterable["list[Graded]"]]


class Graded(NamedTuple):
    """One simulated question: its claim, its grade, whether that is wrong, and the p of a test.

    `claim` is A_DIFFERENCE or NONE. `test_p` is of an ordinary test on the claimed side, 1 on the
    other, NaN where there is none.
    """

    claim: str
    grade: str
    wrong: bool
    test_p: float = np.nan


Once = Callable[[Study, np.random.Generator], Iterator[Graded]]


@dataclass(frozen=True)
class Case:
    """One kind of simulated question: its design, its true size, and what else is simulated."""

    question: str
    design: str
    size: str
    once: Once
    more: str = ""
    sd_model: float = np.nan
    share: float = 1.0
    """How many of the simulations that are asked for are run."""

    @property
    def name(self) -> str:
        """What identifies the case."""
        return ", ".join(filter(None, (self.question, self.design, self.size, self.more)))


A_DIFFERENCE, NONE = "a difference", "none"


def graded(truth: float, evidence: Evidence, test_p: float = np.nan) -> Graded:
    """The grade of a question whose true difference, in the claimed direction, is `truth`."""
    found, margin = grade(evidence), evidence.margin
    small = abs(truth) < margin - 1e-12
    if not evidence.claimed:
        wrong = (found in EVERY_SUPPORT and not small) or (found == CONTRADICTED and small)
        return Graded(NONE, found, wrong, test_p)
    wrong = (
        (found in EVERY_SUPPORT and truth <= 0)
        or (found == CONTRADICTED and truth >= 0)
        or (found == NEGLIGIBLE and not small)
    )
    return Graded(A_DIFFERENCE, found, wrong, test_p)


def contrast_once(
    design: str, scenario: Scenario, study: Study, rng: np.random.Generator
) -> Iterator[Graded]:
    """The contrast in Cohen's d, claimed to be negative, and claimed to be none."""
    effects, against = _sweep(design, scenario, study, rng)
    test = _t_test(effects)
    for claimed in (-1, 0):
        evidence = of_contrast(
            effects, claimed=claimed, level=study.level, rivals=against, n_nodes=NODES
        )
        yield graded(-scenario.training, evidence, test if claimed else np.nan)


def _t_test(effects: CellEffects) -> float:
    """Two-sided p of the contrast by least squares over model means, 1 if it is positive."""
    terms = terms_of(effects)
    means = adjusted_means(effects.table)
    assert means is not None
    columns = [effects.predictors[term] for term in terms]
    fitted = sm.OLS(means, np.stack([np.ones(len(means)), *columns], axis=1)).fit()
    return float(fitted.pvalues[1]) if fitted.params[1] < 0 else 1.0


def _sweep(
    design: str, scenario: Scenario, study: Study, rng: np.random.Generator
) -> tuple[CellEffects, list[Rival]]:
    """A sweep of a design: the study's own with its items and rivals, another's cells alone."""
    models = DESIGNS[design]
    if models is None:
        effects = simulate(study, scenario, rng).effects
        return effects, rivals(study, effects.models, depth=False)
    shape = Shape.balanced(study, *models)
    return simulate_cells(study, shape, scenario, rng), []


def slope_once(slope: float, study: Study, rng: np.random.Generator) -> Iterator[Graded]:
    """One concept's slope on size in the study's design, claimed to be positive."""
    scenario = Scenario(training=0.0, sd_model=0.15, own_slope=slope)
    effects = simulate(study, scenario, rng).effects
    known = OfPosterior(fit_slopes(effects, n_nodes=NODES), slope_of(effects.concepts[0]))
    margin = STANDARDISED.small
    for claimed in (1, 0):
        yield graded(slope, Evidence.of(known, claimed, margin, study.level))


def agreement_once(scenario: Curves, study: Study, rng: np.random.Generator) -> Iterator[Graded]:
    """Mean r of the study's models, claimed to be positive, and claimed to be none."""
    curves = study_of_curves(curves_of(study, scenario, rng), study, rng)
    known = model_agreement(curves, concept=CONCEPT).known
    if known is None:
        return
    for claimed in (1, 0):
        evidence = Evidence.of(known, claimed, CORRELATION.small, study.level)
        yield graded(scenario.r, evidence)


def ranking_once(scenario: Scenario, study: Study, rng: np.random.Generator) -> Iterator[Graded]:
    """Whether models rank the concepts alike."""
    variance = scenario.sd_concept**2
    truth = variance / (variance + scenario.sd_cell**2)
    yield graded(truth, _ranking(simulate(study, scenario, rng).effects, study, rng))


def _ranking(effects: CellEffects, study: Study, rng: np.random.Generator) -> Evidence:
    share = share_of_variance(fit(effects, terms=primary_terms(effects)), "sd_concept", WITHIN)
    evidence = Evidence.of(share, 1, CORRELATION.small, study.level)
    p = concept_test(effects, rng, n_draws=N_DRAWS).p_value
    return replace(evidence, p_value=p, never_negative=True)


BY_ITSELF, BY_HOLM = "any headline, each by itself", "any headline, after Holm's correction"


def headlines_once(study: Study, rng: np.random.Generator) -> Iterator[Graded]:
    """All headlines in the study's design, none of which has an effect."""
    no_effect, no_ranking = Scenario(0.0, 0.15), Scenario(0.0, 0.15, sd_concept=0.0)
    places = simulated_places(study, Places(training=0.0, sd_model=0.05), rng)["best_depth"]
    contrast = partial(of_contrast, level=study.level, n_nodes=NODES)
    asked = [
        contrast(simulate(study, no_effect, rng).effects, claimed=-1),
        contrast(places, claimed=1),
        _ranking(simulate(study, no_ranking, rng).effects, study, rng),
        _tracking(study, rng),
    ]
    corrected = holm(np.array([evidence.p_of_grade for evidence in asked]))
    said = np.array([grade(evidence) in (*EVERY_SUPPORT, CONTRADICTED) for evidence in asked])
    for claim, any_said in {
        BY_ITSELF: said.any(),
        BY_HOLM: (said & (corrected <= SIGNIFICANT)).any(),
    }.items():
        found = SUPPORTED if any_said else UNDECIDED
        yield Graded(claim, found, bool(any_said))


def _tracking(study: Study, rng: np.random.Generator) -> Evidence:
    """Whether agreement rises with the effect, where it does not."""
    known = tracked(study, 0.0, rng).known
    assert known is not None
    return Evidence.of(known, 1, CORRELATION.small, study.level)


def _of_concepts(sd_concept: float) -> Scenario:
    return Scenario(training=0.0, sd_model=0.15, sd_concept=sd_concept)


def _contrast_cases() -> Iterator[Case]:
    for design, models in DESIGNS.items():
        for size, effect in EFFECTS.items():
            scenario = Scenario(training=-effect, sd_model=0.15)
            once = partial(contrast_once, design, scenario)
            share = _share(models, effect)
            yield Case("contrast", design, size, once, sd_model=scenario.sd_model, share=share)
        for more, spread in {
            "sd_model 0.3": Scenario(0.0, 0.3),
            "high models vary 3 times as much": Scenario(0.0, 0.15, uneven=3.0),
        }.items():
            once = partial(contrast_once, design, spread)
            yield Case("contrast", design, "none", once, more, sd_model=spread.sd_model)


def _share(models: tuple[int, int] | None, effect: float) -> float:
    """Fewer sweeps where nearly all are supported, as each of these is fitted dozens of times."""
    if models == (20, 20) and effect:
        return 0.2
    return 0.5 if effect > 0.3 else 1.0


CASES: tuple[Case, ...] = (
    *_contrast_cases(),
    *(
        Case("slope of a concept", OWN, f"{slope:g}", partial(slope_once, slope), share=0.5)
        for slope in (0.0, 0.2, 0.5, 0.8, 1.0)
    ),
    *(
        Case("agreement", OWN, f"r {r:g}", partial(agreement_once, Curves(r=r)))
        for r in (0.0, 0.1, 0.3, 0.5, 0.7)
    ),
    *(
        Case("ranking", OWN, f"sd_concept {sd:g}", partial(ranking_once, _of_concepts(sd)))
        for sd in (0.0, 0.2, 0.38)
    ),
    Case("headlines", OWN, "none", headlines_once),
)
"""Every kind of simulated question."""


def grading(
    study: Study,
    *,
    n_simulations: int,
    only: Collection[str] | None = None,
    map_numbers: Map = map,
    keep: Keep = made_anew,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """One row a case and claim: the share of each grade, and how often one was wrongly given.

    `standard_error` is that of `wrongly_supported`. `only` are names of cases. `supported` counts
    every grade of support; `rejected` is how often a t-test of model means, which takes no account
    of grades, rejects on the claimed side.
    """
    rows: list[Row] = []
    for case in CASES:
        if only is not None and case.name not in only:
            continue
        n = max(1, round(case.share * n_simulations))
        report(f"{n} simulations of grades: {case.name}")
        simulate_case = partial(_simulated, study, case.name, n, map_numbers)
        found = keep(f"grades of {case.name}, {n}", simulate_case)
        rows += _rows(case, [Graded(*hit) for hit in found])
    return pd.DataFrame(rows)


def _simulated(study: Study, name: str, n: int, map_numbers: Map) -> list[list[Any]]:
    """The hits of n simulations of a case, each as a list."""
    once = partial(_once, study, name)
    return [list(hit) for hits in map_numbers(once, range(n)) for hit in hits]


def _once(study: Study, name: str, number: int) -> list[Graded]:
    """One numbered simulation of a case, the same in whatever order they are made."""
    case = next(case for case in CASES if case.name == name)
    return list(case.once(study, study.stream(f"grade {number} of {name}")))


def _rows(case: Case, hits: list[Graded]) -> Iterator[Row]:
    table = pd.DataFrame(hits, columns=Graded._fields)
    for claim, of in table.groupby("claim", sort=False):
        n, support = len(of), of["grade"].isin(EVERY_SUPPORT)
        supported = float((of["wrong"] & support).mean())
        yield {
            "question": case.question,
            "design": case.design,
            "size": case.size,
            "more": case.more,
            "sd_model": case.sd_model,
            "claim": claim,
            "supported": float(support.mean()),
            "rejected": float((of["test_p"] <= SIGNIFICANT).mean())
            if of["test_p"].notna().any()
            else np.nan,
            "wrongly_supported": supported,
            "standard_error": float(np.sqrt(max(supported * (1 - supported), 1 / n) / n)),
            "wrongly_contradicted": _wrong(of, CONTRADICTED),
            "wrongly_negligible": _wrong(of, NEGLIGIBLE),
            "n_simulations": n,
        } | {f"grade: {name}": float((of["grade"] == name).mean()) for name in GRADES}


def _wrong(of: pd.DataFrame, found: str) -> float:
    return float((of["wrong"] & (of["grade"] == found)).mean())
