"""What a job over many images holds in memory, and whether its cost an image grows with their number.

    python -m benchmarks.memory --work var/memory --images 100000

Runs the engine as the worker would, `python -m worker.adaptation`, with method tgmb_tgkt over 1,000 images and over each of
--images (default: 10,000 and 100,000), at a small input: one step of the first stage, one epoch of the second. So every image is decoded, given a
pseudo-label, trained on and evaluated. The files of a set are a few hundred, hard-linked under as many names as it takes.

    memory   of the process alone, sampled from /proc/PID/status ten times a second. anonymous (RssAnon) is what only it holds;
             resident (VmRSS) has besides the pages of the image cache that the kernel keeps in memory while there is room, and
             takes back when there is not. What counts is anonymous memory: its peak less that over 1,000 images, which
             have the same weights, libraries and batches.
    seconds  of each phase, as the engine says when one begins; also by further image from one job to the next larger, in which
             what a job costs whatever its size is left out: that must not grow

Linux alone tells these figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from app.spec import InputSpec
from benchmarks import camera_images
from benchmarks.environment import ROOT, cores, environment
from worker.adaptation import source_model
from worker.adaptation.events import PhaseBegan, parse

BASE = 1000
DISTINCT = 200
PAIRS = 64
IMAGE = (64, 48)
CLASSES = 10
INTERVAL_S = 0.1
A_FOLDER = 1000


def many(work: Path, images: int) -> Path:
    """A folder of `images` names for DISTINCT made files, A_FOLDER to a folder; one that is whole stays."""
    made = camera_images.make(work / "distinct", DISTINCT, PAIRS, IMAGE)
    originals = sorted((made / "target").iterdir())
    folder = work / f"target-{images}"
    if not folder.is_dir():
        aside = folder.with_suffix(".partial")
        shutil.rmtree(aside, ignore_errors=True)
        for i in range(images):
            if i % A_FOLDER == 0:
                below = aside / f"{i // A_FOLDER:04}"
                below.mkdir(parents=True)
            os.link(originals[i % DISTINCT], below / f"{i:07}.png")
        aside.rename(folder)
    return folder


def write_spec(work: Path, folder: Path, weights: Path, given: argparse.Namespace) -> Path:
    document = {
        "source_model": {
            "uri": str(weights),
            "architecture": given.architecture,
            "classes": [f"class {k}" for k in range(CLASSES)],
            "input": {"size": given.size},
        },
        "data": {"target": {"uri": str(folder)}, "pairs": {"uri": str(work / "distinct/pairs")}},
        "method": "tgmb_tgkt",
        "settings": {
            # Both stages with all their losses, whatever the made pairs are to the task.
            "bridging": {"steps": 1, "batch_size": 8, "calibration": "never"},
            "transfer": {"epochs": 1, "batch_size": given.batch_size, "feat_by_relevance": False},
            "precision": given.precision,
        },
        "device": "cpu",
    }
    path = work / f"{folder.name}.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Ran:
    """began: seconds by phase, since the start. seconds: of the whole. samples: KiB by name, by when they were taken."""

    images: int
    began: dict[str, float]
    seconds: float
    samples: list[tuple[float, dict[str, int]]]

    def phases(self) -> dict[str, float]:
        """Seconds of each; the start of Python is part of `preparing`."""
        ends = [*list(self.began.values())[1:], self.seconds]
        return {
            name: end - (start if i else 0.0) for i, ((name, start), end) in enumerate(zip(self.began.items(), ends, strict=True))
        }

    def peak(self, name: str) -> int:
        return max(sample[name] for _, sample in self.samples)

    def peaks(self, name: str) -> dict[str, int]:
        """KiB by phase."""
        found: dict[str, int] = {}
        for when, sample in self.samples:
            phase = [phase for phase, start in self.began.items() if start <= when][-1:] or ["preparing"]
            found[phase[0]] = max(found.get(phase[0], 0), sample[name])
        return found


def run(images: int, spec: Path, out: Path) -> Ran:
    """Runs the engine anew in `out`. Raises RuntimeError where it fails."""
    shutil.rmtree(out, ignore_errors=True)
    log = out.with_suffix(".log")
    command = [sys.executable, "-m", "worker.adaptation", str(spec), "--out", str(out), "--checkpoint-every", "1e9"]
    began, start, samples, over = {}, time.monotonic(), [], threading.Event()
    with log.open("wb") as file, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file) as process:  # noqa: S603

        def look() -> None:
            while not over.wait(INTERVAL_S):
                if found := memory(process.pid):
                    samples.append((time.monotonic() - start, found))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            for line in process.stdout or ():
                if isinstance(event := parse(line), PhaseBegan):
                    began[event.phase] = time.monotonic() - start
        except BaseException:
            process.terminate()
            raise
        finally:
            over.set()
            looking.join()
    if process.returncode:
        raise RuntimeError(f"the engine ended with exit code {process.returncode}; {log} says why")
    return Ran(images, began, time.monotonic() - start, samples)


def memory(pid: int) -> dict[str, int]:
    """KiB of a process by name, as in `man 5 proc_pid_status`; empty where it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(value) for name, value in re.findall(r"^(RssAnon|VmRSS):\s+(\d+) kB$", status, re.MULTILINE)}


def compared(ran: Sequence[Ran]) -> dict[str, Any]:
    """The figures of jobs over more and more images, the first being the one that the others are held against."""
    base = ran[0]
    found = []
    for one in ran:
        phases = one.phases()
        found.append(
            {
                "images": one.images,
                "seconds": round(one.seconds, 1),
                "seconds_per_image": {name: round(value / one.images, 6) for name, value in phases.items()},
                "peak_mib": {name: one.peak(name) // 2**10 for name in ("RssAnon", "VmRSS")},
                "peak_anonymous_mib_by_phase": {name: value // 2**10 for name, value in one.peaks("RssAnon").items()},
                "anonymous_mib_over_base": (one.peak("RssAnon") - base.peak("RssAnon")) // 2**10,
            }
        )
    further = [
        {
            "from": a.images,
            "to": b.images,
            "seconds_per_further_image": {
                name: round((b.phases()[name] - seconds) / (b.images - a.images), 6) for name, seconds in a.phases().items()
            },
        }
        for a, b in pairwise(ran)
    ]
    return {"jobs": found, "further": further}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="on one file system with room for 6 KB an image")
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--base", type=int, default=BASE, help="images of the job that the others are held against")
    parser.add_argument("--architecture", default="torchvision/shufflenet_v2_x2_0", help="default: small, with 2,048 features")
    parser.add_argument("--size", type=int, default=32, help="of its input, in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    given = parser.parse_args(arguments)
    sizes = sorted({given.base, *given.images})
    if sizes[0] < given.base:
        parser.error(f"--images must not be less than --base, {given.base}")
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    weights = work / "fresh.safetensors"
    torch.manual_seed(0)
    save_file(source_model.weights(source_model.build(given.architecture, CLASSES, InputSpec(size=given.size))), weights)
    ran = []
    for images in sizes:
        print(f"{images} images", file=sys.stderr, flush=True)
        ran.append(run(images, write_spec(work, many(work, images), weights, given), work / f"out-{images}"))
        print(json.dumps(compared(ran[-1:])), file=sys.stderr, flush=True)
        shutil.rmtree(work / f"out-{images}")
    threads = int(os.environ.get("OMP_NUM_THREADS", cores()))
    settings = {name: getattr(given, name) for name in ("architecture", "size", "batch_size", "precision")}
    print(json.dumps({"environment": environment(threads, 1), "settings": settings, **compared(ran)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
