"""Stage one: the cube's samples to the cells' statistics.  python analysis/01_cells.py [study]"""

import sys

from steercube.analysis.per_cell.reduce import cells
from steercube.cells import save_cells
from steercube.cube import open_cube

study = sys.argv[1] if len(sys.argv) > 1 else "qwen3"

cube = open_cube(f"data/{study}.nc")
save_cells(cells(cube, report=print), f"data/{study}.cells.nc")
