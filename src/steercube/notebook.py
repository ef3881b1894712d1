"""What a notebook works with: `study`, the statistics of a cube and what may be concluded.

A `Study` is lazy: a cube is reduced to cells, and each table made, when it is first asked for, and
then kept. `cube.steercube`, `cells.steercube` and `dataset.steercube` are a study without a
contrast.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.conclusions.claims import Claim, Ledger, read_ledger
from steercube.analysis.conclusions.tables import TABLES, Tables
from steercube.analysis.over_models.cell_effects import (
    OUTCOMES,
    cell_effects,
    primary_terms,
    why_not,
)
from steercube.analysis.over_models.nuts import as_arviz
from steercube.analysis.over_models.posterior import Posterior, posterior_of
from steercube.analysis.per_cell.reduce import is_reducible, lacking
from steercube.analysis.view import Study as View
from steercube.analyze import (
    asked_contrast,
    cells_from_cube,
    comparing,
    primary,
    require_labels,
)
from steercube.cells import REASONS, Cells, as_cells, check_cells
from steercube.contrast import Contrast, parse_contrast
from steercube.cube import Cube, as_cube
from steercube.files import open as open_file
from steercube.measures import CELL
from steercube.schema import raise_if_any
from steercube.words import did_you_mean

__all__ = ["HierarchicalPosterior", "Plots", "Study", "study"]

Source = Cube | Cells | xr.Dataset | str | Path


def study(
    source: Source,
    *,
    contrast: str | Contrast | None = None,
    measure: str | None = None,
    compare: tuple[float, float] | str | None = None,
    claims: str | Path | None = None,
) -> "Study":
    """The statistics of a cube or of cells, and what may be concluded from them.

    - `source`: a cube, cells, one grid of a cube, or the path of a file.
    - `contrast`: models to compare, as "training:base:instruct": a label of the models and two of
      its values; or "training:base:instruct:n_layers" to hold that fixed in place of size.
    - `measure`: what the conclusions are about (default: logit_diff, else the first).
    - `compare`: two strengths whose difference is the effect, as (-4, 4), or "slope" (default: what
      the measure's record says, -1 and +1 unless it is your own).
    - `claims`: a ledger (`claims.toml`), whose contrast counts unless another is given.

    Nothing is computed until it is asked for; reducing a cube takes seconds to a minute. Raises
    ValueError for labels that no model has, and a measure or strengths that are not there.
    """
    found = open_file(source) if isinstance(source, str | Path) else source
    if not isinstance(found, Cube | Cells | xr.Dataset):
        raise TypeError(
            f"sc.study takes a cube, cells, a grid of these or a path, not {type(found).__name__}"
        )
    ledger = read_ledger(claims) if claims is not None else Ledger("", [])
    given = parse_contrast(contrast) if isinstance(contrast, str) else contrast
    asked = asked_contrast(given, ledger)
    if isinstance(found, xr.Dataset):
        found = as_cells(found) if "estimate" in found else as_cube(found)
    name = primary(found, measure)
    if isinstance(found, Cells):
        check_cells(found)
        if compare is not None:
            raise ValueError("cells hold the effects of one pair of strengths; `compare` needs the "
                             "cube that they were reduced from")  # fmt: skip
        view = View.of(found, asked, measure=name)
        require_labels(view, what="sc.study")
        return Study(lambda: view, _swept(view), name, asked, ledger.claims)
    if not is_reducible(found, name):
        raise ValueError(f"{name} has no values of single items, so nothing can be resampled")
    cube = found if compare is None else comparing(found, name, _ends(compare))

    if compare is not None:
        _require_swept(cube, name)

    def reduced() -> View:
        _require_swept(cube, name)
        cells = cells_from_cube(cube, asked, None, lambda line: None, measure=name)
        view = View.of(cells, asked, measure=name)
        require_labels(view, what="sc.study")
        return view

    if asked is not None:
        _require_labels_of(cube, name, asked)
    sizes = [cube[name].sizes[dim] for dim in CELL if dim in cube[name].dims]
    return Study(reduced, _counted(*sizes), name, asked, ledger.claims)


def _require_labels_of(cube: Cube, name: str, contrast: Contrast) -> None:
    """Raise ValueError, before minutes of reducing, for labels that the cube's models lack."""
    facts = cube[name]
    labels = set(map(str, facts[contrast.by].values)) if contrast.by in facts.coords else set()
    if not {contrast.low, contrast.high} <= labels:
        known = ", ".join(sorted(labels)) or f"no label {contrast.by!r}"
        raise ValueError(
            f"sc.study: contrast {contrast.by}:{contrast.low}:{contrast.high}, but the models have "
            f"{known}"
        )


def _require_swept(cube: Cube, name: str) -> None:
    """Raise ValueError where the strengths that an effect compares were not swept."""
    measure, swept = cube.measures[name], cube[name]["strength"].values.tolist()
    if absent := lacking(cube[name], measure):
        raise ValueError(
            f"{name} was swept at the strengths {', '.join(f'{s:g}' for s in swept)}, and the "
            f"effect is {measure.compared}, so {absent} is missing: compare others, as "
            f"sc.study(cube, compare=({min(swept):g}, {max(swept):g}))"
        )


def _ends(compare: Any) -> tuple[float, float] | str:
    """Two strengths, low and high, or "slope"."""
    if isinstance(compare, str):
        return compare
    if np.shape(compare) != (2,):
        raise ValueError(f"compare = {compare!r}: give two strengths, as (-4, 4), or 'slope'")
    return float(compare[0]), float(compare[1])


def _swept(view: View) -> str:
    """How many models, concepts and layers have an effect."""
    cells = view.cells.sel(model=view.models)
    layers = cells["estimate"].notnull().any([d for d in cells["estimate"].dims if d != "layer"])
    return _counted(len(view.models), len(view.concepts), int(layers.sum()))


def _counted(*sizes: int) -> str:
    """Numbers of models, concepts and, where they were recorded, layers in words."""
    named = zip(sizes, CELL, strict=False)
    return " x ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in named)


class Study:
    """The effects of a steering sweep, its tables, plots and posteriors; made by `study`.

    Start with `effects()`, `plot.heatmap()` and `tables`. Every table's numbers are those that
    `steercube analyze --without-nuts` writes to `paper/<study>/tables/`.
    """

    def __init__(
        self,
        make: Callable[[], View],
        said: str,
        measure: str,
        contrast: Contrast | None,
        claims: Sequence[Claim] = (),
    ) -> None:
        self._make, self._said, self._measure = make, said, measure
        self.contrast, self._claims = contrast, claims

    def __repr__(self) -> str:
        compared = ""
        if self.contrast is not None:
            compared = f", comparing {self.contrast.by}: {self.contrast.minus}"
        return (
            f"Study of {self._measure}: {self._said}{compared}\n"
            "  effects(), table(name), plot.heatmap(), plot.layers(concept), plot.items(concept)\n"
            "  `tables` lists the tables; without(model=...) leaves one out"
        )

    @cached_property
    def _tables(self) -> Tables:
        return Tables.of(self._make(), self._claims)

    @property
    def _view(self) -> View:
        return self._tables.study

    @property
    def cells(self) -> xr.Dataset:
        """The statistics of every (model, concept, layer): a Dataset, with `estimand` as a dim."""
        return self._view.cells

    @property
    def models(self) -> list[str]:
        """The models that were swept, in order of size."""
        return self._view.models

    @property
    def concepts(self) -> list[str]:
        """The concepts."""
        return self._view.concepts

    def effects(self, estimand: str | None = None) -> pd.DataFrame:
        """A row for every model, concept and estimand at the best layer, with its interval.

        `value` in `units` with its interval over items [`low`, `high`] (95% unless the cells say
        otherwise), which covers the selection of the layer; what that adds is `optimism`.
        `estimand` keeps one.
        """
        table = self.table("effects_long")
        if estimand is None:
            return table
        self._require_estimand(estimand)
        return table[table["estimand"] == estimand].reset_index(drop=True)

    def effect(self, estimand: str = "cohens_d") -> xr.DataArray:
        """The estimand at every layer (model, concept, layer), NaN where it was not run."""
        self._require_estimand(estimand)
        cells = self.cells.sel(model=self.models, estimand=estimand)
        units = str(cells["estimand_units"].item())
        found = cells["estimate"].transpose("model", "concept", "layer").rename(estimand)
        return found.assign_attrs(units=units, long_name=estimand.replace("_", " "))

    def interval(self, estimand: str = "cohens_d") -> xr.Dataset:
        """The estimand at the best layer with its interval over items, dims (model, concept).

        `value`, `low`, `high`, `optimism` and `corrected`, and `layer`.
        """
        self._require_estimand(estimand)
        names = ("layer", "value", "low", "high", "optimism", "corrected")
        table = self.effects(estimand).set_index(["model", "concept"])[list(names)]
        found = table.astype(float).to_xarray().sel(model=self.models, concept=self.concepts)
        return found.set_coords("layer").assign_attrs(estimand=estimand, interval_over="items")

    def best_layer(self) -> xr.DataArray:
        """The layer with the largest delta (model, concept), NaN where nothing was run."""
        layer = self.cells["selected_layer"].sel(model=self.models)
        return layer.transpose("model", "concept")

    def to_frame(self) -> pd.DataFrame:
        """A row for every model, concept, layer and estimand, with its standard error over items.

        Layers at which nothing was run are left out; a missing number has its `reason`.
        """
        names = ["depth", "estimate", "standard_error", "reason"]
        order = ["model", "concept", "layer", "estimand"]
        cells = self.cells.reset_coords("depth")[names].sel(model=self.models)
        table = cells.to_dataframe(dim_order=order).reset_index()[[*order, *names]]
        unrun = (REASONS["not_run"], REASONS["not_applicable"])
        table = table[~table["reason"].isin(unrun)].reset_index(drop=True)
        table["reason"] = table["reason"].map({v: "" if not v else k for k, v in REASONS.items()})
        return table.rename(columns={"estimate": "value"})

    @property
    def tables(self) -> dict[str, str]:
        """What each table holds that `table` gives, by its name."""
        return {one.name: one.what for one in TABLES if one.name in self._tables}

    def table(self, name: str) -> pd.DataFrame:
        """One table of the results, by its name in `tables`.

        `<label>_effect`, such as training_effect, is `contrast_effect` where that is compared.
        Raises ValueError for a name that is no table's, or what the study lacks for it.
        """
        if self.contrast is not None and name == f"{self.contrast.by}_effect":
            name = "contrast_effect"
        if name not in self._tables:
            known = [one.name for one in TABLES]
            needs = {one.name: one.needs for one in TABLES}.get(name)
            if needs == "contrast" or (name.endswith("_effect") and self.contrast is None):
                remedy = "sc.study(..., contrast='training:base:instruct') names one"
                raise ValueError(
                    f"table {name!r} compares models, which needs a contrast: {remedy}"
                )
            if needs:
                raise ValueError(f"table {name!r} needs {needs}, which this study lacks")
            raise ValueError(
                f"{name!r} is none of the tables, {', '.join(self._tables)}"
                f"{did_you_mean(name, known)}"
            )
        return self._tables[name].copy()

    def without(
        self, *, model: str | Sequence[str] = (), concept: str | Sequence[str] = ()
    ) -> "Study":
        """The study with these models or concepts left out."""
        out = {"model": self._there("model", model), "concept": self._there("concept", concept)}
        kept = {
            dim: [one for one in self.cells[dim].values.tolist() if one not in names]
            for dim, names in out.items()
        }
        return self._among(kept)

    def among(
        self,
        *,
        model: str | Sequence[str] | None = None,
        concept: str | Sequence[str] | None = None,
    ) -> "Study":
        """The study restricted to these models or concepts."""
        chosen = {"model": model, "concept": concept}
        return self._among(
            {
                dim: self.cells[dim].values.tolist() if names is None else self._there(dim, names)
                for dim, names in chosen.items()
            }
        )

    def _among(self, kept: dict[str, list[str]]) -> "Study":
        raise_if_any([f"no {dim} is left" for dim, of in kept.items() if not of], what="the study")
        labels = kept | {"model_other": kept["model"]}
        view = self._view
        others = {name: _with_labels(cells, labels) for name, cells in view.others.items()}
        records = {}
        for name, table in view.records.items():
            left_out = [
                table[dim].isin(set(self.cells[dim].values) - set(of)) for dim, of in kept.items()
            ]
            records[name] = table[~np.any(left_out, axis=0)]
        part = View(_with_labels(view.cells, labels), self.contrast, others, records)
        said = _swept(part)
        if self.contrast is not None and not part.has_contrast:
            said += " (models of one label are left)"
        return Study(lambda: part, said, self._measure, self.contrast, self._claims)

    def comparing(self, contrast: str | Contrast | None) -> "Study":
        """The same effects with another contrast of models, or with none."""
        asked = parse_contrast(contrast) if isinstance(contrast, str) else contrast
        view = replace(self._view, contrast=asked)
        require_labels(view, what="sc.study")
        return Study(lambda: view, self._said, self._measure, asked, self._claims)

    @property
    def plot(self) -> "Plots":
        """Plots of the effects; each takes the axes `ax` to draw in, and returns them."""
        return Plots(self)

    def posterior(self, outcome: str = "cohens_d") -> "HierarchicalPosterior":
        """The exact posterior of the hierarchical model of the contrast and scale.

        Its equation and priors are in `steercube.analysis.over_models.posterior`. Raises ValueError
        with the reason if it cannot be fitted.
        """
        if outcome not in OUTCOMES:
            raise ValueError(
                f"outcome {outcome!r} is none of {', '.join(OUTCOMES)}"
                f"{did_you_mean(outcome, OUTCOMES)}"
            )
        effects = cell_effects(self._view, outcome)
        terms = primary_terms(effects)
        if self.contrast is not None and not self._view.has_contrast:
            raise ValueError(
                f"no posterior of the contrast: it {self._view.needs_contrast}; "
                "study.comparing(None).posterior() leaves it out"
            )
        if reason := why_not(effects, terms):
            raise ValueError(f"no posterior of {outcome}: {reason}")
        return HierarchicalPosterior(posterior_of(self._view, outcome, terms), self._view)

    def to_datatree(self, tables: Sequence[str] = ("effects_long",)) -> xr.DataTree:
        """The cells and some of the tables as a DataTree, which `to_netcdf` saves.

        `/cells/<measure>` has the statistics of every model, concept and layer, and
        `/tables/<name>` a variable for each column.
        """
        view = self._view
        groups = {f"/cells/{self._measure}": view.cells}
        groups |= {f"/cells/{name}": cells for name, cells in view.others.items()}
        for name in tables:
            table = self.table(name).rename_axis("row")
            numbers = table.select_dtypes("number").astype(float)
            others = table.drop(columns=numbers.columns).fillna("").astype(str)
            groups[f"/tables/{name}"] = pd.concat([others, numbers], axis=1)[[*table]].to_xarray()
        return xr.DataTree.from_dict(groups)

    def _require_estimand(self, name: str) -> None:
        known = [str(one) for one in self.cells["estimand"].values]
        if name not in known:
            raise ValueError(
                f"estimand {name!r} is none of {', '.join(known)}{did_you_mean(name, known)}"
            )

    def _there(self, dim: str, names: str | Sequence[str]) -> list[str]:
        """The names, each once. Raises ValueError for one that the study does not have."""
        wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
        there = [str(one) for one in self.cells[dim].values]
        raise_if_any(
            [
                f"{dim} {name!r} is none of {', '.join(there)}{did_you_mean(name, there)}"
                for name in wanted
                if name not in there
            ],
            what="the study",
        )
        return wanted


def _with_labels(cells: xr.Dataset, labels: dict[str, list[str]]) -> xr.Dataset:
    """The cells at those of the labels that they have."""
    held = {dim: cells.indexes[dim].isin(names) for dim, names in labels.items()
            if dim in cells.indexes}  # fmt: skip
    return cells.isel({dim: np.flatnonzero(mask) for dim, mask in held.items()})


@dataclass(frozen=True, repr=False)
class Plots:
    """Plots of a study: `heatmap()`, `layers(concept)` and `items(concept)`.

    Each draws in the axes `ax`, or in a new figure, and returns the axes. Without a concept,
    `layers` and `items` draw a panel for each, and return an array of axes.
    """

    _study: Study

    def __repr__(self) -> str:
        return "Plots: heatmap(), layers(concept), items(concept), each with ax="

    def heatmap(self, ax: Any = None) -> Any:
        """Cohen's d at the best layer, concept by model, with its interval in every cell."""
        from steercube.report import plots

        return plots.heatmap(self._study._view, self._study._tables, ax)

    def layers(self, concept: str | None = None, ax: Any = None) -> Any:
        """Cohen's d over the depth of the steered layer, with its pointwise interval."""
        from steercube.report import plots

        return plots.layers(self._study._view, self._study._tables, concept, ax)

    def items(self, concept: str | None = None, ax: Any = None) -> Any:
        """How items are distributed at the best layer, at the two compared strengths."""
        from steercube.report import plots

        return plots.items(self._study._view, self._study._tables, concept, ax)


@dataclass(frozen=True, repr=False)
class HierarchicalPosterior:
    """The exact posterior of a study's hierarchical model: `summary()` and `to_arviz()`."""

    exact: Posterior
    _study: View

    def __repr__(self) -> str:
        return f"Posterior of {self.exact.effects.outcome}\n{self.summary().round(3)}"

    def summary(self) -> pd.DataFrame:
        """A row for each coefficient and sd: mean, sd, median, interval, P(below zero)."""
        return self.exact.summary(self._study.level)

    def to_arviz(self, n_chains: int = 4, n_draws: int = 1000) -> Any:
        """Independent draws as the installed ArviZ holds them: InferenceData, from 1.0 DataTree.

        The draws that `analyze` makes with NUTS lie in `paper/<study>/posteriors/`.
        """
        rng = self._study.stream(f"draws of {self.exact.effects.outcome}")
        return as_arviz(self.exact.draws(rng, n_chains=n_chains, n_draws=n_draws))
