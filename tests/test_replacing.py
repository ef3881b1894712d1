"""What lies where a cube is to be written is replaced only by a cube that holds all of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, grid_beside, make_cube, with_controls

from steercube import netcdf
from steercube.cube import Cube, as_cube, groups_of, open_cube, save_cube
from steercube.measures import Measure
from steercube.replacing import (
    lost_names,
    merge_files,
    names_of_the_contract,
    require_no_loss,
)

JUDGED, ONES = (
    Measure("judged"),
    xr.DataArray(np.ones((3, 2, 3)), dims=("model", "concept", "strength")),
)


def of_logits(change: Callable[[xr.Dataset], xr.Dataset]) -> Callable[[Cube], Cube]:
    return lambda cube: cube.with_tables({"logit_diff": change(cube["logit_diff"])})


@pytest.fixture
def out(cube: xr.Dataset, tmp_path: Path) -> Path:
    save_cube(cube, tmp_path / "mine.nc")
    return tmp_path / "mine.nc"


def test_the_same_or_more_may_take_its_place(
    cube: xr.Dataset, rng: np.random.Generator, out: Path
) -> None:
    said: list[str] = []
    for new in (cube, with_controls(cube, rng), make_cube(rng, layers=(2, 3, 4, 5, 6))):
        require_no_loss(out, as_cube(new), report=said.append)
    require_no_loss(out.with_name("none.nc"), as_cube(cube), report=said.append)
    assert not said


@pytest.mark.parametrize(
    ("annotated", "said"),
    [
        (lambda c: c.with_attrs({"note": "mind the gap"}), "its attribute 'note' would be lost"),
        (
            of_logits(lambda g: g.assign(liked=("model", [1, 0, 1]))),
            "its variable 'liked' would be lost",
        ),
        (
            of_logits(lambda g: g.assign(logit_diff=g["logit_diff"].assign_attrs(note="odd"))),
            "its attribute 'note' of 'logit_diff' would be lost",
        ),
        (
            lambda c: with_controls(c["logit_diff"], np.random.default_rng(0)),
            "small x honesty would have no logit_diff/random",
        ),
        (
            lambda c: Cube({**c, "judged": grid_beside(c["logit_diff"], JUDGED, judged=ONES)}),
            "its variable 'judged' would be lost",
        ),
    ],
    ids=["attribute", "variable", "attribute of a variable", "a control", "a measure"],
)
@pytest.mark.parametrize("written", ["by steercube", "by xarray"])
def test_what_somebody_added_is_not_lost(
    annotated: Callable[[Cube], Cube],
    said: str,
    written: str,
    cube: xr.Dataset,
    out: Path,
) -> None:
    changed = annotated(open_cube(out))
    if written == "by steercube":
        save_cube(changed, out)
    else:
        xr.Dataset(attrs=changed.attrs).to_netcdf(out, engine="netcdf4")
        for path, table in groups_of(changed).items():
            table.to_netcdf(out, engine="netcdf4", group=path or None, mode="a")
        said = r"mine\.nc: its content has the SHA-256 (?s:.*)It is not replaced: move it away"
    before = out.read_bytes()
    with pytest.raises(ValueError, match=said):
        require_no_loss(out, as_cube(cube))
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("less", "said"),
    [
        (lambda g: g.sel(layer=[3, 4]), "2 of its layers, starting with 5"),
        (lambda g: g.sel(strength=[-1.0, 1.0]), r"1 of its strengths, starting with 0\.0"),
        (lambda g: g.isel(sample=slice(20)), "4 of its items, starting with honesty/020"),
        (lambda g: g.isel(direction=[0]), "1 of its directions, starting with random/1"),
    ],
    ids=["layers", "strengths", "items", "directions"],
)
def test_a_grid_that_was_swept_with_more_is_not_replaced(
    less: Callable[[xr.Dataset], xr.Dataset], said: str, cube: xr.Dataset, out: Path
) -> None:
    """Even where the other grids of the cube are all there."""
    control = cube[["logit_diff", "cell_status"]]
    control = xr.concat([control] * 2, pd.Index(["random/0", "random/1"], name="direction"))
    control = control.transpose("direction", ...)
    for name in ("item_id", "letter", "item_valid", "depth"):
        control = control.assign_coords({name: cube[name]})
    held = Cube({"logit_diff": cube, "logit_diff/random": control}, cube.attrs)
    save_cube(held, out)
    require_no_loss(out, held)
    with pytest.raises(
        ValueError, match=f"small x honesty would have logit_diff/random without {said}"
    ):
        require_no_loss(out, held.with_tables({"logit_diff/random": less(control)}))


@pytest.mark.parametrize(
    "remains",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: bytes(len(content)),
    ],
    ids=["half", "the beginning", "nothing", "zeros"],
)
def test_remains_of_a_cube_may_be_replaced_and_it_is_said(
    remains: Callable[[bytes], bytes], cube: xr.Dataset, out: Path
) -> None:
    out.write_bytes(remains(out.read_bytes()))
    said: list[str] = []
    require_no_loss(out, as_cube(cube), report=said.append)
    assert len(said) == 1
    assert f"{out}: cannot be read" in said[0]
    assert said[0].endswith("It is replaced.")


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"model,concept\n1,2\n",
        lambda content: b"\x89PNG\r\n\x1a\n" + content,
        flipped,
    ],
    ids=["text", "a picture", "a flipped bit"],
)
def test_what_may_be_somebodys_is_not_replaced(
    change: Callable[[bytes], bytes], cube: xr.Dataset, out: Path
) -> None:
    """A file of another kind, or one that was altered, by a fault or on purpose."""
    out.write_bytes(change(out.read_bytes()))
    with pytest.raises(ValueError, match=r"mine\.nc: .*\n?It is not replaced: move it away"):
        require_no_loss(out, as_cube(cube))


def test_a_collected_cube_holds_nothing_but_what_a_run_makes_again() -> None:
    cube = open_cube(ROOT / "data" / "smollm2.nc")
    made = names_of_the_contract(cube.measures.values(), ["chat_template_sha256"])
    assert lost_names(cube, made) == []
    less = names_of_the_contract(cube.measures.values(), [])
    lost = lost_names(cube.with_attrs({"mine": "note"}), less)
    assert lost == [
        "its attribute 'chat_template_sha256' would be lost",
        "its attribute 'mine' would be lost",
    ]


def test_vectors_are_read_as_any_file(tmp_path: Path) -> None:
    """So that remains of any kind of file are known by the same error."""
    netcdf.save(xr.Dataset({"vector": ("x", np.arange(4.0))}), tmp_path / "v.nc")
    content = (tmp_path / "v.nc").read_bytes()
    (tmp_path / "v.nc").write_bytes(content[: len(content) // 3])
    with pytest.raises(netcdf.Remains):
        netcdf.load(tmp_path / "v.nc")
    (tmp_path / "v.nc").write_bytes(b"text")
    with pytest.raises(ValueError, match="of another kind") as error:
        netcdf.load(tmp_path / "v.nc")
    assert not isinstance(error.value, netcdf.Remains)


def test_files_are_merged_into_one(cube: xr.Dataset, tmp_path: Path) -> None:
    """Into a new file, then into one of those that are merged."""
    for model in cube["model"].values:
        save_cube(cube.sel(model=[model]), tmp_path / f"{model}.nc")
    paths = [tmp_path / f"{model}.nc" for model in ("small", "middle")]
    said: list[str] = []
    merged = merge_files(paths, tmp_path / "two.nc", report=said.append)
    assert said[0].startswith(f"wrote {tmp_path / 'two.nc'}\n\nA made-up sweep")
    opened = open_cube(tmp_path / "two.nc")
    assert list(opened) == list(merged) == ["logit_diff"]
    assert opened["logit_diff"].drop_attrs().equals(merged["logit_diff"].drop_attrs())
    merge_files(
        [tmp_path / "two.nc", tmp_path / "large.nc"], tmp_path / "two.nc", report=said.append
    )
    every = open_cube(tmp_path / "two.nc")["logit_diff"].sel(model=cube["model"].values)
    assert every.drop_attrs(deep=False).identical(cube.drop_attrs(deep=False))


def test_files_that_cannot_be_merged_are_named(cube: xr.Dataset, tmp_path: Path) -> None:
    one, two, out = (tmp_path / f"{name}.nc" for name in ("one", "two", "out"))
    save_cube(cube, one)
    other = cube.copy(deep=True)
    for name in ("logit_diff", "logprob_matching"):
        other[name].loc["small", "honesty", 3, 1.0, 0] -= 1
    save_cube(other, two)
    with pytest.raises(
        ValueError, match=r"one\.nc, .*two\.nc: merging(?s:.*)'logit_diff' differs at 1"
    ):
        merge_files([one, two], out)
    with pytest.raises(ValueError, match=r"needs at least two cubes; given: .*one\.nc"):
        merge_files([one], out)
    with pytest.raises(FileNotFoundError, match=r"none\.nc: no such file"):
        merge_files([one, tmp_path / "none.nc"], out)
    assert not out.exists()


def test_merging_replaces_no_cube_that_holds_more(cube: xr.Dataset, tmp_path: Path) -> None:
    for model in ("small", "middle"):
        save_cube(cube.sel(model=[model]), tmp_path / f"{model}.nc")
    save_cube(cube, tmp_path / "all.nc")
    paths = [tmp_path / "small.nc", tmp_path / "middle.nc"]
    with pytest.raises(
        ValueError, match=r"replacing .*all\.nc(?s:.*)large x honesty would have no"
    ):
        merge_files(paths, tmp_path / "all.nc")
