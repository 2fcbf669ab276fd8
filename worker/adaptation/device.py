"""Which device, and which precision is fast on it: measured, never assumed."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from app.errors import Problem
from worker.adaptation import parallel
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.failures import first_line
from worker.adaptation.source_model import Classifier

Precision = Literal["fp32", "bf16"]
MARGIN = 1.1
"""bf16 must be faster by this factor: at a tie the exact one is taken."""


def choose(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to run on, tried; auto takes CUDA where it is there, of several processes each its own. A process that is told that
    its worker has a GPU (MODALBRIDGE_CUDA) finds one or does not work. Raises Problem device_unavailable."""
    there = torch.cuda.is_available()
    if wanted == "cpu" or (wanted == "auto" and not there and "MODALBRIDGE_CUDA" not in os.environ):
        return torch.device("cpu")
    if not there:
        raise Problem("device_unavailable", f"no CUDA device is visible to the worker: {_why_none()}", pointer="/device")
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        raise Problem(
            "device_unavailable", f"a job of at least {place + 1} processes finds {count} CUDA devices", pointer="/device"
        )
    found = torch.device("cuda", place)
    try:
        torch.cuda.set_device(place)  # where whatever names no device goes: pinned memory, a barrier
        torch.ones(1, device=found).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise Problem(
            "device_unavailable",
            f"CUDA device {place} cannot be used: {first_line(str(error)) or type(error).__name__}",
            pointer="/device",
        ) from error
    torch.set_float32_matmul_precision("high")
    return found


def _why_none() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(str(error)) or type(error).__name__
    return "torch does not say why"


def name(device: torch.device) -> str:
    """The device in words, for the events and the report."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on the device; nothing waits for a copy to CUDA."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Images [N, C, H, W] on the device, in the memory format that convolutions are fastest in on both kinds: 1.4 to 1.7
    times on the CPUs that we measured ResNet-18 and MobileNet on."""
    return moved(x, device).contiguous(memory_format=torch.channels_last)


def has_bf16(device: torch.device) -> bool:
    """Whether it is worth measuring: an x86 CPU without AVX-512 emulates bf16, so slowly that the measuring takes minutes; a GPU
    older than Ampere emulates it, too."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


def measure_precision(
    source: Classifier | Ensemble, device: torch.device, size: int, batch_size: int, turns: int = 3
) -> tuple[Precision, float]:
    """The faster precision for the source model, forward and backward, and by what factor bf16 is faster than fp32; 0 where there is
    no bf16 to measure.

    The best of a few turns counts: another process on the machine can only make one slower. Gradients with regard to the image are
    asked for, so that the frozen source model runs backward as it does behind T. A GPU is given a process's share of a batch, and the
    next before it is done with one, as in training: of a few images, launching them would be all that is measured. Fewer, where memory does
    not do.
    """
    if not has_bf16(device):
        return "fp32", 0.0
    images = max(1, batch_size // parallel.size()) if device.type == "cuda" else min(batch_size, 16)
    while True:
        try:
            ratio = _gain(source, device, size, images, turns)
        except torch.OutOfMemoryError:
            if images == 1:
                raise
            images //= 2
        else:
            return ("bf16" if ratio > MARGIN else "fp32"), ratio


def _gain(source: Classifier | Ensemble, device: torch.device, size: int, images: int, turns: int) -> float:
    ahead = 4 if device.type == "cuda" else 1
    x = to_device(torch.full((images, 3, size, size), 0.5), device).requires_grad_()
    seconds = {}
    for precision in ("fp32", "bf16"):
        times = []
        for _ in range(turns + 1):
            began = time.perf_counter()
            for _ in range(ahead):
                with autocast(device, precision):
                    _, logits = source(x)
                torch.autograd.grad(logits.float().sum(), x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
        seconds[precision] = min(times[1:])
    return seconds["fp32"] / seconds["bf16"]
