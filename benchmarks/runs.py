"""One run: a process of the engine, as the worker would start it, and what came of it as lines of results.jsonl.

A folder of its own holds run.json (what it is), spec.json (what the engine is given), log, and out/ (what the engine makes).
A run that was killed goes on from the engine's own checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.spec import AdaptationSpec
from benchmarks import published
from benchmarks.datasets import Dataset
from benchmarks.environment import ROOT, environment
from benchmarks.results import Line
from benchmarks.source_models import Source
from benchmarks.variants import COMPARE, ORACLE, Variant
from worker.adaptation.events import Failed, Progress, parse

going: set[subprocess.Popen[bytes]] = set()
"""What runs now, so that whoever is stopped can stop it: a run writes its checkpoint then."""


@dataclass(frozen=True)
class Run:
    dataset: Dataset
    name: str
    variant: Variant
    seed: int
    source: Source
    precision: str
    work: Path
    others: tuple[Source, ...] = ()
    """Further source models."""

    def spec(self) -> AdaptationSpec:
        """What the engine is given. The oracle, which is not the engine's, takes data, seed and budget from it alone."""
        budget = {
            "precision": self.precision,
            "bridging": {"steps": self.dataset.steps, "batch_size": self.dataset.bridging_batch},
            "transfer": {"epochs": self.dataset.epochs},
        }
        settings = budget | self.variant.settings
        for group in ("bridging", "transfer"):
            settings[group] = budget[group] | self.variant.settings.get(group, {})
        document = {
            "source_model": {**self.dataset.source_model, "uri": str(self.source.weights)},
            "further_source_models": [{**self.dataset.source_model, "uri": str(other.weights)} for other in self.others],
            "data": self.dataset.data,
            "method": "source_only" if self.variant.method == ORACLE else self.variant.method,
            "settings": settings,
            "seed": self.seed,
        }
        return AdaptationSpec.model_validate_json(json.dumps(document))

    def digest(self) -> str:
        """Of method and settings, and of the source models where there are several: the same for every seed."""
        files = {"source_model": {"uri"}, "further_source_models": {"__all__": {"uri"}}}
        left_out = files | {"name": True, "labels": True, "seed": True, "data": True}
        document = [self.variant.method, self.spec().model_dump(mode="json", exclude=left_out)]
        if self.others:
            document.append(sorted(source.sha256 for source in (self.source, *self.others)))
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]

    def head(self) -> Line:
        """The part of a line that is known before the run."""
        return {
            "data": self.dataset.name,
            "variant": self.name,
            "method": self.variant.method,
            "seed": self.seed,
            "digest": self.digest(),
            "settings": self.spec().settings.model_dump(mode="json"),
            "source": {
                "sha256": self.source.sha256,
                "accuracy": self.source.accuracy,
                "balanced_accuracy": self.source.balanced_accuracy,
            },
            **({"others": [other.sha256 for other in self.others]} if self.others else {}),
        }

    def folder(self) -> Path:
        name = "".join(letter if letter.isalnum() else "_" for letter in self.name)
        return self.work / "runs" / self.dataset.name / f"{name}-{self.seed}-{self.digest()}-{self.source.sha256[:6]}"


def execute(run: Run, threads: int, jobs: int) -> list[Line]:
    """The run's line and those of the rows that it gives besides, all with `error` None; or one line that says the error."""
    folder, out = run.folder(), run.folder() / "out"
    out.mkdir(parents=True, exist_ok=True)
    classes_of = {path.relative_to(run.dataset.target).as_posix(): "" for path in run.dataset.target.rglob("*.*")}
    classes_of = {name: run.dataset.class_of(name) for name in classes_of if not name.startswith(".")}
    twins = run.dataset.twins and str(run.dataset.twins)
    (folder / "run.json").write_text(json.dumps({**run.head(), "classes_of": classes_of, "twins": twins}, indent=1))
    (folder / "spec.json").write_text(run.spec().model_dump_json(indent=1))
    begun_before = (out / "checkpoint.pt").exists() or (out / "artifacts").exists()
    module = (
        ["benchmarks.oracle", str(folder)] if run.variant.method == ORACLE else ["worker.adaptation", str(folder / "spec.json")]
    )
    environ = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    began = time.monotonic()
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", *module, "--out", str(out)]
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=log)  # noqa: S603
        going.add(process)
        code, peak = watch(process)
        going.discard(process)
    # A run in several parts has no wall time of its own; the clocks of its stages go on.
    total = None if begun_before else round(time.monotonic() - began, 2)
    peak = None if begun_before else peak
    around = {"environment": environment(threads, jobs) | {"precision": run.precision}, "error": None}
    if code != 0 or not (out / "artifacts/report.json").is_file():
        return [run.head() | around | {"error": _why(out, code)}]
    try:
        return [run.head() | around | found for found in _measured(run, out, total, peak)]
    except RuntimeError as error:  # the artifacts are not what the report says: the others should still be run
        return [run.head() | around | {"error": str(error)}]


def tidy(run: Run) -> None:
    """Once the run's lines are written: of a method's run its artifacts are kept, of an ablation's the report alone."""
    out = run.folder() / "out"
    if run.name in COMPARE:
        (out / "checkpoint.pt").unlink(missing_ok=True)
        shutil.rmtree(out / "cache", ignore_errors=True)
    else:
        (out / "artifacts/report.json").replace(run.folder() / "report.json")
        shutil.rmtree(out)


def watch(process: subprocess.Popen[bytes]) -> tuple[int, int | None]:
    """Waits. Returns the exit code, and the peak of resident memory in MiB where the kernel tells it. What a process learns of
    itself by getrusage will not do: on Linux that counts the memory of whoever started it as its own."""
    status, peak = Path(f"/proc/{process.pid}/status"), None
    while True:
        with suppress(OSError):  # it has just ended
            told = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
            peak = max([peak or 0, *(int(kibibytes) // 2**10 for kibibytes in told)]) or None
        try:
            return process.wait(0.25), peak
        except subprocess.TimeoutExpired:
            continue


def _measured(run: Run, out: Path, total: float | None, peak: int | None) -> list[Line]:
    report = json.loads((out / "artifacts/report.json").read_text(encoding="utf-8"))
    if run.variant.method == ORACLE:
        return [report | {"seconds": report["seconds"] | {"total": total}, "peak_mib": _peaks(peak, {})}]
    classes_of = json.loads((out.parent / "run.json").read_text())["classes_of"]
    transductive = published.transductive(run.spec(), out, classes_of)
    rates = _rates(out)
    seconds = {phase: round(value, 2) for phase, value in report["device"]["seconds"].items()}
    target = report["evaluation"]["target"]
    rows = [
        {
            **_accuracies(report, transductive, "adapted"),
            "seconds": seconds | {"total": total},
            "images_per_s": rates,
            "peak_mib": _peaks(peak, report["device"]["peak_mebibytes"]),
            "verdict": report["verdict"],
            "teacher_student_agreement": target["teacher_student_agreement"],
        }
    ]
    for name, model in run.variant.also.items():
        # What the longer run needed in all says nothing of this row: of its own it has the one stage.
        also = {
            "variant": name,
            "method": name,
            "digest": Run(run.dataset, name, Variant(name), run.seed, run.source, run.precision, run.work).digest(),
            "part_of": run.name,
            **_accuracies(report, transductive, model),
            "seconds": {"bridging": seconds.get("bridging"), "total": None},
            "images_per_s": {phase: rate for phase, rate in rates.items() if phase == "bridging"},
            "peak_mib": None,
            "verdict": None,
            "teacher_student_agreement": None,
        }
        rows.append(also)
    return rows


def _peaks(host: int | None, reported: dict[str, int]) -> dict[str, int | None]:
    return {"host": host, "device": reported.get("device")}


def _accuracies(report: dict[str, Any], transductive: dict[str, dict[str, Any]], model: str) -> Line:
    def both(found: dict[str, Any]) -> dict[str, float]:
        return {measure: found[measure] for measure in ("accuracy", "balanced_accuracy")}

    return {
        "held_out": both(report["evaluation"]["labelled"][model]),
        "transductive": both(transductive[model]),
        "effective_classes": report["evaluation"]["target"][model]["effective_classes"],
    }


def _rates(out: Path) -> dict[str, float]:
    """Images a second through the training loops, as each stage said last."""
    events = (parse(line) for line in (out / "events.jsonl").read_bytes().splitlines())
    told = {event.phase: event.images_per_s for event in events if isinstance(event, Progress) and event.images_per_s}
    return {phase: round(rate, 1) for phase, rate in told.items() if phase != "evaluating"}


def _why(out: Path, code: int) -> str:
    log = out / "events.jsonl"
    failed = (
        [event for line in log.read_bytes().splitlines() if isinstance(event := parse(line), Failed)] if log.is_file() else []
    )
    if failed:
        return f"{failed[-1].problem['code']}: {failed[-1].problem['detail']}"
    return f"the process ended with exit code {code} and no result; {out.parent.name}/log may say why"
