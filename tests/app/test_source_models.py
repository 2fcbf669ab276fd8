"""Uploading, listing, reading and deleting source models, over HTTP."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.blobs import LocalBlobs
from app.database import EMBEDDED_TENANT, Database
from app.settings import Settings
from app.source_models import queries
from app.source_models import service as source_models
from app.source_models.table import SourceModel
from app.spec import SourceModelDescription
from tests.app.conftest import safetensors, submit
from tests.conftest import Service

DESCRIPTION = {"architecture": "torchvision/resnet18", "classes": ["box", "mug"], "input": {"size": 64}}


def upload(client: httpx.Client, file: bytes | None = None, description: Any = DESCRIPTION) -> httpx.Response:
    parts = {
        "description": (None, json.dumps(description), "application/json"),
        "source_model": ("model.safetensors", safetensors() if file is None else file, "application/octet-stream"),
    }
    return client.post("/source-models", files=parts)


def files_in(blobs: LocalBlobs) -> list[Path]:
    return [path for path in blobs.folder.rglob("*") if path.is_file()]


def test_an_upload_is_stored_and_can_be_read(service: Service) -> None:
    answer = upload(service.client)
    model = answer.json()
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/source-models/{model['id']}"
    assert service.client.get(answer.headers["location"]).json() == model
    assert (model["sha256"], model["size"]) == (hashlib.sha256(safetensors()).hexdigest(), len(safetensors()))
    assert model["format"] == "safetensors"
    assert model["description"]["input"] == {
        "size": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize": "crop", "crop_ratio": 0.875,
    }, "defaults are part of what was accepted"  # fmt: skip
    assert [path.read_bytes() for path in files_in(service.blobs)] == [safetensors()]


@pytest.mark.parametrize("architecture", ["shot/resnet50", "timm/convnext_atto.d2_in1k", "torchvision/vit_b_16"])
def test_each_library_of_architectures_is_taken(service: Service, architecture: str) -> None:
    answer = upload(service.client, description=DESCRIPTION | {"architecture": architecture})
    assert answer.status_code == 201, answer.text
    assert answer.json()["description"]["architecture"] == architecture


def test_the_same_file_with_the_same_description_is_one_model(service: Service) -> None:
    first, again = upload(service.client), upload(service.client)
    assert (again.status_code, again.json()) == (200, first.json())
    spelled_out = DESCRIPTION | {"input": {"size": 64, "crop_ratio": 0.875}}
    assert upload(service.client, description=spelled_out).json() == first.json(), "a default spelled out is the same"
    assert upload(service.client, safetensors(seed=1)).status_code == 201
    assert upload(service.client, description=DESCRIPTION | {"classes": ["mug", "box"]}).status_code == 201
    assert len(files_in(service.blobs)) == 3


def test_a_file_that_the_store_has_lost_is_there_again_once_it_is_uploaded_again(service: Service) -> None:
    """As after a restore of the database without its blobs."""
    first = upload(service.client).json()
    (file,) = files_in(service.blobs)
    content = file.read_bytes()
    file.unlink()
    again = upload(service.client)
    assert (again.status_code, again.json()) == (200, first)
    assert [one.read_bytes() for one in files_in(service.blobs)] == [content]


def test_a_mean_of_images_of_0_to_255_is_refused(service: Service) -> None:
    answer = upload(service.client, description=DESCRIPTION | {"input": {"size": 64, "mean": [123.7, 116.3, 103.5]}})
    assert (answer.status_code, answer.json()["pointer"]) == (422, "/input/mean")
    assert files_in(service.blobs) == []


def test_parallel_identical_uploads_end_in_one_model(service: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: upload(service.client), range(16)))
    assert {answer.status_code for answer in answers} == {200, 201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(files_in(service.blobs)) == 1, "the blobs of those that lost are gone"
    with service.db.read() as session:
        assert session.scalar(sa.select(sa.func.count(SourceModel.id))) == 1


def test_the_list_is_newest_first_and_pages(service: Service) -> None:
    made = [upload(service.client, safetensors(seed=seed)).json()["id"] for seed in range(5)]
    seen: list[str] = []
    after: dict[str, Any] = {}
    while True:
        page = service.client.get("/source-models", params={"limit": 2} | after).json()
        seen += [model["id"] for model in page["data"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == made[::-1]
    whole = service.client.get("/source-models", params={"limit": 5}).json()
    assert (len(whole["data"]), whole["next"]) == (5, None)


@pytest.mark.parametrize(
    "cursor", ["", "model_x", "job_01kb3x5v0nf2pamwx8h1q4c7ze", "model_01kb3x5v0nf2pamwx8h1q4c7zE", "1' or 1=1"]
)
def test_a_cursor_of_someone_else_is_refused(service: Service, cursor: str) -> None:
    answer = service.client.get("/source-models", params={"after": cursor})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_cursor")


@pytest.mark.parametrize("limit", ["0", "201", "many"])
def test_a_limit_out_of_bounds_is_refused(service: Service, limit: str) -> None:
    answer = service.client.get("/source-models", params={"limit": limit})
    assert (answer.status_code, answer.json()["pointer"]) == (422, "/limit")


def test_a_deleted_model_is_gone_with_its_file(service: Service) -> None:
    kept, gone = upload(service.client, safetensors(seed=1)).json(), upload(service.client).json()
    assert service.client.delete(f"/source-models/{gone['id']}").status_code == 204
    for answer in (service.client.get(f"/source-models/{gone['id']}"), service.client.delete(f"/source-models/{gone['id']}")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert [model["id"] for model in service.client.get("/source-models").json()["data"]] == [kept["id"]]
    assert [path.read_bytes() for path in files_in(service.blobs)] == [safetensors(seed=1)]
    assert upload(service.client).status_code == 201, "it can be uploaded again"


def test_a_model_that_a_job_names_stays(service: Service, request_body: dict[str, Any]) -> None:
    job = submit(service.client, request_body, safetensors()).json()
    address = f"/source-models/{job['source_model_id']}"
    answer = service.client.delete(address)
    assert (answer.status_code, answer.json()["code"]) == (409, "source_model_in_use")
    assert job["id"] in answer.json()["detail"] and answer.json()["jobs"] == [job["id"]]
    assert service.client.get(address).status_code == 200 and len(files_in(service.blobs)) == 1
    service.client.post(f"/jobs/{job['id']}/cancel")
    assert service.client.delete(f"/jobs/{job['id']}").status_code == 204
    assert service.client.delete(address).status_code == 204
    assert files_in(service.blobs) == []


@pytest.mark.parametrize("name", ["model_01kb3x5v0nf2pamwx8h1q4c7ze", "%00", "x" * 5000, "..%2f..%2fetc"])
def test_what_is_not_there_is_not_found(service: Service, name: str) -> None:
    for method in ("GET", "DELETE"):
        answer = service.client.request(method, f"/source-models/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text


def test_another_tenant_sees_and_deletes_nothing(service: Service) -> None:
    model = upload(service.client).json()
    with service.db.read() as session:
        assert queries.by_id(session, "tenant_other", model["id"]) is None
        assert queries.newest(session, "tenant_other", after=None, limit=10) == []
        with_its_own_eyes = session.get(SourceModel, model["id"])
        assert queries.by_fingerprint(session, "tenant_other", with_its_own_eyes.fingerprint) is None
    with pytest.raises(Exception, match="not_found"):
        source_models.delete(service.db, service.blobs, "tenant_other", model["id"])
    assert service.client.get(f"/source-models/{model['id']}").status_code == 200


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (b"", "empty_file"),
        (b"not a model", "source_model_format"),
        (safetensors()[:-1], "source_model_truncated"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "unsafe_pickle"),
    ],
)
def test_a_bad_file_leaves_nothing(service: Service, file: bytes, code: str) -> None:
    answer = upload(service.client, file)
    assert (answer.status_code, answer.json()["code"], answer.json()["pointer"]) == (422, code, "/source_model")
    assert answer.headers["content-type"] == "application/problem+json" and answer.json()["remedy"]
    assert files_in(service.blobs) == [] and service.client.get("/source-models").json()["data"] == []


@pytest.mark.parametrize(
    ("description", "code", "pointer"),
    [
        (DESCRIPTION | {"clases": []}, "unknown_field", "/clases"),
        (DESCRIPTION | {"classes": ["one"]}, "invalid_request", "/classes"),
        (DESCRIPTION | {"architecture": "../resnet"}, "invalid_request", "/architecture"),
        (DESCRIPTION | {"architecture": "shots/resnet50"}, "invalid_request", "/architecture"),
        ({"classes": ["a", "b"]}, "invalid_request", "/architecture"),
    ],
)
def test_a_bad_description_leaves_nothing(service: Service, description: Any, code: str, pointer: str) -> None:
    answer = upload(service.client, description=description)
    assert (answer.status_code, answer.json()["code"], answer.json()["pointer"]) == (422, code, pointer)
    assert files_in(service.blobs) == []


def test_a_missing_part_is_named(service: Service) -> None:
    description = {"description": (None, json.dumps(DESCRIPTION))}
    answer = service.client.post("/source-models", files=description)
    assert (answer.status_code, answer.json()["code"]) == (422, "missing_file") and "source_model" in answer.json()["detail"]
    answer = service.client.post("/source-models", files={"source_model": ("m", safetensors())})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_multipart")
    assert "`description`" in answer.json()["detail"] and files_in(service.blobs) == []


def test_a_row_that_cannot_be_written_leaves_no_blob(database: Database, tmp_path: Path) -> None:
    """The tenant does not exist: the database refuses after the blob is kept."""
    blobs = LocalBlobs(tmp_path / "blobs")
    description = SourceModelDescription.model_validate(DESCRIPTION)
    for tenant, stored in (("tenant_other", False), (EMBEDDED_TENANT, True)):
        staged = blobs.stage()
        staged.write(safetensors())
        if stored:
            model, new = source_models.store(database, blobs, Settings(), tenant, description, staged)
            assert new and files_in(blobs) == [blobs.path(model.blob_key)]
        else:
            with pytest.raises(sa.exc.IntegrityError):
                source_models.store(database, blobs, Settings(), tenant, description, staged)
            assert files_in(blobs) == []


def test_the_documented_example_is_accepted(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    body = document["paths"]["/source-models"]["post"]["requestBody"]["content"]["multipart/form-data"]
    example = next(iter(body["examples"].values()))["value"]["description"]
    assert upload(service.client, description=example).status_code == 201
    reference = body["schema"]["properties"]["description"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][reference]["required"] == ["architecture", "classes"]
    shown = document["components"]["schemas"]["SourceModelView"]["examples"][0]
    assert shown.keys() == upload(service.client).json().keys()
