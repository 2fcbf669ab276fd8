"""Images a second through a training step, against SOCKET's loop done the straightforward way, and a step's time against the bare
compute of its networks. All in one run, in turns, since a machine's speed changes by the minute.

    python -m benchmarks.speed --work var/speed

    engine             worker.adaptation's own methods, from their cache of decoded images: tgmb_tgkt with its default settings (its
                       second stage; T is there), and socket with SOCKET's
    socket_loop        benchmarks.socket_loop, from files, fp32; with 0 and with 2 worker processes a loader (--loader-workers), the fastest counts
    bare               what tgmb_tgkt's step asks of its networks, on tensors that are there: the student forward and backward on the
                       target and TI images, T on the target images, the source model on those and on TI RGB; the optimiser's step

Images are target images and pairs, a batch of each a step, counted alike. Ratios of medians of single steps:

    tgkt_to_socket_loop    TGKT as a user gets it (precision auto) to SOCKET's loop as published, which has no teacher to run
    tgkt_fp32_to_...       the same without the gain of bf16
    same_terms             the engine's socket in fp32 to SOCKET's loop: the same networks and losses, so this is the data path, the
                           memory format and the book-keeping alone
    step_to_bare           time of TGKT's step over that of its networks, at the same precision; 1 is nothing lost

The pass for pseudo-labels, one an epoch, is timed by itself, and `epoch` has both ratios with it counted in. Decoding, which the
engine does once and SOCKET's loop in every epoch, is in `decoding_s`; `epochs_to_break_even` is when it has paid. At 48 pixels
the data path weighs most, at 224 the networks do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import camera_images, socket_loop
from benchmarks.engine_steps import Prepared, bare_steps, engine_labels, engine_steps, prepare
from benchmarks.environment import cores, environment
from worker.adaptation import device
from worker.adaptation.device import Precision, measure_precision

Turn = Callable[[], list[float]]
"""Seconds of some steps."""


def socket_steps(prepared: Prepared, files: Path, steps: int, workers: int) -> list[float]:
    """Of `steps` steps after one that warms up."""
    spec = prepared.spec("socket", "fp32")
    input, s = spec.source_model.input, spec.settings.transfer
    rgb, depth = (sorted((files / "pairs" / side).iterdir()) for side in ("rgb", "depth"))
    targets = socket_loop.TargetFiles(sorted((files / "target").iterdir()), socket_loop.training(input, 1))
    loaders = [socket_loop.loader(one, s.batch_size, workers) for one in (targets, socket_loop.PairFiles(rgb, depth, input))]
    going = socket_loop.steps(prepared.contiguous, *loaders, spec.settings.weights, s)
    next(going)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        next(going)
        seconds.append(time.perf_counter() - began)
    going.close()
    return seconds


def socket_labels(prepared: Prepared, files: Path, images: int, workers: int) -> float:
    """Seconds an image."""
    input = prepared.spec("socket", "fp32").source_model.input
    paths = sorted((files / "target").iterdir())[:images]
    began = time.perf_counter()
    test = socket_loop.TargetFiles(paths, socket_loop.testing(input, 1))
    socket_loop.label(prepared.contiguous, test, prepared.batch_size, workers)
    return (time.perf_counter() - began) / len(paths)


def in_turns(contestants: dict[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Everyone's seconds; each has a turn in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, turn in contestants.items():
            seconds[name] += turn()
            print(f"round {number + 1} of {rounds}, {name}: {seconds[name][-1]:.4f} s", file=sys.stderr, flush=True)
    return seconds


def measure(files: Path, architecture: str, size: int, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=given.work, prefix="engine-") as folder:
        prepared = prepare(files, Path(folder), architecture, size, given.batch_size, given.device)
        precision, gain = measure_precision(prepared.source, given.device, size, given.batch_size)
        steps, images = given.steps, min(given.images, len(prepared.target))
        contestants: dict[str, Turn] = {
            f"socket_loop, {n} workers": lambda n=n: socket_steps(prepared, files, steps, n) for n in given.loader_workers
        }
        labels: dict[str, Turn] = {
            f"socket_loop, {n} workers": lambda n=n: [socket_labels(prepared, files, images, n)] for n in given.loader_workers
        }
        contestants["socket, fp32"] = lambda: engine_steps(prepared, "socket", "fp32", steps)
        precisions: list[Precision] = ["fp32", *([precision] if precision != "fp32" else [])]
        for one in precisions:
            contestants[f"tgmb_tgkt, {one}"] = lambda one=one: engine_steps(prepared, "tgmb_tgkt", one, steps)
            contestants[f"bare, {one}"] = lambda one=one: bare_steps(prepared, one, steps)
            labels[f"engine, {one}"] = lambda one=one: [engine_labels(prepared, one, images)]
        if given.profile:
            print(profiled(prepared, precision, steps), file=sys.stderr, flush=True)
        return {
            "architecture": architecture,
            "size": size,
            "batch_size": given.batch_size,
            "precision_auto": precision,
            "bf16_gain": round(gain, 2),
        } | compared(
            in_turns(contestants, given.rounds), in_turns(labels, given.rounds), precision, given.batch_size, prepared.decoding_s
        )


def profiled(prepared: Prepared, precision: Precision, steps: int) -> str:
    """Where the time of tgmb_tgkt's steps goes, by torch's profiler: a table."""
    with torch.profiler.profile() as seen:
        engine_steps(prepared, "tgmb_tgkt", precision, steps)
    return seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=45)


def compared(
    steps: dict[str, list[float]], labels: dict[str, list[float]], precision: str, batch_size: int, decoding_s: dict[str, float]
) -> dict[str, Any]:
    """The figures. steps: seconds of each step. labels: seconds an image of each pass. decoding_s: seconds an image, by set."""
    step = {name: statistics.median(values) for name, values in steps.items()}
    label = {name: statistics.median(values) for name, values in labels.items()}
    loop, tgkt = (min((name for name in step if name.startswith("socket_loop")), key=step.__getitem__), f"tgmb_tgkt, {precision}")
    label_loop = min((name for name in label if name.startswith("socket_loop")), key=label.__getitem__)
    # Seconds for a target image and the pair that goes with it, pseudo-labels counted in.
    epoch = {
        loop: step[loop] / batch_size + label[label_loop],
        "tgmb_tgkt, fp32": step["tgmb_tgkt, fp32"] / batch_size + label["engine, fp32"],
        tgkt: step[tgkt] / batch_size + label[f"engine, {precision}"],
    }
    once, saved = decoding_s["target"] + decoding_s["pairs"], epoch[loop] - epoch[tgkt]
    ratios = {
        "tgkt_to_socket_loop": step[loop] / step[tgkt],
        "tgkt_fp32_to_socket_loop": step[loop] / step["tgmb_tgkt, fp32"],
        "same_terms": step[loop] / step["socket, fp32"],
        "step_to_bare": step[tgkt] / step[f"bare, {precision}"],
        "step_to_bare_fp32": step["tgmb_tgkt, fp32"] / step["bare, fp32"],
        "epoch": epoch[loop] / epoch[tgkt],
        "epoch_fp32": epoch[loop] / epoch["tgmb_tgkt, fp32"],
    }
    return {
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "images_per_s": {name: round(2 * batch_size / value, 2) for name, value in step.items()},
        "step_s": {
            name: {
                "median": round(step[name], 4),
                "least": round(min(values), 4),
                "most": round(max(values), 4),
                "steps": len(values),
            }
            for name, values in steps.items()
        },
        "label_s_per_image": {name: round(value, 6) for name, value in label.items()},
        "decoding_s_per_image": {name: round(value, 6) for name, value in decoding_s.items()},
        "epochs_to_break_even": round(once / saved, 2) if saved > 0 else None,
        "socket_loop_best": loop,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the made images are kept here")
    parser.add_argument("--architecture", default="torchvision/resnet18")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 48], help="of the networks' input, in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=256, help="target images, and as many pairs, of 640 x 480")
    parser.add_argument("--steps", type=int, default=4, help="that are timed in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="a GPU is waited for after every step")
    parser.add_argument(
        "--loader-workers", type=int, nargs="+", default=[0, 2], help="of SOCKET's loop; each is tried, the fastest counts"
    )
    parser.add_argument("--profile", action="store_true", help="say on stderr where a step's time goes, too")
    given = parser.parse_args(arguments)
    given.device = device.choose(given.device)
    if given.images < (needed := given.batch_size * (given.steps + 2)):
        parser.error(f"--images must be {needed} at least: an epoch of the steps of a turn, and two more")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cores())))
    given.work.mkdir(parents=True, exist_ok=True)
    print("making the images", file=sys.stderr, flush=True)
    files = camera_images.make(given.work / "images", given.images, given.images)
    found = [measure(files, given.architecture, size, given) for size in given.sizes]
    print(json.dumps({"environment": environment(torch.get_num_threads(), 1), "measured": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
