from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from builders import (
    LAYERS,
    MODELS,
    ROOT,
    STRENGTHS,
    STUDY,
    fill,
    grid_beside,
    make_cube,
    make_model,
    needs_study,
    open_view,
    reduce_to_cells,
    study_of,
    with_controls,
)

from steercube.analysis.over_models.item_fits import item_fits, keep_slow_fits
from steercube.analysis.per_cell.estimands import ESTIMANDS, Samples
from steercube.analysis.per_cell.reduce import MIN_ITEMS
from steercube.analysis.per_cell.reduce import cells as cells_of_every_measure
from steercube.cells import ITEM_FITTED, REASONS, check_cells, compare_cells, open_cells
from steercube.contract import STATUS, VECTORS
from steercube.cube import Cube, check_cube, open_cube
from steercube.measures import GENERATION_MATCH, Measure
from steercube.models import read_facts
from steercube.published_study import needed, study_cube, study_files


def reduce(cube: Cube | xr.Dataset, n_resamples: int = 200) -> xr.Dataset:
    check_cube(cube)
    return reduce_to_cells(cube, n_resamples=n_resamples)


def reason(cells: xr.Dataset, name: str, **cell: object) -> str:
    value = int(cells["reason"].sel(estimand=name, **cell))
    return next(n for n, v in REASONS.items() if v == value)


def agree(one: xr.Dataset, two: xr.Dataset) -> bool:
    return not compare_cells(one, two, rtol=1e-9, atol=1e-9)


def test_the_cells_keep_their_contract(cells: xr.Dataset) -> None:
    check_cells(cells)


def test_each_layer_holds_the_estimands_of_its_samples(cube: xr.Dataset, cells: xr.Dataset) -> None:
    at = {"model": "middle", "concept": "humour", "layer": 4}
    run = cube.sel(at).transpose("strength", "sample")
    samples = Samples(
        run["logit_diff"].values.astype(float), np.array(STRENGTHS), run["letter"].values
    )
    for name, estimand in ESTIMANDS.items():
        effect = estimand(samples, np.ones(30))
        assert cells["estimate"].sel(estimand=name, **at) == pytest.approx(float(effect.value))
        assert cells["standard_error"].sel(estimand=name, **at) == pytest.approx(float(effect.se))


def test_strengths_are_described(cube: xr.Dataset, cells: xr.Dataset) -> None:
    at = {"model": "large", "concept": "humour", "layer": 5}
    values = cube["logit_diff"].sel(at).transpose("strength", "sample").values.astype(float)
    assert cells["mean"].sel(at).values == pytest.approx(values.mean(axis=1))
    assert cells["sd"].sel(at).values == pytest.approx(values.std(axis=1, ddof=1))
    assert cells["correlation"].sel(at).values == pytest.approx(np.corrcoef(values), abs=1e-6)
    quantiles = np.quantile(values, cells["quantile"].values, axis=1).T
    assert cells["quantiles"].sel(at).values == pytest.approx(quantiles, abs=1e-5)


def test_the_best_layer_has_the_largest_delta(cells: xr.Dataset) -> None:
    delta = cells["estimate"].sel(estimand="delta")
    assert (cells["selected_layer"] == delta.idxmax("layer")).all()
    assert (cells["selected_estimate"].sel(estimand="delta") == delta.max("layer")).all()
    assert (cells["selected_layer"] == LAYERS[2]).mean() > 0.8


def test_a_layer_that_a_model_lacks_is_not_applicable(rng: np.random.Generator) -> None:
    cells = reduce(make_cube(rng, models=(make_model("short", n_layers=5), MODELS[2])))
    assert reason(cells, "delta", model="short", concept="humour", layer=6) == "not_applicable"
    assert cells["selected_reason"].sel(model="short").max() == REASONS["defined"]


def test_permuting_the_items_changes_nothing(cube: xr.Dataset, rng: np.random.Generator) -> None:
    """Jointly over models, layers and strengths; padding is permuted along."""
    order = rng.permutation(cube.sizes["sample"])
    assert (cube["item_id"].isel(sample=order) == "").any()
    shuffled = cube.isel(sample=order).assign_coords(sample=cube["sample"])
    assert agree(reduce(cube), reduce(shuffled))


def test_more_padding_changes_nothing(cube: xr.Dataset) -> None:
    wider = cube.reindex(
        sample=np.arange(50), fill_value={"item_id": "", "letter": "", "item_valid": False}
    )
    assert agree(reduce(cube), reduce(wider))


def test_another_concept_or_model_beside_it_changes_nothing(cube: xr.Dataset) -> None:
    alone = reduce(cube.sel(concept=["humour"], model=["small", "large"]))
    beside = reduce(cube).sel(
        concept=["humour"], model=["small", "large"], model_other=["small", "large"]
    )
    assert agree(alone, beside)


SCALED = {"delta", "content_shift", "letter_shift", "steerability_slope"}


def change_logits(cube: xr.Dataset, change: Callable[[xr.DataArray], xr.DataArray]) -> xr.Dataset:
    """The cube with every logit difference replaced, log-probabilities to match."""
    cube = cube.copy(deep=True)
    cube["logit_diff"] = change(cube["logit_diff"]).astype("float32")
    cube["logprob_matching"] = np.minimum(cube["logit_diff"], 0) - 3
    cube["logprob_other"] = -np.maximum(cube["logit_diff"], 0) - 3
    return cube


def test_scaling_the_logits_scales_what_has_units(cube: xr.Dataset) -> None:
    one, two = reduce(cube), reduce(change_logits(cube, lambda x: 2 * x))
    for name in ("selected_estimate", "selected_low", "selected_high", "selected_optimism"):
        ratio = (two[name] / one[name]).where(abs(one[name]) > 1e-3)
        for estimand in ESTIMANDS:
            of = ratio.sel(estimand=estimand).values
            expected = 2.0 if estimand in SCALED else 1.0
            assert of[np.isfinite(of)] == pytest.approx(expected, rel=1e-3)


def test_swapping_the_strengths_flips_every_layer(cube: xr.Dataset) -> None:
    flipped = cube.assign_coords(strength=-cube["strength"]).sortby("strength")
    one, two = reduce(cube)["estimate"], reduce(flipped)["estimate"]
    for name in set(ESTIMANDS) - {"glass_delta_negative", "anti_steerable_share"}:
        xr.testing.assert_allclose(one.sel(estimand=name), -two.sel(estimand=name))


def test_relabelling_the_letters_flips_the_letter_part_alone(cube: xr.Dataset) -> None:
    letter = xr.where(cube["letter"] == "A", "B", xr.where(cube["letter"] == "B", "A", ""))
    relabelled = cube.assign_coords(letter=letter.transpose("concept", "sample"))
    one, two = reduce(cube), reduce(relabelled)
    for name in ESTIMANDS:
        sign = -1 if name == "letter_shift" else 1
        for field in ("estimate", "selected_estimate"):
            xr.testing.assert_allclose(
                one[field].sel(estimand=name), sign * two[field].sel(estimand=name)
            )


def test_the_seed_decides_the_intervals_and_nothing_else(cube: xr.Dataset) -> None:
    one, two, other = (reduce_to_cells(cube, n_resamples=200, seed=seed) for seed in (1, 1, 2))
    assert one.identical(two)
    assert one["estimate"].identical(other["estimate"])
    assert not one["selected_low"].equals(other["selected_low"])


def test_strengths_of_minus_and_plus_one_are_needed(rng: np.random.Generator) -> None:
    cube = make_cube(rng, strengths=(-2.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"strengths \[-2.0, 0.0, 1.0\].*lacks -1"):
        reduce(cube)


def test_too_few_items(rng: np.random.Generator) -> None:
    cells = reduce(make_cube(rng, n_items={"few": MIN_ITEMS - 1, "enough": MIN_ITEMS}))
    assert reason(cells, "cohens_d", model="small", concept="few", layer=4) == "too_few_items"
    few = cells.sel(concept="few")
    assert few["estimate"].isnull().all()
    assert few["selected_low"].isnull().all()
    assert cells.sel(concept="enough")["selected_low"].sel(estimand="cohens_d").notnull().all()


def test_no_baseline(rng: np.random.Generator) -> None:
    cells = reduce(make_cube(rng, strengths=(-1.0, 1.0)))
    at = {"model": "small", "concept": "humour", "layer": 4}
    assert reason(cells, "glass_delta_baseline", **at) == "no_baseline"
    assert cells["selected_low"].sel(estimand="glass_delta_baseline").isnull().all()
    assert cells["selected_low"].sel(estimand="cohens_d").notnull().all()


def test_one_letter(cube: xr.Dataset) -> None:
    letter = xr.where(cube["letter"] == "", "", "A").transpose("concept", "sample")
    cells = reduce(cube.assign_coords(letter=letter))
    at = {"model": "small", "concept": "humour", "layer": 4}
    assert reason(cells, "within_letter_d", **at) == "one_letter"
    assert reason(cells, "cohens_d", **at) == "defined"
    assert cells["selected_estimate"].sel(estimand="letter_shift").isnull().all()


def test_constant_logits_are_undefined_with_a_reason(cube: xr.Dataset) -> None:
    cube = cube.copy(deep=True)
    for layer in LAYERS:
        for strength in STRENGTHS:
            fill(cube, "small", "humour", layer, strength, np.full(30, 2.0))
    cells = reduce(cube)
    at = {"model": "small", "concept": "humour"}
    assert reason(cells, "cohens_d", **at, layer=4) == "zero_variance"
    d = cells.sel(estimand="cohens_d", **at)
    assert d["estimate"].isnull().all()
    assert np.isnan([d["selected_low"], d["selected_high"], d["selected_se"]]).all()
    assert int(d["selected_reason"]) == REASONS["zero_variance"]


@pytest.mark.parametrize("status", ["not_run", "failed", "nonfinite"])
def test_cells_without_data_say_why(status: str, cube: xr.Dataset) -> None:
    cube = cube.copy(deep=True)
    at = {"model": "small", "concept": "humour"}
    for name in ("logit_diff", "logprob_matching", "logprob_other"):
        cube[name].loc[at] = np.nan
    cube["cell_status"].loc[at] = STATUS[status]
    cells = reduce(cube)
    assert reason(cells, "cohens_d", **at, layer=4) == status
    assert int(cells["selected_reason"].sel(estimand="delta", **at)) == REASONS[status]
    assert np.isnan(cells["selected_layer"].sel(at))
    covariance = cells["selected_covariance"].sel(estimand="delta", concept="humour")
    assert covariance.sel(model="small").isnull().all()
    assert covariance.sel(model="large", model_other="middle").notnull()


def test_one_nonfinite_layer_is_left_out_of_the_choice(cube: xr.Dataset) -> None:
    cube = cube.copy(deep=True)
    at = {"model": "large", "concept": "humour", "layer": LAYERS[2]}
    cube["logit_diff"].loc[{**at, "strength": 1.0, "sample": 0}] = np.inf
    cube["logprob_matching"].loc[{**at, "strength": 1.0, "sample": 0}] = np.inf
    cube["cell_status"].loc[at] = STATUS["nonfinite"]
    cells = reduce(cube)
    assert reason(cells, "delta", **at) == "nonfinite"
    assert cells["selected_layer"].sel(model="large", concept="humour") != LAYERS[2]
    assert cells["selection_frequency"].sel(at) == 0


def test_invalid_items_are_left_out_of_the_valid_versions(cube: xr.Dataset) -> None:
    valid = cube["item_valid"] & (cube["sample"] > 4)
    cells = reduce(cube.assign_coords(item_valid=valid))
    kept = reduce(cube.isel(sample=cube["sample"] > 4))
    for name in ("delta", "cohens_d", "within_letter_d"):
        valid_alone = cells["valid_selected_estimate"].sel(estimand=name).values
        assert valid_alone == pytest.approx(kept["selected_estimate"].sel(estimand=name).values)
    assert cells["n_valid_items"].values.tolist() == [19, 25]
    of_layers = cells["valid_estimate"].sel(estimand="cohens_d")
    assert of_layers.values == pytest.approx(
        kept["estimate"].sel(estimand="cohens_d").values, nan_ok=True
    )


def test_valid_versions_are_the_whole_where_every_item_is_valid(cube: xr.Dataset) -> None:
    cells = reduce(cube)
    for name in ("layer", "estimate", "optimism", "covariance"):
        xr.testing.assert_equal(cells[f"valid_selected_{name}"], cells[f"selected_{name}"])
    assert cells["valid_estimate"].isnull().all()


def test_the_error_of_valid_items_is_that_of_fewer_items(cube: xr.Dataset) -> None:
    valid = cube["item_valid"] & (cube["sample"] >= 12)
    cells = reduce(cube.assign_coords(item_valid=valid))
    at = {"estimand": "delta", "concept": "honesty", "model": "small", "model_other": "small"}
    ratio = float((cells["valid_selected_covariance"] / cells["selected_covariance"]).sel(at))
    assert 1.2 < ratio < 4


def test_a_place_that_never_moves_has_no_error_and_others_have(cube: xr.Dataset) -> None:
    at = {"concept": "humour", "model": "large", "model_other": "large"}
    cells = reduce(cube)
    frequency = cells["selection_frequency"].sel(model="large", concept="humour")
    depth = cells["depth"].sel(model="large")
    spread = float((frequency * (depth - (frequency * depth).sum()) ** 2).sum())
    assert float(cells["selected_depth_covariance"].sel(at)) == pytest.approx(spread, rel=0.05)
    assert float(cells["depth_centroid_covariance"].sel(at)) > 0


def test_a_share_has_wilsons_interval(cube: xr.Dataset) -> None:
    from statsmodels.stats.proportion import proportion_confint

    cells = reduce(cube).sel(estimand="anti_steerable_share", concept="humour", model="small")
    share = float(cells["selected_estimate"])
    theirs = proportion_confint(round(share * 30), 30, method="wilson")
    assert (float(cells["selected_low"]), float(cells["selected_high"])) == pytest.approx(theirs)


def test_responses_become_rates(cube: xr.Dataset) -> None:
    valid = xr.zeros_like(cube["logit_diff"]).where(cube["item_id"] != "")
    valid[..., ::2] = valid[..., ::2] + 1
    match = (valid * (cube["sample"] % 4 == 0)).where(valid == 1)
    grid = grid_beside(cube, GENERATION_MATCH, generation_valid=valid, generation_match=match)
    cells = reduce(Cube({"logit_diff": cube, "generation_match": grid}))
    at = {"model": "small", "concept": "honesty", "layer": 4, "strength": 1.0}
    assert cells["response_valid_rate"].sel(at) == pytest.approx(0.5)
    assert cells["response_match_rate"].sel(at) == pytest.approx(0.5)


def test_a_control_is_reduced_as_the_vector_is(cube: xr.Dataset, rng: np.random.Generator) -> None:
    control = cube[["logit_diff", "cell_status"]].expand_dims(direction=["random/0"])
    whole = Cube({"logit_diff": cube, "logit_diff/random": control}, cube.attrs)
    found = cells_of_every_measure(whole, n_resamples=2)
    assert list(found) == ["logit_diff", "logit_diff/random"]
    estimate = found["logit_diff/random"]["other_estimate"].sel(direction="random/0")
    own = found["logit_diff"]["estimate"].sel(items="all")
    np.testing.assert_allclose(estimate, own.transpose(*estimate.dims))
    shown = found.view()["other_estimate"]
    assert shown["direction"].values.tolist() == ["random/own", "random/0"]
    xr.testing.assert_allclose(
        shown.sel(direction="random/own", drop=True), shown.sel(direction="random/0", drop=True)
    )
    still = reduce_to_cells(with_controls(cube, rng), n_resamples=2)
    best = still["selected_estimate"].sel(estimand="delta")
    moved = abs(still["other_estimate"].sel(estimand="delta", direction="random/0")).max("layer")
    assert (moved < best / 3).all()


def test_what_is_known_of_the_vector_is_taken_over(cube: xr.Dataset) -> None:
    known = cube["depth"].expand_dims(concept=cube["concept"]).reset_coords(drop=True)
    known = known.transpose("model", "concept", "layer")
    table = xr.Dataset({"split_half_cosine": known})
    found = reduce_to_cells(Cube({"logit_diff": cube, VECTORS: table}, cube.attrs), n_resamples=2)
    xr.testing.assert_equal(found["split_half_cosine"].reset_coords(drop=True), known)


def without_fits(cells: xr.Dataset) -> xr.Dataset:
    return cells.drop_dims(["item_fit", "item_term"]).drop_vars("item_fit_of")


@pytest.mark.slow
def test_the_committed_cells_of_smollm2_are_those_of_its_cube() -> None:
    committed = open_view(ROOT / "data" / "smollm2.cells.nc")
    rebuilt = reduce_to_cells(open_cube(ROOT / "data" / "smollm2.nc"))
    assert not compare_cells(rebuilt, committed)


@needs_study
@pytest.mark.slow
def test_the_committed_cells_are_those_of_the_raw_files() -> None:
    files = study_files(STUDY, paths=needed(capability=True))
    cube = study_cube(files, read_facts(ROOT / "data" / "models.toml"))
    rebuilt = cells_of_every_measure(cube)
    committed = open_cells(ROOT / "data" / "qwen3.cells.nc")
    assert compare_cells(rebuilt.view(), without_fits(committed.view())) == []
    # The same content has another SHA-256 in a file of version 1.
    committed = committed.with_attrs({"cube_sha256": rebuilt.attrs["cube_sha256"]})
    fits, _ = item_fits(cube["logit_diff"], study_of(rebuilt.view()))
    kept = keep_slow_fits(rebuilt.with_tables({ITEM_FITTED: fits}), committed)
    assert compare_cells(kept, committed) == []


def test_the_cells_say_of_the_sweep_what_the_cube_says(cube: xr.Dataset) -> None:
    found = reduce_to_cells(cube, n_resamples=20)
    for name in ("layer_convention", "positions_steered", "read_token", "dtype", "versions"):
        assert found.attrs[name] == cube.attrs[name]
    assert found.attrs["history"].startswith(cube.attrs["history"])


def second_measure(cube: xr.Dataset, **record: object) -> Cube:
    """The cube with a measure whose own effect is largest at layer 3, the logits' being at 5."""
    measure = Measure("score", units="points", **record)
    own = xr.where(cube["layer"] == 3, 2.0, 0.1) * cube["strength"]
    noise = cube["logit_diff"].sel(strength=0.0, drop=True)
    values = (noise + own).transpose(*cube["logit_diff"].dims).astype("float32")
    grid = cube[["cell_status"]].assign(score=values.where(cube["logit_diff"].notnull()))
    grid["score"].attrs = measure.attrs
    return Cube({"logit_diff": cube, "score": grid}, cube.attrs)


@pytest.mark.parametrize(("layer_by", "layer"), [("", 3), ("score", 3), ("logit_diff", 5)])
def test_a_measures_layer_is_selected_by_the_measure_of_its_record(
    layer_by: str, layer: int, cube: xr.Dataset
) -> None:
    both = second_measure(cube, layer_by=layer_by)
    view = cells_of_every_measure(both, n_resamples=50).view("score")
    logits = cells_of_every_measure(both, n_resamples=50).view()
    assert (view["selected_layer"] == layer).all()
    delta = view["selected_estimate"].sel(estimand="delta")
    np.testing.assert_allclose(delta, 4.0 if layer == 3 else 0.2, atol=1e-5)
    if layer_by == "logit_diff":
        assert view["selection_frequency"].equals(logits["selection_frequency"])


def test_a_measure_whose_selecting_measure_is_not_there_selects_for_itself(
    cube: xr.Dataset,
) -> None:
    alone = Cube({"score": second_measure(cube, layer_by="logit_diff")["score"]}, cube.attrs)
    view = cells_of_every_measure(alone, n_resamples=50).view("score")
    assert (view["selected_layer"] == 3).all()
    assert view["estimate"].attrs["layer_by"] == "score"


def test_another_measure_beside_it_changes_nothing(cube: xr.Dataset) -> None:
    both = cells_of_every_measure(second_measure(cube), n_resamples=50)
    assert agree(both.view(), reduce(cube, 50))


def test_a_measure_has_the_estimands_of_its_record_and_those_that_conclusions_need(
    cube: xr.Dataset,
) -> None:
    found = cells_of_every_measure(second_measure(cube, estimands=("d_z",)), n_resamples=50)
    assert found["score"]["estimand"].values.tolist() == ["delta", "cohens_d", "d_z"]
    assert len(found["logit_diff"]["estimand"]) == len(ESTIMANDS)


def test_any_two_strengths_are_compared(rng: np.random.Generator) -> None:
    """By hand: the mean at the one minus that at the other; the slope is least squares."""
    cube = make_cube(rng, strengths=(-4.0, -1.0, 0.0, 1.0, 4.0))
    mean = cube["logit_diff"].mean("sample")
    for compare in ((-4.0, 4.0), (0.0, 4.0), (-1.0, 1.0)):
        cube["logit_diff"].attrs["compare"] = list(compare)
        delta = reduce(cube, 20)["estimate"].sel(estimand="delta")
        wanted = mean.sel(strength=compare[1]) - mean.sel(strength=compare[0])
        np.testing.assert_allclose(delta, wanted.transpose(*delta.dims), atol=1e-5)
    cube["logit_diff"].attrs["compare"] = "slope"
    delta = reduce(cube, 20)["estimate"].sel(estimand="delta")
    slope = mean.polyfit("strength", 1)["polyfit_coefficients"].sel(degree=1)
    np.testing.assert_allclose(delta, slope.transpose(*delta.dims), atol=1e-5)


def test_items_without_a_value_somewhere_are_left_out_for_every_model(cube: xr.Dataset) -> None:
    both = second_measure(cube)
    grid = both["score"].copy(deep=True).drop_vars("cell_status")
    grid["score"].loc[{"model": "small", "layer": 3, "strength": 1.0, "sample": [2, 5]}] = np.nan
    view = cells_of_every_measure(both.with_tables({"score": grid}), n_resamples=20).view("score")
    n_items = dict(zip(view["concept"].values, view["n_items"].values, strict=True))
    assert n_items == {"honesty": 22, "humour": 28}
    kept = [i for i in range(24) if i not in (2, 5)]
    of_kept = both["score"]["score"].sel(concept="honesty", model="large", sample=kept)
    wanted = (of_kept.sel(strength=1.0) - of_kept.sel(strength=-1.0)).mean("sample")
    found = view["estimate"].sel(concept="honesty", model="large", estimand="delta")
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_another_measure_without_the_compared_strengths_is_left_out(cube: xr.Dataset) -> None:
    """It cannot keep the measure that is asked for from its conclusions, nor select its layers."""
    both = second_measure(cube, layer_by="logit_diff")
    cube["logit_diff"].attrs["compare"] = [-3.0, 3.0]
    wide = both.with_tables({"logit_diff": cube})
    with pytest.raises(ValueError, match=r"logit_diff has the strengths .* it lacks -3, \+3"):
        cells_of_every_measure(wide, n_resamples=20)
    found = cells_of_every_measure(wide, n_resamples=20, measure="score")
    assert found.measures == ["score"]
    assert (found.view("score")["selected_layer"] == 3).all()


def test_a_concept_that_the_selecting_measure_lacks_says_so_itself(cube: xr.Dataset) -> None:
    both = second_measure(cube, layer_by="logit_diff")
    part = both.with_tables({"logit_diff": cube.sel(concept=["honesty"])})
    view = cells_of_every_measure(part, n_resamples=20).view("score")
    said = {
        c: set(view["selected_reason"].sel(concept=c).values.flat) for c in ("honesty", "humour")
    }
    assert said["humour"] == {REASONS["no_selection"]}
    assert REASONS["no_selection"] not in said["honesty"]
    assert view["selected_estimate"].sel(concept="humour").isnull().all()
    assert view["selected_estimate"].sel(concept="honesty", estimand="delta").notnull().all()
