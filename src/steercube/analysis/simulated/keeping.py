"""Results of long simulations, saved as each is finished, so that a run can be resumed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Keep(Protocol):
    """Makes what a name stands for, or reads what an earlier run made of it."""

    def __call__(self, name: str, make: Callable[[], list[Any]]) -> list[Any]:
        """The list that `make` returns."""


def made_anew(name: str, make: Callable[[], list[Any]]) -> list[Any]:
    """The list that `make` returns, without a look at earlier runs."""
    return make()


@dataclass(frozen=True)
class KeptIn:
    """Keeps lists that JSON can hold in a folder; `made_from` identifies what they were made of.

    A file that was made of something else, or was cut off, is made anew.
    """

    folder: Path
    made_from: str

    def __call__(self, name: str, make: Callable[[], list[Any]]) -> list[Any]:
        """The list that `make` returns, or that an earlier run saved."""
        key = hashlib.sha256(f"{self.made_from}\n{name}".encode()).hexdigest()
        path = self.folder / f"{key[:16]}.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["key"] == key:
                return list(saved["rows"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            pass
        rows = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"key": key, "name": name, "rows": rows}), encoding="utf-8")
        part.replace(path)
        return rows
