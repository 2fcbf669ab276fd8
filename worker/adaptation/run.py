"""Spec in, events out: one job from its data to its artifacts. What happens where is on this page."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import torchvision

from app import layouts
from app.errors import Problem
from app.references import Disk, shown
from app.spec import WITHOUT_PAIRS, AdaptationSpec, Method
from worker.adaptation import artifacts, assessment, checkpoint, data, device, export, parallel, pictures, report, source_model
from worker.adaptation.device import Precision
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.events import Logged, Phase, Result, Started, Warned
from worker.adaptation.image_sets import Images, Pairs
from worker.adaptation.job import Job
from worker.adaptation.journal import Journal
from worker.adaptation.methods import shot, socket, socket_tgmb, source_only, tgkt, tgmb
from worker.adaptation.source_model import Classifier

METHODS: dict[Method, ModuleType] = {
    "source_only": source_only,
    "shot": shot,
    "socket": socket,
    "socket_tgmb": socket_tgmb,
    "tgmb": tgmb,
    "tgmb_tgkt": tgkt,
}
"""Each has adapt(job) -> Adapted, and work(spec, target images, pairs) -> cost by phase, of the phases in which it trains."""


def run(
    spec: AdaptationSpec, folder: Path, journal: Journal, anchor: Path, roots: Sequence[Path] | None, checkpoint_every: float
) -> Result | None:
    """Adapts, evaluates and publishes below `folder`; goes on from a checkpoint that is there; a finished folder says its
    result again. anchor: what relative references are relative to, where roots is None. Of several processes (see parallel) the
    first evaluates and publishes; for the others: None. Raises Problem."""
    where = device.choose(spec.device)
    parallel.start(where)
    placed = _placed(spec, anchor if roots is None else None)
    weights = _weights(placed)
    identity = {"spec": _outcome_of(spec), "source_model": " ".join(artifacts.sha256(path) for path in weights)}
    if (finished := artifacts.published(folder)) is not None:
        _same_job(identity, finished[0], folder)
        journal(Logged(message="finished before: the artifacts are there"))
        return finished[1]
    saved = checkpoint.load(folder)
    if saved is not None:
        _same_job(identity, saved["identity"], folder)
    kept = _kept_precision(saved["precision"], spec, where) if saved else None
    journal(
        Started(
            device=where.type,
            device_name=device.name(where),
            precision=kept or spec.settings.precision,
            versions=versions(),
            resumed_from=(saved["phase"], saved["step"]) if saved else None,
        )
    )

    journal.begin("preparing")
    layouts.check(placed.data, placed.source_model.classes, roots)
    source = _source(placed, weights)
    source = source.to(where, memory_format=torch.channels_last).requires_grad_(False)
    cache, input, classes = folder / "cache", spec.source_model.input, spec.source_model.classes
    cache.mkdir(exist_ok=True)
    needs_pairs = spec.data.pairs is not None and spec.method not in WITHOUT_PAIRS
    with parallel.first_before_others():
        target = data.read_target(placed.data, input, cache, journal, roots, classes)
        pairs = data.read_pairs(placed.data, input, target, cache, journal, roots, classes) if needs_pairs else None
    method = METHODS[spec.method]
    work = method.work(spec, len(target), len(pairs or ()))
    trained = frozenset(work)
    if not _together(spec, trained, target, pairs, journal):
        return None
    identity["data"], identity["images"] = _fingerprint(target, pairs), _digest(target, pairs)
    if saved is not None and _others(identity, saved["identity"]):
        journal(
            Warned(code="data_changed", message="the data are not those of the checkpoint: the job starts from the beginning")
        )
        saved = None
    if saved is not None and kept != saved["precision"]:
        journal(Logged(message=f"precision {kept}: {device.name(where)} emulates {saved['precision']}, the checkpoint's"))
    precision = kept if saved else _precision(spec, trained, source, where, journal)

    evaluated = layouts.labelled(placed.data.evaluation, classes, roots) if spec.data.evaluation else []
    adapted_to = data.shared(placed.data, evaluated, roots, classes) if evaluated else frozenset()
    work["evaluating"] = assessment.work(trained, len(target) + len(evaluated))
    job = Job(spec, folder, journal, where, precision, source, target, pairs, identity, checkpoint_every, work)
    if saved is not None:
        job.finished, job.series, job.seconds, job.resumed = (saved[key] for key in ("finished", "series", "seconds", "stage"))
        before = [Warned.model_validate(warning) for warning in saved["warnings"]]
        journal.warnings = before + [warning for warning in journal.warnings if warning not in before]
    adapted = method.adapt(job)
    parallel.end()
    if not parallel.first():
        return None

    last = list(job.finished.values())[-1:]
    trained = last[0]["steps"] if last else 0
    journal.begin("evaluating", trained)
    labelled = None
    if spec.data.evaluation is not None:
        labelled = data.read_evaluation(placed.data, classes, input, target, cache, journal, roots, adapted_to)
    assessed = assessment.assess(job, adapted, labelled)
    strip = pictures.gather(job, adapted, assessed.changed, labelled)

    journal.begin("publishing", trained)
    aside = artifacts.begin(folder)
    outputs = export.make(job, adapted, aside)
    if strip is not None:
        (aside / pictures.SPRITE).write_bytes(strip.sprite())
    document = report.build(job, assessed.figures, outputs, strip, versions())
    return artifacts.publish(job, adapted, aside, document, report.render(document, job.series, strip))


def _weights(spec: AdaptationSpec) -> list[Path]:
    """The files of the source models. Raises Problem."""
    found = []
    for place, model in enumerate((spec.source_model, *spec.further_source_models)):
        pointer = f"/further_source_models/{place - 1}/uri" if place else "/source_model/uri"
        path = Disk(None).find(model.uri, pointer)
        if not path.is_file():
            raise Problem("reference_missing", f"{model.uri!r} is not a file", pointer=pointer)
        found.append(path)
    return found


def _source(spec: AdaptationSpec, files: list[Path]) -> Classifier | Ensemble:
    """One source model, or several as one, each with its classes in the order of the first. Raises Problem."""
    classes = spec.source_model.classes
    members = []
    for place, (model, path) in enumerate(zip((spec.source_model, *spec.further_source_models), files, strict=True)):
        try:
            members.append(source_model.reordered(source_model.load(model, path), [model.classes.index(c) for c in classes]))
        except Problem as problem:
            if place and problem.pointer is not None:
                problem.pointer = problem.pointer.replace("/source_model", f"/further_source_models/{place - 1}", 1)
            raise
    return members[0] if len(members) == 1 else Ensemble(members)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": metadata.version("timm"),  # importing it takes a second, and many jobs need none of it
        "numpy": np.__version__,
    }


def _kept_precision(saved: Precision, spec: AdaptationSpec, where: torch.device) -> Precision:
    """The checkpoint's, unless it was measured on another kind of machine: where bf16 is emulated a step may take a minute."""
    asked = spec.settings.precision != "auto"
    return saved if saved == "fp32" or asked or device.has_bf16(where) else "fp32"


def _precision(
    spec: AdaptationSpec, trained: Collection[Phase], source: Classifier | Ensemble, where: torch.device, journal: Journal
) -> Precision:
    if spec.settings.precision != "auto":
        return spec.settings.precision
    if not trained:
        return "fp32"
    size, batch_size = spec.source_model.input.size, spec.settings.transfer.batch_size
    precision, ratio = device.measure_precision(source, where, size, batch_size)
    precision = "bf16" if parallel.agreed(precision == "bf16") else "fp32"
    found = f"bf16 is {ratio:.2f} times as fast as fp32" if ratio else "there is no bf16"
    journal(Logged(message=f"precision {precision}: {found} on {device.name(where)}"))
    return precision


def _together(spec: AdaptationSpec, trained: Collection[Phase], target: Images, pairs: Pairs | None, journal: Journal) -> bool:
    """Whether this process is to work on the job: each of several, or the first alone where they can't share it."""
    if (several := parallel.size()) == 1:
        return True
    if (why := _shareable(spec, trained, target, pairs)) is None:
        journal(Logged(message=f"{several} processes work on it, each on a share of every batch"))
        return True
    parallel.end()
    journal(Logged(message=f"one process of {several} works on it: {why}"))
    return parallel.first()


def _shareable(spec: AdaptationSpec, trained: Collection[Phase], target: Images, pairs: Pairs | None) -> str | None:
    """Why several processes would not do what one does, if so. trained: the phases in which the method trains."""
    s, several = spec.settings, parallel.size()
    if not trained:
        return "nothing is trained"
    if "transferring" in trained and s.transfer.batch_norm == "batch":
        return "each would normalise by its own share of the batch (transfer.batch_norm)"
    if "bridging" in trained and s.bridging.translator == "paper":
        return "each would normalise by its own share of the batch in the paper's translator"
    least = min(s.transfer.batch_size, s.bridging.batch_size, len(target), len(pairs) if pairs else len(target))
    return f"batches of {least} images are too small to be shared" if least < 2 * several else None


def _placed(spec: AdaptationSpec, anchor: Path | None) -> AdaptationSpec:
    """References to what was fetched, as the paths where it lies; and relative ones, as absolute paths below the anchor, if
    there is one."""

    def place(reference):
        if reference is not None and (fetched := spec.fetched.get(reference.uri)) is not None:
            return reference.model_copy(update={"uri": fetched.path})
        if reference is None or anchor is None or urlsplit(reference.uri).scheme or Path(reference.uri).is_absolute():
            return reference
        return reference.model_copy(update={"uri": str(anchor / reference.uri)})

    sets = {name: place(getattr(spec.data, name)) for name in ("target", "pairs", "evaluation")}
    further = tuple(place(model) for model in spec.further_source_models)
    return spec.model_copy(
        update={
            "source_model": place(spec.source_model),
            "further_source_models": further,
            "data": spec.data.model_copy(update=sets),
        }
    )


def _outcome_of(spec: AdaptationSpec) -> dict[str, Any]:
    """All that the outcome depends on: not the name, the labels, the priority, or where files lie; what was fetched, its images tell."""
    left_out = {
        "name": True,
        "labels": True,
        "priority": True,
        "source_model": {"uri"},
        "further_source_models": {"__all__": {"uri"}},
        "fetched": True,
    }
    document = spec.model_dump(mode="json", exclude=left_out)
    for reference in document["data"].values():
        if isinstance(reference, dict):
            reference["uri"] = shown(reference["uri"])
    return document


def _fingerprint(target: Images, pairs: Pairs | None) -> str:
    """Of the images as read: their names, shapes and scaling."""
    document = [[images.names, list(images.array.shape), images.low, images.high] for images in _sets(target, pairs)]
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _digest(target: Images, pairs: Pairs | None) -> str:
    """Of the bytes of the images' files."""
    return " ".join(images.sha256 for images in _sets(target, pairs))


def _sets(target: Images, pairs: Pairs | None) -> list[Images]:
    return [target, *((pairs.source, pairs.target) if pairs else ())]


def _others(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether the checkpoint is of other images. One of a version that did not look at their bytes has no `images`."""
    return ours["data"] != theirs["data"] or theirs.get("images", ours["images"]) != ours["images"]


def _same_job(ours: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    part = "another source model" if ours["source_model"] != theirs["source_model"] else None
    if (pointer := _difference(ours["spec"], theirs["spec"])) is not None:
        part = f"another specification (it differs at {pointer})"
    if part:
        raise Problem("invalid_request", f"{folder.name}/ holds the work of {part}; give --out a folder of its own")


def _difference(ours: Any, theirs: Any, at: str = "") -> str | None:
    """Where two specifications say different things of what both know, as a JSON pointer. What only one of them has is of another
    version of this program, in whose time a job that is being worked on now may have begun or may go on."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return None if ours == theirs else at
    found = (_difference(ours[key], theirs[key], f"{at}/{key}") for key in ours if key in theirs)
    return next((pointer for pointer in found if pointer is not None), None)
