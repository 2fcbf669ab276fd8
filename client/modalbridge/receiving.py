"""For the receiver of webhooks: whether a message is from the service, as Standard Webhooks has it (standardwebhooks.com). By hand:
the package needs httpx, typer and rich, and nothing else."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from email.message import Message

from modalbridge.errors import InvalidSignature
from modalbridge.results import WebhookMessage, json_object

TOLERANCE_S = 300
"""As the specification's own libraries have it."""


def verify(
    body: bytes,
    headers: Mapping[str, str] | Message,
    secret: str | Sequence[str],
    *,
    tolerance_s: float = TOLERANCE_S,
    now: float | None = None,
) -> WebhookMessage:
    """The message, if one of its signatures was made with the secret, and its time is not further than tolerance_s from now.

    body: as it came, not parsed and written again. headers: of the request, in any case. secret: `whsec_...`; while one takes
    over from another, both. now: seconds since 1970; None: by this machine's clock. A message can come twice: remember its `id`.
    Raises InvalidSignature; UnexpectedAnswer if what is signed is no message; ValueError if a secret is none."""
    keys = [_key(one) for one in ([secret] if isinstance(secret, str) else secret)]
    found = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if not found.get(name)]
    if missing:
        raise InvalidSignature(f"the request has no {' and no '.join(missing)}: it is no message of the service")
    id, sent_at = found["webhook-id"], found["webhook-timestamp"]
    if not (sent_at.isascii() and sent_at.isdigit() and len(sent_at) <= 12):
        raise InvalidSignature(f"webhook-timestamp is {sent_at[:40]!r}, and must be seconds since 1970")
    signed = b"%s.%s.%s" % (id.encode("utf-8", "replace"), sent_at.encode(), body)
    if not _signed_by(keys, signed, found["webhook-signature"]):
        raise InvalidSignature("no signature fits: the secret is another webhook's, or the body is not as it was sent")
    late_s = (time.time() if now is None else now) - int(sent_at)
    if abs(late_s) > tolerance_s:
        when = f"{late_s:.0f} s ago" if late_s > 0 else f"{-late_s:.0f} s from now"
        raise InvalidSignature(f"it was sent {when}, by this machine's clock: it is repeated by another, or a clock is wrong")
    return WebhookMessage.read(json_object(body, "the message is signed, and") | {"id": id})


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError("a webhook's secret is whsec_ and base64, as the service showed it when the webhook was made")
    return key


def _signed_by(keys: Sequence[bytes], signed: bytes, signatures: str) -> bool:
    """signatures: `VERSION,BASE64`, several between spaces. Version 1 is HMAC-SHA256; another's are left alone."""
    expected = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    given = [one.removeprefix("v1,").encode("utf-8", "replace") for one in signatures.split(" ") if one.startswith("v1,")]
    # Each is compared, and each to its end, so that the time it takes tells nothing.
    return any([hmac.compare_digest(ours, theirs) for ours in expected for theirs in given])
