"""Following a job: a live bar on a terminal, a line now and then elsewhere. All of it on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich import progress as bars
from rich.console import Console

from modalbridge.cli.exits import Exit, reported
from modalbridge.cli.options import DEFAULT_URL, AsJson, JobId, Url, connect
from modalbridge.cli.output import duration, moment, print_json, print_line, safe, say
from modalbridge.client import Client, Job

EVERY = 0.05
"""Of the whole job, between two lines of the same phase."""
Patience = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="Seconds to wait; exit code 5 if the job is not over by then. It goes on."),
]


@reported
def watch(job_id: JobId, timeout: Patience = None, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Follow a job until it is over. Ctrl-C ends the watching, not the job."""
    with connect(url) as client:
        tell_outcome(follow(client, job_id, timeout), as_json)


def follow(client: Client, job_id: str, timeout: float | None) -> Job:
    """The job once it has succeeded. Raises what `Jobs.wait` does; typer.Exit on Ctrl-C."""
    try:
        with _display() as display:
            return client.jobs.wait(job_id, timeout, display.show)
    except KeyboardInterrupt:
        say(f"\nNo longer watching; {job_id} goes on. `modalbridge watch {job_id}` follows it again,")
        say(f"`modalbridge cancel {job_id}` stops it.")
        raise typer.Exit(Exit.INTERRUPTED) from None


def tell_outcome(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job.raw)
        return
    took = f" in {duration((job.finished_at - job.queued_at).total_seconds())}" if job.finished_at else ""
    print_line(f"{job.id} {job.status}{took}: {job.verdict or 'no verdict'}")
    for reason in (job.result or {}).get("reasons") or ():
        print_line(f"  {reason_text(reason)}")
    for line in output_lines(job, refused_alone=True):
        print_line(f"  {line}")
    say(f"`modalbridge download {job.id}` gets the weights, with --all the report and the rest as well.")


def reason_text(reason: Any) -> str:
    """One reason of a verdict, with its figures where it has some."""
    if not isinstance(reason, dict):
        return str(reason)
    figures = [f"{name} {reason[name]:.4g}" for name in ("value", "threshold") if isinstance(reason.get(name), int | float)]
    return f"{reason.get('what', reason)}" + (f" ({', '.join(figures)})" if figures else "")


def output_lines(job: Job, refused_alone: bool = False) -> list[str]:
    """What the adapted model was published as, and what it could not be."""
    told = (job.result or {}).get("outputs") or {}
    lines = []
    for name, one in told.items():
        if not one.get("published"):
            lines.append(f"{name} is not published: {one.get('reason')}")
        elif not refused_alone:
            lines.append(f"{name}, {one.get('file')}")
    return lines


def _display() -> _Bar | _Lines:
    console = Console(stderr=True)
    return _Bar(console) if console.is_terminal else _Lines()


def described(job: Job) -> str:
    """Where it is: step, what is left, the last losses."""
    if (told := job.progress) is None:
        return ""
    left = [] if told.eta_s is None else [f"{duration(told.eta_s)} left"]
    losses = [f"{name} {value:.3g}" for name, value in told.losses.items()]
    return ", ".join([f"step {told.step} of {told.of}", *left]) + ("  " + " ".join(losses) if losses else "")


class _Bar:
    """Of the whole job, redrawn in its place."""

    def __init__(self, console: Console) -> None:
        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[where]}", markup=False),
        )
        self._bar = bars.Progress(*columns, console=console)
        self._task = self._bar.add_task("asking", total=1.0, where="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, job: Job) -> None:
        done = 1.0 if job.status == "succeeded" else job.progress.fraction if job.progress else 0.0
        self._bar.update(self._task, completed=done, description=safe(job.phase or job.status), where=safe(described(job)))


class _Lines:
    """A line for each state and phase, and for each twentieth of the job."""

    def __init__(self) -> None:
        self._told: tuple[str, str | None] = ("", None)
        self._fraction = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def show(self, job: Job) -> None:
        fraction = job.progress.fraction if job.progress else 0.0
        if (job.status, job.phase) == self._told and fraction < self._fraction + EVERY:
            return
        self._told, self._fraction = (job.status, job.phase), fraction
        percent = f" {fraction:.0%}" if job.progress else ""
        say(f"{moment(job.updated_at)}  {job.phase or job.status}{percent}  {described(job)}".rstrip())
