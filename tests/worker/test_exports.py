"""torch_export and onnx from a running worker: made in the sandbox, published with the rest, told in the job's result."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.adaptation.conftest import CLASSES, SIZE
from tests.worker.embedded import QUICK, Embedded, processes_that_name, wait_for

pytestmark = pytest.mark.acceptance


def namespace(number: int | str) -> str:
    return str(Path(f"/proc/{number}/ns/net").readlink())


def test_a_workers_job_publishes_what_it_was_asked_for_from_within_its_sandbox(embedded: Embedded):
    job_id = embedded.submit(outputs=["torch_export", "onnx"], **QUICK)
    with embedded.worker():
        place = f"{job_id}/attempt-1/out/exporting"
        wait_for(lambda: processes_that_name(place), "an exporter", 120, lambda: embedded.story(job_id))
        exporter = processes_that_name(place)[0]
        (child,) = set(processes_that_name(f"{job_id}/attempt-1/")) - set(processes_that_name(place))
        assert namespace(exporter) == namespace(child)
        isolated = "network_not_isolated" not in embedded.story(job_id)
        assert (namespace(exporter) != namespace("self")) == isolated
        limits = [Path(f"/proc/{number}/limits").read_text() for number in (exporter, child)]
        assert limits[0] == limits[1]
        environment = Path(f"/proc/{exporter}/environ").read_bytes().split(b"\0")
        assert not [one for one in environment if one.startswith(b"MODALBRIDGE_")]
        scratch = os.fsencode(embedded.settings.work_dir / place)
        assert {b"HOME=" + scratch, b"TMPDIR=" + scratch, b"CUDA_VISIBLE_DEVICES="} <= set(environment)
        job = embedded.until(job_id, "succeeded", seconds=200)
    outputs = job.result["outputs"]
    assert [one["published"] for one in outputs.values()] == [True, True, True], outputs
    assert outputs["onnx"]["images"] == 60 and outputs["onnx"]["agreement"] == 1
    published = embedded.published(job_id)
    assert {"model.safetensors", "model.pt2", "model.onnx", "preprocessing.json", "README.md"} <= set(published)
    (logits,) = onnxruntime.InferenceSession(published["model.onnx"]).run(
        None, {"images": np.zeros((2, 3, SIZE, SIZE), np.float32)}
    )
    assert logits.shape == (2, len(CLASSES))
    assert json.loads(published["report.json"])["outputs"] == outputs
    log = [event.message for event in embedded.events(job_id, "log")]
    assert [line.split()[0] for line in log if " made in " in line] == ["model.pt2", "model.onnx"]
