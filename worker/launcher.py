"""Several processes for one job, each of which does a share of every batch (worker/adaptation/parallel.py).

The process that the supervisor started forks them and watches over them: to the supervisor they are one. A request to stop goes to
the first. Where one dies, the others would wait for it: they are killed, and the watcher ends as that one did. Standard library
alone, since the forks come before torch.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from worker.sandbox import die_with

LAST_WORDS_S = 2.0
"""For the first process, once another failed: where all of them meet the same fault, it is the one that says so."""
TICK_S = 0.05


def share_out(processes: int) -> None:
    """Returns in each of the processes, which share cores and memory, with what parallel.py looks for in its environment; the
    watcher ends here."""
    group, watcher = Path(tempfile.mkdtemp(prefix="group-")) / "store", os.getpid()
    cores = len(os.sched_getaffinity(0))
    os.environ["MODALBRIDGE_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (most // processes, most))
    os.environ |= {"WORLD_SIZE": str(processes), "MODALBRIDGE_GROUP": str(group)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pids: list[int] = []
    for rank in range(processes):
        try:
            pid = os.fork()
        except OSError as error:  # no process or no memory to be had, for now: whoever started this one tries again
            print(f"process {rank} of {processes}: {error}", file=sys.stderr, flush=True)
            _end_as(signal.SIGKILL)
        if pid == 0:
            die_with(watcher)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return
        pids.append(pid)
    left = set(pids)
    signal.signal(signal.SIGTERM, lambda *_: _kill(left.intersection(pids[:1]), signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _end_as(_watch(pids[0], left))


def _watch(first: int, left: set[int]) -> int:
    """The wait status that speaks for all: the first process's, or of another that came to grief before it. left: emptied."""
    verdict: int | None = None
    until = 0.0
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG if until else 0)
        if pid == 0:
            if time.monotonic() > until:
                _kill(left, signal.SIGKILL)
            time.sleep(TICK_S)
            continue
        left.discard(pid)
        by_itself = os.WIFEXITED(status)
        if (pid == first and by_itself) or (verdict is None and (pid == first or status != 0)):
            verdict = status
            if pid == first or not by_itself:
                _kill(left, signal.SIGKILL)
            else:
                until = time.monotonic() + LAST_WORDS_S
    return verdict or 0


def _kill(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # those that are waited for are no longer in the set
            os.kill(pid, number)


def _end_as(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))
