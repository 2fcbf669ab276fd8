"""The load benchmark runs to its end, on a small set."""

from __future__ import annotations

import json

import pytest

from benchmarks import load


@pytest.mark.acceptance
def test_every_request_of_every_client_is_answered(capsys):
    small = ["--queued", "400", "--pollers", "20", "--seconds", "2", "--turn", "0.3", "--rounds", "1"]
    assert load.main(["--server", "", *small]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pollers"]["errors"] == 0 and told["pollers"]["polls"] >= 20
    assert set(told["throughput_to_bare"]) == {"whole", "304"}
    assert all(value > 0 for value in told["cpu_ms_per_request"].values())
