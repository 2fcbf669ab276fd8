"""Jobs whose data are an archive on an https host: downloaded as it was, on from where it broke off, and never past the limits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from app.database import EMBEDDED_TENANT
from app.jobs import service
from tests.archives import made, of_folder, tar_entry, tar_of
from tests.https import File, Https, server
from tests.worker.conftest import embedded_in
from tests.worker.embedded import QUICK, TOO_SMALL, Embedded, began, meanwhile, wait_for
from tests.worker.test_fetching import SCALING, entries, leftovers
from worker import sources
from worker.cache import Cache, Room
from worker.draining import drain
from worker.lease import TICK_S


@dataclass
class Host:
    embedded: Embedded
    https: Https
    archive: bytes

    @property
    def file(self) -> File:
        return self.https.files["/all.tar.gz"]

    def submit(self, **more: object) -> str:
        data = {"target": {"uri": self.https.url("/all.tar.gz#target"), "scaling": SCALING}}
        return self.embedded.submit(wake=False, data=data | more, **QUICK)

    def failed(self, job_id: str, **changes: object) -> str:
        """The code that it ends with, and that nothing is left."""
        drain(self.embedded.process(**changes))
        problem = self.embedded.job(job_id).error
        assert problem.get("pointer") == (None if problem["code"] == "cache_full" else "/data/target/uri")
        assert entries(self.embedded) == [] == leftovers(self.embedded)
        return problem["code"]


@pytest.fixture
def host(
    tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    monkeypatch.setattr(sources, "AGAIN_S", (0.1, 0.1, 0.1))
    with server(tmp_path) as https:
        name = f"localhost:{https.port}"
        given = {"data_hosts": (name,), "data_private_hosts": (name,), "data_ca_file": str(https.ca_file)}
        with embedded_in(tmp_path, new_database_url("sqlite"), small_data, **given) as made_in:
            archive = of_folder("tar.gz", small_data)
            https.files["/all.tar.gz"] = File(archive)
            yield Host(made_in, https, archive)


def test_an_archive_is_downloaded_once_on_from_where_it_broke_off(host: Host):
    """It breaks off thrice; three references lead into it."""
    url = host.https.url("/all.tar.gz")
    job_id = host.submit(pairs={"uri": f"{url}#pairs", "scaling": SCALING}, evaluation={"uri": f"{url}#test"})
    third = len(host.archive) // 4
    host.file.break_after, host.file.breaks = third, 3
    host.https.seen.clear()
    drain(host.embedded.process(data_roots=()))
    job = host.embedded.job(job_id)
    assert job.status == "succeeded", host.embedded.story(job_id)
    assert job.result["accuracy"]["images"] == 36
    assert [part for _, _, part in host.https.seen] == ["", *(f"bytes={n * third}-" for n in (1, 2, 3))]
    told = {one["version"] for one in json.loads(host.embedded.published(job_id)["report.json"])["references"]}
    assert told == {f"sha256:{sha256(host.archive).hexdigest()}"}
    assert len(entries(host.embedded)) == 1 and leftovers(host.embedded) == []
    again = host.submit()
    host.https.seen.clear()
    drain(host.embedded.process(**TOO_SMALL))
    assert began(host.embedded, again) and host.https.seen == [], "it is in the cache"


def test_one_that_cannot_be_gone_on_with_begins_again(host: Host):
    """The host tells no two versions apart, so no second part of it can be trusted to be of the first."""
    host.file.etag = ""
    job_id = host.submit()
    host.file.break_after, host.file.breaks = len(host.archive) // 2, 1
    host.https.seen.clear()
    drain(host.embedded.process(**TOO_SMALL))
    assert began(host.embedded, job_id), host.embedded.story(job_id)
    assert [part for _, _, part in host.https.seen] == ["", ""]


def test_one_that_is_another_by_now_is_an_error_that_says_so(host: Host):
    job_id = host.submit()
    host.https.files["/all.tar.gz"] = File(made("tar.gz", {"target/a.png": b"another"}))
    assert host.failed(job_id) == "reference_changed"


def test_one_that_becomes_another_half_way_is_seen(host: Host):
    job_id = host.submit()
    host.file.break_after, host.file.breaks = len(host.archive) // 2, 1

    def replace() -> None:
        wait_for(lambda: host.file.breaks == 0, "the break")
        host.https.files["/all.tar.gz"] = File(host.archive[:-1] + b"?")

    with meanwhile(replace):
        code = host.failed(job_id)
    assert code == "reference_changed"


def test_one_that_breaks_off_at_the_same_byte_again_and_again_fails_the_job(host: Host):
    job_id = host.submit()
    host.file.break_after, host.file.breaks = 0, 1000
    assert host.failed(job_id) == "reference_away"
    assert 1000 - host.file.breaks == 4


def test_one_that_does_not_say_how_long_it_is_ends_at_the_limit(host: Host):
    host.file.length = host.file.ranges = False
    job_id = host.submit()
    assert host.failed(job_id, max_dataset_bytes=len(host.archive) // 2) == "reference_too_large"


def test_one_that_does_not_fit_the_cache_fails_the_job(host: Host):
    assert host.failed(host.submit(), cache_bytes=len(host.archive) + 1000) == "cache_full"


@pytest.mark.parametrize(
    ("says_its_size", "room_for", "downloads"),
    [(True, 0.5, 0), (False, 0.5, 1), (True, 1.0, 1)],
    ids=["not for what it is known to be", "not for what it turns out to be", "not for what it unpacks to"],
)
def test_one_that_waits_for_room_is_not_downloaded_again_and_again(
    host: Host, says_its_size: bool, room_for: float, downloads: int
):
    """room_for: so many times the archive as it is packed."""
    host.file.length = host.file.ranges = says_its_size
    job_id = host.submit()
    size = 100 * len(host.archive)
    used = size - int(room_for * len(host.archive))
    used -= used % 4096  # a block of the disk

    def much(room: Room) -> str:
        room.need(used)
        (room.files / "large").write_bytes(bytes(used))
        return "v"

    worker = host.embedded.process(cache_bytes=size, **TOO_SMALL)
    other = Cache(worker.settings.cache_folder, size).hold("other", much, lambda: None)
    host.https.seen.clear()
    asked = []

    def let_go() -> None:
        wait_for(lambda: "waits for the cache" in host.embedded.story(job_id), "its words", 30)
        time.sleep(6 * TICK_S)
        asked.append(len(host.https.seen))
        other.close()

    with meanwhile(let_go):
        drain(worker)
    assert began(host.embedded, job_id), host.embedded.story(job_id)
    assert asked == [downloads] and len(host.https.seen) == downloads + 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (made("tar", {"../../x.png": b"x"}), "archive_unsafe"),
        (tar_of((tar_entry("target/a.png", b"2", "/etc/passwd"), b"")), "archive_unsafe"),
        (made("tar.gz", {"target/x.png": bytes(100 * 2**20)}), "archive_bomb"),
        (b"<html>not an archive</html>", "archive_format"),
    ],
    ids=["path", "link", "bomb", "page"],
)
def test_a_hostile_archive_leaves_nothing(host: Host, content: bytes, code: str, tmp_path: Path):
    host.https.files["/all.tar.gz"] = File(content)
    assert host.failed(host.submit()) == code
    assert list(tmp_path.rglob("x.png")) == []


def test_the_worker_asks_only_hosts_that_its_own_settings_open(host: Host):
    assert host.failed(host.submit(), data_hosts=()) == "reference_forbidden"


def test_it_is_cancelled_while_it_downloads(host: Host, monkeypatch: pytest.MonkeyPatch):
    job_id = host.submit()
    host.file.break_after, host.file.breaks = 0, 10**6
    monkeypatch.setattr(sources, "AGAIN_S", (30.0,))

    def cancel() -> None:
        wait_for(lambda: host.file.breaks < 10**6, "a break")
        service.cancel(host.embedded.db, EMBEDDED_TENANT, job_id)

    with meanwhile(cancel):
        drain(host.embedded.process())
    assert host.embedded.job(job_id).status == "cancelled"
    assert entries(host.embedded) == [] == leftovers(host.embedded)
