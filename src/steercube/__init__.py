"""Steering sweeps as one labelled cube, and the conclusions that can be drawn from them.

Data flows one way::

    concepts + models -> collect -> cube -> cells -> conclusions -> report -> paper

`steercube.cube` (samples) and `steercube.cells` (statistics) are the two contracts: the stages
before and after one of these files share nothing but the file.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("steercube")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "unknown"
