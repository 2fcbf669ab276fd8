"""A job by several processes: to its supervisor they are one, whichever of them comes to grief."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.worker.embedded import LONGER, Embedded, gone, processes_that_name, undisturbed, wait_for

SHARE_OUT = """
import os, signal, sys, time
from worker import launcher
launcher.share_out(3)
rank = int(os.environ["RANK"])
"""


def launched(
    code: str, tmp_path: Path, during: Callable[[subprocess.Popen[str]], None] = lambda _: None
) -> tuple[int, list[str]]:
    """(exit code, lines) of three processes that each go on with `code`. Nothing of them may be left."""
    command = [sys.executable, "-I", "-c", SHARE_OUT + code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"TMPDIR": str(tmp_path)}) as process:
        during(process)
        said, _ = process.communicate(timeout=120)
    assert processes_that_name(str(tmp_path)) == []
    return process.returncode, said.splitlines()


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(7 if rank == 0 else 0)", 7),
        ("rank == 0 or time.sleep(60); sys.exit(0)", 0),  # it stopped before they had joined
        ("rank == 0 and os.abort(); time.sleep(60)", -signal.SIGABRT),
        ("rank == 2 and os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)", -signal.SIGKILL),
        ("rank == 2 and sys.exit(3); time.sleep(60)", 3),
        ("rank == 2 and sys.exit(3); rank == 1 and time.sleep(60); sys.exit(1)", 1),  # whichever is first, it has the last word
    ],
)
def test_it_ends_as_the_process_that_decides_did(code, exit_code, tmp_path):
    assert launched(code, tmp_path)[0] == exit_code


def test_the_first_alone_is_asked_to_stop(tmp_path):
    code = "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'asked %d' % rank), os._exit(0)))\nprint(rank, flush=True); time.sleep(60)"

    def ask(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert sorted(process.stdout.readline().strip() for _ in range(3)) == ["0", "1", "2"]
        process.terminate()

    assert launched(code, tmp_path, ask) == (0, ["asked 0"])


def test_all_die_with_whoever_watches_over_them(tmp_path):
    numbers: list[int] = []

    def kill(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        numbers.extend(int(process.stdout.readline()) for _ in range(3))
        process.kill()
        wait_for(lambda: all(gone(number) for number in numbers), "their death", 5)

    assert launched("print(os.getpid(), flush=True); time.sleep(60)", tmp_path, kill)[0] == -signal.SIGKILL


def test_each_knows_its_place_and_they_share_the_cores(tmp_path):
    names = ("LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "MODALBRIDGE_GROUP")
    _, said = launched(f"print(*(os.environ[name] for name in {names}), flush=True)", tmp_path)
    ranks, *same = zip(*(line.split() for line in said), strict=True)
    assert sorted(ranks) == ["0", "1", "2"]
    assert [set(one) for one in same[:2]] == [{"3"}, {str(max(1, len(os.sched_getaffinity(0)) // 3))}]
    assert len(set(same[2])) == 1
    assert Path(same[2][0]).parent.parent == tmp_path


def test_a_job_of_two_processes_survives_the_death_of_one_and_has_the_weights_of_one(embedded: Embedded):
    two = embedded.submit(**LONGER)
    with embedded.worker(processes_per_job=2):
        # No event tells it so fast.
        checkpoint = embedded.settings.work_dir / two / "attempt-1/out/checkpoint.pt"
        wait_for(checkpoint.exists, "a checkpoint", story=lambda: embedded.story(two))
        watcher = min(processes_that_name(f"{two}/attempt-1/"))
        _, second = sorted(map(int, Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split()))
        os.kill(second, signal.SIGKILL)
        job = embedded.until(two, "succeeded")
        assert (job.attempt, job.lost_attempts) == (2, 1), embedded.story(two)
        assert "killed by SIGKILL" in embedded.story(two)
        assert "2 processes work on it" in embedded.story(two)

        alone = embedded.submit(method="shot")
        embedded.until(alone, "succeeded")
        assert "one process of 2 works on it: each would normalise by its own share" in embedded.story(alone)
    ours, theirs = (load(files["model.safetensors"]) for files in (undisturbed(embedded, two), embedded.published(two)))
    for name, value in ours.items():
        assert torch.allclose(value.float(), theirs[name].float(), rtol=1e-2, atol=2e-3), name
