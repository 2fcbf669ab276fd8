"""Jobs in every state, made by the functions that a client and a worker make them by."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.artifacts.table import Artifact
from app.blobs import LocalBlobs
from app.errors import Problem
from app.jobs import events, lifecycle
from app.jobs.lifecycle import Claim
from app.jobs.table import Job, Worker
from tests.app.conftest import make_data, safetensors, submit
from tests.conftest import Service

CLASSES = ["box", "mug", "lamp"]
MODELS = ("source_only", "bridged", "adapted", "rgb")
HOSTILE = '<script>alert("x")</script> hall & 3'


@dataclass
class Jobs:
    """Ids by what became of them."""

    queued: str
    running: str
    succeeded: str
    doubtful: str
    failed: str
    cancelled: str


def body(data: Path, /, **changes: Any) -> dict[str, Any]:
    return {
        "name": "hall 3",
        "labels": {"team": "robots"},
        "source_model": {"architecture": "torchvision/resnet18", "classes": CLASSES, "input": {"size": 32}},
        "data": {"target": {"uri": f"file://{data}/target"}, "pairs": {"uri": f"file://{data}/pairs"}},
    } | changes


def submitted(service: Service, data: Path, /, **changes: Any) -> str:
    answer = submit(service.client, body(data, **changes), safetensors())
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def claimed(service: Service, job_id: str) -> Claim:
    with service.db.write() as session:
        found = lifecycle.claim_next(session, "worker_a", lease=timedelta(minutes=30), now=service.db.now(session))
    assert found is not None and found.job_id == job_id
    return found


def trained(service: Service, claim: Claim, steps: int, lowest: float = 0.02) -> None:
    """Phases, a warning, a line of log, and the points of three curves: one each ten steps."""
    with service.db.write() as session:
        now = service.db.now(session)
        progress = {"phase": "bridging", "step": steps, "of": 2 * steps, "fraction": 0.42, "eta_s": 252.0, "images_per_s": 88.0}
        job = lifecycle.record(
            session, claim, now=now, phase="bridging", progress=progress | {"losses": {"L_rec": 0.031, "L_D": 0.69}}
        )
        assert job is not None
        for kind, message in [
            ("started", "started on a CPU of two cores"), ("phase", "preparing"), ("data", "target: 10 images"), ("phase", "bridging"),
            ("warning", f"2 images are broken, the first is {HOSTILE}"), ("log", "precision fp32: there is no bf16"),
        ]:  # fmt: skip
            events.append(session, job, kind, message, now=now)
        points = {}
        for step in range(0, steps, 10):
            points["bridging/L_rec", step] = lowest + math.exp(-4 * step / steps)
            points["bridging/L_D", step] = 0.69 + 0.05 * math.sin(step / 70)
            points["transferring/L_KL", step] = 1.5 * math.exp(-2 * step / steps)
        points["evaluation/labelled/adapted/accuracy", steps] = 0.75
        lifecycle.record_metrics(session, claim, points, now=service.db.now(session))


def report(classes: list[str], images: int = 20) -> dict[str, Any]:
    """As much of the engine's report.json as a page reads."""

    def model(right: int) -> dict[str, Any]:
        K = len(classes)
        rest = images - right
        confusion = [[right if a == b else rest if b == (a + 1) % K else 0 for b in range(K)] for a in range(K)]
        return {"accuracy": right / images, "per_class": dict.fromkeys(classes, right / images), "confusion": confusion}

    return {"source_model": {"classes": classes}, "evaluation": {"labelled": {"source_only": model(7), "adapted": model(15)}}}


def sprite(side: int, columns: int, rows: int, darkest: int = 40) -> bytes:
    """As the engine's pictures.webp: each tile in a grey of its own."""
    greys = np.arange(columns * rows, dtype=np.uint8).reshape(rows, columns) * np.uint8(180 // (columns * rows)) + np.uint8(
        darkest
    )
    file = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(greys, side, 0), side, 1)).convert("RGB").save(file, "WEBP", lossless=True)
    return file.getvalue()


def pictures(classes: list[str], name: str = "room 1/0001.png") -> dict[str, Any]:
    """As the engine's pictures.json: a row of each kind."""

    def row(place: int, kind: str, columns: list[str], truth: str | None, *said: str) -> dict[str, Any]:
        answers = {
            model: {"class": one, "confidence": 0.25 + 0.2 * k} for k, (model, one) in enumerate(zip(MODELS, said, strict=False))
        }
        spots = {column: [64 * k, 64 * place] for k, column in enumerate(columns)}
        return {"kind": kind, "name": name, "truth": truth, "answers": answers, "tiles": spots}

    a, b = classes[:2]
    rows = [
        row(0, "target", ["sensor", "translation"], None, a, b, b),
        row(1, "evaluation", ["sensor", "translation"], b, a, b, b),
        row(2, "pair", ["sensor", "translation", "rgb"], None, a, a, a, b),
    ]
    return {"format": "modalbridge-pictures/1", "file": "pictures.webp", "tile": 64, "width": 192, "height": 192, "rows": rows}


def result(verdict: str, reasons: list[str], accuracy: bool = True) -> dict[str, Any]:
    def evidence(entropy: float) -> dict[str, float]:
        return {"mean_entropy": entropy, "entropy_share": entropy, "effective_classes": 2.7, "largest_class_share": 0.41}

    measured = {name: {"accuracy": value, "balanced_accuracy": value - 0.01} for name, value in
                (("source_only", 0.443), ("bridged", 0.61), ("adapted", 0.753))}  # fmt: skip
    return {
        "verdict": verdict,
        "reasons": reasons,
        "accuracy": measured | {"images": 60} if accuracy else None,
        "evidence": {"source_only": evidence(0.8), "bridged": evidence(0.5), "adapted": evidence(0.3), "changed": 0.4},
        "pairs": {"held_out": 45, "source_only": {"feature_distance_ratio": 1.0}, "adapted": {"feature_distance_ratio": 0.4}},
    }


def publish(service: Service, claim: Claim, told: dict[str, Any], **files: bytes) -> None:
    """Succeeds with these artifacts, by name with `__` for the dot."""
    artifacts = []
    for given, content in files.items():
        name = given.replace("__", ".")
        with service.blobs.stage() as staged:
            staged.write(content)
            key = f"jobs/{claim.tenant_id}/{claim.job_id}/{claim.attempt}/{name}"
            service.blobs.keep(staged, key)
        media_type = {"html": "text/html; charset=utf-8", "json": "application/json", "webp": "image/webp"}.get(
            name.rpartition(".")[2], "application/octet-stream"
        )
        artifacts.append({"name": name, "media_type": media_type, "size": len(content), "sha256": staged.sha256, "blob_key": key})
    with service.db.write() as session:
        assert lifecycle.succeed(session, claim, result=told, artifacts=artifacts, now=service.db.now(session))


def succeeded(
    service: Service,
    data: Path,
    told: dict[str, Any],
    steps: int = 300,
    lowest: float = 0.02,
    said: str = "mug",
    darkest: int = 40,
    **changes: Any,
) -> str:
    """said: of each image by the adapted model. darkest: of its tiles."""
    job_id = submitted(service, data, **changes)
    claim = claimed(service, job_id)
    trained(service, claim, steps, lowest)
    document, shown = (json.dumps(one).encode() for one in (report(CLASSES), pictures([HOSTILE, said], name=HOSTILE)))
    files = {"pictures__json": shown, "pictures__webp": sprite(64, 3, 3, darkest), "report__html": b"<p>The report</p>"}
    publish(service, claim, told, model__safetensors=b"weights", report__json=document, **files)
    return job_id


def failed(service: Service, data: Path, **changes: Any) -> str:
    job_id = submitted(service, data, **changes)
    claim = claimed(service, job_id)
    problem = Problem("training_diverged", "L_rec is nan by step 40 of bridging", pointer="/settings/bridging/lr").document()
    with service.db.write() as session:
        assert lifecycle.fail(session, claim, problem, now=service.db.now(session))
    return job_id


def seeded(service: Service, steps: int = 1000) -> Jobs:
    """steps: of the running job, which has a point of each curve every ten."""
    data = make_data(service.settings.data_roots[0])
    good = succeeded(service, data, result("deploy", []), name="good")
    reason = "Mean entropy of the predictions, as a share of ln K, is high"
    doubtful = succeeded(
        service, data, result("look_closer", [reason], accuracy=False), lowest=0.1, said="lamp", darkest=50, name=HOSTILE, settings={"transfer": {"epochs": 3}}
    )  # fmt: skip
    bad = failed(service, data, name="diverged", labels={})
    running = submitted(service, data, name="a long one", labels={"team": "robots", "site": "b"})
    trained(service, claimed(service, running), steps)
    cancelled = submitted(service, data, name="not wanted")
    assert service.client.post(f"/jobs/{cancelled}/cancel").status_code == 202
    queued = submitted(service, data, name="next")
    with service.db.write() as session:
        now = service.db.now(session)
        here = {"started_at": now, "last_seen_at": now}
        session.add(Worker(id="worker_a", host="machine-1", pid=4711, job_id=running, takes_cuda=True, **here))
        session.add(Worker(id="worker_b", host="machine-2", pid=12, job_id=None, **here))
    return Jobs(queued, running, good, doubtful, bad, cancelled)


def status(service: Service, job_id: str) -> str:
    with service.db.read() as session:
        job = session.get(Job, job_id)
        assert job is not None
        return job.status


def artifact(folder: Path, name: str, document: Any, **changes: Any) -> tuple[LocalBlobs, Artifact]:
    """A published file, of a document or of bytes as they are, and the store that it lies in."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    (folder / "given").write_bytes(content)
    blobs = LocalBlobs(folder / "blobs")
    blobs.prepare()
    blobs.put(folder / "given", f"jobs/{name}")
    return blobs, Artifact(**{"name": name, "size": len(content), "blob_key": f"jobs/{name}"} | changes)
