"""What a receiver gets of a job's end: real HTTP, and signatures checked by hand and by the specification's own library."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook as Verifier

from app.addresses import CheckedBackend
from app.database import EMBEDDED_TENANT, Database
from app.errors import Problem
from app.jobs import lifecycle, service
from app.jobs.states import Status
from app.jobs.table import Job
from app.webhooks import outbox
from app.webhooks import service as webhook_service
from app.webhooks.schemas import WebhookRequest
from app.webhooks.table import Delivery, Webhook
from tests.webhook_receiver import Receiver, receiver
from tests.worker.conftest import embedded_in
from tests.worker.embedded import QUICK, Embedded, wait_for
from worker import housekeeping, webhooks
from worker.draining import claim_next
from worker.process import WorkerProcess


@pytest.fixture
def worker(embedded_both: Embedded) -> WorkerProcess:
    return embedded_both.process(webhook_private_hosts=("127.0.0.1",))


def listen(worker: WorkerProcess, at: Receiver, *types: str) -> Webhook:
    request = WebhookRequest.model_validate({"url": at.url} | ({"types": types} if types else {}))
    return webhook_service.create(worker.db, worker.settings, EMBEDDED_TENANT, request)


def log_of(db: Database, webhook: Webhook) -> list[Delivery]:
    with db.read() as session:
        query = sa.select(Delivery).where(Delivery.webhook_id == webhook.id).order_by(Delivery.id)
        return list(session.scalars(query))


def message_to(url: str) -> webhooks.Message:
    return webhooks.Message("msg_1", "webhook_1", url, "{}", "whsec_" + "A" * 44, 1, datetime.now(UTC))


def make_due(db: Database) -> None:
    with db.write() as session:
        now = db.now(session)
        session.execute(sa.update(Delivery).where(Delivery.status == "pending").values(next_at=now))


def cancelled(embedded: Embedded) -> str:
    """A job that is over."""
    job_id = embedded.submit(wake=False)
    service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
    return job_id


def test_a_jobs_end_arrives_signed(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(204) as at:
        webhook = listen(worker, at)
        job_id = cancelled(embedded_both)
        webhooks.deliver(worker)
        webhooks.deliver(worker)
    ((headers, body),) = at.got
    told = json.loads(body)
    assert told["type"] == "job.cancelled"
    assert told["data"] == {"id": job_id, "status": "cancelled", "attempt": 0, "url": f"/jobs/{job_id}"}
    assert headers["content-type"] == "application/json"
    Verifier(webhook.secret).verify(body, headers)
    key = base64.b64decode(webhook.secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    by_hand = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{by_hand}"
    (logged,) = log_of(worker.db, webhook)
    assert (logged.id, logged.status, logged.attempts) == (headers["webhook-id"], "delivered", 1)
    assert (logged.response_status, logged.error, logged.next_at) == (204, None, None)


def test_each_way_of_ending_is_told_once_and_to_those_alone_who_asked(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(200) as all_of_them, receiver(200) as failures:
        listen(worker, all_of_them)
        listen(worker, failures, "job.failed")
        cancelled(embedded_both)
        embedded_both.submit(wake=False)
        claim = claim_next(worker)
        problem = Problem("child_died", "exit code 1 and no result").document()
        with worker.db.write() as session:
            assert lifecycle.fail(session, claim, problem, now=worker.db.now(session)) is not None
            assert lifecycle.fail(session, claim, problem, now=worker.db.now(session)) is None
        webhooks.deliver(worker)
    assert sorted(json.loads(body)["type"] for _, body in all_of_them.got) == ["job.cancelled", "job.failed"]
    assert [json.loads(body)["type"] for _, body in failures.got] == ["job.failed"]


def test_what_was_rolled_back_is_not_told(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(200) as at:
        webhook = listen(worker, at)
        job_id = embedded_both.submit(wake=False)
        with worker.db.read() as session:
            lifecycle.cancel(session, EMBEDDED_TENANT, job_id, now=worker.db.now(session))
            session.rollback()
        assert log_of(worker.db, webhook) == []


def test_what_fails_is_tried_again_later_with_the_same_id(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(500, 302, 200) as at:
        webhook = listen(worker, at)
        cancelled(embedded_both)
        webhooks.deliver(worker)
        webhooks.deliver(worker)
        assert len(at.got) == 1, "not before it is due"
        (logged,) = log_of(worker.db, webhook)
        assert (logged.status, logged.response_status) == ("pending", 500)
        with worker.db.read() as session:
            left = logged.next_at - worker.db.now(session)
        assert timedelta(0) < left < timedelta(seconds=7)
        for _ in range(2):
            make_due(worker.db)
            webhooks.deliver(worker)
    assert len(at.got) == 3, "and the redirect was not followed"
    assert len({headers["webhook-id"] for headers, _ in at.got}) == 1
    assert len({body for _, body in at.got}) == 1
    assert (log_of(worker.db, webhook)[0].status, log_of(worker.db, webhook)[0].attempts) == ("delivered", 3)


def test_it_is_given_up_after_the_last_attempt(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(503) as at:
        webhook = listen(worker, at)
        cancelled(embedded_both)
        for _ in range(9):
            make_due(worker.db)
            webhooks.deliver(worker)
    (logged,) = log_of(worker.db, webhook)
    assert len(at.got) == 1 + len(webhooks.AFTER)
    assert (logged.status, logged.next_at) == ("failed", None)
    assert logged.finished_at is not None


def test_a_receiver_that_is_gone_is_left_in_peace(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(410) as at:
        webhook = listen(worker, at)
        cancelled(embedded_both)
        webhooks.deliver(worker)
        cancelled(embedded_both)
        with pytest.raises(Problem, match="nothing is sent to it since") as raised:
            webhook_service.test(worker.db, EMBEDDED_TENANT, webhook.id)
        webhooks.deliver(worker)
    assert raised.value.code == "webhook_gone"
    assert len(at.got) == 1
    assert webhook_service.read(worker.db, EMBEDDED_TENANT, webhook.id).gone_at is not None
    assert [logged.status for logged in log_of(worker.db, webhook)] == ["failed"]


def test_nobody_listens_is_told_as_the_reason(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(200) as at:
        webhook = listen(worker, at)
    cancelled(embedded_both)
    webhooks.deliver(worker)
    (logged,) = log_of(worker.db, webhook)
    assert (logged.status, logged.response_status) == ("pending", None)
    assert logged.error.startswith("ConnectError")


def test_a_name_that_leads_elsewhere_by_now_is_not_followed(embedded_both: Embedded, worker: WorkerProcess):
    """When it was registered the name had a public address; now it is this machine's."""
    with receiver(200) as at:
        port = at.url.split(":")[2].split("/")[0]
        send = webhooks.sender((), CheckedBackend((), resolve=lambda host, port: ["127.0.0.1"]))
        message = message_to(f"http://rebound.example:{port}/hook")
        answer = send(message)
    assert at.got == []
    assert answer.status is None and "127.0.0.1" in answer.error


def test_workers_that_deliver_at_once_send_each_message_once(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(200) as at:
        webhook = listen(worker, at)
        for _ in range(8):
            webhook_service.test(worker.db, EMBEDDED_TENANT, webhook.id)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(webhooks.deliver, [worker] * 4))
        webhooks.deliver(worker)
    assert len({headers["webhook-id"] for headers, _ in at.got}) == len(at.got) == 8


def test_a_message_whose_sender_died_is_sent_again(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(200) as at:
        webhook = listen(worker, at)
        webhook_service.test(worker.db, EMBEDDED_TENANT, webhook.id)
        died = webhooks.claim(worker.db)
        webhooks.deliver(worker)
        assert at.got == [], "it is the other's for a while"
        make_due(worker.db)
        webhooks.deliver(worker)
        assert len(at.got) == 1
        webhooks.settle(worker.db, died, webhooks.Answer(500, None))
    assert log_of(worker.db, webhook)[0].status == "delivered", "and the late word of the first changes nothing"


def test_progress_is_told_once_a_minute(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(200) as at:
        webhook = listen(worker, at, "job.progress")
        embedded_both.submit(wake=False)
        claim = claim_next(worker)
        worker.job_id = claim.job_id
        with worker.db.write() as session:
            progress = {"phase": "bridging", "step": 3, "of": 10, "fraction": 0.25}
            assert lifecycle.record(session, claim, now=worker.db.now(session), phase="bridging", progress=progress)
        for _ in range(2):
            housekeeping.tell_progress(worker)
        (logged,) = log_of(worker.db, webhook)
        assert (logged.payload["data"]["phase"], logged.payload["data"]["fraction"]) == ("bridging", 0.25)
        with worker.db.write() as session:
            session.execute(sa.update(Delivery).values(created_at=worker.db.now(session) - 2 * outbox.PROGRESS_EVERY))
        housekeeping.tell_progress(worker)
        assert len(log_of(worker.db, webhook)) == 2
    with worker.db.write() as session:
        session.execute(sa.update(Job).values(status=Status.CANCELLED, lease_expires_at=None, worker_id=None))


def test_the_log_is_kept_for_a_month(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(200) as at:
        webhook = listen(worker, at)
        old, new = (webhook_service.test(worker.db, EMBEDDED_TENANT, webhook.id).id for _ in range(2))
        webhooks.deliver(worker)
    with worker.db.write() as session:
        ended = worker.db.now(session) - timedelta(days=31)
        session.execute(sa.update(Delivery).where(Delivery.id == old).values(finished_at=ended))
    webhooks.forget_deliveries(worker)
    assert [logged.id for logged in log_of(worker.db, webhook)] == [new]


def test_one_that_kills_its_sender_each_time_is_given_up(embedded_both: Embedded, worker: WorkerProcess):
    with receiver(200) as at:
        webhook = listen(worker, at)
        webhook_service.test(worker.db, EMBEDDED_TENANT, webhook.id)
        for _ in range(1 + len(webhooks.AFTER)):
            make_due(worker.db)
            assert webhooks.claim(worker.db) is not None
        make_due(worker.db)
        webhooks.deliver(worker)
    assert at.got == []
    assert log_of(worker.db, webhook)[0].status == "failed"


def test_an_answer_that_trickles_in_has_no_more_time_than_another(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(webhooks, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                for _ in range(100):
                    connection.sendall(b"x: y\r\n")
                    time.sleep(0.1)

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        began = time.monotonic()
        answer = webhooks.sender(("127.0.0.1",))(message_to(url))
        took = time.monotonic() - began
        thread.join()
    assert answer.status is None and "Timeout" in answer.error
    assert took < 5


def test_one_that_is_slow_to_answer_holds_nobody_up(embedded_both: Embedded, worker: WorkerProcess):
    """More messages than threads for the slow one, all older than the one for the other."""
    let_go = threading.Event()
    with receiver(200, before=lambda: let_go.wait(30)) as slow, receiver(200) as quick:
        slow_one, quick_one = listen(worker, slow), listen(worker, quick)
        for _ in range(2 * webhooks.AT_ONCE):
            webhook_service.test(worker.db, EMBEDDED_TENANT, slow_one.id)
        webhook_service.test(worker.db, EMBEDDED_TENANT, quick_one.id)
        passing = threading.Thread(target=webhooks.deliver, args=(worker,))
        passing.start()
        wait_for(lambda: quick.got, "the message of the other")
        assert slow.got == []
        let_go.set()
        passing.join()
    assert len(slow.got) == 2 * webhooks.AT_ONCE


@pytest.mark.postgres
def test_a_webhook_cannot_be_deleted_under_a_jobs_end(new_database_url: Callable[[str], str], tmp_path, small_data):
    """Else the job's last transaction would fail, and with it the job."""
    with embedded_in(tmp_path, new_database_url("postgres"), small_data) as embedded:
        worker = embedded.process(webhook_private_hosts=("127.0.0.1",))
        with receiver(200) as at, ThreadPoolExecutor(1) as pool:
            webhook = listen(worker, at)
            job_id = embedded.submit(wake=False)
            with worker.db.write() as session:
                assert lifecycle.cancel(session, EMBEDDED_TENANT, job_id, now=worker.db.now(session)) is not None
                deleting = pool.submit(webhook_service.delete, worker.db, EMBEDDED_TENANT, webhook.id)
                time.sleep(0.3)
                assert not deleting.done()
            deleting.result(10)
        assert embedded.job(job_id).status == "cancelled"
        assert log_of(worker.db, webhook) == []


@pytest.mark.acceptance
@pytest.mark.parametrize("gone", ["deleted", "answered 410"])
def test_a_test_message_is_of_a_webhook_that_is_there(gone: str, embedded_both: Embedded, worker: WorkerProcess):
    """It goes between the look at it and the message: or rather, it waits until that is written, and takes it along."""
    db = worker.db
    with receiver(200) as at:
        webhook = listen(worker, at)
    webhook_service.test(db, EMBEDDED_TENANT, webhook.id)
    message = webhooks.claim(db)
    assert message is not None
    asker = threading.get_ident()
    others: list[Future[None]] = []

    with ThreadPoolExecutor(1) as pool:

        @sa.event.listens_for(db.engine, "after_cursor_execute")
        def looked(connection: object, cursor: object, statement: str, *_: object) -> None:
            if threading.get_ident() == asker and "FROM webhooks" in statement and not others:
                if gone == "deleted":
                    others.append(pool.submit(webhook_service.delete, db, EMBEDDED_TENANT, webhook.id))
                else:
                    others.append(pool.submit(webhooks.settle, db, message, webhooks.Answer(410, None)))
                wait(others, timeout=1)

        tested = webhook_service.test(db, EMBEDDED_TENANT, webhook.id)
        others[0].result(timeout=20)
    assert tested.status == "pending"
    assert [logged.status for logged in log_of(db, webhook)] == ([] if gone == "deleted" else ["failed", "failed"])


def test_a_real_worker_delivers_beside_its_jobs(embedded: Embedded):
    hosts = ("127.0.0.1",)
    with receiver(500, 200) as at, embedded.worker(webhook_private_hosts=hosts):
        webhook = listen(embedded.process(webhook_private_hosts=hosts), at)
        job_id = embedded.submit(**QUICK)
        embedded.until(job_id, "succeeded")
        wait_for(lambda: log_of(embedded.db, webhook)[0].status == "delivered", "the second attempt")
    assert [json.loads(body)["data"]["status"] for _, body in at.got] == ["succeeded"] * 2
