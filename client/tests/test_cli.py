"""The command, as scripts and people use it: what it prints where, and every exit code."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from app.database import EMBEDDED_TENANT
from app.jobs import events, lifecycle, queries
from conftest import CLIENT, Jobs
from faults import Proxy, damaged, instead, renamed
from modalbridge.cli.app import app
from modalbridge.cli.exits import Exit
from tests.archives import made, of_folder
from tests.conftest import Service

PROGRESS = {"phase": "bridging", "step": 120, "of": 600, "fraction": 0.5, "eta_s": 412.0, "losses": {"L_rec": 0.031}}


def run(url: str, *words: object) -> Result:
    """In this process."""
    return CliRunner().invoke(app, [*map(str, words), "--url", url])


def started(url: str, *words: str, **how: Any) -> subprocess.Popen[bytes]:
    """The command as a process of its own."""
    env = os.environ | {"PYTHONPATH": str(CLIENT), "MODALBRIDGE_URL": url, "COLUMNS": "120"}
    return subprocess.Popen([sys.executable, "-m", "modalbridge", *words], env=env, **how)


@pytest.fixture
def job_file(request_body: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"$schema": "job.schema.json"} | request_body))
    return path


def test_submit_prints_the_id_alone(service: Service, job_file: Path, weights: Path) -> None:
    done = run(service.url, "submit", job_file, "--weights", weights)
    assert done.exit_code == 0, done.stderr
    job = service.client.get(f"/jobs/{done.stdout.strip()}").json()
    assert job["name"] == "hall 3" and f"modalbridge watch {job['id']}" in done.stderr
    in_json = run(service.url, "submit", job_file, "--json", "--model", job["source_model_id"])
    assert json.loads(in_json.stdout)["source_model_id"] == job["source_model_id"] and in_json.stderr == ""
    again = [run(service.url, "submit", job_file, "--weights", weights, "--idempotency-key", "k").stdout for _ in range(2)]
    assert again[0] == again[1] != done.stdout


def test_a_job_file_may_be_yaml(service: Service, data: Path, tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        f"""
        name: 2026-01-01        # a text, as YAML 1.2 has it
        labels: {{on: yes, off: "1"}}
        source_model: {{architecture: torchvision/resnet18, classes: [no, off], input: {{size: 0032}}}}
        data:
          target: {{uri: "file://{data}/target"}}
          pairs: {{uri: "file://{data}/pairs"}}
          evaluation:
        settings: {{transfer: {{lr: 1e-3}}}}
        """
    )
    done = run(service.url, "submit", path, "--weights", weights, "--json")
    assert done.exit_code == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["name"], job["labels"]) == ("2026-01-01", {"on": "yes", "off": "1"})
    assert job["request"]["settings"]["transfer"]["lr"] == 0.001
    model = service.client.get(f"/source-models/{job['source_model_id']}").json()
    assert model["description"]["classes"] == ["no", "off"] and model["description"]["input"]["size"] == 32


def test_yaml_without_pyyaml_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("seed: 1")
    code = "import sys; sys.modules['yaml'] = None; from modalbridge.cli.app import main; main()"
    env = os.environ | {"PYTHONPATH": str(CLIENT)}
    done = subprocess.run([sys.executable, "-c", code, "submit", tmp_path / "job.yaml"], env=env, capture_output=True, text=True)
    assert done.returncode == Exit.USAGE and "pip install pyyaml" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("job.json", b"{", "not JSON"),
        ("job.txt", b"seed: 1", "YAML is told by its ending"),
        ("job.json", b'{"seed": NaN}', "NaN is not a number"),
        ("job.json", b"[]", "holds a list"),
        ("job.json", b"\xff\xfe", "not UTF-8"),
        ("job.yaml", b"{", "not YAML"),
        ("job.yaml", b"a: !!python/object:os.system {}", "not YAML"),
        ("job.yaml", b"", "holds a NoneType"),
    ],
)
def test_a_job_file_that_is_none_is_usage(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    done = run("http://127.0.0.1:9", "submit", tmp_path / name)
    assert done.exit_code == Exit.USAGE and words in done.stderr and done.stdout == ""


def test_usage_is_2(service: Service, tmp_path: Path, job_file: Path, weights: Path, jobs: Jobs) -> None:
    job_id = jobs.succeeded()
    (tmp_path / "there").write_bytes(b"mine")
    for words in (
        ("frobnicate",),
        ("show",),
        ("ls", "--limit", "0"),
        ("ls", "--label", "team"),
        ("submit", tmp_path / "none.json"),
        ("submit", job_file, "--weights", tmp_path / "none"),
        ("submit", job_file, "--weights", weights, "--model", "model_x"),
        ("download", job_id, "-o", tmp_path / "there"),
        ("download", job_id, "-o", tmp_path / "no" / "such" / "folder"),
        ("download", job_id, "model.safetensors", "--all"),
    ):
        assert run(service.url, *words).exit_code == Exit.USAGE, words
    assert run("no-url", "ls").exit_code == Exit.USAGE
    assert (tmp_path / "there").read_bytes() == b"mine"


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


def test_names_cannot_move_the_cursor(service: Service, jobs: Jobs) -> None:
    jobs.queued(name="\x1b]0;title\x07\x1b[2J innocent")
    assert "\x1b" not in run(service.url, "ls").stdout and "innocent" in run(service.url, "ls").stdout


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
    proxy.faults += [("GET /healthz", instead(200, body=b"<html>"))]
    assert run(proxy.url, "doctor").exit_code == Exit.UNREACHABLE
    proxy.faults += [("GET /readyz", instead(500, body=b"oh"))]
    done = run(proxy.url, "doctor")
    assert done.exit_code == Exit.REFUSED and "FAIL  ready" in done.stdout


def test_the_schema_is_that_of_the_job_file(service: Service, job_file: Path, request_body: dict[str, Any]) -> None:
    schema = json.loads(run(service.url, "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(job_file.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(request_body | {"epoch": 3}, schema)
    assert json.loads(run(service.url, "schema", "--json").stdout) == schema


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
