"""The appendix of definitions: the docstrings of what computes each number, as Markdown."""

import inspect
import re
from collections.abc import Iterator

from steercube.analysis.conclusions.tables import Documented, documented
from steercube.analysis.per_cell.estimands import NAMES, UNITS

EXAMPLE = re.compile(r"(?:^[^\n]*:\n\n)?^[ \t]*>>>.*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


def methods() -> str:
    """Every definition with its equation, units and source, as its docstring gives them."""
    return "\n\n".join(
        f"### {heading}\n\n" + "\n\n".join(map(_definition, objects))
        for heading, objects in documented().items()
    )


def _definition(of: Documented) -> str:
    if inspect.ismodule(of):
        name, path = of.__name__.rsplit(".", 1)[1].replace("_", " "), of.__name__
    else:
        name = NAMES.get(of.__name__, of.__name__.replace("_", " "))
        path = f"{of.__module__}.{of.__name__}"
    lines = [f"**{name[0].upper()}{name[1:]}** (`{path}`)", *_paragraphs(of)]
    unit = UNITS.get(path.rsplit(".", 1)[1])
    if unit:
        lines.append(f"Unit: {unit}." if unit != "1" else "Without unit.")
    return "\n\n".join(lines)


def _paragraphs(of: Documented) -> Iterator[str]:
    """The docstring without its examples; what was indented is code."""
    text = EXAMPLE.sub("", inspect.getdoc(of) or "")
    for part in re.split(r"\n\s*\n", text):
        if part.strip() and not part.startswith("Example"):
            yield part
