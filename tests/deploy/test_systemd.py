"""deploy/systemd runs what docker-compose.yml runs."""

from __future__ import annotations

import configparser
import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from deploy import compose
from tests.test_docs import ROOT, text

UNITS = {"frontend": "modalbridge-front-end.service", "worker": "modalbridge-worker@.service"}
each = pytest.mark.parametrize("service", UNITS)


def unit(service: str) -> dict[str, str]:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[method-assign,assignment]
    parsed.read_string(text(f"deploy/systemd/{UNITS[service]}"))
    return dict(parsed["Service"])


def started(found: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """What env(1) sets, and the command."""
    program, *words = shlex.split(found["ExecStart"])
    assert program == "/usr/bin/env"
    line = list(itertools.dropwhile(lambda word: "=" in word, words))
    return dict(word.split("=", 1) for word in words[: -len(line)]), line


@each
def test_a_unit_has_composes_command_and_its_time_to_stop(service: str, services: dict[str, Any]) -> None:
    found, theirs = unit(service), services[service]
    _, (program, *rest) = started(found)
    line = [Path(program).name, *rest]
    assert [word if word != "127.0.0.1" else "0.0.0.0" for word in line] == theirs["command"]
    assert int(found["TimeoutStopSec"]) == compose.seconds(theirs["stop_grace_period"])
    assert found["Restart"] == "always"


@each
def test_a_unit_sets_settings_that_there_are_and_keeps_secrets_in_a_file(service: str) -> None:
    found = unit(service)
    names = set(started(found)[0]) - {"CUDA_VISIBLE_DEVICES"}
    assert names <= {f"MODALBRIDGE_{name.upper()}" for name in Settings.model_fields}
    assert found["EnvironmentFile"] == "/etc/modalbridge.env" and found["User"] == "modalbridge"
    assert found["NoNewPrivileges"] == "yes" and found["ProtectSystem"] == "strict"


@each
def test_what_a_unit_sets_the_file_does_not_undo(service: str) -> None:
    """By systemd.exec(5) EnvironmentFile= overrides Environment=."""
    found = unit(service)
    assert "Environment" not in found
    given = {"MODALBRIDGE_DATA_DIR": "/var/lib/modalbridge"}
    if service == "worker":
        given |= {"MODALBRIDGE_METRICS_PORT": "910%i", "MODALBRIDGE_TAKES_CUDA": "true", "CUDA_VISIBLE_DEVICES": "%i"}
    assert started(found)[0] == given
    assert found["StateDirectory"] == "modalbridge", "the one folder that it may write to"


def test_only_the_worker_itself_is_asked_to_stop_and_its_jobs_may_make_a_namespace() -> None:
    found = unit("worker")
    assert found["KillMode"] == "mixed" and "RestrictNamespaces" not in found


def test_what_cuda_needs_is_made_before_the_worker_which_may_not_make_it() -> None:
    """With -u the number is that of /dev/nvidia-uvm: %i would make it with another device's."""
    found = unit("worker")
    assert found["ExecStartPre"] == "-+/usr/bin/nvidia-modprobe -u -c 0" and found["NoNewPrivileges"] == "yes"


def test_the_page_installs_the_units_that_there_are() -> None:
    page = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
    assert "deploy/systemd/*.service" in page
    assert {path.name for path in (ROOT / "deploy/systemd").iterdir()} == set(UNITS.values())
