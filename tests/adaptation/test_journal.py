from __future__ import annotations

import os

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
