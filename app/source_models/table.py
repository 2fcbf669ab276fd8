"""Source models: immutable, reusable; two uploads of the same bytes with the same description are one row."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column

from app.database import JSON, Base, Timestamp


class SourceModel(Base):
    __tablename__ = "source_models"
    __table_args__ = (sa.UniqueConstraint("tenant_id", "fingerprint"),)

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    sha256: Mapped[str] = mapped_column(sa.String(64))
    """Of the file."""
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    """Of the file and its description together."""
    size: Mapped[int] = mapped_column(sa.BigInteger)
    format: Mapped[str] = mapped_column(sa.String(20))
    """safetensors | torch."""
    description: Mapped[dict[str, Any]] = mapped_column(JSON)
    """app.spec.SourceModelDescription."""
    blob_key: Mapped[str] = mapped_column(sa.String(200))
    created_at: Mapped[datetime] = mapped_column(Timestamp)

    @hybrid_property
    def stored_bytes(self) -> int:
        """Of its blobs."""
        return self.size

    @property
    def blob_keys(self) -> list[str]:
        return [self.blob_key]
