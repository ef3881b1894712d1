"""A ledger of faults: what was tried, what was lost, what was wrong without a word.

Where several processes share the tests, each hands in its own, and one table is printed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest


@dataclass
class Fault:
    """One kind of fault. Nothing may be lost, and nothing wrong may be returned silently."""

    name: str
    tries: int = 0
    lost: list[str] = field(default_factory=list)
    silently_wrong: list[str] = field(default_factory=list)

    def tried(self, what: str, *, lost: bool = False, silently_wrong: bool = False) -> None:
        """Enter one try."""
        self.tries += 1
        self.lost += [what] * lost
        self.silently_wrong += [what] * silently_wrong


LEDGER = pytest.StashKey[dict[str, Fault]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker's ledger, handed to the process that started it."""
    if hasattr(session.config, "workeroutput"):
        found = session.config.stash.get(LEDGER, {})
        session.config.workeroutput["faults"] = [asdict(fault) for fault in found.values()]


class Gathering:
    """For the process that starts workers; pytest-xdist asks for the hook."""

    def pytest_testnodedown(self, node: Any) -> None:
        add(node.config.stash.setdefault(LEDGER, {}), getattr(node, "workeroutput", {}))


def add(ledger: dict[str, Fault], handed_in: Mapping[str, Any]) -> None:
    """Enter what a worker has handed in."""
    for entry in handed_in.get("faults", []):
        line = ledger.setdefault(entry["name"], Fault(entry["name"]))
        line.tries += entry["tries"]
        line.lost += entry["lost"]
        line.silently_wrong += entry["silently_wrong"]


def pytest_configure(config: pytest.Config) -> None:
    """Gather, where there is something to gather from."""
    if config.pluginmanager.has_plugin("xdist"):
        config.pluginmanager.register(Gathering())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The ledger as a table."""
    found = config.stash.get(LEDGER, {})
    if not found:
        return
    terminalreporter.section("faults")
    width = max(len(name) for name in found)
    terminalreporter.line(f"{'fault':{width}}  tries  lost  silently wrong")
    for line in found.values():
        counts = f"{line.tries:5}  {len(line.lost):4}  {len(line.silently_wrong):14}"
        terminalreporter.line(f"{line.name:{width}}  {counts}")
