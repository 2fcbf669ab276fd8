"""What is sent again, when, and what is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from conftest import QUICK, Jobs
from faults import Fault, Proxy, instead, lost
from modalbridge import Client, ConnectionFailed, NotFound, ProblemError, Retries, ServiceFault, UnexpectedAnswer

AWAY = {"Content-Type": "application/problem+json"}, b'{"code": "database_unavailable", "status": 503, "detail": "away"}'


def busy(retry_after: str, status: int = 503) -> Fault:
    headers, body = AWAY
    return instead(status, headers | {"Retry-After": retry_after}, body)


def test_a_busy_service_is_asked_again_no_sooner_than_it_says(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    job_id = jobs.queued()
    proxy.faults += [("GET /jobs", busy("1")), ("GET /jobs", busy("1"))]
    began = time.monotonic()
    assert faulty.jobs.get(job_id).id == job_id
    assert 2 <= time.monotonic() - began < 4
    assert proxy.count("GET /jobs") == 3


def test_a_pause_grows_to_the_longest_and_no_further_however_long_the_outage() -> None:
    retries = Retries(jitter=lambda: 1)
    assert [retries.pause(failures) for failures in (1, 2, 7, 1025, 1026, 100_000)] == [0.25, 0.5, 15, 15, 15, 15]


def test_retry_after_may_be_a_date(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    job_id = jobs.queued()
    at = datetime.now(UTC) + timedelta(seconds=1.9)
    proxy.faults += [("GET /jobs", busy(format_datetime(at, usegmt=True), 429)), ("GET /jobs", busy("nonsense"))]
    proxy.faults += [("GET /jobs", busy("Fri, 31 Dec 99999999999999999999 23:59:59 GMT"))]
    faulty.jobs.get(job_id)
    assert datetime.now(UTC) >= at.replace(microsecond=0)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_every_passing_state_is_waited_out(status: int, faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    job_id = jobs.queued()
    proxy.faults += [("GET /jobs", instead(status)), ("GET /jobs", lost)]
    assert faulty.jobs.get(job_id).id == job_id


def test_a_service_that_stays_away_is_told_in_its_own_words(faulty: Client, proxy: Proxy) -> None:
    proxy.faults += [("GET /jobs", busy("0"))] * QUICK.attempts
    with pytest.raises(ServiceFault, match="away") as caught:
        faulty.jobs.get("job_x")
    assert caught.value.code == "database_unavailable" and proxy.count("GET") == QUICK.attempts


def test_more_patience_than_there_is_is_not_asked_for(faulty: Client, proxy: Proxy) -> None:
    proxy.faults += [("GET /jobs", busy("3600"))]
    began = time.monotonic()
    with pytest.raises(ServiceFault):
        faulty.jobs.get("job_x")
    assert time.monotonic() - began < 2 and proxy.count("GET") == 1


def test_what_may_do_harm_twice_is_sent_once(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    job_id = jobs.queued()
    for fault in (instead(503), lost):
        proxy.faults += [("POST", fault), ("DELETE", fault)]
        with pytest.raises(ConnectionFailed):
            faulty.jobs.cancel(job_id)
        with pytest.raises(ConnectionFailed):
            faulty.jobs.delete(job_id)
    assert (proxy.count("POST"), proxy.count("DELETE")) == (2, 2)


def test_what_is_wrong_with_the_request_is_not_sent_again(faulty: Client, proxy: Proxy, request_body: dict[str, Any]) -> None:
    with pytest.raises(ProblemError):
        faulty.jobs.submit(request_body)
    assert proxy.count("POST") == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (instead(200, body=b"<html>It works!</html>"), "not JSON"),
        (instead(200, body=b"[]"), "not a JSON object"),
        (instead(200, body=b"{}"), "JobState|Job"),
        (instead(404, body=b"<html>no such page</html>"), "404 without a problem document"),
        (instead(200, {"Content-Encoding": "gzip"}, body=b"plain"), "incorrect header|Error -3"),
    ],
)
def test_what_is_not_the_service_is_told_as_such(answer: Fault, words: str, faulty: Client, proxy: Proxy) -> None:
    proxy.faults += [("GET", answer)]
    with pytest.raises(UnexpectedAnswer, match=words):
        faulty.jobs.get("job_x")


@pytest.mark.parametrize("status", [b"null", b'"503 Service Unavailable"', b"true", b"[404]"])
def test_a_status_that_is_no_number_is_that_of_the_answer(status: bytes, faulty: Client, proxy: Proxy) -> None:
    document = b'{"code": "of_a_gateway", "detail": "no route", "status": %s}' % status
    proxy.faults += [("GET", instead(404, {"Content-Type": "application/problem+json"}, document))]
    with pytest.raises(NotFound, match="no route") as caught:
        faulty.jobs.get("job_x")
    assert caught.value.status == 404


def test_a_redirect_is_followed_for_reading_alone(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    job_id = jobs.queued()
    proxy.faults += [(verb, instead(301, {"Location": f"{jobs.service.url}/jobs/{job_id}"})) for verb in ("GET", "POST")]
    assert faulty.jobs.get(job_id).id == job_id
    with pytest.raises(UnexpectedAnswer, match="use the URL it leads to"):
        faulty.jobs.cancel(job_id)


def test_pauses_grow_to_their_limit_and_differ() -> None:
    assert [Retries(jitter=lambda: 1).pause(n) for n in (1, 2, 3, 9)] == [0.25, 0.5, 1, 15]
    assert Retries(jitter=lambda: 0).pause(2) == 0.25
    assert len({Retries().pause(3) for _ in range(20)}) > 10
    assert Retries(jitter=lambda: 0).pause(1, asked_s=7) == 7


def test_headers_of_ones_own_are_sent(connect: Callable[..., Client], proxy: Proxy) -> None:
    seen: list[bytes] = []

    def note(handler: Any, request: bytes) -> None:
        seen.append(request)
        instead(200, body=b'{"status": "ok"}')(handler, request)

    proxy.faults += [("GET", note)]
    connect(proxy.url, headers={"Authorization": "Bearer x"}).alive()
    assert b"authorization: bearer x" in seen[0].lower() and b"user-agent: modalbridge-client/" in seen[0].lower()
