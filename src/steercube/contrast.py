"""Which models a study compares: two labels of one of their variables."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from steercube.schema import raise_if_any

__all__ = ["Contrast", "parse_contrast"]

FORM = "VARIABLE:LOW:HIGH or VARIABLE:LOW:HIGH:HELD, such as training:base:instruct:n_layers"
HELD = {"n_params": "size", "n_active_params": "active size", "n_layers": "number of blocks"}
"""Numbers of a model that may be held fixed, in words."""


@dataclass(frozen=True)
class Contrast:
    """The comparison of models by `by`: those labelled `high` minus those labelled `low`.

    `by` names a variable of the models in the cube, such as training, architecture or family;
    models of neither label are left out of the comparison. `words` are what a text calls a label,
    where that is not the label itself. `holding` names the number of each model that is held fixed
    in the primary comparison, on its log10.

    >>> Contrast("training", "base", "rl", {"rl": "full RL"}).minus
    'full RL minus base'
    """

    by: str
    low: str
    high: str
    words: Mapping[str, str] = field(default_factory=dict)
    holding: str = "n_params"

    @property
    def attributes(self) -> dict[str, Any]:
        """What a manifest records of it."""
        text = f"{self.by}:{self.low}:{self.high}"
        return {"contrast": text, "contrast_words": dict(self.words), "holding": self.holding}

    def named(self, label: str) -> str:
        """What a text calls a label."""
        return self.words.get(label, label)

    @property
    def minus(self) -> str:
        """The difference in words."""
        return f"{self.named(self.high)} minus {self.named(self.low)}"

    @property
    def held(self) -> str:
        """What is held fixed, in words.

        >>> Contrast("training", "base", "rl", holding="n_layers").held
        'number of blocks'
        """
        return HELD.get(self.holding, self.holding.replace("_", " "))

    @property
    def covariate(self) -> str:
        """What tables call the covariate that is held fixed."""
        return "scale" if self.holding == "n_params" else self.held

    def models_of(self, label: str) -> str:
        """The models of a label in words.

        >>> Contrast("training", "base", "rl", {"rl": "full RL"}).models_of("rl")
        'full-RL models'
        """
        return f"{self.named(label).replace(' ', '-')} models"


def parse_contrast(text: str) -> Contrast:
    """The contrast that VARIABLE:LOW:HIGH or VARIABLE:LOW:HIGH:HELD names.

    Raises ValueError for anything else.
    """
    parts = [part.strip() for part in text.split(":")]
    if len(parts) not in (3, 4) or not all(parts) or parts[1] == parts[2]:
        raise ValueError(f"contrast {text!r}: write {FORM}, with two labels that differ")
    by, low, high, *held = parts
    return Contrast(by, low, high, holding=held[0] if held else "n_params")


def read_attributes(attributes: Mapping[str, Any]) -> Contrast | None:
    """The contrast that a manifest records, if it records one."""
    if not attributes.get("contrast"):
        return None
    found = parse_contrast(str(attributes["contrast"]))
    words, holding = attributes.get("contrast_words", {}), attributes.get("holding", found.holding)
    return replace(found, words=words, holding=holding)


def contrast_of(table: Mapping[str, Any], *, what: str) -> Contrast:
    """The contrast in a table of a ledger. Raises ValueError with every problem."""
    raise_if_any(contrast_problems(table), what=what)
    by, low, high = (str(table[name]) for name in LABELS)
    return Contrast(by, low, high, table.get("words", {}), table.get("holding", "n_params"))


LABELS = ("by", "low", "high")


def contrast_problems(table: Mapping[str, Any]) -> list[str]:
    """Everything that keeps a table of a ledger from being a contrast."""
    texts = {name: table.get(name) for name in LABELS}
    words, holding = table.get("words", {}), table.get("holding", "n_params")
    problems = [
        f"`{name}` is missing or no text; write `by`, `low` and `high` in [contrast]"
        for name, text in texts.items()
        if not (isinstance(text, str) and text)
    ]
    unknown = sorted(set(table) - {*LABELS, "words", "holding"})
    problems += [f"`{name}` is unknown in [contrast]" for name in unknown]
    if not isinstance(holding, str):
        problems.append("`holding` is a text, the name of a number of each model")
    problems += [
        f"`{name}` may not hold a colon, nor begin or end with a space"
        for name, text in texts.items()
        if ":" in str(text) or str(text) != str(text).strip()
    ]
    if not problems and texts["low"] == texts["high"]:
        problems.append("`low` and `high` are the same label")
    if not (isinstance(words, dict) and all(isinstance(text, str) for text in words.values())):
        problems.append('`words` gives a text for a label, such as {rl = "full RL"}')
    named = set(words) if isinstance(words, dict) else set()
    strays = sorted(named - {str(texts["low"]), str(texts["high"])})
    return problems + [f"`words` names {label!r}, which is neither label" for label in strays]
