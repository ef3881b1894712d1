"""`import steercube`: quick, complete, and what completion shows is what is meant for use."""

import pydoc
import subprocess
import sys

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
    monkeypatch.setitem(sys.modules, "steercube.collect.from_python", None)
    with pytest.raises(ImportError, match=r"steercube.sweep needs more packages.*\[collect\]"):
        _ = sc.sweep


def test_every_module_says_what_it_is_for() -> None:
    assert sc.__doc__ is not None
    assert "help(sc.sweep)" in sc.__doc__
