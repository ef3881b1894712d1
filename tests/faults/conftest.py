"""A ledger of faults: what was tried, what was lost, what was wrong without a word."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> dict[str, Fault]:
    return request.config.stash.setdefault(LEDGER, {})


@pytest.fixture
def fault(ledger: dict[str, Fault]) -> Iterator[Callable[[str], Fault]]:
    """Opens a line of the ledger by name; the test fails where a line it opened has an entry."""
    opened: list[Fault] = []

    def of(name: str) -> Fault:
        opened.append(ledger.setdefault(name, Fault(name)))
        return opened[-1]

    yield of
    assert opened, "a test of a fault enters what it tried"
    for line in opened:
        assert line.tries > 0
        assert line.lost == []
        assert line.silently_wrong == []


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
