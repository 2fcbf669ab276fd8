"""GPU series are there where a GPU is, and nowhere else."""

from __future__ import annotations

import pynvml
import pytest

from worker.gpus import Gpus


def samples(gpus: Gpus) -> dict[str, list[tuple[str, float]]]:
    return {
        family.name.removeprefix("modalbridge_worker_gpu_"): [(sample.labels["gpu"], sample.value) for sample in family.samples]
        for family in gpus.collect()
    }


@pytest.mark.parametrize("visible", ["", "-1", "GPU-00000000-0000-0000-0000-000000000000"])
def test_what_is_not_visible_has_no_series(visible: str):
    assert samples(Gpus(visible)) == {"memory_used_bytes": [], "memory_total_bytes": [], "utilisation_ratio": []}


def test_each_process_of_a_job_needs_a_gpu_of_its_own_where_there_are_any():
    gpus = Gpus("")
    gpus.require(4)
    gpus.handles = {"GPU-1": None, "GPU-2": None}
    gpus.require(2)
    with pytest.raises(RuntimeError, match="MODALBRIDGE_PROCESSES_PER_JOB is 3, and this worker sees 2"):
        gpus.require(3)


def test_parts_of_gpus_can_not_share_a_job():
    """CUDA enumerates one MIG device at most."""
    gpus = Gpus("")
    gpus.handles = {"GPU-1": None, "MIG-1": None, "MIG-2": None}
    gpus.require(1)
    with pytest.raises(RuntimeError, match="is 2, and MIG-1 is a part of a GPU"):
        gpus.require(2)


@pytest.mark.gpu
def test_a_gpu_tells_its_memory_and_how_busy_it_is():
    found = samples(Gpus(None))
    pynvml.nvmlInit()
    uuids = [pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(n)) for n in range(pynvml.nvmlDeviceGetCount())]
    assert [uuid for uuid, _ in found["memory_total_bytes"]] == uuids
    for (uuid, used), (_, total) in zip(found["memory_used_bytes"], found["memory_total_bytes"], strict=True):
        assert 0 < used < total, uuid
    assert all(0 <= share <= 1 for _, share in found["utilisation_ratio"])
    assert samples(Gpus("0"))["memory_total_bytes"] == samples(Gpus(uuids[0]))["memory_total_bytes"]
    assert samples(Gpus(f"{uuids[0]},nonsense,0"))["memory_total_bytes"] == found["memory_total_bytes"][:1]
