"""report.json and report.html: what was done, with what data, how well, and whether to deploy it."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.layouts import SETS
from app.references import shown
from app.spec import AdaptationSpec, Format
from worker.adaptation.job import Job
from worker.adaptation.pictures import Strip
from worker.adaptation.verdict import judge

MODELS = {
    "source_only": "Source model as it is",
    "bridged": "Teacher: the source model behind T",
    "adapted": "Adapted model",
}
VERDICTS = {"deploy": "Deploy", "look_closer": "Look closer", "do_not_deploy": "Do not deploy"}
PICTURES = {
    "target": ("Target images", ", unlabelled"),
    "evaluation": ("Evaluation set", ", labelled"),
    "pair": (
        "Held-out pairs",
        " of other things than the classes: no answer is right, but each should be near the source model's answer to the RGB",
    ),
}
WIDTH, HEIGHT, MARGIN = 320, 150, 36


def build(
    job: Job, found: dict[str, Any], outputs: dict[Format, dict[str, Any]], strip: Strip | None, versions: dict[str, str]
) -> dict[str, Any]:
    """The report as a JSON document. found: figures of `assessment.assess`; outputs: of `export.make`. Its `summary` is what GET
    /jobs/{id} shows."""
    churn = job.series.get("transferring/churn", [])
    relevance = job.finished.get("bridging", {}).get("relevance")
    verdict, reasons = judge(found, churn, job.spec.method, len(job.spec.source_model.classes), relevance)
    labelled = found["labelled"]
    accuracy = None
    if labelled is not None:
        accuracy = {
            name: {measure: labelled[name][measure] for measure in ("accuracy", "balanced_accuracy")}
            for name in MODELS
            if name in labelled
        } | {"images": labelled["images"]}
    evidence = {key: value for key, value in found["target"].items() if key != "images"}
    stages = {phase: _stage(job, phase) for phase in ("bridging", "transferring") if phase in job.finished}
    return {
        "format": "modalbridge-report/1",
        "identity": job.identity,
        "summary": {
            "verdict": verdict,
            "reasons": [reason["what"] for reason in reasons],
            "accuracy": accuracy,
            "evidence": evidence,
            "pairs": found["pairs"],
            "outputs": outputs,
        },
        "verdict": verdict,
        "reasons": reasons,
        "name": job.spec.name,
        "method": job.spec.method,
        "seed": job.spec.seed,
        "source_model": job.spec.source_model.model_dump(mode="json", exclude={"uri"}),
        "further_source_models": [one.model_dump(mode="json", exclude={"uri"}) for one in job.spec.further_source_models],
        "settings": job.spec.settings.model_dump(mode="json"),
        "data": [event.model_dump(mode="json", exclude={"type"}) for event in job.journal.data_read.values()],
        "references": _references(job.spec),
        "stages": stages,
        "evaluation": found,
        "outputs": outputs,
        "pictures": strip.document() if strip is not None else None,
        "warnings": [event.model_dump(mode="json", exclude={"type"}) for event in job.journal.warnings],
        "device": {
            "kind": job.device.type,
            "precision": job.precision,
            "seconds": job.seconds,
            "peak_mebibytes": _peak(job.device),
        },
        "versions": versions,
    }


def _references(spec: AdaptationSpec) -> list[dict[str, str | None]]:
    """What each set was read from. version: of what was fetched, by its content; None: it lay on the disk."""
    named = {name: reference.uri for name in SETS if (reference := getattr(spec.data, name)) is not None}
    versions = {uri: fetched.version for uri, fetched in spec.fetched.items()}
    return [{"set": name, "uri": shown(uri), "version": versions.get(uri)} for name, uri in named.items()]


def _stage(job: Job, phase: str) -> dict[str, Any]:
    losses = {
        name.removeprefix(f"{phase}/"): values[-1][1] for name, values in job.series.items() if name.startswith(f"{phase}/")
    }
    kept = {
        key: job.finished[phase][key]
        for key in ("steps", "best_step", "score", "relevance", "inverted", "calibrated")
        if key in job.finished[phase]
    }
    return kept | {"last": losses}


def _peak(device: torch.device) -> dict[str, int]:
    peak = {"host": peak_bytes() // 2**20}
    return peak | ({"device": torch.cuda.max_memory_allocated(device) // 2**20} if device.type == "cuda" else {})


def peak_bytes() -> int:
    """The most memory that this process has held. On Linux by /proc: there, getrusage's figure begins with that of the process
    that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)[1]) * 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def render(report: dict[str, Any], series: dict[str, list[list[float]]], strip: Strip | None) -> str:
    """The report as one HTML page that asks for nothing from elsewhere. Every value is escaped."""
    environment = Environment(
        loader=PackageLoader("worker.adaptation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.filters["share"] = lambda value: f"{100 * value:.1f} %"
    charts = [chart(name, points) for name, points in series.items() if not name.startswith("evaluation/") and len(points) > 1]
    pictures = zip(strip.rows, strip.data_uris(), strict=True) if strip is not None else ()
    return environment.get_template("report.html").render(
        report=report, charts=charts, models=MODELS, verdicts=VERDICTS, pictures=by_kind(pictures), kinds=PICTURES
    )


def by_kind(pictures: Iterable[tuple[dict[str, Any], dict[str, str]]]) -> dict[str, list[tuple[dict[str, Any], dict[str, str]]]]:
    """Rows of the picture strip with the addresses of their tiles, by kind, in the order in which they came."""
    found: dict[str, list[tuple[dict[str, Any], dict[str, str]]]] = {}
    for row, tiles in pictures:
        found.setdefault(row["kind"], []).append((row, tiles))
    return found


def figure(value: float | None) -> str:
    """Four significant digits; a dash for nothing.

    >>> figure(0.123456), figure(None), figure(12)
    ('0.1235', '–', '12')
    """
    return "–" if value is None else f"{value:.4g}"


def chart(name: str, points: list[list[float]]) -> dict[str, Any]:
    """A series as the coordinates of an SVG polyline, with the ends of its axes."""
    steps, values = [point[0] for point in points], [point[1] for point in points]
    low, high = min(values), max(values)
    width, height = WIDTH - MARGIN - 8, HEIGHT - 2 * 20
    x = [MARGIN + width * (step - steps[0]) / ((steps[-1] - steps[0]) or 1) for step in steps]
    y = [20 + height * (1 - (value - low) / ((high - low) or 1)) for value in values]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return {
        "name": name,
        "line": line,
        "low": low,
        "high": high,
        "first": int(steps[0]),
        "last": int(steps[-1]),
        "end": values[-1],
    }
