"""Webhooks, by the client and by the command: a real service, its worker's own sending, a real receiver that verifies."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from email.message import Message
from typing import Any

import pytest
from standardwebhooks import Webhook as Signer

from app.broker import make_celery
from command import run
from conftest import CLIENT, Jobs
from modalbridge import Client, Invalid, InvalidSignature, NotFound, TooManyWebhooks, UnexpectedAnswer, verify
from modalbridge.cli.exits import Exit
from tests.conftest import Service
from tests.webhook_receiver import receiver
from worker import webhooks
from worker.process import WorkerProcess

SECRET, ANOTHER = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (7, 8))
BODY = b'{"type": "job.failed",  "timestamp": "2026-11-26T05:43:05+00:00", "data": {"id": "job_1", "n\xc3\xa4me": 1}}'
NOW = 1_795_671_845.7


@pytest.fixture
def send(service: Service) -> Callable[[], None]:
    """What is due, as a worker's housekeeping does."""
    settings = service.settings
    worker = WorkerProcess(settings, service.db, service.blobs, make_celery(settings), takes_cuda=False)
    return lambda: webhooks.deliver(worker)


def signed(body: bytes = BODY, secret: str = SECRET, at: float = NOW) -> dict[str, str]:
    """By the specification's own library."""
    moment = datetime.fromtimestamp(int(at), UTC)
    signature = Signer(secret).sign("msg_1", moment, body.decode())
    return {"webhook-id": "msg_1", "webhook-timestamp": str(int(at)), "webhook-signature": signature}


def test_one_is_made_tried_told_of_a_jobs_end_and_deleted(client: Client, jobs: Jobs, send: Callable[[], None]) -> None:
    with receiver(204) as at:
        webhook = client.webhooks.create(at.url, ["job.cancelled"])
        assert webhook.secret and webhook.secret not in repr(webhook)
        assert client.webhooks.get(webhook.id) == replace(webhook, secret=None)
        other = client.webhooks.create(at.url)
        assert [one.id for one in client.webhooks.list(page_size=1)] == [other.id, webhook.id]
        assert other.types == ["job.succeeded", "job.failed", "job.cancelled"]
        client.webhooks.delete(other)
        tried = client.webhooks.test(webhook)
        assert (tried.type, tried.status, tried.attempts, tried.finished_at) == ("webhook.test", "pending", 0, None)
        job_id = jobs.queued()
        client.jobs.cancel(job_id)
        send()
    test, told = sorted((verify(body, headers, webhook.secret) for headers, body in at.got), key=lambda message: message.id)
    assert (test.id, test.type, test.data) == (tried.id, "webhook.test", {"id": webhook.id})
    assert (told.type, told.data["id"], told.data["status"]) == ("job.cancelled", job_id, "cancelled")
    assert abs((datetime.now(UTC) - told.timestamp).total_seconds()) < 60
    ours, _ = re.findall(
        r"^```python\n(.*?)^```$", (CLIENT.parent / "docs/webhooks.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    page: dict[str, Any] = {}
    exec(compile(ours, "docs/webhooks.md", "exec"), page)
    for headers, body in at.got:
        answers = [page["receive"](headers, body, secret) for secret in (webhook.secret, other.secret)]
        assert answers == [204, 400], "the page's receiver"
        with pytest.raises(InvalidSignature, match="no signature fits"):
            verify(body, headers, other.secret)
    log = list(client.webhooks.deliveries(webhook, page_size=1))
    assert [(one.id, one.job_id, one.status, one.response_status) for one in log] == [
        (told.id, job_id, "delivered", 204),
        (test.id, None, "delivered", 204),
    ]
    assert log[0].payload["data"] == told.data and log[0].finished_at
    client.webhooks.delete(webhook)
    for call in (
        client.webhooks.get,
        client.webhooks.delete,
        client.webhooks.test,
        lambda id: list(client.webhooks.deliveries(id)),
    ):
        with pytest.raises(NotFound, match="no webhook"):
            call(webhook.id)


def test_what_is_refused_says_why(client: Client) -> None:
    with pytest.raises(Invalid, match="must begin with https") as caught:
        client.webhooks.create("http://ops.example.com/")
    assert (caught.value.code, caught.value.pointer) == ("webhook_url", "/url")
    with pytest.raises(Invalid):
        client.webhooks.create("http://127.0.0.1/", ["job.begun"])
    for _ in range(20):
        client.webhooks.create("http://127.0.0.1/")
    with pytest.raises(TooManyWebhooks):
        client.webhooks.create("http://127.0.0.1/")


def test_the_command_does_the_same(service: Service, send: Callable[[], None]) -> None:
    def command(*words: str) -> Any:
        return run(service.url, "webhooks", *words)

    with receiver(500) as at:
        added = command("add", at.url, "--type", "job.failed", "--type", "job.progress")
        webhook_id, secret = added.stdout.rstrip("\n").split("\t")
        assert "shown this once" in added.stderr
        (row,) = command("ls").stdout.splitlines()
        assert row.split("\t")[:3] == [webhook_id, at.url, "job.failed,job.progress"] and row.endswith("\t-")
        assert secret not in row and "secret" not in json.loads(command("ls", "--json").stdout)[0]
        message_id = command("test", webhook_id).stdout.strip()
        send()
    assert verify(at.got[0][1], at.got[0][0], secret).id == message_id
    (row,) = command("deliveries", webhook_id).stdout.splitlines()
    assert row.split("\t")[:6] == [message_id, "webhook.test", "-", "pending", "1", "500"]
    assert json.loads(command("deliveries", webhook_id, "--json").stdout)[0]["attempts"] == 1
    assert command("rm", webhook_id).exit_code == 0 and command("ls").stdout == ""
    for again in ("rm", "test", "deliveries"):
        assert command(again, webhook_id).exit_code == Exit.REFUSED
    refused = command("add", "http://ops.example.com/")
    assert refused.exit_code == Exit.REFUSED and "must begin with https://" in refused.stderr
    assert json.loads(command("add", at.url, "--json").stdout)["secret"].startswith("whsec_")


def test_headers_may_be_in_any_case_and_of_any_server() -> None:
    assert verify(BODY, {name.title(): value for name, value in signed().items()}, SECRET, now=NOW).type == "job.failed"
    of_http_server = Message()
    for name, value in signed().items():
        of_http_server[name] = value
    message = verify(BODY, of_http_server, SECRET, now=NOW)
    assert (message.id, message.data["näme"], message.timestamp.year) == ("msg_1", 1, 2026)


def test_one_signature_that_fits_is_enough() -> None:
    """While a secret takes over from another the sender signs with both, or the receiver knows both."""
    old, new = signed()["webhook-signature"], signed(secret=ANOTHER)["webhook-signature"]
    for several in (f"{old} {new}", f"v1a,AAAA {new} v2,x", f"v1,AAAA {old} v1, {new}"):
        assert verify(BODY, signed() | {"webhook-signature": several}, ANOTHER, now=NOW).id == "msg_1"
    assert verify(BODY, signed(), [ANOTHER, SECRET], now=NOW).id == "msg_1"


@pytest.mark.parametrize(("late_s", "words"), [(301, "301 s ago"), (-301, "301 s from now"), (10**9, "s ago")])
def test_what_is_old_or_from_the_future_is_refused(late_s: int, words: str) -> None:
    with pytest.raises(InvalidSignature, match=words):
        verify(BODY, signed(), SECRET, now=int(NOW) + late_s)


def test_clocks_may_differ_by_five_minutes_or_as_the_receiver_says() -> None:
    for late_s in (-300, 300):
        assert verify(BODY, signed(), SECRET, now=int(NOW) + late_s).id == "msg_1"
    assert verify(BODY, signed(), SECRET, now=NOW + 4000, tolerance_s=5000).id == "msg_1"
    assert verify(BODY, signed(at=time.time()), SECRET).id == "msg_1", "by this machine's clock"


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": str(int(NOW) + 1)},
        {"webhook-timestamp": f"{int(NOW)}.0"},
        {"webhook-timestamp": "1e9"},
        {"webhook-timestamp": "\u0661" * 10},
        {"webhook-timestamp": "9" * 5000},
        {"webhook-signature": signed()["webhook-signature"].replace("v1,", "v1a,")},
        {"webhook-signature": signed()["webhook-signature"].replace("v1,", "")},
        {"webhook-signature": signed()["webhook-signature"][:-2]},
        {"webhook-signature": signed(secret=ANOTHER)["webhook-signature"]},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,\u00e4\ud800"},
        {"webhook-id": "msg_\ud800"},
        {"webhook-id": ""},
    ],
    ids=str,
)
def test_headers_that_were_changed_are_refused(changed: dict[str, str]) -> None:
    with pytest.raises(InvalidSignature):
        verify(BODY, signed() | changed, SECRET, now=NOW)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_request_without_its_headers_is_no_message(missing: str) -> None:
    with pytest.raises(InvalidSignature, match=f"no {missing}"):
        verify(BODY, {name: value for name, value in signed().items() if name != missing}, SECRET, now=NOW)


@pytest.mark.parametrize("body", [BODY + b" ", BODY.replace(b"  ", b" "), json.dumps(json.loads(BODY)).encode(), b""])
def test_a_body_that_is_not_as_it_was_sent_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidSignature, match="not as it was sent"):
        verify(body, signed(), SECRET, now=NOW)


@pytest.mark.parametrize("body", [b"hello", b"[]", b'{"type": "job.failed"}'])
def test_what_is_signed_and_cannot_be_read_is_told(body: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        verify(body, signed(body), SECRET, now=NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_***", "webhook_01m8b", [SECRET, "whsec_ä"]])
def test_a_secret_that_is_none_is_a_mistake_of_the_program(secret: Any) -> None:
    with pytest.raises(ValueError, match="whsec_ and base64"):
        verify(BODY, signed(), secret, now=NOW)
