r"""What counts as small: margins that come from outside the data.

A margin is the half-width of a region of practical equivalence: an effect shown to be inside it is
*negligible*. Each is what others call a small effect, or the smallest that a stated use would
notice; none was computed from the sweep that it judges. But the study's results were known when
these were chosen, so every question is also judged by margins half and twice as large
(`VARIED`). The exception is the change of a measure that is no logit difference and whose record
names no `rope`: it is standardised by the root mean square of its own best effects.

- Standardised effects: 0.2, 0.5 and 0.8 sds are small, medium and large (Cohen 1988, Statistical
  Power Analysis, chapter 2).
- A logit difference is the log odds of an answer: a standardised effect d is a log odds ratio of
  $d\, \pi / \sqrt 3$ (Hasselblad & Hedges 1995, Psychol. Bull. 117; Chinn 2000, Stat. Med. 19).
  Where the items' sd exceeds 1.81 nat, that of a standard logistic variable, 0.36 nat is less than
  0.2 of it.
- A slope: the sizes of what rises, for one unit of what it rises with (a tenfold size, one d).
- Correlations, and shares of variance: 0.1, 0.3 and 0.5 (Cohen 1988, chapter 3).
- Depth in the network: 0.05 is two blocks of forty. Sweeps often run every second block, so
  a smaller shift would not change which layers are tried; medium and large are in Cohen's ratio.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Margins:
    """Sizes of effects: `small` is the margin under which an effect is negligible."""

    small: float
    medium: float
    large: float

    def times(self, factor: float) -> "Margins":
        """The same sizes in another unit."""
        return Margins(self.small * factor, self.medium * factor, self.large * factor)


STANDARDISED = Margins(0.2, 0.5, 0.8)
LOG_ODDS = STANDARDISED.times(float(np.pi / np.sqrt(3)))
CORRELATION = Margins(0.1, 0.3, 0.5)
DEPTH = STANDARDISED.times(0.25)
VARIED = (0.5, 1.0, 1.5, 2.0)
"""Factors by which margins are varied."""
