"""make stack: what docker-compose.yml runs, on this machine, without containers: store, migrations, front end, workers, Prometheus.

Commands and environment are read from docker-compose.yml, so they cannot drift from it. PostgreSQL and Redis are those of this
machine: whatever there names the host `postgres`, `redis` or `store` is given the address of one here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import sqlalchemy as sa
import yaml
from dotenv import dotenv_values

from demo.processes import ROOT, end, free_port, is_free, start, tail, until_ready
from deploy import compose

METRICS_PORT, PROMETHEUS_PORT = 9101, 9090
"""Of the first worker, and of Prometheus; where one is taken, another is found."""
SOON_S = 10.0
"""What fails so soon after its start would fail again."""
SECRETS = {
    name: "of-no-use-here"
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GRAFANA_PASSWORD")
}
"""Unless the environment has them: servers of this machine have their passwords in their addresses, and the store takes the key that
it is started with."""


def environment(service: Mapping[str, Any], servers: Mapping[str, str], **own: str) -> dict[str, str]:
    """Of this process, less what it has of our settings; of the service, its files before its own, with this machine's servers; and
    `own`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODALBRIDGE_")}
    theirs = {name: here(str(value), servers) for name, value in service["environment"].items()}
    files = {
        name: value or "" for file in service.get("env_file", []) for name, value in dotenv_values(ROOT / file["path"]).items()
    }
    return kept | files | theirs | {name: value for name, value in own.items() if name in theirs}


def command(service: Mapping[str, Any], servers: Mapping[str, str], **options: str) -> list[str]:
    """The service's own, by this interpreter; `options` replaces what follows --NAME."""
    program, *rest = (here(word, servers) for word in service["command"])
    for name, value in options.items():
        rest[rest.index(f"--{name}") + 1] = value
    return [sys.executable, *([] if program == "python" else ["-m", program]), *rest]


def here(value: str, servers: Mapping[str, str]) -> str:
    """A URL whose host is a service is that of the server which takes its place; anything else stays."""
    return servers.get(urlsplit(value).hostname or "", value)


@dataclass(frozen=True)
class Part:
    line: Sequence[str]
    env: Mapping[str, str]
    grace_s: float
    address: str = ""
    """Where it answers."""


@dataclass
class Stack:
    """What runs, by name."""

    folder: Path
    parts: dict[str, Part] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def begin(self, name: str, part: Part, *, again: bool = False) -> None:
        self.parts[name], self.began[name] = part, time.monotonic()
        self.processes[name] = start(part.line, part.env, self.log(name), again=again)

    def end(self, prefix: str) -> None:
        """All at once: each worker may take its whole grace to hand back its job."""
        names = [name for name in self.processes if name.startswith(prefix)]
        end([self.processes[name] for name in names], max((self.parts[name].grace_s for name in names), default=0))

    def keep(self) -> Iterator[str]:
        """What has ended is started again, as Compose would; the names. Raises RuntimeError for what fails as soon as it is started."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                if process.returncode > 0 and time.monotonic() - self.began[name] < SOON_S:
                    raise RuntimeError(f"{name} ended with code {process.returncode}:\n{tail(self.log(name))}")
                self.begin(name, self.parts[name], again=True)
                yield name


@contextlib.contextmanager
def running(
    *, data: Path, folder: Path, database_url: str, broker_url: str, s3_endpoint_url: str | None, workers: int, port: int
) -> Iterator[Stack]:
    """All of it, once /readyz answers 200; at the end Prometheus, workers, front end and store are asked to stop, in this order, each
    with as long as docker-compose.yml gives it. Raises RuntimeError if one does not come up."""
    if not is_free(port):
        raise RuntimeError(f"port {port} is taken, perhaps by a front end that runs already: make stack PORT=... takes another")
    variables = {name: os.environ.get(name, value) for name, value in SECRETS.items()} | {"MODALBRIDGE_DATA": str(data)}
    variables |= {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    services = compose.read(variables)["services"]
    folder.mkdir(parents=True, exist_ok=True)
    stack = Stack(folder)
    with contextlib.ExitStack() as ending:
        make_database(database_url)
        if s3_endpoint_url is None:
            ending.callback(stack.end, "store")
            stack.begin("store", store := store_of(services["store"], folder))
            s3_endpoint_url = store.address
            until_it_answers(stack, "store", f"{store.address}/healthz")
        servers = {"postgres": database_url, "redis": broker_url, "store": s3_endpoint_url}
        for name in ("bucket", "migrate"):
            one_shot(name, command(services[name], servers), environment(services[name], servers))

        front, worker, settings = services["frontend"], services["worker"], {"MODALBRIDGE_DATA_DIR": str(folder)}
        # Whether there is a GPU each worker finds out, unless settings.env says.
        del worker["environment"]["MODALBRIDGE_TAKES_CUDA"]
        line = command(front, servers, host="127.0.0.1", port=str(port))
        grace_s, url = compose.seconds(front["stop_grace_period"]), f"http://127.0.0.1:{port}"
        ending.callback(stack.end, "front-end")
        stack.begin("front-end", Part(line, environment(front, servers, **settings), grace_s, url))
        ending.callback(stack.end, "worker")
        env = environment(worker, servers, **settings, MODALBRIDGE_METRICS_HOST="127.0.0.1")
        write_environment(folder / "worker.env", env)
        for number, at in enumerate(ports(METRICS_PORT, workers), 1):
            given = Part(
                command(worker, servers),
                env | {"MODALBRIDGE_METRICS_PORT": str(at)},
                compose.seconds(worker["stop_grace_period"]),
                f"http://127.0.0.1:{at}/metrics",
            )
            stack.begin(f"worker-{number}", given)
        ending.callback(stack.end, "prometheus")
        if (program := shutil.which("prometheus")) is not None:
            stack.begin("prometheus", prometheus_of(services["prometheus"], program, stack))
        until_ready(url, stack.processes, folder)
        yield stack


def store_of(service: Mapping[str, Any], folder: Path, host: str = "127.0.0.1") -> Part:
    """The S3 store of docker-compose.yml itself, for this machine alone; what it keeps is in the folder."""
    at = {name: free_port() for name in ("s3", "master", "volume", "filer")}
    own = {"-dir": str(folder / "store"), "-s3.ip.bind": host}
    own |= {f"-{name}.port": str(port) for name, port in at.items()} | {f"-{name}.port.grpc": str(free_port()) for name in at}
    Path(own["-dir"]).mkdir(exist_ok=True)
    theirs = [word for word in service["command"] if word.partition("=")[0] not in own]
    program = str(Path(sys.executable).with_name(Path(service["entrypoint"][0]).name))
    line = [program, *theirs, *(f"{name}={value}" for name, value in own.items())]
    env = os.environ | service["environment"]
    return Part(line, env, compose.seconds(service["stop_grace_period"]), f"http://127.0.0.1:{at['s3']}")


def prometheus_of(service: Mapping[str, Any], program: str, stack: Stack) -> Part:
    """With deploy/prometheus.yml, but for the addresses. Those of workers are in a file: whoever starts one more adds it there."""
    (port,) = ports(PROMETHEUS_PORT, 1)
    file, workers = stack.folder / "prometheus.yml", stack.folder / "workers.json"
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text(encoding="utf-8"))
    config["rule_files"] = [str(ROOT / "deploy" / Path(name).name) for name in config["rule_files"]]
    targets = {"frontend": urlsplit(stack.parts["front-end"].address).netloc, "prometheus": f"127.0.0.1:{port}"}
    for job in config["scrape_configs"]:
        if job["job_name"] == "worker":
            del job["dns_sd_configs"]
            job["file_sd_configs"] = [{"files": [str(workers)]}]
        else:
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    found = [urlsplit(part.address).netloc for name, part in stack.parts.items() if name.startswith("worker")]
    workers.write_text(json.dumps([{"targets": found}]) + "\n", encoding="utf-8")
    own = {"--config.file": str(file), "--storage.tsdb.path": str(stack.folder / "prometheus")}
    theirs = [word for word in service["command"] if word.partition("=")[0] not in own]
    line = [program, *theirs, *(f"{name}={value}" for name, value in own.items()), f"--web.listen-address=127.0.0.1:{port}"]
    return Part(line, os.environ, compose.seconds(service["stop_grace_period"]), f"http://127.0.0.1:{port}")


def ports(first: int, count: int) -> list[int]:
    """From `first` on; others where somebody has them."""
    return [number if is_free(number) else free_port() for number in range(first, first + count)]


def write_environment(file: Path, env: Mapping[str, str]) -> None:
    """What a worker is given, for a shell: secrets are in it, so it is this user's alone."""
    theirs = {name: value for name, value in env.items() if name.startswith(("MODALBRIDGE_", "AWS_", "OTEL_"))}
    theirs.pop("MODALBRIDGE_METRICS_PORT")  # each has its own
    file.touch(mode=0o600)
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in theirs.items()), encoding="utf-8")


def until_it_answers(stack: Stack, name: str, url: str, most_s: float = 60) -> None:
    until = time.monotonic() + most_s
    while time.monotonic() < until:
        if stack.processes[name].poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{name} does not answer at {url}:\n{tail(stack.log(name))}")


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


def told(stack: Stack, data: Path) -> str:
    lines = [f"{stack.parts['front-end'].address}  is ready; /docs shows every call. Jobs may read {data}"]
    if "prometheus" not in stack.parts:
        lines.append("Prometheus is not installed (`make prometheus`): there are numbers, and nobody who looks at them.")
    lines += [
        f"{name:<10}  process {process.pid:<8}  {stack.parts[name].address:<32}  {stack.log(name)}"
        for name, process in stack.processes.items()
    ]
    return "\n".join([*lines, "Ctrl-C stops them all. What ends by itself, or by a signal of yours, is started again."])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.stack", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of images that jobs may read")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=Path("var/stack"), help="store, scratch and logs (default: var/stack)")
    parser.add_argument("--database-url", default="postgresql+psycopg://postgres@127.0.0.1:5432/modalbridge")
    parser.add_argument("--broker-url", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--s3-endpoint-url", help="default: SeaweedFS, which is started")
    given = parser.parse_args()
    if not given.data.is_dir() or str(given.data) == ".":
        parser.error(f"--data {given.data} is not a folder: name the one of your images (make stack DATA=/folder)")
    given.data, given.folder = given.data.resolve(), given.folder.resolve()
    # Whoever is started in the background ignores SIGINT; and SIGTERM is to end this in the same order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with running(**vars(given)) as stack:
            print(told(stack, given.data), flush=True)
            while True:
                for name in stack.keep():
                    print(f"{name} had ended, and is started again: process {stack.processes[name].pid}", flush=True)
                time.sleep(1)
    except KeyboardInterrupt:
        print("Stopped; every process that was started has ended.", flush=True)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
