"""A user's own directions, from a file, to sweep beside each concept's vector.

The file is .npz or .safetensors, with an array for each name: (hidden) for one vector at all
layers, or (layer, hidden). It may also be the `.vectors.nc` of another collection, whose concepts'
own vectors are then the directions. At strength 1 a vector is added as it is, without scaling.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load_file

from steercube import netcdf
from steercube.collect.plan import CONTROLS
from steercube.collect.vectors import OWN
from steercube.contract import NAMES_IN_A_GRID
from steercube.schema import name_violations, raise_if_any
from steercube.words import did_you_mean

OF_VERSION_1 = "concept"
"""The name of a concept's own vector in files of version 1."""
FORMATS = (".npz", ".safetensors", ".nc")


def read_directions(
    path: str | Path, *, model: str, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The directions in a file by name, each float32 (layer, hidden).

    `shape` is the number of layers and the hidden size of `model`; of a `.vectors.nc` with several
    models its vectors are read. Raises FileNotFoundError, and ValueError that lists every direction
    with an unusable name, another shape, or values that are all zero or not finite.
    """
    return checked_directions(_arrays(path, model), model=model, shape=shape, what=str(path))


def checked_directions(
    arrays: Mapping[str, np.ndarray], *, model: str, shape: tuple[int, int], what: str
) -> dict[str, np.ndarray]:
    """Directions from a file or from memory, as `read_directions` gives them; `what` names them."""
    of_text = [name for name, values in arrays.items() if values.dtype.kind not in "fiu"]
    raise_if_any(
        [f"direction {name!r} holds {arrays[name].dtype}, not real numbers" for name in of_text],
        what=what,
    )
    found = {name: values.astype("float32") for name, values in arrays.items()}
    n_layers, hidden = shape
    problems = [] if found else ["holds no direction"]
    for name, values in found.items():
        family, _, member = name.partition("/")
        problems += name_violations("direction", [family, *([member] if "/" in name else [])])
        if family in (OWN, *CONTROLS) or member == OWN:
            problems.append(f"direction {name!r} has the name of a control; rename it")
        elif family in NAMES_IN_A_GRID:
            problems.append(f"direction {name!r} has another meaning in a cube; rename it")
        if values.shape not in ((hidden,), shape):
            problems.append(
                f"direction {name!r} has the shape {values.shape}; {model} needs ({hidden},), or "
                f"({n_layers}, {hidden}) for a vector of each block"
            )
        elif not np.isfinite(values).all() or not values.any():
            problems.append(f"direction {name!r} is zero, or not finite")
    raise_if_any(problems, what=what)
    return {name: np.broadcast_to(values, shape).copy() for name, values in found.items()}


def layers_by_number(vectors: Any, shape: tuple[int, int], *, direction: str = OWN) -> np.ndarray:
    """One direction as an array (layer, hidden), float32, layers in the order of the blocks.

    `vectors` is a Dataset with `vector`, a DataArray, or an array or tensor of any device and
    dtype, (hidden) for the same at all layers. Where layers are labelled, the labels count, not
    their order. Raises ValueError for other shapes, labels, directions, or values not finite.
    """
    table = vectors["vector"] if isinstance(vectors, xr.Dataset) else vectors
    if isinstance(table, xr.DataArray):
        table = _of_one(_of_direction(table, direction), shape)
        table = table.transpose(..., "layer", "hidden", missing_dims="ignore")
        if "layer" in table.indexes:
            labels = table["layer"].values.tolist()
            if sorted(labels) != list(range(shape[0])):
                raise ValueError(
                    f"the vectors are of the layers {labels}; this model needs one of each of its "
                    f"{shape[0]} blocks, 0 to {shape[0] - 1}"
                )
            table = table.sortby("layer")
    elif direction != OWN:
        raise ValueError(f"direction = {direction!r}, but the vectors are an array without names")
    if isinstance(table, torch.Tensor):
        table = table.detach().float().cpu()
    values = np.asarray(table).astype("float32")
    if values.shape not in (shape[1:], shape):
        raise ValueError(
            f"the vectors have the shape {values.shape}; this model needs ({shape[1]},), or "
            f"{shape} for a vector of each block"
        )
    if not np.isfinite(values).all():
        raise ValueError("the vectors hold values that are not finite")
    return np.broadcast_to(values, shape).copy()


def _of_one(table: xr.DataArray, shape: tuple[int, int]) -> xr.DataArray:
    """The vectors of one model and concept, without the padding to larger models."""
    several = [dim for dim in ("model", "concept") if table.sizes.get(dim, 1) > 1]
    if several:
        chosen = ", ".join(f"{dim}={table[dim].values[0]!r}" for dim in several)
        raise ValueError(f"these are vectors of several: choose one, as vectors.sel({chosen})")
    table = table.squeeze([dim for dim in ("model", "concept") if dim in table.dims], drop=True)
    if table.shape != shape and {"layer", "hidden"} == set(table.dims):
        table = table.dropna("layer", how="all").dropna("hidden", how="all")
    return table


def _of_direction(table: xr.DataArray, direction: str) -> xr.DataArray:
    if "direction" not in table.coords and "direction" not in table.dims:
        names = [OWN]
    else:
        names = [str(name) for name in np.atleast_1d(table["direction"].values)]
    if direction not in names and not (len(names) == 1 and direction == OWN):
        raise ValueError(
            f"direction {direction!r} is none of {', '.join(names)}{did_you_mean(direction, names)}"
        )
    if "direction" not in table.dims:
        return table
    return table.sel(direction=direction) if direction in names else table.isel(direction=0)


def _arrays(path: str | Path, model: str) -> Mapping[str, np.ndarray]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    suffix = Path(path).suffix
    if suffix == ".nc":
        return _of_collection(path, model)
    if suffix not in FORMATS:
        raise ValueError(f"{path}: is none of {', '.join(FORMATS)}")
    try:
        return dict(np.load(path)) if suffix == ".npz" else load_file(path)
    except (OSError, EOFError, ValueError, BadZipFile, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _of_collection(path: str | Path, model: str) -> dict[str, np.ndarray]:
    """The concepts' own vectors of one model, by concept."""
    vectors = netcdf.load(path)
    if "vector" not in vectors or model not in vectors.get("model", ()):
        raise ValueError(f"{path}: holds no vectors of the model {model!r}")
    own = OWN if OWN in vectors["direction"] else OF_VERSION_1
    of_model = vectors["vector"].sel(model=model, direction=own)
    of_model = of_model.dropna("hidden", how="all").dropna("layer", how="all")
    return {
        str(concept): of_model.sel(concept=concept).transpose("layer", "hidden").values
        for concept in of_model["concept"].values
    }
