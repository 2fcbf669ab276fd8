"""The job file of the command: JSON or YAML, and its schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from command import run
from conftest import CLIENT
from modalbridge.cli.exits import Exit
from tests.conftest import Service


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
        ("job.json", b'{"seed": 1e999}', "holds what JSON cannot"),
        ("job.yaml", b"seed: 1e999", "holds what JSON cannot"),
        ("job.yaml", b"a: &a [*a]", "holds what JSON cannot"),
        ("job.json", b"[" * 100_000, "not JSON"),
        ("job.yaml", b"[" * 100_000, "not YAML"),
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


def test_the_schema_is_that_of_the_job_file(service: Service, job_file: Path, request_body: dict[str, Any]) -> None:
    schema = json.loads(run(service.url, "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(job_file.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(request_body | {"epoch": 3}, schema)
    assert json.loads(run(service.url, "schema", "--json").stdout) == schema
