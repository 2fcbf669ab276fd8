"""`celery --app worker.celery_app worker --pool solo`: the worker's face. No torch in this process: a job's child has it.

Beginning and end follow Celery's signals. A failure inside one of its handlers is only logged by Celery, so what must end
the worker is raised as SystemExit.
"""

from __future__ import annotations

import os
from typing import Any

import structlog
from celery import signals
from sqlalchemy.exc import SQLAlchemyError

from app import logs, tracing
from app.blobs import BlobsAwayError
from app.broker import CUDA_QUEUE, QUEUE, make_celery
from app.schema import require_current
from app.settings import Telemetry, read
from worker import inputs, metrics
from worker.gpus import Gpus, try_out
from worker.housekeeping import Housekeeping
from worker.process import open_process
from worker.sandbox import hide_memory
from worker.tracking import exports

settings = read()
logs.begin(settings)
gpus = Gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
takes_cuda = bool(gpus.handles) if settings.takes_cuda is None else settings.takes_cuda
app = make_celery(settings, (QUEUE, CUDA_QUEUE) if takes_cuda else (QUEUE,))
app.conf.update(include=["worker.tasks"], worker_redirect_stdouts=False)
process = open_process(settings, app, takes_cuda)
process.metrics.registry.register(gpus)
housekeeping = Housekeeping(process)
log = structlog.get_logger()
if settings.log_format == "json":
    for logger_is_made in (signals.after_setup_logger, signals.after_setup_task_logger):
        logger_is_made.connect(logs.as_json)


@signals.celeryd_init.connect
def _be_quiet(instance: Any, **_: Any) -> None:
    """Its banner is no line of a log for machines."""
    instance.quiet = instance.quiet or settings.log_format == "json"


@signals.worker_init.connect
def _check(**_: Any) -> None:
    hide_memory()
    try:
        tracing.begin("modalbridge-worker", Telemetry())
        exports.require(settings)
        require_current(process.db)
        gpus.require(settings.processes_per_job)
        if process.takes_cuda:
            _try_gpus()
        process.blobs.prepare()
        process.blobs.check()
        metrics.serve(process.metrics, settings)
    except (RuntimeError, SQLAlchemyError, OSError, BlobsAwayError) as error:
        raise SystemExit(f"the worker cannot start: {error}") from error


def _try_gpus() -> None:
    """Raises RuntimeError where GPUs can't be used that were asked for; those that the driver named by itself are left alone then."""
    try:
        try_out(settings.processes_per_job, inputs.passed_on())
    except RuntimeError as error:
        if settings.takes_cuda:
            raise
        log.warning("there is a GPU that can't be used: the worker takes jobs for the CPU alone", error=str(error))
        process.takes_cuda = False
        app.amqp.queues.deselect(CUDA_QUEUE)


@signals.worker_ready.connect
def _begin(**_: Any) -> None:
    """It consumes: from now on it counts as one."""
    housekeeping.start()
    log.info("worker is ready", worker_id=process.id, takes_cuda=process.takes_cuda, gpus=list(gpus.handles) or gpus.why_none)


@signals.worker_shutting_down.connect
def _stop(**_: Any) -> None:
    """Inside a signal handler: the running job's supervisor sees it within a tick, and hands the job back."""
    process.stop_asked = True


@signals.worker_shutdown.connect
def _end(**_: Any) -> None:
    housekeeping.stop()
    process.db.dispose()
    tracing.end()
