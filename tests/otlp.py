"""A receiver of traces: OTLP over HTTP, as a collector or Jaeger speaks it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Received:
    """Times in nanoseconds; ids in hex; parent: empty where there is none."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent: str
    start: int
    end: int
    error: bool
    attributes: dict[str, object]


@dataclass
class Receiver:
    url: str
    headers: list[dict[str, str]] = field(default_factory=list)
    spans: list[Received] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = str(_attributes(group.resource)["service.name"])
            self.spans += [_received(service, span) for scope in group.scope_spans for span in scope.spans]

    def of(self, trace_id: str) -> list[Received]:
        """By their beginning."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.start)


def _received(service: str, span: trace_pb2.Span) -> Received:
    return Received(
        service, span.name, trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"), span.trace_id.hex(),
        span.span_id.hex(), span.parent_span_id.hex(), span.start_time_unix_nano, span.end_time_unix_nano,
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR, _attributes(span),
    )  # fmt: skip


def _attributes(of: object) -> dict[str, object]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in MessageToDict(of).get("attributes", [])}


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Listens until the end; afterwards its port refuses."""
    made = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
            made.headers.append(dict(self.headers))
            made.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: object) -> None:
            """Nothing: what came is in `made`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
