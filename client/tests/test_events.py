"""A job's events, each once and in order, over streams that break or do not get through."""

from __future__ import annotations

import threading
import time

import pytest

from app.database import EMBEDDED_TENANT
from app.jobs import events, queries
from conftest import Jobs
from faults import Proxy, compressed, cut, instead
from modalbridge import Client, NotFound, ServiceFault
from modalbridge.events import Stream


def say(jobs: Jobs, job_id: str, *messages: str) -> None:
    with jobs.service.db.write() as session:
        job = queries.by_id(session, EMBEDDED_TENANT, job_id)
        for message in messages:
            events.append(session, job, "log", message, {"n": 1}, now=jobs.service.db.now(session))


def test_events_are_followed_to_the_end_of_the_job(client: Client, jobs: Jobs) -> None:
    claim = jobs.running()
    came: list[str] = []
    for event in client.jobs.events(claim.job_id):
        came.append(event.message)
        if event.message == "attempt 1 is running":
            say(jobs, claim.job_id, "one", "zwei: ü\nand a second line")
        if event.message.startswith("zwei"):
            assert (event.kind, event.data, event.attempt) == ("log", {"n": 1}, 1)
            jobs.succeed(claim)
    assert came == ["queued", "attempt 1 is running", "one", "zwei: ü\nand a second line", "succeeded: the model is published"]


def test_a_broken_stream_goes_on_after_the_last_event(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    claim = jobs.running()
    say(jobs, claim.job_id, *(f"line {n}" for n in range(30)))
    streaming = f"GET /jobs/{claim.job_id}/events "
    proxy.faults += [(streaming, cut(1500)), (streaming, cut(900)), (streaming, instead(503, {"Retry-After": "0"}))]
    came = []
    for event in faulty.jobs.events(claim.job_id):
        came.append(event.seq)
        if event.seq == 32:
            jobs.succeed(claim)
    assert came == list(range(1, 34))
    assert proxy.faults == []
    last = [int(line.removeprefix(streaming)) for line in proxy.seen if line.startswith(streaming)]
    assert last[0] == 0 < last[1] < last[2] == last[3] < 32


def test_after_a_stream_that_is_refused_the_next_question_is_no_sooner_than_asked_for(
    faulty: Client, proxy: Proxy, jobs: Jobs
) -> None:
    claim = jobs.running()
    jobs.succeed(claim)
    proxy.faults += [(f"GET /jobs/{claim.job_id}/events ", instead(503, {"Retry-After": "1"}))]
    began = time.monotonic()
    assert list(faulty.jobs.events(claim.job_id))
    assert time.monotonic() - began >= 1
    problem = {"Content-Type": "application/problem+json", "Retry-After": "3600"}
    proxy.faults += [
        (f"GET /jobs/{claim.job_id}/events ", instead(503, problem, b'{"code": "database_unavailable", "status": 503}'))
    ]
    with pytest.raises(ServiceFault):
        list(faulty.jobs.events(claim.job_id))


def test_where_streams_do_not_get_through_pages_are_read(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    claim = jobs.running()
    streaming = f"GET /jobs/{claim.job_id}/events "
    proxy.faults += [(streaming, instead(200, {"Content-Type": "application/json"}, b'{"data": []}'))]
    timer = threading.Timer(0.6, jobs.succeed, [claim])
    timer.start()
    came = [event.message for event in faulty.jobs.events(claim.job_id)]
    timer.join()
    assert came == ["queued", "attempt 1 is running", "succeeded: the model is published"]
    assert sum(line.startswith(streaming) for line in proxy.seen) == 1, "one try, and no more"


def test_events_come_at_once_by_a_proxy_that_compresses_what_it_may(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    claim = jobs.running()
    streaming = f"GET /jobs/{claim.job_id}/events "
    proxy.faults += [(streaming, compressed(whether_allowed_or_not=False))]
    timer = threading.Timer(5, jobs.fail, [claim])  # ends a stream that gives nothing
    timer.start()
    following = faulty.jobs.events(claim.job_id)
    assert [next(following).message for _ in range(2)] == ["queued", "attempt 1 is running"]
    assert proxy.seen == [f"{streaming}0"], "both by the first stream"
    timer.cancel()
    following.close()


def test_where_streams_are_compressed_all_the_same_pages_are_read(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    claim = jobs.running()
    streaming = f"GET /jobs/{claim.job_id}/events "
    proxy.faults += [(streaming, compressed(whether_allowed_or_not=True))]
    timer = threading.Timer(8, jobs.fail, [claim])
    timer.start()
    following = faulty.jobs.events(claim.job_id)
    assert next(following).message == "queued"
    assert jobs.client.jobs.get(claim.job_id).status == "running", "while the job runs"
    timer.cancel()
    following.close()
    assert proxy.count(streaming) == 1, "one try, and no more"


def test_streams_that_give_nothing_are_given_up(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    claim = jobs.running()
    streaming = f"GET /jobs/{claim.job_id}/events "
    nothing = instead(200, {"Content-Type": "text/event-stream"}, b"retry: 1000\n\n")
    proxy.faults += [(streaming, nothing), (streaming, cut(0)), (streaming, nothing)]

    timer = threading.Timer(0.5, say, [jobs, claim.job_id, "said in between"])
    timer.start()
    came = []
    for event in faulty.jobs.events(claim.job_id, after=2):
        came.append(event.message)
        if len(came) == 1:
            jobs.succeed(claim)
    timer.join()
    assert came == ["said in between", "succeeded: the model is published"]
    assert [fault for _, fault in proxy.faults] == [nothing], "two tries, and no more"


def test_what_is_there_is_read_without_following(client: Client, jobs: Jobs) -> None:
    claim = jobs.running()
    say(jobs, claim.job_id, *(f"line {n}" for n in range(205)))
    assert [event.seq for event in client.jobs.events(claim.job_id, follow=False)] == list(range(1, 208))
    assert [event.message for event in client.jobs.get(claim.job_id).events(205, follow=False)] == ["line 203", "line 204"]


def test_following_may_be_left_at_any_time(client: Client, jobs: Jobs) -> None:
    claim = jobs.running()
    following = client.jobs.events(claim.job_id)
    assert next(following).message == "queued"
    following.close()
    assert client.jobs.get(claim.job_id).status == "running"


@pytest.mark.parametrize("follow", [True, False])
def test_a_job_that_is_not_there_has_no_events(follow: bool, client: Client) -> None:
    with pytest.raises(NotFound):
        list(client.jobs.events("job_none", follow=follow))


def test_a_stream_may_be_cut_anywhere() -> None:
    raw = '{"seq": %d, "attempt": 1, "at": "2026-11-24T16:02:29.4Z", "kind": "log", "message": "ü"}'
    text = (": hello\r\nretry: 1000\r\n\r\n" + "".join(f"event: log\ndata: {raw % n}\nid: {n}\n\n" for n in (1, 2, 3))).encode()
    for size in (1, 2, 7, len(text)):
        stream = Stream()
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert [(event.seq, event.message) for piece in pieces for event in stream.feed(piece)] == [(1, "ü"), (2, "ü"), (3, "ü")]
