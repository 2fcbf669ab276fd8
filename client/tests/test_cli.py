"""The command, as scripts and people use it: what it prints where."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.database import EMBEDDED_TENANT
from app.jobs import events, lifecycle, queries
from app.jobs.table import Job
from command import run, started
from conftest import CLIENT, Jobs
from faults import Proxy, instead, late
from modalbridge.cli.app import app
from modalbridge.cli.exits import Exit
from modalbridge.cli.output import print_json
from tests.archives import made, of_folder
from tests.conftest import Service

PROGRESS = {"phase": "bridging", "step": 120, "of": 600, "fraction": 0.5, "eta_s": 412.0, "losses": {"L_rec": 0.031}}


def test_submit_prints_the_id_alone(service: Service, job_file: Path, weights: Path) -> None:
    done = run(service.url, "submit", job_file, "--weights", weights)
    assert done.exit_code == 0, done.stderr
    job = service.client.get(f"/jobs/{done.stdout.strip()}").json()
    assert job["name"] == "hall 3" and f"modalbridge watch {job['id']}" in done.stderr
    in_json = run(service.url, "submit", job_file, "--json", "--model", job["source_model_id"])
    assert json.loads(in_json.stdout)["source_model_id"] == job["source_model_id"] and in_json.stderr == ""
    again = [run(service.url, "submit", job_file, "--weights", weights, "--idempotency-key", "k").stdout for _ in range(2)]
    assert again[0] == again[1] != done.stdout


def test_watch_tells_phases_on_stderr_and_the_outcome_on_stdout(service: Service, jobs: Jobs) -> None:
    claim = jobs.running()
    with started(service.url, "watch", claim.job_id, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        assert b"preparing" in watching.stderr.readline()
        jobs.advance(claim, phase="bridging", progress=PROGRESS)
        assert watching.stderr.readline().decode().endswith("bridging 50%  step 120 of 600, 6 min 52 s left  L_rec 0.031\n")
        jobs.succeed(claim)
        out, _ = watching.communicate(timeout=20)
    assert watching.returncode == 0
    first, reason = out.decode().splitlines()
    assert first.startswith(f"{claim.job_id} succeeded in ") and first.endswith(": look_closer")
    assert reason == "  Entropy is high (value 0.51, threshold 0.5)"


def test_a_terminal_gets_a_bar(service: Service, jobs: Jobs) -> None:
    claim = jobs.running()
    jobs.advance(claim, phase="bridging", progress=PROGRESS)
    main, terminal = pty.openpty()
    with started(service.url, "watch", claim.job_id, stdout=terminal, stderr=terminal, stdin=terminal) as watching:
        os.close(terminal)
        seen, until = b"", time.monotonic() + 30
        ended = False
        while time.monotonic() < until:
            if select.select([main], [], [], 0.1)[0]:
                try:
                    seen += os.read(main, 65536)
                except OSError:  # the other end is closed: how a terminal says that it is over
                    break
            if b"L_rec 0.031" in seen and not ended:
                ended = True
                jobs.succeed(claim)
        assert watching.wait(10) == 0
    os.close(main)
    text = seen.decode()
    assert "bridging" in text and "50%" in text and "6 min 52 s left" in text and "━" in text and "look_closer" in text


def test_submit_and_wait_in_one(service: Service, jobs: Jobs, job_file: Path, weights: Path) -> None:
    def work() -> None:
        while not (found := service.client.get("/jobs", params={"status": "queued"}).json()["data"]):
            time.sleep(0.05)
        assert len(found) == 1
        jobs.succeed(jobs.claimed())

    worker = threading.Thread(target=work)
    worker.start()
    done = run(service.url, "submit", job_file, "--weights", weights, "--wait", "--json")
    worker.join()
    assert done.exit_code == 0 and json.loads(done.stdout)["status"] == "succeeded"
    assert "queued" in done.stderr


def test_ls_is_made_for_pipes(service: Service, jobs: Jobs) -> None:
    made = [jobs.queued(name=f"job {n}", labels={"n": str(n)}) for n in range(3)]
    lines = run(service.url, "ls").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == made[::-1]
    assert lines[0].split("\t")[1:4] == ["queued", "-", "tgmb_tgkt"] and lines[0].endswith("\tjob 2")
    assert len(run(service.url, "ls", "--limit", "2").stdout.splitlines()) == 2
    assert [job["id"] for job in json.loads(run(service.url, "ls", "--json", "--label", "n:1").stdout)] == [made[1]]
    assert run(service.url, "ls", "--status", "failed", "--status", "running").stdout == ""
    assert run(service.url, "ls", "--status", "frozen").exit_code == Exit.REFUSED


def kept(jobs: Jobs, name: str, labels: dict[str, str] | None = None) -> str:
    """A job as a database may hold it from before such names and labels were refused."""
    job_id = jobs.queued()
    with jobs.service.db.write() as session:
        job = session.get_one(Job, job_id)
        job.name, job.request = name, job.request | {"labels": labels or {}}
    return job_id


def test_names_cannot_move_the_cursor(service: Service, jobs: Jobs) -> None:
    kept(jobs, "\x1b]0;title\x07\x1b[2J innocent")
    assert "\x1b" not in run(service.url, "ls").stdout and "innocent" in run(service.url, "ls").stdout


def test_json_is_whole_and_moves_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """\\x9b begins a sequence as \\x1b[ does, \\u202e turns what follows around; JSON itself escapes neither."""
    name = "\x9b2J \u202e grün\n"
    print_json({"name": name})
    said = capsys.readouterr().out
    assert "\x9b" not in said and "\u202e" not in said and "grün" in said
    assert json.loads(said) == {"name": name}


def test_names_cannot_make_rows(service: Service, jobs: Jobs) -> None:
    made = [kept(jobs, "x\njob_victim\tqueued", {"team": "a\nstatus       succeeded"}), jobs.queued()]
    rows = [line.split("\t") for line in run(service.url, "ls").stdout.splitlines()]
    assert [row[0] for row in rows] == made[::-1]
    assert len({len(row) for row in rows}) == 1
    shown = run(service.url, "show", made[0]).stdout.splitlines()
    assert not [line for line in shown if line.startswith("job_victim")]
    assert [line for line in shown if line.startswith("status")] == ["status       queued"]


@pytest.mark.parametrize("charset", ["cp1252", "latin-1", "utf-8"])
def test_a_name_that_the_charset_lacks_stops_no_command(service: Service, jobs: Jobs, charset: str) -> None:
    name = "\N{CJK UNIFIED IDEOGRAPH-6DF1}\N{GRINNING FACE}caf\xe9"
    claim = jobs.running(name=name)
    for kind, words in (
        (str, ["ls"]),
        (str, ["show", claim.job_id]),
        (dict, ["show", claim.job_id, "--json"]),
        (list, ["ls", "--json"]),
    ):
        with started(
            service.url, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, more={"PYTHONIOENCODING": charset}
        ) as command:
            out, err = command.communicate(timeout=20)
        assert command.returncode == 0, err
        if kind is str:
            assert name.encode(charset, "backslashreplace").decode(charset) in out.decode(charset)
        else:
            told = json.loads(out.decode(charset))
            assert (told if kind is dict else told[0])["name"] == name


def test_show_tells_what_a_person_wants_to_know(service: Service, jobs: Jobs) -> None:
    claim = jobs.running()
    jobs.advance(claim, phase="bridging", progress=PROGRESS)
    text = run(service.url, "show", claim.job_id).stdout
    for words in ("running, bridging", "50%, step 120 of 600", "team:robots", "tgmb_tgkt"):
        assert words in text
    jobs.succeed(claim)
    assert "look_closer" in run(service.url, "show", claim.job_id).stdout
    failed = jobs.running()
    jobs.fail(failed)
    assert "The training diverged: L_rec is nan at step 7" in run(service.url, "show", failed.job_id).stdout
    assert json.loads(run(service.url, "show", failed.job_id, "--json").stdout)["status"] == "failed"


def test_outputs_are_asked_for_shown_and_fetched_by_their_names(
    service: Service, jobs: Jobs, job_file: Path, weights: Path, tmp_path: Path
) -> None:
    words = ("submit", job_file, "--weights", weights, "--json")
    asked = json.loads(run(service.url, *words, "--output", "onnx", "--output", "torch_export").stdout)
    assert asked["request"]["outputs"] == ["safetensors", "torch_export", "onnx"]
    wrong = run(service.url, *words, "--output", "onxx")
    assert wrong.exit_code == Exit.REFUSED and "'onnx'" in wrong.stderr + wrong.stdout
    outputs = {
        "safetensors": {"published": True, "file": "model.safetensors"},
        "torch_export": {"published": False, "file": "model.pt2", "reason": "it was not done after 3600 s"},
        "onnx": {"published": True, "file": "model.onnx", "images": 64},
    }
    claim = jobs.claimed()
    jobs.succeed(claim, {"outputs": outputs}, **{"model.onnx": b"graph"})
    shown = run(service.url, "show", claim.job_id).stdout
    assert "onnx, model.onnx" in shown and "torch_export is not published: it was not done" in shown
    followed = run(service.url, "watch", claim.job_id).stdout
    assert "torch_export is not published" in followed and "model.onnx" not in followed
    one = run(service.url, "download", claim.job_id, "onnx", "-o", tmp_path)
    assert one.stdout == f"{tmp_path / 'model.onnx'}\n" and (tmp_path / "model.onnx").read_bytes() == b"graph"
    refused = run(service.url, "download", claim.job_id, "torch_export", "-o", tmp_path)
    assert refused.exit_code == Exit.REFUSED and "it was not done after 3600 s" in refused.stderr


def test_download_takes_the_weights_one_artifact_or_all(service: Service, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.succeeded(report=b"{}")
    one = run(service.url, "download", job_id, "-o", tmp_path / "adapted.safetensors")
    assert one.stdout == f"{tmp_path / 'adapted.safetensors'}\n" and Path(one.stdout.strip()).read_bytes() == b"weights"
    run(service.url, "download", job_id, "report.json", "-o", tmp_path)
    assert (tmp_path / "report.json").read_bytes() == b"{}"
    every = run(service.url, "download", job_id, "--all", "-o", tmp_path / "all", "--json")
    assert json.loads(every.stdout) == [str(tmp_path / "all" / name) for name in ("model.safetensors", "report.json")]
    assert run(service.url, "download", job_id, "-o", tmp_path / "adapted.safetensors", "--overwrite").exit_code == 0
    assert run(service.url, "delete", job_id).stdout == f"{job_id} deleted\n"
    assert run(service.url, "show", job_id).exit_code == Exit.REFUSED


def test_download_of_all_goes_on_where_it_was_broken_off(proxy: Proxy, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.succeeded(metrics=b"[]", report=b"{}")
    fetching = f"GET /jobs/{job_id}/artifacts/"
    into = tmp_path / "all"
    words = ("download", job_id, "--all", "-o", into)
    proxy.faults += [(f"{fetching}report.json", instead(404, body=b"broken off"))]
    assert run(proxy.url, *words).exit_code != 0
    assert {file.name for file in into.iterdir()} == {"metrics.json", "model.safetensors", "report.json.partial"}
    proxy.seen.clear()
    again = run(proxy.url, *words)
    assert again.exit_code == 0, again.stderr
    assert [line for line in proxy.seen if line.startswith(fetching)] == [f"{fetching}report.json "]
    assert again.stdout.split() == [str(into / name) for name in ("metrics.json", "model.safetensors", "report.json")]


def test_download_of_all_leaves_a_file_that_is_another(service: Service, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.succeeded()
    (tmp_path / "model.safetensors").write_bytes(b"of mine")  # as many bytes
    refused = run(service.url, "download", job_id, "--all", "-o", tmp_path)
    assert refused.exit_code != 0 and "overwrite" in refused.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == b"of mine"


def test_logs_are_printed_and_followed(service: Service, jobs: Jobs) -> None:
    claim = jobs.running()
    assert [line.split()[3] for line in run(service.url, "logs", claim.job_id).stdout.splitlines()] == ["state", "state"]
    with service.db.write() as session:
        job = queries.by_id(session, EMBEDDED_TENANT, claim.job_id)
        events.append(session, job, "warning", "3 images are broken", now=service.db.now(session))
    with started(service.url, "logs", claim.job_id, "-f", "--after", "2", "--json", stdout=subprocess.PIPE) as following:
        assert json.loads(following.stdout.readline())["message"] == "3 images are broken", "as it comes, not at the end"
        jobs.succeed(claim)
        out, _ = following.communicate(timeout=20)
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["state"] and following.returncode == 0


def test_metrics_in_short_or_one_series(service: Service, jobs: Jobs) -> None:
    claim = jobs.running()
    with service.db.write() as session:
        points = {("bridging/L_rec", step): 1 / (1 + step) for step in range(4)}
        lifecycle.record_metrics(session, claim, points, now=service.db.now(session))
    assert run(service.url, "metrics", claim.job_id).stdout == "bridging/L_rec\t4\t3\t1\t0.25\n"
    points = run(service.url, "metrics", claim.job_id, "--series", "bridging/L_rec").stdout
    assert points.splitlines() == ["0\t1", "1\t0.5", "2\t0.333333", "3\t0.25"]
    in_json = json.loads(run(service.url, "metrics", claim.job_id, "--json").stdout)
    assert in_json[-1] == {"series": "bridging/L_rec", "step": 3, "value": 0.25}


def test_models_are_uploaded_listed_and_removed(
    service: Service, weights: Path, job_file: Path, tmp_path: Path, request_body: dict[str, Any]
) -> None:
    described = tmp_path / "model.json"
    described.write_text(json.dumps(request_body["source_model"]))
    model_id = run(service.url, "models", "upload", weights, described).stdout.strip()
    assert run(service.url, "models", "upload", weights, job_file).stdout.strip() == model_id, "a job file describes it as well"
    listed = run(service.url, "models", "ls").stdout.split("\t")
    assert listed[:3] == [model_id, "torchvision/resnet18", "2"]
    assert json.loads(run(service.url, "models", "ls", "--json").stdout)[0]["id"] == model_id
    assert run(service.url, "models", "rm", model_id).exit_code == 0
    assert run(service.url, "models", "rm", model_id).exit_code == Exit.REFUSED


def test_datasets_are_uploaded_listed_and_removed(
    service: Service, job_file: Path, weights: Path, data: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "hall.tar.gz"
    archive.write_bytes(of_folder("tar.gz", data))
    dataset_id = run(service.url, "datasets", "upload", archive, "--name", "hall 3").stdout.strip()
    assert run(service.url, "datasets", "upload", archive).stdout.strip() == dataset_id
    assert run(service.url, "datasets", "ls").stdout.split("\t")[:4] == [dataset_id, "hall 3", "tar.gz", "36"]
    assert json.loads(run(service.url, "datasets", "ls", "--json").stdout)[0]["id"] == dataset_id
    assert run(service.url, "datasets", "rm", dataset_id).exit_code == 0
    assert run(service.url, "datasets", "rm", dataset_id).exit_code == Exit.REFUSED
    archive.write_bytes(made("tar", {"../x.png": b"x"}))
    refused = run(service.url, "datasets", "upload", archive)
    assert refused.exit_code == Exit.REFUSED and "../x.png" in refused.stderr
    assert run(service.url, "datasets", "upload", tmp_path / "nothing.zip").exit_code == Exit.USAGE


def test_doctor_names_each_part_and_what_to_do(service: Service) -> None:
    done = run(service.url, "doctor")
    assert done.exit_code == Exit.REFUSED
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith(" ")] == [
        ["ok", "address"], ["ok", "database"], ["ok", "broker"], ["ok", "blobs"], ["FAIL", "worker"], ["ok", "clock"], ["ok", "version"],
    ]  # fmt: skip
    assert "make worker" in done.stdout
    away = run("http://127.0.0.1:9", "doctor", "--json")
    assert away.exit_code == Exit.UNREACHABLE
    (finding,) = json.loads(away.stdout)
    assert (finding["check"], finding["ok"]) == ("address", False) and "MODALBRIDGE_URL" in finding["hint"]


def test_doctor_sees_clocks_that_differ_and_what_is_no_service(proxy: Proxy) -> None:
    ready = json.dumps({"status": "ok", "checks": {"database": "ok"}}).encode()
    proxy.faults += [("GET /readyz", instead(200, {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, ready))]
    done = run(proxy.url, "doctor")
    assert done.exit_code == Exit.REFUSED and "FAIL  clock" in done.stdout and "NTP" in done.stdout
    proxy.faults += [("GET /readyz", instead(200, {"Date": "Sun, 01 Jan 2090 00:00:00 GMT"}, ready))]
    assert "FAIL  clock" in run(proxy.url, "doctor").stdout
    proxy.faults += [("GET /healthz", instead(200, body=b"<html>"))]
    assert run(proxy.url, "doctor").exit_code == Exit.UNREACHABLE
    proxy.faults += [("GET /readyz", instead(500, body=b"oh"))]
    done = run(proxy.url, "doctor")
    assert done.exit_code == Exit.REFUSED and "FAIL  ready" in done.stdout


def test_doctor_does_not_take_a_slow_answer_for_another_clock(
    proxy: Proxy, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalbridge.cli.doctor.SKEW_S", 1)
    proxy.faults += [("GET /readyz", late(3.5))]
    assert "ok    clock" in run(proxy.url, "doctor").stdout


def test_help_version_and_completion_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Exit codes" in CliRunner().invoke(app, ["--help"]).stdout
    assert CliRunner().invoke(app, ["--version"]).stdout.strip()
    assert "--idempotency-key" in CliRunner().invoke(app, ["submit", "--help"], env={"COLUMNS": "120"}).stdout
    assert "upload" in CliRunner().invoke(app, ["models"]).output
    done = subprocess.run(
        [sys.executable, "-c", "from modalbridge.cli.app import main; main()"],
        env=os.environ
        | {
            "PYTHONPATH": str(CLIENT),
            "_MODALBRIDGE_COMPLETE": "complete_bash",
            "COMP_WORDS": "modalbridge do",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
    )
    assert "download" in done.stdout and "doctor" in done.stdout, done.stderr
