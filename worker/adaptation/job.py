"""A job as its method sees it: what it is given, where it reports, and what it keeps to go on after a death."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.spec import AdaptationSpec
from worker.adaptation import checkpoint, parallel
from worker.adaptation.device import Precision
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.events import Checkpointed, Metric, Phase, Progress
from worker.adaptation.image_sets import Images, Pairs
from worker.adaptation.journal import Journal
from worker.adaptation.source_model import Classifier
from worker.adaptation.translator import Translator


@dataclass
class Adapted:
    """What a method made: the model, fed with T's output where there is a translator that it needs (`translated`). teacher: what else
    is fed with T's output; None: the source model."""

    classifier: Classifier | Ensemble
    translator: Translator | None = None
    translated: bool = False
    teacher: Classifier | Ensemble | None = None


@dataclass
class Job:
    """finished: results of the stages that are done, by phase. series: every metric so far, name -> [[step, value]].
    work: what each phase costs, in forward passes of one image, for progress and ETA; one that ended early, the share of it that was
    done."""

    spec: AdaptationSpec
    folder: Path
    journal: Journal
    device: torch.device
    precision: Precision
    source: Classifier | Ensemble
    target: Images
    pairs: Pairs | None
    identity: dict[str, Any]
    checkpoint_every: float
    work: dict[Phase, float]
    finished: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[list[float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, Any] | None = None
    """The stage's own part of the checkpoint that this run goes on from."""
    _saved_at: float = field(default_factory=time.monotonic)
    _spoke_at: float = 0.0

    def record(self, series: str, step: int, value: float) -> None:
        """One point of a series: an event, and a row of metrics.json."""
        self.series.setdefault(series, []).append([step, value])
        self.journal(Metric(series=series, step=step, value=value))

    def progress(
        self, phase: Phase, step: int, of: int, rate: float | None, losses: dict[str, float], images_per_s: float | None = None
    ) -> None:
        """About once a second. rate: work units a second as measured in this phase by this process. The fraction is of
        the work of the whole job, between 2 % for reading and 1 % for publishing."""
        now = time.monotonic()
        if now - self._spoke_at < 1 and step < of:
            return
        self._spoke_at = now
        phases: list[Phase] = ["bridging", "transferring", "evaluating"]
        place = phases.index(phase)
        work = {p: cost * self.finished.get(p, {}).get("share", 1.0) for p, cost in self.work.items()}
        here = work.get(phase, 0.0) * step / max(of, 1)
        before = sum(work.get(p, 0.0) for p in phases[:place])
        total = sum(work.values()) or 1.0
        eta = (total - before - here) / rate if rate else None
        fraction = 0.02 + 0.97 * (before + here) / total
        self.journal(
            Progress(phase=phase, step=step, of=of, fraction=fraction, eta_s=eta, images_per_s=images_per_s, losses=losses)
        )

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.checkpoint_every

    def save(self, phase: Phase, step: int, stage: dict[str, Any] | None = None) -> None:
        """Of several processes the first does."""
        if not parallel.first():
            return
        checkpoint.save(
            self.folder,
            {
                "identity": self.identity,
                "precision": self.precision,
                "phase": phase,
                "step": step,
                "stage": stage,
                "finished": self.finished,
                "series": self.series,
                "seconds": self.seconds,
                "warnings": [warning.model_dump(mode="json") for warning in self.journal.warnings],
            },
        )
        self._saved_at = time.monotonic()
        self.journal(Checkpointed(phase=phase, step=step))
