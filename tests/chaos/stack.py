"""A whole service as processes of this machine, each of which can be killed, stopped and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import sqlalchemy as sa
from celery import Celery
from kombu.exceptions import OperationalError

from app.blobs import Blobs, open_blobs
from app.broker import QUEUE, make_celery
from app.database import Database
from app.settings import Settings
from demo.processes import ROOT, WORKER, free_port
from tests import clocks
from tests.s3 import CREDENTIALS, Bucket
from tests.servers import Disk, Postgres, Redis
from tests.worker.embedded import processes_that_name

FAST = {
    "lease_s": 3,
    "housekeeping_s": 0.5,
    "worker_silent_s": 3,
    "cancel_grace_s": 5,
    "checkpoint_s": 0.2,
    # A random kill is nobody's fault: here no job may fail by it, nor wait the longer the more often it was hit.
    "lost_backoff_s": 0,
    "max_lost_attempts": 10_000,
}


NAMES = ("front end", "worker 1", "worker 2")


@dataclass
class Servers:
    """What the production set-up has of them."""

    postgres: Postgres
    redis: Redis
    bucket: Bucket


def data_folders(folder: Path, apart: bool) -> dict[str, Path]:
    """Of each process: one for all, or one for each as if it were on a machine of its own."""
    return {name: folder / "var" / (name.replace(" ", "-") if apart else "") for name in NAMES}


class Stack:
    """Front end and workers over a database and a broker; `settings` are theirs. With servers every process has a data folder of
    its own, and the clock of one is `ahead` seconds by name. disks: of the data folders that lie on one that can be filled."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        database_url: str,
        servers: Servers | None,
        disks: dict[Path, Disk],
        ahead: dict[str, int],
    ) -> None:
        self.folder, self.disks, self.ahead = folder, disks, ahead
        self.postgres = servers.postgres if servers else None
        self.redis = servers.redis if servers else None
        self.bucket = servers.bucket if servers else None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.names = list(NAMES)
        self.folders = data_folders(folder, servers is not None)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        broker = {"broker_url": self.redis.url} if self.redis else {}
        store = {"blobs_url": self.bucket.url, "s3_endpoint_url": self.bucket.proxy.url} if self.bucket else {}
        self.settings = Settings(
            data_dir=folder / "var", data_roots=(data,), database_url=database_url, **broker, **store, **FAST
        )
        for name in self.names:
            self.settings_of(name).data_dir.mkdir(parents=True, exist_ok=True)
        self.db = Database(self.settings.sqlalchemy_url)

    def settings_of(self, name: str) -> Settings:
        return self.settings.model_copy(update={"data_dir": self.folders[name]})

    def blobs(self, settings: Settings) -> Blobs:
        """The store as the processes have it; by way of the proxy, with credentials that they have from their environment."""
        return self.bucket.blobs(settings.blob_dir / "aside") if self.bucket else open_blobs(settings)

    def environment(self, name: str) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MODALBRIDGE_", "AWS_"))}
        for setting, value in self.settings_of(name).model_dump(mode="json").items():
            if value is not None:
                env[f"MODALBRIDGE_{setting.upper()}"] = os.pathsep.join(value) if isinstance(value, list) else str(value)
        return env | {"OMP_NUM_THREADS": "1"} | (CREDENTIALS if self.bucket else {}) | clocks.ahead(self.ahead.get(name, 0))

    @property
    def workers(self) -> list[str]:
        return self.names[1:]

    def celery(self) -> Celery:
        return make_celery(self.settings)

    def start(self, name: str) -> None:
        if name == "front end":
            arguments = ["uvicorn", "--factory", "app.main:create_app", "--host", "127.0.0.1", "--port", str(self.port)]
        else:
            arguments = ["celery", "--app", "worker.celery_app", "worker", *WORKER, "--loglevel", "INFO"]
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-W", "ignore", "-m", *arguments]
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=self.environment(name), stdout=log, stderr=log, start_new_session=True
            )

    def start_all(self) -> None:
        if self.redis:
            self.redis.start()
        for name in self.names:
            self.start(name)
        self.ready()

    def ready(self, seconds: float = 120) -> None:
        """Waits until everything answers. Raises AssertionError with what does not."""
        until, answer = time.monotonic() + seconds, "no answer"
        while time.monotonic() < until:
            with suppress(httpx.TransportError):
                told = httpx.get(f"{self.url}/readyz", timeout=5)
                if told.status_code == 200:
                    return
                answer = told.text
            time.sleep(0.2)
        raise AssertionError(f"not ready after {seconds:g} s: {answer}")

    def kill(self, name: str) -> None:
        process = self.processes[name]
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        clocks.forget(process.pid)

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def ended_by_themselves(self) -> list[str]:
        """Those that are gone though nobody killed them, started again: what a process manager does. A server does not start
        while the database or the blob store is away."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in ended:
            self.start(name)
        return ended

    def pids(self, name: str) -> list[int]:
        """Of the process and of those of the jobs that it runs."""
        pid = self.processes[name].pid
        return [pid, *processes_that_name(f"\0--parent\0{pid}\0")]

    def children(self) -> list[int]:
        """The processes of jobs."""
        return [pid for name in self.workers for pid in self.pids(name)[1:]]

    def empty_broker(self) -> None:
        """Every message that waits is gone."""
        with suppress(OperationalError), self.celery().connection_for_write(connect_timeout=2) as connection:
            connection.default_channel.queue_purge(QUEUE)

    def refuse_connections(self, seconds: float) -> None:
        """The database is away, and what is open is cut. PostgreSQL alone."""
        url = self.db.url
        engine = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        try:
            with engine.connect() as connection:
                connection.execute(sa.text(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false'))
                try:
                    self.cut_connections(connection)
                    time.sleep(seconds)
                finally:
                    connection.execute(sa.text(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true'))
        finally:
            engine.dispose()

    def cut_connections(self, connection: sa.Connection) -> None:
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
        connection.execute(sa.text(cut), {"name": self.db.url.database})

    def stop_all(self) -> None:
        """Asked first; then killed, with all that is theirs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            clocks.forget(process.pid)
        if self.redis:
            self.redis.kill()
        self.db.dispose()
