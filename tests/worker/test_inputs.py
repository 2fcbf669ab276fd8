"""What a job's process is given of its worker's environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker import inputs
from worker.workspace import Workspace

SPACE = Workspace(Path("/work/attempt-1"))


def test_gpus_are_counted_as_the_drivers_own_library_counts_them_unless_the_operator_says_otherwise(monkeypatch):
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert inputs.environment(SPACE, cuda=False)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert inputs.environment(SPACE, cuda=False)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_what_is_set_for_nccl_and_for_torchs_memory_reaches_the_job_and_no_setting_does(monkeypatch):
    given = {"NCCL_P2P_DISABLE": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "PYTORCH_CUDA_ALLOC_CONF": "x:1", "PYTORCH_ALLOC_CONF": "y:1"}  # fmt: skip
    for name, value in (given | {"MODALBRIDGE_DATABASE_URL": "secret", "AWS_SECRET_ACCESS_KEY": "secret"}).items():
        monkeypatch.setenv(name, value)
    found = inputs.environment(SPACE, cuda=False)
    assert given.items() <= found.items()
    assert "secret" not in found.values()


@pytest.mark.parametrize(("cuda", "told"), [(True, {"MODALBRIDGE_CUDA": "1"}), (False, {})])
def test_it_is_told_whether_its_worker_has_a_gpu(cuda, told):
    found = inputs.environment(SPACE, cuda=cuda)
    assert {name: value for name, value in found.items() if name.startswith("MODALBRIDGE_")} == told
