"""The commands about jobs, but for following one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import progress as bars
from rich.console import Console
from rich.filesize import decimal

from modalbridge.cli import job_file
from modalbridge.cli.exits import UsageError, reported
from modalbridge.cli.options import DEFAULT_URL, AsJson, JobId, Limit, Url, connect
from modalbridge.cli.output import moment, print_json, print_line, print_rows, say
from modalbridge.cli.progress import Patience, described, follow, output_lines, reason_text, tell_outcome
from modalbridge.client import Client, Job
from modalbridge.download import is_there
from modalbridge.job_calls import fits_a_header
from modalbridge.results import Event

STATES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")


@reported
def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB", exists=True, dir_okay=False, help="The request: a JSON or YAML file.")],
    weights: Annotated[
        Path | None, typer.Option("--weights", exists=True, dir_okay=False, help="The source model's file: safetensors or torch.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The id of a stored source model, instead of --weights.")] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output", metavar="FORMAT", help="torch_export or onnx, beside what JOB asks for; as often as there are some."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job until it is over, as `watch` does.")] = False,
    timeout: Patience = None,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", help="The same key with the same job gives the job of the first time.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Submit a job, and print its id."""
    if weights is not None and model is not None:
        raise UsageError("both --weights and --model: one source model too many")
    if key is not None and not fits_a_header(key):
        raise UsageError(f"the idempotency key {key!r} is not printable ASCII, as a header has to be")
    request = job_file.read(job)
    described = request.get("source_model")
    if weights is None and model is None and isinstance(described, dict) and "id" not in described:
        raise UsageError(
            f"no weights: give --weights FILE, or --model ID of a stored source model; {job.name} only describes them"
        )
    if output:
        asked = request.get("outputs") or []
        request["outputs"] = [*(asked if isinstance(asked, list) else [asked]), *output]
    with connect(url) as client:
        accepted = client.jobs.submit(request, weights if weights is not None else model, key)
        if wait:
            say(f"{accepted.id} is {accepted.status}")
            tell_outcome(follow(client, accepted.id, timeout), as_json)
        elif as_json:
            print_json(accepted.raw)
        else:
            print_line(accepted.id)
            say(f"`modalbridge watch {accepted.id}` follows it.")


@reported
def ls(
    status: Annotated[list[str] | None, typer.Option("--status", help=f"One of {', '.join(STATES)}; any of several.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY:VALUE", help="Jobs with this label; all of several.")
    ] = None,
    limit: Limit = 20,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    if bad := [one for one in label or () if ":" not in one]:
        raise UsageError(f"--label {bad[0]} is not KEY:VALUE")
    labels = dict(one.split(":", 1) for one in label or ())
    if len(labels) < len(set(label or ())):
        raise UsageError("--label twice with one key and two values: no job has both")
    with connect(url) as client:
        found = list(islice(client.jobs.list(status=status, label=labels, page_size=min(limit, 200)), limit))
    if as_json:
        print_json([job.raw for job in found])
        return
    rows = ((job.id, job.status, _percent(job), job.method, moment(job.created_at), job.name or "") for job in found)
    print_rows(("ID", "STATUS", "DONE", "METHOD", "CREATED", "NAME"), rows)


def _percent(job: Job) -> str:
    return f"{job.progress.fraction:.0%}" if job.progress else "-"


@reported
def show(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a job: state, progress, verdict or error."""
    with connect(url) as client:
        job = client.jobs.get(job_id)
    if as_json:
        print_json(job.raw)
        return
    for name, value in _facts(job):
        print_line(f"{name:<13}" + value.replace("\n", f"\n{'':<13}"))  # no line of it passes for another fact


def _facts(job: Job) -> list[tuple[str, str]]:
    facts = [
        ("id", job.id),
        ("name", job.name or "-"),
        ("labels", ", ".join(f"{key}:{value}" for key, value in job.labels.items()) or "-"),
        ("status", f"{job.status}, {job.phase}" if job.phase else job.status),
        ("method", job.method),
        ("source model", job.source_model_id),
        ("attempt", f"{job.attempt}, {job.lost_attempts} lost"),
        ("created", moment(job.created_at)),
        ("started", moment(job.started_at)),
        ("finished", moment(job.finished_at)),
    ]
    if job.progress:
        facts.append(("progress", f"{job.progress.fraction:.0%}, {described(job)}"))
    if job.result:
        facts.append(("verdict", job.verdict or "-"))
        facts += [("", reason_text(reason)) for reason in job.result.get("reasons") or ()]
        facts += [("output", line) for line in output_lines(job)]
    if job.error:
        facts += [("error", f"{job.error.get('title')}: {job.error.get('detail')}"), ("", str(job.error.get("remedy", "")))]
    return facts


@reported
def cancel(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Cancel a job: at once if it is queued, else its worker is asked to stop."""
    with connect(url) as client:
        _print_status(client.jobs.cancel(job_id), as_json)


@reported
def retry(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Have a job that failed or was cancelled tried again, from its last checkpoint where one is left."""
    with connect(url) as client:
        _print_status(client.jobs.retry(job_id), as_json)


def _print_status(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job.raw)
    else:
        print_line(f"{job.id} {job.status}")


@reported
def delete(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Delete a job that is over, with its events, metrics and artifacts."""
    with connect(url) as client:
        client.jobs.delete(job_id)
    if as_json:
        print_json({"id": job_id, "deleted": True})
    else:
        print_line(f"{job_id} deleted")


@reported
def download(
    job_id: JobId,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Of an artifact, or an output: torch_export, onnx. Default: the adapted weights."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A file, or a folder to put it in.")] = Path(),
    every: Annotated[bool, typer.Option("--all", help="Every artifact, into the folder --output, which is made.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Download what a job has published. Goes on where a broken download stopped, of --all too; each file's sha256 is checked."""
    if every and name is not None:
        raise UsageError("both --all and the name of one artifact")
    with connect(url) as client:
        listed = client.jobs.artifacts(job_id) if every else ()
        if every:
            output.mkdir(parents=True, exist_ok=True)
        whole = {one.name: output / one.name for one in listed if is_there(one, output / one.name)}  # of a call that broke off
        paths = []
        for wanted in [one.name for one in listed] or [name]:  # the weights of a job without any: told why there are none
            paths.append(whole.get(wanted) or _downloaded(client, job_id, wanted, output, overwrite))
            if not as_json:
                print_line(f"{paths[-1]}")
                say("is there already" if wanted in whole else decimal(paths[-1].stat().st_size))
    if as_json:
        print_json([str(path) for path in paths])


def _downloaded(client: Client, job_id: str, name: str | None, output: Path, overwrite: bool) -> Path:
    """With a bar where a person looks on."""
    with bars.Progress(console=Console(stderr=True), disable=not Console(stderr=True).is_terminal, transient=True) as bar:
        task = bar.add_task(name or "weights", total=None)

        def advance(have: int, size: int) -> None:
            bar.update(task, completed=have, total=size)

        return client.jobs.download(job_id, name, output, overwrite=overwrite, on_progress=advance)


@reported
def logs(
    job_id: JobId,
    follow_: Annotated[bool, typer.Option("--follow", "-f", help="Until the job is over.")] = False,
    after: Annotated[int, typer.Option("--after", min=0, help="Only events with a higher number.")] = 0,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Print a job's events, oldest first; with --json, one document a line."""
    with connect(url) as client:
        for event in client.jobs.events(job_id, after, follow=follow_):
            if as_json:
                print_json(event.raw)
            else:
                print_line(_line(event))


def _line(event: Event) -> str:
    return f"{event.seq:>5}  {moment(event.at)}  {event.kind:<11}{event.message}"


@reported
def metrics(
    job_id: JobId,
    series: Annotated[str | None, typer.Option("--series", help="The points of this one, such as bridging/L_rec.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Losses and evaluation: each series in short, or the points of one."""
    with connect(url) as client:
        points = client.jobs.metrics(job_id, series)
    if as_json:
        print_json([{"series": point.series, "step": point.step, "value": point.value} for point in points])
    elif series is not None:
        print_rows(("STEP", "VALUE"), ((str(point.step), f"{point.value:.6g}") for point in points))
    else:
        by_series: dict[str, list[Any]] = {}
        for point in points:
            by_series.setdefault(point.series, []).append(point)
        rows = (
            (name, str(len(its)), str(its[-1].step), f"{its[0].value:.6g}", f"{its[-1].value:.6g}")
            for name, its in by_series.items()
        )
        print_rows(("SERIES", "POINTS", "STEP", "FIRST", "LAST"), rows)
