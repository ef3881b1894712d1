"""The outcome `logit`: log-probabilities of both answers at every layer and strength.

`Logits` sweeps the concept's own vector, `Controls` the other directions of the plan, perhaps at
fewer layers and items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.collect.next_token import NEXT_TOKEN, NextToken
from steercube.collect.outcomes import (
    extent,
    first_items,
    outermost,
    prompts_of,
    questions_of,
    receipts,
    shortest_and_longest,
    with_unsteered,
)
from steercube.collect.plan import layers_of
from steercube.collect.sweep import Progress, Swept, check_against_plain_loop, sweep
from steercube.collect.unit import Unit, sha256_of
from steercube.collect.vectors import OWN
from steercube.contract import DIMS, STATUS, family_of
from steercube.labels import with_facts
from steercube.measures import LOGIT_DIFF, RECEIPTS, Measure
from steercube.replacing import Extent


@dataclass(frozen=True)
class Logits:
    """The concept's own vector on all of its evaluation items."""

    unit: Unit
    kind = "samples"

    @property
    def items(self) -> list[int]:
        """All evaluation items."""
        return list(range(len(self.unit.concept.evaluation)))

    @property
    def layers(self) -> list[int]:
        """The layers swept."""
        return layers_of(self.unit.plan.layers, self.unit.decoder.n_layers)

    @property
    def directions(self) -> list[str]:
        """The directions swept."""
        return [OWN]

    @property
    def measured(self) -> Sequence[NextToken]:
        """The measures that are read from the same passes as the log-probabilities."""
        return NEXT_TOKEN

    @property
    def n_rows(self) -> int:
        """Rows per item, the unsteered one included."""
        return 1 + len(self.directions) * len(self.layers) * len(self.unit.plan.steered)

    @property
    def extents(self) -> dict[str, Extent]:
        """By path of a grid, the labels at which the cube will hold values of this unit."""
        steered = self.unit.plan.steered
        return {
            path: extent(
                self.unit,
                self.items,
                self.layers,
                steered,
                [d for d in self.directions if d != OWN and _path(d) == path],
            )
            for path in self._paths
        }

    @property
    def grids(self) -> dict[str, dict[str, Any]]:
        """By path of a grid, the strengths, which must be equal in all units."""
        return {path: {"strengths": list(self.unit.plan.strengths)} for path in self._paths}

    @property
    def _paths(self) -> list[str]:
        of_logits = dict.fromkeys(map(_path, self.directions))
        return [*of_logits, *(one.measure.name for one in self.measured)]

    def settings(self, items: Sequence[int], vectors: xr.Dataset) -> dict[str, Any]:
        """The settings that the values of a shard depend on."""
        questions = questions_of(self.unit, items)
        inputs = (questions, prompts_of(self.unit, questions), self.unit.answers(questions))
        return self.unit.settings | {
            "strengths": list(self.unit.plan.strengths),
            "items_sha256": sha256_of(inputs),
            "vectors_sha256": vectors.attrs[netcdf.DIGEST],
            "layers": self.layers,
            "directions": self.directions,
            "measures": [one.measure.name for one in self.measured],
            "n_items": len(self.items),
            "chunk": self.unit.plan.chunk,
        }

    def length(self, item: int) -> int:
        """Tokens of the item's prompt."""
        return len(prompts_of(self.unit, questions_of(self.unit, [item]))[0].ids)

    def make(
        self, items: Sequence[int], vectors: xr.Dataset, *, max_rows: int, progress: Progress
    ) -> tuple[xr.Dataset, int]:
        """The shard (direction, layer, strength, sample), and how many rows fitted in a pass.

        Raises ValueError where steering moved no logit.
        """
        questions = questions_of(self.unit, items)
        swept = sweep(
            self.unit.decoder,
            prompts_of(self.unit, questions),
            self.unit.answers(questions),
            self.unit.cells(
                vectors, self.layers, self.unit.plan.steered, directions=self.directions
            ),
            positions=self.unit.plan.positions,
            max_rows=max_rows,
            measured=self.measured,
            progress=progress,
        )
        shard = self._labelled(swept, items)
        self._require_movement(shard)
        return shard, swept.max_rows

    def check(self, vectors: xr.Dataset) -> str:
        """Compare two prompts at two layers with the plain loop; returns a line on the difference.

        Raises ValueError where it is more than rounding.
        """
        questions = shortest_and_longest(self.unit, self.items)
        difference = check_against_plain_loop(
            self.unit.decoder,
            prompts_of(self.unit, questions),
            self.unit.answers(questions),
            outermost(self.unit, vectors, self.layers, self.unit.plan.largest),
            positions=self.unit.plan.positions,
        )
        return f"one pass for all vectors is within {difference:.1g} nat of the plain loop"

    def _labelled(self, swept: Swept, items: Sequence[int]) -> xr.Dataset:
        """The sweep with its labels; strength 0 is repeated at every layer."""
        grid: dict[str, list[Any]] = {
            "direction": self.directions,
            "layer": self.layers,
            "strength": list(self.unit.plan.steered),
            "sample": list(items),
        }
        names = [one.measure.name for one in self.measured]
        logprob = with_unsteered(swept.logprobs, grid | {"answer": ["matching", "other"]})
        values = with_unsteered(swept.values, grid | {"measure": names})
        return xr.Dataset(
            {
                "logprob_matching": logprob.sel(answer="matching", drop=True),
                "logprob_other": logprob.sel(answer="other", drop=True),
                **{name: values.sel(measure=name, drop=True) for name in names},
                **receipts(swept.touched, self.layers),
            }
        )

    def _require_movement(self, shard: xr.Dataset) -> None:
        """Raise ValueError where the largest strength moved no logit: the hooks did nothing."""
        largest = self.unit.plan.largest
        diff = shard["logprob_matching"] - shard["logprob_other"]
        moved = abs(diff.sel(strength=largest) - diff.sel(strength=0.0))
        if (moved != 0).any():
            return
        raise ValueError(
            f"{self.unit.decoder.name} x {self.unit.concept.name}: no logit moved at strength "
            f"{largest:+g} in any layer. |added| / |residual| was "
            f"{float(shard['added_over_residual'].max()):.3g} and "
            f"{int(shard['rows_touched'].sum())} rows changed: the vectors are zero, too small "
            "for the dtype, or the hooks do not reach this model. No shard was saved."
        )


@dataclass(frozen=True)
class Controls(Logits):
    """Other directions, at the layers and on the items that the plan has for them."""

    kind = "controls"

    @property
    def items(self) -> list[int]:
        """The first items, as many as the plan says, balanced by matching letter."""
        return first_items(self.unit, self.unit.plan.control_items)

    @property
    def layers(self) -> list[int]:
        """The layers at which other directions are swept."""
        plan = self.unit.plan
        return layers_of(plan.control_layers or plan.layers, self.unit.decoder.n_layers)

    @property
    def directions(self) -> list[str]:
        """The controls of the plan, then a user's own directions."""
        return self.unit.directions

    @property
    def measured(self) -> Sequence[NextToken]:
        """None: only the log-probabilities are read for other directions."""
        return ()


def _path(direction: str) -> str:
    """The path of the grid that holds a direction."""
    own = direction == OWN
    return LOGIT_DIFF.name if own else f"{LOGIT_DIFF.name}/{family_of(direction)}"


def tables(
    shards: Sequence[xr.Dataset], facts: xr.Dataset, held: dict[str, xr.Dataset]
) -> dict[str, xr.Dataset]:
    """The grids of one unit, by path, from all of its shards of this kind.

    `facts` are those of its model and concept. `held`, its grids so far, is not used: every
    function in `consolidate.TABLES_OF` takes it.
    """
    swept = [shard.drop_vars(list(RECEIPTS)) for shard in shards]
    joined = xr.concat(swept, dim="sample", combine_attrs="override").sortby("sample")
    joined["logit_diff"] = joined["logprob_matching"] - joined["logprob_other"]
    found = {}
    for path in dict.fromkeys(map(_path, joined["direction"].values)):
        members = [_path(str(direction)) == path for direction in joined["direction"].values]
        grid = joined.isel(direction=np.flatnonzero(members))
        if path != LOGIT_DIFF.name:
            found[path] = _grid(grid[["logit_diff"]], LOGIT_DIFF, facts)
            continue
        grid = grid.isel(direction=0, drop=True)
        further = [one.measure for one in NEXT_TOKEN if one.measure.name in grid]
        names = [measure.name for measure in further]
        found[path] = _grid(grid.drop_vars(names).assign(_receipts_of(shards)), LOGIT_DIFF, facts)
        found |= {one.name: _grid(grid[[one.name]], one, facts) for one in further}
    return found


def _grid(grid: xr.Dataset, measure: Measure, facts: xr.Dataset) -> xr.Dataset:
    """The grid of a measure with its record; `cell_status` says where all values are finite."""
    finite = (abs(grid[measure.name]) < np.inf).all(("strength", "sample"))
    status = xr.full_like(finite, STATUS["complete"], dtype="int8")
    status = status.where(finite, STATUS["nonfinite"]).astype("int8")
    whole = placed(grid.assign(cell_status=status), facts)
    whole[measure.name].attrs = measure.attrs
    return whole


def placed(grid: xr.Dataset, facts: xr.Dataset) -> xr.Dataset:
    """A table of one unit with the dims model and concept, and the facts of both."""
    labels = {dim: [facts[dim].item()] for dim in ("model", "concept")}
    whole = grid.drop_attrs(deep=False).expand_dims(labels)
    return with_facts(whole.transpose(*DIMS, ..., missing_dims="ignore"), facts)


def _receipts_of(shards: Sequence[xr.Dataset]) -> dict[str, xr.DataArray]:
    """Receipts of all chunks: counts added up, |added| / |residual| averaged over samples."""
    every = xr.concat([shard[list(RECEIPTS)] for shard in shards], dim="chunk", join="exact")
    n_samples = xr.DataArray([shard.sizes["sample"] for shard in shards], dims="chunk")
    totals = every.sum("chunk")
    ratio = every["added_over_residual"].weighted(n_samples).mean("chunk")
    return {str(name): totals[name] for name in totals} | {"added_over_residual": ratio}
