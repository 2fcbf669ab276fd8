from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from app.errors import Problem
from app.spec import InputSpec
from worker.adaptation import device, source_model


def test_auto_takes_what_is_there():
    assert device.choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.choose("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_a_problem():
    with pytest.raises(Problem) as raised:
        device.choose("cuda")
    assert raised.value.code == "device_unavailable"
    assert "driver" in raised.value.detail or "CUDA enabled" in raised.value.detail, "torch's own word for why"


@pytest.fixture
def told_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALBRIDGE_CUDA", "1")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.usefixtures("told_of_cuda")
def test_a_worker_that_has_lost_its_gpu_does_not_do_the_job_on_its_cpu(wanted, monkeypatch):
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).\nPlease update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(Problem, match=r"too old \(found version 12020\)\.$") as raised:
        device.choose(wanted)
    assert raised.value.code == "device_unavailable"
    assert device.choose("cpu").type == "cpu"


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize("fails", ["set_device", "computing"])
def test_a_gpu_that_is_there_and_does_not_compute_is_a_problem_with_its_reason(wanted, fails, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nCompile with")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", fail if fails == "set_device" else lambda place: None)
    monkeypatch.setattr(torch, "ones", fail)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(Problem, match=r"CUDA device 0 cannot be used: CUDA error: no kernel image .* the device$") as raised:
        device.choose(wanted)
    assert raised.value.code == "device_unavailable"
    assert torch.get_float32_matmul_precision() == before


def test_a_gpu_that_only_emulates_bf16_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not device.has_bf16(torch.device("cuda"))


def test_precision_follows_the_measured_ratio():
    source = source_model.build("timm/test_resnet", 3, InputSpec(size=32)).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    precision, ratio = device.measure_precision(source, torch.device("cpu"), 32, 4)
    assert (ratio > 0) == device.has_bf16(torch.device("cpu"))
    assert precision == ("bf16" if ratio > device.MARGIN else "fp32")
    assert all(torch.equal(before[name], value) for name, value in source.state_dict().items())


def test_a_cpu_that_emulates_bf16_is_not_measured():
    """Emulated, one step at 224 pixels can take a minute."""
    code = """if True:
        import torch
        from app.spec import InputSpec
        from worker.adaptation import device, source_model
        source = source_model.build("timm/test_resnet", 3, InputSpec(size=32)).eval()
        source.forward = None
        print(*device.measure_precision(source, torch.device("cpu"), 32, 4))
    """
    environ = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert ran.stdout.split() == ["fp32", "0.0"], ran.stderr


def test_bf16_runs_and_leaves_finite_weights(adapt):
    ran = adapt(settings={"precision": "bf16"})
    assert ran.report["device"]["precision"] == "bf16"
    assert ran.report["evaluation"]["target"]["adapted"]["mean_entropy"] >= 0


def test_auto_precision_is_measured_and_said(adapt):
    ran = adapt(settings={"precision": "auto"})
    said = [event.message for event in ran.events if event.type == "log" and event.message.startswith("precision")]
    assert len(said) == 1
    assert ran.report["device"]["precision"] in said[0]
