"""A download that survives what breaks it: into NAME.partial, from where it broke, checked whole, renamed at once."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modalbridge.errors import ConnectionFailed, DigestMismatch, ModalBridgeError, Timeout, UnexpectedAnswer
from modalbridge.job_calls import address, artifacts
from modalbridge.results import Artifact, JobState
from modalbridge.retries import AGAIN, Retries, answered, refusal, retry_after
from modalbridge.steps import Answer, Open, Read, Request, Run, Sleep, Steps, Tell

MODEL = "model.safetensors"
OUTPUTS = {"safetensors": MODEL, "torch_export": "model.pt2", "onnx": "model.onnx"}
"""The artifact that each output is."""
_SHA256 = re.compile(r'(?:W/)?"([0-9a-f]{64})"')


def download(
    retries: Retries,
    job: str | JobState,
    name: str | None,
    path: str | Path,
    overwrite: bool,
    on_progress: Callable[[int, int], Any] | None,
) -> Steps[Path]:
    name = OUTPUTS.get(name or MODEL, name or MODEL)
    to = Path(path)
    if to.is_dir():
        if Path(name).name != name:
            raise ValueError(f"{name!r} is not a plain file name; give the path of the file")
        to = to / name
    if not overwrite:
        _must_be_free(to)
    artifact = yield from _find(retries, job, name)
    aside = to.with_name(f"{to.name}.partial")
    while True:
        resumed = aside.exists() and aside.stat().st_size > 0
        promised = yield from _fetch(retries, job, artifact, aside, on_progress)
        found = yield Run(lambda: _sha256(aside))
        if found == promised:
            break
        aside.unlink()
        if not resumed:
            raise DigestMismatch(name, promised, found)
        # What lay there was of another file, or damaged: once more, from the beginning.
    if not overwrite:
        _must_be_free(to)
    aside.replace(to)
    return to


def is_there(artifact: Artifact, path: Path) -> bool:
    """Whether the file at path is this artifact, byte for byte."""
    return path.is_file() and path.stat().st_size == artifact.size and _sha256(path) == artifact.sha256


def _must_be_free(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} is there already, and was left as it is; to replace it, ask to overwrite")


def _find(retries: Retries, job: str | JobState, name: str) -> Steps[Artifact]:
    """Raises NotFound, JobNotSucceeded."""
    for artifact in (yield from artifacts(retries, job)):
        if artifact.name == name:
            return artifact
    # The service says best why it is not there.
    yield from answered(Request("GET", address(job, "artifacts", name), headers={"Range": "bytes=0-0"}, repeatable=True), retries)
    raise UnexpectedAnswer(f"the service has {name!r}, but does not list it among the job's artifacts")


def _fetch(
    retries: Retries, job: str | JobState, artifact: Artifact, aside: Path, on_progress: Callable[[int, int], Any] | None
) -> Steps[str]:
    """Brings `aside` to the artifact's size, over as many connections as it takes. The sha256 that the bytes should have."""
    promised = artifact.sha256
    aside.touch()
    failures = 0
    while (have := aside.stat().st_size) != artifact.size:
        if have > artifact.size:
            aside.write_bytes(b"")
            have = 0
        asked_s = 0.0
        failure: ModalBridgeError
        try:
            head: Answer = yield Open(_part(job, artifact.name, have))
            if head.status in AGAIN:
                failure, asked_s = refusal(head), retry_after(head)
            elif head.status not in (200, 206):
                raise refusal(head)
            else:
                promised = _promised(head) or promised
                yield from _write(head, aside, have, artifact.size, on_progress)
                failure = ConnectionFailed(f"{artifact.name} ended after {aside.stat().st_size} of {artifact.size} bytes")
        except (ConnectionFailed, Timeout) as error:
            failure = error
        came = aside.stat().st_size
        if came >= artifact.size:  # more than there should be is for the digest to judge
            break
        failures = 1 if came > have else failures + 1
        if failures >= retries.attempts or asked_s > retries.patience_s:
            raise failure
        yield Sleep(retries.pause(failures, asked_s))
    return promised


def _part(job: str | JobState, name: str, have: int) -> Request:
    """The rest of the file, as it is: a compressed one could not be put together from parts."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    return Request("GET", address(job, "artifacts", name), headers=headers)


def _promised(head: Answer) -> str | None:
    tag = _SHA256.fullmatch(head.headers.get("etag", ""))
    return tag[1] if tag else None


def _write(head: Answer, aside: Path, have: int, size: int, on_progress: Callable[[int, int], Any] | None) -> Steps[None]:
    if head.status == 200:
        have = 0
    elif not head.headers.get("content-range", "").startswith(f"bytes {have}-"):
        raise UnexpectedAnswer(f"asked for what follows byte {have}, got {head.headers.get('content-range')!r}")
    with aside.open("r+b") as file:
        file.seek(have)
        file.truncate()
        while piece := (yield Read()):
            file.write(piece)
            have += len(piece)
            if on_progress is not None:
                yield Tell(on_progress, (have, size))
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
