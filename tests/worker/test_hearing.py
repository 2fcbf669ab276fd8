"""What a child says, and what becomes of it."""

from __future__ import annotations

import json

import pytest

from app.errors import Problem
from worker.adaptation.events import Failed, Metric, Progress, Warned
from worker.hearing import HELD, Hearing


def hear(*lines: str | bytes) -> Hearing:
    heard = Hearing()
    for line in lines:
        heard.hear(line if isinstance(line, bytes) else line.encode())
    return heard


@pytest.mark.parametrize(
    "line",
    [
        b"Epoch 1/10\n",
        b"\xff\xfe\x00",
        b"{}",
        b'{"type": "unheard_of"}',
        b"[" * 100_000,
        b'{"type": "log", "message": 1}',
        b"x" * 2**20,
        b'{"type": "progress", "phase": "bridging", "step": 1, "of": 2, "fraction": NaN, "eta_s": null}',
        b'{"type": "progress", "phase": "bridging", "step": 1, "of": 2, "fraction": 7, "eta_s": null}',
        b'{"type": "progress", "phase": "bridging", "step": 1, "of": 2, "fraction": 0.5, "eta_s": Infinity}',
        b'{"type": "progress", "phase": "bridging", "step": 1, "of": 2, "fraction": 0.5, "eta_s": 1, "losses": {"L_rec": NaN}}',
    ],
)
def test_a_line_that_is_no_event_becomes_a_log_line(line):
    heard = hear(line)
    assert [(kind, message[:14]) for kind, message, _ in heard.rows] == [("log", "not an event: ")]
    assert len(heard.rows[0][1]) < 1000


def test_only_the_last_progress_waits_and_it_is_no_event():
    steps = [Progress(phase="bridging", step=n, of=9, fraction=n / 9, eta_s=None).model_dump_json() for n in range(3)]
    heard = hear(*steps)
    assert heard.progress is not None
    assert heard.progress["step"] == 2
    assert heard.rows == []


def test_a_point_replaces_itself_and_a_nan_is_no_point():
    points = [Metric(series="bridging/L_rec", step=4, value=value).model_dump_json() for value in (1.0, 2.0)]
    heard = hear(*points, '{"type": "metric", "series": "s", "step": 1, "value": NaN}')
    assert heard.metrics == {("bridging/L_rec", 4): 2.0}


def test_what_databases_cannot_store_is_replaced():
    warned = Warned(code="odd", message="name\0.png", data={"loss": float("nan"), "name": "a\0b"}).model_dump_json()
    (kind, message, data), *_ = hear(warned, '{"type": "warning", "code": "c", "message": "m", "data": {"x": NaN}}').rows
    assert kind == "warning"
    assert "\0" not in message + json.dumps(data)
    assert data is not None
    assert data["data"]["loss"] is None


def test_a_failure_is_told_with_the_words_of_the_table():
    said = Problem("disk_full", "no space", pointer=None, needed=3).document() | {"title": "made up", "status": 200}
    heard = hear(Failed(problem=said).model_dump_json())
    assert heard.failed is not None
    assert heard.failed.document() == Problem("disk_full", "no space", needed=3).document()


@pytest.mark.parametrize(
    "said", [{}, {"code": "unheard_of", "detail": "x"}, {"code": "internal", "detail": 3}, {"code": ["internal"]}]
)
def test_a_failure_that_is_no_problem_is_a_death(said):
    heard = hear(Failed(problem=said).model_dump_json())
    assert heard.failed is not None
    assert heard.failed.code == "child_died"


def test_it_is_full_at_some_point():
    heard = Hearing()
    for _ in range(HELD):
        assert not heard.full
        heard.hear(b"noise")
    assert heard.full
    heard.written()
    assert not heard.full and not heard.waiting
