from __future__ import annotations

import os
import subprocess
import sys

from worker.adaptation.events import Logged, Warned, parse
from worker.adaptation.journal import Journal


def journal(folder):
    read, write = os.pipe()
    return Journal(write, folder), read


def test_an_event_is_one_line_in_the_stream_and_in_the_file(tmp_path):
    says, read = journal(tmp_path)
    says(Logged(message="two\nlines, and ünïcode"))
    says.close()
    line = os.read(read, 10_000)
    assert line.count(b"\n") == 1
    assert parse(line).message == "two\nlines, and ünïcode"
    assert (tmp_path / "events.jsonl").read_bytes() == line


SAYS = """
import sys
from pathlib import Path
from worker.adaptation.events import Logged
from worker.adaptation.journal import added_to, say

with added_to(Path(sys.argv[2])) as file:
    for n in range(20):
        say(Logged(message=sys.argv[1] * 100_000), 1, file)
"""


def test_the_lines_of_several_processes_come_whole_however_long(tmp_path):
    """As where all processes of a job fail at once, and each lists what it found."""
    read, write = os.pipe()
    command = [sys.executable, "-c", SAYS]
    speakers = [subprocess.Popen([*command, name, str(tmp_path)], stdout=write) for name in "abc"]
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        heard = [parse(line).message for line in pipe]
    assert [speaker.wait() for speaker in speakers] == [0, 0, 0]
    assert sorted(heard) == [name * 100_000 for name in "abc" for _ in range(20)]
    assert [parse(line).message for line in (tmp_path / "events.jsonl").read_bytes().splitlines()] == heard


def test_half_a_line_of_a_process_that_was_killed_is_dropped(tmp_path):
    (tmp_path / "events.jsonl").write_bytes(b'{"type":"log","message":"whole"}\n{"type":"lo')
    says, _ = journal(tmp_path)
    says(Logged(message="next"))
    says.close()
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [parse(line).message for line in lines] == ["whole", "next"]


def test_warnings_are_kept_for_the_report_once_each(tmp_path):
    says, _ = journal(tmp_path)
    for message in ("a", "b", "a"):
        says(Warned(code="collapsed", message=message))
    says.close()
    assert [warning.message for warning in says.warnings] == ["a", "b"]
