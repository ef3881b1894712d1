"""A whole collection, which the tests of this folder read but do not change."""

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.collected(tmp_path_factory.mktemp("whole"))
