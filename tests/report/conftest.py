"""Reports are tested on the committed results, which `nox -s tests-all` makes anew and compares."""

import pandas as pd
import pytest
from builders import ROOT

from steercube.report.post import read_table


@pytest.fixture(scope="session")
def study_tables() -> dict[str, pd.DataFrame]:
    """Every committed table of the real study, its ledger included."""
    folder = ROOT / "paper" / "qwen3" / "tables"
    return {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))}
