"""What a client can do with webhooks. Each function is one transaction, committed when it returns."""

from __future__ import annotations

import base64
import re
import secrets
from urllib.parse import urlsplit

from app.addresses import Resolve, is_public, resolve
from app.database import Database
from app.errors import Problem
from app.ids import new_id
from app.settings import Settings
from app.webhooks import outbox, queries
from app.webhooks.schemas import WebhookRequest
from app.webhooks.table import Delivery, Webhook

_PLAIN = re.compile(r"[!-~]+")
MOST = 20
"""Of a tenant."""


def create(db: Database, settings: Settings, tenant_id: str, request: WebhookRequest, resolve: Resolve = resolve) -> Webhook:
    """Raises Problem webhook_url, too_many_webhooks."""
    check_url(request.url, settings, resolve)
    with db.write() as session:
        if queries.count(session, tenant_id) >= MOST:
            raise Problem("too_many_webhooks", f"there are {MOST} already")
        webhook = Webhook(
            id=new_id("webhook"),
            tenant_id=tenant_id,
            url=request.url,
            types=list(dict.fromkeys(request.types)),
            secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
            created_at=db.now(session),
        )
        session.add(webhook)
    return webhook


def read(db: Database, tenant_id: str, webhook_id: str) -> Webhook:
    """Raises Problem not_found, whether it never was or is another tenant's."""
    with db.read() as session:
        return _found(queries.by_id(session, tenant_id, webhook_id), webhook_id)


def _found(webhook: Webhook | None, webhook_id: str) -> Webhook:
    if webhook is None:
        raise Problem("not_found", f"no webhook {webhook_id[:100]!r}")
    return webhook


def delete(db: Database, tenant_id: str, webhook_id: str) -> None:
    """With its deliveries: what is pending is not sent. Raises Problem not_found."""
    webhook = read(db, tenant_id, webhook_id)
    with db.write() as session:
        session.delete(webhook)


def test(db: Database, tenant_id: str, webhook_id: str) -> Delivery:
    """A message of type webhook.test is on its way. Raises Problem not_found, webhook_gone."""
    with db.write() as session:
        webhook = _found(queries.by_id(session, tenant_id, webhook_id, keep=True), webhook_id)
        if webhook.gone_at is not None:
            raise Problem(
                "webhook_gone", f"it did so at {webhook.gone_at.isoformat(timespec='seconds')}, and nothing is sent to it since"
            )
        return outbox.add(session, webhook, outbox.TEST, {"id": webhook.id}, db.now(session))


def check_url(url: str, settings: Settings, resolve: Resolve) -> None:
    """A first look, for whoever mistyped: each message is sent to a checked address alone. Raises Problem webhook_url."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise _wrong(url, f"it is no URL: {error}") from error
    if not _PLAIN.fullmatch(url):
        raise _wrong(url, "write what is not ASCII, and spaces, by %")
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        raise _wrong(url, "it needs a host, and neither credentials nor a fragment")
    private = host in settings.webhook_private_hosts
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        raise _wrong(url, "it must begin with https://")
    try:
        addresses = resolve(host, port)
    except OSError as error:
        raise _wrong(url, f"{host} has no address") from error
    if not private and not all(is_public(address) for address in addresses):
        raise _wrong(url, f"{host} has an address that is not of the open internet")


def _wrong(url: str, why: str) -> Problem:
    return Problem("webhook_url", f"{url[:200]!r}: {why}", pointer="/url")
