"""What the front end can be given without torch: a well-formed file of weights, a small data set; and what a worker does to a job."""

from __future__ import annotations

import json
import struct
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.database import EMBEDDED_TENANT, Database
from app.ids import new_id
from app.jobs import lifecycle
from app.source_models.table import SourceModel
from tests.conftest import Service


def safetensors(values: int = 4, seed: int = 0) -> bytes:
    """A well-formed file with one float32 tensor."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack(f"<{values}f", *range(seed, seed + values))


def make_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 90).save(folder / name)


@pytest.fixture
def data(data_root: Path) -> Path:
    return make_data(data_root)


def make_data(data_root: Path) -> Path:
    """target/, pairs/ and test/, as small as the service takes them."""
    numbers = [f"{n:03}.png" for n in range(10)]
    make_images(data_root / "target", numbers)
    make_images(data_root / "pairs" / "rgb", numbers)
    make_images(data_root / "pairs" / "depth", numbers)
    make_images(data_root / "test", [f"{name}/{n}.png" for name in ("box", "mug") for n in range(3)])
    return data_root


@pytest.fixture
def request_body(data: Path) -> dict[str, Any]:
    return {
        "name": "hall 3",
        "labels": {"team": "robots"},
        "source_model": {"architecture": "torchvision/resnet18", "classes": ["box", "mug"], "input": {"size": 32}},
        "data": {
            "target": {"uri": f"file://{data}/target"},
            "pairs": {"uri": f"file://{data}/pairs"},
            "evaluation": {"uri": f"file://{data}/test"},
        },
    }


def submit(client: httpx.Client, body: dict[str, Any], file: bytes | None = None, **headers: str) -> httpx.Response:
    """POST /jobs as one multipart request."""
    parts = {"request": (None, json.dumps(body), "application/json")}
    if file is not None:
        parts["source_model"] = ("model.safetensors", file, "application/octet-stream")
    return client.post("/jobs", files=parts, headers=headers)


def claim(service: Service) -> lifecycle.Claim:
    with service.db.write() as session:
        claimed = lifecycle.claim_next(session, "worker_a", lease=timedelta(seconds=30), now=service.db.now(session))
    assert claimed is not None
    return claimed


def publish(service: Service, claimed: lifecycle.Claim, content: bytes = b"weights") -> None:
    with service.blobs.stage() as staged:
        staged.write(content)
        key = f"jobs/{claimed.job_id}/1/model.safetensors"
        service.blobs.keep(staged, key)
    artifact = {
        "name": "model.safetensors",
        "media_type": "application/octet-stream",
        "size": len(content),
        "sha256": staged.sha256,
        "blob_key": key,
    }
    with service.db.write() as session:
        assert lifecycle.succeed(
            session, claimed, result={"verdict": "deploy"}, artifacts=[artifact], now=service.db.now(session)
        )


@pytest.fixture
def model_id(database: Database) -> str:
    """A source model's row, for rows of jobs that no request made."""
    with database.write() as session:
        model = SourceModel(
            id=new_id("model"), tenant_id=EMBEDDED_TENANT, sha256="0" * 64, fingerprint="0" * 64, size=1, format="safetensors",
            description={}, blob_key="k", created_at=database.now(session),
        )  # fmt: skip
        session.add(model)
    return model.id
