"""What an attempt's process is given: the engine's spec, weights, the last checkpoint, a command line and an environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.blobs import Blobs
from app.datasets.table import Dataset
from app.errors import Problem
from app.jobs.lifecycle import Claim
from app.jobs.table import FurtherSourceModel, Job, JobDataset
from app.remote import Pin
from app.settings import Settings
from app.source_models.table import SourceModel
from app.spec import AdaptationSpec
from worker import checkpoints, workspace
from worker.adaptation.events import Warned
from worker.workspace import Workspace

OPEN_FILES = 4096
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS")
"""Of this process's environment, to the child: where things are and how much it may use. No setting of ours is among
them, so no address or password of the database, the broker or the blob store."""
PASSED_ON_BEGINNINGS = ("NCCL_", "TORCH_NCCL_", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The remedies of NVIDIA's and PyTorch's pages."""
GPU_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""As NVML counts, so that a number in CUDA_VISIBLE_DEVICES is the same GPU to the job and to this worker's metrics."""


@dataclass(frozen=True)
class Asked:
    """What the rows of a job say. pins: what its references were pinned by. models: in their order. datasets: by id."""

    request: dict[str, Any]
    pins: list[Pin]
    models: list[SourceModel]
    datasets: dict[str, Dataset]


def asked_for(session: Session, job_id: str) -> Asked:
    wanted = sa.select(Job.request, Job.pins, Job.source_model_id).where(Job.id == job_id)
    request, pins, first = session.execute(wanted).one()
    ordered = sa.select(FurtherSourceModel.source_model_id).where(FurtherSourceModel.job_id == job_id)
    ids = [first, *session.scalars(ordered.order_by(FurtherSourceModel.place))]
    models = {model.id: model for model in session.scalars(sa.select(SourceModel).where(SourceModel.id.in_(ids)))}
    named = sa.select(JobDataset.dataset_id).where(JobDataset.job_id == job_id)
    datasets = session.scalars(sa.select(Dataset).where(Dataset.id.in_(named)))
    pinned = [Pin.model_validate(pin) for pin in pins or ()]
    return Asked(request, pinned, [models[id] for id in ids], {one.id: one for one in datasets})


def from_blobs(
    blobs: Blobs, claim: Claim, models: Iterable[SourceModel], space: Workspace, work_dir: Path
) -> tuple[list[Path], list[Warned]]:
    """(where the weights of each model are, what to tell of the checkpoint). Raises BlobsAwayError, OSError, Problem
    reference_missing."""
    try:
        paths = [blobs.local(model.blob_key, space.source_model(place)) for place, model in enumerate(models)]
    except FileNotFoundError as error:
        raise Problem("reference_missing", "its file is no longer in the blob store", pointer="/source_model") from error
    here = workspace.newest_checkpoint(work_dir, claim.job_id, claim.attempt)
    return paths, checkpoints.fetch(blobs, claim, space, newer_than=here)


def spec(asked: Asked, paths: Iterable[Path]) -> AdaptationSpec:
    """Raises Problem invalid_request."""
    models = [{**model.description, "uri": str(path)} for model, path in zip(asked.models, paths, strict=True)]
    try:
        return AdaptationSpec.model_validate({**asked.request, "source_model": models[0], "further_source_models": models[1:]})
    except ValidationError as error:
        fault = error.errors()[0]
        pointer = "".join(f"/{part}" for part in fault["loc"])
        detail = f"this worker cannot read the request, and may be older or newer than the front end: {fault['msg']}"
        raise Problem("invalid_request", detail, pointer=pointer) from error


def command(settings: Settings, space: Workspace, fetched: Iterable[Path]) -> list[str]:
    """fetched: folders of the cache that are its to read, besides the data roots."""
    # Without a root nothing may be read; the engine alone would take no roots for "anywhere".
    roots = [str(root) for root in (*settings.data_roots, *fetched)] or [str(space.tmp)]
    limits = {
        "--parent": os.getpid(),
        "--data-bytes": settings.child_memory_bytes or int(0.8 * memory_bytes()),
        "--file-bytes": settings.child_file_bytes,
        "--open-files": OPEN_FILES,
        "--processes": settings.processes_per_job,
    }
    return [
        *(sys.executable, "-I", "-m", "worker.sandbox"),
        *(str(part) for limit in limits.items() for part in limit),
        *("--", str(space.spec), "--out", str(space.out), "--checkpoint-every", str(settings.checkpoint_s)),
        *("--roots", *roots),
    ]


def environment(space: Workspace, cuda: bool) -> dict[str, str]:
    """cuda: its worker has a GPU, so the process is to use that or to say why it can't."""
    return passed_on() | ({"MODALBRIDGE_CUDA": "1"} if cuda else {}) | {"HOME": str(space.folder), "TMPDIR": str(space.tmp)}


def passed_on() -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(PASSED_ON_BEGINNINGS)}
    return {"LANG": "C.UTF-8"} | GPU_ORDER | passed


def memory_bytes() -> int:
    """Of this machine, or of the control group if that has less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(machine, int(text)) if text.isdigit() else machine
