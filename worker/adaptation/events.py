"""The child's whole vocabulary: one JSON object a line, told apart by `type`. No torch: the supervisor reads it too."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from app.errors import readable

Phase = Literal["preparing", "bridging", "transferring", "evaluating", "publishing"]


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _can_be_said(cls, given: Any) -> Any:
        return readable(given)


class Started(_Event):
    """The process is up. resumed_from: phase and step of the checkpoint that it goes on from."""

    type: Literal["started"] = "started"
    device: str
    device_name: str
    precision: str
    versions: dict[str, str]
    resumed_from: tuple[Phase, int] | None = None


class PhaseBegan(_Event):
    type: Literal["phase"] = "phase"
    phase: Phase


class DataRead(_Event):
    """What was found under one reference and how its values become [0, 1]."""

    type: Literal["data"] = "data"
    reference: Literal["target", "pairs/source", "pairs/target", "evaluation"]
    images: int
    broken: int
    broken_names: list[str]
    """The first few."""
    bits: int
    channels: int
    smallest: tuple[int, int]
    """Width and height of the image with the fewest pixels."""
    largest: tuple[int, int]
    scaling: str
    """In words: "16-bit millimetres, 0 to 10000 becomes 0 to 1"."""
    no_reading_share: float
    """Share of the pixels that had no reading and were filled from their neighbours."""


class Progress(_Event):
    model_config = ConfigDict(allow_inf_nan=False)

    type: Literal["progress"] = "progress"
    phase: Phase
    step: int
    of: int
    fraction: float = Field(ge=0, le=1)
    """Of the whole job."""
    eta_s: float | None
    images_per_s: float | None = None
    losses: dict[str, float] = {}


class Metric(_Event):
    """One point of a series, such as `bridging/L_rec` at a step, or `evaluation/accuracy`."""

    type: Literal["metric"] = "metric"
    series: str
    step: int
    value: float


class Warned(_Event):
    """Something to look at that does not end the job, such as a collapsed stage or broken images."""

    type: Literal["warning"] = "warning"
    code: str
    message: str
    data: dict[str, Any] = {}


class Logged(_Event):
    type: Literal["log"] = "log"
    message: str


class Checkpointed(_Event):
    type: Literal["checkpoint"] = "checkpoint"
    phase: Phase
    step: int


class Stopped(_Event):
    """Asked to stop (SIGTERM): a checkpoint is written and the process exits with code 0."""

    type: Literal["stopped"] = "stopped"
    phase: Phase
    step: int


class Failed(_Event):
    """The job cannot succeed: a problem of app.errors, as its document. The process exits with code 1."""

    type: Literal["failed"] = "failed"
    problem: dict[str, Any]


class OutputFile(_Event):
    name: str
    media_type: str


class Result(_Event):
    """Everything is under `artifacts/` of the output folder. Without this event there is no success."""

    type: Literal["result"] = "result"
    artifacts: list[OutputFile]
    summary: dict[str, Any]
    """What GET /jobs/{id} shows as `result`: verdict, accuracies where labels were given, label-free evidence."""


Event = Annotated[
    Started | PhaseBegan | DataRead | Progress | Metric | Warned | Logged | Checkpointed | Stopped | Failed | Result,
    Field(discriminator="type"),
]
_adapter: TypeAdapter[Event] = TypeAdapter(Event)


def parse(line: str | bytes) -> Event:
    """One line as an event. Raises pydantic.ValidationError on anything else."""
    return _adapter.validate_json(line)
