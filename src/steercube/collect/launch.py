"""Start the processes of a collection on this machine, in the way that suits the model and GPUs.

`python -m steercube.collect.launch N collect ...` starts N processes of the command as torchrun
does, but when one fails it ends all with that one's message and exit code, and nothing else.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import torch

from steercube.collect.decoder import paper_of
from steercube.collect.rank import end_with_parent
from steercube.collect.ways import Way, best_way, ways
from steercube.models import Entry
from steercube.progress import Report

HINTS: dict[int, str] = {signal.SIGKILL: ", as the system does where the machine's memory is full"}
"""What a signal that ended a process may mean."""
KEPT = "finished work is kept (continue with --resume)"
SIZES = """
import torch
for gpu in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_properties(gpu).total_memory)
"""


def choose(entry: Entry, report: Report) -> Way | None:
    """The way to hold the model on this machine's GPUs, reported among all others; None without."""
    n_gpus, gpu = gpus()
    if not n_gpus:
        report(f"{entry.name}: no GPU here, so one process on the CPU")
        return None
    paper, can_be_spread = paper_of(entry)
    found = [way for way in ways(paper, n_gpus, gpu) if way.size <= 1 or can_be_spread]
    best = best_way(found)
    report(f"{entry.name} on {n_gpus} x {gpu / 1e9:.0f} GB: {best.words}")
    for way in found:
        report(
            f"  {way.words}: {way.weights / 1e9:.0f} GB of weights on each, "
            + (f"room for {way.rows} rows" if way.rows else "which do not fit")
        )
    return best


def gpus() -> tuple[int, float]:
    """How many GPUs torch sees, and the bytes of the smallest; asked in a process of its own.

    A process that has asked holds memory on the GPUs until it ends.
    """
    if not torch.cuda.device_count():
        return 0, 0.0
    asked = subprocess.run(
        (sys.executable, "-c", SIZES), capture_output=True, text=True, check=True
    )
    sizes = [float(size) for size in asked.stdout.split()]
    return len(sizes), min(sizes, default=0.0)


def start(n_processes: int, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `steercube ARGUMENTS` in `n_processes` processes; the exit code of the first to fail.

    Their environment is this one's with more variables.

    Raises KeyboardInterrupt after Ctrl-C, and what SIGTERM raises here, when they have ended.
    """
    command = (sys.executable, "-m", "steercube.collect.launch", str(n_processes), *arguments)
    # A terminal's Ctrl-C reaches this process alone, which passes it on.
    child = subprocess.Popen(command, start_new_session=True, env={**os.environ, **environment})
    stopped: KeyboardInterrupt | None = None
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt as now:
            stopped = now
            child.terminate()
    if stopped:
        raise stopped
    if code < 0:
        raise ConnectionError(f"the launcher was {_ended(-code)}")
    return code


def _ended(number: int) -> str:
    name = signal.Signals(number).name
    return f"ended by {name}{HINTS.get(number, '')}; {KEPT}"


def main(arguments: Sequence[str]) -> int:
    """The processes, from the words N and those of a steercube command."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    n_processes, *words = arguments
    end_with_parent()
    # Elastic would repeat below our message that a process has failed, with its own traceback.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(n_processes))))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(n_processes),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"steercube-{os.getpid()}",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "steercube", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it could not say why
            ended = _ended(-failure.exitcode)
            print(f"steercube: process {rank} of {n_processes} was {ended}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
