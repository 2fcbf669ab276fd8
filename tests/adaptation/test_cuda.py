"""What only CUDA can break: every method and kind of network on it, pinned batches of 8 and 16 bits, a job that goes on there
after a death, and losses that are those of the CPU."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from typing import get_args

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from app.spec import Method
from tests.adaptation.conftest import CLASSES, spec
from tests.adaptation.test_ensemble import second  # noqa: F401 - a fixture
from tests.adaptation.test_resume import at, attempt
from worker.adaptation import batch_norm, parallel
from worker.adaptation.device import choose
from worker.adaptation.events import parse
from worker.adaptation.image_sets import Images
from worker.adaptation.losses import L_BN
from worker.adaptation.scaling import Range

pytestmark = [pytest.mark.gpu, pytest.mark.acceptance]


def whole(ran) -> None:
    """It ran on CUDA, and what it published is on no device and finite."""
    started = next(event for event in ran.events if event.type == "started")
    assert (started.device, ran.report["device"]["kind"]) == ("cuda", "cuda")
    for name, tensor in load_file(ran.out / "artifacts/model.safetensors").items():
        assert tensor.isfinite().all(), name
    assert all(math.isfinite(value) for points in ran.series.values() for _, value in points)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_runs_on_it(adapt, method, precision):
    whole(adapt(method=method, device="cuda", settings={"precision": precision}))


def test_the_papers_translator_and_optimiser_run_on_it(adapt):
    whole(adapt(device="cuda", settings={"preset": "paper"}))


@pytest.mark.parametrize("architecture", ["timm/test_vit", "timm/test_convnext", "timm/test_efficientnet"])
def test_networks_with_and_without_batch_norms_run_on_it(adapt, data, architecture):
    """At least ten steps: that is when the losses are first looked at."""
    torch.manual_seed(0)
    name = architecture.removeprefix("timm/")
    changes = {"img_size": 32} if "vit" in name else {}
    save_file(timm.create_model(name, num_classes=len(CLASSES), **changes).state_dict(), data / "source.safetensors")
    whole(adapt(device="cuda", source_model={"architecture": architecture}))


def test_several_source_models_run_on_it(adapt, second):  # noqa: F811
    ran = adapt(device="cuda", further_source_models=[second], settings={"precision": "auto", "transfer": {"mixing": "learned"}})
    whole(ran)
    assert sum(member["weight"] for member in ran.model["members"]) == pytest.approx(1)


def test_outputs_are_made_beside_a_model_that_is_on_it(adapt):
    ran = adapt(device="cuda", outputs=["safetensors", "torch_export", "onnx"])
    whole(ran)
    assert all(told["published"] for told in ran.report["outputs"].values())


def test_the_first_losses_are_those_of_the_cpu(adapt):
    """The same batches and weights; TF32 and another order of sums make up the difference."""
    first = {
        where: {name: points[0][1] for name, points in adapt(out=where, device=where).series.items() if "/L_" in name}
        for where in ("cpu", "cuda")
    }
    assert first["cpu"].keys() == first["cuda"].keys()
    for name, value in first["cpu"].items():
        assert first["cuda"][name] == pytest.approx(value, rel=0.05, abs=0.01), name


def test_killed_on_it_a_job_goes_on_from_its_checkpoint(data):
    spec(data, device="cuda")
    for death in (at("checkpoint", "bridging", 3), at("checkpoint", "transferring", 2)):
        assert attempt(data, "killed", death)[1] == -signal.SIGKILL
    events, code = attempt(data, "killed")
    assert code == 0
    assert events[0].resumed_from[0] == "transferring"
    assert all(tensor.isfinite().all() for tensor in load_file(data / "killed/artifacts/model.safetensors").values())


def test_in_the_sandbox_of_a_worker_it_is_there(data):
    """Without a network, and with the limits that a machine of 16 GB sets; CUDA maps much more than it uses."""
    spec(data, device="cuda")
    limits = ["--data-bytes", str(int(0.8 * 2**34)), "--file-bytes", str(2**40), "--open-files", "4096"]
    engine = [str(data / "spec.json"), "--out", str(data / "out")]
    command = [sys.executable, "-m", "worker.sandbox", "--parent", str(os.getpid()), *limits, "--", *engine]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    events = [parse(line.encode()) for line in ended.stdout.splitlines()]
    assert next(event for event in events if event.type == "started").device == "cuda"
    assert events[-1].type == "result"


def test_nccl_takes_what_processes_of_a_job_tell_each_other(tmp_path):
    """In a group of one, which is all that one GPU can have: every kind of tensor that is sent, and gradients of what is gathered."""
    device = choose("cuda")
    store = dist.FileStore(str(tmp_path / "met"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, world_size=1, rank=0, device_id=device)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.rand(4, 3, 5, 5, device=device).to(dtype, memory_format=torch.channels_last).requires_grad_()
            y = parallel._Gather.apply(x)
            assert torch.equal(x, y)
            y.square().sum().backward()
            assert torch.equal(x.grad, 2 * x)
        for told in (torch.tensor(0.1, dtype=torch.float64), torch.tensor(1), torch.rand(3, device=device)):
            before = told.clone()
            dist.broadcast(told, 0)
            dist.all_reduce(told, dist.ReduceOp.MAX)
            assert torch.equal(told, before)
    finally:
        dist.destroy_process_group()


def test_statistics_are_those_of_the_cpu():
    """CUDA has a way of its own to them."""
    device = choose("cuda")
    torch.manual_seed(0)
    layer = torch.nn.BatchNorm2d(6).eval()
    x = 3 + 2 * torch.randn(5, 6, 7, 7)
    x[:, 5] = 0.25  # a constant channel
    running, found = [(torch.zeros(6), torch.ones(6))], []
    for where, dtype in (("cpu", torch.float32), (device, torch.float32), (device, torch.bfloat16)):
        given = x.to(where, dtype, memory_format=torch.channels_last).detach().requires_grad_()
        with batch_norm.observed(layer.to(where), images=3) as seen:
            layer(given)
        mu, var = seen[0]
        L_BN([(mu, var)], [(a.to(where), b.to(where)) for a, b in running]).backward()
        found.append([one.float().cpu() for one in (mu, var, given.grad)])
    for ours in found[1:]:
        for a, b in zip(ours, found[0], strict=True):
            assert torch.allclose(a, b, rtol=0.02, atol=2e-3)


def test_images_of_8_and_16_bits_arrive_as_they_are():
    device = choose("cuda")
    generator = torch.Generator().manual_seed(0)
    for dtype, most in ((torch.uint8, 255), (torch.uint16, 65535)):
        stored = torch.randint(0, most + 1, (5, 1, 7, 9), generator=generator).to(dtype).numpy()
        images = Images(stored, [], Range(most.bit_length(), 1.0, 0, most, ""), 7.0)
        index = torch.tensor([4, 0, 2]).numpy()
        there = images.batch(index, device)
        assert there.device.type == "cuda"
        assert torch.equal((there.cpu().double() * most).round().to(torch.int64), torch.from_numpy(stored[index].astype("int64")))
