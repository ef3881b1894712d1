"""Analyze a study from end to end: from its cube or cells to its folder of conclusions."""

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from steercube import analysis
from steercube.analysis.conclusions.claims import Ledger, read_ledger
from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.over_models.cell_effects import (
    TERMS,
    cell_effects,
    primary_terms,
    why_not,
)
from steercube.analysis.over_models.item_fits import item_fits, keep_slow_fits
from steercube.analysis.over_models.nuts import (
    CELL_DRAWS,
    HOW_TO_INSTALL,
    ITEM_DRAWS,
    Sampled,
    draws_to_make,
    is_installed,
    sample_cells,
    save_posterior,
)
from steercube.analysis.per_cell.reduce import cells as reduce_to_cells
from steercube.analysis.per_cell.reduce import is_reducible, lacking
from steercube.analysis.simulated.calibration import PARTS
from steercube.analysis.simulated.calibration import calibrate as simulate_and_fit
from steercube.analysis.simulated.keeping import KeptIn
from steercube.analysis.view import Study
from steercube.cells import (
    ITEM_FITTED,
    PROVENANCE,
    Cells,
    compare_cells,
    open_cells,
    save_cells,
    unrecorded_estimands,
    with_every_estimand,
)
from steercube.contract import measure_name
from steercube.contrast import Contrast
from steercube.cube import Cube, open_cube
from steercube.measures import LOGIT_DIFF, measure_of, record_violations
from steercube.progress import Report, stage, timed
from steercube.report.figures import draw
from steercube.report.model_figures import draw_calibrations
from steercube.report.write import (
    OF_A_CALIBRATION,
    is_calibration_of,
    remove_calibration,
    write_calibration,
    write_study,
)
from steercube.schema import raise_if_any
from steercube.words import did_you_mean

NOTHING_TO_DO = (
    "{folder} holds no study: neither <study>.nc (a cube) nor <study>.cells.nc (its cells) is in "
    "{absolute}. Name another folder with --data, put a cube of your own there, or fetch the "
    "published study with `steercube import-study`."
)

SETTINGS = ("title", "source", "cube_sha256", *OF_A_CALIBRATION, "n_resamples", *PROVENANCE)
"""Attributes of the cells that are copied to a manifest."""


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
    contrast: Contrast | None = None,
    measure: str | None = None,
    compare: tuple[float, float] | str | None = None,
    full: bool = False,
    nuts: bool = True,
    report: Report = print,
) -> None:
    """Analyze `study`, or every study in `data`, and write the results to `paper`/<study>/.

    `contrast` selects the models to compare, instead of the contrast in a study's ledger; without
    either, models are not compared. `measure` is the one that conclusions are about (default: the
    logit difference), `compare` two strengths, low and high, or "slope", in place of those that its
    record compares. `full` adds the slow fits of single items, which need the cube; without `nuts`
    the exact posterior is not checked by sampling.

    Raises FileNotFoundError with what to do if `data` holds no study, ValueError for a file that
    breaks its contract; earlier results of that study are then left unchanged.
    """
    names = studies(data)
    if Path(data).is_file():
        raise NotADirectoryError(f"{data} is a file; --data names the folder of cubes and cells")
    if study is not None:
        if study not in names:
            raise FileNotFoundError(_no_study(study, names, data))
        names = [study]
    if not names:
        raise FileNotFoundError(NOTHING_TO_DO.format(folder=data, absolute=Path(data).absolute()))
    if Path(paper).exists() and not Path(paper).is_dir():
        raise NotADirectoryError(f"{paper} is a file; --paper must name a folder for the results")
    for name in names:
        _require_writable(Path(paper) / name)
    ledgers = read_ledgers(paper)
    for about in sorted(ledgers.keys() - set(studies(data))):
        report(f"{ledgers[about].name} is about {about!r}, which is not a study in {data}")
    if full and not is_installed():
        raise ValueError(f"--full needs pymc: {HOW_TO_INSTALL}")
    start = report
    report = timed(start)
    for name in names:
        start(f"{name}:")
        if full and not (Path(data) / f"{name}.nc").exists():
            report("  --full has no effect: fits of single items need the cube, which is not there")
        posteriors = Path(paper) / name / "posteriors"
        ledger = ledgers.get(name, Ledger(name, []))
        asked = asked_contrast(contrast, ledger)
        cells, changed = cells_of(
            name,
            data,
            contrast=asked,
            measure=measure,
            compare=compare,
            posteriors=posteriors if full else None,
            report=report,
        )
        if changed:
            save_cells(cells, Path(data) / f"{name}.cells.nc")
        if len(names) > 1 and not cells.measures:
            report(f"  {WITHOUT_OWN.format(names=', '.join(cells))}")
            continue
        of_cells = Study.of(cells, asked, measure=primary(cells, measure))
        require_labels(of_cells, what=name)
        sampled = sample(of_cells, posteriors, report=report) if nuts else {}
        write_conclusions(name, of_cells, paper, ledger=ledger, sampled=sampled, report=report)


def asked_contrast(given: Contrast | None, ledger: Ledger) -> Contrast | None:
    """The contrast `given`, in the ledger's words if it is the same; default: the ledger's."""
    own = ledger.contrast
    if given is None or own is None:
        return given or own
    same = (given.by, given.low, given.high) == (own.by, own.low, own.high)
    return replace(given, words=own.words) if same else given


def require_labels(study: Study, *, what: str) -> None:
    """Raise ValueError if the cells lack the variable or the labels of the contrast."""
    contrast = study.contrast
    if contrast is None or not study.models:
        return
    labels = [
        str(name)
        for name, c in study.cells.coords.items()
        if c.dims == ("model",) and c.dtype.kind in "UOT" and name not in ("model", "model_other")
    ]
    numbers = [
        str(name)
        for name, c in study.cells.coords.items()
        if c.dims == ("model",) and c.dtype.kind in "iuf"
    ]
    if contrast.by not in labels:
        raise ValueError(
            f"{what}: models have no labels {contrast.by!r}; they have {', '.join(labels)}"
            f"{did_you_mean(contrast.by, labels)}"
        )
    if contrast.holding not in numbers:
        raise ValueError(
            f"{what}: models have no numeric label {contrast.holding!r} to hold fixed; they have "
            f"{', '.join(numbers)}{did_you_mean(contrast.holding, numbers)}"
        )
    there = sorted(set(map(str, study.facts(contrast.by))))
    absent = [label for label in (contrast.low, contrast.high) if label not in there]
    if absent:
        raise ValueError(
            f"{what}: no swept model has the {contrast.by} {' or '.join(map(repr, absent))}; they "
            f"have {', '.join(map(repr, there))}{did_you_mean(absent[0], there)}"
        )


def _no_study(study: str, there: Sequence[str], data: str | Path) -> str:
    return (
        f"{data} holds no study {study!r}; it holds {list(there)} (in "
        f"{Path(data).absolute()}; --data names another folder){did_you_mean(study, there)}"
    )


def _require_writable(folder: Path) -> None:
    """Raise PermissionError for a folder that is not writable, before minutes of computing."""
    for path in (folder, folder.parent):
        nearest = next(p for p in (path, *path.parents) if p.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(f"{nearest}: is not writable, but results go to {folder}")


WITHOUT_OWN = (
    "the cells hold no effect of the concepts' own vectors on single items, only {names}: there is "
    "no layer to select and no model to compare. Put them beside a sweep of the same models: "
    "`steercube merge`, or `steercube add-measure --to`"
)
CUBE_ATTRIBUTES = ("title", "source", "cube_sha256")
"""Attributes of cells that identify their cube."""


def cells_of(
    study: str,
    data: str | Path,
    *,
    contrast: Contrast | None = None,
    measure: str | None = None,
    compare: tuple[float, float] | str | None = None,
    posteriors: Path | None = None,
    report: Report = print,
) -> tuple[Cells, bool]:
    """The cells of a study, and whether their file has to be written.

    Cells are rebuilt from the cube, if there is one, and compared with the file; else read from it.
    With a folder `posteriors`, single items are also fitted, and NUTS's draws saved there.
    """
    cube_path, cells_path = Path(data) / f"{study}.nc", Path(data) / f"{study}.cells.nc"
    if not (cube_path.exists() or cube_path.is_symlink()):
        report(f"  from {cells_path}; there is no cube, so the samples are not reduced again")
        cells = open_cells(cells_path)
        _require_compared(cells, measure, compare, what=str(cells_path))
        return cells, False
    report(f"  from {cube_path}")
    cube = open_cube(cube_path)
    if compare is not None:
        cube = comparing(cube, primary(cube, measure), compare)
    rebuilt = cells_from_cube(cube, contrast, posteriors, report, measure=measure)
    if not cells_path.exists():
        report(f"  {cells_path} is new")
        return rebuilt, True
    try:
        committed = open_cells(cells_path)
    except ValueError as error:
        report(f"  {cells_path} cannot be used and is replaced: {error}")
        return rebuilt, True
    rebuilt = keep_slow_fits(rebuilt, committed)
    differences = [
        *(
            f"{name} was {committed.attrs.get(name)!r} and is {rebuilt.attrs.get(name)!r}"
            for name in CUBE_ATTRIBUTES
            if committed.attrs.get(name) != rebuilt.attrs.get(name)
        ),
        *compare_cells(rebuilt, committed),
    ]
    if not differences:
        report(f"  the cells agree with {cells_path}")
        return committed, False
    report(f"  the cells DIFFER from {cells_path}, which is replaced:")
    for difference in differences:
        report(f"    {difference}")
    return rebuilt, True


def primary(of: Cells | Cube, asked: str | None = None) -> str:
    """The measure that the conclusions are about: `asked`, else `logit_diff`, else the first.

    Raises ValueError if the measure that is asked for is not there.
    """
    names = [name for name in of.measures if name in of]
    if not names:
        raise ValueError(WITHOUT_OWN.format(names=", ".join(of)))
    if asked is not None and asked not in names:
        raise ValueError(
            f"measure {asked!r} is none of {', '.join(names)}{did_you_mean(asked, names)}"
        )
    return asked or (LOGIT_DIFF.name if LOGIT_DIFF.name in names else names[0])


def comparing(cube: Cube, name: str, compare: tuple[float, float] | str) -> Cube:
    """The cube with `compare` in the record of the measure `name`.

    Raises ValueError for two equal strengths.
    """
    measure = replace(cube.measures[name], compare=compare)
    raise_if_any(record_violations(measure), what="compare")
    grids = {path: grid.copy() for path, grid in cube.grids.items() if measure_name(path) == name}
    for grid in grids.values():
        grid[name].attrs = grid[name].attrs | {"compare": measure.attrs["compare"]}
    return cube.with_tables(grids)


def _require_compared(
    cells: Cells, asked: str | None, compare: tuple[float, float] | str | None, *, what: str
) -> None:
    """Raise ValueError where cells without a cube compare other strengths than asked for."""
    name = primary(cells, asked)
    measure = measure_of(name, cells[name]["estimate"].attrs)
    if compare not in (None, measure.compare):
        raise ValueError(
            f"{what} compares {measure.compared} in {name}; other strengths need the cube itself, "
            "which is not beside it"
        )


def cells_from_cube(
    cube: Cube,
    contrast: Contrast | None,
    posteriors: Path | None,
    report: Report,
    *,
    measure: str | None = None,
) -> Cells:
    """The cells of a cube, with the fits of single items; the slow ones with `posteriors`."""
    with stage("  reducing the cube") as under_way:
        asked = measure or LOGIT_DIFF.name
        cells = reduce_to_cells(cube, measure=asked, report=under_way.at)
    for name, record in cube.measures.items():
        if is_reducible(cube, name) and name not in cells:
            absent = lacking(cube[name], record)
            report(f"  {name} is left out: it compares {record.compared} and lacks {absent}")
    if not cells.measures:
        return cells
    name = primary(cells, measure)
    study = Study.of(cells, contrast, measure=name)
    if not study.models:
        return cells
    full = posteriors is not None
    what = "  fitting single items" + (", in full (about 15 minutes)" if full else "")
    report(what)
    draws = draws_to_make(ITEM_DRAWS) if full else None
    with stage(what, total=draws, unit="draw") as under_way:
        fits, sampled = item_fits(cube[name], study, full=full, progress=under_way.advance)
    if sampled is not None and posteriors is not None:
        save_posterior(sampled, posteriors / "items.nc")
    return cells.with_tables({ITEM_FITTED: fits} if fits.data_vars else {})


def sample(study: Study, posteriors: Path, *, report: Report = print) -> dict[str, Sampled]:
    """NUTS fits of the hierarchical model of Cohen's d, if the contrast can be estimated.

    Draws are saved in `posteriors`. If pymc is not installed, `report` gets a line about it and
    the result is empty.
    """
    effects = cell_effects(study)
    terms = primary_terms(effects)
    if "contrast" not in terms or effects.n_concepts < 2:
        return {}
    if not is_installed():
        report(f"  NUTS is left out: it needs pymc ({HOW_TO_INSTALL})")
        return {}
    what = "  sampling the hierarchical model"
    report(f"{what} (a minute, or several where it has to be compiled first)")
    with stage(what, total=draws_to_make(CELL_DRAWS), unit="draw") as under_way:
        sampled = sample_cells(
            effects,
            terms=terms,
            level=study.level,
            seed=study.seed,
            progress=under_way.advance,
        )
    save_posterior(sampled, posteriors / "cells.nc")
    return {effects.outcome: sampled}


def read_ledgers(paper: str | Path) -> dict[str, Ledger]:
    """Ledgers by study name, from `claims.toml` and any other `*claims.toml` in `paper`."""
    ledgers: dict[str, Ledger] = {}
    for path in sorted(Path(paper).glob("*claims.toml")):
        ledger = read_ledger(path)
        if ledger.study in ledgers:
            other = path.with_name(ledgers[ledger.study].name)
            raise ValueError(
                f"{path} and {other} are both about the study {ledger.study!r}; keep one"
            )
        ledgers[ledger.study] = ledger
    return ledgers


def write_conclusions(
    name: str,
    study: Study,
    paper: str | Path,
    *,
    ledger: Ledger | None = None,
    sampled: Mapping[str, Sampled] | None = None,
    report: Report = print,
) -> None:
    """Write tables, numbers, figures and manifest of one study to `paper`/<name>/."""
    study = replace(study, cells=with_every_estimand(study.cells))
    if lacking := unrecorded_estimands(study.cells):
        report(
            f"  these cells lack {', '.join(lacking)}: results that need them are missing, "
            "with the reason not_recorded; to add them, make the cells again from their cube"
        )
    report("  tables")
    with stage("  tables") as under_way:
        claims = ledger.claims if ledger else ()
        tables = conclude(study, claims, sampled=sampled, report=under_way.at)
    report("  figures")
    with stage("  figures"):
        figures = draw(study, tables)
    inputs = {f"{name}.cells.nc (content)": study.sha256}
    if ledger and ledger.name:
        inputs[ledger.name] = ledger.sha256
    folder = Path(paper) / name
    folder.mkdir(parents=True, exist_ok=True)
    attrs, contrast = study.cells.attrs, study.contrast
    write_study(
        folder,
        tables,
        figures,
        inputs=inputs,
        contrast=contrast,
        settings={key: attrs[key] for key in SETTINGS if key in attrs}
        | {"measure": study.measure.name, "compared": study.measure.compared}
        | {"measured": study.measure.words, "units": study.measure.units}
        | {"sampled by NUTS": ", ".join(sampled or {}) or "nothing"}
        | (contrast.attributes if contrast else {})
        | {"contrast_of_ledger": bool(ledger and ledger.contrast in (None, contrast))},
    )
    report(f"  wrote {folder}")
    for what in ("claims", "conclusions"):
        if what in tables:
            verdicts = tables[what]["verdict" if what == "claims" else "grade"].value_counts()
            report(f"  {what}: " + "; ".join(f"{verdict!r} {n}" for verdict, n in verdicts.items()))


def _code() -> str:
    """SHA-256 of the code that simulations run."""
    sources = sorted(Path(analysis.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def calibrate(
    study: str,
    data: str | Path,
    paper: str | Path,
    *,
    contrast: Contrast | None = None,
    n_simulations: int,
    n_workers: int,
    only: Collection[str] = PARTS,
    report: Report = print,
) -> None:
    """Simulate sweeps of a study's shape; write coverage to `paper`/<study>/calibration/.

    `only` selects PARTS to run; the tables of the other parts are left unchanged. What each
    scenario gave is saved in calibration.unfinished/ until all are done, so the same command goes
    on where one that was cut off ended.

    Raises FileNotFoundError if there are no cells, ValueError if they do not allow the contrast or
    if no simulation is requested.
    """
    path = Path(data) / f"{study}.cells.nc"
    if not path.exists():
        there = [name for name in studies(data) if (Path(data) / f"{name}.cells.nc").exists()]
        raise FileNotFoundError(
            f"{path}: no such file; {Path(data).absolute()} has the cells of {there}. `steercube "
            "analyze` makes them from a cube, and --data names another folder"
            f"{did_you_mean(study, there)}"
        )
    cells = open_cells(path)
    ledger = read_ledgers(paper).get(study, Ledger(study, []))
    asked = asked_contrast(contrast, ledger)
    if asked is None:
        raise ValueError(f"{study} has no contrast to calibrate: name one with --contrast")
    of_cells = Study.of(cells, asked, measure=primary(cells))
    require_labels(of_cells, what=study)
    if reason := why_not(cell_effects(of_cells), TERMS):
        raise ValueError(f"{study} cannot be calibrated: {reason}")
    if n_simulations < 1 or n_workers < 1:
        raise ValueError("calibration needs at least one simulation and one worker")
    folder = Path(paper) / study / "calibration"
    folder.parent.mkdir(parents=True, exist_ok=True)
    attributes = of_cells.cells.attrs | asked.attributes
    attributes = {name: attributes[name] for name in OF_A_CALIBRATION}
    unfinished = folder.with_name("calibration.unfinished")
    tables = simulate_and_fit(
        of_cells,
        n_simulations=n_simulations,
        n_workers=n_workers,
        only=only,
        keep=KeptIn(unfinished, f"{_code()} {attributes}"),
        report=timed(report),
    )
    is_current = is_calibration_of(folder, attributes)
    kept = {p.stem: pd.read_csv(p) for p in sorted(folder.glob("*.csv")) if is_current}
    if not is_current:
        remove_calibration(folder)
    write_calibration(folder, tables, draw_calibrations(kept | tables, asked), made_from=attributes)
    shutil.rmtree(unfinished, ignore_errors=True)
    report(f"wrote {folder}")
