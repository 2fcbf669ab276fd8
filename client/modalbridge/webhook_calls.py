"""The calls about webhooks, as flows of steps."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from modalbridge.job_calls import each
from modalbridge.results import Delivery, Webhook
from modalbridge.retries import Retries, answered
from modalbridge.steps import Request, Steps

WEBHOOKS = "/webhooks"


def _address(webhook: str | Webhook, *below: str) -> str:
    return "/".join([WEBHOOKS, quote(webhook if isinstance(webhook, str) else webhook.id, safe=""), *below])


def create(retries: Retries, url: str, types: Iterable[str] | None) -> Steps[Webhook]:
    # Sent once: a second one would be another webhook, with another secret.
    wanted = {"url": url} | ({} if types is None else {"types": list(types)})
    answer = yield from answered(Request("POST", WEBHOOKS, json=wanted), retries)
    return Webhook.read(answer.document())


def list_webhooks(retries: Retries, page_size: int) -> Steps[None]:
    yield from each(WEBHOOKS, Webhook.read, retries, {}, page_size)


def get(retries: Retries, webhook: str | Webhook) -> Steps[Webhook]:
    answer = yield from answered(Request("GET", _address(webhook), repeatable=True), retries)
    return Webhook.read(answer.document())


def delete(retries: Retries, webhook: str | Webhook) -> Steps[None]:
    yield from answered(Request("DELETE", _address(webhook)), retries)


def test(retries: Retries, webhook: str | Webhook) -> Steps[Delivery]:
    answer = yield from answered(Request("POST", _address(webhook, "test")), retries)
    return Delivery.read(answer.document())


def deliveries(retries: Retries, webhook: str | Webhook, page_size: int) -> Steps[None]:
    yield from each(_address(webhook, "deliveries"), Delivery.read, retries, {}, page_size)
