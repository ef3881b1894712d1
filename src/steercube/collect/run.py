"""A whole collection: model and concepts in; shards, cube, vectors and manifest out."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from steercube import netcdf
from steercube.collect.answers import Answers
from steercube.collect.consolidate import (
    complete_units,
    consolidate,
    identities,
    identity,
    why_apart,
)
from steercube.collect.decoder import Decoder, evaluating
from steercube.collect.directions import read_directions
from steercube.collect.generate import require_own_keys
from steercube.collect.logits import Controls, Logits
from steercube.collect.memory import MOST_ROWS
from steercube.collect.next_token import collected
from steercube.collect.outcomes import Outcome, chunks, pending, save_chunk
from steercube.collect.plan import Plan
from steercube.collect.prompt_checks import check_prompts
from steercube.collect.rank import PATIENCE, Rank
from steercube.collect.readout import readout_of
from steercube.collect.shards import held
from steercube.collect.unit import Unit
from steercube.concepts import Concept
from steercube.cube import open_cube, save_cube
from steercube.progress import Report, Stage, stage
from steercube.replacing import (
    earlier_file,
    extents_of,
    lost_cells,
    lost_names,
    names_in,
    names_of_the_contract,
    replacing,
    require_no_loss,
)
from steercube.schema import raise_if_any

ROWS_AT_ONCE = {
    "samples": {"cpu": 96, "cuda": MOST_ROWS},
    "controls": {"cpu": 96, "cuda": MOST_ROWS},
    "generations": {"cpu": 256, "cuda": MOST_ROWS},
}
"""Default limit on the rows in a pass, by kind of shard and device: as many as caches (CPU) and
memory hold. Generation reads all weights for every token, so it gains from more rows."""
ROWS_A_PAIR = 12
"""Rows of a sweep that take about as long as one training pair, which is run at full length."""


def collect(
    decoder: Decoder,
    concepts: Mapping[str, Concept],
    plan: Plan,
    out: str | Path,
    *,
    directions: str | Path | None = None,
    resume: bool = False,
    rank: Rank | None = None,
    report: Report = print,
) -> None:
    """Sweep `concepts` on one model and write the cube `out`, its vectors and its manifest.

    `directions` is a file of the user's own directions (`steercube.collect.directions`), which are
    swept like the plan's controls.

    Finished chunks are saved in `<out>.shards/<model>/<concept>/`, and the cube is made from all
    shards there, also of other runs' models and concepts. With `resume`, finished chunks are kept.

    Raises ValueError for shards of other settings or, without `resume`, for any earlier shards of
    these concepts; BlockingIOError where another collector works on the same model and concept.
    """
    shape = (decoder.n_layers, decoder.hidden_size)
    given = read_directions(directions, model=decoder.name, shape=shape) if directions else {}
    if directions and Path(directions).suffix != ".nc":
        raise_if_any(
            [f"direction {name!r} has the name of a concept" for name in given if name in concepts],
            what=f"{directions} (rename them)",
        )
    units = units_of(decoder, concepts.values(), plan, out, given=given)
    collect_units(units, out, resume=resume, rank=rank, report=report)


def collect_units(
    units: Sequence[Unit],
    out: str | Path,
    *,
    resume: bool = False,
    rank: Rank | None = None,
    report: Report = print,
    brief: bool = False,
) -> None:
    """Sweep units of one model and plan, as `collect` does; afterwards the model is as before.

    With `brief` the cube itself is not reported.
    """
    rank = rank or Rank.of_environment(units[0].decoder.rank.size)
    out, decoder, plan = Path(out), units[0].decoder, units[0].plan
    with evaluating(decoder):
        _make_shards(units, out, decoder, plan, resume=resume, rank=rank, report=report)
    if rank.leads:
        write_cube(out, report=report, brief=brief)


def _make_shards(
    units: Sequence[Unit],
    out: Path,
    decoder: Decoder,
    plan: Plan,
    *,
    resume: bool,
    rank: Rank,
    report: Report,
) -> None:
    if "generation" in plan.outcomes:
        require_own_keys(decoder)
    n_new_tokens = plan.max_new_tokens if "generation" in plan.outcomes else 0
    cut = [unit.concept for unit in units]
    for line in check_prompts(decoder, units[0].readout, cut, n_new_tokens=n_new_tokens):
        if rank.leads:
            report(line)
    if rank.leads:
        for line in _not_compared(units[0]):
            report(line)
        _require_nothing_lost(out, units)
        _require_one_cube(shards_of(out), units)
    if rank.leads and not resume:
        _require_new(units)
    start = time.monotonic()
    total = sum(o.n_rows * len(o.items) for unit in units for o in outcomes_of(unit))
    if rank.leads:
        report(f"{decoder.name}: {total} rows of {', '.join(unit.concept.name for unit in units)}")
        for line in _costs(units):
            report(line)
    with stage(
        decoder.name, total=total // rank.n_groups, unit="row", shown=rank.leads
    ) as under_way:
        say = under_way.write if report is print else report
        progress = Progress(
            under_way, say, {name: rows_at_once(decoder, plan, name) for name in ROWS_AT_ONCE}
        )
        for unit in units:
            with held(unit.folder) if rank.leads else nullcontext():
                _collect_unit(unit, rank, progress)
    if rank.leads:
        report(f"{decoder.name}: {total} rows in {time.monotonic() - start:.0f} s")


def _not_compared(unit: Unit) -> Iterator[str]:
    """A warning if directions are swept at layers where the concept's vector is not."""
    layers = Logits(unit).layers
    if unit.directions and (alone := sorted(set(Controls(unit).layers) - set(layers))):
        yield (
            f"warning: other directions are swept at the layers {', '.join(map(str, alone))}, and "
            "the concept's vector is not: it cannot be ranked among them there. Choose control "
            f"layers among {', '.join(map(str, layers))}"
        )


def _costs(units: Sequence[Unit]) -> Iterator[str]:
    """A line on the number and share of rows of each kind of outcome, if there are several."""
    rows: dict[str, int] = {}
    for outcome in (one for unit in units for one in outcomes_of(unit)):
        rows[outcome.kind] = rows.get(outcome.kind, 0) + outcome.n_rows * len(outcome.items)
    for kind, n in rows.items() if len(rows) > 1 else ():
        yield f"  {kind}: {n} rows ({n / sum(rows.values()):.0%})"


def rows_at_once(decoder: Decoder, plan: Plan, outcome: str) -> int:
    """The limit on the rows in a pass of a kind of shard: the plan's, else by device."""
    by_device = ROWS_AT_ONCE[outcome]
    return plan.max_rows or by_device.get(decoder.device.type, by_device["cpu"])


@dataclass
class Progress:
    """The state of a run across units: how far it is, the rows that fit, the outcomes checked."""

    stage: Stage
    report: Report
    """For lines that stand above the stage's bar."""
    max_rows: dict[str, int]
    checked: set[str] = field(default_factory=set)


def shards_of(out: Path) -> Path:
    """The folder of the shards that the cube `out` is made from.

    Raises ValueError for a name that does not end in .nc: it would share shards and manifest with
    the name that does.
    """
    if not out.name.endswith(".nc"):
        raise ValueError(f"{out}: the name of a cube must end in .nc; call it {out.name}.nc")
    return out.with_name(f"{out.name.removesuffix('.nc')}.shards")


def write_cube(out: Path, *, report: Report = print, brief: bool = False) -> None:
    """The cube `out`, `<out>.vectors.nc` and `<out>.manifest.json` from the shards beside it."""
    folder, stem = shards_of(out), out.name.removesuffix(".nc")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; nothing was collected for {out}")
    with held(folder, patience=PATIENCE):
        cube, vectors, keys = consolidate(folder, report=report)
        beside = out.with_name(f"{stem}.vectors.nc")
        require_no_loss(out, cube, report=report)
        _require_own_vectors(beside, vectors, report=report)
        manifest = {
            "content_sha256": {
                out.name: save_cube(cube, out),
                beside.name: netcdf.save(vectors, beside),
            },
            "attributes": {k: v for k, v in cube.attrs.items() if k != netcdf.DIGEST},
            "shards": keys,
        }
        with netcdf.aside(out.with_name(f"{stem}.manifest.json")) as part:
            part.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    if not brief:
        report(f"wrote {out}\n\n{cube}")


def units_of(
    decoder: Decoder,
    concepts: Iterable[Concept],
    plan: Plan,
    out: str | Path,
    **given: Any,
) -> list[Unit]:
    """A unit for each concept, cut to the plan's pairs and items, with its folder beside `out`.

    `given` are further fields of `Unit`: directions, or vectors.
    """
    readout, folder = readout_of(decoder.tokenizer), shards_of(Path(out)) / decoder.name
    cut = [concept.cut_to(n_pairs=plan.n_pairs, n_items=plan.n_items) for concept in concepts]
    return [Unit(decoder, readout, one, plan, folder / one.name, **given) for one in cut]


def _require_one_cube(folder: Path, units: Sequence[Unit]) -> None:
    """Raise ValueError where these units and other shards in `folder` could not share a cube."""
    attrs = {
        unit.folder: {name: json.dumps(value) for name, value in unit.described.items()}
        for unit in units
    }
    planned = [identity(attrs[unit.folder], _grids(unit)) for unit in units]
    problems = why_apart([*identities(folder, attrs), *planned])
    raise_if_any(problems, what=f"one cube with the shards in {folder} (or choose another out)")


def _grids(unit: Unit) -> dict[str, dict[str, Any]]:
    return {path: shared for one in outcomes_of(unit) for path, shared in one.grids.items()}


def _require_nothing_lost(out: Path, units: Iterable[Unit]) -> None:
    """Raise ValueError where the cube holds what neither the shards nor this run can reproduce."""
    earlier = earlier_file(out, open_cube, report=lambda line: None)
    if earlier is None:
        return
    existing = extents_of(earlier)
    complete = complete_units(shards_of(out))
    kept = {
        (model, concept, path): existing[model, concept, path]
        for (model, concept), paths in complete.items()
        for path in paths
        if (model, concept, path) in existing
    }
    attributes: set[str] = set()
    for unit in units:
        attributes |= set(unit.described["of_cube"])
        for outcome in outcomes_of(unit):
            # Shards of another extent are refused later, with a message about their settings.
            has_shards = any(unit.folder.glob(f"{outcome.kind}-*.nc"))
            for path, extent in outcome.extents.items():
                label = (unit.decoder.name, unit.concept.name, path)
                kept[label] = existing.get(label, extent) if has_shards else extent
    names = lost_names(earlier, names_of_the_contract(collected().values(), attributes))
    raise_if_any([*names, *lost_cells(existing, kept)], what=replacing(out))


def outcomes_of(unit: Unit) -> list[Outcome]:
    """The outcomes that the unit's plan asks for."""
    of_logits: list[Outcome] = [Logits(unit), *([Controls(unit)] if unit.directions else [])]
    by_name: dict[str, list[Outcome]] = {"logit": of_logits, "generation": [Answers(unit)]}
    return [outcome for name in unit.plan.outcomes for outcome in by_name[name]]


def _require_own_vectors(path: Path, vectors: xr.Dataset, *, report: Report) -> None:
    """Raise ValueError where the vectors at `path` hold a user's note, or were altered."""
    earlier = earlier_file(path, netcdf.load, report=report)
    if earlier is not None:
        raise_if_any(lost_names(earlier, names_in(vectors)), what=replacing(path))


def _require_new(units: Iterable[Unit]) -> None:
    folders = [unit.folder for unit in units if any(unit.folder.glob("*.nc"))]
    raise_if_any(
        [f"{folder} holds shards of an earlier run" for folder in folders],
        what="starting a new run (go on with --resume, in Python resume=True; delete them; or "
        "choose another out)",
    )


def _collect_unit(unit: Unit, rank: Rank, progress: Progress) -> None:
    """Make the missing ones among the shards of a unit that are this process's task."""
    stage = progress.stage
    if rank.leads and rank.n_groups == 1:
        _clear(unit.folder)
    stage.at(f"{unit.concept.name}, vectors")
    if rank.group > 0:
        _wait_until(lambda: unit.found_vectors() is not None, rank, what=str(unit.vectors_path))
    if rank.leads and unit.vectors_path.exists() and unit.found_vectors() is None:
        progress.report(f"{unit.vectors_path} is damaged, and is made again")
    vectors = unit.vectors(
        batch_size=max(1, progress.max_rows["samples"] // ROWS_A_PAIR),
        progress=_pairs_shown(unit, stage),
    )
    for outcome in outcomes_of(unit):
        _collect_outcome(outcome, vectors, rank, progress)
    if rank.leads:
        _clear(unit.folder)


def _pairs_shown(unit: Unit, stage: Stage) -> Callable[[int], None]:
    """A callback, for each batch of training pairs, that shows how many are done."""
    done, total = 0, len(unit.concept.train)

    def more(n: int) -> None:
        nonlocal done
        done += n
        stage.at(f"{unit.concept.name}, vectors: {done} of {total} pairs")

    return more


def _clear(folder: Path) -> None:
    """Remove files that a killed run left half written; no other process may be writing there."""
    for leftover in folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)


def _collect_outcome(outcome: Outcome, vectors: xr.Dataset, rank: Rank, progress: Progress) -> None:
    """Make the missing ones among the chunks of an outcome that are this process's task."""
    every, stage = chunks(outcome), progress.stage
    concept = outcome.unit.concept.name
    own = list(every)[rank.group :: rank.n_groups]
    wanted = rank.agreed(lambda: pending(outcome, own, vectors))
    check = outcome.check.__qualname__
    if wanted and check not in progress.checked:
        stage.at(f"{concept}, checking {outcome.kind} against the plain loop")
        result = outcome.check(vectors)
        progress.checked.add(check)
        if rank.leads:
            progress.report(result)
    stage.at(f"{concept}, {outcome.kind}")
    stage.skip(outcome.n_rows * sum(len(chunk) for chunk in own if chunk not in wanted))
    for chunk in wanted:
        if rank.speaks and every[chunk].exists():
            progress.report(f"{every[chunk]} is damaged, and is made again")
        progress.max_rows[outcome.kind] = save_chunk(
            outcome,
            chunk,
            vectors,
            max_rows=progress.max_rows[outcome.kind],
            progress=stage.advance,
        )
    if rank.leads:
        _wait_until(
            lambda: not pending(outcome, list(every), vectors),
            rank,
            what=f"{outcome.kind} in {outcome.unit.folder}",
        )


def _wait_until(is_made: Callable[[], bool], rank: Rank, *, what: str) -> None:
    """Wait for another process to make `what`; ConnectionError if one of the launch has failed."""
    until = time.monotonic() + PATIENCE
    while not is_made():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not made by another process within {PATIENCE:.0f} s")
        rank.require_no_failure()
        time.sleep(0.5)
