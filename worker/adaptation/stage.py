"""One trained stage of a job: its steps, clock, series and checkpoint. The loop itself stays in the method's file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from app.errors import Problem
from worker.adaptation import parallel
from worker.adaptation.events import Phase, Warned
from worker.adaptation.job import Job
from worker.adaptation.prefetch import prefetched
from worker.adaptation.randomness import seed_torch

LOG_EVERY = 10
Batch = TypeVar("Batch")


class Stage:
    """state: modules and optimisers by name. memory: further tensors and plain values that the loop reads and writes
    (best T, pseudo-labels); both are restored from the job's checkpoint if it was written in this stage."""

    def __init__(
        self, job: Job, phase: Phase, steps: int, state: dict[str, nn.Module | Optimizer], memory: dict[str, Any]
    ) -> None:
        self.job, self.phase, self.steps = job, phase, steps
        self.state, self.memory = state, memory
        self.step = 0
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.losses: dict[str, float] = {}
        if job.resumed is not None:
            self._restore(job.resumed)
            job.resumed = None
        self._first, self._images, self._began = self.step, 0, time.monotonic()
        self._spent = job.seconds.get(phase, 0.0)
        job.journal.begin(phase, self.step)

    def batches(self, make: Callable[[int], Batch]) -> Iterator[tuple[int, Batch]]:
        """(step, make(step)) for the steps still to do; the next batch is made in the background. Torch's generators are
        set for the step."""
        for step, batch in prefetched(make, range(self.step, self.steps)):
            seed_torch(self.job.spec.seed, self.phase if parallel.first() else f"{self.phase}/{parallel.rank()}", step)
            yield step, batch

    def decay(self, optimiser: Optimizer, lr: float, warmup: int = 0) -> None:
        """lr (1 + 10 p)^-0.75, p the progress of the stage; over the first `warmup` steps it comes up from 0. Source: SHOT's
        schedule, which is DANN's; the warm-up is ours, for Adam, whose first steps are as long as any. A group of parameters
        may have a `factor` of its own."""
        rise = min(1.0, (self.step + 1) / (warmup + 1))
        for group in optimiser.param_groups:
            group["lr"] = group.get("factor", 1.0) * rise * lr * (1 + 10 * self.step / self.steps) ** -0.75

    def advance(self, losses: dict[str, Tensor], images: int) -> None:
        """The end of a step: log, look for divergence, save, stop if asked. losses: scalars, detached here and read only
        at the log interval. Raises Problem training_diverged."""
        self.step += 1
        self.job.journal.step = self.step
        self._images += images * parallel.size()
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float().to(self.job.device)
        self.summed += 1
        if self.step % LOG_EVERY == 0 or self.step == self.steps:
            self._log()
        self._progress()
        if parallel.any_of(self.job.journal.stop_asked):
            self.save()
            self.job.journal.stop()
        if self.job.due():
            self.save()

    def record(self, name: str, value: float, step: int | None = None) -> None:
        self.job.record(f"{self.phase}/{name}", self.step if step is None else step, value)

    def finish(self, result: dict[str, Any]) -> None:
        """The stage is done, if before its last step: its result is kept in the checkpoint, and a resumed job does not enter it again."""
        self._clock()
        self.job.finished[self.phase] = result | {"steps": self.step, "share": self.step / self.steps}
        self.job.save(self.phase, self.step)
        if self.job.journal.stop_asked:
            self.job.journal.stop()

    def save(self) -> None:
        self._clock()
        self.job.save(
            self.phase,
            self.step,
            {
                "phase": self.phase,
                "step": self.step,
                "state": {name: part.state_dict() for name, part in self.state.items()},
                "memory": self.memory,
                "sums": self.sums,
                "summed": self.summed,
                "losses": self.losses,
            },
        )

    def _restore(self, saved: dict[str, Any]) -> None:
        for name, part in self.state.items():
            part.load_state_dict(saved["state"][name])
        self.memory.update(saved["memory"])
        self.step, self.summed, self.losses = saved["step"], saved["summed"], saved["losses"]
        self.sums = {name: value.to(self.job.device) for name, value in saved["sums"].items()}

    def _log(self) -> None:
        names = list(self.sums)
        means = (torch.stack([self.sums[name] for name in names]) / self.summed).tolist() if names else []
        self.losses = dict(zip(names, means, strict=True))
        self.sums, self.summed = {}, 0
        for name, value in self.losses.items():
            if not math.isfinite(value):
                message = f"{name} is {value} by step {self.step} of {self.phase}"
                self.job.journal(Warned(code="training_diverged", message=message, data={"loss": name, "step": self.step}))
                stage = "bridging" if self.phase == "bridging" else "transfer"
                raise Problem("training_diverged", message, pointer=f"/settings/{stage}/lr")
            self.record(name, value)

    def _progress(self) -> None:
        elapsed = time.monotonic() - self._began
        done = self.step - self._first
        rate = self.job.work.get(self.phase, 0.0) / self.steps * done / elapsed if elapsed > 0 else None
        self.job.progress(self.phase, self.step, self.steps, rate, self.losses, self._images / elapsed if elapsed > 0 else None)

    def _clock(self) -> None:
        self.job.seconds[self.phase] = self._spent + time.monotonic() - self._began
