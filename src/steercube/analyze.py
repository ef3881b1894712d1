"""A study from end to end: its cube or its cells in, its folder of conclusions out."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
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
    "Fetch the published study with `steercube import-study`, or put a cube of your own there."
)


def studies(data: str | Path) -> list[str]:
    """Names of the studies in a folder: every cube, and every cells file, by its stem."""
    files = [
        path.name
        for path in Path(data).glob("*.nc")
        if not path.name.startswith(".") and not path.name.endswith(".vectors.nc")
    ]
    return sorted({name.removesuffix(".nc").removesuffix(".cells") for name in files})


def analyze(
    data: str | Path,
    paper: str | Path,
    *,
    study: str | None = None,
    report: Report = print,
) -> None:
    """Every study in `data`, or the one named, to `paper`/<study>/, one after the other.

    Raises FileNotFoundError with what to do where `data` holds no study, ValueError for a file
    that breaks its contract; what an earlier run made of that study is then as it was.
    """
    names = studies(data)
    if study is not None:
        if study not in names:
            raise FileNotFoundError(f"{data} holds no study {study!r}; it holds {names}")
        names = [study]
    if not names:
        raise FileNotFoundError(NOTHING_TO_DO.format(folder=data))
    if Path(paper).exists() and not Path(paper).is_dir():
        raise NotADirectoryError(f"{paper} is a file; results go into a folder of that name")
    ledgers = read_ledgers(paper)
    for name in names:
        report(f"{name}:")
        cells, changed = cells_of(name, data, report=report)
        write_conclusions(name, cells, paper, ledger=ledgers.get(name), report=report)
        if changed:
            save_cells(cells, Path(data) / f"{name}.cells.nc")


def cells_of(study: str, data: str | Path, *, report: Report = print) -> tuple[xr.Dataset, bool]:
    """The cells of a study, and whether they differ from the file (or there is none).

    Rebuilt from the cube where that is present, and compared with the file; else read from it.
    """
    cube_path, cells_path = Path(data) / f"{study}.nc", Path(data) / f"{study}.cells.nc"
    if not cube_path.exists():
        report(f"  from {cells_path}; no cube here, so the samples are not looked at again")
        return open_cells(cells_path), False
    report(f"  from {cube_path}")
    rebuilt = reduce_to_cells(open_cube(cube_path), report=lambda line: report(f"  {line}"))
    if not cells_path.exists():
        report(f"  {cells_path} is new")
        return rebuilt, True
    try:
        committed = open_cells(cells_path)
    except ValueError as error:
        report(f"  {cells_path} cannot be used and is replaced: {error}")
        return rebuilt, True
    differences = compare_cells(rebuilt, committed)
    if not differences:
        report(f"  the cells agree with {cells_path}")
        return committed, False
    report(f"  the cells DIFFER from {cells_path}, which is replaced:")
    for difference in differences:
        report(f"    {difference}")
    return rebuilt, True


@dataclass(frozen=True)
class Ledger:
    """The published claims about one study, the file that lists them and its SHA-256."""

    name: str
    sha256: str
    claims: list[Claim]


def read_ledgers(paper: str | Path) -> dict[str, Ledger]:
    """Ledgers by the study that they are about: `claims.toml` and any other `*claims.toml`."""
    ledgers: dict[str, Ledger] = {}
    for path in sorted(Path(paper).glob("*claims.toml")):
        study, claims = read_claims(path)
        if study in ledgers:
            raise ValueError(f"{path} and {ledgers[study].name} are both about the study {study!r}")
        ledgers[study] = Ledger(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), claims)
    return ledgers


def write_conclusions(
    study: str,
    cells: xr.Dataset,
    paper: str | Path,
    *,
    ledger: Ledger | None = None,
    report: Report = print,
) -> None:
    """Tables, numbers, figures and manifest of one study to `paper`/<study>/."""
    report("  tables")
    tables = conclude(cells, ledger.claims if ledger else ())
    report("  figures")
    figures = draw(cells, tables)
    inputs = {f"{study}.cells.nc (content)": digest(cells)}
    folder = Path(paper) / study
    folder.mkdir(parents=True, exist_ok=True)
    write_study(
        folder,
        tables,
        figures,
        inputs=inputs | ({ledger.name: ledger.sha256} if ledger else {}),
        settings={name: cells.attrs[name] for name in ("seed", "n_resamples", "confidence_level")},
    )
    report(f"  wrote {folder}")
    if "claims" in tables:
        counts = tables["claims"]["verdict"].value_counts()
        report("  claims: " + "; ".join(f"{verdict!r} {n}" for verdict, n in counts.items()))
