"""modalbridge: jobs of source-free cross-modal adaptation from the command line."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from modalbridge import __version__
from modalbridge.cli import datasets, doctor, jobs, models, progress, schema, webhooks

app = typer.Typer(
    name="modalbridge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Submit jobs to a ModalBridge service, follow them, download what they made.",
    epilog="Exit codes: 0 done, 1 the job failed, 2 usage or a local file, 3 the service cannot be reached, 4 it refused, "
    "5 timeout, 6 the job was cancelled, 7 a download is damaged, 70 a bug, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the client's version.")
    ] = False,
) -> None:
    pass


app.command()(jobs.submit)
app.command()(progress.watch)
app.command("ls")(jobs.ls)
app.command()(jobs.show)
app.command()(jobs.cancel)
app.command()(jobs.retry)
app.command()(jobs.delete)
app.command()(jobs.download)
app.command()(jobs.logs)
app.command()(jobs.metrics)
app.add_typer(models.app, name="models")
app.add_typer(datasets.app, name="datasets")
app.add_typer(webhooks.app, name="webhooks")
app.command()(doctor.doctor)
app.command()(schema.schema)


def main() -> None:
    sys.stdout, sys.stderr = _output(sys.stdout), _output(sys.stderr)
    app()


def _output(stream: TextIO | None) -> TextIO:
    """What the locale's charset lacks is spelt out there. None: it was closed, and takes everything."""
    given = Path(os.devnull).open("w") if stream is None else stream  # noqa: SIM115 - until the process ends
    if isinstance(given, io.TextIOWrapper):
        given.reconfigure(errors="backslashreplace")
    return given
