"""docs/client.md, from the first command to the last line, and the commands of the README and the quickstart: against a real front end,
with a real worker and real jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.spec import JobRequest
from conftest import CLIENT
from modalbridge import Client
from tests.adaptation.conftest import CLASSES, SIZE
from tests.conftest import new_database_url, serving
from tests.worker.conftest import embedded, environment, small_data
from tests.worker.embedded import Embedded, wait_for

__all__ = ["embedded", "environment", "new_database_url", "small_data"]

README, PAGE, QUICKSTART, DATA = (
    (CLIENT.parent / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/client.md", "docs/quickstart.md", "docs/data.md")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCALING = {"kind": "millimetres", "high": 5000}
SETTINGS = {
    "precision": "fp32",
    "bridging": {"steps": 4, "batch_size": 8, "validate_every": 2},
    "transfer": {"epochs": 1, "batch_size": 16},
}

pytestmark = pytest.mark.acceptance


def blocks(language: str, page: str = PAGE) -> list[str]:
    return [body for kind, body in FENCE.findall(page) if kind == language]


def run(script: str, folder: Path, url: str) -> str:
    """What it prints. The command `modalbridge` is there, and the service where the pages have it."""
    command = folder / "bin/modalbridge"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m modalbridge "$@"\n')
    command.chmod(0o755)
    env = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(CLIENT), "MODALBRIDGE_URL": url}
    script = script.replace("http://127.0.0.1:8000", url)
    done = subprocess.run(["bash", "-euxc", script], env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def url(embedded: Embedded) -> Iterator[str]:
    with serving(embedded.settings) as service, Client(service.url) as client, embedded.worker():
        wait_for(lambda: client.health().ready, "a worker")
        yield service.url


@pytest.fixture
def folder(tmp_path: Path, embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader of the page works: the weights and the job file are there."""
    made = tmp_path / "work"
    made.mkdir()
    (made / "rgb.safetensors").write_bytes((embedded.data / "source.safetensors").read_bytes())
    (text,) = blocks("yaml")
    job: dict[str, Any] = yaml.safe_load(text)
    JobRequest.model_validate(job)
    job["source_model"] = {"architecture": "timm/test_resnet", "classes": list(CLASSES), "input": {"size": SIZE}}
    for name in ("target", "pairs"):
        job["data"][name] |= {"uri": f"file://{embedded.data}/{name}", "scaling": SCALING}
    (made / "job.yaml").write_text(yaml.safe_dump(job | {"settings": SETTINGS, "device": "cpu"}))
    monkeypatch.chdir(made)
    return made


def test_the_page_holds_from_the_first_command_to_the_last_line(
    url: str, folder: Path, embedded: Embedded, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run("\n".join(blocks("sh")), folder, url)
    job = json.loads((folder / "job.json").read_text())
    published = embedded.published(job["id"])
    assert (folder / "adapted.safetensors").read_bytes() == published["model.safetensors"]
    assert {path.name: path.read_bytes() for path in (folder / "adapted").iterdir()} == published
    assert (folder / "report.html").read_bytes() == published["report.html"]
    assert json.loads((folder / "job.schema.json").read_text())["title"] == "JobRequest"
    assert said.splitlines()[-1] == job["id"], "the list by label and status"

    for block in blocks("python"):
        exec(compile(as_here(block, url, embedded), "docs/client.md", "exec"), {"__name__": "page"})
    said = capsys.readouterr().out
    assert "succeeded" in said and "invalid_request" in said and "no job 'job_none'" in said
    with Client(url) as client:
        first = next(iter(client.jobs.list()))
    ours = embedded.published(first.id)
    assert (folder / "adapted-in-python.safetensors").read_bytes() == ours["model.safetensors"]
    assert json.loads((folder / "model.json").read_text())["classes"] == list(CLASSES)

    request = yaml.safe_load((folder / "job.yaml").read_text()) | {"method": "source_only", "name": "by httpx alone"}
    (folder / "job.json").write_text(json.dumps(request))
    (program,) = (body for body in blocks("python", QUICKSTART) if 'post("/jobs"' in body)
    exec(compile(as_here(program, url, embedded), "docs/quickstart.md", "exec"), {"__name__": "page"})
    with Client(url) as client:
        last = next(iter(client.jobs.list()))
    assert last.name == "by httpx alone" and last.verdict in capsys.readouterr().out
    assert (folder / "adapted.safetensors").read_bytes() == embedded.published(last.id)["model.safetensors"]


def test_the_commands_of_the_readme_and_the_quickstart_hold(url: str, folder: Path, embedded: Embedded) -> None:
    request = yaml.safe_load((folder / "job.yaml").read_text()) | {"method": "source_only"}
    (folder / "job.json").write_text(json.dumps(request))
    shutil.make_archive(str(folder / "hall"), "zip", embedded.data / "test")
    by_curl, by_command = blocks("sh", README)
    said = run(
        "\n".join([by_curl, "rm adapted.safetensors model.json", by_command, *blocks("sh", QUICKSTART), *blocks("sh", DATA)]),
        folder,
        url,
    )
    with Client(url) as client:
        third, second, first = client.jobs.list()
        assert [dataset.name for dataset in client.datasets.list()] == ["hall 3"]
    assert first.status == second.status == "succeeded"
    assert said.count(f'"id":"{third.id}"') == 1, "the quickstart's was sent once, under a key of its own"
    published = embedded.published(second.id)
    for name, there in {
        "adapted.safetensors": "model.safetensors",
        "model.json": "model.json",
        "report.html": "report.html",
    }.items():
        assert (folder / name).read_bytes() == published[there], name


def as_here(block: str, url: str, embedded: Embedded) -> str:
    """The page's snippet with this machine's names: the service, the small model and the small data."""
    for there, here in {
        "http://127.0.0.1:8000": url,
        "file:///data/hall/depth": f"file://{embedded.data}/target",
        "file:///data/lobby": f"file://{embedded.data}/pairs",
        "torchvision/resnet18": "timm/test_resnet",
        '"bottle", "chair", "crate"': ", ".join(f'"{name}"' for name in CLASSES),
        "size=224": f"size={SIZE}",
        'method="tgmb_tgkt"': 'method="source_only"',
    }.items():
        assert there in PAGE, f"the page no longer says {there!r}"
        block = block.replace(there, here)
    return block
