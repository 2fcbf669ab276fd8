"""The seccomp profile of a worker's container."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deploy import seccomp
from tests.worker.embedded import ROOT
from worker import sandbox

DEFAULT = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}


def run(profile: object, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "default.json").write_text(json.dumps(profile))
    return subprocess.run([sys.executable, ROOT / "deploy/seccomp.py", folder / "default.json"], capture_output=True, text=True)


def test_one_call_with_exactly_the_sandboxs_flags_is_allowed_beside_dockers(tmp_path: Path) -> None:
    made = json.loads(run(DEFAULT, tmp_path).stdout)
    *before, added = made.pop("syscalls")
    assert (before, made) == (DEFAULT["syscalls"], {key: value for key, value in DEFAULT.items() if key != "syscalls"})
    assert (added["names"], added["action"]) == (["unshare"], "SCMP_ACT_ALLOW")
    (argument,) = added["args"]
    assert argument == {"index": 0, "value": sandbox.CLONE_NEWUSER | sandbox.CLONE_NEWNET, "op": "SCMP_CMP_EQ"}
    assert (seccomp.CLONE_NEWUSER, seccomp.CLONE_NEWNET) == (sandbox.CLONE_NEWUSER, sandbox.CLONE_NEWNET)


def test_a_profile_that_allows_by_default_is_refused(tmp_path: Path) -> None:
    for wrong in ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}, {}):
        done = run(wrong, tmp_path)
        assert done.returncode == 1
        assert "moby/profiles" in done.stderr
