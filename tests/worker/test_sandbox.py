"""What a job's process cannot do. Each test lets a fresh interpreter enter the sandbox, and try."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.worker.embedded import gone, wait_for

ENTER = "import sys; from worker import sandbox; refused = sandbox.leave_network()\n"
FALL_BACK = "if refused: sys.addaudithook(sandbox.deny_network)\n"


def python(code: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, **more)


def test_a_listener_of_this_machine_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)\n"
        assert python(connect).returncode == 0, "without the sandbox it can be"
        tried = python(ENTER + FALL_BACK + connect)
    assert tried.returncode == 1
    assert "Network is unreachable" in tried.stderr or "PermissionError" in tried.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_without_root_it_goes_by_way_of_a_user_namespace_and_can_still_write(tmp_path):
    os.chown(tmp_path, 65534, 65534)
    # the last step is what starting a program as that user would do
    become = "import os; from worker import sandbox; os.setgid(65534); os.setuid(65534); sandbox.libc().prctl(4, 1, 0, 0, 0)\n"
    code = become + "print(sandbox.leave_network(), os.getuid()); open('file', 'w').close()"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "65534"] or "Operation not permitted" in done.stdout
    assert (tmp_path / "file").stat().st_uid == 65534


BECOME = "import os; from worker import sandbox; os.setgid(65534); os.setuid(65534); sandbox.libc().prctl(4, 1, 0, 0, 0)\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_by_way_of_a_user_namespace_it_has_no_rights_in_it_and_still_dies_with_its_parent():
    code = f"{BECOME}sandbox.die_with(os.getppid()); refused = sandbox.leave_network()\n" + (
        "import ctypes, re; death = ctypes.c_int(); sandbox.libc().prctl(2, ctypes.byref(death), 0, 0, 0)\n"
        "print(refused, *re.findall(r'Cap(?:Prm|Eff|Inh):.([0-9a-f]+)', open('/proc/self/status').read()), death.value)\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", *["0" * 16] * 3, "9"] or "Operation not permitted" in done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_process_of_the_same_user_cannot_read_the_environment_of_one_that_hides_its_memory():
    """Not even where no namespace keeps them apart."""
    look = "import os; print(len(open(f'/proc/{os.getppid()}/environ').read()))"
    # Another interpreter, and all imports at first: the one of the tests can lie in a folder that is root's alone.
    begin, start = f"import subprocess; {BECOME}", f"subprocess.run(['/usr/bin/python3', '-I', '-S', '-c', {look!r}])"
    open_, hidden = (python(f"{begin}{hide}{start}", env={"SECRET": "word"}) for hide in ("", "sandbox.hide_memory()\n"))
    assert int(open_.stdout) > len("SECRET=word"), open_.stderr
    assert (hidden.stdout, "Permission denied" in hidden.stderr) == ("", True)


def test_where_the_kernel_refuses_it_says_so_and_denies_sockets():
    # A user namespace may set its own limits: in this one there can be no further network namespace.
    poor = (
        "import ctypes, os, pathlib\n"
        "c = ctypes.CDLL(None, use_errno=True)\n"
        "assert c.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())\n"
        "pathlib.Path('/proc/sys/user/max_net_namespaces').write_text('0')\n"
    )
    if python(poor).returncode != 0:
        pytest.skip("no user namespaces here to take the network namespaces away from")
    enter = "sandbox.main(['--parent', str(os.getppid()), '--data-bytes', str(2**34), '--file-bytes', str(2**34), '--open-files', '256'])"
    done = python(f"{poor}from worker import sandbox\n{enter}")
    assert '"code": "network_not_isolated"' in done.stdout, done.stderr
    assert "usage: python -m worker.adaptation" in done.stderr, "and the engine begins all the same"
    connect = "import socket; socket.create_connection(('127.0.0.1', 9), 3)\n"
    denied = python(poor + ENTER + "assert refused\n" + FALL_BACK + connect)
    assert "PermissionError" in denied.stderr
    assert "has no network" in denied.stderr


def test_it_dies_with_the_process_that_started_it(tmp_path):
    child = "import os, time; from worker import sandbox; sandbox.die_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-I', '-c', {child!r}], start_new_session=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        assert not gone(number)
        parent.kill()
    wait_for(lambda: gone(number), "the child's death", 5)


def test_it_does_not_begin_where_its_parent_is_gone_already():
    done = python("from worker import sandbox; sandbox.die_with(1)")
    assert done.returncode == 1
    assert "is gone" in done.stderr


def test_memory_file_size_and_cores_are_limited(tmp_path):
    setup = "import resource; from worker import sandbox; sandbox.limit(resource.RLIMIT_{}, {})\n"
    assert "MemoryError" in python(setup.format("DATA", 2**28) + "bytearray(2**29)").stderr
    write = f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes(2**20))"
    assert "File too large" in python(setup.format("FSIZE", 2**16) + write).stderr
    lower = "resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50)); sandbox.limit(resource.RLIMIT_NOFILE, 100)\n"
    assert python(setup.format("CORE", 0) + lower + "print(resource.getrlimit(resource.RLIMIT_NOFILE))").stdout == "(50, 50)\n"


def test_it_is_entered_in_no_time():
    began = time.monotonic()
    assert python(ENTER).returncode == 0
    assert time.monotonic() - began < 5, "it imports the standard library alone"
    assert python(ENTER + "assert not {'torch', 'numpy', 'pydantic', 'sqlalchemy', 'celery'} & set(sys.modules)").returncode == 0
