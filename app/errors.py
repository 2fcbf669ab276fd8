"""The one closed table of what can go wrong: code, HTTP status, title, what to do.

Pure Python: the engine raises the same codes that the front end answers with. A Problem is raised where its cause is
known and rendered in one place: app/problems.py for HTTP, the engine's `failed` event for a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Code:
    status: int
    title: str
    remedy: str


CODES: dict[str, Code] = {
    # the request itself
    "invalid_request": Code(422, "The request is not valid", "Correct the field that `pointer` names; /docs shows every field."),
    "unknown_field": Code(422, "A field is not known", "Remove it, or spell it as the nearest known field that `detail` names."),
    "malformed_json": Code(400, "The body is not JSON", "Send one JSON object, encoded as UTF-8."),
    "malformed_multipart": Code(
        400,
        "The multipart body cannot be read",
        "Send multipart/form-data as RFC 7578 has it, with the parts that the endpoint names.",
    ),
    "unsupported_media_type": Code(
        415, "This content type is not accepted here", "Send application/json or multipart/form-data."
    ),
    "payload_too_large": Code(
        413,
        "The upload is larger than this service takes",
        "Send a smaller file, or ask the operator to raise the limit that `detail` names.",
    ),
    "missing_file": Code(
        422, "The file part is missing", "Add the part that `detail` names, or refer to a stored source model by its id."
    ),
    "empty_file": Code(422, "The file is empty", "Check the file that was sent: it has 0 bytes."),
    "invalid_cursor": Code(
        422, "The cursor is not one of ours", "Pass `next` of the previous page unchanged, or leave `after` out."
    ),
    "not_found": Code(404, "Nothing is here under this name", "Check the address and the id."),
    "method_not_allowed": Code(405, "The address does not take this method", "See /docs for what it takes."),
    "cross_origin": Code(
        403,
        "The request came from the page of another site",
        "Send it from the dashboard, or from a program that is no browser. A proxy before the service must pass the Host header on as the browser sent it.",
    ),
    "unknown_host": Code(
        403,
        "The service is not called by this name",
        "Use the address that the operator gives; or ask them to name this host in MODALBRIDGE_HOSTS.",
    ),
    "range_not_satisfiable": Code(
        416, "The range lies outside the file", "Ask for a range below the size that Content-Range names."
    ),
    "precondition_failed": Code(
        412,
        "The file is another than If-Match names, or newer than If-Unmodified-Since",
        "Leave the header out, or give it what `detail` names.",
    ),
    "idempotency_conflict": Code(
        409,
        "The Idempotency-Key was used for another request",
        "Use a new key for a new request, or send the very same body again.",
    ),
    "webhook_url": Code(
        422,
        "The address is not one that messages are sent to",
        "Give an https:// address on the open internet, or ask the operator to name its host in MODALBRIDGE_WEBHOOK_PRIVATE_HOSTS.",
    ),
    "too_many_webhooks": Code(409, "There are too many webhooks", "Delete one that is no longer needed."),
    "webhook_gone": Code(
        409, "The webhook's address answered 410 Gone", "Delete the webhook, and make another where messages are wanted again."
    ),
    "job_active": Code(409, "The job is still active", "Cancel it first, and wait until it is in a final state."),
    "job_finished": Code(409, "The job is in a final state", "Nothing is left to cancel; read the job for its outcome."),
    "not_retryable": Code(
        409, "The job cannot be tried again", "Only a failed or cancelled job can; submit a new one to change anything about it."
    ),
    "job_not_succeeded": Code(
        409, "The job has not published a model", "Wait until its status is `succeeded`; if it failed, its `error` says why."
    ),
    "source_model_in_use": Code(
        409, "A job still needs this source model", "Delete the jobs that `detail` names, or let them end and delete them, first."
    ),
    "dataset_in_use": Code(
        409, "A job still needs this dataset", "Delete the jobs that `detail` names, or let them end and delete them, first."
    ),
    "storage_full": Code(
        507, "The storage is full", "Nothing was kept of this request. Ask the operator to free space, then send it again."
    ),
    "quota_exceeded": Code(
        507,
        "Nothing more may be stored",
        "Delete jobs, datasets or source models that are no longer needed, or ask the operator for more.",
    ),
    "not_ready": Code(503, "The service is not ready", "See `checks` for the part that is not; try again later."),
    "database_unavailable": Code(
        503,
        "The database does not answer",
        "Try again in a moment; nothing was kept of this request unless it was answered with a 2xx.",
    ),
    "blobs_unavailable": Code(
        503,
        "The blob store does not answer",
        "Try again in a moment; nothing was kept of this request unless it was answered with a 2xx.",
    ),
    "internal": Code(
        500,
        "Something failed that should not have",
        "Report it with the `request_id`; the operator's log has the cause under it.",
    ),
    # references to data
    "reference_scheme": Code(
        422,
        "This kind of reference is not accepted",
        "Use a file:// URI below an opened folder, dataset:// and the id of an uploaded archive, s3:// and an opened bucket, or https:// and an archive on an opened host.",
    ),
    "reference_outside_roots": Code(
        422,
        "The reference lies outside the folders that may be read",
        "Put the data below an opened folder, without `..` or links that lead out of it.",
    ),
    "reference_forbidden": Code(
        422,
        "The reference leads to a place that may not be read",
        "Use a bucket or a host that the operator has opened (MODALBRIDGE_DATA_BUCKETS, MODALBRIDGE_DATA_HOSTS), at a public address.",
    ),
    "reference_changed": Code(
        422,
        "The data have changed since the job was accepted",
        "Submit the job again to take them as they are now; leave data in place while jobs name them.",
    ),
    "reference_too_large": Code(
        422,
        "The data are larger than this service fetches",
        "Name less of it, or ask the operator to raise the limit in `detail`.",
    ),
    "reference_away": Code(
        503,
        "The place that the reference leads to does not answer",
        "Try again in a moment; if it lasts, ask who runs that place.",
    ),
    "reference_missing": Code(422, "Nothing is there under this reference", "Check the path as the service's machine sees it."),
    "reference_unreadable": Code(
        422, "The reference cannot be read", "Let the service's user read the files and enter the folders."
    ),
    "layout_mismatch": Code(
        422, "The data are not laid out as the reference says", "Compare `layout` with what `detail` found there."
    ),
    "no_images": Code(422, "No images are there", "Put PNG, JPEG or TIFF images there, or correct the path."),
    "too_few_images": Code(422, "Too few images to adapt to", "Add images: `detail` says how many are needed."),
    "pairs_unmatched": Code(
        422,
        "The images of the two sensors do not match up",
        "Give both images of a pair the same relative name; `detail` names the first that have no partner.",
    ),
    "unknown_class": Code(
        422, "The evaluation set has a class that the model does not know", "Name the class folders as in `source_model.classes`."
    ),
    "too_many_broken_images": Code(
        422,
        "Too many images cannot be read",
        "Repair or remove the images that `detail` names, or raise data.broken_image_share.",
    ),
    # archives of images
    "archive_format": Code(
        422, "The file is no archive that is read here", "Pack the images as zip, with deflate or none, as tar, or as tar.gz."
    ),
    "archive_damaged": Code(
        422, "The archive is cut off or damaged", "Upload it again; compare its sha256 with yours, or pack it anew."
    ),
    "archive_unsafe": Code(
        422,
        "The archive holds an entry that is not taken",
        "Pack plain files and folders alone, each once, under relative names without `..`; `detail` names the entry.",
    ),
    # source models
    "source_model_format": Code(
        422,
        "The file is neither safetensors nor a torch state_dict",
        "Save it with safetensors.torch.save_file(model.state_dict(), path).",
    ),
    "source_model_truncated": Code(
        422, "The file of the source model is cut off or damaged", "Upload it again; compare its sha256 with yours."
    ),
    "unsafe_pickle": Code(
        422,
        "The file holds more than tensors",
        "It was not loaded. Save the state_dict alone, best as safetensors: save_file(model.state_dict(), path).",
    ),
    "archive_bomb": Code(
        422,
        "The file would unpack to far more than it holds, or than is allowed",
        "Save a state_dict with torch.save or safetensors, uncompressed. Pack images as they are, and a larger set as several.",
    ),
    "unknown_architecture": Code(
        422,
        "No such architecture",
        "Use a classifier's name as torchvision.models.list_models() or timm.list_models() has it, or `shot/` and a ResNet's.",
    ),
    "unsupported_architecture": Code(
        422, "This architecture cannot be adapted", "Use a classifier whose logits come from one last linear layer."
    ),
    "source_model_mismatch": Code(
        422,
        "The weights do not fit the architecture",
        "Compare the architecture and the number of classes with what the tensors that `detail` names say.",
    ),
    "source_model_not_finite": Code(
        422, "The weights hold NaN or infinite values", "Upload a checkpoint from before the training diverged."
    ),
    "input_too_small": Code(
        422, "The architecture cannot take so small an input", "Raise source_model.input.size to what the model was trained at."
    ),
    # while a job runs
    "training_diverged": Code(
        422, "The training diverged", "Lower the stage's learning rate or the weight of the loss that `detail` names."
    ),
    "device_unavailable": Code(
        422,
        "The device asked for is not there",
        "Use device 'auto', or a worker with the device; where it should be there, ask the operator: `detail` says what was found.",
    ),
    "device_failed": Code(
        500,
        "The worker's GPU failed",
        "Try the job again; if it recurs, ask the operator: `detail` is what CUDA said, and the machine's kernel log says more.",
    ),
    "out_of_memory": Code(
        422, "The job ran out of memory", "Lower the stage's batch_size or the input size, or use a worker with more memory."
    ),
    "disk_full": Code(
        507, "The worker's disk is full", "Ask the operator to free space; the job's data need about what the cache event says."
    ),
    "cache_full": Code(
        507,
        "The job's data do not fit the worker's cache",
        "Name smaller data sets, or ask the operator to raise MODALBRIDGE_CACHE_BYTES.",
    ),
    "time_limit": Code(
        422, "The job ran longer than the operator allows", "Lower settings.transfer.epochs or settings.bridging.steps."
    ),
    "child_died": Code(
        500,
        "The job's process died without a result",
        "See the job's last log events; if it recurs, report it with the job's id.",
    ),
    "attempts_exhausted": Code(
        500,
        "The job lost its worker too many times",
        "See its events for how each attempt ended; a job that exhausts a worker's memory ends this way.",
    ),
}


class Problem(Exception):
    """Something that a client can be told: a code of the table, what was wrong, and where.

    detail: what was found, with names and numbers. pointer: RFC 6901 JSON pointer into the request, if one field is the
    cause. context: further members of the problem document (lists of names, limits). Raises KeyError on a code that the
    table lacks: the table is closed.
    """

    def __init__(self, code: str, detail: str, *, pointer: str | None = None, **context: Any) -> None:
        self.kind = CODES[code]
        self.code, self.detail, self.pointer, self.context = code, readable(detail), readable(pointer), readable(context)
        super().__init__(f"{code}: {self.detail}")

    def document(self) -> dict[str, Any]:
        """The members of an RFC 9457 problem, less `instance`."""
        known = {"type": f"urn:modalbridge:problem:{self.code}", "title": self.kind.title, "status": self.kind.status,
                 "code": self.code, "detail": self.detail, "remedy": self.kind.remedy}  # fmt: skip
        return known | ({"pointer": self.pointer} if self.pointer is not None else {}) | self.context


def readable(value: Any) -> Any:
    """A text, or whatever holds texts, as UTF-8 can have it: half a character, such as a file's name of another encoding has for a
    byte, is spelt out, as `\\udcff`."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {readable(key): readable(one) for key, one in value.items()}
    return type(value)(map(readable, value)) if isinstance(value, list | tuple) else value


LONGEST = 1200
"""Letters of a name in a `detail`: more than a file's path in an archive has. A list can hold a word of megabytes."""


def few(names: list[str], limit: int = 5) -> str:
    """The first names, as far as they are no longer than any of ours, and how many more there are, for a `detail`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in names[:limit]) + more


def as_markdown() -> str:
    """The table, for docs/errors.md."""
    rows = [f"| `{code}` | {kind.status} | {kind.title} | {kind.remedy} |" for code, kind in CODES.items()]
    return "\n".join(
        [
            "# Errors",
            "",
            "Every error is `application/problem+json` (RFC 9457) with a stable `code`, what was wrong (`detail`), where",
            "(`pointer`, a JSON pointer into the request) and what to do (`remedy`). A job that fails carries the same document",
            "as its `error`. This page is made by `python -m app.errors > docs/errors.md`.",
            "",
            "| code | status | what it means | what to do |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
