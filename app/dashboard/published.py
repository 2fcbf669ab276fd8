"""A job's JSON artifacts, for a page. A job's process wrote them: all of it is to be doubted, and what is odd there is said, not raised."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from app.artifacts.table import Artifact
from app.blobs import Blobs

MOST_BYTES = 4 * 2**20
Model = TypeVar("Model", bound=BaseModel)


def named(artifacts: Sequence[Artifact], name: str) -> Artifact | None:
    return next((one for one in artifacts if one.name == name), None)


def read(blobs: Blobs, artifact: Artifact, model: type[Model]) -> Model | str:
    """A text where it cannot be shown: why. Raises BlobsAwayError."""
    if artifact.size > MOST_BYTES:
        return f"{artifact.name} is too large to be shown here: download it."
    try:
        with closing(blobs.read(artifact.blob_key, 0, artifact.size)) as reading:
            return model.model_validate_json(b"".join(reading))
    except FileNotFoundError:
        return f"{artifact.name} is not in the blob store any more."
    except ValidationError:
        return f"{artifact.name} is not one that this page can read: download it."
