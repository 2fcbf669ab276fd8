"""A job killed anywhere and started again ends in the weights of an undisturbed one, byte for byte. Real processes, real
signals; a kill happens when a given event line appears."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from app.spec import AdaptationSpec, Method
from worker.adaptation import checkpoint
from worker.adaptation.events import Event, parse
from worker.adaptation.run import METHODS

from .conftest import spec
from .engine import started

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def job(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet with batch norms, and an undisturbed run of it in whole/."""
    folder = tmp_path_factory.mktemp("job")
    for name in ("target", "pairs", "test", "source.safetensors"):
        (folder / name).symlink_to(shapes / name)
    spec(folder, settings={"transfer": {"epochs": 3, "batch_size": 16}})
    events, code = attempt(folder, "whole")
    assert code == 0
    assert events[-1].type == "result"
    return folder


def attempt(
    folder: Path, out: str, until: Callable[[Event], bool] | None = None, by: signal.Signals = signal.SIGKILL
) -> tuple[list[Event], int]:
    """Runs the engine until its end, or sends the signal when an event says so. Returns the events and the exit code."""
    with started(folder, out, "--checkpoint-every", "0") as running:
        ended = running.end(until, by)
    return ended.events, ended.returncode


def weights(folder: Path, out: str) -> bytes:
    return (folder / out / "artifacts/model.safetensors").read_bytes()


def at(kind: str, phase: str, step: int = 0) -> Callable[[Event], bool]:
    return lambda event: event.type == kind and event.phase == phase and getattr(event, "step", step) >= step


def test_killed_again_and_again_it_ends_in_the_same_weights(job):
    deaths = [
        at("phase", "preparing"),
        at("checkpoint", "bridging", 3),
        lambda event: event.type == "metric" and event.series == "bridging/score" and event.step == 8,
        lambda event: event.type == "metric" and event.series == "transferring/churn",
        at("phase", "evaluating"),
        at("phase", "publishing"),
    ]
    resumed = []
    for death in deaths:
        events, code = attempt(job, "killed", death)
        assert code in (-signal.SIGKILL, 0), "it was to be killed, or, at the very last, to be too fast for it"
        resumed.append(events[0].resumed_from)
    events, code = attempt(job, "killed")
    assert code == 0
    assert events[-1].type == "result"
    assert [phase for phase, _ in filter(None, resumed)] == sorted(phase for phase, _ in filter(None, resumed))
    assert len({tuple(place) for place in resumed if place}) >= 3, "it went on from where it was"
    assert weights(job, "killed") == weights(job, "whole")
    whole, killed = ((job / out / "artifacts/metrics.json").read_text() for out in ("whole", "killed"))
    assert whole == killed
    for name in ("pictures.json", "pictures.webp"):
        assert (job / "whole/artifacts" / name).read_bytes() == (job / "killed/artifacts" / name).read_bytes(), name


def test_killed_where_stage_1_stops_early_it_takes_no_step_more(data):
    bridging = {"steps": 400, "batch_size": 8, "validate_every": 2, "patience": 2, "lr": 0.05}
    spec(data, method="tgmb", settings={"bridging": bridging, "weights": {"im": 0}})
    events, code = attempt(data, "whole")
    assert code == 0
    last = max(event.step for event in events if event.type == "checkpoint")
    assert last < 400, "it was to stop early"
    assert attempt(data, "killed", at("checkpoint", "bridging", last))[1] == -signal.SIGKILL
    events, code = attempt(data, "killed")
    assert (code, events[0].resumed_from) == (0, ("bridging", last))
    for name in ("metrics.json", "translator.safetensors"):
        assert (data / "whole/artifacts" / name).read_bytes() == (data / "killed/artifacts" / name).read_bytes(), name


@pytest.mark.parametrize(("phase", "step"), [("bridging", 6), ("transferring", 4)])
def test_asked_to_stop_it_finishes_the_step_says_so_and_goes_on_later(job, phase, step):
    out = f"stopped-{phase}"
    events, code = attempt(job, out, at("checkpoint", phase, step), signal.SIGTERM)
    assert code == 0
    assert events[-1].type == "stopped"
    assert events[-1].phase == phase
    assert events[-2].type == "checkpoint"
    assert events[-2].step == events[-1].step >= step
    events, code = attempt(job, out)
    assert events[0].resumed_from == (phase, events[0].resumed_from[1])
    assert code == 0
    assert weights(job, out) == weights(job, "whole")


@pytest.mark.parametrize("method", [method for method in get_args(Method) if method not in ("source_only", "tgmb_tgkt")])
def test_every_other_method_goes_on_in_its_last_stage_too(data, method):
    """What it needs at the next step must be in its checkpoint."""
    asked = spec(data, method=method)
    phase = [*METHODS[method].work(AdaptationSpec.model_validate_json(json.dumps(asked)), 60, 27)][-1]
    events, code = attempt(data, "whole")
    assert (code, events[-1].type) == (0, "result")
    assert attempt(data, "stopped", at("checkpoint", phase, 3), signal.SIGTERM)[0][-1].type == "stopped"
    events, code = attempt(data, "stopped")
    assert (code, events[0].resumed_from[0]) == (0, phase)
    for name in ("model.safetensors", "metrics.json"):
        assert (data / "stopped/artifacts" / name).read_bytes() == (data / "whole/artifacts" / name).read_bytes(), name


def test_bf16_of_another_machine_is_not_kept_where_the_cpu_emulates_it(data):
    """Unless it was asked for: an emulated step takes a minute, and that machine may never be back."""
    spec(data, settings={"precision": "auto"})
    with started(data, "out", "--checkpoint-every", "0") as running:
        assert running.end(at("checkpoint", "bridging", 3), signal.SIGTERM).events[-1].type == "stopped"
    state = checkpoint.load(data / "out")
    checkpoint.save(data / "out", state | {"precision": "bf16"})
    command = [sys.executable, "-m", "worker.adaptation", str(data / "spec.json"), "--out", str(data / "out")]
    environ = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environ, capture_output=True, timeout=280)
    assert ran.returncode == 0, ran.stderr.decode()
    events = [parse(line) for line in ran.stdout.splitlines()]
    assert (events[0].resumed_from, events[0].precision) == (("bridging", state["step"]), "fp32")
    assert json.loads((data / "out/artifacts/report.json").read_text())["device"]["precision"] == "fp32"
    assert [event.message for event in events if event.type == "log" and event.message.startswith("precision fp32")]


@pytest.mark.parametrize("phase", ["preparing", "evaluating"])
def test_where_nothing_is_trained_it_stops_at_once(job, phase):
    out = f"at-once-{phase}"
    events, code = attempt(job, out, at("phase", phase), signal.SIGTERM)
    assert code == 0
    assert events[-1].type == "stopped"
    assert events[-1].phase == phase
    assert not (job / out / "artifacts").exists()
    if phase == "evaluating":
        assert attempt(job, out)[1] == 0
        assert weights(job, out) == weights(job, "whole")


def test_a_second_engine_in_the_same_folder_waits_for_the_first(job):
    out = "two"
    with started(job, out) as first, started(job, out) as second:
        ends = [running.end().events[-1].type for running in (first, second)]
    assert ends == ["result", "result"]
    assert weights(job, out) == weights(job, "whole")
