"""The outputs torch_export and onnx: made, loaded again, and held against the adapted model on real target images. One that
cannot be made, or that answers otherwise, is not published, and says why; the adapted model itself always is.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.errors import Problem
from app.spec import FORMATS, Format
from worker.adaptation import evaluation, preprocessing
from worker.adaptation.events import Logged, Warned
from worker.adaptation.exporter import batches
from worker.adaptation.job import Adapted, Job
from worker.adaptation.translator import replicate

IMAGES = 64
"""Target images that an output is compared on, evenly spread over all of them."""
LARGEST_DIFFERENCE = 1e-3
"""Of a logit, as a share of the largest logit: ten times what float32 costs a deep network in another order of sums."""
LEAST_AGREEMENT = 0.99
LIMIT_S = 3600.0
"""Of one export. Seconds to a minute are usual."""
SCRATCH = "exporting"
ALONE = {"CUDA_VISIBLE_DEVICES": "", "ORT_DISABLE_TELEMETRY": "1"}
"""Of an exporter's environment. No GPU: the adapted model may hold most of its memory. ONNX Runtime would keep a database of what
it does in the home folder, and send it to its maker."""


class Graph(nn.Module):
    """What is exported: images [N, C, H, W] as preprocessing.json says -> logits [N, K]. On the CPU, a copy."""

    def __init__(self, job: Job, adapted: Adapted) -> None:
        super().__init__()
        inside = preprocessing.in_graph(job.spec, adapted)
        self.classifier = _for_export(adapted.classifier)
        self.translator = _for_export(adapted.translator) if "translate" in inside else None
        self.normalizes = "normalize" in inside or len(adapted.classifier.members) > 1

    def forward(self, images: Tensor) -> Tensor:
        x = images if self.translator is None else self.translator(images)
        return self.classifier(x)[1] if self.normalizes else self.classifier.h(self.classifier.f(x))

    def prepared(self, x: Tensor) -> Tensor:
        """Images of the sensor [n, C, H, W] in [0, 1] as `forward` takes them."""
        x = x if self.translator is not None else replicate(x)
        return x if self.normalizes else (x - self.classifier.mean) / self.classifier.std


def _for_export(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to("cpu", memory_format=torch.contiguous_format).requires_grad_(False).eval()


def make(job: Job, adapted: Adapted, aside: Path) -> dict[Format, dict[str, Any]]:
    """Writes the outputs that the job asks for, but safetensors, into the folder. What became of each: published, file, where it was
    not published the reason, and what the comparison found. Raises Problem disk_full."""
    told: dict[Format, dict[str, Any]] = {"safetensors": {"published": True, "file": FORMATS["safetensors"]}}
    wanted = [output for output in job.spec.outputs if output != "safetensors"]
    if not wanted:
        return told
    scratch = job.folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        expected = _hand_over(Graph(job, adapted), job, scratch)
        for output in wanted:
            began = time.monotonic()
            told[output] = _one(output, expected, scratch, aside)
            _tell(job, output, told[output], time.monotonic() - began)
    finally:
        shutil.rmtree(scratch)
    return told


@torch.no_grad()
def _hand_over(graph: Graph, job: Job, scratch: Path) -> Tensor:
    """Writes graph.pt and images.npy. What the graph itself answers: logits [n, K]."""
    size = job.spec.source_model.input.size
    index = evaluation.spread(np.arange(len(job.target)), IMAGES)
    images, logits = None, []
    for part in batches(len(index)):
        x = graph.prepared(evaluation.centre_batch(job.target, index[part], size))
        if images is None:
            shape = (len(index), *x.shape[1:])
            images = np.lib.format.open_memmap(scratch / "images.npy", "w+", np.float32, shape)
        images[part] = x.numpy()
        logits.append(graph(x))
    torch.save(graph, scratch / "graph.pt")
    return torch.cat(logits)


def _one(output: Format, expected: Tensor, scratch: Path, aside: Path) -> dict[str, Any]:
    file = FORMATS[output]
    reason, found = _run(output, scratch), {}
    if reason is None:
        found = compare(expected, torch.from_numpy(np.load(scratch / "logits.npy", allow_pickle=False)))
        reason = disagreement(found)
    for made in (scratch / name for name in (file, f"{file}.data", "logits.npy", "why.json")):
        if made.exists() and reason is None and made.name.startswith(file):
            made.rename(aside / made.name)
        else:
            made.unlink(missing_ok=True)
    if reason is not None:
        return {"published": False, "file": file, "reason": reason, **found}
    return {"published": True, "file": file, **found}


def _run(output: Format, scratch: Path) -> str | None:
    """Why the output could not be made, or None. Raises Problem disk_full: then nothing else could be published either."""
    command = [sys.executable, *(["-I"] if sys.flags.isolated else []), "-m", "worker.adaptation.exporter", output, str(scratch)]
    places = dict.fromkeys(("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR"), str(scratch))
    environment = os.environ | ALONE | places
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:  # noqa: S603 - nothing of a client's
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"it was not done after {LIMIT_S:g} s"
    if code < 0:
        return f"the exporter was killed by {signal.Signals(-code).name}"
    why = scratch / "why.json"
    if code != 0 and not why.exists():
        return f"the exporter died with exit code {code}"
    if code == 0:
        return None
    said = json.loads(why.read_text(encoding="utf-8"))
    if said["code"] == "disk_full":
        raise Problem("disk_full", said["detail"])
    return said["detail"]


def compare(expected: Tensor, logits: Tensor) -> dict[str, Any]:
    """Two sets of logits [n, K]. largest_logit: of the expected ones, absolute; largest_difference: absolute; agreement: share of the
    images for which both name the same class. Numbers are None where a logit is not finite, or the shapes differ."""
    if expected.shape != logits.shape or not (expected.isfinite().all() and logits.isfinite().all()):
        return {"images": len(expected), "largest_logit": None, "largest_difference": None, "agreement": None}
    return {
        "images": len(expected),
        "largest_logit": expected.abs().max().item(),
        "largest_difference": (expected - logits).abs().max().item(),
        "agreement": evaluation.agreement(expected, logits),
    }


def disagreement(found: dict[str, Any]) -> str | None:
    """Why logits that `compare` found so are not those of the adapted model, or None."""
    difference, largest, agreement = (found[name] for name in ("largest_difference", "largest_logit", "agreement"))
    if difference is None:
        return "it does not answer with a finite number for each class"
    if difference > max(LARGEST_DIFFERENCE * largest, 1e-6):
        return f"a logit differs by {difference:.3g} from the adapted model's, whose largest is {largest:.3g}"
    if agreement < LEAST_AGREEMENT:
        return f"it names the adapted model's class for {agreement:.1%} of {found['images']} images only"
    return None


def _tell(job: Job, output: Format, told: dict[str, Any], seconds: float) -> None:
    for name in ("largest_difference", "agreement"):
        if told.get(name) is not None:
            job.record(f"outputs/{output}/{name}", job.journal.step, told[name])
    if not told["published"]:
        message = f"{told['file']} is not published: {told['reason']}"
        job.journal(Warned(code="output_refused", message=message, data={"output": output}))
        return
    same = f"{told['agreement']:.1%} of {told['images']} images get the same class, logits differ by at most {told['largest_difference']:.2g}"
    job.journal(Logged(message=f"{told['file']} made in {seconds:.0f} s: {same}"))
