"""The client: each call blocks until it is answered. See `modalbridge.errors` for what it raises."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx

from modalbridge import download, events, job_calls, service_calls, webhook_calls, wire
from modalbridge.requests import JobRequest, SourceModelDescription
from modalbridge.results import Artifact, Dataset, Delivery, Event, Health, JobState, MetricPoint, SourceModel, Webhook
from modalbridge.retries import Retries
from modalbridge.steps import Answer, Emit, Open, Read, Run, Send, Sleep, Steps, Tell


class Client:
    """Of the service at base_url. timeout: seconds for a connection, and for each piece of an answer. headers: sent with every
    request, such as what a proxy in front of the service asks for::

        with Client("http://127.0.0.1:8000") as client:
            job = client.jobs.submit(request, source_model=Path("rgb.safetensors")).wait()
            job.download(path="adapted.safetensors")
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 30,
        *,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
    ) -> None:
        http = httpx.Client(**wire.options(base_url, timeout, headers))
        self.base_url = str(http.base_url.copy_with(username=None, password=None)).rstrip("/")
        self._http, self._retries = http, retries
        self._performer = Performer(http, timeout)
        self.jobs = Jobs(self._performer, retries)
        self.source_models = SourceModels(self._performer, retries)
        self.datasets = Datasets(self._performer, retries)
        self.webhooks = Webhooks(self._performer, retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def alive(self) -> None:
        """Returns if the service answers at all. Raises ConnectionFailed, UnexpectedAnswer."""
        self._performer.run(service_calls.alive())

    def health(self) -> Health:
        """Whether jobs are accepted and run, part by part."""
        return self._performer.run(service_calls.health())

    def openapi(self) -> dict[str, Any]:
        """The service's description of itself: its version is in `info`, the schema of a request in `components`."""
        return self._performer.run(service_calls.openapi(self._retries))


class Jobs:
    """A job is named by its id or by a Job."""

    def __init__(self, performer: Performer, retries: Retries) -> None:
        self._run, self._iterate, self._retries = performer.run, performer.iterate, retries
        self._made: job_calls.Made[Job] = partial(Job.read, jobs=self)

    def submit(
        self,
        request: JobRequest | Mapping[str, Any],
        source_model: str | Path | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """The accepted job. source_model: a file of weights, or the id of a stored source model; None where the request names
        one. Without a key one is made up, so that a retry after a lost answer cannot make a second job; a key of your own
        guards against a second call as well. Raises Invalid, NotFound, IdempotencyConflict, StorageFull."""
        return self._run(job_calls.submit(self._made, self._retries, request, source_model, idempotency_key))

    def get(self, job: str | JobState) -> Job:
        """The job as it is now. Raises NotFound."""
        return self._run(job_calls.get(self._made, self._retries, job))

    def list(
        self, *, status: str | Iterable[str] | None = None, label: Mapping[str, str] | None = None, page_size: int = 50
    ) -> Iterator[Job]:
        """Newest first, asked for as they are needed: those of any of the states, with all of the labels."""
        return self._iterate(job_calls.list_jobs(self._made, self._retries, status, label, page_size))

    def cancel(self, job: str | JobState) -> Job:
        """The job, cancelled at once if it was queued, else asked to stop. Raises NotFound, JobFinished."""
        return self._run(job_calls.cancel(self._made, self._retries, job))

    def retry(self, job: str | JobState) -> Job:
        """The job, which failed or was cancelled, queued again: it goes on from its last checkpoint where one is left. Raises
        NotFound, NotRetryable."""
        return self._run(job_calls.retry(self._made, self._retries, job))

    def delete(self, job: str | JobState) -> None:
        """The job, its events, metrics and artifacts. Raises NotFound, JobActive."""
        self._run(job_calls.delete(self._retries, job))

    def wait(self, job: str | JobState, timeout: float | None = None, on_progress: Callable[[Job], Any] | None = None) -> Job:
        """The job once it has succeeded. on_progress is called with the job as it is, and after each change. An outage of the
        service of a minute is waited through. Raises JobFailed, JobCancelled; Timeout, after which the job goes on."""
        return self._run(job_calls.wait(self._made, self._retries, job, timeout, on_progress))

    def events(self, job: str | JobState, after: int = 0, *, follow: bool = True) -> Iterator[Event]:
        """Events whose seq is above `after`, until the job is over; without follow, those that are there. Raises NotFound."""
        return self._iterate(events.events(self._retries, job, after, follow))

    def metrics(self, job: str | JobState, series: str | None = None) -> Sequence[MetricPoint]:
        """Points by series, then step: all series or one. Raises NotFound."""
        return self._run(job_calls.metrics(self._retries, job, series))

    def artifacts(self, job: str | JobState) -> Sequence[Artifact]:
        """What the job has published: nothing before it has succeeded. Raises NotFound."""
        return self._run(job_calls.artifacts(self._retries, job))

    def download(
        self,
        job: str | JobState,
        name: str | None = None,
        path: str | Path = ".",
        *,
        overwrite: bool = False,
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> Path:
        """The path of the file, whole and of the right sha256. name: of an artifact; None: the adapted weights. path: a file, or
        a folder to put it in. Goes on from path.partial if an earlier download broke. on_progress is called with the bytes that
        are there and all there are. Raises NotFound, JobNotSucceeded, DigestMismatch, FileExistsError."""
        return self._run(download.download(self._retries, job, name, path, overwrite, on_progress))


@dataclass(frozen=True)
class Job(JobState):
    """A job as it was when it was read, and the calls about it; see Jobs for what they do."""

    jobs: Jobs = field(kw_only=True, repr=False, compare=False)

    def refresh(self) -> Job:
        return self.jobs.get(self)

    def wait(self, timeout: float | None = None, on_progress: Callable[[Job], Any] | None = None) -> Job:
        return self.jobs.wait(self, timeout, on_progress)

    def cancel(self) -> Job:
        return self.jobs.cancel(self)

    def retry(self) -> Job:
        return self.jobs.retry(self)

    def delete(self) -> None:
        self.jobs.delete(self)

    def events(self, after: int = 0, *, follow: bool = True) -> Iterator[Event]:
        return self.jobs.events(self, after, follow=follow)

    def metrics(self, series: str | None = None) -> Sequence[MetricPoint]:
        return self.jobs.metrics(self, series)

    def artifacts(self) -> Sequence[Artifact]:
        return self.jobs.artifacts(self)

    def download(
        self,
        name: str | None = None,
        path: str | Path = ".",
        *,
        overwrite: bool = False,
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> Path:
        return self.jobs.download(self, name, path, overwrite=overwrite, on_progress=on_progress)


class SourceModels:
    """A source model is named by its id or by a SourceModel."""

    def __init__(self, performer: Performer, retries: Retries) -> None:
        self._run, self._iterate, self._retries = performer.run, performer.iterate, retries

    def upload(self, path: str | Path, description: SourceModelDescription | Mapping[str, Any]) -> SourceModel:
        """The stored source model: the same file with the same description is one. Raises Invalid, StorageFull."""
        return self._run(service_calls.upload(self._retries, path, description))

    def list(self, *, page_size: int = 50) -> Iterator[SourceModel]:
        """Newest first, asked for as they are needed."""
        return self._iterate(service_calls.list_source_models(self._retries, page_size))

    def get(self, model: str | SourceModel) -> SourceModel:
        """Raises NotFound."""
        return self._run(service_calls.get_source_model(self._retries, model))

    def delete(self, model: str | SourceModel) -> None:
        """Raises NotFound, SourceModelInUse."""
        self._run(service_calls.delete_source_model(self._retries, model))


class Datasets:
    """A dataset is named by its id or by a Dataset."""

    def __init__(self, performer: Performer, retries: Retries) -> None:
        self._run, self._iterate, self._retries = performer.run, performer.iterate, retries

    def upload(self, path: str | Path, name: str | None = None) -> Dataset:
        """The stored archive (zip, tar, tar.gz): the same bytes are one. name: for people. Raises InvalidArchive, Invalid,
        StorageFull."""
        return self._run(service_calls.upload_dataset(self._retries, path, name))

    def list(self, *, page_size: int = 50) -> Iterator[Dataset]:
        """Newest first, asked for as they are needed."""
        return self._iterate(service_calls.list_datasets(self._retries, page_size))

    def get(self, dataset: str | Dataset) -> Dataset:
        """Raises NotFound."""
        return self._run(service_calls.get_dataset(self._retries, dataset))

    def delete(self, dataset: str | Dataset) -> None:
        """Raises NotFound, DatasetInUse."""
        self._run(service_calls.delete_dataset(self._retries, dataset))


class Webhooks:
    """A webhook is named by its id or by a Webhook."""

    def __init__(self, performer: Performer, retries: Retries) -> None:
        self._run, self._iterate, self._retries = performer.run, performer.iterate, retries

    def create(self, url: str, types: Iterable[str] | None = None) -> Webhook:
        """The webhook, with its secret, which is shown this once. types: what it hears of; None: each end of a job. Raises Invalid,
        TooManyWebhooks."""
        return self._run(webhook_calls.create(self._retries, url, types))

    def list(self, *, page_size: int = 50) -> Iterator[Webhook]:
        """Newest first, asked for as they are needed; without secrets."""
        return self._iterate(webhook_calls.list_webhooks(self._retries, page_size))

    def get(self, webhook: str | Webhook) -> Webhook:
        """Raises NotFound."""
        return self._run(webhook_calls.get(self._retries, webhook))

    def delete(self, webhook: str | Webhook) -> None:
        """With its log; what is pending is not sent. Raises NotFound."""
        self._run(webhook_calls.delete(self._retries, webhook))

    def test(self, webhook: str | Webhook) -> Delivery:
        """A message of the type webhook.test, which a worker sends. Raises NotFound, WebhookGone."""
        return self._run(webhook_calls.test(self._retries, webhook))

    def deliveries(self, webhook: str | Webhook, *, page_size: int = 50) -> Iterator[Delivery]:
        """What was and is to be sent to it, newest first. Raises NotFound."""
        return self._iterate(webhook_calls.deliveries(self._retries, webhook, page_size))


class Performer:
    """Performs steps over an httpx.Client."""

    def __init__(self, http: httpx.Client, timeout: float) -> None:
        self._http, self._timeout = http, timeout

    def run(self, steps: Steps[Any]) -> Any:
        """What the flow returns."""
        flow = self._perform_all(steps)
        while True:
            try:
                next(flow)
            except StopIteration as end:
                return end.value

    def iterate(self, steps: Steps[None]) -> Iterator[Any]:
        """What the flow emits."""
        yield from self._perform_all(steps)

    def _perform_all(self, steps: Steps[Any]) -> Generator[Any, None, Any]:
        stream = _OpenStream(self._http, self._timeout)
        with closing(steps), closing(stream):
            advance = partial(next, steps)
            while True:
                try:
                    step = advance()
                except StopIteration as end:
                    return end.value
                try:
                    if isinstance(step, Emit):
                        yield step.item
                    advance = partial(steps.send, self._perform(step, stream))
                except Exception as error:  # noqa: BLE001 - the flow decides what becomes of it
                    advance = partial(steps.throw, error)

    def _perform(self, step: Any, stream: _OpenStream) -> Any:
        match step:
            case Emit():
                return None
            case Send(request):
                with wire.arguments(request, self._timeout) as given, wire.told():
                    return _answer(self._http.request(**given, follow_redirects=request.method == "GET"))
            case Open():
                return stream.open(step)
            case Read():
                return stream.read()
            case Sleep(seconds):
                return time.sleep(seconds)
            case Run(function):
                return function()
            case Tell(callback, arguments):
                if inspect.iscoroutine(told := callback(*arguments)):
                    told.close()
                    raise TypeError(f"{callback!r} is a coroutine function, which only AsyncClient can call")
                return None
        raise wire.unknown(step)


class _OpenStream:
    """The one stream that a flow may have open at a time."""

    def __init__(self, http: httpx.Client, timeout: float) -> None:
        self._http, self._timeout = http, timeout
        self._open = ExitStack()
        self._pieces: Iterator[bytes] = iter(())

    def open(self, step: Open) -> Answer:
        self.close()
        with wire.arguments(step.request, self._timeout) as given, wire.told():
            response = self._open.enter_context(self._http.stream(**given, follow_redirects=True))
            if not response.is_success:
                response.read()
                return _answer(response)
            self._pieces = response.iter_raw()
            return Answer(response.status_code, response.headers)

    def read(self) -> bytes:
        with wire.told():
            return next(self._pieces, b"")

    def close(self) -> None:
        self._open.close()


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)
