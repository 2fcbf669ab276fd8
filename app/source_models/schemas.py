"""What a client sees of source models."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.spec import SourceModelDescription


class SourceModelView(BaseModel):
    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "model_01kb3x5tqyd0h6v3k1m9w2r8ab",
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "size": 44780312,
                    "format": "safetensors",
                    "description": {
                        "architecture": "torchvision/resnet18",
                        "classes": ["box", "mug"],
                        "input": {"size": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
                    },
                    "created_at": "2026-11-24T14:28:00Z",
                }
            ]
        },
    )

    id: str
    sha256: str = Field(description="Of the file.")
    size: int = Field(description="Of the file, in bytes.")
    format: Literal["safetensors", "torch"]
    description: SourceModelDescription
    created_at: datetime
