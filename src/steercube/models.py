"""Models as data: what is known of each, and where its weights are. One TOML table a model."""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from steercube.cube import ARCHITECTURES, TRAININGS, Model
from steercube.schema import name_violations, raise_if_any, read_toml

DTYPES = ("float32", "bfloat16", "float16")
ALLOWED = {"dtype": DTYPES, "training": TRAININGS, "architecture": ARCHITECTURES}


@dataclass(frozen=True)
class Weights:
    """Where the weights of a model are and how to hold them.

    `source` is a Hugging Face id or a folder. With `package` it is ignored: the file `gguf_file`
    is looked for in that installed Python package. `device_map` is accelerate's: empty for one
    device, `auto` to spread over the GPUs, the CPU's memory and the disk.
    """

    source: str
    revision: str = "main"
    dtype: str = "bfloat16"
    device_map: str = ""
    gguf_file: str = ""
    package: str = ""


@dataclass(frozen=True)
class Entry:
    """A model's facts and its weights; `facts` is None where only the weights were named."""

    name: str
    weights: Weights
    facts: Model | None = None


OF_MODEL = {f.name: f.type for f in fields(Model) if f.name not in ("name", "revision")}
OF_WEIGHTS = {f.name: f.type for f in fields(Weights) if f.name != "source"}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def read_models(path: str | Path) -> dict[str, Entry]:
    """Models by name, from a TOML file with one table a model.

    Raises ValueError that lists every entry with missing, unknown or mistyped fields, or a name
    that cannot be a folder's.
    """
    tables = read_toml(path)
    problems = name_violations("model", tables)
    if not tables:
        problems.append('holds no model; write one as a table, ["8B"]')
    for name, table in tables.items():
        problems += [f"model {name!r} {problem}" for problem in _field_problems(table)]
    raise_if_any(problems, what=str(path))
    return {name: _entry(name, table) for name, table in tables.items()}


def read_facts(path: str | Path) -> dict[str, Model]:
    """The facts of `read_models` alone, as an importer of published results needs them."""
    return {name: entry.facts for name, entry in read_models(path).items() if entry.facts}


def _entry(name: str, table: dict[str, Any]) -> Entry:
    facts = {field: value for field, value in table.items() if field in OF_MODEL}
    weights = {field: value for field, value in table.items() if field in OF_WEIGHTS}
    return Entry(name, Weights(table["hf_id"], **weights), Model(name=name, **facts))


def find_model(name: str, models: dict[str, Entry]) -> Entry:
    """The entry of that name, or one for the folder or the Hugging Face id that `name` is.

    Raises ValueError, listing the entries, where `name` can be neither.
    """
    if name in models:
        return models[name]
    if name and "\0" not in name and (Path(name).exists() or HUB_ID.fullmatch(name)):
        named = Path(name).resolve().name
        problems = name_violations("model", [named])
        raise_if_any([f"{p}; give it an entry in models.toml" for p in problems], what=repr(name))
        return Entry(named, Weights(name))
    raise ValueError(
        f"model {name!r} is none of the entries ({', '.join(models) or 'none'}), nor a folder, nor "
        "a Hugging Face id (owner/name). Give one of these, or add an entry to models.toml."
    )


def _field_problems(table: Any) -> list[str]:
    if not isinstance(table, dict):
        return [f"is {table!r}, not a table of facts"]
    kinds: dict[str, Any] = OF_MODEL | OF_WEIGHTS
    problems = [f"lacks {field!r}" for field in sorted(set(OF_MODEL) - set(table))]
    for field, value in table.items():
        if field not in kinds:
            problems.append(f"has the unknown field {field!r}")
        elif isinstance(value, bool) or not isinstance(
            value, (int, float) if kinds[field] is float else kinds[field]
        ):
            problems.append(f"has {field} = {value!r}, of the wrong type")
        elif kinds[field] in (int, float) and not 0 < value < math.inf:
            problems.append(f"has {field} = {value!r}; it must be positive and finite")
        elif field == "hf_id" and not str(value).strip():
            problems.append(f"has an empty {field!r}")
        elif field == "package" and value and not str(value).isidentifier():
            problems.append(f"has {field} = {value!r}, which no Python package is called")
    for field, allowed in ALLOWED.items():
        if field in table and table[field] not in allowed:
            problems.append(
                f"has {field} = {table[field]!r}, which is none of {', '.join(allowed)}"
            )
    return problems
