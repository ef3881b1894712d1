"""`import steercube`: quick, complete, and what completion shows is what is meant for use."""

import pydoc
import subprocess
import sys
from importlib import import_module

import pytest

import steercube as sc

HEAVY = ("torch", "transformers", "pymc", "arviz", "matplotlib", "scipy", "statsmodels")
OF_THE_ISSUE = {"decoder", "load", "concept", "extract", "sweep", "study", "steer", "open"}


def test_importing_it_imports_nothing_heavy() -> None:
    """Nor does anything else of its own than the accessor; xarray's own imports are allowed."""
    script = (
        "import sys, xarray; before = set(sys.modules); import steercube; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {"steercube", "steercube.accessor"}


def test_every_name_is_a_function_with_a_docstring() -> None:
    assert set(sc.__all__) >= OF_THE_ISSUE
    assert set(dir(sc)) == {*sc.__all__, "__version__"}
    for name in sc.__all__:
        function = getattr(sc, name)
        assert callable(function)
        assert len(function.__doc__.splitlines()) > 2
    with pytest.raises(AttributeError, match="no attribute 'sweeps'"):
        _ = sc.sweeps  # type: ignore[attr-defined]


def test_no_submodule_hides_a_function() -> None:
    """`import steercube.x` would put the module where the function x is looked for."""
    from pathlib import Path

    folder = Path(sc.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} | {p.name for p in folder.iterdir()}
    assert not modules & set(sc.__all__)


def test_help_reads_as_a_page() -> None:
    page = pydoc.plain(pydoc.render_doc(sc))
    for name in OF_THE_ISSUE:
        assert f"sc.{name}(" in page
    assert "strengths" in pydoc.plain(pydoc.render_doc(sc.sweep)).splitlines()[2]


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the function is called: on a laptop without torch, `help(steercube)` must still work."""
    for module in ("from_python", "steer"):
        monkeypatch.setitem(sys.modules, f"steercube.collect.{module}", None)
    assert "needs more packages" in pydoc.plain(pydoc.render_doc(sc))
    with pytest.raises(ImportError, match=r"steercube.sweep needs more packages.*\[collect\]"):
        sc.sweep()  # type: ignore[call-arg]


USERS_OWN = (
    "files",
    "notebook",
    "accessor",
    "concept_rows",
    "responses",
    "cube",
    "cells",
    "measures",
    "contract",
    "concepts",
    "models",
    "contrast",
    "collect.from_python",
    "collect.steer",
    "collect.plan",
)
"""The modules that docs and docstrings send a user to."""


@pytest.mark.parametrize("name", USERS_OWN)
def test_what_a_module_offers_is_listed_and_there(name: str) -> None:
    module = import_module(f"steercube.{name}")
    assert len(module.__all__) == len(set(module.__all__)) > 0
    for one in module.__all__:
        assert not one.startswith("_")
        assert hasattr(module, one)
