"""A job's events as they come: by Server-Sent Events, from the last one seen, or by pages where streams do not get through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modalbridge.errors import ConnectionFailed, ModalBridgeError, Timeout, UnexpectedAnswer
from modalbridge.job_calls import address, page, poll
from modalbridge.results import Event, JobState, json_object
from modalbridge.retries import AGAIN, Retries, refusal, retry_after
from modalbridge.steps import Answer, Emit, Open, Read, Request, Sleep, Steps

QUIET_S = 45
"""The service says that it is still there every 15 s."""
BARREN = 2
"""Streams in a row that gave no event, after which pages are read instead: something on the way may be holding streams back."""
BETWEEN_PAGES_S = 2.0


@dataclass
class _Seen:
    """The seq of the last event that was emitted."""

    seq: int


def events(retries: Retries, job: str | JobState, after: int, follow: bool) -> Steps[None]:
    """follow: until the job is over, instead of until the last event there is."""
    seen = _Seen(after)
    barren = 0
    etag = ""
    while follow:
        before = seen.seq
        if barren < BARREN:
            failure, asked_s = yield from _streamed(job, seen)
            barren = barren + 1 if seen.seq == before else 0
            if isinstance(failure, UnexpectedAnswer):
                barren = BARREN
            elif failure is not None:
                if asked_s > retries.patience_s:
                    raise failure
                yield Sleep(retries.pause(barren or 1, asked_s))
        answer = yield from poll(retries, job, etag, BETWEEN_PAGES_S if barren >= BARREN else 0)
        if answer.status != 304:
            etag = answer.headers.get("etag", "")
            follow = not JobState.read(answer.document()).finished
        if follow and barren >= BARREN:
            yield from _paged(retries, job, seen)
    yield from _paged(retries, job, seen)  # after the final state: all that was said is there


def _paged(retries: Retries, job: str | JobState, seen: _Seen) -> Steps[None]:
    more: str | None = ""
    while more is not None:
        rows, more = yield from page(address(job, "events"), retries, {}, str(seen.seq), 200)
        for raw in rows:
            event = Event.read(raw)
            seen.seq = event.seq
            yield Emit(event)


def _streamed(job: str | JobState, seen: _Seen) -> Steps[tuple[ModalBridgeError | None, float]]:
    """What ended the stream, None where the service did; and the seconds that the service asks to be left alone. As it is: what
    compresses it may hold back what does not fill a block."""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Last-Event-ID": str(seen.seq)}
    try:
        head: Answer = yield Open(Request("GET", address(job, "events"), headers=headers, held_s=QUIET_S))
        if head.status in AGAIN:
            return refusal(head), retry_after(head)
        if head.status >= 300:
            raise refusal(head)
        compressed = head.headers.get("content-encoding", "identity") != "identity"
        if compressed or not head.headers.get("content-type", "").startswith("text/event-stream"):
            return UnexpectedAnswer("not a stream"), 0.0
        text = Stream()
        while piece := (yield Read()):
            for event in text.feed(piece):
                seen.seq = event.seq
                yield Emit(event)
    except (ConnectionFailed, Timeout) as error:
        return error, 0.0
    return None, 0.0


class Stream:
    """A stream's bytes as events, as far as they have come whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Raises UnexpectedAnswer on data that is no event of ours."""
        *lines, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
            elif not line and self._data:
                whole, self._data = "\n".join(self._data), []
                yield Event.read(json_object(whole, "an event"))
