"""The service as processes of this machine: migrations, front end, worker. Whatever was started is ended."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

GRACE_S = 15
LISTENING = range(10_000, 32_768)
"""Ports below those of outgoing connections on Linux (net.ipv4.ip_local_port_range) and macOS."""
ROOT = Path(__file__).resolve().parent.parent
WORKER = (
    "--pool",
    "solo",
    "--concurrency",
    "1",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
)

_given: set[int] = set()


def free_port() -> int:
    """Of 127.0.0.1, and never the same twice: what asks for several before it listens on any gets several. Nor is it one that
    the kernel gives to a connection that somebody makes in the meantime, as it may a port that it chose itself."""
    draw = random.SystemRandom().choice  # two processes, even of one seed, seldom meet
    for port in (draw(LISTENING) for _ in range(100 * len(LISTENING))):
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    raise RuntimeError(f"no port from {LISTENING[0]} to {LISTENING[-1]} is free")


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


@contextlib.contextmanager
def service(data_dir: Path, roots: Sequence[Path]) -> Iterator[str]:
    """The address of a front end with one worker, once both are ready; they log to data_dir/*.log. Raises RuntimeError
    with the end of the log if one of them does not come up."""
    data_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    mine = {"MODALBRIDGE_DATA_DIR": str(data_dir), "MODALBRIDGE_DATA_ROOTS": os.pathsep.join(map(str, roots))}
    env = {name: value for name, value in os.environ.items() if not name.startswith("MODALBRIDGE_")} | mine
    subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    commands = {
        "front-end": ("uvicorn", "--factory", "app.main:create_app", "--host", "127.0.0.1", "--port", str(port)),
        "worker": ("celery", "--app", "worker.celery_app", "worker", *WORKER, "--loglevel", "INFO"),
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands.items():
            started.append(start([sys.executable, "-m", *command], env, data_dir / f"{name}.log"))
        until_ready(url, dict(zip(commands, started, strict=True)), data_dir)
        yield url
    finally:
        end(started)


def start(command: Sequence[str], env: Mapping[str, str], log: Path, *, again: bool = False) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C reaches this process alone, which then ends the others in order. again: its log goes on."""
    with log.open("ab" if again else "wb") as out:
        return subprocess.Popen(  # noqa: S603 - our own command line
            command, cwd=ROOT, env=dict(env), stdout=out, stderr=out, start_new_session=True
        )


def until_ready(url: str, processes: Mapping[str, subprocess.Popen[bytes]], logs: Path, most_s: float = 90) -> None:
    """Until /readyz answers 200. Raises RuntimeError, with the end of logs/NAME.log, if one of the processes ends before."""
    until = time.monotonic() + most_s
    answer = "no answer"
    while time.monotonic() < until:
        all_alive(processes, logs)
        with contextlib.suppress(httpx.TransportError):
            ready = httpx.get(url + "/readyz", timeout=5)
            if ready.status_code == 200:
                return
            answer = ready.text
        time.sleep(0.2)
    raise RuntimeError(f"not ready after {most_s:g} s: {answer}")


def all_alive(processes: Mapping[str, subprocess.Popen[bytes]], logs: Path) -> None:
    """Raises RuntimeError, with the end of logs/NAME.log, if one of them has ended."""
    for name, process in processes.items():
        if process.poll() is not None:
            raise RuntimeError(f"the {name} ended with code {process.returncode}:\n{tail(logs / f'{name}.log')}")


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def end(processes: Sequence[subprocess.Popen[bytes]], grace_s: float = GRACE_S) -> None:
    """Asks all to stop, waits, then kills each one's group. A second Ctrl-C skips the wait."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    until = time.monotonic() + grace_s
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
