"""`Study`: the cells that the analysis uses, the contrast it compares, and cached results.

Functions of the analysis take a `Study` as first argument. Those decorated with `kept` are computed
once for each set of arguments; so are the parts of a study that leave out a model or a concept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from steercube.cells import DIRECTION_VARIABLES, REASONS, RECORDS, Cells, groups_of, samples_sha256
from steercube.contrast import Contrast
from steercube.estimate import Estimate
from steercube.measures import LOGIT_DIFF, Measure, measure_of
from steercube.netcdf import digest
from steercube.streams import stream

P = ParamSpec("P")
T = TypeVar("T")

LARGE = ("mean", "sd", "correlation", "quantiles", *DIRECTION_VARIABLES)
"""Variables that describe the items of single layers; `Study.among` drops them."""


@dataclass(frozen=True, eq=False)
class Study:
    """A frozen view of cells that meet their contract, and the contrast to analyse, if any."""

    cells: xr.Dataset
    contrast: Contrast | None = None
    others: Mapping[str, xr.Dataset] = field(default_factory=dict, repr=False)
    """The cells of every measure beside the one that is studied, by its name."""
    records: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    """The tables of records of the cells, by their name in `cells.RECORDS`."""
    sha256: str = ""
    """SHA-256 of the content of the file of these cells, where they are all of it."""
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls, cells: Cells, contrast: Contrast | None = None, *, measure: str = LOGIT_DIFF.name
    ) -> "Study":
        """The study of one measure of the cells, with the others beside it."""
        others = {name: cells.view(name) for name in cells.measures if name != measure}
        records = {path: cells[path].to_dataframe() for path in RECORDS if path in cells}
        view = cells.view(measure).assign_attrs(samples_sha256=samples_sha256(cells, measure))
        return cls(view, contrast, others, records, digest(groups_of(cells)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the kept results: another process computes its own."""
        return Study, (self.cells, self.contrast, self.others, self.records, self.sha256)

    @cached_property
    def measure(self) -> Measure:
        """The record of the measure whose cells these are."""
        attrs = dict(self.cells["estimate"].attrs)
        return measure_of(str(attrs.get("measure", LOGIT_DIFF.name)), attrs)

    @cached_property
    def level(self) -> float:
        """The confidence level of every interval."""
        return float(self.cells.attrs["confidence_level"])

    @property
    def seed(self) -> int:
        """The seed of every random stream."""
        return int(self.cells.attrs["seed"])

    def stream(self, name: str) -> np.random.Generator:
        """The random generator of one named analysis."""
        return stream(name, seed=self.seed)

    @cached_property
    def models(self) -> list[str]:
        """Models with a logit sweep, in order of size."""
        layer = self.cells.variables["selected_layer"].transpose("model", "concept").values
        by_size = np.argsort(self.cells.variables["n_params"].values, kind="stable")
        swept = by_size[np.isfinite(layer).any(axis=1)[by_size]]
        return [str(model) for model in self.cells.indexes["model"][swept]]

    @cached_property
    def concepts(self) -> list[str]:
        """Every concept, in the order of the cells."""
        return [str(concept) for concept in self.cells.indexes["concept"]]

    def facts(self, variable: str, models: Sequence[str] | np.ndarray | None = None) -> np.ndarray:
        """A variable of the named models, or of all swept ones, dims (model,)."""
        where = self.cells.indexes["model"].get_indexer(self.models if models is None else models)
        values: np.ndarray = self.cells.variables[variable].values[where]
        return values

    @cached_property
    def compared(self) -> list[str]:
        """The swept models with either label of the contrast; all of them if a label is missing."""
        if self.contrast is None or not self.has_contrast:
            return self.models
        labels = self.facts(self.contrast.by)
        kept = np.isin(labels, (self.contrast.low, self.contrast.high))
        return [model for model, is_kept in zip(self.models, kept, strict=True) if is_kept]

    @cached_property
    def has_contrast(self) -> bool:
        """Whether models of both labels of the contrast were swept."""
        if self.contrast is None or not self.models:
            return False
        return {self.contrast.low, self.contrast.high} <= set(self.facts(self.contrast.by))

    def is_high(self, models: Sequence[str] | None = None) -> np.ndarray:
        """Which of the models have the contrast's `high` label, dims (model,)."""
        assert self.contrast is not None
        return self.facts(self.contrast.by, models) == self.contrast.high

    @property
    def needs_contrast(self) -> str:
        """The reason to give where models of both labels are needed."""
        if self.contrast is None:
            return "needs a contrast of models (--contrast)"
        by, low, high = self.contrast.by, self.contrast.low, self.contrast.high
        return f"needs models of {by} {low!r} and of {by} {high!r}"

    def lacks(self, estimand: str) -> str:
        """The reason to give if these cells lack an estimand altogether; empty if they hold it."""
        reason = self.cells.variables["reason"].transpose("estimand", ...).values
        labels = self.cells.indexes["estimand"]
        lacking = (
            estimand not in labels
            or (reason[labels.get_loc(estimand)] == REASONS["not_recorded"]).all()
        )
        return f"not recorded: these cells hold no {estimand}" if lacking else ""

    def best(
        self,
        estimand: str,
        *,
        models: Sequence[str] | None = None,
        concepts: Sequence[str] | None = None,
        of: str = "selected_estimate",
    ) -> xr.DataArray:
        """The estimand at each selected layer, dims (model, concept), NaN where never run.

        Models and concepts that the cells do not hold are left out. `of` may name another variable
        of the selected layer, such as "selected_optimism".
        """
        # Plain arrays and one fancy index: xarray's own selection is a hundred times slower.
        table = self.cells.variables[of].transpose("estimand", "model", "concept")
        labels = {
            "model": [m for m in self.models if models is None or m in models],
            "concept": [c for c in self.concepts if concepts is None or c in concepts],
        }
        where = [self.cells.indexes[dim].get_indexer(names) for dim, names in labels.items()]
        values = table.values[self.cells.indexes["estimand"].get_loc(estimand)]
        return xr.DataArray(values[np.ix_(*where)], coords=labels, dims=("model", "concept"))

    def complete_concepts(self, concepts: Sequence[str] | None = None) -> list[str]:
        """The concepts, out of those given or all, that every swept model ran."""
        effects = self.best("delta", concepts=concepts)
        return [str(c) for c in effects["concept"].values[effects.notnull().all("model")]]

    def complete_models(self, concepts: Sequence[str] | None = None) -> list[str]:
        """The swept models that ran every concept, out of those given or all."""
        effects = self.best("delta", concepts=concepts)
        return [str(m) for m in effects["model"].values[effects.notnull().all("concept")]]

    def among(
        self, *, models: Sequence[str] | None = None, concepts: Sequence[str] | None = None
    ) -> "Study":
        """The study restricted to these models or concepts."""
        key = tuple(None if names is None else tuple(names) for names in (models, concepts))
        if key not in self._kept:
            chosen: dict[str, Any] = {}
            if models is not None:
                chosen |= {"model": list(models), "model_other": list(models)}
            if concepts is not None:
                chosen["concept"] = list(concepts)
            part = self.cells.drop_vars(LARGE, errors="ignore").sel(chosen)
            self._kept[key] = Study(part, self.contrast)
        return self._kept[key]

    def without(self, *, model: str = "", concept: str = "") -> "Study":
        """The study with one model, or one concept, left out."""
        if model:
            return self.among(models=[str(m) for m in self.cells.indexes["model"] if m != model])
        return self.among(concepts=[c for c in self.concepts if c != concept])

    def comparing(self, contrast: Contrast | None) -> "Study":
        """The same cells with another contrast; the study itself if `contrast` is None."""
        if contrast is None or contrast == self.contrast:
            return self
        key = ("comparing", contrast.by, contrast.low, contrast.high, contrast.holding)
        if key not in self._kept:
            self._kept[key] = replace(self, contrast=contrast)
        return self._kept[key]

    @cached_property
    def some_items_are_invalid(self) -> bool:
        """Whether any concept has items without two scored choices."""
        return bool((self.cells["n_valid_items"] < self.cells["n_items"]).any())

    @cached_property
    def valid_items(self) -> "Study":
        """The study whose best layers and effects use the valid items alone.

        Older cells keep no error for valid items, so their effects have no interval over items
        where some items are invalid. Errors of depths are always those over all items.
        """
        cells = self.cells
        all_valid = cells["n_valid_items"] == cells["n_items"]
        kept = {
            f"selected_{name}": cells[f"valid_selected_{name}"]
            if f"valid_selected_{name}" in cells
            else cells[f"selected_{name}"].where(all_valid)
            for name in ("layer", "estimate", "optimism", "covariance")
        }
        if "valid_estimate" in cells:
            kept["estimate"] = cells["estimate"].where(all_valid, cells["valid_estimate"])
        return Study(cells.assign(kept | {"n_items": cells["n_valid_items"]}), self.contrast)


def kept(function: Callable[Concatenate[Study, P], T]) -> Callable[Concatenate[Study, P], T]:
    """Decorator: compute a function of a study once per set of arguments, and keep the result."""

    @wraps(function)
    def once(study: Study, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (function, _hashable(args), _hashable(sorted(kwargs.items())))
        if key not in study._kept:
            study._kept[key] = function(study, *args, **kwargs)
        value: T = study._kept[key]
        return value

    typed: Callable[Concatenate[Study, P], T] = once  # type: ignore[assignment]
    return typed


def _hashable(value: Any) -> Any:
    """The value with lists, nested ones too, turned into tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def where_recorded(
    statistic: Callable[Concatenate[Study, P], Estimate],
) -> Callable[Concatenate[Study, P], Estimate]:
    """Decorator: make a statistic undefined, with its reason, if the cells lack its `estimand`."""

    @wraps(statistic)
    def checked(study: Study, *args: P.args, **kwargs: P.kwargs) -> Estimate:
        reason = study.lacks(str(kwargs["estimand"]))
        return Estimate.undefined(reason) if reason else statistic(study, *args, **kwargs)

    typed: Callable[Concatenate[Study, P], Estimate] = checked  # type: ignore[assignment]
    return typed
