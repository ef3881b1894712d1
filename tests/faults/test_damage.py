"""Files cut off, flipped, swapped, doubled or stale: refused by name, or the same data."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import children
import numpy as np
import pytest
import xarray as xr
from builders import make_cube, reduce_to_cells
from children import CONCEPTS, SHARDS, Faults, collected

from steercube import netcdf
from steercube.cells import Cells, open_cells, save_cells
from steercube.collect.consolidate import consolidate
from steercube.collect.run import shards_of, write_cube
from steercube.collect.shards import find_shard, save_shard, settings_of
from steercube.cube import Cube, open_cube, save_cube

RNG = np.random.default_rng(77)
QUIET = {"report": lambda line: None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collected(tmp_path_factory.mktemp("whole"), concepts=CONCEPTS)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole.parent, tmp_path / "copy")
    return tmp_path / "copy" / "mine.nc"


def unit_of(out: Path, concept: str = "honesty") -> Path:
    return shards_of(out) / "tiny-llama" / concept


@pytest.fixture(scope="module")
def files(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    cube = make_cube(np.random.default_rng(1))
    save_cube(cube, folder / "cube.nc")
    save_cells(reduce_to_cells(cube, n_resamples=20, **QUIET), folder / "mine.cells.nc")
    return {
        "cube": folder / "cube.nc",
        "cells": folder / "mine.cells.nc",
        "shard": unit_of(whole) / SHARDS[1],
        "generations": unit_of(whole) / SHARDS[-1],
        "vectors": unit_of(whole) / "vectors.nc",
        "all vectors": whole.with_name("mine.vectors.nc"),
    }


Content = Cube | Cells | xr.Dataset
OPENERS: dict[str, Callable[[Path], Content]] = {"cube": open_cube, "cells": open_cells}


def opened(kind: str, path: Path) -> Content:
    return OPENERS.get(kind, netcdf.load)(path)


def outcome(kind: str, path: Path, sound: Content) -> str:
    """`refused` by name, `same` data, or else what is wrong."""
    try:
        found = opened(kind, path)
    except ValueError as error:
        return "refused" if str(path) in str(error) else f"refused without its name: {error}"
    return "same" if found.identical(sound) else "other data"


def as_shard(path: Path, sound: xr.Dataset) -> str:
    """What `find_shard` makes of it."""
    found = find_shard(path, settings_of(sound))
    if found is None:
        return "refused"
    return "same" if found.identical(sound) else "other data"


def tried(line: Any, kind: str, path: Path, sound: Content, what: str) -> str:
    became = {outcome(kind, path, sound)}
    if isinstance(sound, xr.Dataset) and "settings" in sound.attrs:
        became.add(as_shard(path, sound))
    line.tried(f"{kind}, {what}: {became}", silently_wrong=not became <= {"refused", "same"})
    return became.pop()


@pytest.mark.parametrize(
    "kind", ["cube", "cells", "shard", "generations", "vectors", "all vectors"]
)
def test_a_file_that_was_cut_off(
    kind: str, files: dict[str, Path], tmp_path: Path, fault: Faults
) -> None:
    line = fault("truncated")
    content, sound = files[kind].read_bytes(), opened(kind, files[kind])
    lengths = [0, 1, 8, 100, *RNG.integers(101, len(content) - 1, 16)]
    lengths += [len(content) - k for k in (1, 2, 40, 66, 70, 83, 84, 200)]
    path = tmp_path / files[kind].name
    for length in lengths:
        path.write_bytes(content[:length])
        became = tried(line, kind, path, sound, f"{length} of {len(content)} bytes")
        # Less than all of the last line, which says what the others should be, is no data.
        assert became == "refused" or len(content) - length > 65
    line = fault("overwritten with zeros")
    for length in (len(content), 4096, 512):
        start = int(RNG.integers(0, len(content) - length + 1))
        path.write_bytes(content[:start] + bytes(length) + content[start + length :])
        tried(line, kind, path, sound, f"{length} bytes from {start}")


def classes(content: bytes) -> dict[str, np.ndarray]:
    """Positions of each class of bytes in an HDF5 file with its last line."""
    at = content.rfind(netcdf.SEAL)
    body = np.frombuffer(content[:at], np.uint8)
    is_text = np.zeros(len(body), dtype=bool)
    for found in re.finditer(rb"[ -~]{4,}", content[:at]):
        is_text[found.start() : found.end()] = True
    names = [n.encode() for n in ("content_sha256", "_FillValue", "long_name", "DIMENSION_LIST")]
    is_name = np.zeros(len(body), dtype=bool)
    for name in names:
        for found in re.finditer(re.escape(name), content[:at]):
            is_name[found.start() : found.end()] = True
    position = np.arange(len(body))
    return {
        "superblock and root": position[:200],
        "attribute names": position[is_name],
        "attribute values": position[is_text & ~is_name],
        "data and structure": position[(body != 0) & ~is_text],
        "unused": position[(body == 0) & ~is_text],
        "last line": np.arange(at, len(content)),
    }


@pytest.mark.parametrize(
    "kind", ["cube", "cells", "shard", "generations", "vectors", "all vectors"]
)
def test_a_flipped_bit(kind: str, files: dict[str, Path], tmp_path: Path, fault: Faults) -> None:
    line = fault("flipped bit")
    content, sound = files[kind].read_bytes(), opened(kind, files[kind])
    path = tmp_path / files[kind].name
    for name, positions in classes(content).items():
        for at in RNG.choice(positions, 12):
            broken = bytearray(content)
            broken[at] ^= 1 << int(RNG.integers(8))
            path.write_bytes(broken)
            became = tried(line, kind, path, sound, f"{name} at {at}")
            assert became == "refused" or name == "last line"


def test_a_flipped_bit_in_a_file_of_before_the_last_line(
    files: dict[str, Path], tmp_path: Path, fault: Faults
) -> None:
    """Its data are guarded by checksums and the content's SHA-256, as they were then."""
    line = fault("flipped bit")
    content, sound = files["cube"].read_bytes(), open_cube(files["cube"])
    old = content[: content.rfind(netcdf.SEAL)]
    path = tmp_path / "cube.nc"
    path.write_bytes(old)
    assert outcome("cube", path, sound) == "same"
    of = classes(content)
    for name in ("superblock and root", "attribute names", "attribute values"):
        for at in RNG.choice(of[name], 10):
            broken = bytearray(old)
            broken[at] ^= 1 << int(RNG.integers(8))
            path.write_bytes(broken)
            tried(line, "cube", path, sound, f"without a last line, {name} at {at}")


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


def test_a_file_of_another_kind(
    files: dict[str, Path], copy: Path, tmp_path: Path, fault: Faults
) -> None:
    """Where a cube, cells or a shard should be; nothing is read, and no such file replaced."""
    line = fault("foreign file")
    another = tmp_path / "another.nc"
    xr.Dataset({"value": ("x", np.arange(3.0))}).to_netcdf(another, engine="netcdf4")
    settings = settings_of(netcdf.load(files["shard"]))
    foreign: dict[str, bytes] = {
        "text": b"model,concept\n1,2\n",
        "a picture": PNG,
        "another maker's NetCDF": another.read_bytes(),
        **{name: path.read_bytes() for name, path in files.items()},
    }
    for name, content in foreign.items():
        path = tmp_path / "here.nc"
        path.write_bytes(content)
        for expected, opener in {
            **OPENERS, "shard": partial(find_shard, settings=settings)
        }.items():  # fmt: skip
            if name == expected:
                continue
            try:
                found = opener(path)
            except ValueError as error:
                read, named = False, str(path) in str(error)
            else:
                read, named = found is not None, True
            line.tried(f"{name} for a {expected}", silently_wrong=read or not named)
        assert path.read_bytes() == content
    shard = unit_of(copy) / SHARDS[2]
    sound_shard = shutil.copy(shard, tmp_path / "sound.nc")
    before = copy.read_bytes()
    for name in ("cube", "cells", "all vectors"):
        shutil.copy(files[name], shard)
        for going_on in (
            partial(collected, copy.parent, concepts=CONCEPTS),
            partial(write_cube, copy),
        ):
            with pytest.raises(ValueError, match=re.escape(str(shard))):
                going_on()
            kept = shard.read_bytes() == files[name].read_bytes() and copy.read_bytes() == before
            line.tried(f"{name} among the shards", lost=not kept)
    shutil.copy(sound_shard, shard)
    shutil.copy(shard, unit_of(copy) / "generations-0000-0001.nc")
    with pytest.raises(ValueError, match=r"generations-0000-0001\.nc is not the shard that"):
        consolidate(shards_of(copy))
    line.tried("samples named as generations")


def spoiled(out: Path) -> Iterator[tuple[str, Path]]:
    """Every shard of a unit damaged in some way, one after the other."""
    for i, name in enumerate(SHARDS):
        path = unit_of(out) / name
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[int(RNG.integers(len(content)))] ^= 16
        damaged = [content[: len(content) // 2], b"", bytes(flipped), PNG][i % 4]
        path.write_bytes(damaged)
        yield ["truncated", "truncated", "flipped bit", "foreign file"][i % 4], path


def test_a_damaged_shard_is_named_and_made_again(whole: Path, copy: Path, fault: Faults) -> None:
    before = copy.read_bytes()
    for name, path in spoiled(copy):
        line = fault(name)
        others = {p: p.stat().st_mtime_ns for p in shards_of(copy).rglob("*.nc") if p != path}
        with pytest.raises(ValueError, match=re.escape(str(path))):
            write_cube(copy, **QUIET)
        line.tried(f"consolidate with {path.name}", lost=copy.read_bytes() != before)
        said: list[str] = []
        collected(copy.parent, concepts=CONCEPTS, report=said.append)
        named = f"{path} is damaged, and is made again" in said
        same = open_cube(copy).identical(open_cube(whole))
        kept = all(p.stat().st_mtime_ns == at for p, at in others.items())
        line.tried(f"resume with {path.name}", lost=not kept, silently_wrong=not (same and named))
        before = copy.read_bytes()


def refused(line: Any, copy: Path, what: str, *named: str, resume: bool = True) -> None:
    """Both ways to a cube say what is wrong, and leave the cube there was."""
    before = copy.read_bytes()
    ways = {"consolidate": partial(write_cube, copy, **QUIET)}
    if resume:
        ways["resume"] = partial(collected, copy.parent, concepts=CONCEPTS)
    for way, going_on in ways.items():
        try:
            going_on()
            said = "nothing"
        except ValueError as error:
            said = str(error)
        told = all(name in said for name in named)
        lost = copy.read_bytes() != before
        line.tried(f"{what}, {way}: {said[:300]}", lost=lost, silently_wrong=not told)


def test_a_shard_that_stands_twice(whole: Path, tmp_path: Path, fault: Faults) -> None:
    line = fault("duplicate shard")
    for i, kind in enumerate(("samples", "generations")):
        names = [name for name in SHARDS if name.startswith(kind)]
        again = f"{kind}-0000-0001 (copy).nc"
        for what, source, target, said, resume in (
            ("under two names", names[0], again, again, True),
            ("over another chunk", names[0], names[1], names[1], True),
        ):
            folder = tmp_path / f"{i} {what}"
            shutil.copytree(whole.parent, folder)
            unit = unit_of(folder / "mine.nc")
            shutil.copy(unit / source, unit / target)
            refused(line, folder / "mine.nc", f"{kind} {what}", said, resume=resume)


def test_a_chunk_that_overlaps_another(whole: Path, copy: Path, fault: Faults) -> None:
    """As of a run with another --chunk: samples 1 and 2 beside 0, 1 and 2, 3."""
    line = fault("duplicate shard")
    unit = unit_of(copy)
    first, second = (netcdf.load(unit / name) for name in SHARDS[1:3])
    between = xr.concat(
        [first.isel(sample=[1]), second.isel(sample=[0])],
        dim="sample",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="override",
    )
    save_shard(between, unit / "samples-0001-0002.nc", settings_of(first), samples=list(range(6)))
    refused(line, copy, "overlapping", "samples-0001-0002.nc")


def test_a_chunk_of_another_unit(whole: Path, tmp_path: Path, fault: Faults) -> None:
    """Its samples would make up the number, and its values look like any others."""
    line = fault("shard of another unit")
    for i, name in enumerate(SHARDS):
        folder = tmp_path / str(i)
        shutil.copytree(whole.parent, folder)
        out = folder / "mine.nc"
        shutil.copy(unit_of(out, "humour") / name, unit_of(out) / name)
        refused(line, out, name, "honesty", name.split("-")[0])
    folder = tmp_path / "renamed"
    shutil.copytree(whole.parent, folder)
    out = folder / "mine.nc"
    shutil.copytree(unit_of(out), unit_of(out, "pride"))
    refused(line, out, "a unit under another name", "pride", resume=True)


STALE: dict[str, Any] = {
    "strengths": [-2.0, 0.0, 2.0],
    "dtype": "bfloat16",
    "revision": "another",
    "positions": "answer",
    "convention": "study",
    "seed": 1,
    "steercube": "0.0.1",
    "concept_sha256": "0" * 64,
    "vectors_sha256": "0" * 64,
    "chat_template_sha256": "0" * 64,
    "n_items": 99,
    "layers": [1, 2],
    "directions": ["own", "random/0"],
}


def test_a_stale_shard(copy: Path, fault: Faults) -> None:
    line = fault("stale shard")
    path = unit_of(copy) / SHARDS[2]
    content, sound = path.read_bytes(), netcdf.load(path)
    attrs = {name: json.loads(sound.attrs[name]) for name in ("samples", "model", "concept")}
    for name, value in STALE.items():
        save_shard(sound, path, settings_of(sound) | {name: value}, **attrs)
        refused(line, copy, name, SHARDS[2], name)
    path.write_bytes(content)
    path = unit_of(copy) / SHARDS[-1]
    sound = netcdf.load(path)
    for name, value in {"max_new_tokens": 9, "temperature": 0.5, "steercube": "0.0.1"}.items():
        save_shard(sound, path, settings_of(sound) | {name: value}, **attrs)
        refused(line, copy, name, SHARDS[-1], name)


def test_what_is_not_all_there_is_left_out_and_said(whole: Path, copy: Path, fault: Faults) -> None:
    line = fault("missing shard")
    for name in SHARDS:
        path = unit_of(copy) / name
        content = path.read_bytes()
        path.unlink()
        copy.unlink(missing_ok=True)
        said: list[str] = []
        write_cube(copy, report=said.append)
        told = [text for text in said if text.startswith("left out") and str(path.parent) in text]
        line.tried(f"consolidate without {name}: {said}", silently_wrong=len(told) != 1)
        path.write_bytes(content)
    write_cube(copy, **QUIET)
    line.tried("all there again", lost=not open_cube(copy).identical(open_cube(whole)))


def test_chunks_under_each_others_names_are_the_same_data(
    whole: Path, copy: Path, fault: Faults
) -> None:
    """What a shard holds is said within it; going on asks for the names as well."""
    line = fault("renamed shard")
    one, two = (unit_of(copy) / name for name in SHARDS[1:3])
    one.rename(one.with_suffix(".x"))
    two.rename(one)
    one.with_suffix(".x").rename(two)
    write_cube(copy, **QUIET)
    same = open_cube(copy).identical(open_cube(whole))
    line.tried("consolidate", silently_wrong=not same)
    with pytest.raises(ValueError, match=r"items_sha256: ") as error:
        collected(copy.parent, concepts=CONCEPTS)
    line.tried("resume", silently_wrong=str(one) not in str(error.value))
    assert children.main(["consolidate", "--out", str(copy)]) == 0
