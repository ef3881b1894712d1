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
from safetensors import SafetensorError
from safetensors.numpy import load_file

from steercube import netcdf
from steercube.collect.plan import CONTROLS
from steercube.collect.vectors import OWN
from steercube.contract import NAMES_IN_A_GRID
from steercube.schema import name_violations, raise_if_any

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


def array_of(values: Any) -> np.ndarray:
    """A tensor of any device and dtype, a DataArray, or nested lists, as an array."""
    if isinstance(values, torch.Tensor):
        return values.detach().float().cpu().numpy()
    return np.asarray(values)


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
