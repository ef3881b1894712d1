"""Grades: what may be said of a question, by stated rules from its numbers.

A question claims that there is a difference of one sign, or that there is none. Its interval is of
level 95% (the cells' own), its margin, of `steercube.analysis.margins`, is what counts as small.
The rules, in the order in which they are tried:

- *not asked here*: there is no interval.
- *supported*, a claimed difference: the interval lies on the claimed side of zero. A claim of none:
  it lies within the margin, both ends of it (two one-sided tests, Schuirmann 1987,
  J. Pharmacokinet. Biopharm. 15(6), each at 2.5%, so that an interval which covers a little too
  rarely still keeps their error under 5%).
- *supported, but confounded*: so, and a variable that goes with the label may be the reason.
- *supported, but fragile*: so, and it is carried by what is named: without that model or concept
  the estimate changes sign or loses more than half, or under that prior, or with a spread of its
  own for each label, the interval holds zero.
- *contradicted*, a claimed difference: the interval lies on the other side of zero. A claim of
  none: the interval lies outside the margin.
- *negligible*, a claimed difference: the interval holds zero and lies within the margin.
- *this design cannot say*: none of these, and had the effect been large, a t-test in a sweep of
  this design would have led to one of them with a chance under 20%. The chance is computed from the
  design (models, concepts, items, priors) alone.
- *undecided*: all else. The interval holds zero and more than the margin.

What carries an estimate is its influence, not a second test of it: it qualifies support and never
takes it away, or each smaller sample would cost power; what contradicts a claim is said with it. A
*headline* is a question that a summary names; it is one only if Holm's p over all of them is at
most 5%, since a summary is chosen among them. Each of the other questions is judged by itself.
"""

from dataclasses import dataclass

import numpy as np

from steercube.estimate import SIGNIFICANT, Known

NOT_ASKED, SUPPORTED, CONTRADICTED = "not asked here", "supported", "contradicted"
FRAGILE, CONFOUNDED = "supported, but fragile", "supported, but confounded"
NEGLIGIBLE, UNDECIDED = "negligible", "undecided"
CANNOT_SAY = "this design cannot say"
EVERY_SUPPORT = (SUPPORTED, FRAGILE, CONFOUNDED)
DECISIVE = (*EVERY_SUPPORT, CONTRADICTED, NEGLIGIBLE)
GRADES = (*DECISIVE, UNDECIDED, CANNOT_SAY, NOT_ASKED)
"""Every grade, the most said first."""
HOPELESS = 0.2
"""A chance of a decisive grade under which the design cannot say."""


@dataclass(frozen=True)
class Evidence:
    """The numbers that a question is graded by.

    `claimed` is the sign of the claimed difference, 0 if none is claimed. `low` and `high` end the
    interval; `margin` is what counts as small. `p_value` is two-sided, of no difference, twice the
    smaller tail; of a share, which is `never_negative`, that of a test of its own, which then
    decides instead of the interval. `p_negligible` is that of the two one-sided tests, `p_beyond`
    of no difference larger than the margin. Taken from a posterior these are probabilities of the
    model, and as good as tests as its intervals' coverage is.
    `carried_by` and `confounded_with` name what the rules do; `chance` is that of a decisive grade
    at a large effect, NaN where it is not known.
    """

    claimed: int
    margin: float
    low: float = np.nan
    high: float = np.nan
    probability_negative: float = np.nan
    probability_negligible: float = np.nan
    p_value: float = np.nan
    p_negligible: float = np.nan
    p_beyond: float = np.nan
    carried_by: tuple[str, ...] = ()
    confounded_with: tuple[str, ...] = ()
    chance: float = np.nan
    never_negative: bool = False

    @classmethod
    def of(cls, known: Known, claimed: int, margin: float, level: float) -> "Evidence":
        """From a posterior or a confidence distribution."""
        low, high = known.ends(level)
        negative, below, not_above = (known.below(x) for x in (0.0, -margin, margin))
        return cls(
            claimed,
            margin,
            low,
            high,
            probability_negative=negative,
            probability_negligible=not_above - below,
            p_value=2 * min(negative, 1 - negative),
            p_negligible=min(1.0, 2 * max(below, 1 - not_above)),
            p_beyond=min(1.0, 2 * min(not_above, 1 - below)),
        )

    @property
    def p_of_grade(self) -> float:
        """The p of what the grade says: that there is a difference, or none, or one to speak of."""
        found = _ungated(self)
        if found == NEGLIGIBLE or (not self.claimed and found != CONTRADICTED):
            return self.p_negligible
        return self.p_value if self.claimed else self.p_beyond

    @property
    def probability_claimed(self) -> float:
        """The probability of the claimed sign; of a claim of none, that it is negligible.

        NaN for what is never negative.
        """
        if self.never_negative:
            return np.nan
        if not self.claimed:
            return self.probability_negligible
        return self.probability_negative if self.claimed < 0 else 1 - self.probability_negative

    @property
    def side(self) -> int:
        """The sign of an interval that excludes zero, else 0."""
        if self.never_negative:
            return int(self.p_value <= SIGNIFICANT)
        return int(self.low > 0) - int(self.high < 0)

    @property
    def is_negligible(self) -> bool:
        """Whether the interval lies within the margin."""
        return -self.margin < self.low and self.high < self.margin


def grade(evidence: Evidence) -> str:
    """The grade by the rules of this module."""
    if not np.isfinite([evidence.low, evidence.high]).all():
        return NOT_ASKED
    found = _ungated(evidence)
    if found == SUPPORTED and evidence.confounded_with:
        return CONFOUNDED
    if found == SUPPORTED and evidence.carried_by:
        return FRAGILE
    if found == UNDECIDED and evidence.chance < HOPELESS:
        return CANNOT_SAY
    return found


def _ungated(evidence: Evidence) -> str:
    """The grade by the interval alone."""
    return _of_difference(evidence) if evidence.claimed else _of_none(evidence)


def _of_difference(evidence: Evidence) -> str:
    if evidence.side:
        return SUPPORTED if evidence.side == evidence.claimed else CONTRADICTED
    return NEGLIGIBLE if evidence.is_negligible else UNDECIDED


def _of_none(evidence: Evidence) -> str:
    if evidence.is_negligible:
        return SUPPORTED
    outside = evidence.low >= evidence.margin or evidence.high <= -evidence.margin
    return CONTRADICTED if outside else UNDECIDED


def is_headline(found: str, p_holm: float) -> bool:
    """Whether a summary may state the grade: a decisive one that survives Holm's correction."""
    return found in DECISIVE and p_holm <= SIGNIFICANT
