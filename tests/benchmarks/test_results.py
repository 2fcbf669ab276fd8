"""What is written is there after a crash, and what is there is not run again."""

from __future__ import annotations

import pytest

from benchmarks import results
from tests.benchmarks.conftest import line


def test_lines_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep/results.jsonl"
    results.append(path, [line(seed=0), line(seed=1)])
    results.append(path, [line(seed=2)])
    assert results.read(path) == [line(seed=0), line(seed=1), line(seed=2)]


def test_a_torn_last_line_is_left_out_and_told_and_the_next_one_is_whole(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    results.append(path, [line(seed=0), line(seed=1)])
    path.write_bytes(path.read_bytes()[:-20])
    assert results.read(path) == [line(seed=0)]
    assert "torn" in capsys.readouterr().err
    results.append(path, [line(seed=2)])
    assert results.read(path) == [line(seed=0), line(seed=2)]


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("{}\nnonsense\n{}\n")
    with pytest.raises(ValueError, match="line 2"):
        results.read(path)


def test_a_run_that_failed_is_not_done():
    lines = [line(seed=0), line(seed=1, error="training_diverged: L_rec is nan")]
    assert results.done(lines) == {("a", "socket", 0, "d1", "s0")}
