"""Breaks a running service at random instants, and counts what came of its jobs.

    python -m tests.chaos --faults 200 --seed 0                                     # SQLite, the broker of files
    python -m tests.chaos --faults 200 --seed 0 --servers                           # PostgreSQL, Redis, S3

Real processes: front end and two workers; with --servers also a PostgreSQL and a Redis of its own, and moto's S3 server behind a
proxy that can fail, a data folder for each process, and for one worker a clock that is an hour ahead or behind. A client posts
jobs all the while, each under an Idempotency-Key until it is answered 202, and cancels some. Afterwards every job that was answered
202 must have ended as it should, published at most once, with the weights of an undisturbed run, and nothing may be left: no process,
no half-written file. Exit code 1 where that is not so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

from benchmarks import scale
from tests import s3
from tests.adaptation.conftest import make
from tests.chaos import campaign
from tests.chaos.stack import Servers, Stack, data_folders
from tests.servers import Redis, disks, postgres

HOUR_S = 3600


def carry_out(folder: Path, servers: bool, seed: int, faults: int, pause_s: float) -> campaign.Outcome:
    data = make(folder / "data")
    with ExitStack() as opened:
        mounted = opened.enter_context(disks(sorted(set(data_folders(folder, apart=servers).values()))))
        if not mounted:
            campaign.say("no disk can be mounted here, which takes root: none will be full")
        if not servers:
            db = opened.enter_context(scale.database("", folder / "var"))
            return campaign.run(Stack(folder, data, db.url.render_as_string(), None, mounted, {}), data, seed, faults, pause_s)
        # This process looks into the bucket at the end, with the credentials that the others were given.
        opened.enter_context(patch.dict(os.environ, s3.CREDENTIALS))
        of_its_own = opened.enter_context(postgres(folder / "postgres.log"))
        db = opened.enter_context(scale.database(of_its_own.url, folder))
        bucket = opened.enter_context(s3.server())("chaos")
        ahead = {"worker 2": random.Random(seed).choice([-HOUR_S, HOUR_S])}
        given = Servers(of_its_own, Redis(folder), bucket)
        stack = Stack(folder, data, db.url.render_as_string(hide_password=False), given, mounted, ahead)
        return campaign.run(stack, data, seed, faults, pause_s)


def table(outcome: campaign.Outcome) -> str:
    """As Markdown."""
    rows = [("faults", "", sum(outcome.faults.values()))]
    rows += [("faults", name.replace("_", " "), count) for name, count in sorted(outcome.faults.items())]
    rows += [("seconds ahead", f"the clock of {name}", seconds) for name, seconds in outcome.ahead.items()]
    rows += [("jobs answered 202", "", sum(outcome.jobs.values()))]
    rows += [("jobs answered 202", name, count) for name, count in sorted(outcome.jobs.items())]
    rows += [("attempts", name, count) for name, count in outcome.attempts.items()]
    rows += [("published weights", "the same as an undisturbed run's, bit for bit", outcome.identical)]
    rows += [("answers", name, count) for name, count in sorted(outcome.answers.items())]
    rows += [("started again by the process manager", name, count) for name, count in sorted(outcome.restarted.items())]
    rows += [("left by the killed, removed by housekeeping", name, count) for name, count in outcome.swept.items()]
    rows += [("breaches", "", len(outcome.wrong))]
    lines = ["| what | which | count |", "|---|---|---|", *(f"| {what} | {which} | {count} |" for what, which, count in rows)]
    return "\n".join([*lines, *(f"- {words}" for words in outcome.wrong)]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", action="store_true", help="PostgreSQL, Redis and S3")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, help="of the faults and the jobs; default: a new one")
    parser.add_argument("--pause", type=float, default=4, help="mean seconds between two faults")
    parser.add_argument("--keep", type=Path, help="a folder for the logs, which are kept")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    campaign.say(f"seed {seed}")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # of moto's server: each request
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = carry_out(folder.resolve(), given.servers, seed, given.faults, given.pause)
    print(json.dumps(asdict(outcome), indent=1) if given.json else table(outcome))
    print(f"seed {seed}, {outcome.seconds:.0f} s, {os.cpu_count()} cores", file=sys.stderr)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
