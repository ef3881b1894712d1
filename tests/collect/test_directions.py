from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

from steercube.collect.directions import read_directions
from steercube.cube import open_cube

SHAPE = (5, tiny.HIDDEN)
PLAN = replace(tiny.PLAN, controls=(), outcomes=("logit",), generation_layers="",
               generation_samples=None)  # fmt: skip


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "refusal": rng.normal(size=SHAPE).astype("float32"),
        "sae/12": rng.normal(size=tiny.HIDDEN).astype("float32"),
    }


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_gives_its_arrays(
    suffix: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / f"mine.{suffix}"
    np.savez(path, **arrays) if suffix == "npz" else save_file(arrays, path)
    found = read_directions(path, model="tiny", shape=SHAPE)
    np.testing.assert_array_equal(found["refusal"], arrays["refusal"])
    for layer in range(5):
        np.testing.assert_array_equal(found["sae/12"][layer], arrays["sae/12"])


def test_every_direction_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(
        path,
        random=np.ones(SHAPE),
        layer=np.ones(SHAPE),
        short=np.ones(3),
        zero=np.zeros(SHAPE),
        lost=np.full(SHAPE, np.nan),
    )
    with pytest.raises(ValueError, match="breaks 5 rule") as refused:
        read_directions(path, model="tiny", shape=SHAPE)
    for part in (
        "'random' has the name of a control",
        "'layer' has another meaning in a cube",
        "(3,); tiny needs (32,)",
        "'zero'",
        "'lost'",
    ):
        assert part in str(refused.value)


@pytest.mark.parametrize("name", ["mine.txt", "mine.npz", "mine.safetensors"])
def test_a_file_that_holds_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("no directions")
    with pytest.raises(
        ValueError, match=r"mine\.(txt: is none of|npz: cannot|safetensors: cannot)"
    ):
        read_directions(tmp_path / name, model="tiny", shape=SHAPE)


@pytest.mark.slow
def test_a_users_direction_does_what_the_same_concepts_vector_does(tmp_path: Path) -> None:
    """The concept's own vector under another name moves every logit alike."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = tiny.collected(tmp_path / "one", plan=PLAN)
    vectors = first.with_name("mine.vectors.nc")
    of_honesty = open_vectors(vectors, "honesty")
    np.savez(tmp_path / "twin.npz", twin=of_honesty)
    second = tiny.collected(tmp_path / "two", plan=PLAN, directions=tmp_path / "twin.npz")
    cube = open_cube(second)
    twin = cube["logit_diff/twin"]["logit_diff"].sel(direction="twin", concept="honesty")
    own = cube["logit_diff"]["logit_diff"].sel(concept="honesty")
    np.testing.assert_allclose(twin, own.transpose(*twin.dims), atol=1e-5)
    assert abs(own.sel(strength=2.0) - own.sel(strength=0.0)).max() > 0.01


@pytest.mark.slow
def test_vectors_of_a_collection_are_swept_on_every_other_concepts_items(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = tiny.collected(tmp_path / "one", plan=PLAN)
    second = tiny.collected(
        tmp_path / "two", plan=PLAN, directions=first.with_name("mine.vectors.nc")
    )
    cube = open_cube(second)
    assert set(cube.grids) >= {"logit_diff", "logit_diff/honesty", "logit_diff/humour"}
    assert cube["logit_diff/honesty"]["concept"].values.tolist() == ["humour"]
    assert cube["logit_diff/humour"]["concept"].values.tolist() == ["honesty"]


def test_a_direction_that_would_be_lost_on_a_concept_of_its_name_is_refused(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", honesty=arrays["refusal"])
    with pytest.raises(ValueError, match="'honesty' has the name of a concept"):
        tiny.collected(tmp_path, plan=PLAN, directions=tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", words=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="'words' holds <U1, not real numbers"):
        read_directions(tmp_path / "b.npz", model="tiny", shape=SHAPE)


@pytest.mark.slow
def test_other_directions_are_not_resumed_as_the_same(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", mine=arrays["refusal"])
    tiny.collected(tmp_path, plan=PLAN, directions=tmp_path / "a.npz")
    tiny.collected(tmp_path, plan=PLAN, directions=tmp_path / "a.npz", resume=True)
    np.savez(tmp_path / "b.npz", mine=2 * arrays["refusal"])
    with pytest.raises(ValueError, match="directions_sha256"):
        tiny.collected(tmp_path, plan=PLAN, directions=tmp_path / "b.npz", resume=True)


def open_vectors(path: Path, concept: str) -> np.ndarray:
    return read_directions(path, model="tiny-llama", shape=SHAPE)[concept]
