"""The Dockerfiles. No engine is needed: a linter, and what they take from the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
each = pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name: str) -> list[str]:
    """One a line, without comments."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE))
    return [line for line in joined.splitlines() if line]


@each
def test_the_linter_finds_nothing(name: str) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([linter, "--no-color", name], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@each
def test_all_that_is_copied_is_there_and_not_ignored(name: str) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [line.split()[1:-1] for line in instructions(name) if line.startswith("COPY ") and "--from" not in line]
    assert copied
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), source


@each
def test_it_runs_as_nobody_from_a_pinned_base_and_can_be_stopped(name: str) -> None:
    lines = instructions(name)
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases.pop())
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert "STOPSIGNAL SIGTERM" in lines
    assert lines.index("USER 10001:10001") < next(n for n, line in enumerate(lines) if line.startswith("CMD ["))


@each
def test_what_it_installs_is_what_the_project_asks_for(name: str, tmp_path: Path) -> None:
    """The very line that writes its requirements, run here."""
    (line,) = [line for line in instructions(name) if line.startswith("RUN python -c")]
    written = subprocess.run(line.removeprefix("RUN ").replace(" > requirements.txt", ""), shell=True, cwd=ROOT, capture_output=True,
                             text=True, env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})  # fmt: skip
    extra = PROJECT["optional-dependencies"]
    worker = [*extra["worker"], *extra["mlflow"]] if name == "Dockerfile.gpu" else []
    wanted = [*PROJECT["dependencies"], *extra["postgres"], *extra["otel"], *worker]
    assert written.stdout.splitlines() == wanted, written.stderr
    assert any(requirement.startswith("torch") for requirement in wanted) == (name == "Dockerfile.gpu")


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is for CPUs")
def test_a_driver_too_old_for_torchs_cuda_is_refused_when_the_container_starts() -> None:
    (line,) = [line for line in instructions("Dockerfile.gpu") if "NVIDIA_DRIVER_CAPABILITIES" in line]
    assert f'NVIDIA_REQUIRE_CUDA="cuda>={torch.version.cuda}"' in line
