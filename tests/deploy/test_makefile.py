"""What `make` runs."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.test_docs import ROOT


@pytest.mark.parametrize(("words", "host"), [((), "127.0.0.1"), (("HOST=0.0.0.0",), "0.0.0.0")])
def test_the_front_end_is_opened_to_others_by_the_command_line_alone(words: tuple[str, ...], host: str) -> None:
    """tcsh exports HOST, the machine's name, and the front end asks for no key."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | {"HOST": "box.example"}
    line = ["make", "--dry-run", "serve", *words]
    told = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert f"--host {host} " in told


def test_every_target_that_is_declared_does_something_and_help_lists_it() -> None:
    """Of a name that .PHONY alone knows make says "nothing to be done", and succeeds."""
    makefile = (ROOT / "Makefile").read_text()
    declared = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[0].split())
    assert declared == set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z]+) ", told, re.MULTILINE)) == declared
