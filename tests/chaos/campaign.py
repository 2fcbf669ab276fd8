"""Jobs by HTTP on one side, faults on the other; then everything is put right, and what came of the jobs is counted."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from app.artifacts.table import Artifact
from app.broker import clear_half_written, make_celery
from app.jobs import checkpoints
from app.jobs.states import TERMINAL
from app.jobs.table import Job, JobEvent
from app.source_models.table import SourceModel
from tests.adaptation.conftest import CLASSES, SIZE
from tests.chaos import faults
from tests.chaos.stack import Stack
from tests.worker.embedded import processes_that_name
from worker import leftovers, workspace
from worker.process import WorkerProcess

OPEN_JOBS = 4
"""So many are under way at a time."""
KINDS: dict[str, dict[str, Any]] = {
    "source_only": {"method": "source_only"},
    "shot": {"method": "shot", "settings": {"precision": "fp32", "transfer": {"epochs": 6, "batch_size": 16}}},
    "tgmb_tgkt": {
        "method": "tgmb_tgkt",
        "settings": {
            "precision": "fp32",
            "bridging": {"steps": 120, "batch_size": 8, "validate_every": 10, "calibration": "never"},
            "transfer": {"epochs": 4, "batch_size": 16},
        },
    },
}


def request(data: Path, kind: str) -> dict[str, Any]:
    scaling = {"kind": "millimetres", "high": 5000}
    return {
        "source_model": {"architecture": "timm/test_resnet", "classes": list(CLASSES), "input": {"size": SIZE}},
        "data": {
            "target": {"uri": f"file://{data}/target", "scaling": scaling},
            "pairs": {"uri": f"file://{data}/pairs", "scaling": scaling},
        },
        "device": "cpu",
        **KINDS[kind],
    }


def parts(data: Path, kind: str) -> dict[str, Any]:
    """Of a multipart POST /jobs."""
    weights = (data / "source.safetensors").read_bytes()
    return {
        "request": (None, json.dumps(request(data, kind)), "application/json"),
        "source_model": ("source.safetensors", weights, "application/octet-stream"),
    }


@dataclass
class Sent:
    """A job that was answered 202."""

    id: str
    kind: str
    cancelled: bool = False


@dataclass
class Client:
    """Posts jobs until told to stop, each again and again under one Idempotency-Key until it is answered 202; cancels some."""

    stack: Stack
    data: Path
    rng: random.Random
    sent: list[Sent] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """Of every request: a status, or what was raised."""
    wrong: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(base_url=self.stack.url, timeout=10) as http:
            while not self.stopped.is_set():
                if len(self._open(http)) < OPEN_JOBS:
                    self._submit(http)
                elif self.rng.random() < 0.05:
                    self._cancel(http)
                self.stopped.wait(0.2)

    def _submit(self, http: httpx.Client) -> None:
        kind = self.rng.choice(list(KINDS))
        key = f"{self.rng.getrandbits(64):x}"
        until = time.monotonic() + 120
        while time.monotonic() < until:
            answer = self._asked(http, "POST", "/jobs", files=parts(self.data, kind), headers={"Idempotency-Key": key})
            if answer is not None and answer.status_code == 202:
                self.sent.append(Sent(answer.json()["id"], kind))
                return
            if answer is not None and answer.status_code < 500:
                self.wrong.append(f"POST /jobs: {answer.status_code} {answer.text[:300]}")
                return
            time.sleep(0.3)
        self.wrong.append("POST /jobs: no 202 within two minutes")

    def _cancel(self, http: httpx.Client) -> None:
        if not self.sent:
            return
        one = self.rng.choice(self.sent[-OPEN_JOBS:])
        answer = self._asked(http, "POST", f"/jobs/{one.id}/cancel")
        # Without an answer it may have been cancelled all the same.
        one.cancelled |= answer is None or answer.status_code in (202, 500, 502, 503, 507)

    def _open(self, http: httpx.Client) -> list[str]:
        """Ids of the jobs that are not over, as far as can be told; all of the last where nobody answers."""
        found = []
        for one in self.sent[-2 * OPEN_JOBS :]:
            answer = self._asked(http, "GET", f"/jobs/{one.id}")
            if answer is not None and answer.status_code == 404:
                self.wrong.append(f"{one.id} was answered 202, and is not found")
            if answer is None or answer.status_code != 200 or answer.json()["status"] not in TERMINAL:
                found.append(one.id)
        return found

    def _asked(self, http: httpx.Client, method: str, path: str, **given: Any) -> httpx.Response | None:
        try:
            answer = http.request(method, path, **given)
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        return answer


@dataclass
class Outcome:
    """What a campaign saw. wrong: every breach, in words; empty is the only good one."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    ahead: dict[str, int] = field(default_factory=dict)
    """Of a process's clock, in seconds."""
    answers: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    """By how they ended."""
    attempts: Counter[str] = field(default_factory=Counter)
    """begun, resumed from a checkpoint, lost, handed back."""
    restarted: Counter[str] = field(default_factory=Counter)
    """Processes that had not come up, for the database or the blob store was away just then."""
    swept: Counter[str] = field(default_factory=Counter)
    """What killed processes had left, and housekeeping removed."""
    identical: int = 0
    """Published models whose weights are those of an undisturbed run."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def undisturbed(stack: Stack, data: Path) -> dict[str, str]:
    """sha256 of the weights by kind, from jobs that nothing happens to."""
    found = {}
    with httpx.Client(base_url=stack.url, timeout=30) as http:
        jobs = {kind: http.post("/jobs", files=parts(data, kind)).raise_for_status().json() for kind in KINDS}
        for kind, job in jobs.items():
            while job["status"] not in TERMINAL:
                job = http.get(f"/jobs/{job['id']}", params={"wait": 10}).json()
            if job["status"] != "succeeded":
                raise RuntimeError(f"the undisturbed {kind} job {job['status']}: {job['error']}")
            found[kind] = hashlib.sha256(http.get(f"/jobs/{job['id']}/model").content).hexdigest()
    return found


def run(stack: Stack, data: Path, seed: int, count: int, pause_s: float) -> Outcome:
    """`count` faults at random instants, about `pause_s` apart, then as long as jobs end, three minutes apart at most."""
    rng, outcome, began = random.Random(seed), Outcome(seed, ahead=stack.ahead), time.monotonic()
    kinds = faults.of(stack)
    stack.start_all()
    try:
        reference = undisturbed(stack, data)
        client = Client(stack, data, random.Random(rng.getrandbits(64)))
        thread = threading.Thread(target=client.run)
        thread.start()
        try:
            for number in range(count):
                _pause(stack, rng.expovariate(1 / pause_s), outcome)
                # Each has its turn, in an order of its own each round.
                if number % len(kinds) == 0:
                    rng.shuffle(kinds)
                fault = kinds[number % len(kinds)]
                say(f"{number + 1} of {count}: {fault.__name__}, {len(client.sent)} jobs accepted")
                fault(stack, rng)
                outcome.faults[fault.__name__] += 1
        finally:
            client.stopped.set()
            thread.join()
        _pause(stack, 0, outcome)
        stack.ready()
        _wait(stack, client.sent, outcome)
        outcome.answers, outcome.wrong = client.answers, outcome.wrong + client.wrong
        _look_over(stack, client.sent, reference, outcome)
        for one in client.sent:
            if any(one.id in words for words in outcome.wrong):
                say(_story(stack, one.id))
    finally:
        stack.stop_all()
    _look_for_leftovers(stack, outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def _pause(stack: Stack, seconds: float, outcome: Outcome) -> None:
    until = time.monotonic() + seconds
    while True:
        outcome.restarted.update(stack.ended_by_themselves())
        if time.monotonic() >= until:
            return
        time.sleep(min(0.5, max(0.0, until - time.monotonic())))


def _wait(stack: Stack, sent: list[Sent], outcome: Outcome, seconds: float = 180) -> None:
    """Until all have ended, or none has for so long: on a busy machine many wait for their turn."""
    until, over = time.monotonic() + seconds, {}
    while time.monotonic() < until:
        _pause(stack, 0, outcome)
        with stack.db.read() as session:
            now_over = dict(session.execute(sa.select(Job.id, Job.status).where(Job.status.in_(sorted(TERMINAL)))).all())
        if len(now_over) > len(over):
            until = time.monotonic() + seconds
        over = now_over
        if all(one.id in over for one in sent):
            return
        time.sleep(0.5)
    outcome.wrong += [f"{one.id} ({one.kind}) is stuck" for one in sent if one.id not in over]


def _look_over(stack: Stack, sent: list[Sent], reference: dict[str, str], outcome: Outcome) -> None:
    """Through the front end, as a client sees it, and in the database."""
    if len({one.id for one in sent}) < len(sent):
        outcome.wrong.append("two Idempotency-Keys gave one job")
    with stack.db.read() as session:
        rows = session.scalar(sa.select(sa.func.count()).select_from(Job))
    if rows != len(sent) + len(KINDS):
        outcome.wrong.append(f"{rows} rows of jobs for {len(sent)} that were accepted and {len(KINDS)} before them")
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        for one in sent:
            answer = http.get(f"/jobs/{one.id}")
            if answer.status_code != 200:
                outcome.wrong.append(f"{one.id} was answered 202, and is now {answer.status_code}")
                continue
            job = answer.json()
            outcome.jobs[job["status"]] += 1
            if job["status"] == "failed" or (job["status"] == "cancelled" and not one.cancelled):
                outcome.wrong.append(f"{one.id} ({one.kind}) is {job['status']}: {job['error']}")
            listed = http.get(f"/jobs/{one.id}/artifacts").json()["data"] if job["status"] == "succeeded" else []
            if job["status"] == "succeeded" and not listed:
                outcome.wrong.append(f"{one.id} succeeded, and has no artifact")
            if len({entry["attempt"] for entry in listed}) > 1:
                outcome.wrong.append(f"{one.id} has artifacts of several attempts")
            for entry in listed:
                digest = hashlib.sha256(http.get(entry["url"]).content).hexdigest()
                if digest != entry["sha256"]:
                    outcome.wrong.append(f"{one.id}: {entry['name']} is not what its row says")
                if entry["name"] == "model.safetensors":
                    outcome.identical += digest == reference[one.kind]
                    if digest != reference[one.kind]:
                        outcome.wrong.append(f"{one.id} ({one.kind}): other weights than an undisturbed run")
            _events(stack, one, job, outcome)


def _events(stack: Stack, one: Sent, job: dict[str, Any], outcome: Outcome) -> None:
    with stack.db.read() as session:
        events = session.scalars(sa.select(JobEvent).where(JobEvent.job_id == one.id).order_by(JobEvent.seq)).all()
    if [event.seq for event in events] != list(range(1, len(events) + 1)):
        outcome.wrong.append(f"{one.id}: a gap in its events")
    published = sum(event.kind == "state" and event.message.startswith("succeeded") for event in events)
    if published != (job["status"] == "succeeded"):
        outcome.wrong.append(f"{one.id}: published {published} times")
    words = [event.message for event in events if event.kind == "state"]
    outcome.attempts["begun"] += sum(word.endswith("is running") for word in words)
    outcome.attempts["lost"] += sum("was lost" in word for word in words)
    outcome.attempts["handed back"] += sum("handed back" in word for word in words)
    resumed = [event for event in events if event.kind == "started" and (event.data or {}).get("resumed_from")]
    outcome.attempts["resumed from a checkpoint"] += len(resumed)


def _story(stack: Stack, job_id: str) -> str:
    """For whoever wants to know why."""
    with stack.db.read() as session:
        events = session.scalars(sa.select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)).all()
    return "\n".join([job_id, *(f"  {event.at:%H:%M:%S} {event.attempt} {event.kind}: {event.message}" for event in events)])


def _look_for_leftovers(stack: Stack, outcome: Outcome) -> None:
    """When everything has stopped: processes, and after one sweep of housekeeping files that nothing names."""
    if orphans := processes_that_name(str(stack.settings.data_dir)):
        outcome.wrong.append(f"{len(orphans)} processes are left")
    for settings in {settings.data_dir: settings for settings in map(stack.settings_of, stack.names)}.values():
        blobs = stack.blobs(settings)
        outcome.swept["half uploads"] += blobs.clear_aside(older_than_s=-60)
        outcome.swept["half messages"] += clear_half_written(settings, older_than_s=-60)
        leftovers.remove_work_folders(WorkerProcess(settings, stack.db, blobs, make_celery(settings)))
        if folders := list(workspace.jobs_here(settings.work_dir)):
            outcome.wrong.append(f"work folders of jobs that are over: {folders[:3]}")
    before = set(blobs.keys_older_than(-60))
    with stack.db.read() as session:
        named = {key for column in (Artifact.blob_key, SourceModel.blob_key) for key in session.scalars(sa.select(column))}
    kept = {key for key in before if checkpoints.job_of(key)}
    outcome.swept["checkpoints"] = len(kept)
    outcome.swept["blobs that no row names"] = len(before - named - kept)
    if missing := named - before:
        outcome.wrong.append(f"{len(missing)} rows name a blob that is not there: {sorted(missing)[:3]}")
    if partial := [path for path in stack.settings.data_dir.rglob("*") if path.name.endswith((".partial", ".linking"))]:
        outcome.wrong.append(f"half-written files: {partial[:3]}")
    stack.db.dispose()


def say(message: str) -> None:
    with suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)
