"""Sends what is due to webhooks, signed as Standard Webhooks has it (standardwebhooks.com).

Every worker does, in a thread beside its housekeeping. A message is this worker's for CLAIM; whoever dies while sending leaves it to
be sent again. So it arrives at least once, and `webhook-id` tells a receiver of a second time.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpcore
import sqlalchemy as sa
import structlog
from standardwebhooks import Webhook as Signer

from app.addresses import CheckedBackend, ForbiddenAddressError
from app.database import Database
from app.webhooks.table import Delivery, Webhook
from worker.beside import Call
from worker.process import WorkerProcess

CLAIM = timedelta(seconds=60)
"""Longer than an attempt can take."""
CONNECT_S, ANSWER_S = 5.0, 15.0
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
    url: str
    body: str
    secret: str
    attempt: int


@dataclass(frozen=True)
class Answer:
    """status: of HTTP; None: there was no answer, and error says why."""

    status: int | None
    error: str | None


def deliver(worker: WorkerProcess) -> None:
    """All that is due, or as much as a pass has time for."""
    with worker.db.read() as session:
        due = sa.exists().where(Delivery.status == "pending", Delivery.next_at <= worker.db.now(session))
        if not session.scalar(sa.select(due)):
            return
    send = sender(worker.settings.webhook_private_hosts)
    until = time.monotonic() + PASS_S
    # Calls, whose threads don't hold up a process that wants to end.
    calls = [Call(lambda: _some(worker.db, send, until), "webhooks") for _ in range(AT_ONCE)]
    for call in calls:
        call.ended(2 * PASS_S)
        call.result()


def _some(db: Database, send: Send, until: float) -> None:
    while time.monotonic() < until and (message := claim(db)) is not None:
        answer = send(message)
        settle(db, message, answer)
        if answer.error or answer.status is None or answer.status >= 300:
            log.info("a webhook was not reached", webhook_message=message.id, status=answer.status, error=answer.error)


def claim(db: Database) -> Message | None:
    with db.write() as session:
        now = db.now(session)
        due = (
            sa.select(Delivery.id)
            .where(Delivery.status == "pending", Delivery.next_at <= now)
            .order_by(Delivery.next_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if (id := session.scalar(due)) is None:
            return None
        delivery = session.get_one(Delivery, id)
        delivery.attempts += 1
        delivery.next_at = now + CLAIM
        webhook = session.get_one(Webhook, delivery.webhook_id)
        body = json.dumps(delivery.payload, ensure_ascii=False, separators=(",", ":"))
        return Message(delivery.id, webhook.url, body, webhook.secret, delivery.attempts)


def settle(db: Database, message: Message, answer: Answer) -> None:
    """Delivered, failed for good, or to be tried again. One that another worker has claimed since is left to it, and one whose
    webhook is deleted is gone."""
    with db.write() as session:
        now = db.now(session)
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
        webhook_id = session.scalar(ours.values(**values).returning(Delivery.webhook_id))
        if answer.status == 410 and webhook_id is not None:  # Gone: its owner wants no more
            session.execute(sa.update(Webhook).where(Webhook.id == webhook_id).values(gone_at=now))
            pending = sa.update(Delivery).where(Delivery.webhook_id == webhook_id, Delivery.status == "pending")
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
    timeout = {"connect": CONNECT_S, "read": ANSWER_S, "write": ANSWER_S, "pool": CONNECT_S}

    def send(message: Message) -> Answer:
        with httpcore.ConnectionPool(ssl_context, network_backend=checked, max_connections=1) as pool:
            try:
                request = pool.stream(
                    "POST",
                    message.url,
                    headers=headers(message, datetime.now(UTC)),
                    content=message.body.encode(),
                    extensions={"timeout": timeout},
                )
                with request as response:
                    return Answer(response.status, None)
            except ForbiddenAddressError as error:
                return Answer(None, str(error)[:500])
            except HEARD as error:
                return Answer(None, f"{type(error).__name__}: {error}"[:500])

    return send


def headers(message: Message, now: datetime) -> dict[str, str]:
    """now: aware."""
    return {
        "Content-Type": "application/json",
        "User-Agent": "modalbridge",
        "webhook-id": message.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(message.secret).sign(message.id, now.astimezone(UTC), message.body),
    }
