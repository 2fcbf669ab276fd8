"""modalbridge datasets: the archives of images that the service holds."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from modalbridge.cli.exits import reported
from modalbridge.cli.options import DEFAULT_URL, AsJson, Limit, Url, connect
from modalbridge.cli.output import moment, print_json, print_line, print_rows

app = typer.Typer(no_args_is_help=True, help="Archives of images that the service holds: ls, upload, rm.")
DatasetId = Annotated[str, typer.Argument(metavar="ID", help="Of the dataset: dataset_...")]


@app.command()
@reported
def ls(limit: Limit = 20, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with connect(url) as client:
        found = list(islice(client.datasets.list(page_size=min(limit, 200)), limit))
    if as_json:
        print_json([dataset.raw for dataset in found])
        return
    rows = ((one.id, one.name or "", one.format, str(one.images), decimal(one.size), moment(one.created_at)) for one in found)
    print_rows(("ID", "NAME", "FORMAT", "IMAGES", "SIZE", "CREATED"), rows)


@app.command()
@reported
def upload(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", exists=True, dir_okay=False, help="zip, tar or tar.gz.")],
    name: Annotated[str | None, typer.Option(help="For people; an archive that is there keeps the name it has.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Store an archive of images, and print its id: a job names it as dataset://ID/PATH. The same bytes are stored once."""
    with connect(url) as client:
        dataset = client.datasets.upload(archive, name)
    if as_json:
        print_json(dataset.raw)
    else:
        print_line(dataset.id)


@app.command()
@reported
def rm(dataset_id: DatasetId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Delete a dataset that no job names."""
    with connect(url) as client:
        client.datasets.delete(dataset_id)
    if as_json:
        print_json({"id": dataset_id, "deleted": True})
    else:
        print_line(f"{dataset_id} deleted")
