"""The Python client of ModalBridge. `modalbridge.errors` has the tree of what can go wrong."""

from modalbridge.async_client import AsyncClient, AsyncDatasets, AsyncJob, AsyncJobs, AsyncSourceModels, AsyncWebhooks
from modalbridge.client import Client, Datasets, Job, Jobs, SourceModels, Webhooks
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
    InvalidSignature,
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
    UnknownHost,
    WebhookGone,
)
from modalbridge.receiving import verify
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
from modalbridge.results import (
    Artifact,
    Dataset,
    Delivery,
    Event,
    Health,
    JobState,
    MetricPoint,
    Progress,
    SourceModel,
    Webhook,
    WebhookMessage,
)
from modalbridge.retries import Retries
from modalbridge.wire import VERSION

__version__ = VERSION
__all__ = [
    "Artifact", "AsyncClient", "AsyncDatasets", "AsyncJob", "AsyncJobs", "AsyncSourceModels", "AsyncWebhooks", "Client", "Conflict",
    "ConnectionFailed", "Data", "Dataset", "DatasetInUse", "Datasets", "Delivery", "DigestMismatch", "Event", "Export", "Health",
    "IdempotencyConflict", "Images", "Input", "Internal", "Invalid", "InvalidArchive", "InvalidReference", "InvalidSignature",
    "InvalidSourceModel", "Job", "JobActive", "JobCancelled", "JobEnded", "JobFailed", "JobFinished", "JobNotSucceeded",
    "JobRequest", "JobState", "Jobs", "MetricPoint", "ModalBridgeError", "NotFound", "NotReady", "NotRetryable", "Pairs",
    "ProblemError", "Progress", "QuotaExceeded", "Retries", "Scaling", "ServiceFault", "SourceModel", "SourceModelDescription",
    "SourceModelInUse", "SourceModels", "StorageFull", "StoredSourceModel", "Target", "Timeout", "TooManyWebhooks", "Unavailable",
    "UnexpectedAnswer", "UnknownHost", "Webhook", "WebhookGone", "WebhookMessage", "Webhooks", "__version__", "verify",
]  # fmt: skip
