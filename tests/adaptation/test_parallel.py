"""One job by two processes: the losses and weights of one process; and who says and writes what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app.errors import Problem
from app.spec import AdaptationSpec, Method
from tests.adaptation.conftest import Ran, spec
from worker.adaptation import parallel
from worker.adaptation.events import parse
from worker.adaptation.run import METHODS, _shareable

UNIT = """
import torch
from worker.adaptation import batch_norm, losses, parallel

parallel.start(torch.device("cpu"))
torch.manual_seed(0)
x, w = torch.randn(8, 5), torch.nn.Parameter(torch.randn(5, 3))
shares = x[parallel.share(8)]
logits = parallel.gathered(shares @ w)
assert torch.allclose(logits, x @ w, atol=1e-6)
losses.L_IM(logits).backward()
parallel.average_gradients([w])
alone = w.detach().clone().requires_grad_()
losses.L_IM(x @ alone).backward()
assert torch.allclose(w.grad, alone.grad, atol=1e-6), (w.grad, alone.grad)

layers = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3)).eval()
for weights in layers.parameters():
    parallel.first_of_all(weights.data)
ours, all_of_it = shares.clone().requires_grad_(), x.clone().requires_grad_()
gather, gathers = torch.distributed.all_gather_into_tensor, []
torch.distributed.all_gather_into_tensor = lambda *arguments: (gathers.append(1), gather(*arguments))
with batch_norm.observed(layers, of_all=True) as seen:
    layers(ours)
assert len(gathers) == 1  # for all layers
with batch_norm.observed(layers) as expected:
    layers(all_of_it)
for here, there in zip(seen, expected, strict=True):
    for a, b in zip(here, there, strict=True):
        assert torch.allclose(a, b, atol=1e-6), (a, b)
running = [(torch.zeros(n), torch.ones(n)) for n in (5, 3)]
losses.L_BN(seen, running).backward()
losses.L_BN(expected, running).backward()
assert torch.allclose(ours.grad / parallel.size(), all_of_it.grad[parallel.share(8)], atol=1e-6)

assert parallel.part(5).tolist() == ([0, 1, 2] if parallel.first() else [3, 4, 4])
assert parallel.agreed(float(parallel.rank() + 7)) == 7
assert parallel.any_of(not parallel.first())
parallel.end()
"""


ALONE = "is this for one process? Then `_shareable` of worker/adaptation/run.py has to say why"


def two(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=240)


def test_devices_that_do_not_reach_each_other_are_told(monkeypatch):
    """As GPUs behind a bridge that lets none write into another: the exchange never ends, and no one says why."""
    monkeypatch.setattr(parallel, "MEETING_S", 0.1)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda *_, **__: SimpleNamespace(is_completed=lambda: False))
    with pytest.raises(Problem, match="do not reach each other") as raised:
        parallel._meet(torch.device("cpu"))
    assert raised.value.code == "device_failed"


def test_a_worker_s_processes_meet_in_a_folder_of_any_name_and_what_they_gather_has_the_gradients_of_the_whole(tmp_path):
    """Where loopback is all that they have, and a share of the memory until one goes on alone."""
    meeting = """
import os, resource
from worker import launcher, sandbox
sandbox.limit(resource.RLIMIT_DATA, 2**33)
refused = sandbox.leave_network(loopback=True)
assert refused or sandbox.loopback_is_up()
launcher.share_out(2)
assert resource.getrlimit(resource.RLIMIT_DATA) == (2**32, 2**33)
"""
    alone = """
if parallel.first():
    assert resource.getrlimit(resource.RLIMIT_DATA) == (2**33, 2**33)
    assert torch.get_num_threads() == 3
"""
    folder = tmp_path / "a b é #%41"
    folder.mkdir()
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", meeting + "os.environ['MODALBRIDGE_THREADS'] = '3'" + UNIT + alone]
    ran = subprocess.run(command, env=environ | {"TMPDIR": str(folder)}, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("calibration", ["auto", "always"])
def test_two_processes_have_the_losses_and_weights_of_one(adapt, data, tmp_path, calibration):
    """60 target images, which two processes divide evenly, and 32 pairs less 5 held out."""
    bridging = {"steps": 8, "by_relevance": False, "calibration": calibration}
    settings = {"bridging": bridging, "transfer": {"epochs": 2, "kl_by_score": False}}
    one = adapt("one", settings=settings)
    spec(data, settings=settings)
    ran = two("-m", "worker.adaptation", str(data / "spec.json"), "--out", str(tmp_path / "two"))
    assert ran.returncode == 0, ran.stderr

    events = [parse(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [event.type for event in events].count("result") == 1, "one process speaks"
    are_alike(one, tmp_path / "two")


@pytest.mark.parametrize("method", [method for method in get_args(Method) if method not in ("source_only", "tgmb_tgkt")])
def test_two_processes_have_those_of_one_by_every_other_method(adapt, data, tmp_path, method):
    changes = {"method": method, "settings": {"preset": "default", "bridging": {"steps": 8, "by_relevance": False}}}
    one = adapt("one", **changes)
    spec(data, **changes)
    ran = two("-m", "worker.adaptation", str(data / "spec.json"), "--out", str(tmp_path / "two"))
    assert ran.returncode == 0, ran.stderr
    are_alike(one, tmp_path / "two")


def are_alike(one: Ran, shared: Path) -> None:
    """The artifacts, series and weights, but for roundings."""
    assert sorted(path.name for path in (shared / "artifacts").iterdir()) == sorted(
        path.name for path in (one.out / "artifacts").iterdir()
    )
    series = json.loads((shared / "artifacts/metrics.json").read_text())["series"]
    assert series.keys() == one.series.keys()
    for name, points in one.series.items():
        assert [step for step, _ in series[name]] == [step for step, _ in points], name
        assert [value for _, value in series[name]] == pytest.approx([value for _, value in points], rel=2e-3, abs=2e-4), (
            f"{name}: {ALONE}"
        )
    ours, theirs = (load_file(out / "artifacts/model.safetensors") for out in (one.out, shared))
    for name, value in ours.items():
        assert torch.allclose(value.float(), theirs[name].float(), rtol=1e-2, atol=2e-3), f"{name}: {ALONE}"


def test_a_failure_of_both_is_told_and_aborts_neither(data, tmp_path):
    """Where they fail, the group is not left: its end with the process's must not look like a crash."""
    spec(data, data={"target": {"uri": "no_such_folder"}})
    ran = two("-m", "worker.adaptation", str(data / "spec.json"), "--out", str(tmp_path / "two"))
    assert '"code":"reference_missing"' in ran.stdout.replace(" ", "")
    assert "Signal 6" not in ran.stderr, ran.stderr


def why_alone(asked: AdaptationSpec) -> str | None:
    target, pairs = range(60), range(27)
    return _shareable(asked, METHODS[asked.method].work(asked, len(target), len(pairs)).keys(), target, pairs)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"settings": {"transfer": {"batch_norm": "batch"}}}, "(transfer.batch_norm)"),
        ({"settings": {"bridging": {"translator": "paper"}}}, "the paper's translator"),
        ({"settings": {"bridging": {"batch_size": 3}}}, "batches of 3 images"),
        ({"method": "shot"}, "(transfer.batch_norm)"),
        ({"method": "source_only"}, "nothing is trained"),
    ],
)
def test_what_two_processes_would_do_otherwise_than_one_is_for_one(data, monkeypatch, changes, why):
    monkeypatch.setattr(parallel, "size", lambda: 2)
    assert why in why_alone(AdaptationSpec.model_validate_json(json.dumps(spec(data, **changes))))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "shot", "settings": {"preset": "default", "bridging": {"translator": "paper"}}},
        {"method": "tgmb", "settings": {"transfer": {"batch_norm": "batch"}}},
        {"settings": {"weights": {"kl": 0}, "bridging": {"translator": "paper"}}},
    ],
)
def test_a_job_that_normalises_by_no_batch_is_for_two(data, monkeypatch, changes):
    """Settings of a stage that a job does not have keep none of its processes away."""
    monkeypatch.setattr(parallel, "size", lambda: 2)
    assert why_alone(AdaptationSpec.model_validate_json(json.dumps(spec(data, **changes)))) is None


def test_a_process_by_itself_has_everything():
    x = torch.rand(3, 2)
    assert parallel.gathered(x) is x
    assert x[parallel.share(3)].shape == x.shape
    assert parallel.part(3).tolist() == np.arange(3).tolist()
    assert parallel.agreed(0.5) == 0.5
    assert parallel.first()
