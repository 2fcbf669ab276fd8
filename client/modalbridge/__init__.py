"""The Python client of ModalBridge. `modalbridge.errors` has the tree of what can go wrong."""

from modalbridge.async_client import AsyncClient, AsyncDatasets, AsyncJob, AsyncJobs, AsyncSourceModels
from modalbridge.client import Client, Datasets, Job, Jobs, SourceModels
from modalbridge.errors import (
    Conflict,
    ConnectionFailed,
    DatasetInUse,
    DigestMismatch,
    IdempotencyConflict,
    Internal,
    Invalid,
    InvalidArchive,
    InvalidReference,
    InvalidSourceModel,
    JobActive,
    JobCancelled,
    JobEnded,
    JobFailed,
    JobFinished,
    JobNotSucceeded,
    ModalBridgeError,
    NotFound,
    NotReady,
    NotRetryable,
    ProblemError,
    QuotaExceeded,
    ServiceFault,
    SourceModelInUse,
    StorageFull,
    Timeout,
    TooManyWebhooks,
    Unavailable,
    UnexpectedAnswer,
    WebhookGone,
)
from modalbridge.requests import (
    Data,
    Export,
    Images,
    Input,
    JobRequest,
    Pairs,
    Scaling,
    SourceModelDescription,
    StoredSourceModel,
    Target,
)
from modalbridge.results import Artifact, Dataset, Event, Health, JobState, MetricPoint, Progress, SourceModel
from modalbridge.retries import Retries
from modalbridge.wire import VERSION

__version__ = VERSION
__all__ = [
    "Artifact", "AsyncClient", "AsyncDatasets", "AsyncJob", "AsyncJobs", "AsyncSourceModels", "Client", "Conflict", "ConnectionFailed", "Data",
    "Dataset", "DatasetInUse", "Datasets", "DigestMismatch", "Event", "Export", "Health", "IdempotencyConflict", "Images", "Input", "Internal", "Invalid", "InvalidArchive", "InvalidReference",
    "InvalidSourceModel", "Job", "JobActive", "JobCancelled", "JobEnded", "JobFailed", "JobFinished", "JobNotSucceeded",
    "JobRequest", "JobState", "Jobs", "MetricPoint", "ModalBridgeError", "NotFound", "NotReady", "NotRetryable", "Pairs", "ProblemError",
    "Progress", "QuotaExceeded", "Retries", "Scaling", "ServiceFault", "SourceModel", "SourceModelDescription", "SourceModelInUse", "SourceModels",
    "StorageFull", "StoredSourceModel", "Target", "Timeout", "TooManyWebhooks", "Unavailable", "UnexpectedAnswer", "WebhookGone", "__version__",
]  # fmt: skip
