"""The GPUs that this worker's jobs may use, asked at each scrape by way of the driver's NVML: no torch, no CUDA context. Without a
driver, or without GPUs, there are no series."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pynvml
import structlog
from prometheus_client.core import GaugeMetricFamily

TRIAL_S = 300.0
"""To import torch and to wake a GPU takes seconds, and on a slow disk a minute."""
log = structlog.get_logger()


def try_out(processes: int, environment: Mapping[str, str]) -> None:
    """Has a process that is given what a job's is compute on each GPU of a job: NVML also names GPUs that CUDA can't use, and a job that
    finds out loses an attempt by it. Raises RuntimeError with what CUDA says."""
    command = [sys.executable, "-I", "-m", "worker.adaptation.trial", str(processes)]
    trial = subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE, text=True)  # noqa: S603 - our own command line
    try:
        _, said = trial.communicate(timeout=TRIAL_S)
    except subprocess.TimeoutExpired:
        trial.kill()  # and not waited for: it may be in a system call that does not return
        said = f"no answer within {TRIAL_S:g} s"
    if trial.returncode != 0:
        why = (said.strip().splitlines() or [f"exit code {trial.returncode}"])[-1]
        raise RuntimeError(
            f"it is to take jobs for CUDA, and can't: {why}. Mend the GPU; or, to work on the CPU, set MODALBRIDGE_TAKES_CUDA to false"
        )


class Gpus:
    """visible: CUDA_VISIBLE_DEVICES; None: all of the machine's. why_none: what the driver's library said."""

    def __init__(self, visible: str | None) -> None:
        self.why_none: str | None = None
        try:
            pynvml.nvmlInit()
            self.handles = dict(_visible(visible))
        except pynvml.NVMLError as error:
            self.handles, self.why_none = {}, str(error)

    def require(self, processes: int) -> None:
        """Raises RuntimeError where each process of a job could not have one of its own. A machine without any is asked for none."""
        if 0 < len(self.handles) < processes:
            raise RuntimeError(
                f"MODALBRIDGE_PROCESSES_PER_JOB is {processes}, and this worker sees {len(self.handles)} of the GPUs of which each needs one"
            )
        if processes > 1 and (parts := [uuid for uuid in self.handles if uuid.startswith("MIG-")]):
            raise RuntimeError(
                f"MODALBRIDGE_PROCESSES_PER_JOB is {processes}, and {parts[0]} is a part of a GPU: CUDA shows a process one such part "
                "(MIG) at most. Set it to 1, and start a worker for each part"
            )

    def describe(self) -> tuple[GaugeMetricFamily, ...]:
        return (
            GaugeMetricFamily("modalbridge_worker_gpu_memory_used_bytes", "Of a GPU, by everyone on it.", labels=["gpu"]),
            GaugeMetricFamily("modalbridge_worker_gpu_memory_total_bytes", "Of a GPU.", labels=["gpu"]),
            GaugeMetricFamily(
                "modalbridge_worker_gpu_utilisation_ratio", "Share of the time that a GPU computed, by NVML.", labels=["gpu"]
            ),
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        used, total, utilisation = self.describe()
        for uuid, handle in self.handles.items():
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                used.add_metric([uuid], memory.used)
                total.add_metric([uuid], memory.total)
                utilisation.add_metric([uuid], pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
            except pynvml.NVMLError_NotSupported:
                continue  # a part of a GPU (MIG) has a memory, and no utilisation of its own
            except pynvml.NVMLError as error:
                log.warning("a GPU does not answer", gpu=uuid, error=str(error))
        yield from (used, total, utilisation)


def _visible(visible: str | None) -> Iterator[tuple[str, Any]]:
    """UUID -> handle, as CUDA takes the list: numbers or UUIDs, up to the first that is neither."""
    if visible is None:
        named: list[Any] = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    else:
        named = []
        for name in filter(None, (part.strip() for part in visible.split(","))):
            try:
                by_number = name.isascii() and name.isdigit()
                named.append(
                    pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_number else pynvml.nvmlDeviceGetHandleByUUID(name)
                )
            except pynvml.NVMLError as error:
                log.warning("no GPU is seen from here on in CUDA_VISIBLE_DEVICES", name=name, error=str(error))
                break
    for handle in named:
        yield pynvml.nvmlDeviceGetUUID(handle), handle
