"""Sending again: with exponentially growing, jittered pauses, never sooner than the service asks, and only what may be."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from modalbridge.errors import ConnectionFailed, ModalBridgeError, Timeout, UnexpectedAnswer, of_document
from modalbridge.steps import Answer, Request, Send, Sleep, Steps

AGAIN = frozenset({429, 502, 503, 504})
GATEWAY = frozenset({502, 503, 504})


@dataclass(frozen=True)
class Retries:
    """What is sent again: GET, and what has an idempotency key or is stored by its content; after errors of the connection,
    and after 429, 502, 503 and 504."""

    attempts: int = 5
    """In all. 1: nothing is sent again."""
    first_s: float = 0.25
    """The first pause; each further one is twice as long."""
    most_s: float = 15
    """The longest pause."""
    patience_s: float = 60
    """A Retry-After beyond this is not waited for: the error is raised."""
    jitter: Callable[[], float] = random.random
    """Of 0 to 1: a pause is between half of itself and all of it, so that clients do not come back all at once."""

    def pause(self, failures: int, asked_s: float = 0) -> float:
        """Seconds before the next attempt, after this many failures."""
        grown = min(self.first_s * 2 ** min(failures - 1, 60), self.most_s)
        return max(asked_s, grown * (1 + self.jitter()) / 2)


def answered(request: Request, retries: Retries, until: float | None = None) -> Steps[Answer]:
    """The answer to a request, below 400. until: nothing is sent again after this time.monotonic(). Raises ConnectionFailed,
    Timeout, UnexpectedAnswer, ProblemError."""
    failures = 0
    while True:
        failure: ModalBridgeError
        asked_s = 0.0
        try:
            answer: Answer = yield Send(request)
        except (ConnectionFailed, Timeout) as error:
            failure = error
        else:
            if answer.status < 300 or answer.status == 304:
                return answer
            failure, asked_s = refusal(answer), retry_after(answer)
            if answer.status not in AGAIN:
                raise failure
        failures += 1
        pause = retries.pause(failures, asked_s)
        late = until is not None and time.monotonic() + pause > until
        if not request.repeatable or failures >= retries.attempts or asked_s > retries.patience_s or late:
            raise failure
        yield Sleep(pause)


def refusal(answer: Answer) -> ModalBridgeError:
    """What an answer of 300 and above is."""
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        return of_document(answer.document(), answer.status)
    if answer.status in GATEWAY:
        return ConnectionFailed(f"a gateway answered {answer.status} in the service's place")
    if 300 <= answer.status < 400:
        return UnexpectedAnswer(f"redirected ({answer.status}) to {answer.headers.get('location')}: use the URL it leads to")
    shown = answer.body[:200].decode("utf-8", "replace")
    return UnexpectedAnswer(f"{answer.status} without a problem document: {shown!r}; is the URL that of the service?")


def retry_after(answer: Answer) -> float:
    """Seconds, 0 where it is missing or cannot be read: a number of them, or a date (RFC 9110, 10.2.3)."""
    given = answer.headers.get("retry-after", "").strip()
    if given.isascii() and given.isdigit():
        return float(given)
    try:
        at = parsedate_to_datetime(given)
    except (ValueError, OverflowError):  # no date, or one of a year that is none
        return 0.0
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
