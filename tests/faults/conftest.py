"""Each test of a fault enters in the ledger what it tried."""

from collections.abc import Callable, Iterator

import pytest
from fault_ledger import LEDGER, Fault


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
