"""Servers and disks of a test's own, which it may break: a Redis as in production, a PostgreSQL, a disk that can be full."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from demo.processes import ROOT, free_port

PASSWORD = "of-the-test"


@dataclass
class Redis:
    """With the configuration of the production set-up: it keeps nothing."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", ROOT / "deploy/redis.conf", "--port", str(self.port), "--dir", self.folder, "-"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        assert self.process.stdin is not None
        self.process.stdin.write(f"requirepass {PASSWORD}\n".encode())
        self.process.stdin.close()
        _until(self._listens, f"Redis; see {self.folder / 'redis.log'}")

    def _listens(self) -> bool:
        with closing(socket.socket()) as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Postgres:
    """A cluster of its own, on the disk: it survives a crash. log: a file. PostgreSQL does not run as root: then it is the user
    `postgres` of Debian's package, in a folder that is his."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.programs, self.folder, self.log, self.port = _postgres_programs(), folder, log, free_port()
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user:
            owner = pwd.getpwnam(self.user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        self.process: subprocess.Popen[bytes] | None = None
        with log.open("ab") as file:
            given = ["--pgdata", folder / "data", "--username", "postgres", "--auth", "trust", "--encoding", "UTF8"]
            if self._run([self.programs / "initdb", *given], file).wait():
                raise RuntimeError(f"initdb failed: see {log}")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def _run(self, command: list[object], log: object) -> subprocess.Popen[bytes]:
        # As the server's user it could not read the folder that the tests are in.
        groups = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        return subprocess.Popen([str(part) for part in command], cwd=self.folder, stdout=log, stderr=log, **groups)

    def start(self) -> None:
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 200}
        given = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self.process = self._run([self.programs / "postgres", "-D", self.folder / "data", *given], log)
        _until(self._answers, f"PostgreSQL; see {self.log}")

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=5):
            return True
        return False

    def crash(self) -> None:
        """Immediate shutdown: every connection is cut where it is, and the next start recovers from the log of writes."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes packets, for the kernel does, and answers nothing, on any connection."""
        assert self.process is not None
        main = self.process.pid
        stopped = [main]
        os.kill(main, signal.SIGSTOP)  # so that it starts no other
        try:
            for number in map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split()):
                os.kill(number, signal.SIGSTOP)
                stopped.append(number)
            yield
        finally:
            for number in reversed(stopped):
                os.kill(number, signal.SIGCONT)

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()


@contextmanager
def postgres(log: Path) -> Iterator[Postgres]:
    """Running; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = Postgres(Path(folder), log)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _postgres_programs() -> Path:
    """The newest that is installed."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4].split(".")[0]))
    found = packaged[-1] if packaged else shutil.which("postgres")
    if found is None:
        raise RuntimeError("no program `postgres`, of which the tests run one of their own: apt-get install postgresql")
    return Path(found).parent


class Disk:
    """A small file system of its own (tmpfs), which root can mount."""

    SIZE = 2 * 2**30

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def mounted(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.SIZE},mode=700", "tmpfs", self.folder], check=True)
        try:
            yield
        finally:
            # At once to whoever looks, and gone as soon as nobody has a file of it open.
            subprocess.run(["umount", "--lazy", self.folder], check=True)

    def be_full(self, seconds: float, going_on: Callable[[], bool] = lambda: True) -> None:
        """Made as small as what is on it, again and again: whoever deletes something makes no room."""
        until, was_full = time.monotonic() + seconds, False
        try:
            while time.monotonic() < until and going_on():
                state = os.statvfs(self.folder)
                # Refused where more has been written meanwhile.
                was_full |= self._resized(max(state.f_blocks - state.f_bfree, 1) * state.f_frsize)
                time.sleep(0.1)
        finally:
            if not self._resized(self.SIZE):
                raise RuntimeError(f"{self.folder} is left full")
        if not was_full:
            raise RuntimeError(f"{self.folder} could not be made full")

    def _resized(self, size: int) -> bool:
        command = ["mount", "-o", f"remount,size={size}", self.folder]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@contextmanager
def disks(folders: list[Path]) -> Iterator[dict[Path, Disk]]:
    """One for each, or none at all where this user may not mount any."""
    with ExitStack() as stack:
        made = {folder: Disk(folder) for folder in folders}
        try:
            for disk in made.values():
                stack.enter_context(disk.mounted())
        except subprocess.CalledProcessError:
            made = {}
        yield made


def _until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)
