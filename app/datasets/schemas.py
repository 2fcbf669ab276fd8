"""What a client says and sees of datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.method_settings import Strict
from app.spec import LINE


class DatasetDescription(Strict):
    """What is told of an archive beside its bytes."""

    name: str | None = Field(None, min_length=1, max_length=200, json_schema_extra={"pattern": LINE})
    """For people."""


class DatasetView(BaseModel):
    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "dataset_01kb3x5tqyd0h6v3k1m9w2r8ab",
                    "name": "hall 3",
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "size": 104780312,
                    "format": "zip",
                    "images": 1200,
                    "unpacked_bytes": 104312240,
                    "created_at": "2026-11-24T14:28:00Z",
                }
            ]
        },
    )

    id: str = Field(description="A job names it as `dataset://` and this, and may add a path inside of the archive.")
    name: str | None
    sha256: str = Field(description="Of the archive.")
    size: int = Field(description="Of the archive, in bytes.")
    format: Literal["zip", "tar", "tar.gz"]
    images: int = Field(description="How many files end as images do.")
    unpacked_bytes: int = Field(description="Of its images, lists and CSV files: what a worker's cache needs room for.")
    created_at: datetime
