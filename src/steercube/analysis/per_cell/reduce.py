"""Stage one: `cells(cube)` reduces the samples of a cube to the statistics of its cells."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from steercube import __version__, netcdf
from steercube.analysis.per_cell.bootstrap import (
    CONFIDENCE_LEVEL,
    MIN_ITEMS,
    N_RESAMPLES,
    N_SPLITS,
    SelectedCell,
    centroid,
    error_covariance,
    half_weights,
    resample_weights,
    select_and_estimate,
)
from steercube.analysis.per_cell.estimands import (
    BASELINE,
    ESTIMANDS,
    NEGATIVE,
    POSITIVE,
    UNITS,
    Array,
    Samples,
)
from steercube.analysis.per_cell.readings import distinct_responses, reading_audit
from steercube.analysis.per_cell.responses import (
    MIN_LAYERS,
    Answers,
    agreement_over_items,
    best_layer,
    generation_curve,
    logit_curve,
    split_half_reliability,
)
from steercube.analysis.per_cell.steers import sign_flip_test
from steercube.cells import (
    CONTROL_VARIABLES,
    COORDINATES,
    CURVE_VARIABLES,
    GENERATION_VARIABLES,
    LAYER_VARIABLES,
    OF_THE_VECTOR,
    PROVENANCE,
    REASONS,
    SCHEMA_VERSION,
    SELECTED_VARIABLES,
)
from steercube.cube import CELL, MODEL_VARIABLES, RATE_VARIABLES, SCORED_LETTERS, STATUS, check_cube
from steercube.streams import SEED, stream

N_FLIPS = 2_000
"""Random exchanges of +1 and -1 for the null distribution of the best generation layer."""

QUANTILES = np.round(np.linspace(0, 1, 21), 2)
BY_LETTER = ("within_letter_d", "content_shift", "letter_shift")


def cells(
    cube: xr.Dataset,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
    confidence_level: float = CONFIDENCE_LEVEL,
    report: Callable[[str], None] = lambda line: None,
) -> xr.Dataset:
    """Statistics of every (model, concept, layer) of `cube`, as the cells' contract defines them.

    Items are ordered by id and each concept has its own named random stream, so the result depends
    neither on the order of items nor on which other concepts the cube holds. Raises
    ValueError where the cube breaks its contract or lacks the strengths -1 and +1.
    """
    check_cube(cube)
    _require_strengths(cube)
    out = _blank_cells(cube)
    for concept in cube["concept"].values:
        report(f"resampling {concept}")
        _reduce_concept(
            out,
            cube.sel(concept=concept).sortby("item_id"),
            n_resamples=n_resamples,
            seed=seed,
            confidence_level=confidence_level,
        )
    out = out.assign_coords(_coordinates(cube))
    _reduce_generation(
        out, cube, n_resamples=n_resamples, seed=seed, confidence_level=confidence_level
    )
    audit = reading_audit(
        cube, n_resamples=n_resamples, seed=seed, confidence_level=confidence_level
    )
    out = out.merge(distinct_responses(cube)).merge(audit)
    for name, variable in OF_THE_VECTOR.items():
        if name in cube:
            out[name] = cube[name].transpose(*variable.dims)
    return out.assign_attrs(_provenance(cube, n_resamples, seed, confidence_level))


def _require_strengths(cube: xr.Dataset) -> None:
    swept = cube["strength"].values.tolist()
    lacking = [f"{s:+g}" for s in (NEGATIVE, POSITIVE) if s not in swept]
    if lacking:
        raise ValueError(
            f"the cube has the strengths {swept}; effects compare +1 with -1, and it lacks "
            f"{', '.join(lacking)}. Collect the model again with these in --strengths, into "
            "another --out."
        )


def _blank_cells(cube: xr.Dataset) -> xr.Dataset:
    """Cells with labels and the reason why each is undefined so far, but no statistics yet."""
    out = xr.Dataset(
        coords={
            **{dim: cube[dim].values for dim in ("model", "concept", "layer", "strength")},
            "estimand": list(ESTIMANDS),
            "model_other": cube["model"].values,
            "strength_other": cube["strength"].values,
            "quantile": QUANTILES,
        }
    )
    for name, variable in (LAYER_VARIABLES | SELECTED_VARIABLES).items():
        out[name] = variable.full(out.sizes)
    status = cube["cell_status"].transpose(*CELL).values
    reason = np.zeros_like(status)
    for name, flag in STATUS.items():
        reason[status == flag] = REASONS.get(name, REASONS["defined"])
    out["reason"][:] = reason
    out["selected_reason"][:] = np.where(
        (reason == REASONS["defined"]).any(2), REASONS["defined"], reason.max(2)
    )
    out["selection_frequency"][:] = 0.0
    return out


def _coordinates(cube: xr.Dataset) -> dict[str, tuple[tuple[str, ...], Array, dict[str, Any]]]:
    present = cube["item_id"] != ""
    values = {name: cube[name].transpose(*MODEL_VARIABLES[name].dims) for name in MODEL_VARIABLES}
    values["n_items"] = present.sum("sample")
    values["n_valid_items"] = (present & cube["item_valid"]).sum("sample")
    values["estimand_units"] = xr.DataArray([UNITS[name] for name in ESTIMANDS])
    return {
        name: (variable.dims, values[name].values, variable.attrs)
        for name, variable in COORDINATES.items()
    }


def _reduce_concept(
    out: xr.Dataset, cube: xr.Dataset, *, n_resamples: int, seed: int, confidence_level: float
) -> None:
    cube = cube.isel(sample=np.flatnonzero(cube["item_id"] != ""))
    concept, n_items = cube["concept"].item(), cube.sizes["sample"]
    runs = {}
    for model in cube["model"].values:
        run = _run(cube, model)
        if len(run.layers):
            at = {"model": model, "concept": concept}
            _describe_strengths(out, run, at)
            _describe_layers(out, run, at)
            _describe_controls(out, cube, run, at)
            runs[model] = run
    if not runs:
        return
    if n_items < MIN_ITEMS:
        too_few = {"concept": concept, "model": list(runs)}
        out["selected_reason"].loc[too_few] = REASONS["too_few_items"]
        return
    select = partial(_select, n_resamples=n_resamples, confidence_level=confidence_level)
    selected = select(runs, rng=stream(f"items of {concept}", seed=seed))
    for model, run in runs.items():
        at = {"model": model, "concept": concept}
        _record_selected(out, run, selected[model], at, confidence_level)
        _record_steering(out, run, at, seed)
    _record_covariance(out, "selected_covariance", selected, concept)
    _record_depths(out, runs, selected, concept)
    valid = cube["item_valid"].values
    if valid.sum() < MIN_ITEMS:
        return
    if not valid.all():
        runs = {model: _among(run, valid) for model, run in runs.items()}
        selected = select(runs, rng=stream(f"valid items of {concept}", seed=seed))
        _describe_valid_layers(out, runs, concept)
    _record_valid(out, runs, selected, concept)


def _select(
    runs: Mapping[str, "_Run"],
    *,
    n_resamples: int,
    confidence_level: float,
    rng: np.random.Generator,
) -> dict[str, SelectedCell]:
    """Selected layer and effects of each model; the models share the resamples of the items."""
    n_items = len(next(iter(runs.values())).samples.letter)
    select = partial(
        select_and_estimate,
        resamples=resample_weights(n_items, n_resamples, rng),
        halves=half_weights(n_items, N_SPLITS, rng),
        confidence_level=confidence_level,
    )
    with ThreadPoolExecutor() as pool:
        chosen = list(pool.map(select, [run.samples for run in runs.values()]))
    return dict(zip(runs, chosen, strict=True))


class _Run(NamedTuple):
    """The complete layers of one (model, concept), their depths and samples."""

    layers: Array
    depth: Array
    samples: Samples


def _run(cube: xr.Dataset, model: str) -> _Run:
    run = cube.sel(model=model)
    run = run.isel(layer=np.flatnonzero(run["cell_status"] == STATUS["complete"]))
    values = run["logit_diff"].transpose("layer", "strength", "sample").values.astype(float)
    samples = Samples(values, run["strength"].values, run["letter"].values)
    return _Run(run["layer"].values, run["depth"].values, samples)


def _among(run: _Run, items: Array) -> _Run:
    """The run restricted to some of its items."""
    samples, letter = run.samples, run.samples.letter[items]
    return run._replace(samples=Samples(samples.values[..., items], samples.strengths, letter))


def _describe_strengths(out: xr.Dataset, run: _Run, at: Mapping[str, str]) -> None:
    """Mean, sd, correlation and quantiles of the logit differences at every layer."""
    where = {**at, "layer": run.layers}
    values = run.samples.values
    out["mean"].loc[where] = values.mean(axis=-1)
    out["sd"].loc[where] = values.std(axis=-1, ddof=1) if values.shape[-1] > 1 else np.nan
    residual = values - values.mean(axis=-1, keepdims=True)
    cross = np.einsum("lsi,lti->lst", residual, residual)
    norm = np.sqrt(np.einsum("lss->ls", cross))
    with np.errstate(divide="ignore", invalid="ignore"):
        out["correlation"].loc[where] = cross / (norm[:, :, None] * norm[:, None, :])
    out["quantiles"].loc[where] = np.moveaxis(np.quantile(values, QUANTILES, axis=-1), 0, -1)


def _describe_layers(out: xr.Dataset, run: _Run, at: Mapping[str, str]) -> None:
    """Every estimand at every layer, or why it is undefined there."""
    where = {**at, "layer": run.layers}
    ones = np.ones(len(run.samples.letter))
    effects = [estimand(run.samples, ones) for estimand in ESTIMANDS.values()]
    value = np.stack([effect.value for effect in effects])
    se = np.stack([effect.se for effect in effects])
    reason = np.stack(
        [_reason(n, run.samples, *effect) for n, effect in zip(ESTIMANDS, effects, strict=True)]
    )
    has_value = np.isfinite(value) & ~np.isin(reason, _WITHOUT_VALUE)
    out["estimate"].loc[where] = np.where(has_value, value, np.nan)
    out["standard_error"].loc[where] = np.where(reason == REASONS["defined"], se, np.nan)
    out["reason"].loc[where] = reason


def _describe_controls(out: xr.Dataset, cube: xr.Dataset, run: _Run, at: Mapping[str, str]) -> None:
    """Every estimand of the control directions, where the concept's own vector has it."""
    where = {**at, "layer": run.layers}
    for name, variable in CONTROL_VARIABLES.items():
        swept = f"logit_diff_{name.removeprefix('estimate_')}"
        if swept not in cube:
            continue
        if name not in out:
            out[name] = variable.full(out.sizes)
        layers = cube[swept].sel(model=at["model"], layer=run.layers)
        values = layers.transpose("layer", "strength", "sample").values.astype(float)
        samples = replace(run.samples, values=values)
        ones = np.ones(len(samples.letter))
        value = np.stack([f(samples, ones).value for f in ESTIMANDS.values()])
        has_value = out["estimate"].loc[where].notnull().values & np.isfinite(value)
        has_value &= np.isfinite(values).all(axis=(1, 2))
        out[name].loc[where] = np.where(has_value, value, np.nan)


_WITHOUT_VALUE = [REASONS[name] for name in ("too_few_items", "no_baseline", "one_letter")]


def _reason(name: str, samples: Samples, value: Array, se: Array) -> Array:
    """Why an estimand of these items is undefined, for each layer; 0 where it is defined."""
    letters = [(samples.letter == letter).sum() for letter in SCORED_LETTERS]
    if len(samples.letter) < MIN_ITEMS:
        return np.full(value.shape, REASONS["too_few_items"])
    if name in BY_LETTER and min(letters) < 2:
        return np.full(value.shape, REASONS["one_letter"])
    if name == "glass_delta_baseline" and not (samples.strengths == BASELINE).any():
        return np.full(value.shape, REASONS["no_baseline"])
    defined = np.isfinite(value) & (se > 0)
    return np.where(defined, REASONS["defined"], REASONS["zero_variance"])


def _describe_valid_layers(out: xr.Dataset, runs: Mapping[str, _Run], concept: str) -> None:
    """Every estimand at every layer over valid items, where it is defined over all items."""
    for model, run in runs.items():
        where = {"model": model, "concept": concept, "layer": run.layers}
        ones = np.ones(len(run.samples.letter))
        value = np.stack([estimand(run.samples, ones).value for estimand in ESTIMANDS.values()])
        has_value = out["estimate"].loc[where].notnull().values & np.isfinite(value)
        out["valid_estimate"].loc[where] = np.where(has_value, value, np.nan)


def _record_valid(
    out: xr.Dataset, runs: Mapping[str, _Run], selected: Mapping[str, SelectedCell], concept: str
) -> None:
    for model, run in runs.items():
        at = {"model": model, "concept": concept}
        chosen = selected[model]
        effects = list(chosen.effects.values())
        out["valid_selected_layer"].loc[at] = run.layers[chosen.layer]
        out["valid_selected_estimate"].loc[at] = [effect.apparent for effect in effects]
        out["valid_selected_optimism"].loc[at] = [effect.optimism for effect in effects]
    _record_covariance(out, "valid_selected_covariance", selected, concept)


def _record_selected(
    out: xr.Dataset,
    run: _Run,
    chosen: SelectedCell,
    at: Mapping[str, str],
    confidence_level: float,
) -> None:
    layer = run.layers[chosen.layer]
    at_layer = out[["estimate", "standard_error", "reason"]].sel({**at, "layer": layer})
    effects = list(chosen.effects.values())
    low, high = (np.array([getattr(effect, end) for effect in effects]) for end in ("low", "high"))
    # A share near 0 or 1 has no usable standard error, so its interval is Wilson's, which ignores
    # the selection of the layer.
    share = list(ESTIMANDS).index("anti_steerable_share")
    low[share], high[share] = _wilson(
        at_layer["estimate"].values[share], len(run.samples.letter), confidence_level
    )
    reason = at_layer["reason"].values
    unstable = (reason == REASONS["defined"]) & ~np.isfinite(low)
    out["selected_layer"].loc[at] = layer
    out["selection_frequency"].loc[{**at, "layer": run.layers}] = chosen.frequency
    fields = {
        "selected_estimate": at_layer["estimate"].values,
        "selected_se": at_layer["standard_error"].values,
        "selected_optimism": [effect.optimism for effect in effects],
        "selected_low": low,
        "selected_high": high,
        "selected_split_half": [effect.split_half for effect in effects],
        "selected_reason": np.where(unstable, REASONS["unstable"], reason),
    }
    for name, values in fields.items():
        out[name].loc[at] = values


def _record_steering(out: xr.Dataset, run: _Run, at: Mapping[str, str], seed: int) -> None:
    rng = stream(f"signs of {at['model']} on {at['concept']}", seed=seed)
    tested = sign_flip_test(run.samples, rng)
    out["steers_p"].loc[at] = tested.p
    out["steers_other_way_p"].loc[at] = tested.p_other_way


def _wilson(share: float, n_items: int, confidence_level: float) -> tuple[float, float]:
    count = binomtest(round(share * n_items), n_items)
    interval = count.proportion_ci(confidence_level, method="wilson")
    return interval.low, interval.high


def _record_covariance(
    out: xr.Dataset, name: str, selected: Mapping[str, SelectedCell], concept: str
) -> None:
    models = out["model"].values
    out[name].loc[{"concept": concept}] = np.stack(
        [
            error_covariance(
                [selected[m].effects[name].error if m in selected else None for m in models]
            )
            for name in ESTIMANDS
        ]
    )


def _record_depths(
    out: xr.Dataset, runs: Mapping[str, _Run], selected: Mapping[str, SelectedCell], concept: str
) -> None:
    """Covariance over items of the selected depth and of the depth centroid."""
    models = out["model"].values
    places: dict[str, Callable[[_Run, SelectedCell], Array]] = {
        "selected_depth_covariance": lambda run, choice: run.depth[choice.chosen],
        "depth_centroid_covariance": lambda run, choice: centroid(choice.delta, run.depth),
    }
    for name, place in places.items():
        drawn = [place(runs[m], selected[m]) if m in selected else None for m in models]
        out[name].loc[{"concept": concept}] = error_covariance(drawn)


def _reduce_generation(
    out: xr.Dataset, cube: xr.Dataset, *, n_resamples: int, seed: int, confidence_level: float
) -> None:
    """Generation rates, published or counted from responses, and statistics of their curves."""
    for name in RATE_VARIABLES:
        if name in cube:
            out[name] = cube[name].transpose(*RATE_VARIABLES[name].dims)
    if "generation_valid" in cube:
        _count_responses(out, cube)
    if "generation_rate" not in out:
        return
    for name, variable in CURVE_VARIABLES.items():
        out[name] = variable.full(out.sizes)
    out["answered_delta"] = GENERATION_VARIABLES["answered_delta"].full(out.sizes)
    for concept in cube["concept"].values:
        of_concept = cube.sel(concept=concept).sortby("item_id")
        of_concept = of_concept.isel(sample=np.flatnonzero(of_concept["item_id"] != ""))
        for model in cube["model"].values:
            _reduce_curves(
                out,
                of_concept.sel(model=model),
                n_resamples=n_resamples,
                rng=stream(f"curves of {concept}", seed=seed),
                confidence_level=confidence_level,
            )


def _count_responses(out: xr.Dataset, cube: xr.Dataset) -> None:
    valid = cube["generation_valid"].astype(float)
    matching = (valid * cube["generation_match"]).fillna(0).where(valid.notnull())
    answered = valid.notnull().any("sample")
    n_valid = valid.sum("sample")
    counted = {
        "response_match_rate": matching.sum("sample") / n_valid.where(n_valid > 0),
        "response_valid_rate": valid.mean("sample"),
        "n_responses": valid.notnull().sum("sample").where(answered) * _repeats(cube),
    }
    if "published_valid" in cube:
        counted["published_response_match_rate"] = cube["published_match"].mean("sample")
        alike = (cube["published_valid"] == valid) & (
            (cube["published_match"] == cube["generation_match"]) | (valid == 0)
        )
        every = ("layer", "strength", "sample")
        counted["responses_read_alike"] = alike.where(valid.notnull()).mean(every)
    for name, values in counted.items():
        variable = GENERATION_VARIABLES[name]
        out[name] = (
            values.astype(float).transpose(*variable.dims).assign_attrs(variable.attrs)
        ).reset_coords(drop=True)
    rate = out["response_match_rate"].assign_attrs(RATE_VARIABLES["generation_rate"].attrs)
    published = out.get("generation_rate", rate)
    has_published = published.notnull().any(("layer", "strength"))
    out["generation_rate"] = published.where(has_published, rate).assign_attrs(rate.attrs)


def _repeats(cube: xr.Dataset) -> xr.DataArray:
    """Number of responses per item at each layer and strength, dims (model,)."""
    models = cube["model"].values
    if "response_repeat" not in cube:
        return xr.DataArray(np.ones(len(models)), coords={"model": models}, dims="model")
    of_model = cube["response_model"].values[:, None] == models
    repeat = np.where(of_model, cube["response_repeat"].values[:, None], 0)
    return xr.DataArray(1 + repeat.max(axis=0), coords={"model": models}, dims="model")


def _reduce_curves(
    out: xr.Dataset,
    cube: xr.Dataset,
    *,
    n_resamples: int,
    rng: np.random.Generator,
    confidence_level: float,
) -> None:
    """Reliability of both curves and their agreement, for one model and concept.

    Over the items with responses, or over all items where only rates are known. `rng` depends on
    the concept alone, so models with the same items share their resamples.
    """
    at = {"model": cube["model"].item(), "concept": cube["concept"].item()}
    ends = {"strength": [NEGATIVE, POSITIVE]}
    has_rate = out["generation_rate"].sel(at).sel(ends).notnull().all("strength")
    swept = np.flatnonzero((cube["cell_status"] == STATUS["complete"]) & has_rate)
    cube = cube.isel(layer=swept)
    answers = _answers(cube.sel(ends))
    if answers is not None:
        cube = cube.isel(sample=np.flatnonzero(np.isfinite(answers.valid).all(axis=(0, 1))))
        answers = _answers(cube.sel(ends))
    n_items = cube.sizes["sample"]
    if answers is not None:
        out["n_response_items"].loc[at] = n_items
    if len(swept) < MIN_LAYERS or n_items < MIN_ITEMS:
        return
    resamples = resample_weights(n_items, n_resamples, rng)
    halves = half_weights(n_items, N_SPLITS, rng)
    flips = rng.choice([-1.0, 1.0], (N_FLIPS, n_items))
    values = cube["logit_diff"].transpose("strength", "layer", "sample").astype(float)
    shift = values.sel(strength=POSITIVE).values - values.sel(strength=NEGATIVE).values
    statistics = {
        "logit_reliability": split_half_reliability(
            logit_curve(shift, halves), logit_curve(shift, 1 - halves)
        )
    }
    if answers is not None:
        where = {**at, "layer": cube["layer"].values}
        out["answered_delta"].loc[where] = logit_curve(shift, np.ones(n_items))
        agreement = agreement_over_items(answers, shift, resamples, confidence_level)
        statistics |= {
            "response_r": agreement.r,
            "response_r_low": agreement.low,
            "response_r_high": agreement.high,
            "response_z_error": agreement.z_error,
            "noise_free_r": agreement.noise_free,
            "noise_free_r_low": agreement.noise_free_low,
            "noise_free_r_high": agreement.noise_free_high,
            "response_reliability": split_half_reliability(
                generation_curve(answers, halves), generation_curve(answers, 1 - halves)
            ),
        }
        best = best_layer(answers, halves, flips)
        if best is not None:
            statistics |= {
                "best_response_layer": float(cube["layer"].values[best.index]),
                "best_response_delta": best.value,
                "best_response_null": best.expected_under_null,
                "best_response_p": best.p_value,
                "best_response_split_half": best.split_half,
            }
    for name, value in statistics.items():
        out[name].loc[at] = value


def _answers(cube: xr.Dataset) -> Answers | None:
    """Valid and matching shares at -1 and +1; None if no item has them."""
    if "generation_valid" not in cube or not cube["generation_valid"].notnull().any():
        return None
    order = ("strength", "layer", "sample")
    return Answers(
        valid=cube["generation_valid"].transpose(*order).values.astype(float),
        match=cube["generation_match"].transpose(*order).values.astype(float),
    )


def _provenance(
    cube: xr.Dataset, n_resamples: int, seed: int, confidence_level: float
) -> dict[str, Any]:
    return {
        "title": f"Cells of: {cube.attrs['title']}",
        "source": cube.attrs["source"],
        **{name: cube.attrs[name] for name in PROVENANCE if name in cube.attrs},
        "history": f"{cube.attrs['history']}\nreduced to cells by steercube {__version__}",
        "Conventions": "CF-1.11, ACDD-1.3",
        "cells_version": SCHEMA_VERSION,
        "cube_sha256": netcdf.digest(cube),
        "seed": seed,
        "n_resamples": n_resamples,
        "confidence_level": confidence_level,
    }
