"""How benchmarks.memory makes its folders, watches a process, and compares jobs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.memory import Ran

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it by /proc")


def test_many_names_take_the_room_of_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "DISTINCT", 3)
    monkeypatch.setattr(memory, "PAIRS", 1)
    folder = memory.many(tmp_path, 10)
    names = sorted(path.name for path in folder.rglob("*.png"))
    assert names == [f"{i:07}.png" for i in range(10)]
    assert len({path.stat().st_ino for path in folder.rglob("*.png")}) == 3
    assert memory.many(tmp_path, 10) == folder


@LINUX
def test_pages_of_a_mapped_file_are_resident_and_not_anonymous(tmp_path):
    """A child maps 64 MiB from disk, and holds 32 MiB of its own."""
    path = tmp_path / "mapped.npy"
    np.save(path, np.zeros(64 * 2**20, np.uint8))
    child = (
        "import sys, numpy as np; print(flush=True); input(); x = np.load(sys.argv[1], mmap_mode='r'); x.sum(); "
        "y = np.ones(32 * 2**20, np.uint8); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        before = memory.memory(process.pid)
        print(file=process.stdin, flush=True)
        process.stdout.readline()
        after = memory.memory(process.pid)
        print(file=process.stdin, flush=True)
    grown = {name: (after[name] - before[name]) / 2**10 for name in after}
    assert 31 < grown["RssAnon"] < 48
    assert 95 < grown["VmRSS"] < 116
    assert memory.memory(process.pid) == {}, "it has ended"


def job(images: int, preparing: float, transferring: float, anonymous: int) -> Ran:
    began = {"preparing": 1.0, "transferring": preparing}
    samples = [(0.5, anonymous // 2), (preparing - 0.1, anonymous // 2), (preparing + 0.1, anonymous)]
    told = [(when, {"RssAnon": kibibytes, "VmRSS": 2 * kibibytes}) for when, kibibytes in samples]
    return Ran(images, began, preparing + transferring, told)


def test_figures_by_hand():
    """1,000 images: 10 s and 5 s; 3,000: 14 s and 13 s, 100 MiB more."""
    found = memory.compared([job(1000, 10, 5, 400 * 2**10), job(3000, 14, 13, 500 * 2**10)])
    base, more = found["jobs"]
    assert base["seconds_per_image"] == {"preparing": 0.01, "transferring": 0.005}
    assert more["seconds"] == 27
    assert more["peak_mib"] == {"RssAnon": 500, "VmRSS": 1000}
    assert more["peak_anonymous_mib_by_phase"] == {"preparing": 250, "transferring": 500}
    assert (base["anonymous_mib_over_base"], more["anonymous_mib_over_base"]) == (0, 100)
    (further,) = found["further"]
    assert further["seconds_per_further_image"] == {"preparing": 0.002, "transferring": 0.004}


@LINUX
def test_two_jobs_are_run_watched_and_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(memory, "DISTINCT", 8)
    monkeypatch.setattr(memory, "PAIRS", 8)
    given = ["--architecture", "timm/test_resnet", "--batch-size", "8", "--precision", "fp32"]
    assert memory.main(["--work", str(tmp_path), "--base", "16", "--images", "24", *given]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["images"] for one in document["jobs"]] == [16, 24]
    for one in document["jobs"]:
        assert list(one["seconds_per_image"]) == ["preparing", "bridging", "transferring", "evaluating", "publishing"]
        assert 100 < one["peak_mib"]["RssAnon"] < one["peak_mib"]["VmRSS"]
    assert not (tmp_path / "out-24").exists()


def test_a_job_that_fails_is_an_error_that_names_the_log(tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    with pytest.raises(RuntimeError, match=r"exit code 1; .*out\.log"):
        memory.run(1, spec, tmp_path / "out")
