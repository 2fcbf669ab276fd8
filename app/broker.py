"""The Celery face that front end and worker share. A message is a wake-up, never the truth: losing one costs a few seconds."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import structlog
from celery import Celery
from kombu import Exchange, Queue, transport
from kombu.transport import filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps, loads
from opentelemetry.trace import SpanKind

from app import tracing
from app.blobs import staging
from app.settings import Settings

WAKE = "worker.wake"
QUEUE = "jobs"
CUDA_QUEUE = "jobs.cuda"
"""Of jobs that only a worker with a CUDA device can run: another one would hear the wake-up and have no use for it."""
log = structlog.get_logger()


class _Channel(filesystem.Channel):
    """Kombu writes a message under its final name, so that a reader can catch it half written and lose it, and takes it
    by way of the shared temporary folder, or of a folder that grows for ever. This one writes aside and renames; and of
    those who read a message, the one that deletes it has it."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        folder = Path(self.data_folder_out)
        name = f"{round(monotonic() * 1000)}_{uuid.uuid4()}.{queue}"
        aside = folder / f"{name}.partial"
        try:
            aside.write_bytes(str_to_bytes(dumps(payload)))
            aside.replace(folder / f"{name}.msg")
        except OSError:
            aside.unlink(missing_ok=True)  # of a full disk
            raise

    def _get(self, queue: str) -> Any:
        """The oldest message. Raises queue.Empty."""
        for path in sorted(Path(self.data_folder_in).glob(f"*.{queue}.msg")):
            try:
                message = loads(path.read_text(encoding="utf-8"))
                path.unlink()
            except FileNotFoundError:
                continue  # another worker was faster
            return message
        raise Empty


class AtomicFilesystem(filesystem.Transport):
    Channel = _Channel


transport.TRANSPORT_ALIASES["filesystem"] = f"{__name__}:AtomicFilesystem"


def make_celery(settings: Settings, queues: Sequence[str] = (QUEUE, CUDA_QUEUE)) -> Celery:
    """queues: those that a worker hears, unless its command names others."""
    # Kombu warns of a URL without a host at each connection; the filesystem has none to name.
    url = "filesystem://localhost//" if settings.broker_url == "filesystem://" else settings.broker_url
    celery = Celery("modalbridge", broker=url)
    celery.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in queues],
        # Early acknowledgement: a late one is redelivered by Redis each visibility timeout. The lease in SQL decides.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="solo",
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A worker that is at a job for hours sends none, nor does an idle front end: RabbitMQ would close their connections.
        # That a server is gone is seen by TCP, which py-amqp has watch each connection.
        broker_heartbeat=0,
        broker_transport_options=_transport_options(settings),
    )
    return celery


REDIS = {
    # Seconds. Without them Kombu waits for ever on a server that does not answer: a request would, after its commit, and
    # so would housekeeping.
    "socket_connect_timeout": 2.0,
    "socket_timeout": 5.0,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # A message is gone when it is read. Kombu would keep a copy on the server until it is acknowledged; if the server
    # goes just then, the acknowledgement is lost, and with it the credit of one message that this worker has: it would
    # wait for it for ever, alive and deaf.
    "ack_emulation": False,
}


def _transport_options(settings: Settings) -> dict[str, Any]:
    if settings.broker_url.startswith(("redis", "sentinel")):
        return dict(REDIS)
    if not settings.broker_url.startswith("filesystem:"):
        return {}
    messages, control = (settings.broker_dir / name for name in ("messages", "control"))
    for folder in (messages, control):
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "data_folder_in": os.fspath(messages),
        "data_folder_out": os.fspath(messages),
        "control_folder": os.fspath(control),
        "polling_interval": 0.2,
    }


def clear_half_written(settings: Settings, older_than_s: float) -> int:
    """Messages whose writer was killed; how many."""
    return staging.clear(settings.broker_dir / "messages", older_than_s, "*.partial")


def wake(celery: Celery, job_id: str, needs_cuda: bool = False) -> bool:
    """Tells an idle worker to look. False if the broker is down: housekeeping tells it again."""
    queue, system = CUDA_QUEUE if needs_cuda else QUEUE, urlsplit(celery.conf.broker_url).scheme
    attributes = {
        "messaging.system": "rabbitmq" if system == "amqp" else system,
        "messaging.operation.type": "send",
        "messaging.destination.name": queue,
        "modalbridge.job.id": job_id,
    }
    with tracing.part(f"send {queue}", SpanKind.PRODUCER, **attributes) as span:
        try:
            # It never expires: Celery has the machine's clock decide that, and a worker whose clock is ahead would hear nothing.
            celery.send_task(WAKE, args=[job_id], queue=queue, retry=False)
        except Exception as error:  # noqa: BLE001 - every transport has its own exceptions, and none may cost an accepted job
            log.warning("wake-up not sent; housekeeping will send it", job_id=job_id, error=repr(error))
            tracing.failed(span, type(error).__name__)
            return False
        return True


def reachable(celery: Celery) -> None:
    """Raises whatever the transport raises if the broker cannot be reached within two seconds."""
    with celery.connection_for_write(connect_timeout=2) as connection:
        connection.ensure_connection(max_retries=1, timeout=2)
        with connection.channel():
            pass
    options = celery.conf.broker_transport_options
    if (folder := options.get("data_folder_out")) and not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written")
