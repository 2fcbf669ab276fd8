"""How a process of the engine is watched."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.runs import watch


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the peak by /proc")
def test_the_peak_is_the_process_own_not_that_of_who_started_it():
    """This process holds torch and 400 MiB besides; the child holds 100 MiB for a moment and ends with little."""
    ballast = bytearray(400 * 2**20)
    child = "import time; x = bytearray(100 * 2**20); time.sleep(0.6); del x; time.sleep(0.3); raise SystemExit(3)"
    code, peak = watch(subprocess.Popen([sys.executable, "-c", child]))
    assert code == 3 and len(ballast) == 400 * 2**20
    assert 100 <= peak < 200


def test_a_process_that_ends_at_once_is_waited_for():
    assert watch(subprocess.Popen([sys.executable, "-c", "pass"]))[0] == 0
