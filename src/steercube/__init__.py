"""Steering sweeps as one labelled cube, and the conclusions that can be drawn from them.

From Python, in the order in which one needs them::

    import steercube as sc

    decoder = sc.decoder(model, tokenizer)      # a loaded Hugging Face or PEFT model,
    decoder = sc.load("owner/name")             # or one from the hub, a folder, a .gguf file
    concept = sc.concept(pairs, items)          # lists of dicts, DataFrames, files
    vectors = sc.extract(decoder, concept)      # Dataset (direction, layer, hidden)
    cube = sc.sweep(decoder, concept, vectors, strengths=(-1, 0, 1), layers="0.3:1.0",
                    measures=("logit", "generation"), out="mine.nc")
    with sc.steer(decoder, vectors, layer=14, strength=1.5):
        decoder.model.generate(...)             # use what was found

    cube = sc.open("mine.nc")                   # a cube or cells, from a file
    study = sc.study(cube, contrast="training:base:instruct")
    study.effects()                             # every estimand at the best layer, with intervals
    study.tables                                # what each table holds, by name
    study.table("training_effect")              # or "contrast_effect": whatever is compared
    study.without(model="8B").table("training_effect")
    study.plot.heatmap(), study.plot.layers("sycophancy")
    study.posterior().summary()

    cube.steercube                              # a study without a contrast, also of one grid
    sc.merge(cube, other), sc.save(cube, "mine.nc")
    sc.add_measure(table, "judge_score", to=cube)
    sc.export_responses(cube, "texts.jsonl")    # for a judge, whose scores become a measure
    sc.import_scores(cube, "scored.jsonl", Measure("judge_score"))

`help(sc.sweep)` explains each. On the command line the same steps are `steercube collect`,
`analyze` and `paper`; data flows one way::

    concepts + models -> collect -> cube -> cells -> conclusions -> report -> paper

`steercube.cube` (samples) and `steercube.cells` (statistics) are the two contracts: the stages
before and after one of these files share nothing but the file.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from steercube import accessor as _accessor  # noqa: F401  # registers Dataset.steercube

if TYPE_CHECKING:
    from steercube.collect.from_python import decoder, extract, load, sweep
    from steercube.collect.steer import steer
    from steercube.concept_rows import concept
    from steercube.files import add_measure, merge, open, save
    from steercube.notebook import study
    from steercube.responses import export_responses, import_scores

__all__ = [
    "add_measure",
    "concept",
    "decoder",
    "export_responses",
    "extract",
    "import_scores",
    "load",
    "merge",
    "open",
    "save",
    "steer",
    "study",
    "sweep",
]

_MODULES = {
    "steercube.collect.from_python": ("decoder", "extract", "load", "sweep"),
    "steercube.collect.steer": ("steer",),
    "steercube.concept_rows": ("concept",),
    "steercube.files": ("add_measure", "merge", "open", "save"),
    "steercube.notebook": ("study",),
    "steercube.responses": ("export_responses", "import_scores"),
}
"""Where each function is: imported when it is first used, so that importing steercube is quick."""

try:
    __version__ = _version("steercube")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            try:
                return getattr(import_module(module), name)
            except ImportError as error:
                return _needing(name, error)
    raise AttributeError(f"module 'steercube' has no attribute {name!r}")


def _needing(name: str, error: ImportError) -> Any:
    """A function in place of one whose packages are missing, so that `help` still works."""
    message = (
        f"steercube.{name} needs more packages ({error}); install them with "
        "`pip install -c constraints.txt -e '.[collect]'`"
    )

    def function(*args: Any, **kwargs: Any) -> Any:
        raise ImportError(message)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{message[0].upper()}{message[1:]}."
    return function


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
