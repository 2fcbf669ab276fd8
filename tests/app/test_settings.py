"""What the environment may say, and what is said of one that is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings, doubts, read

PASSWORD = "of-the-database"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MODALBRIDGE_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("STORAGE_BYTES", "10GB", "valid integer"),
        ("TAKES_CUDA", "", "valid boolean"),
        ("LEASE_S", "inf", "finite number"),
        ("DATABASE_URL", f"postgres://me:{PASSWORD}@host/name", "must begin with postgresql+psycopg://"),
        ("DATABASE_URL", f"postgresql://me:{PASSWORD}@host/name", "must begin with postgresql+psycopg://"),
        ("BROKER_URL", f"redis:/me:{PASSWORD}@host", "must be a URL"),
        ("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@mlflow:5000", "hold no user or password"),
        ("WEBHOOK_PRIVATE_HOSTS", "http://ops.internal", "without scheme and port: http://ops.internal"),
        ("WEBHOOK_PRIVATE_HOSTS", "ops.internal:8080", "without scheme and port: ops.internal:8080"),
        ("DATA_CA_FILE", "/not/there.pem", "there is no file /not/there.pem"),
    ],
)
def test_a_wrong_setting_is_named_as_it_was_set_and_not_what_it_holds(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.setenv(f"MODALBRIDGE_{name}", value)
    with pytest.raises(SystemExit) as ended:
        read()
    said = str(ended.value)
    assert f"\n  MODALBRIDGE_{name}: " in said and why in said
    assert PASSWORD not in said and len(said.splitlines()) == 2


def test_settings_that_do_not_go_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALBRIDGE_HOUSEKEEPING_S", "60")
    with pytest.raises(SystemExit, match="worker_silent_s \\(30\\) must be more than housekeeping_s \\(60\\)"):
        read()
    monkeypatch.setenv("MODALBRIDGE_WORKER_SILENT_S", "180")
    assert read().housekeeping_s == 60
    monkeypatch.setenv("MODALBRIDGE_DATA_PRIVATE_HOSTS", "mirror.internal")
    with pytest.raises(SystemExit, match=r"not: mirror\.internal"):
        read()
    monkeypatch.setenv("MODALBRIDGE_DATA_HOSTS", "mirror.internal:8443")
    assert read().data_private_hosts == ("mirror.internal",)


def test_addresses_and_names_may_be_private_hosts_of_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALBRIDGE_WEBHOOK_PRIVATE_HOSTS", "127.0.0.1, ::1, Ops.internal, my_receiver")
    assert read().webhook_private_hosts == ("127.0.0.1", "::1", "ops.internal", "my_receiver")


def test_what_counts_for_nothing_is_said(tmp_path: Path) -> None:
    given = {"MODALBRIDGE_KEEP_SUCEEDED_S": "60", "MODALBRIDGE_URL": "http://here", "MODALBRIDGE_LEASE_S": "30", "PATH": "/bin"}
    settings = Settings(data_roots=(tmp_path, tmp_path / "not-mounted"))
    first, second = doubts(settings, given)
    assert "MODALBRIDGE_KEEP_SUCEEDED_S" in first and "MODALBRIDGE_KEEP_SUCCEEDED_S?" in first
    assert str(tmp_path / "not-mounted") in second
    assert list(doubts(Settings(data_roots=(tmp_path,)), {})) == []


@pytest.mark.parametrize(
    "program", [("uvicorn", "--factory", "app.main:create_app"), ("celery", "--app", "worker.celery_app", "worker")]
)
def test_neither_front_end_nor_worker_starts_with_a_wrong_one_and_the_last_line_says_why(
    program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODALBRIDGE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MODALBRIDGE_KEEP_FAILED_S", "7d")
    ended = subprocess.run([sys.executable, "-m", *program], capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert ended.stderr.rstrip().splitlines()[-1].startswith("  MODALBRIDGE_KEEP_FAILED_S: "), ended.stderr
    assert "Traceback" not in ended.stderr
