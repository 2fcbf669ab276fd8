"""POST /jobs with a data set as it is downloaded: taken as it lies there, and refused with the field that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import safetensors, submit
from tests.conftest import Service
from tests.datasets import nir_view, sun_view


@pytest.fixture
def body(request_body: dict[str, Any], data_root: Path) -> dict[str, Any]:
    """A job whose three sets are one tree of SUN RGB-D."""
    for number in range(8):
        sun_view(data_root / "SUNRGBD", "kv1", number, "bedroom")
        sun_view(data_root / "SUNRGBD", "xtion", number, "lab")
    one = {"uri": f"file://{data_root}/SUNRGBD", "layout": "sunrgbd"}
    request_body["source_model"]["classes"] = ["bedroom", "kitchen"]
    request_body["data"] = {"target": one | {"sensor": "kv1"}, "pairs": dict(one), "evaluation": dict(one)}
    return request_body


def test_a_job_may_name_one_tree_for_all_its_sets(service: Service, body: dict[str, Any]) -> None:
    answer = submit(service.client, body, safetensors())
    assert answer.status_code == 202, answer.json()
    kept = service.client.get(f"/jobs/{answer.json()['id']}").json()["request"]["data"]
    assert (kept["target"]["layout"], kept["target"]["sensor"], kept["pairs"]["sensor"]) == ("sunrgbd", "kv1", None)


def test_what_is_wrong_with_a_tree_is_said_before_the_job_is_queued(
    service: Service, body: dict[str, Any], data_root: Path
) -> None:
    def refused(code: str, pointer: str) -> str:
        problem = submit(service.client, body, safetensors()).json()
        assert (problem["code"], problem["pointer"]) == (code, pointer), problem
        return problem["detail"]

    body["data"]["target"]["sensor"] = "kinect"
    refused("invalid_request", "/data/target/sensor")
    body["data"]["target"]["sensor"] = "realsense"
    refused("no_images", "/data/target/uri")
    body["data"]["target"]["sensor"] = "kv1"
    (data_root / "SUNRGBD/xtion/sun3ddata/brown_bm_1/brown_bm_1/0000003-000000000000/image/0000003-000000000000.jpg").unlink()
    assert "0000003-000000000000" in refused("pairs_unmatched", "/data/pairs/uri")
    (data_root / "SUNRGBD/kv1/NYUdata/NYU0003/scene.txt").write_bytes(b"\xff" * 10_000)
    assert "NYU0003/scene.txt" in refused("layout_mismatch", "/data/target/uri")
    nir_view(data_root / "nirscene1", "country", 0)
    body["data"]["target"] = {"uri": f"file://{data_root}/nirscene1", "layout": "nirscene"}
    assert "infrared" in refused("invalid_request", "/data/target/modality")
    assert service.client.get("/jobs").json()["data"] == []
