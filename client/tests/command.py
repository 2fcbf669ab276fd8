"""The command `modalbridge`: in this process, or as one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from typer.testing import CliRunner, Result

from conftest import CLIENT
from modalbridge.cli.app import app


def run(url: str, *words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--url", url])


def started(url: str, *words: str, more: Mapping[str, str] | None = None, **how: Any) -> subprocess.Popen[bytes]:
    """more: of the environment."""
    env = os.environ | {"PYTHONPATH": str(CLIENT), "MODALBRIDGE_URL": url, "COLUMNS": "120"} | dict(more or {})
    return subprocess.Popen([sys.executable, "-m", "modalbridge", *words], env=env, **how)
