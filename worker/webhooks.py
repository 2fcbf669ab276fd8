"""Sends what is due to webhooks, signed as Standard Webhooks has it (standardwebhooks.com).

Every worker does, in a thread beside its housekeeping. A message is this worker's for CLAIM; whoever dies while sending leaves it to
be sent again. So it arrives at least once, and `webhook-id` tells a receiver of a second time.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpcore
import sqlalchemy as sa
import structlog
from standardwebhooks import Webhook as Signer

from app.addresses import CheckedBackend, ForbiddenAddressError, TimedBackend
from app.database import Database
from app.webhooks.table import Delivery, Webhook
from worker.beside import Call
from worker.process import WorkerProcess

CLAIM = timedelta(seconds=60)
"""Longer than an attempt can take."""
ANSWER_S = 15.0
"""From the first byte sent to the status, however slowly it comes."""
AT_ONCE = 4
"""So that one endpoint that never answers does not hold up the others."""
PASS_S = 30.0
"""After this a pass takes no more messages: the next one goes on."""
AFTER = tuple(timedelta(seconds=seconds) for seconds in (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600))
"""Before the next attempts, as the specification suggests; then it has failed, some 17 hours after the first."""
KEPT = timedelta(days=30)
HEARD = httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError
log = structlog.get_logger()
Send = Callable[["Message"], "Answer"]


@dataclass(frozen=True)
class Message:
    id: str
    webhook_id: str
    url: str
    body: str
    secret: str
    attempt: int
    claimed_at: datetime
    """By the database's clock. It is what receivers hold against their own: a machine whose clock is wrong would be refused."""


@dataclass(frozen=True)
class Answer:
    """status: of HTTP; None: there was no answer, and error says why."""

    status: int | None
    error: str | None


def deliver(worker: WorkerProcess) -> None:
    """All that is due, or as much as a pass has time for."""
    with worker.db.read() as session:
        if not session.scalar(sa.select(sa.exists().where(*due(worker.db.now(session))))):
            return
    send, busy = sender(worker.settings.webhook_private_hosts), Busy()
    until = time.monotonic() + PASS_S
    # Calls, whose threads don't hold up a process that wants to end.
    calls = [Call(lambda: _some(worker.db, send, busy, until), "webhooks") for _ in range(AT_ONCE)]
    for call in calls:
        while not call.ended(PASS_S):
            continue
        call.result()


class Busy:
    """The webhooks that are being sent to: one that is slow to answer keeps one thread, not all."""

    def __init__(self) -> None:
        self.lock, self.ids = threading.Lock(), set[str]()


def _some(db: Database, send: Send, busy: Busy, until: float) -> None:
    while time.monotonic() < until:
        with busy.lock:
            if (message := claim(db, busy.ids)) is None:
                return
            busy.ids.add(message.webhook_id)
        try:
            answer = send(message)
            settle(db, message, answer)
        finally:
            with busy.lock:
                busy.ids.discard(message.webhook_id)
        if answer.error or answer.status is None or answer.status >= 300:
            log.info("a webhook was not reached", webhook_message=message.id, status=answer.status, error=answer.error)


def due(now: datetime) -> tuple[Any, Any]:
    """Where a delivery may be claimed."""
    return Delivery.status == "pending", Delivery.next_at <= now


def claim(db: Database, busy: Collection[str] = ()) -> Message | None:
    """The message that has been due for longest, of webhooks that are not busy."""
    oldest = (
        sa.select(Delivery)
        .where(Delivery.webhook_id.not_in(sorted(busy)))
        .order_by(Delivery.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    with db.write() as session:
        now = db.now(session)
        while (delivery := session.scalar(oldest.where(*due(now)))) is not None:
            if delivery.attempts > len(AFTER):  # none of them came to an end, not even a bad one
                delivery.status, delivery.next_at, delivery.finished_at = "failed", None, now
                session.flush()
                continue
            delivery.attempts += 1
            delivery.next_at = now + CLAIM
            webhook = session.get_one(Webhook, delivery.webhook_id)
            body = json.dumps(delivery.payload, ensure_ascii=False, separators=(",", ":"))
            return Message(delivery.id, webhook.id, webhook.url, body, webhook.secret, delivery.attempts, now)
    return None


def settle(db: Database, message: Message, answer: Answer) -> None:
    """Delivered, failed for good, or to be tried again. One that another worker has claimed since is left to it, and one whose
    webhook is deleted is gone."""
    with db.write() as session:
        now = db.now(session)
        if answer.status == 410:  # before any of its deliveries, as whoever deletes it does
            session.execute(sa.select(Webhook.id).where(Webhook.id == message.webhook_id).with_for_update())
        delivered = answer.status is not None and 200 <= answer.status < 300
        values: dict[str, Any] = {"response_status": answer.status, "error": answer.error}
        if delivered:
            values |= {"status": "delivered", "next_at": None, "finished_at": now}
        elif answer.status == 410 or message.attempt > len(AFTER):
            values |= {"status": "failed", "next_at": None, "finished_at": now}
        else:
            values["next_at"] = now + AFTER[message.attempt - 1] * random.uniform(1, 1.2)  # noqa: S311 - that not all come at once
        ours = sa.update(Delivery).where(
            Delivery.id == message.id, Delivery.status == "pending", Delivery.attempts == message.attempt
        )
        if session.execute(ours.values(**values)).rowcount and answer.status == 410:  # Gone: its owner wants no more
            session.execute(sa.update(Webhook).where(Webhook.id == message.webhook_id).values(gone_at=now))
            pending = sa.update(Delivery).where(Delivery.webhook_id == message.webhook_id, Delivery.status == "pending")
            session.execute(pending.values(status="failed", next_at=None, finished_at=now, error="the webhook is gone"))


def forget_deliveries(worker: WorkerProcess) -> None:
    """Deliveries that ended a month ago."""
    with worker.db.write() as session:
        before = worker.db.now(session) - KEPT
        session.execute(sa.delete(Delivery).where(Delivery.finished_at < before))


def sender(private_hosts: tuple[str, ...], backend: httpcore.NetworkBackend | None = None) -> Send:
    """POSTs a message. Addresses are looked at as the connection is made; no redirect is followed, no proxy asked, and of the
    answer only the status is read."""
    checked, ssl_context = backend or CheckedBackend(private_hosts), httpcore.default_ssl_context()

    def send(message: Message) -> Answer:
        timed = TimedBackend(checked, ANSWER_S)
        with httpcore.ConnectionPool(ssl_context, network_backend=timed, max_connections=1) as pool:
            try:
                request = pool.stream("POST", message.url, headers=headers(message), content=message.body.encode())
                with request as response:
                    return Answer(response.status, None)
            except ForbiddenAddressError as error:
                return Answer(None, str(error)[:500])
            except HEARD as error:
                return Answer(None, f"{type(error).__name__}: {error}"[:500])

    return send


def headers(message: Message) -> dict[str, str]:
    at = message.claimed_at.astimezone(UTC)
    return {
        "Content-Type": "application/json",
        "User-Agent": "modalbridge",
        "webhook-id": message.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Signer(message.secret).sign(message.id, at, message.body),
    }
