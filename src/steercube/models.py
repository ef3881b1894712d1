"""Models as data: facts about each and where its weights are, one TOML table per model."""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from steercube.contract import ARCHITECTURES, Model
from steercube.schema import name_violations, raise_if_any, read_toml
from steercube.words import did_you_mean

__all__ = ["Entry", "Weights", "find_model", "read_facts", "read_models"]

MODELS = "data/models.toml"
"""Default file of model entries."""
DTYPES = ("float32", "bfloat16", "float16")
ALLOWED = {"dtype": DTYPES, "architecture": ARCHITECTURES}


@dataclass(frozen=True)
class Weights:
    """Where the weights of a model are and how to hold them.

    `source` is a Hugging Face id or a folder; it is ignored if `package` names an installed Python
    package that holds the file `gguf_file`. `device_map` is accelerate's: empty for one device,
    `auto` to spread over the GPUs, the CPU's memory and the disk.
    """

    source: str
    revision: str = "main"
    dtype: str = "bfloat16"
    device_map: str = ""
    gguf_file: str = ""
    package: str = ""

    @property
    def location(self) -> str:
        """Text that says where the weights are."""
        if self.package:
            return f"{self.gguf_file} in the package {self.package}"
        if self.gguf_file:
            return str(Path(self.source) / self.gguf_file)
        return self.source


@dataclass(frozen=True)
class Entry:
    """A model's facts and its weights; `facts` is None if only the weights were given."""

    name: str
    weights: Weights
    facts: Model | None = None


MODEL_FIELDS = {f.name: f.type for f in fields(Model) if f.name not in ("name", "revision")}
WEIGHTS_FIELDS = {f.name: f.type for f in fields(Weights) if f.name != "source"}
MODEL_FILES = ("config.json", "adapter_config.json")
"""A model's folder has one of these files; transformers reads the second as an adapter's."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def read_models(path: str | Path) -> dict[str, Entry]:
    """Models by name, from a TOML file with one table per model.

    Raises FileNotFoundError with the absolute path, or ValueError that lists every entry with
    missing, unknown or mistyped fields, or a name that cannot name a folder.
    """
    if not Path(path).is_file():
        what = "is a folder, not a file" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(
            f"{path}: {what} (looked for {Path(path).absolute()}); --models names another"
        )
    tables = read_toml(path)
    problems = name_violations("model", tables)
    if not tables:
        problems.append('holds no model; write each as a table, such as ["8B"]')
    for name, table in tables.items():
        problems += [f"model {name!r} {problem}" for problem in _field_problems(table)]
    raise_if_any(problems, what=str(path))
    return {name: _entry(name, table) for name, table in tables.items()}


def entries_in(path: str | Path = MODELS) -> dict[str, Entry]:
    """Models by name, as `read_models`; none where the default file is absent.

    A model in a folder or on the hub needs no entry.
    """
    return read_models(path) if str(path) != MODELS or Path(path).exists() else {}


def read_facts(path: str | Path) -> dict[str, Model]:
    """Facts about each model of `read_models`, without weights, for importing a study."""
    return {name: entry.facts for name, entry in read_models(path).items() if entry.facts}


def _entry(name: str, table: dict[str, Any]) -> Entry:
    facts = {field: value for field, value in table.items() if field in MODEL_FIELDS}
    weights = {field: value for field, value in table.items() if field in WEIGHTS_FIELDS}
    return Entry(name, Weights(table["hf_id"], **weights), Model(name=name, **facts))


def find_model(name: str, models: dict[str, Entry], *, where: str | Path = "models.toml") -> Entry:
    """The entry of that name, or a new one if `name` is a folder, GGUF file or Hugging Face id.

    Case is ignored if only one entry matches without it. `where` is the entries' file, for error
    messages. Raises ValueError that lists the entries if `name` is none of these.
    """
    if name in models:
        return models[name]
    if "\0" not in name and name and Path(name).exists():
        return _named(name, _on_disk(Path(name)))
    alike = [entry for key, entry in models.items() if key.casefold() == name.casefold()]
    if len(alike) == 1:
        return alike[0]
    if HUB_ID.fullmatch(name):
        return _named(name, Weights(name))
    entries = ", ".join(models) or "none"
    if not models and not Path(where).exists():
        entries = f"none: {Path(where).absolute()} does not exist; --models names another"
    raise ValueError(
        f"model {name!r} is neither an entry ({entries}) nor a folder, a .gguf file or a "
        f"Hugging Face id (owner/name). Give one of these, or add an entry to "
        f"{where}{did_you_mean(name, models)}"
    )


def _on_disk(path: Path) -> Weights:
    """Weights at `path`: a GGUF file, a model's folder, or a folder with a single GGUF file."""
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(
                f"{path}: is a file but not a .gguf file; name the folder that holds the model, "
                f"{path.parent}"
            )
        return Weights(str(path.parent), gguf_file=path.name)
    if any((path / name).exists() for name in MODEL_FILES):
        return Weights(str(path))
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise ValueError(
            f"{path}: is a folder that holds no model: no {', no '.join(MODEL_FILES)} and no "
            f".gguf file ({path.absolute()}); name the folder of a model, or its Hugging Face id"
        )
    if len(files) > 1:
        raise ValueError(
            f"{path}: holds {len(files)} GGUF files; name one of them as the model, such as "
            f"{files[0]}"
        )
    return Weights(str(path), gguf_file=files[0].name)


def _named(given: str, weights: Weights) -> Entry:
    """An entry without facts, named after its file, folder or repository."""
    path = Path(given).resolve()
    name = path.stem if path.is_file() else path.name
    problems = name_violations("model", [name])
    raise_if_any([f"{p}; give it an entry in models.toml" for p in problems], what=repr(given))
    return Entry(name, weights)


def _field_problems(table: Any) -> list[str]:
    if not isinstance(table, dict):
        return [f"is {table!r}, not a table of facts"]
    kinds: dict[str, Any] = MODEL_FIELDS | WEIGHTS_FIELDS
    problems = [f"lacks {field!r}" for field in sorted(set(MODEL_FIELDS) - set(table))]
    for field, value in table.items():
        if field not in kinds:
            problems.append(f"has the unknown field {field!r}{did_you_mean(field, kinds)}")
        elif isinstance(value, bool) or not isinstance(
            value, (int, float) if kinds[field] is float else kinds[field]
        ):
            problems.append(f"has {field} = {value!r}, of the wrong type")
        elif kinds[field] in (int, float) and not 0 < value < math.inf:
            problems.append(f"has {field} = {value!r}; it must be positive and finite")
        elif field == "hf_id" and not str(value).strip():
            problems.append(f"has an empty {field!r}")
        elif field == "package" and value and not str(value).isidentifier():
            problems.append(f"has {field} = {value!r}, which is not a name of a Python package")
    if isinstance(table.get("training"), str):
        problems += [f"has {p}" for p in name_violations("training =", [table["training"]])]
    for field, allowed in ALLOWED.items():
        if field in table and table[field] not in allowed:
            problems.append(
                f"has {field} = {table[field]!r}, which is none of {', '.join(allowed)}"
                f"{did_you_mean(str(table[field]), allowed)}"
            )
    return problems
