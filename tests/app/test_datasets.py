"""Uploading, listing, reading and deleting datasets, and jobs that name them, over HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app import listing, threads
from app.database import EMBEDDED_TENANT
from app.datasets import queries
from app.datasets import service as datasets
from app.datasets.table import Dataset
from app.errors import Problem
from app.references import Disk
from app.settings import Settings
from tests.app.conftest import make_data, safetensors, submit
from tests.app.test_source_models import files_in
from tests.archives import FORMATS, made, of_folder
from tests.conftest import Service, on_sqlite, serving
from tests.datasets import sun_view
from tests.worker.embedded import wait_for

ARCHIVE = made("zip", {"hall/1.png": b"one", "hall/2.png": b"two", "hall/list.txt": b"1.png box\n", "readme.md": b"?"})
FROM_A_MAC = made("zip", {"hall/1.png": b"one", "__MACOSX/hall/._1.png": b"its attributes", ".trash/2.png": b"two"})


def upload(client: httpx.Client, file: bytes = ARCHIVE, name: str | None = None) -> httpx.Response:
    parts: dict[str, Any] = {"dataset": ("hall.zip", file, "application/octet-stream")}
    if name is not None:
        parts["description"] = (None, json.dumps({"name": name}), "application/json")
    return client.post("/datasets", files=parts)


@pytest.fixture(params=FORMATS)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """target/, pairs/ and test/ in one archive."""
    return of_folder(request.param, make_data(tmp_path / "packed"))


def naming(body: dict[str, Any], dataset: str) -> dict[str, Any]:
    data = {name: {"uri": f"dataset://{dataset}/{name.replace('evaluation', 'test')}"} for name in body["data"]}
    return body | {"data": data}


def test_an_upload_is_stored_and_can_be_read(service: Service) -> None:
    answer = upload(service.client, name="hall 3")
    dataset = answer.json()
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/datasets/{dataset['id']}"
    assert service.client.get(answer.headers["location"]).json() == dataset
    assert (dataset["sha256"], dataset["size"]) == (hashlib.sha256(ARCHIVE).hexdigest(), len(ARCHIVE))
    assert (dataset["name"], dataset["format"], dataset["images"]) == ("hall 3", "zip", 2)
    assert dataset["unpacked_bytes"] == len(b"onetwo1.png box\n")
    with service.db.read() as session:
        row = session.get(Dataset, dataset["id"])
    assert service.blobs.path(row.blob_key).read_bytes() == ARCHIVE
    with closing(service.blobs.read(row.listing_key, 0, row.listing_size)) as reading:
        assert set(listing.unpacked(reading).texts) == {"hall/1.png", "hall/2.png", "hall/list.txt"}


def test_images_that_no_layout_reads_are_not_counted(service: Service) -> None:
    assert upload(service.client, FROM_A_MAC).json()["images"] == 1


def test_the_same_bytes_are_one_dataset_also_at_once(service: Service) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: upload(service.client), range(6)))
    assert {answer.status_code for answer in answers} == {200, 201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(files_in(service.blobs)) == 2, "an archive and its listing: the blobs of those that lost are gone"
    with service.db.read() as session:
        assert session.scalar(sa.select(sa.func.count(Dataset.id))) == 1


def test_an_archive_or_listing_that_the_store_has_lost_is_there_again_once_it_is_uploaded_again(service: Service) -> None:
    first = upload(service.client).json()
    contents = {file: file.read_bytes() for file in files_in(service.blobs)}
    for file in contents:
        file.unlink()
        assert (answer := upload(service.client)).status_code == 200 and answer.json() == first
        assert {file: file.read_bytes() for file in files_in(service.blobs)} == contents


def test_the_list_is_newest_first_and_pages(service: Service) -> None:
    ids = [upload(service.client, made("tar", {f"{n}.png": b"x"})).json()["id"] for n in range(3)]
    first = service.client.get("/datasets", params={"limit": 2}).json()
    rest = service.client.get("/datasets", params={"limit": 2, "after": first["next"]}).json()
    assert [one["id"] for one in first["data"] + rest["data"]] == ids[::-1] and rest["next"] is None
    assert service.client.get("/datasets", params={"after": "model_x"}).json()["code"] == "invalid_cursor"


def test_a_deleted_dataset_is_gone_with_its_blobs(service: Service) -> None:
    dataset = upload(service.client).json()
    assert service.client.delete(f"/datasets/{dataset['id']}").status_code == 204
    assert service.client.get(f"/datasets/{dataset['id']}").json()["code"] == "not_found"
    assert service.client.delete(f"/datasets/{dataset['id']}").status_code == 404
    assert files_in(service.blobs) == [] and upload(service.client).status_code == 201


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (b"", "empty_file"),
        (b"not an archive", "archive_format"),
        (ARCHIVE[:-30], "archive_damaged"),
        (made("tar", {"../../etc/x.png": b"x"}), "archive_unsafe"),
        (made("tar.gz", {"x.png": bytes(100 * 2**20)}), "archive_bomb"),
        (made("zip", {"x.txt": b"x"}), "no_images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_archive_leaves_nothing(service: Service, file: bytes, code: str) -> None:
    answer = upload(service.client, file)
    assert (answer.status_code, answer.json()["code"], answer.json()["pointer"]) == (422, code, "/dataset")
    if code == "archive_unsafe":
        assert answer.json()["entry"] == "../../etc/x.png"
    assert files_in(service.blobs) == [] and service.client.get("/datasets").json()["data"] == []


@on_sqlite
def test_however_many_archives_are_looked_through_the_rest_is_answered(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[None] = []
    over = threading.Event()

    def store(*_: object) -> None:
        begun.append(None)
        over.wait(60)
        raise Problem("archive_damaged", "seen to its end", pointer="/dataset")

    monkeypatch.setattr("app.datasets.service.store", store)
    with ThreadPoolExecutor(50) as pool:
        uploads = [pool.submit(upload, service.client) for _ in range(50)]
        try:
            wait_for(lambda: len(begun) >= threads.AT_ONCE, "archives that are looked through")
            for _ in range(20):
                assert httpx.get(f"{service.url}/jobs", timeout=10).status_code == 200
            assert len(begun) == threads.AT_ONCE
        finally:
            over.set()
    assert {each.result().status_code for each in uploads} == {422}


def test_the_limit_is_the_datasets_own(new_database_url: Any, tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "var", database_url=new_database_url("sqlite"), max_dataset_bytes=2000, max_upload_bytes=100
    )
    with serving(settings) as service:
        assert upload(service.client).status_code == 201
        answer = upload(service.client, bytes(2001))
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
        assert answer.json()["limit"] == 2000


def test_a_name_of_two_lines_is_refused(service: Service) -> None:
    answer = upload(service.client, name="hall\ndataset_x")
    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["pointer"]) == ("invalid_request", "/name")
    assert "line break" in answer.json()["detail"]


def test_a_missing_part_and_a_bad_description_are_named(service: Service) -> None:
    answer = service.client.post("/datasets", files={"description": (None, "{}", "application/json")})
    assert (answer.status_code, answer.json()["code"], answer.json()["pointer"]) == (422, "missing_file", "/dataset")
    answer = upload(service.client, name="")
    assert (answer.json()["code"], answer.json()["pointer"]) == ("invalid_request", "/name")
    assert files_in(service.blobs) == []


def test_another_tenant_sees_names_and_deletes_nothing(service: Service) -> None:
    dataset = upload(service.client).json()
    with service.db.read() as session:
        assert queries.by_id(session, "tenant_other", dataset["id"]) is None
        assert queries.by_sha256(session, "tenant_other", dataset["sha256"]) is None
        assert queries.newest(session, "tenant_other", after=None, limit=10) == []
    with pytest.raises(Exception, match="not_found"):
        datasets.delete(service.db, service.blobs, "tenant_other", dataset["id"])
    assert datasets.read(service.db, EMBEDDED_TENANT, dataset["id"]).sha256 == dataset["sha256"]


def test_a_job_may_name_places_in_a_dataset_which_stays_while_it_does(
    service: Service, request_body: dict[str, Any], whole: bytes
) -> None:
    dataset = upload(service.client, whole).json()["id"]
    answer = submit(service.client, naming(request_body, dataset), safetensors())
    assert answer.status_code == 202, answer.text
    job = answer.json()["id"]
    refused = service.client.delete(f"/datasets/{dataset}")
    assert (refused.status_code, refused.json()["code"], refused.json()["jobs"]) == (409, "dataset_in_use", [job])
    assert job in refused.json()["detail"] and len(files_in(service.blobs)) == 3
    service.client.post(f"/jobs/{job}/cancel")
    assert service.client.delete(f"/datasets/{dataset}").status_code == 409, "it can be tried again"
    assert service.client.delete(f"/jobs/{job}").status_code == 204
    assert service.client.delete(f"/datasets/{dataset}").status_code == 204


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/nothing", "reference_missing", "pairs, target, test"),
        ("/target/001.png", "layout_mismatch", "is a file"),
        ("/../target", "reference_scheme", ".."),
        ("/%2e%2e/target", "reference_scheme", ".."),
        ("/target?x=1", "reference_scheme", "%3F"),
        ("x", "reference_scheme", "not the id"),
        ("", "unknown_class", None),
    ],
)
def test_what_is_wrong_with_a_place_is_said_before_the_job_is_queued(
    service: Service, request_body: dict[str, Any], data: Path, path: str, code: str, words: str | None
) -> None:
    dataset = upload(service.client, of_folder("tar.gz", data)).json()["id"]
    request_body["data"]["evaluation"] = {"uri": f"dataset://{dataset}{path}"}
    problem = submit(service.client, request_body, safetensors()).json()
    assert (problem["code"], problem["pointer"]) == (code, "/data/evaluation/uri"), problem
    assert words is None or words in problem["detail"]
    assert service.client.get("/jobs").json()["data"] == []


def test_a_dataset_that_is_not_there_is_not_found(service: Service, request_body: dict[str, Any]) -> None:
    request_body["data"]["target"] = {"uri": "dataset://dataset_01kb3x5v0nf2pamwx8h1q4c7ze"}
    problem = submit(service.client, request_body, safetensors()).json()
    assert (problem["code"], problem["pointer"]) == ("not_found", "/data/target/uri")


def test_lists_csv_files_and_known_data_sets_are_read_from_the_listing(
    service: Service, request_body: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_data(tmp_path / "packed")
    (folder / "target.txt").write_text("".join(f"target/{n:03}.png 0\n" for n in range(9)))
    (folder / "pairs.csv").write_text("rgb,depth\n" + "".join(f"pairs/rgb/{n:03}.png,pairs/depth/{n:03}.png\n" for n in range(8)))
    for number in range(8):
        sun_view(folder / "SUNRGBD", "kv1", number, "box")
    dataset = upload(service.client, of_folder("zip", folder)).json()["id"]
    request_body["data"] = {
        "target": {"uri": f"dataset://{dataset}/target.txt", "layout": "list"},
        "pairs": {"uri": f"dataset://{dataset}/pairs.csv"},
        "evaluation": {"uri": f"dataset://{dataset}/SUNRGBD", "layout": "sunrgbd"},
    }
    assert submit(service.client, request_body, safetensors()).status_code == 202
    (folder / "pairs.csv").write_text("rgb,depth\npairs/rgb/000.png,../../etc/passwd\n")
    dataset = upload(service.client, of_folder("zip", folder)).json()["id"]
    request_body["data"]["pairs"]["uri"] = f"dataset://{dataset}/pairs.csv"
    problem = submit(service.client, request_body, safetensors()).json()
    assert (problem["code"], problem["pointer"]) == ("reference_outside_roots", "/data/pairs/uri")


def test_a_listing_is_walked_as_the_disk_is(tmp_path: Path) -> None:
    """The same files in the same order: a job's front end and its engine must see one thing."""
    names = [
        "b.png",
        "a.JPG",
        "c/d.tif",
        "c/e/f.png",
        "c-d/x.png",
        "c/a.png",
        ".hidden/x.png",
        "c/.x.png",
        "seg/a.png",
        "C/z.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    tree = listing.Listing(dict.fromkeys(names))
    disk = [name for name, _ in Disk([tmp_path]).walk(tmp_path, "", {"seg"})]
    root = tree.find("dataset://dataset_01kb3x5v0nf2pamwx8h1q4c7ze", "")
    assert [name for name, _ in tree.walk(root, "", {"seg"})] == disk and len(disk) == 7
    assert [name for name, _ in tree.walk(root / "c", "")] == [name for name, _ in Disk([tmp_path]).walk(tmp_path / "c", "")]


def test_the_documented_example_is_accepted(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    body = document["paths"]["/datasets"]["post"]["requestBody"]["content"]["multipart/form-data"]
    example = next(iter(body["examples"].values()))["value"]["description"]
    answer = upload(service.client, name=example["name"])
    assert answer.status_code == 201
    assert document["components"]["schemas"]["DatasetView"]["examples"][0].keys() == answer.json().keys()
