"""The demo's service: it comes up, and whatever ends the demo ends it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from demo import processes

pytestmark = pytest.mark.acceptance
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever is started in the background ignores it
from pathlib import Path
from demo import processes
with processes.service(Path(sys.argv[1]), [Path(sys.argv[1])]) as url:
    print(url, flush=True)
    signal.pause()
"""


def of_this_service(data_dir: Path) -> list[int]:
    """Processes whose environment names the folder."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MODALBRIDGE_DATA_DIR={data_dir}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # another user's, or gone while we looked
    return found


def test_a_free_port_is_given_once_and_no_outgoing_connection_can_have_it() -> None:
    given = [processes.free_port() for _ in range(300)]
    assert len(set(given)) == len(given)
    chosen_by_the_kernel = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if chosen_by_the_kernel.exists() and (first := int(chosen_by_the_kernel.read_text().split()[0])) >= 32_768:
        assert max(given) < first


def test_a_free_port_is_one_that_nobody_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = processes.free_port(), processes.free_port()
    monkeypatch.setattr(processes, "_given", set())
    monkeypatch.setattr(processes, "LISTENING", [taken, free])
    with socket.create_server(("127.0.0.1", taken)):
        assert processes.free_port() == free


def test_ctrl_c_ends_every_process_that_was_started(tmp_path: Path) -> None:
    data_dir = tmp_path / "service"
    demo = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(data_dir)], cwd=processes.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert demo.stdout is not None
    url = demo.stdout.readline().decode().strip()
    assert httpx.get(url + "/readyz").status_code == 200
    assert len(of_this_service(data_dir)) >= 2
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    until = time.monotonic() + 5
    while of_this_service(data_dir) and time.monotonic() < until:
        time.sleep(0.1)
    assert of_this_service(data_dir) == []


def test_a_service_that_does_not_come_up_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORKER", ("--no-such-option",))
    with pytest.raises(RuntimeError, match="ended with code"):
        with processes.service(tmp_path, [tmp_path]):
            pytest.fail("it came up")
    assert of_this_service(tmp_path) == []
