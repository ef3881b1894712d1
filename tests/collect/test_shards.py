from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from steercube.collect.consolidate import consolidate
from steercube.collect.shards import find_shard, held, save_shard


@pytest.fixture
def shard() -> xr.Dataset:
    return xr.Dataset({"value": ("sample", np.arange(4.0))})


SETTINGS = {"model": "tiny", "strengths": [-1, 0, 1]}


def test_a_shard_is_found_again_with_its_settings(tmp_path: Path, shard: xr.Dataset) -> None:
    path = tmp_path / "a" / "samples.nc"
    assert find_shard(path, SETTINGS) is None
    save_shard(shard, path, SETTINGS, concept="honesty")
    found = find_shard(path, dict(reversed(SETTINGS.items())))
    assert found is not None
    xr.testing.assert_equal(found, shard)
    assert found.attrs["concept"] == '"honesty"'


def test_a_shard_of_other_settings_is_refused_by_name(tmp_path: Path, shard: xr.Dataset) -> None:
    path = tmp_path / "samples.nc"
    save_shard(shard, path, SETTINGS)
    with pytest.raises(ValueError, match=r"strengths: \[-1, 0, 1\] there, \[-2, 0, 2\] now") as e:
        find_shard(path, SETTINGS | {"strengths": [-2, 0, 2]})
    assert str(path) in str(e.value)
    assert "model" not in str(e.value).split("(")[1]


@pytest.mark.parametrize("kept", [0.5, 0.0], ids=["truncated", "empty"])
def test_a_truncated_shard_counts_as_none(tmp_path: Path, shard: xr.Dataset, kept: float) -> None:
    path = tmp_path / "samples.nc"
    save_shard(shard, path, SETTINGS)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert find_shard(path, SETTINGS) is None


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path, shard: xr.Dataset) -> None:
    """HDF5 leaves unused bytes between its parts; a flip elsewhere makes the shard as none."""
    path = tmp_path / "samples.nc"
    save_shard(shard, path, SETTINGS)
    sound = path.read_bytes()
    n_found = 0
    for at in range(0, len(sound), 97):
        flipped = bytearray(sound)
        flipped[at] ^= 4
        path.write_bytes(flipped)
        found = find_shard(path, SETTINGS)
        n_found += found is None
        assert found is None or found.identical(shard.assign_attrs(found.attrs))
    assert n_found > 5


def test_the_second_in_a_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        held(tmp_path / "unit"),
        pytest.raises(BlockingIOError, match=r"is held by process \d+ on \S+ since 20"),
        held(tmp_path / "unit"),
    ):
        pass
    with held(tmp_path / "unit"), held(tmp_path / "other"):
        pass


def test_a_holder_that_is_not_written_down_yet_is_no_other_error(tmp_path: Path) -> None:
    with held(tmp_path):
        (tmp_path / "holder.json").write_text("")
        with pytest.raises(BlockingIOError, match=r"is held by process \? on \?"), held(tmp_path):
            pass
    assert not (tmp_path / "holder.json").exists()


def test_no_shards_are_no_cube(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model x concept whose shards are all there"):
        consolidate(tmp_path)
