"""A real process, its lines and its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker.embedded import gone, wait_for
from worker.child import MAX_LINE, Child
from worker.sandbox import libc


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    started: list[Child] = []

    def call(code: str) -> Child:
        started.append(Child([sys.executable, "-I", "-c", code], tmp_path, {}, tmp_path / "stderr.log"))
        return started[-1]

    yield call
    for child in started:
        child.close()


def everything(child: Child) -> list[bytes]:
    return list(child.lines(20))


def test_its_lines_come_in_order_and_then_its_end(start):
    child = start("print('a'); print('b', end='')")
    assert everything(child) == [b"a\n", b"b"]
    assert child.silent
    assert child.reap() == 0


def test_a_line_that_is_too_long_is_cut_and_the_next_one_is_whole(start):
    child = start(f"print('x' * {3 * MAX_LINE}); print('next')")
    first, second = everything(child)
    assert len(first) == MAX_LINE
    assert second == b"next\n"


def test_a_flood_of_lines_makes_it_wait_and_not_us(start):
    child = start("for i in range(100_000): print(i)")
    wait_for(lambda: child._lines.full(), "a full queue")
    assert not child.ended(), "it waits for its reader"
    assert len(everything(child)) == 100_000


def test_it_is_known_to_have_ended_before_it_is_reaped(start):
    child = start("raise SystemExit(7)")
    wait_for(child.ended, "its end")
    assert Path(f"/proc/{child.process.pid}").exists(), "its number is still its own"
    assert child.reap() == 7
    assert child.ended()


def test_the_signal_that_killed_it_is_told(start):
    child = start("import os; os.kill(os.getpid(), 11)")
    assert everything(child) == []
    assert child.reap() == -signal.SIGSEGV


def test_what_it_started_dies_with_it(start):
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(p.pid)"
    child = start(code)
    number = int(next(child.lines(10)))
    wait_for(child.ended, "its end")
    assert not gone(number)
    assert child.reap() == 0
    wait_for(lambda: gone(number), "the grandchild's death", 5)
    assert everything(child) == []
    assert child.silent


def test_asked_to_stop_it_can_still_speak(start):
    code = "import os, signal, time\nsignal.signal(15, lambda *_: (os.write(1, b'stopping\\n'), os._exit(0)))\nprint('up', flush=True)\ntime.sleep(60)"
    child = start(code)
    assert next(child.lines(10)) == b"up\n"
    child.ask_to_stop()
    assert everything(child) == [b"stopping\n"]
    assert child.reap() == 0
    child.ask_to_stop()  # too late, and harmless


def test_a_stopped_process_is_killed_all_the_same(start):
    child = start("import time; print('up', flush=True); time.sleep(60)")
    next(child.lines(10))
    os.kill(child.process.pid, signal.SIGSTOP)
    child.kill()
    assert child.reap() == -signal.SIGKILL


def test_its_last_words_are_the_end_of_stderr(start):
    child = start("import sys; print('x' * 10_000 + ' the end', file=sys.stderr)")
    child.reap()
    assert child.last_words(20).endswith("x the end")
    assert len(child.last_words(20)) <= 20


def test_a_process_that_left_the_group_and_holds_the_pipe_does_not_hold_us(start, monkeypatch):
    monkeypatch.setattr("worker.child.PIPE_WAIT_S", 0.5)
    code = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(4)'], start_new_session=True)"
    )
    child = start(code)
    wait_for(child.ended, "its end")
    child.close()
    assert child.process.returncode == 0
    assert not child.silent
    list(child.lines(10))
    assert child.silent


def test_as_the_first_process_of_a_container_it_buries_what_the_child_had_started(start):
    """A subreaper inherits orphans as process 1 does."""
    PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
    libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = start("import os, time\nif os.fork() == 0: print(os.getpid(), flush=True)\ntime.sleep(60)")
        grandchild = int(next(child.lines(20)))
        child.kill()
        assert child.reap() == -signal.SIGKILL
        assert not Path(f"/proc/{grandchild}").exists(), "not even as a zombie"
    finally:
        libc().prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
