"""python deploy/seccomp.py DEFAULT.json > deploy/seccomp.json: Docker's own seccomp profile, and one call more.

A job's process leaves the network by unshare(CLONE_NEWUSER | CLONE_NEWNET) (worker/sandbox.py). Docker's profile keeps
unshare to those with CAP_SYS_ADMIN, which a worker has not; here just these two flags together are allowed to anyone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
RULE = {
    "names": ["unshare"],
    "action": "SCMP_ACT_ALLOW",
    "args": [{"index": 0, "value": CLONE_NEWUSER | CLONE_NEWNET, "op": "SCMP_CMP_EQ"}],
    "comment": "worker/sandbox.py",
}


def with_namespaces(profile: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError unless it is a profile that refuses what it does not name."""
    if profile.get("defaultAction") != "SCMP_ACT_ERRNO" or not isinstance(profile.get("syscalls"), list):
        raise ValueError("not a profile that refuses by default; take Docker's, moby/profiles/seccomp/default.json")
    return {**profile, "syscalls": [*profile["syscalls"], RULE]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("default", type=Path, help="Docker's default profile")
    given = parser.parse_args()
    json.dump(with_namespaces(json.loads(given.default.read_text(encoding="utf-8"))), sys.stdout, indent=1)
