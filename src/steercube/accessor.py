"""`.steercube`: the statistics of a cube, of cells, or of a Dataset that is a grid of either.

Importing this module registers it for Datasets, and imports nothing but xarray.
"""

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from steercube.notebook import Study

__all__ = ["study_of"]


def study_of(source: Any) -> "Study":
    """The study of a cube, of cells, or of one grid of these, without a contrast."""
    from steercube.notebook import study

    return study(source)


xr.register_dataset_accessor("steercube")(study_of)  # type: ignore[no-untyped-call]
