"""What a client sends and sees of webhooks."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.method_settings import Strict
from app.webhooks.outbox import OVER

Type = Literal["job.succeeded", "job.failed", "job.cancelled", "job.progress"]


class WebhookRequest(Strict):
    """The body of POST /webhooks."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://ops.example.com/modalbridge", "types": ["job.succeeded", "job.failed"]}]}
    )

    url: str = Field(min_length=1, max_length=2000)
    """https, on the open internet, or a host that the operator has named."""
    types: tuple[Type, ...] = Field(OVER, min_length=1, max_length=16, fail_fast=True)  # type: ignore[assignment]
    """What it hears of. job.progress comes at most once a minute for a job."""


class WebhookView(BaseModel):
    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "webhook_01kb3x5tqyd0h6v3k1m9w2r8ab",
                    "url": "https://ops.example.com/modalbridge",
                    "types": ["job.succeeded", "job.failed", "job.cancelled"],
                    "gone_at": None,
                    "created_at": "2026-11-24T14:28:00Z",
                }
            ]
        },
    )

    id: str
    url: str
    types: list[str]
    gone_at: datetime | None = Field(description="When it answered 410 Gone; nothing is sent to it since.")
    created_at: datetime


class NewWebhookView(WebhookView):
    secret: str = Field(description="What messages are signed with. Shown this once.")


class DeliveryView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="`webhook-id` of the message, in each attempt.")
    type: str
    job_id: str | None
    payload: dict[str, Any]
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_at: datetime | None = Field(description="While it is pending: when it is tried next.")
    response_status: int | None = Field(description="HTTP status of the last answer.")
    error: str | None = Field(description="Why the last attempt failed, where there was no answer.")
    created_at: datetime
    finished_at: datetime | None
