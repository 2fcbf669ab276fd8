"""Downloads of what a job has published, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from tests.app.conftest import claim, publish, safetensors, submit
from tests.conftest import Service


def test_the_model_downloads_whole_by_range_and_by_etag(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    early = service.client.get(url + "/model")
    assert early.status_code == 409 and early.json()["code"] == "job_not_succeeded"
    content = bytes(range(256)) * 1000
    publish(service, claim(service), content)
    whole = service.client.get(url + "/model")
    assert whole.content == content and int(whole.headers["content-length"]) == len(content)
    listed = service.client.get(url + "/artifacts").json()["data"][0]
    assert whole.headers["etag"] == f'"{listed["sha256"]}"' and listed["size"] == len(content)
    head = service.client.head(url + "/model")
    assert head.status_code == 200 and not head.content and head.headers["content-length"] == str(len(content))
    for other in ("Fri, 31 Dec 9999 23:59:59 -0100", "Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "yesterday"):
        answer = service.client.get(listed["url"], headers={"Range": "bytes=100-299", "If-Range": other})
        assert (answer.status_code, answer.content) == (200, whole.content), "a part of another file, as far as this says"
    part = service.client.get(listed["url"], headers={"Range": "bytes=100-299", "If-Range": whole.headers["etag"]})
    assert part.status_code == 206 and part.content == content[100:300]
    assert part.headers["content-range"] == f"bytes 100-299/{len(content)}"
    tail = service.client.get(listed["url"], headers={"Range": "bytes=-10"})
    assert tail.content == content[-10:]
    beyond = service.client.get(listed["url"], headers={"Range": f"bytes={len(content)}-"})
    assert beyond.status_code == 416 and beyond.json()["code"] == "range_not_satisfiable"
    known = service.client.get(url + "/model", headers={"If-None-Match": whole.headers["etag"]})
    assert known.status_code == 304 and not known.content
    assert service.client.get(url + "/artifacts/nothing").json()["code"] == "not_found"
    assert service.client.get(url + "/artifacts/..%2f..%2fmodalbridge.db").status_code == 404


def test_a_download_that_is_wanted_of_one_file_alone_gives_no_other(service: Service, request_body: dict[str, Any]) -> None:
    """RFC 9110, 13.1.1 and 15.4.5."""
    url = submit(service.client, request_body, safetensors()).headers["location"] + "/model"
    publish(service, claim(service))
    whole = service.client.get(url)
    etag = whole.headers["etag"]

    def asked(method: str = "GET", **headers: str) -> httpx.Response:
        return service.client.request(method, url, headers={name.replace("_", "-"): value for name, value in headers.items()})

    for same in (etag, f'"another", {etag}', "*"):
        assert asked(If_Match=same).content == b"weights"
    for method in ("GET", "HEAD"):
        for another in ('"another"', f"W/{etag}"):
            assert asked(method, If_Match=another, If_None_Match=etag, Range="bytes=0-1").status_code == 412
    assert asked(If_Match='"another"').json()["code"] == "precondition_failed"
    known = asked(If_Match=etag, If_None_Match=etag)
    assert known.status_code == 304
    assert {name: known.headers[name] for name in ("etag", "cache-control")} == {
        name: whole.headers[name] for name in ("etag", "cache-control")
    }


BEFORE, AFTER = "Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 31 Dec 2100 23:59:59 GMT"


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
def test_a_download_may_be_wanted_only_if_it_is_as_old_as_a_date_or_only_if_it_is_newer(
    service: Service, request_body: dict[str, Any]
) -> None:
    """RFC 9110, 13.1.3 and 13.1.4, and the three forms of a date in 5.6.7: all of Greenwich, wherever the service runs."""
    url = submit(service.client, request_body, safetensors()).headers["location"] + "/model"
    publish(service, claim(service))
    whole = service.client.get(url)
    etag, same = whole.headers["etag"], whole.headers["last-modified"]
    of_old = [BEFORE, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
    as_written = parsedate_to_datetime(same).strftime("%a %b %e %H:%M:%S %Y")

    def asked(method: str = "GET", **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return service.client.request(method, url, headers=named).status_code

    for method in ("GET", "HEAD"):
        for date in of_old:
            assert asked(method, If_Unmodified_Since=date) == 412, date
            assert asked(method, If_Modified_Since=date) == 200, date
        for date in (same, as_written, AFTER):
            assert asked(method, If_Unmodified_Since=date) == 200, date
            assert asked(method, If_Modified_Since=date) == 304, date
    assert asked(Range="bytes=0-1", If_Range=as_written) == 206
    assert asked(Range="bytes=0-1", If_Unmodified_Since=BEFORE) == 412
    assert service.client.get(url, headers={"If-Unmodified-Since": BEFORE}).json()["code"] == "precondition_failed"
    for none in ("yesterday", "", f"{BEFORE}, {AFTER}", "Fri, 31 Dec 9999 23:59:59 -0100"):
        assert asked(If_Unmodified_Since=none, If_Modified_Since=none) == 200, f"{none!r} is no date"
    assert asked(If_Match=etag, If_Unmodified_Since=BEFORE) == 200, "where both are sent, the ETag decides"
    assert asked(If_None_Match='"another"', If_Modified_Since=AFTER) == 200
    assert asked(If_Unmodified_Since=BEFORE, If_Modified_Since=AFTER) == 412
    unchanged = service.client.get(url, headers={"If-Modified-Since": same})
    assert {name: unchanged.headers[name] for name in ("etag", "cache-control")} == {
        name: whole.headers[name] for name in ("etag", "cache-control")
    }


def test_a_file_that_is_gone_from_the_store_is_not_found(service: Service, request_body: dict[str, Any]) -> None:
    """Deleted between the look at its row and the reading, or lost with a restore: no fault of the service's code."""
    job = submit(service.client, request_body, safetensors()).json()
    publish(service, claim(service))
    (key,) = (key for key in service.blobs.keys_older_than(-60) if job["id"] in key)
    service.blobs.delete(key)
    answer = service.client.get(f"/jobs/{job['id']}/model")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
