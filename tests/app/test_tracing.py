"""Whether there are traces, what is asked for before, and of which requests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from app import tracing
from app.main import create_app
from app.settings import Settings, Telemetry

ROOT = Path(__file__).parents[2]


def python(code: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODALBRIDGE_", "OTEL_"))}
    env = kept | {"MODALBRIDGE_DATA_DIR": str(folder)} | env
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_without_a_receiver_nothing_of_the_sdk_is_imported(tmp_path: Path, new_database_url: Callable[[str], str]):
    done = python(
        "import sys; from app.main import create_app; create_app(); from worker import celery_app, tasks; celery_app._check(); "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter', 'requests'))])",
        tmp_path,
        MODALBRIDGE_DATABASE_URL=new_database_url("sqlite"),
        OTEL_SERVICE_NAME="ours",
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_worker_without_what_sends_to_its_receiver_says_what_to_run(tmp_path: Path):
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; from worker import celery_app; celery_app._check()"
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:9/v1/traces")
    assert done.returncode == 1
    assert "the worker cannot start: the environment asks for traces" in done.stderr
    assert "run `pip install -c constraints.txt '.[otel]'`" in done.stderr


def test_so_does_the_front_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(RuntimeError, match=r"run `pip install -c constraints\.txt '\.\[otel\]'`, or unset it"):
        create_app(Settings(data_dir=tmp_path))


@pytest.mark.parametrize(
    ("env", "traces"),
    [
        ({}, False),
        ({"EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c"}, True),
        ({"EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces", "TRACES_EXPORTER": ""}, True),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c", "SDK_DISABLED": "True"}, False),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c", "SDK_DISABLED": "1"}, True),  # by the specification, "true" alone is true
        ({"EXPORTER_OTLP_ENDPOINT": "http://c", "TRACES_EXPORTER": "none"}, False),
    ],
)
def test_there_are_traces_where_a_receiver_is_named(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], traces: bool):
    for name, value in env.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    assert Telemetry().traces == traces


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT must begin with http"),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c:4317", "EXPORTER_OTLP_PROTOCOL": "grpc"}, "must be http/protobuf"),
        ({"EXPORTER_OTLP_TRACES_ENDPOINT": "http://c", "TRACES_EXPORTER": "zipkin"}, "must be otlp or none"),
    ],
)
def test_what_is_asked_for_otherwise_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], words: str):
    for name, value in env.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    with pytest.raises(RuntimeError, match=words):
        tracing.begin("front-end", Telemetry())


def test_reads_are_left_out_unless_the_client_traces_them():
    def left_out(method: str, *headers: tuple[bytes, bytes]) -> bool:
        return tracing.untraced({"type": "http", "method": method, "headers": headers})

    assert left_out("GET") and left_out("HEAD", (b"accept", b"*/*"))
    assert (
        not left_out("POST")
        and not left_out("DELETE")
        and not left_out("GET", (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
    )


def test_the_end_waits_for_its_last_spans_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes spans, and never answers
        provider = TracerProvider(shutdown_on_exit=False)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        exporter = OTLPSpanExporter(endpoint=endpoint)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        monkeypatch.setattr(tracing, "_provider", provider)
        monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
        provider.get_tracer("test").start_span("last").end()
        began = time.monotonic()
        tracing.end()
        assert time.monotonic() - began < 5, "the exporter alone waits for ten seconds"
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(15) == b"POST /v1/traces"
            exporter.shutdown()  # or it would try again
