"""modalbridge webhooks: the addresses that the service tells of jobs."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from modalbridge.cli.exits import reported
from modalbridge.cli.options import DEFAULT_URL, AsJson, Limit, Url, connect
from modalbridge.cli.output import moment, print_json, print_line, print_rows, say

app = typer.Typer(no_args_is_help=True, help="Addresses that the service tells of jobs: ls, add, rm, test, deliveries.")
WebhookId = Annotated[str, typer.Argument(metavar="ID", help="Of the webhook: webhook_...")]


@app.command()
@reported
def ls(limit: Limit = 20, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List webhooks, newest first. GONE is when one answered 410: nothing is sent to it since."""
    with connect(url) as client:
        found = list(islice(client.webhooks.list(page_size=min(limit, 200)), limit))
    if as_json:
        print_json([webhook.raw for webhook in found])
        return
    rows = ((one.id, one.url, ",".join(one.types), moment(one.created_at), moment(one.gone_at)) for one in found)
    print_rows(("ID", "ADDRESS", "TYPES", "CREATED", "GONE"), rows)


@app.command()
@reported
def add(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="https://..., where messages are sent.")],
    type: Annotated[
        list[str] | None,
        typer.Option(
            "--type", help="job.succeeded, job.failed, job.cancelled or job.progress; may be repeated. Without: each end."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Have an address told of jobs, and print the webhook's id and its secret, which cannot be shown again."""
    with connect(url) as client:
        webhook = client.webhooks.create(address, type)
    if as_json:
        print_json(webhook.raw)
        return
    print_rows(("ID", "SECRET"), [(webhook.id, webhook.secret or "")])
    say(f"Keep the secret: it is shown this once. Try it with: modalbridge webhooks test {webhook.id}")


@app.command()
@reported
def rm(webhook_id: WebhookId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Delete a webhook with its log; what is pending is not sent."""
    with connect(url) as client:
        client.webhooks.delete(webhook_id)
    if as_json:
        print_json({"id": webhook_id, "deleted": True})
    else:
        print_line(f"{webhook_id} deleted")


@app.command()
@reported
def test(webhook_id: WebhookId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Have a worker send a message of the type webhook.test, and print the message's id."""
    with connect(url) as client:
        delivery = client.webhooks.test(webhook_id)
    if as_json:
        print_json(delivery.raw)
        return
    print_line(delivery.id)
    say(f"What became of it: modalbridge webhooks deliveries {webhook_id}")


@app.command()
@reported
def deliveries(webhook_id: WebhookId, limit: Limit = 20, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List what was and is to be sent to a webhook, newest first, with the last answer or why there was none."""
    with connect(url) as client:
        found = list(islice(client.webhooks.deliveries(webhook_id, page_size=min(limit, 200)), limit))
    if as_json:
        print_json([delivery.raw for delivery in found])
        return
    rows = (
        (
            one.id,
            one.type,
            one.job_id or "-",
            one.status,
            str(one.attempts),
            one.error or str(one.response_status or "-"),
            moment(one.created_at),
            moment(one.next_at),
        )
        for one in found
    )
    print_rows(("ID", "TYPE", "JOB", "STATUS", "ATTEMPTS", "ANSWER", "CREATED", "NEXT"), rows)
