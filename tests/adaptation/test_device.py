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
