"""Every exit code of the command, as scripts meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from command import run, started
from conftest import Jobs
from faults import Proxy, damaged, instead, renamed
from modalbridge.cli.exits import Exit
from tests.conftest import Service


def test_usage_is_2(service: Service, tmp_path: Path, job_file: Path, weights: Path, jobs: Jobs) -> None:
    job_id = jobs.succeeded()
    (tmp_path / "there").write_bytes(b"mine")
    for words in (
        ("frobnicate",),
        ("show",),
        ("ls", "--limit", "0"),
        ("ls", "--label", "team"),
        ("ls", "--label", "team:robots", "--label", "team:drones"),
        ("submit", tmp_path / "none.json"),
        ("submit", job_file),
        ("submit", job_file, "--weights", tmp_path / "none"),
        ("submit", job_file, "--weights", weights, "--model", "model_x"),
        ("download", job_id, "-o", tmp_path / "there"),
        ("download", job_id, "-o", tmp_path / "no" / "such" / "folder"),
        ("download", job_id, "model.safetensors", "--all"),
    ):
        assert run(service.url, *words).exit_code == Exit.USAGE, words
    assert run("no-url", "ls").exit_code == Exit.USAGE
    assert (tmp_path / "there").read_bytes() == b"mine"


@pytest.mark.parametrize("key", ["cl\xe9", "a\nb", "\udcff"])
def test_a_key_that_no_header_can_hold_is_2(service: Service, job_file: Path, key: str) -> None:
    done = run(service.url, "submit", job_file, "--model", "model_x", "--idempotency-key", key)
    assert done.exit_code == Exit.USAGE and "idempotency key" in done.stderr


def test_words_that_are_no_text_are_2(service: Service, job_file: Path) -> None:
    for words in (
        ("show", "\udcff"),
        ("ls", "--label", "team:\udcff"),
        ("datasets", "rm", "\udcff"),
        ("models", "rm", "\udcff"),
        ("webhooks", "test", "\udcff"),
    ):
        done = run(service.url, *words)
        assert done.exit_code == Exit.USAGE and "is not text" in done.stderr, words


def test_a_file_may_have_any_name(service: Service, job_file: Path, request_body: dict[str, Any], weights: Path) -> None:
    odd = weights.rename(weights.with_name("caf\udce9.safetensors"))
    assert run(service.url, "submit", job_file, "--weights", odd).exit_code == Exit.DONE
    job_file.write_text(json.dumps(request_body | {"name": "\udcff", "source_model": {"id": "model_x"}}))
    assert run(service.url, "submit", job_file).exit_code == Exit.REFUSED


def test_a_failed_job_is_1_and_a_cancelled_one_6(service: Service, jobs: Jobs) -> None:
    claim = jobs.running()
    jobs.fail(claim)
    done = run(service.url, "watch", claim.job_id)
    assert done.exit_code == Exit.JOB_FAILED and done.stdout == ""
    assert "The training diverged: L_rec is nan at step 7" in done.stderr and "Lower the stage's learning rate" in done.stderr
    in_json = run(service.url, "watch", claim.job_id, "--json")
    assert in_json.exit_code == Exit.JOB_FAILED and json.loads(in_json.stdout)["error"]["code"] == "training_diverged"
    job_id = jobs.queued()
    assert run(service.url, "cancel", job_id).stdout == f"{job_id} cancelled\n"
    assert run(service.url, "retry", job_id).stdout == f"{job_id} queued\n"
    assert run(service.url, "retry", job_id).exit_code == Exit.REFUSED
    assert run(service.url, "cancel", job_id).stdout == f"{job_id} cancelled\n"
    assert run(service.url, "watch", job_id).exit_code == Exit.JOB_CANCELLED


def test_an_unreachable_service_is_3(proxy: Proxy) -> None:
    assert run("http://127.0.0.1:9", "watch", "job_x", "--timeout", "1").exit_code == Exit.UNREACHABLE
    assert run("http://127.0.0.1:9", "cancel", "job_x").exit_code == Exit.UNREACHABLE
    proxy.faults += [("GET", instead(200, body=b"<html>It works!</html>"))]
    other = run(proxy.url, "show", "job_x", "--json")
    assert other.exit_code == Exit.UNREACHABLE and json.loads(other.stdout)["error"]["code"] == "UnexpectedAnswer"


def test_a_refusal_is_4(service: Service, jobs: Jobs, job_file: Path, request_body: dict[str, Any], weights: Path) -> None:
    done = run(service.url, "show", "job_none", "--json")
    assert done.exit_code == Exit.REFUSED and json.loads(done.stdout)["error"]["code"] == "not_found"
    assert "no job 'job_none'" in done.stderr and "req_" in done.stderr
    job_file.write_text(json.dumps(request_body | {"seed": -1, "epoch": 3}))
    done = run(service.url, "submit", job_file, "--weights", weights)
    assert done.exit_code == Exit.REFUSED and done.stdout == ""
    assert "/seed" in done.stderr and "/epoch" in done.stderr, "every fault is told"
    job_file.write_text(json.dumps(request_body | {f"w{number}": 1 for number in range(25)}))
    assert "  where  5 more\n" in run(service.url, "submit", job_file, "--weights", weights).stderr
    assert run(service.url, "delete", jobs.queued()).exit_code == Exit.REFUSED
    assert run(service.url, "download", jobs.queued()).exit_code == Exit.REFUSED


def test_a_timeout_is_5_and_the_job_goes_on(service: Service, jobs: Jobs, job_file: Path, weights: Path) -> None:
    job_id = jobs.queued()
    done = run(service.url, "watch", job_id, "--timeout", "0.3")
    assert done.exit_code == Exit.TIMEOUT and "goes on" in done.stderr
    assert run(service.url, "submit", job_file, "--weights", weights, "--wait", "--timeout", "0").exit_code == Exit.TIMEOUT


def test_a_damaged_download_is_7(proxy: Proxy, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.succeeded()
    proxy.faults += [(f"GET /jobs/{job_id}/artifacts/", damaged)]
    done = run(proxy.url, "download", job_id, "-o", tmp_path)
    assert done.exit_code == Exit.DAMAGED and "nothing was kept" in done.stderr


def test_a_bug_is_70_and_never_looks_like_a_failed_job(proxy: Proxy, jobs: Jobs) -> None:
    job_id = jobs.queued()
    proxy.faults += [(f"GET /jobs/{job_id}", renamed(b'"labels":{"team":"robots"}', b'"labels":["team","robots"]'))]
    done = run(proxy.url, "show", job_id)
    assert done.exit_code == Exit.BUG and "Traceback" in done.stderr and "report" in done.stderr


def test_ctrl_c_is_130_and_leaves_the_job_alone(service: Service, jobs: Jobs) -> None:
    claim = jobs.running()
    with started(service.url, "watch", claim.job_id, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        assert b"preparing" in watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=20)
    assert watching.returncode == Exit.INTERRUPTED and out == b""
    assert f"{claim.job_id} goes on" in err.decode() and f"modalbridge cancel {claim.job_id}" in err.decode()
    assert service.client.get(f"/jobs/{claim.job_id}").json()["status"] == "running"


def test_a_reader_that_goes_away_is_141(service: Service, jobs: Jobs) -> None:
    jobs.queued()
    with started(service.url, "ls", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert listing.wait(20) == Exit.CUT_OFF
        assert listing.stderr.read() == b""


@pytest.mark.parametrize("which", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("words", "code"),
    [(("watch", "--json"), Exit.USAGE), (("watch",), Exit.USAGE), (("show", "job_none", "--json"), Exit.REFUSED)],
)
def test_output_that_cannot_be_written_never_looks_like_a_failed_job(
    service: Service, jobs: Jobs, words: tuple[str, ...], code: Exit, which: str
) -> None:
    job_id = jobs.succeeded()
    given = (words[0], job_id, *words[1:]) if words[0] == "watch" else words
    other = "stderr" if which == "stdout" else "stdout"
    with Path("/dev/full").open("wb") as full:
        with started(service.url, *given, **{which: full, other: subprocess.PIPE}) as process:
            said = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert b"Traceback" not in (said[1] or b"")


@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_reader_of_a_refusal_that_goes_away_is_141(service: Service, which: str) -> None:
    with started(service.url, "show", "job_none", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as refused:
        getattr(refused, which).close()
        assert refused.wait(20) == Exit.CUT_OFF


def test_a_stream_that_is_closed_takes_everything(service: Service, jobs: Jobs) -> None:
    job_id = jobs.queued()
    for words, code in (("show", job_id), Exit.DONE), (("show", "job_none", "--json"), Exit.REFUSED):
        for number in (1, 2):
            with started(service.url, *words, preexec_fn=partial(os.close, number)) as process:
                assert process.wait(20) == code
