"""Webhooks over HTTP: made, listed, tried and deleted; addresses that are refused."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.database import EMBEDDED_TENANT, Database
from app.errors import Problem
from app.settings import Settings
from app.webhooks import service as webhooks
from app.webhooks.schemas import WebhookRequest
from app.webhooks.table import Webhook
from tests.conftest import Service, on_sqlite

PUBLIC = "https://1.1.1.1/hook"


def create(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/webhooks", json={"url": PUBLIC} | body)


def test_its_secret_is_shown_once(service: Service) -> None:
    answer = create(service.client)
    made = answer.json()
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/webhooks/{made['id']}"
    assert made.pop("secret").startswith("whsec_")
    assert made["types"] == ["job.succeeded", "job.failed", "job.cancelled"]
    assert service.client.get(answer.headers["location"]).json() == made
    assert service.client.get("/webhooks").json() == {"data": [made], "next": None}


def test_two_have_two_secrets(service: Service) -> None:
    assert create(service.client).json()["secret"] != create(service.client).json()["secret"]


def test_they_are_listed_newest_first_a_page_at_a_time(service: Service) -> None:
    made = [create(service.client).json()["id"] for _ in range(3)]
    first = service.client.get("/webhooks", params={"limit": 2}).json()
    second = service.client.get("/webhooks", params={"limit": 2, "after": first["next"]}).json()
    assert [one["id"] for one in first["data"] + second["data"]] == made[::-1]
    assert second["next"] is None


def test_a_test_message_is_in_its_log_and_goes_with_it(service: Service) -> None:
    id = create(service.client).json()["id"]
    queued = service.client.post(f"/webhooks/{id}/test")
    assert queued.status_code == 202, queued.text
    (logged,) = service.client.get(f"/webhooks/{id}/deliveries").json()["data"]
    assert logged == queued.json()
    assert (logged["type"], logged["status"], logged["attempts"]) == ("webhook.test", "pending", 0)
    assert service.client.delete(f"/webhooks/{id}").status_code == 204
    for gone in (f"/webhooks/{id}", f"/webhooks/{id}/deliveries"):
        assert service.client.get(gone).json()["code"] == "not_found"
    assert service.client.post(f"/webhooks/{id}/test").status_code == 404


@on_sqlite
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://1.1.1.1/hook", "must begin with https://"),
        ("ftp://1.1.1.1/hook", "must begin with https://"),
        ("https://127.0.0.1/hook", "not of the open internet"),
        ("https://[::1]/hook", "not of the open internet"),
        ("https://[::ffff:10.0.0.1]/hook", "not of the open internet"),
        ("https://169.254.169.254/latest/meta-data", "not of the open internet"),
        ("https://localhost/hook", "not of the open internet"),
        ("https://2130706433/hook", "not of the open internet"),
        ("https://name:secret@1.1.1.1/", "neither credentials nor a fragment"),
        ("https://1.1.1.1/#a", "neither credentials nor a fragment"),
        ("https:///hook", "needs a host"),
        ("https://1.1.1.1:99999/", "it is no URL"),
        ("https://1.1.1.1/a b", "spaces, by %"),
        ("https://a..b/hook", "has no address"),
        ("https://no-such-host.invalid/", "has no address"),
    ],
)
def test_an_address_that_is_refused_says_why(service: Service, url: str, words: str) -> None:
    answer = create(service.client, url=url)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["pointer"]) == (422, "webhook_url", "/url"), answer.text
    assert words in problem["detail"]
    assert service.client.get("/webhooks").json()["data"] == []


def test_a_host_that_the_operator_named_may_be_private_and_without_tls() -> None:
    settings = Settings(webhook_private_hosts="Ops.internal, other")  # type: ignore[arg-type]
    webhooks.check_url("http://ops.internal:9000/hook", settings, lambda host, port: ["10.0.0.7"])
    with pytest.raises(Problem, match="must begin with https://"):
        webhooks.check_url("http://elsewhere.internal/hook", settings, lambda host, port: ["10.0.0.7"])


def test_one_private_address_among_several_is_enough_to_refuse() -> None:
    with pytest.raises(Problem, match="not of the open internet"):
        webhooks.check_url("https://two.example/", Settings(), lambda host, port: ["1.1.1.1", "192.168.0.1"])


@on_sqlite
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_json"),
        (b'{"url": "https://1.1.1.1/", "typos": []}', "unknown_field"),
        (b'{"url": "https://1.1.1.1/", "types": ["job.started"]}', "invalid_request"),
        (b'{"url": "https://1.1.1.1/", "types": []}', "invalid_request"),
        (b"[" + b" " * 2**20 + b"]", "payload_too_large"),
    ],
)
def test_a_body_that_is_refused(service: Service, body: bytes, code: str) -> None:
    answer = service.client.post("/webhooks", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["code"] == code


def test_a_body_of_another_kind_is_refused(service: Service) -> None:
    answer = service.client.post("/webhooks", data={"url": PUBLIC})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_there_are_twenty_at_most(service: Service) -> None:
    for _ in range(webhooks.MOST):
        assert create(service.client).status_code == 201
    assert create(service.client).json()["code"] == "too_many_webhooks"


def test_there_are_twenty_at_most_whoever_makes_them_at_once(database: Database) -> None:
    for _ in range(webhooks.MOST - 1):
        webhooks.create(database, Settings(), EMBEDDED_TENANT, WebhookRequest(url=PUBLIC))
    both = threading.Barrier(2)

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def about_to(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO webhooks"):
            with suppress(threading.BrokenBarrierError):  # the other waits for this one's end, and never comes here
                both.wait(timeout=1)

    def make(_: int) -> str:
        try:
            return webhooks.create(database, Settings(), EMBEDDED_TENANT, WebhookRequest(url=PUBLIC)).id
        except Problem as problem:
            return problem.code

    with ThreadPoolExecutor(2) as pool:
        assert "too_many_webhooks" in list(pool.map(make, range(2)))
    with database.read() as session:
        assert len(session.scalars(sa.select(Webhook)).all()) == webhooks.MOST


def test_those_of_another_tenant_are_not_there(database: Database) -> None:
    with database.write() as session:
        session.execute(sa.text("insert into tenants (id, created_at) values ('tenant_other', CURRENT_TIMESTAMP)"))
    webhook = webhooks.create(database, Settings(), "tenant_other", WebhookRequest(url=PUBLIC))
    for use in (webhooks.read, webhooks.test, webhooks.delete):
        with pytest.raises(Problem, match="no webhook"):
            use(database, "tenant_embedded", webhook.id)
    with database.read() as session:
        assert session.get(Webhook, webhook.id) is not None
