"""Many clients at once: how fast a job is read, and whether 200 pollers over 10,000 queued jobs ever get an error.

    python -m benchmarks.load                        # PostgreSQL
    python -m benchmarks.load --server ''            # SQLite

One front end, and benchmarks.bare beside it over the same database, each one process of uvicorn. In turns, in one run, as many
requests as they answer in a few seconds over eight connections: GET /jobs/{id} of both, whole, and of the front end with an
If-None-Match that still holds (304). Ratios of medians: of requests a second, and of the processor time that uvicorn's process took for a
request, which other work on the machine disturbs less (Linux alone tells it; a database server's is not in it). Then 200 clients that each poll a job of their own every second, as a client
should, for half a minute: errors, and how long they waited.

The clients are one process of asyncio that reads as little of an answer as it can: the status, the length and the tag.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.database import Database
from benchmarks.environment import ROOT, environment
from benchmarks.scale import SERVER, database, fill, job_id

CONNECTIONS = 8
Address = tuple[str, int]


@dataclass
class Client:
    """One connection that stays open."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def connect(cls, address: Address) -> Client:
        return cls(*await asyncio.open_connection(*address))

    async def get(self, path: str, etag: str = "") -> tuple[int, str]:
        """The status and the ETag."""
        condition = f"If-None-Match: {etag}\r\n" if etag else ""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: benchmark\r\n{condition}\r\n".encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        status = int(head.split(" ", 2)[1])
        if status != 304 and (length := int(fields.get("content-length", "0"))):
            await self.reader.readexactly(length)
        return status, fields.get("etag", "")

    def close(self) -> None:
        self.writer.close()


@dataclass(frozen=True)
class Served:
    address: Address
    pid: int

    def cpu_s(self) -> float:
        """Of all its threads, since it began."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(factory: str, db: Database, folder: Path) -> Iterator[Served]:
    """One process of uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()[:2]
    command = [sys.executable, "-m", "uvicorn", "--factory", factory, "--port", str(address[1]), "--no-access-log"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MODALBRIDGE_")} | {
        "MODALBRIDGE_DATA_DIR": str(folder),
        "MODALBRIDGE_DATABASE_URL": db.url.render_as_string(hide_password=False),
    }
    process = subprocess.Popen([*command, "--log-level", "warning"], cwd=ROOT, env=env)  # noqa: S603
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(address, 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{factory} did not start") from None
                time.sleep(0.1)
        yield Served(address, process.pid)
    finally:
        process.terminate()
        process.wait(30)


async def rate(server: Served, paths: Sequence[str], seconds: float, conditional: bool) -> tuple[float, float]:
    """Requests a second over CONNECTIONS connections, and milliseconds of the server's processor time for each. Raises RuntimeError
    at an answer that is not the one asked for."""
    until, done, expected = time.perf_counter() + seconds, 0, 304 if conditional else 200

    async def one(path: str) -> None:
        nonlocal done
        client = await Client.connect(server.address)
        tag = (await client.get(path))[1] if conditional else ""
        while time.perf_counter() < until:
            status, _ = await client.get(path, tag)
            if status != expected:
                raise RuntimeError(f"{path} was answered with {status}")
            done += 1
        client.close()

    began, cpu = time.perf_counter(), server.cpu_s()
    await asyncio.gather(*(one(paths[number % len(paths)]) for number in range(CONNECTIONS)))
    return done / (time.perf_counter() - began), 1000 * (server.cpu_s() - cpu) / done


async def pollers(address: Address, paths: Sequence[str], seconds: float) -> tuple[list[float], int]:
    """One for each path, a poll a second. Milliseconds of each poll, and how many went wrong."""
    waited: list[float] = []
    errors = 0

    async def one(number: int, path: str) -> None:
        nonlocal errors
        await asyncio.sleep(number / len(paths))
        client, tag, until = await Client.connect(address), "", time.monotonic() + seconds
        while (asked := time.monotonic()) < until:
            try:
                status, tag = await asyncio.wait_for(client.get(path, tag), 30)
                errors += status not in (200, 304)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                errors += 1
                client = await Client.connect(address)
            waited.append(1000 * (time.monotonic() - asked))
            await asyncio.sleep(max(0.0, asked + 1 - time.monotonic()))
        client.close()

    await asyncio.gather(*(one(number, path) for number, path in enumerate(paths)))
    return waited, errors


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=SERVER, help=f"of PostgreSQL; empty for SQLite (default: {SERVER})")
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--pollers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30, help="of the pollers")
    parser.add_argument("--turn", type=float, default=3, help="seconds of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, database(given.server, Path(folder)) as db:
        fill(db, given.queued, queued=given.queued)
        paths = [f"/jobs/{job_id(1 + number * given.queued // given.pollers)}" for number in range(given.pollers)]
        here = Path(folder)
        with served("app.main:create_app", db, here) as ours, served("benchmarks.bare:create_app", db, here) as bare:
            asked = {"bare": (bare, False), "whole": (ours, False), "304": (ours, True)}
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
            for _ in range(given.rounds):
                for name, (server, conditional) in asked.items():
                    measured[name].append(asyncio.run(rate(server, paths, given.turn, conditional)))
            waited, errors = asyncio.run(pollers(ours.address, paths, given.seconds))
        backend = db.url.get_backend_name()
    rates, cpu_ms = (
        {name: statistics.median(one[which] for one in found) for name, found in measured.items()} for which in (0, 1)
    )
    percentiles = statistics.quantiles(waited, n=100)
    found = {
        "environment": environment(1, 1) | {"database": backend},
        "requests_per_s": {name: round(value, 1) for name, value in rates.items()},
        "cpu_ms_per_request": {name: round(value, 3) for name, value in cpu_ms.items()},
        "throughput_to_bare": {name: round(rates[name] / rates["bare"], 3) for name in ("whole", "304")},
        "bare_cpu_to_its": {name: round(cpu_ms["bare"] / cpu_ms[name], 3) for name in ("whole", "304")},
        "pollers": {
            "queued": given.queued,
            "pollers": given.pollers,
            "polls": len(waited),
            "errors": errors,
            "ms": {"median": round(percentiles[49], 1), "p99": round(percentiles[98], 1), "most": round(max(waited), 1)},
        },
    }
    print(json.dumps(found, indent=1))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
