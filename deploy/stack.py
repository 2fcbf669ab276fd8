"""make stack: the processes of docker-compose.yml on this machine, without containers: migrations, front end, workers.

Commands and environment are read from docker-compose.yml, so they cannot drift from it. The servers are those of this
machine: whatever there names the host `postgres`, `redis` or `store` is given the address of one here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from demo.processes import ROOT, all_alive, end, free_port, start, until_ready
from deploy import compose

SECRETS = {
    name: "of-no-use-here"
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GRAFANA_PASSWORD")
}
"""Unless the environment has them: servers of this machine have their passwords in their addresses, and the stand-in for
S3 takes any key."""


def environment(service: Mapping[str, Any], servers: Mapping[str, str], **own: str) -> dict[str, str]:
    """Of this process, less what it has of our settings; of the service, with this machine's servers; and `own`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODALBRIDGE_")}
    theirs = {name: here(str(value), servers) for name, value in service["environment"].items()}
    return kept | theirs | {name: value for name, value in own.items() if name in theirs}


def command(service: Mapping[str, Any], servers: Mapping[str, str], **options: str) -> list[str]:
    """The service's own, by this interpreter; `options` replaces what follows --NAME."""
    program, *rest = (here(word, servers) for word in service["command"])
    for name, value in options.items():
        rest[rest.index(f"--{name}") + 1] = value
    return [sys.executable, *([] if program == "python" else ["-m", program]), *rest]


def here(value: str, servers: Mapping[str, str]) -> str:
    """A URL whose host is a service is that of the server which takes its place; anything else stays."""
    return servers.get(urlsplit(value).hostname or "", value)


@contextlib.contextmanager
def running(
    *, data: Path, folder: Path, database_url: str, broker_url: str, s3_endpoint_url: str | None, workers: int, port: int
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """All of it, once /readyz answers 200; at the end workers, front end and store are asked to stop, in this order, each
    with as long as docker-compose.yml gives it. Raises RuntimeError if one does not come up."""
    variables = {name: os.environ.get(name, value) for name, value in SECRETS.items()} | {"MODALBRIDGE_DATA": str(data)}
    variables |= {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    services = compose.read(variables)["services"]
    folder.mkdir(parents=True, exist_ok=True)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as ending:

        def begin(name: str, line: Sequence[str], env: Mapping[str, str], grace_s: int) -> None:
            processes[name] = start(line, env, folder / f"{name}.log")
            ending.callback(end, [processes[name]], grace_s)

        if s3_endpoint_url is None:
            own = free_port()
            s3_endpoint_url = f"http://127.0.0.1:{own}"
            line = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(own)]
            begin("store", line, os.environ, 5)
        servers = {"postgres": database_url, "redis": broker_url, "store": s3_endpoint_url}
        make_database(database_url)
        for name in ("bucket", "migrate"):
            one_shot(name, command(services[name], servers), environment(services[name], servers))

        front, worker, settings = services["frontend"], services["worker"], {"MODALBRIDGE_DATA_DIR": str(folder)}
        line = command(front, servers, host="127.0.0.1", port=str(port))
        begin("front-end", line, environment(front, servers, **settings), compose.seconds(front["stop_grace_period"]))
        # All workers at once: each may take its whole grace to hand back its job.
        ending.callback(lambda: end([process for name, process in processes.items() if name.startswith("worker")], grace_s))
        grace_s = compose.seconds(worker["stop_grace_period"])
        for number in range(1, workers + 1):
            env = environment(
                worker, servers, **settings, MODALBRIDGE_METRICS_PORT=str(free_port()), MODALBRIDGE_METRICS_HOST="127.0.0.1"
            )
            processes[f"worker-{number}"] = start(command(worker, servers), env, folder / f"worker-{number}.log")
        until_ready(f"http://127.0.0.1:{port}", processes, folder)
        yield processes


def one_shot(name: str, line: Sequence[str], env: Mapping[str, str]) -> None:
    done = subprocess.run(line, cwd=ROOT, env=dict(env), capture_output=True, text=True)  # noqa: S603 - our own command line
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with code {done.returncode}:\n{done.stderr[-2000:]}")


def make_database(url: str) -> None:
    """Unless it is there. Raises RuntimeError, with the address, if the server cannot be reached."""
    wanted = sa.make_url(url)
    engine = sa.create_engine(wanted.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            there = sa.text("SELECT 1 FROM pg_database WHERE datname = :name")
            if connection.scalar(there, {"name": wanted.database}) is None:
                connection.execute(sa.text(f'CREATE DATABASE "{wanted.database}"'))
    except sa.exc.OperationalError as error:
        raise RuntimeError(f"no PostgreSQL at {wanted.render_as_string()}: {error.orig}") from error


def told(processes: Mapping[str, subprocess.Popen[bytes]], given: argparse.Namespace) -> str:
    lines = [f"http://127.0.0.1:{given.port}  is ready; /docs shows every call. Jobs may read {given.data}"]
    if given.s3_endpoint_url is None:
        lines.append("The S3 store is moto's server, for trying only: what is in it is gone when it stops.")
    lines += [f"{name:<10} process {process.pid:<8} {given.folder / f'{name}.log'}" for name, process in processes.items()]
    return "\n".join([*lines, "Ctrl-C stops them all."])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.stack", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of images that jobs may read")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=Path("var/stack"), help="scratch and logs (default: var/stack)")
    parser.add_argument("--database-url", default="postgresql+psycopg://postgres@127.0.0.1:5432/modalbridge")
    parser.add_argument("--broker-url", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--s3-endpoint-url", help="default: moto's server, for trying only")
    given = parser.parse_args()
    if not given.data.is_dir() or str(given.data) == ".":
        parser.error(f"--data {given.data} is not a folder: name the one of your images (make stack DATA=/folder)")
    given.data, given.folder = given.data.resolve(), given.folder.resolve()
    # Whoever is started in the background ignores SIGINT; and SIGTERM is to end this in the same order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with running(**vars(given)) as processes:
            print(told(processes, given), flush=True)
            while True:
                all_alive(processes, given.folder)
                time.sleep(1)
    except KeyboardInterrupt:
        print("Stopped; every process that was started has ended.", flush=True)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
