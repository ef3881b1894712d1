"""Stage two: the cells to every table.  python analysis/02_tables.py [study]"""

import sys
from pathlib import Path

from steercube.analysis.conclusions.claims import Ledger
from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.view import Study
from steercube.analyze import read_ledgers
from steercube.cells import open_cells
from steercube.report.write import NUMBER

study = sys.argv[1] if len(sys.argv) > 1 else "qwen3"
folder = Path(f"paper/{study}/tables")
folder.mkdir(parents=True, exist_ok=True)

ledger = read_ledgers("paper").get(study, Ledger(study, []))
cells = Study.of(open_cells(f"data/{study}.cells.nc"), ledger.contrast)
for name, table in conclude(cells, ledger.claims).items():
    table.to_csv(folder / f"{name}.csv", index=False, float_format=NUMBER)
