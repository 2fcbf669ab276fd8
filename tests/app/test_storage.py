"""What a tenant has in the blob store: counted as it changes, and limited."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import kept, storage
from app.database import EMBEDDED_TENANT, Database, Tenant
from app.errors import Problem
from app.jobs import lifecycle
from app.jobs.states import Status
from app.settings import Settings
from app.source_models import queries
from app.source_models.table import SourceModel
from tests.app.conftest import claim, publish, safetensors, submit
from tests.app.test_datasets import upload as upload_dataset
from tests.app.test_source_models import files_in, upload
from tests.conftest import BOTH, Service, serving

ONE = len(safetensors())
"""Bytes of a source model."""


@pytest.fixture(params=BOTH)
def limited(
    request: pytest.FixtureRequest, new_database_url: Callable[[str], str], tmp_path: Path, data_root: Path
) -> Iterator[Service]:
    """Room for two source models and a half."""
    settings = Settings(
        data_dir=tmp_path / "var",
        database_url=new_database_url(request.param),
        data_roots=(data_root,),
        storage_bytes=int(2.5 * ONE),
    )
    with serving(settings) as running:
        recount(running)
        yield running


def recount(service: Service) -> int | None:
    """Whenever it was done before."""
    with service.db.write() as session:
        session.execute(sa.update(Tenant).values(stored_counted_at=None))
        storage.recount(session, service.db.now(session))
    return used(service)


def used(service: Service) -> int | None:
    with service.db.read() as session:
        return storage.stored(session, EMBEDDED_TENANT)


def test_what_is_counted_is_what_is_there(service: Service, request_body: dict[str, Any]) -> None:
    upload(service.client, safetensors(seed=1))
    assert used(service) is None, "nobody has counted yet"
    assert recount(service) == ONE
    model = upload(service.client, safetensors(seed=2)).json()["id"]
    upload(service.client, safetensors(seed=2))
    dataset = upload_dataset(service.client).json()["id"]
    first, second = (submit(service.client, request_body, safetensors(seed=seed)).json()["id"] for seed in (3, 4))
    for content in (b"weights", b"more weights"):
        publish(service, claim(service), content)
    on_disk = sum(path.stat().st_size for path in files_in(service.blobs))
    assert used(service) == recount(service) == on_disk

    assert service.client.delete(f"/jobs/{first}").status_code == 204
    assert service.client.delete(f"/source-models/{model}").status_code == 204
    assert service.client.delete(f"/datasets/{dataset}").status_code == 204
    assert used(service) == recount(service) == sum(path.stat().st_size for path in files_in(service.blobs))
    with service.db.write() as session:
        later = service.db.now(session) + timedelta(days=1)
        gone = lifecycle.forget(session, frozenset({Status.SUCCEEDED}), before=later, most=10)
    assert list(gone) == [second]
    assert used(service) == recount(service) == 3 * ONE


def test_at_the_limit_nothing_more_is_taken_until_something_goes(limited: Service, request_body: dict[str, Any]) -> None:
    first = upload(limited.client, safetensors(seed=1)).json()["id"]
    job = submit(limited.client, request_body, safetensors(seed=2), **{"Idempotency-Key": "a"})
    assert job.status_code == 202, job.text
    refused = upload(limited.client, safetensors(seed=3))
    problem = refused.json()
    assert (refused.status_code, problem["code"], problem["used"], problem["limit"]) == (
        507,
        "quota_exceeded",
        2 * ONE,
        int(2.5 * ONE),
    )
    assert len(files_in(limited.blobs)) == 2, "nothing is left of it"
    assert upload_dataset(limited.client).json()["code"] == "quota_exceeded"
    assert upload(limited.client, safetensors(seed=1)).status_code == 200, "what is there already needs no room"

    publish(limited, claim(limited), bytes(ONE))  # an accepted job is published, whatever it takes
    assert used(limited) == 3 * ONE
    by_id = request_body | {"source_model": {"id": first}}
    assert submit(limited.client, by_id).json()["code"] == "quota_exceeded", "its model would need room"
    again = submit(limited.client, request_body, safetensors(seed=2), **{"Idempotency-Key": "a"})
    assert again.json()["id"] == job.json()["id"], "sent again it is answered as before"

    assert limited.client.delete(f"/jobs/{job.json()['id']}").status_code == 204
    assert submit(limited.client, by_id).status_code == 202


def test_two_that_come_at_once_do_not_both_take_the_last_room(limited: Service) -> None:
    """Both have seen that there is room, and have kept their blobs."""
    upload(limited.client, safetensors(seed=1))
    both = threading.Barrier(2)
    keep = limited.blobs.keep

    def slowly(*given: Any) -> None:
        keep(*given)
        both.wait(30)

    limited.blobs.keep = slowly  # type: ignore[method-assign]
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda seed=seed: answers.append(upload(limited.client, safetensors(seed=seed)).status_code))
        for seed in (2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201, 507]
    assert used(limited) == 2 * ONE
    assert len(files_in(limited.blobs)) == 2


class Losing(Database):
    """Its commits are refused with `error`, and what they were of is left open."""

    error: Exception
    left: Session

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.left = self._sessions()
        yield self.left
        raise self.error


@pytest.mark.parametrize("lands", [True, False], ids=["lands", "refused"])
def test_a_blob_stays_where_a_commit_may_still_land(limited: Service, lands: bool) -> None:
    """The connection was lost before the answer to the commit came: the database may still be at it as it is asked for the row."""
    key, content = f"source_models/{EMBEDDED_TENANT}/model_a", safetensors()
    with limited.blobs.stage() as staged:
        staged.write(content)
        limited.blobs.keep(staged, key)
    row = SourceModel(
        id="model_a", tenant_id=EMBEDDED_TENANT, sha256="0" * 64, fingerprint="0" * 64, size=len(content), format="safetensors",
        description={"architecture": "torchvision/resnet18", "classes": ["box", "mug"]}, blob_key=key,
    )  # fmt: skip
    db = Losing(limited.settings.sqlalchemy_url)
    db.error = OperationalError("COMMIT", None, Exception("no space is left, or no connection"), connection_invalidated=lands)
    with pytest.raises(OperationalError):
        kept.commit(db, limited.blobs, limited.settings, row)
    db.left.commit() if lands else db.left.rollback()
    db.left.close()
    db.dispose()
    assert len(limited.client.get("/source-models").json()["data"]) == len(files_in(limited.blobs)) == lands


@pytest.mark.postgres
def test_two_that_delete_the_same_at_once_give_it_back_once(
    new_database_url: Callable[[str], str], tmp_path: Path, data_root: Path
) -> None:
    """Both have read the row; SQLite has one that writes at a time."""
    settings = Settings(data_dir=tmp_path / "var", database_url=new_database_url("postgres"), data_roots=(data_root,))
    with serving(settings) as service:
        kept_one, model = (upload(service.client, safetensors(seed=seed)).json()["id"] for seed in (1, 2))
        recount(service)
        both = threading.Barrier(2)
        problems: list[str] = []

        def find(session: Session) -> SourceModel | None:
            found = queries.by_id(session, EMBEDDED_TENANT, model)
            both.wait(30)
            return found

        def delete() -> None:
            try:
                kept.delete(
                    service.db, service.blobs, find, Problem("not_found", "no such model"), lambda: Problem("internal", "")
                )
            except Problem as problem:
                problems.append(problem.code)

        threads = [threading.Thread(target=delete) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == ["not_found"]
        assert used(service) == recount(service) == ONE
        assert service.client.get(f"/source-models/{kept_one}").status_code == 200


def test_it_is_counted_anew_once_an_hour(limited: Service) -> None:
    with limited.db.write() as session:
        now = limited.db.now(session)
        session.execute(sa.update(Tenant).values(stored_bytes=7))  # as a front end leaves it that does not keep it
        storage.recount(session, now)
        assert storage.stored(session, EMBEDDED_TENANT) == 7
        storage.recount(session, now + timedelta(minutes=61))
        assert storage.stored(session, EMBEDDED_TENANT) == 0
