"""What can go wrong, as one tree.

ModalBridgeError
├── ConnectionFailed        nothing answers at the address, the connection broke, or a gateway answered in the service's place
├── Timeout                 no answer within the timeout, or a job was not over in the time that `wait` was given
├── UnexpectedAnswer        something answered that is not this service, or is a newer one than this client can read
├── DigestMismatch          a file came whole, and is not the one the service has
├── InvalidSignature        `verify` was given a message that is not the service's, was changed on its way, or is old
├── JobEnded                `wait` saw the job end without a model; `job` is the job
│   ├── JobFailed           `problem` says why and what to do: the ProblemError of the job's own `error`
│   └── JobCancelled
└── ProblemError            the service refused: code, title, status, detail, pointer, remedy, request_id, document
    ├── Invalid             the request must be changed: 400, 403, 412, 413, 415, 416, 422
    │   ├── UnknownHost         403: the operator has not named the host that this address has
    │   ├── InvalidReference    a reference to data: reference_*, layout_mismatch, no_images, too_few_images, ...
    │   ├── InvalidArchive      an archive of images: archive_format, archive_damaged, archive_unsafe
    │   └── InvalidSourceModel  the file of weights, or what is said of it: source_model_*, unsafe_pickle, ...
    ├── NotFound            404: no such job, source model, dataset, artifact or address
    ├── Conflict            409: the state of things does not allow it
    │   ├── IdempotencyConflict, JobActive, JobFinished, JobNotSucceeded, NotRetryable, SourceModelInUse,
    │   │   DatasetInUse, TooManyWebhooks, WebhookGone
    └── ServiceFault        5xx: the request may be right, the service could not
        ├── NotReady, Unavailable, StorageFull, QuotaExceeded, Internal

Programs are written against the class or against `code`, which is stable; the service's page of errors lists every code. A
code that is younger than this client is the class of its status. A file that would be overwritten is Python's own
FileExistsError, and a file of weights that is not there its FileNotFoundError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modalbridge.results import JobState


class ModalBridgeError(Exception):
    """Every error of this package."""


class ConnectionFailed(ModalBridgeError):
    """Nothing answers at the address, the connection broke, or a gateway answered in the service's place."""


class Timeout(ModalBridgeError):
    """No answer within the timeout; or a job was not over in the time that `wait` was given, and goes on."""


class UnexpectedAnswer(ModalBridgeError):
    """Something answered that is not this service, or that this client is too old to read."""


class DigestMismatch(ModalBridgeError):
    """A file came whole, and its sha256 is not the one that the service gave. Nothing of it was kept."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        super().__init__(f"{name}: its sha256 is {found}, the service gave {expected}; nothing was kept, download it again")
        self.name, self.expected, self.found = name, expected, found


class InvalidSignature(ModalBridgeError):
    """A webhook's message is not the service's, was changed on its way, or is too old. Answer it with 400, and do nothing."""


class ProblemError(ModalBridgeError):
    """The service's problem document (RFC 9457). document: all of it, members that this client does not know included."""

    def __init__(self, document: Mapping[str, Any], status: int = 0) -> None:
        self.document = dict(document)
        self.code = str(document.get("code", "unknown"))
        self.title = str(document.get("title", ""))
        self.status = _status(document, status)
        self.detail = str(document.get("detail", ""))
        self.pointer: str | None = document.get("pointer")
        self.remedy = str(document.get("remedy", ""))
        self.request_id: str | None = document.get("request_id")
        where = f" (at {self.pointer})" if self.pointer else ""
        super().__init__(f"{self.title or self.code}: {self.detail}{where}. {self.remedy}".rstrip(". ") + ".")


class Invalid(ProblemError):
    """The request must be changed before it is sent again."""


class InvalidReference(Invalid):
    """A reference to data leads nowhere, may not be read, or holds something else than it says."""


class InvalidArchive(Invalid):
    """The archive cannot be read, or holds an entry that is not taken."""


class InvalidSourceModel(Invalid):
    """The file of weights, or what is said of it."""


class UnknownHost(Invalid):
    """The service is not called by the host's name that the client was given, as far as its operator has said."""


class NotFound(ProblemError):
    """No such job, source model, artifact or address."""


class Conflict(ProblemError):
    """The state of things does not allow it."""


class IdempotencyConflict(Conflict):
    """The idempotency key was used for another request."""


class JobActive(Conflict):
    """The job is not over: cancel it first."""


class JobFinished(Conflict):
    """The job is over: nothing is left to cancel."""


class JobNotSucceeded(Conflict):
    """The job has published no model."""


class NotRetryable(Conflict):
    """The job neither failed nor was cancelled."""


class SourceModelInUse(Conflict):
    """A job still names the source model."""


class DatasetInUse(Conflict):
    """A job still names the dataset."""


class TooManyWebhooks(Conflict):
    """One that is no longer needed must be deleted first."""


class WebhookGone(Conflict):
    """Its address answered 410, and nothing is sent to it any more."""


class ServiceFault(ProblemError):
    """The request may be right; the service could not."""


class NotReady(ServiceFault):
    """A part of the service is missing; `document["checks"]` says which."""


class Unavailable(ServiceFault):
    """The database does not answer."""


class StorageFull(ServiceFault):
    """The service has no space left."""


class QuotaExceeded(ServiceFault):
    """Nothing more may be stored: delete what is no longer needed."""


class Internal(ServiceFault):
    """A fault of the service itself; `request_id` finds it in the operator's log."""


class JobEnded(ModalBridgeError):
    """The job is over and has no model. job: as it ended."""

    def __init__(self, job: JobState, message: str) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobEnded):
    """problem: why, and what to do."""

    def __init__(self, job: JobState) -> None:
        self.problem = of_document(job.error or {"code": "unknown", "detail": "the job gives no reason"}, 0)
        super().__init__(job, f"{job.id} failed: {self.problem}")


class JobCancelled(JobEnded):
    def __init__(self, job: JobState) -> None:
        super().__init__(job, f"{job.id} was cancelled")


BY_CODE: dict[str, type[ProblemError]] = {
    "unknown_host": UnknownHost,
    "idempotency_conflict": IdempotencyConflict,
    "job_active": JobActive,
    "job_finished": JobFinished,
    "job_not_succeeded": JobNotSucceeded,
    "not_retryable": NotRetryable,
    "source_model_in_use": SourceModelInUse,
    "dataset_in_use": DatasetInUse,
    "too_many_webhooks": TooManyWebhooks,
    "webhook_gone": WebhookGone,
    "storage_full": StorageFull,
    "quota_exceeded": QuotaExceeded,
    "not_ready": NotReady,
    "database_unavailable": Unavailable,
    "internal": Internal,
    **dict.fromkeys(
        (
            "reference_scheme", "reference_outside_roots", "reference_forbidden", "reference_changed", "reference_too_large",
            "reference_missing", "reference_unreadable", "layout_mismatch", "no_images", "too_few_images", "pairs_unmatched",
            "unknown_class", "too_many_broken_images",
        ),
        InvalidReference,
    ),
    **dict.fromkeys(("archive_format", "archive_damaged", "archive_unsafe"), InvalidArchive),
    **dict.fromkeys(
        (
            "missing_file", "empty_file", "source_model_format", "source_model_truncated", "unsafe_pickle", "archive_bomb",
            "unknown_architecture", "unsupported_architecture", "source_model_mismatch", "source_model_not_finite",
            "input_too_small",
        ),
        InvalidSourceModel,
    ),
}  # fmt: skip
BY_STATUS: dict[int, type[ProblemError]] = {404: NotFound, 409: Conflict}


def of_document(document: Mapping[str, Any], status: int) -> ProblemError:
    """The error of a problem document: by its code, or by its status where the code is not known here."""
    status = _status(document, status)
    by_range = ServiceFault if status >= 500 else Invalid
    kind = BY_CODE.get(str(document.get("code")), BY_STATUS.get(status, by_range))
    return kind(document, status)


def _status(document: Mapping[str, Any], status: int) -> int:
    """The document's own, if it is a number: the member only repeats the answer's (RFC 9457, 3.1.2), and gateways write what they like."""
    given = document.get("status")
    return given if type(given) is int else status
