"""modalbridge doctor: is the service there, and whole? A hint for each thing that is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import typer

from modalbridge import __version__
from modalbridge.cli.exits import Exit, reported
from modalbridge.cli.options import DEFAULT_URL, AsJson, Url, connect
from modalbridge.cli.output import print_json, print_line
from modalbridge.client import Client
from modalbridge.errors import ModalBridgeError
from modalbridge.retries import Retries

SKEW_S = 5
"""Between the clocks."""
HINTS = {
    "database": "Start the database that MODALBRIDGE_DATABASE_URL of the service names, and bring it up to date: make migrate.",
    "broker": "Start the broker that MODALBRIDGE_BROKER_URL of the service names. Jobs are accepted meanwhile, and start later.",
    "blobs": "Let the service's user write to its data folder, and look for a full disk.",
    "worker": "Start a worker: make worker. Jobs are accepted meanwhile, and wait.",
}


@dataclass(frozen=True)
class Finding:
    check: str
    ok: bool
    detail: str
    hint: str = ""


@reported
def doctor(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Check the service: address, life, readiness part by part, version, clock. Exit code 3 if it is not there, 4 if not ready."""
    with connect(url, timeout=10, retries=Retries(attempts=1)) as client:
        found = list(_examine(client))
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        for one in found:
            print_line(f"{'ok  ' if one.ok else 'FAIL'}  {one.check:<10}{one.detail}")
            if one.hint:
                print_line(f"      {'':<10}{one.hint}")
    if any(one.check == "address" and not one.ok for one in found):
        raise typer.Exit(Exit.UNREACHABLE)
    if not all(one.ok for one in found):
        raise typer.Exit(Exit.REFUSED)


def _examine(client: Client) -> Iterator[Finding]:
    try:
        client.alive()
    except ModalBridgeError as error:
        hint = f"Is {client.base_url} the service's address? --url or MODALBRIDGE_URL sets it; make serve starts one here."
        yield Finding("address", False, str(error), hint)
        return
    yield Finding("address", True, f"{client.base_url} answers")
    yield from _readiness(client)
    yield _version(client)


def _readiness(client: Client) -> Iterator[Finding]:
    before = datetime.now(UTC)
    try:
        health = client.health()
    except ModalBridgeError as error:
        yield Finding("ready", False, f"/readyz: {error}", "The service's log has the cause.")
        return
    for part, outcome in health.checks.items():
        ok = outcome == "ok"
        hint = "" if ok else HINTS.get(part, "This part is younger than the command; see the service's page on operating it.")
        yield Finding(part, ok, outcome, hint)
    if health.server_time is not None:
        skew = _skew(before, health.server_time, datetime.now(UTC))
        hint = "" if abs(skew) <= SKEW_S else "Set both clocks by NTP: the times that are shown here are the service's."
        yield Finding("clock", not hint, f"the service's is {skew:+.0f} s from this one", hint)


def _skew(before: datetime, date: datetime, after: datetime) -> float:
    """Seconds by which an answer's Date, which counts whole ones, lies outside of the time in which the answer was made."""
    return min(0.0, (date - before).total_seconds() + 1) or max(0.0, (date - after).total_seconds())


def _version(client: Client) -> Finding:
    try:
        service = str(client.openapi()["info"]["version"])
    except (ModalBridgeError, KeyError, TypeError) as error:
        return Finding(
            "version", False, f"/openapi.json: {error}", "Something between here and the service keeps its description."
        )
    return Finding("version", True, f"service {service}, client {__version__}")
