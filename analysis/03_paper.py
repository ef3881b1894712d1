"""Stage two, whole: tables, numbers, figures, manifest.  python analysis/03_paper.py [study]"""

import sys
from pathlib import Path

from steercube.analysis.conclusions.claims import Ledger
from steercube.analysis.view import Study
from steercube.analyze import read_ledgers, sample, write_conclusions
from steercube.cells import open_cells

study = sys.argv[1] if len(sys.argv) > 1 else "qwen3"

ledger = read_ledgers("paper").get(study, Ledger(study, []))
cells = Study.of(open_cells(f"data/{study}.cells.nc"), ledger.contrast)
sampled = sample(cells, Path("paper") / study / "posteriors")
write_conclusions(study, cells, "paper", ledger=ledger, sampled=sampled)
