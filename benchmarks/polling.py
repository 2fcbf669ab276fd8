"""What polling costs a job: the same job with and without 1,000 polls while it trains, in turns, as a ratio.

    export MODALBRIDGE_DATA_ROOTS=$PWD/var          # in both terminals
    make serve                                      # in one
    make worker                                     # in the other
    python -m benchmarks.polling --work var/polling

WORK lies below a root; a rendered set is made there.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from benchmarks.client import follow, seconds, submit
from demo import splits

IDLE_S = 4
"""uvicorn closes a connection that was idle for 5 s."""


def poll(netloc: str, address: str, polls: int, over_s: float) -> list[float]:
    """The latency of each of `polls` GETs of the job as a good client sends them, with If-None-Match, evenly over `over_s` seconds. By
    the standard library's client: httpx takes as much of these cores as the service does, and is not what is measured. Raises
    RuntimeError if one is refused."""
    latencies: list[float] = []
    etag, began = "", time.monotonic()
    with closing(http.client.HTTPConnection(netloc)) as connection:
        for number in range(polls):
            asked = time.monotonic()
            connection.request("GET", address, headers={"If-None-Match": etag} if etag else {})
            answer = connection.getresponse()
            answer.read()
            if answer.status not in (200, 304):
                raise RuntimeError(f"the poll was answered with {answer.status}")
            etag = answer.headers["ETag"]
            latencies.append(time.monotonic() - asked)
            if over_s / polls > IDLE_S:
                connection.close()
            time.sleep(max(0.0, began + (number + 1) * over_s / polls - time.monotonic()))
    return latencies


def polled(client: httpx.Client, address: str, polls: int, over_s: float) -> tuple[dict[str, Any], list[float]]:
    """The job, once it is in a final state and was polled so often, and the latencies. Raises what its poller raised."""
    with ThreadPoolExecutor(1) as beside:
        polling = beside.submit(poll, client.base_url.netloc.decode(), address, polls, over_s)
        return follow(client, address), polling.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--polls", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=400, help="400: about two minutes a job on two cores")
    parser.add_argument("--rounds", type=int, default=1, help="of: without, with, with, without")
    given = parser.parse_args()
    work = given.work.resolve()
    for split in ("target", "pairs"):
        splits.prepare(work, 0, split)
    torch.manual_seed(0)
    classes = list(splits.CLASSES)
    weights = work / "untrained.safetensors"
    save_file(resnet18(num_classes=len(classes)).state_dict(), weights)
    request = {
        "name": "polling benchmark",
        "source_model": {"architecture": "torchvision/resnet18", "classes": classes, "input": {"size": 48}},
        "data": {"target": {"uri": f"file://{work}/target"}, "pairs": {"uri": f"file://{work}/pairs"}},
        "method": "tgmb",
        "settings": {"bridging": {"steps": given.steps, "patience": 0}, "precision": "fp32"},
    }
    times: dict[bool, list[float]] = {False: [], True: []}
    latencies: list[float] = []
    with httpx.Client(base_url=given.url, timeout=60) as client:
        warm_up = seconds(follow(client, submit(client, request, weights)))
        for with_polls in [False, True, True, False] * given.rounds:
            address = submit(client, request, weights)
            if with_polls:
                job, more = polled(client, address, given.polls, 0.9 * warm_up)
                latencies += more
            else:
                job = follow(client, address)
            if job["status"] != "succeeded":
                raise SystemExit(f"the job ended as {job['status']}: {job['error']}")
            times[with_polls].append(seconds(job))
    without, polling = (statistics.mean(times[with_polls]) for with_polls in (False, True))
    print(
        json.dumps(
            {
                "polls_a_job": given.polls,
                "seconds_without": times[False],
                "seconds_with": times[True],
                "cost": round(polling / without - 1, 4),
                "poll_median_ms": round(statistics.median(latencies) * 1000, 2),
                "poll_p99_ms": round(statistics.quantiles(latencies, n=100)[98] * 1000, 2),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
