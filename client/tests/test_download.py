"""Downloads over connections that break."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import QUICK, Jobs
from faults import Proxy, cut, damaged, instead
from modalbridge import Client, ConnectionFailed, DigestMismatch, JobNotSucceeded, NotFound

MODEL = "model.safetensors"


def test_the_weights_come_whole_into_a_folder_or_a_file(client: Client, jobs: Jobs, tmp_path: Path, big: bytes) -> None:
    job = client.jobs.get(jobs.succeeded(model=big, report=b"{}"))
    told: list[tuple[int, int]] = []
    assert job.download(path=tmp_path, on_progress=lambda have, size: told.append((have, size))) == tmp_path / MODEL
    assert (tmp_path / MODEL).read_bytes() == big
    assert told[-1] == (len(big), len(big)) and told == sorted(told) and len(told) > 5
    assert job.download("report.json", tmp_path / "r.json").read_bytes() == b"{}"
    assert not list(tmp_path.glob("*.partial"))


def test_a_broken_download_goes_on_where_it_broke(faulty: Client, proxy: Proxy, jobs: Jobs, tmp_path: Path, big: bytes) -> None:
    job_id = jobs.succeeded(model=big)
    breaks = [cut(1_000_000), cut(500_000), instead(503, {"Retry-After": "0"}), cut(0), cut(200_000)]
    proxy.faults += [(f"GET /jobs/{job_id}/artifacts/{MODEL}", fault) for fault in breaks]
    assert faulty.jobs.download(job_id, path=tmp_path).read_bytes() == big
    asked = [line.rpartition(" ")[2] for line in proxy.seen if line.startswith(f"GET /jobs/{job_id}/artifacts/{MODEL}")]
    assert asked[1:] == ["bytes=1000000-", *["bytes=1500000-"] * 3, "bytes=1700000-"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_later_call_goes_on_with_what_an_earlier_one_left(
    faulty: Client, proxy: Proxy, jobs: Jobs, tmp_path: Path, big: bytes
) -> None:
    job_id = jobs.succeeded(model=big)
    fetching = f"GET /jobs/{job_id}/artifacts/{MODEL}"
    proxy.faults += [(fetching, cut(1_000_000))] + [(fetching, cut(0))] * (QUICK.attempts - 1)
    with pytest.raises(ConnectionFailed):
        faulty.jobs.download(job_id, path=tmp_path)
    assert (tmp_path / f"{MODEL}.partial").stat().st_size == 1_000_000 and not (tmp_path / MODEL).exists()
    assert faulty.jobs.download(job_id, path=tmp_path).read_bytes() == big
    assert proxy.seen[-1] == f"{fetching} bytes=1000000-"


@pytest.mark.parametrize("left", [b"other bytes", bytes(3_000_000), bytes(3_000_001)])
def test_what_was_left_of_another_file_is_not_kept(left: bytes, client: Client, jobs: Jobs, tmp_path: Path, big: bytes) -> None:
    job_id = jobs.succeeded(model=big)
    (tmp_path / f"{MODEL}.partial").write_bytes(left)
    assert client.jobs.download(job_id, path=tmp_path).read_bytes() == big


def test_what_was_left_whole_is_not_fetched_again(faulty: Client, proxy: Proxy, jobs: Jobs, tmp_path: Path, big: bytes) -> None:
    job_id = jobs.succeeded(model=big)
    (tmp_path / f"{MODEL}.partial").write_bytes(big)
    assert faulty.jobs.download(job_id, path=tmp_path).read_bytes() == big
    assert proxy.count(f"GET /jobs/{job_id}/artifacts/{MODEL}") == 0


def test_a_damaged_file_is_told_and_not_kept(faulty: Client, proxy: Proxy, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.succeeded(model=b"weights")
    proxy.faults += [(f"GET /jobs/{job_id}/artifacts/{MODEL}", damaged)]
    with pytest.raises(DigestMismatch, match="sha256") as caught:
        faulty.jobs.download(job_id, path=tmp_path)
    assert caught.value.name == MODEL and caught.value.expected != caught.value.found
    assert not list(tmp_path.glob(f"{MODEL}*"))


def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(client: Client, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.succeeded()
    (tmp_path / MODEL).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="overwrite"):
        client.jobs.download(job_id, path=tmp_path)
    assert (tmp_path / MODEL).read_bytes() == b"mine"
    assert client.jobs.download(job_id, path=tmp_path, overwrite=True).read_bytes() == b"weights"


def test_a_file_that_appears_meanwhile_stays_as_well(client: Client, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.succeeded()
    with pytest.raises(FileExistsError):
        client.jobs.download(job_id, path=tmp_path, on_progress=lambda *_: (tmp_path / MODEL).write_bytes(b"mine"))
    assert (tmp_path / MODEL).read_bytes() == b"mine"


def test_what_is_not_there_is_told_by_the_service(client: Client, jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(JobNotSucceeded):
        client.jobs.download(jobs.queued(), path=tmp_path)
    with pytest.raises(NotFound, match="artifact"):
        client.jobs.download(jobs.succeeded(), "none.json", tmp_path)
    with pytest.raises(NotFound, match="no job"):
        client.jobs.download("job_none", path=tmp_path)
    with pytest.raises(ValueError, match="plain file name"):
        client.jobs.download("job_none", "../x", tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_an_empty_file_is_a_file(client: Client, jobs: Jobs, tmp_path: Path) -> None:
    assert client.jobs.download(jobs.succeeded(notes=b""), "notes.json", tmp_path / "n").read_bytes() == b""
