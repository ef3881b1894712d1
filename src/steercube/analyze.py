"""A study from end to end: its cube or its cells in, its folder of conclusions out."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from steercube.analysis.claims import Claim, read_claims
from steercube.analysis.reduce import cells as reduce_to_cells
from steercube.analysis.tables import conclude
from steercube.cells import compare_cells, open_cells, save_cells
from steercube.cube import open_cube
from steercube.netcdf import digest
from steercube.report.figures import draw
from steercube.report.write import write_study

Report = Callable[[str], None]

NOTHING_TO_DO = (
    "{folder} holds no study: neither <study>.nc (a cube) nor <study>.cells.nc (its cells). "
    "Fetch the published study with `steercube import-study`, or collect a cube of your own."
)


def studies(data: str | Path) -> list[str]:
    """Names of the studies in a folder: every cube, and every cells file, by its stem."""
    names = {path.name.removesuffix(".nc") for path in Path(data).glob("*.nc")}
    return sorted({n.removesuffix(".cells") for n in names if not n.endswith(".vectors")})


def analyze(
    data: str | Path,
    paper: str | Path,
    *,
    study: str | None = None,
    report: Report = print,
) -> None:
    """Every study in `data`, or the one named, to `paper`/<study>/.

    Raises FileNotFoundError with what to do where `data` holds no study, ValueError for a file
    that breaks its contract; what an earlier run wrote is then as it was.
    """
    names = studies(data)
    if study is not None:
        if study not in names:
            raise FileNotFoundError(f"{data} holds no study {study!r}; it holds {names}")
        names = [study]
    if not names:
        raise FileNotFoundError(NOTHING_TO_DO.format(folder=data))
    for name in names:
        report(f"{name}:")
        cells = cells_of(name, data, report=report)
        write_conclusions(name, cells, paper, report=report)


def cells_of(study: str, data: str | Path, *, report: Report = print) -> xr.Dataset:
    """The cells of a study: rebuilt from its cube where that is present, else as committed.

    Rebuilt cells that agree with the file leave it alone; where they differ the file is replaced
    and every difference reported.
    """
    cube_path, cells_path = Path(data) / f"{study}.nc", Path(data) / f"{study}.cells.nc"
    if not cube_path.exists():
        report(f"  from {cells_path}; no cube here, so the samples are not looked at again")
        return open_cells(cells_path)
    report(f"  from {cube_path}")
    rebuilt = reduce_to_cells(open_cube(cube_path), report=lambda line: report(f"  {line}"))
    if not cells_path.exists():
        save_cells(rebuilt, cells_path)
        report(f"  wrote {cells_path}")
        return rebuilt
    differences = compare_cells(rebuilt, committed := open_cells(cells_path))
    if not differences:
        report(f"  the cells agree with {cells_path}")
        return committed
    save_cells(rebuilt, cells_path)
    report(f"  the cells DIFFER from {cells_path}, which was replaced:")
    for difference in differences:
        report(f"    {difference}")
    return rebuilt


def claims_about(study: str, paper: str | Path) -> tuple[list[Claim], dict[str, str]]:
    """The published claims about a study, none if the ledger is about another, and its SHA-256."""
    path = Path(paper) / "claims.toml"
    if not path.exists():
        return [], {}
    about, claims = read_claims(path)
    if about != study:
        return [], {}
    return claims, {"claims.toml": hashlib.sha256(path.read_bytes()).hexdigest()}


def write_conclusions(
    study: str, cells: xr.Dataset, paper: str | Path, *, report: Report = print
) -> None:
    """Tables, numbers, figures and manifest of one study to `paper`/<study>/."""
    claims, inputs = claims_about(study, paper)
    report("  tables")
    tables = conclude(cells, claims)
    report("  figures")
    figures = draw(cells, tables)
    write_study(
        Path(paper) / study,
        tables,
        figures,
        inputs=inputs | {f"{study}.cells.nc (content)": digest(cells)},
        settings={name: cells.attrs[name] for name in ("seed", "n_resamples", "confidence_level")},
    )
    report(f"  wrote {Path(paper) / study}")
    if "claims" in tables:
        counts = tables["claims"]["verdict"].value_counts()
        report("  claims: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
