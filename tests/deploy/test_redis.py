"""The broker as docker-compose.yml starts and asks it, with the Redis of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from demo.processes import free_port
from tests.worker.embedded import ROOT, wait_for


@pytest.mark.redis
def test_it_asks_for_the_password_and_stops_when_asked(services: dict[str, dict[str, Any]]) -> None:
    redis, port = services["redis"], str(free_port())
    conf = f"{ROOT}/deploy/redis.conf --port {port}"
    *shell, script = redis["command"]
    assert redis["environment"].keys() == {"REDISCLI_AUTH"}
    password = redis["environment"]["REDISCLI_AUTH"]

    def healthy(word: str) -> bool:
        ping = [redis["healthcheck"]["test"][1], "-p", port, *redis["healthcheck"]["test"][2:]]
        return subprocess.run(ping, env=os.environ | {"REDISCLI_AUTH": word}, capture_output=True).returncode == 0

    line = [*shell, script.replace("/etc/redis/redis.conf", conf)]
    with subprocess.Popen(line, env=os.environ | {"REDISCLI_AUTH": password}, stdout=subprocess.PIPE) as running:
        try:
            wait_for(lambda: healthy(password), "Redis", 20)
            assert not healthy("another")
            assert password.encode() not in Path(f"/proc/{running.pid}/cmdline").read_bytes(), "nor can it be read from outside"
            running.send_signal(signal.SIGTERM)
            assert running.wait(10) == 0
        finally:
            running.kill()
