from __future__ import annotations

import pytest

from benchmarks import scale
from tests.conftest import POSTGRES


@pytest.mark.parametrize("server", ["", pytest.param(POSTGRES, marks=pytest.mark.postgres)])
def test_every_question_finds_something_in_both(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["--server", server, "--rows", "400", "500", "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert "| 400 rows | 500 rows |" in told
    for name in ("list", "list, failed", "list, by label", "list, from the middle", "poll", "read", "claim"):
        assert f"| {name} |" in told
