"""modalbridge models: the source models that the service holds."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from modalbridge.cli import job_file
from modalbridge.cli.exits import reported
from modalbridge.cli.options import DEFAULT_URL, AsJson, Limit, Url, connect
from modalbridge.cli.output import moment, print_json, print_line, print_rows

app = typer.Typer(no_args_is_help=True, help="Source models that the service holds: ls, upload, rm.")
ModelId = Annotated[str, typer.Argument(metavar="ID", help="Of the source model: model_...")]


@app.command()
@reported
def ls(limit: Limit = 20, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List source models, newest first."""
    with connect(url) as client:
        found = list(islice(client.source_models.list(page_size=min(limit, 200)), limit))
    if as_json:
        print_json([model.raw for model in found])
        return
    rows = (
        (
            model.id,
            str(model.description.get("architecture")),
            str(len(model.description.get("classes", ()))),
            decimal(model.size),
            moment(model.created_at),
        )
        for model in found
    )
    print_rows(("ID", "ARCHITECTURE", "CLASSES", "SIZE", "CREATED"), rows)


@app.command()
@reported
def upload(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", exists=True, dir_okay=False, help="safetensors or a torch state_dict.")
    ],
    description: Annotated[
        Path,
        typer.Argument(
            metavar="DESCRIPTION",
            exists=True,
            dir_okay=False,
            help="JSON or YAML: architecture, classes, input; or a job file, whose source_model has them.",
        ),
    ],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Store a source model, and print its id for `submit --model`. The same file with the same description is stored once."""
    told = job_file.read(description)
    with connect(url) as client:
        model = client.source_models.upload(weights, told.get("source_model", told))
    if as_json:
        print_json(model.raw)
    else:
        print_line(model.id)


@app.command()
@reported
def rm(model_id: ModelId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Delete a source model that no job names."""
    with connect(url) as client:
        client.source_models.delete(model_id)
    if as_json:
        print_json({"id": model_id, "deleted": True})
    else:
        print_line(f"{model_id} deleted")
