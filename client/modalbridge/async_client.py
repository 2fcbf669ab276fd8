"""The same client for asyncio: what `modalbridge.client` has, to be awaited. The flows are the same; only how their steps are
performed differs."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx

from modalbridge import client, download, events, job_calls, service_calls, webhook_calls, wire
from modalbridge.requests import JobRequest, SourceModelDescription
from modalbridge.results import Artifact, Dataset, Delivery, Event, Health, JobState, MetricPoint, SourceModel, Webhook
from modalbridge.retries import Retries
from modalbridge.steps import Answer, Emit, Open, Read, Run, Send, Sleep, Steps, Tell


class AsyncClient:
    """Client, for asyncio: the calls are the same, to be awaited, and what they list or stream is
    for `async for`::

        async with AsyncClient("http://127.0.0.1:8000") as client:
            job = await client.jobs.submit(request, source_model=Path("rgb.safetensors"))
            job = await job.wait()
            await job.download(path="adapted.safetensors")
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 30,
        *,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
    ) -> None:
        http = httpx.AsyncClient(**wire.options(base_url, timeout, headers))
        self.base_url = str(http.base_url.copy_with(username=None, password=None)).rstrip("/")
        self._http, self._retries = http, retries
        self._performer = AsyncPerformer(http, timeout)
        self.jobs = AsyncJobs(self._performer, retries)
        self.source_models = AsyncSourceModels(self._performer, retries)
        self.datasets = AsyncDatasets(self._performer, retries)
        self.webhooks = AsyncWebhooks(self._performer, retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def alive(self) -> None:
        await self._performer.run(service_calls.alive())

    async def health(self) -> Health:
        return await self._performer.run(service_calls.health())

    async def openapi(self) -> dict[str, Any]:
        return await self._performer.run(service_calls.openapi(self._retries))


class AsyncJobs:
    """Jobs, for asyncio. What is iterated there is iterated by `async for` here."""

    def __init__(self, performer: AsyncPerformer, retries: Retries) -> None:
        self._run, self._iterate, self._retries = performer.run, performer.iterate, retries
        self._made: job_calls.Made[AsyncJob] = partial(AsyncJob.read, jobs=self)

    async def submit(
        self,
        request: JobRequest | Mapping[str, Any],
        source_model: str | Path | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncJob:
        return await self._run(job_calls.submit(self._made, self._retries, request, source_model, idempotency_key))

    async def get(self, job: str | JobState) -> AsyncJob:
        return await self._run(job_calls.get(self._made, self._retries, job))

    def list(
        self, *, status: str | Iterable[str] | None = None, label: Mapping[str, str] | None = None, page_size: int = 50
    ) -> AsyncIterator[AsyncJob]:
        return self._iterate(job_calls.list_jobs(self._made, self._retries, status, label, page_size))

    async def cancel(self, job: str | JobState) -> AsyncJob:
        return await self._run(job_calls.cancel(self._made, self._retries, job))

    async def retry(self, job: str | JobState) -> AsyncJob:
        return await self._run(job_calls.retry(self._made, self._retries, job))

    async def delete(self, job: str | JobState) -> None:
        await self._run(job_calls.delete(self._retries, job))

    async def wait(
        self, job: str | JobState, timeout: float | None = None, on_progress: Callable[[AsyncJob], Any] | None = None
    ) -> AsyncJob:
        return await self._run(job_calls.wait(self._made, self._retries, job, timeout, on_progress))

    def events(self, job: str | JobState, after: int = 0, *, follow: bool = True) -> AsyncIterator[Event]:
        return self._iterate(events.events(self._retries, job, after, follow))

    async def metrics(self, job: str | JobState, series: str | None = None) -> Sequence[MetricPoint]:
        return await self._run(job_calls.metrics(self._retries, job, series))

    async def artifacts(self, job: str | JobState) -> Sequence[Artifact]:
        return await self._run(job_calls.artifacts(self._retries, job))

    async def download(
        self,
        job: str | JobState,
        name: str | None = None,
        path: str | Path = ".",
        *,
        overwrite: bool = False,
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> Path:
        return await self._run(download.download(self._retries, job, name, path, overwrite, on_progress))


@dataclass(frozen=True)
class AsyncJob(JobState):
    """A job as it was when it was read, and the calls about it, to be awaited."""

    jobs: AsyncJobs = field(kw_only=True, repr=False, compare=False)

    async def refresh(self) -> AsyncJob:
        return await self.jobs.get(self)

    async def wait(self, timeout: float | None = None, on_progress: Callable[[AsyncJob], Any] | None = None) -> AsyncJob:
        return await self.jobs.wait(self, timeout, on_progress)

    async def cancel(self) -> AsyncJob:
        return await self.jobs.cancel(self)

    async def retry(self) -> AsyncJob:
        return await self.jobs.retry(self)

    async def delete(self) -> None:
        await self.jobs.delete(self)

    def events(self, after: int = 0, *, follow: bool = True) -> AsyncIterator[Event]:
        return self.jobs.events(self, after, follow=follow)

    async def metrics(self, series: str | None = None) -> Sequence[MetricPoint]:
        return await self.jobs.metrics(self, series)

    async def artifacts(self) -> Sequence[Artifact]:
        return await self.jobs.artifacts(self)

    async def download(
        self,
        name: str | None = None,
        path: str | Path = ".",
        *,
        overwrite: bool = False,
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> Path:
        return await self.jobs.download(self, name, path, overwrite=overwrite, on_progress=on_progress)


class AsyncSourceModels:
    """SourceModels, for asyncio."""

    def __init__(self, performer: AsyncPerformer, retries: Retries) -> None:
        self._run, self._iterate, self._retries = performer.run, performer.iterate, retries

    async def upload(self, path: str | Path, description: SourceModelDescription | Mapping[str, Any]) -> SourceModel:
        return await self._run(service_calls.upload(self._retries, path, description))

    def list(self, *, page_size: int = 50) -> AsyncIterator[SourceModel]:
        return self._iterate(service_calls.list_source_models(self._retries, page_size))

    async def get(self, model: str | SourceModel) -> SourceModel:
        return await self._run(service_calls.get_source_model(self._retries, model))

    async def delete(self, model: str | SourceModel) -> None:
        await self._run(service_calls.delete_source_model(self._retries, model))


class AsyncDatasets:
    """Datasets, for asyncio."""

    def __init__(self, performer: AsyncPerformer, retries: Retries) -> None:
        self._run, self._iterate, self._retries = performer.run, performer.iterate, retries

    async def upload(self, path: str | Path, name: str | None = None) -> Dataset:
        return await self._run(service_calls.upload_dataset(self._retries, path, name))

    def list(self, *, page_size: int = 50) -> AsyncIterator[Dataset]:
        return self._iterate(service_calls.list_datasets(self._retries, page_size))

    async def get(self, dataset: str | Dataset) -> Dataset:
        return await self._run(service_calls.get_dataset(self._retries, dataset))

    async def delete(self, dataset: str | Dataset) -> None:
        await self._run(service_calls.delete_dataset(self._retries, dataset))


class AsyncWebhooks:
    """Webhooks, for asyncio."""

    def __init__(self, performer: AsyncPerformer, retries: Retries) -> None:
        self._run, self._iterate, self._retries = performer.run, performer.iterate, retries

    async def create(self, url: str, types: Iterable[str] | None = None) -> Webhook:
        return await self._run(webhook_calls.create(self._retries, url, types))

    def list(self, *, page_size: int = 50) -> AsyncIterator[Webhook]:
        return self._iterate(webhook_calls.list_webhooks(self._retries, page_size))

    async def get(self, webhook: str | Webhook) -> Webhook:
        return await self._run(webhook_calls.get(self._retries, webhook))

    async def delete(self, webhook: str | Webhook) -> None:
        await self._run(webhook_calls.delete(self._retries, webhook))

    async def test(self, webhook: str | Webhook) -> Delivery:
        return await self._run(webhook_calls.test(self._retries, webhook))

    def deliveries(self, webhook: str | Webhook, *, page_size: int = 50) -> AsyncIterator[Delivery]:
        return self._iterate(webhook_calls.deliveries(self._retries, webhook, page_size))


for _ours, _theirs in (
    (AsyncClient, client.Client),
    (AsyncJobs, client.Jobs),
    (AsyncJob, client.Job),
    (AsyncDatasets, client.Datasets),
    (AsyncSourceModels, client.SourceModels),
    (AsyncWebhooks, client.Webhooks),
):
    for _name, _method in vars(_ours).items():
        if inspect.isfunction(_method) and _method.__doc__ is None and _name in vars(_theirs):
            _method.__doc__ = vars(_theirs)[_name].__doc__


class AsyncPerformer:
    """Performs steps over an httpx.AsyncClient."""

    def __init__(self, http: httpx.AsyncClient, timeout: float) -> None:
        self._http, self._timeout = http, timeout

    async def run(self, steps: Steps[Any]) -> Any:
        """What the flow returns."""
        result: list[Any] = []
        async for _ in self._perform_all(steps, result.append):
            pass
        return result[0]

    async def iterate(self, steps: Steps[None]) -> AsyncIterator[Any]:
        """What the flow emits."""
        async with aclosing(self._perform_all(steps, lambda _: None)) as items:
            async for item in items:
                yield item

    async def _perform_all(self, steps: Steps[Any], returned: Callable[[Any], None]) -> AsyncGenerator[Any, None]:
        with closing(steps):
            async with aclosing(_OpenStream(self._http, self._timeout)) as stream:
                advance = partial(next, steps)
                while True:
                    try:
                        step = advance()
                    except StopIteration as end:
                        returned(end.value)
                        return
                    try:
                        if isinstance(step, Emit):
                            yield step.item
                        advance = partial(steps.send, await self._perform(step, stream))
                    except Exception as error:  # noqa: BLE001 - the flow decides what becomes of it
                        advance = partial(steps.throw, error)

    async def _perform(self, step: Any, stream: _OpenStream) -> Any:
        match step:
            case Emit():
                return None
            case Send(request):
                with wire.arguments(request, self._timeout) as given, wire.told():
                    return _answer(await self._http.request(**given, follow_redirects=request.method == "GET"))
            case Open():
                return await stream.open(step)
            case Read():
                return await stream.read()
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Run(function):
                return await asyncio.to_thread(function)
            case Tell(callback, arguments):
                if inspect.isawaitable(told := callback(*arguments)):
                    await told
                return None
        raise wire.unknown(step)


class _OpenStream:
    """The one stream that a flow may have open at a time."""

    def __init__(self, http: httpx.AsyncClient, timeout: float) -> None:
        self._http, self._timeout = http, timeout
        self._open = AsyncExitStack()
        self._pieces: AsyncIterator[bytes] | None = None

    async def open(self, step: Open) -> Answer:
        await self.aclose()
        with wire.arguments(step.request, self._timeout) as given, wire.told():
            response = await self._open.enter_async_context(self._http.stream(**given, follow_redirects=True))
            if not response.is_success:
                await response.aread()
                return _answer(response)
            self._pieces = response.aiter_raw()
            return Answer(response.status_code, response.headers)

    async def read(self) -> bytes:
        with wire.told():
            return await anext(self._pieces, b"") if self._pieces is not None else b""

    async def aclose(self) -> None:
        await self._open.aclose()


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)
