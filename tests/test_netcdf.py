import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from steercube import netcdf


@pytest.fixture
def ds() -> xr.Dataset:
    rng = np.random.default_rng(1)
    return xr.Dataset(
        {
            "value": (("x", "y"), rng.normal(size=(40, 30)).astype("float32")),
            "whole": ("x", np.arange(40)),
            "flag": ("y", rng.random(30) < 0.5),
            "text": ("y", np.array(["", "é漢字 (A)\n", "z" * 40] * 10)),
        },
        coords={"x": np.arange(40), "y": [f"label {i}" for i in range(30)]},
        attrs={"title": "a file", "version": 1, "share": 0.5},
    )


def test_round_trip(ds: xr.Dataset, tmp_path: Path) -> None:
    netcdf.save(ds, tmp_path / "a.nc")
    back = netcdf.load(tmp_path / "a.nc")
    assert back.drop_attrs(deep=False).identical(ds.drop_attrs(deep=False))
    assert {k: back.attrs[k] for k in ds.attrs} == ds.attrs
    assert type(back.attrs["version"]) is int


def test_digest_does_not_depend_on_the_file_and_sees_every_part(
    ds: xr.Dataset, tmp_path: Path
) -> None:
    sha = netcdf.save(ds, tmp_path / "a.nc")
    assert sha == netcdf.digest(ds) == netcdf.digest(netcdf.load(tmp_path / "a.nc"))
    changed = [
        ds.assign_attrs(title="another"),
        ds.assign(value=ds["value"] * 2),
        ds.rename(value="values"),
        ds.assign_coords(x=ds["x"] + 1),
    ]
    assert sha not in {netcdf.digest(other) for other in changed}


def groups_with(ds: xr.Dataset) -> dict[str, xr.Dataset]:
    """Two groups of which one lies in the other, and labels of theirs in the root."""
    root = ds[["text"]].drop_attrs().assign_attrs(title="a file of groups")
    bare = ds.drop_vars("text").drop_attrs()
    return {netcdf.ROOT: root, "one": bare, "one/within": bare[["value"]], "two/within": bare}


def test_groups_are_read_as_they_were_written(ds: xr.Dataset, tmp_path: Path) -> None:
    """Also one within a group that holds nothing itself."""
    groups = groups_with(ds)
    sha = netcdf.save(groups, tmp_path / "a.nc")
    back = netcdf.load_groups(tmp_path / "a.nc")
    assert back[netcdf.ROOT].attrs.pop(netcdf.DIGEST) == sha == netcdf.digest(groups)
    assert set(back) == set(groups)
    for path, group in groups.items():
        assert back[path].identical(group)
    assert netcdf.load_attrs(tmp_path / "a.nc")["title"] == "a file of groups"


def test_the_digest_sees_every_group_and_its_name_but_not_their_order(ds: xr.Dataset) -> None:
    groups = groups_with(ds)
    sha = netcdf.digest(groups)
    assert netcdf.digest(dict(reversed([*groups.items()]))) == sha
    renamed = {"three" if path == "one" else path: group for path, group in groups.items()}
    changed = [groups | {"one": groups["one"].assign(flag=~ds["flag"])}, renamed]
    changed += [{path: groups[path] for path in groups if path != left} for left in groups if left]
    assert sha not in {netcdf.digest(other) for other in changed}
    assert netcdf.digest({netcdf.ROOT: ds}) == netcdf.digest(ds)


def test_a_file_of_groups_is_not_read_as_one_table(ds: xr.Dataset, tmp_path: Path) -> None:
    netcdf.save(groups_with(ds), tmp_path / "a.nc")
    with pytest.raises(
        ValueError, match=r"a\.nc: holds the groups one, one/within, two/within, not"
    ):
        netcdf.load(tmp_path / "a.nc")


def test_a_value_changed_in_a_group_is_found(ds: xr.Dataset, tmp_path: Path) -> None:
    """By the content's SHA-256 where there is no last line, as another program would write it."""
    groups = groups_with(ds)
    sha = netcdf.save(groups, tmp_path / "a.nc")
    groups["one/within"] = groups["one/within"] * 2
    groups[netcdf.ROOT] = groups[netcdf.ROOT].assign_attrs({netcdf.DIGEST: sha})
    for path, group in groups.items():
        mode = "a" if path else "w"
        group.to_netcdf(tmp_path / "b.nc", engine="netcdf4", group=path or None, mode=mode)
    with pytest.raises(ValueError, match=r"b\.nc: its content has the SHA-256 .* was altered"):
        netcdf.load_groups(tmp_path / "b.nc")


def test_save_leaves_nothing_aside(ds: xr.Dataset, tmp_path: Path) -> None:
    netcdf.save(ds, tmp_path / "a.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_a_failing_save_keeps_the_earlier_file(
    ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netcdf.save(ds, tmp_path / "a.nc")
    before = (tmp_path / "a.nc").read_bytes()

    def fail(path: Path) -> dict[str, xr.Dataset]:
        raise ValueError("the copy read back differs")

    monkeypatch.setattr(netcdf, "load_groups", fail)
    with pytest.raises(ValueError, match="read back"):
        netcdf.save(ds.assign_attrs(title="new"), tmp_path / "a.nc")
    assert (tmp_path / "a.nc").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_a_folder_that_is_not_there_is_an_os_error(ds: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        netcdf.save(ds, tmp_path / "nowhere" / "a.nc")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        netcdf.load(tmp_path / "a.nc")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a netcdf file at all", b"\x89HDF\r\n\x1a\n" + b"\0" * 200],
    ids=["empty", "foreign", "header alone"],
)
def test_a_foreign_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nc: cannot be read as NetCDF4"):
        netcdf.load(tmp_path / "a.nc")


def test_a_netcdf_file_of_another_maker(ds: xr.Dataset, tmp_path: Path) -> None:
    ds.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    with pytest.raises(ValueError, match="was not written by steercube"):
        netcdf.load(tmp_path / "a.nc")


@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1])
def test_a_truncated_file(kept: float, ds: xr.Dataset, tmp_path: Path) -> None:
    netcdf.save(ds, tmp_path / "a.nc")
    whole = (tmp_path / "a.nc").read_bytes()
    (tmp_path / "a.nc").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"cannot be read|was altered"):
        netcdf.load(tmp_path / "a.nc")


def test_a_flipped_bit_is_an_error_or_changes_nothing(ds: xr.Dataset, tmp_path: Path) -> None:
    """Never other content: a bit may fall into space that the format leaves unused."""
    netcdf.save(ds, tmp_path / "a.nc")
    whole = (tmp_path / "a.nc").read_bytes()
    expected = netcdf.digest(ds)
    rng = np.random.default_rng(7)
    refused = 0
    for position in rng.integers(0, len(whole), size=120):
        broken = bytearray(whole)
        broken[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.nc").write_bytes(broken)
        try:
            assert netcdf.digest(netcdf.load(tmp_path / "b.nc")) == expected
        except ValueError:
            refused += 1
    assert refused > 20


def test_netcdf4_is_needed_only_where_a_file_is_read_or_written() -> None:
    """A bare GPU machine has none, and a sweep in memory needs no file."""
    program = """
import sys
sys.modules["netCDF4"] = sys.modules["cftime"] = None
import numpy as np, xarray as xr
import steercube.collect.run
from steercube import netcdf
netcdf.digest(xr.Dataset({"x": ("i", np.arange(3))}))
try:
    netcdf.save(xr.Dataset(), "never.nc")
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "netCDF4", done.stderr


def test_a_checkout_that_is_not_installed_has_no_version_but_works() -> None:
    program = """
from importlib import metadata
def version(name, of=metadata.version):
    if name == "steercube":
        raise metadata.PackageNotFoundError(name)
    return of(name)
metadata.version = version
import steercube
print(steercube.__version__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "unknown", done.stderr
