"""python -I -m worker.sandbox --parent PID --data-bytes N --file-bytes N --open-files N [--processes N] -- ENGINE-ARGUMENTS

What the kernel must know of a job's process before torch is imported: it dies with its supervisor, it has limits, it has
no network. Then the engine runs in this very process, or in as many as it is to have (launcher.py). Standard library alone
(printing.py and launcher.py are, too), and one thread: a user namespace can be
entered in no other way.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import resource
import runpy
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.adaptation.printing import spilling

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
DENIED = frozenset(
    f"socket.{call}"
    for call in (
        "bind",
        "connect",
        "getaddrinfo",
        "gethostbyaddr",
        "gethostbyname",
        "getnameinfo",
        "getservbyname",
        "getservbyport",
        "sendmsg",
        "sendto",
    )
)
"""Audit events (docs.python.org/3/library/audit_events.html)."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.sandbox")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--data-bytes", type=int, required=True)
    parser.add_argument("--file-bytes", type=int, required=True)
    parser.add_argument("--open-files", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("engine", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    sys.stderr = spilling(2)

    die_with(given.parent)
    os.umask(0o077)
    # Data, not address space: CUDA reserves far more addresses than any machine has memory.
    limit(resource.RLIMIT_DATA, given.data_bytes)
    limit(resource.RLIMIT_FSIZE, given.file_bytes)
    limit(resource.RLIMIT_NOFILE, given.open_files)
    limit(resource.RLIMIT_CORE, 0)
    several = given.processes > 1
    if (refused := leave_network(loopback=several)) is not None:
        sys.addaudithook(deny_network)
        warn(
            "network_not_isolated", f"the kernel gives this process no network namespace ({refused}); Python's sockets are denied"
        )
    libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if several and not loopback_is_up():
        warn("one_process", "one process does the job: the kernel gives it no loopback device by which several could talk")
    elif several:
        from worker.launcher import share_out

        share_out(given.processes)

    sys.argv = ["worker.adaptation", *given.engine[given.engine[:1] == ["--"] :]]
    runpy.run_module("worker.adaptation", run_name="__main__", alter_sys=True)


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """SIGKILL for this process when the thread that started it ends, however it ends. Exits if it has ended already."""
    if libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise SystemExit(f"the supervisor, process {parent}, is gone")


def limit(which: int, most: int) -> None:
    """Lowers a limit, soft and hard; one that is lower already stays."""
    _, hard = resource.getrlimit(which)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (value, value))


def leave_network(loopback: bool = False) -> str | None:
    """Into an empty network namespace: as root by itself, else by way of a user namespace. The kernel's word if it refuses.
    loopback: its processes may talk to each other there."""
    if libc().unshare(CLONE_NEWNET) == 0:
        if loopback:
            raise_loopback()
        return None
    user, group = os.getuid(), os.getgid()
    if libc().unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return os.strerror(ctypes.get_errno())
    # Without a map this process would be nobody to itself. Its rights over files are those of before either way.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if loopback:
        raise_loopback()
    drop_capabilities()
    return None


def raise_loopback() -> None:
    """Where the kernel allows it; loopback_is_up() tells."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        fcntl.ioctl(asking, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


def loopback_is_up() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        _, flags = struct.unpack("16sh", fcntl.ioctl(asking, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))
        return bool(flags & IFF_UP)
    return False


def drop_capabilities() -> None:
    """A new user namespace gives all of them inside it, and with them the parts of the kernel that only root reaches."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc().capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def hide_memory() -> None:
    """For the worker: no other process of its user may read its memory or its environment (/proc/PID/environ), in which
    the passwords of the database, the broker and the blob store are. Root may."""
    if libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def deny_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook. Weaker than a namespace: it stops Python's own sockets, not those of native code."""
    if event in DENIED:
        raise PermissionError(f"{event}: a job's process has no network")


def warn(code: str, message: str) -> None:
    """To stderr, and as an event of worker/adaptation/events.py, which needs pydantic and may not be imported yet."""
    print(f"{code}: {message}", file=sys.stderr, flush=True)
    print(json.dumps({"type": "warning", "code": code, "message": message}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
