"""The entry points. `nox -l` is the table of contents; `nox` alone runs lint and tests.

Every session installs the exact versions of constraints.txt. Arguments after `--` go to the
command that the session wraps, which also works by itself as `steercube <command>`.
"""

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.4.15"

PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *extras: str, groups: tuple[str, ...] = ()) -> None:
    """This package with some of its extras, and dependency groups, all as pinned."""
    package = f".[{','.join(extras)}]" if extras else "."
    session.install(
        *("-c", "constraints.txt", "-e", package),
        *nox.project.dependency_groups(PYPROJECT, *groups),
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Format, style and types of every file (about 1 min, no GPU)."""
    install(session, groups=("lint",))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, doctests included (about 10 min on two cores, no GPU)."""
    install(session, "stats", groups=("test",))
    session.run("pytest", *session.posargs)


@nox.session
def analyze(session: nox.Session) -> None:
    """Every study in data/ to paper/<study>/: tables, numbers, figures (under 1 min, no GPU)."""
    install(session)
    session.run("steercube", "analyze", *session.posargs)


@nox.session(name="import-study")
def import_study(session: nox.Session) -> None:
    """The published study to data/qwen3.nc, fetched (25 MB) or `-- --from FOLDER` (10 s)."""
    install(session)
    session.run("steercube", "import-study", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Seconds and memory of each stage of the analysis on the study (2 min, no GPU)."""
    install(session)
    session.run("python", "tests/bench.py", *session.posargs)
