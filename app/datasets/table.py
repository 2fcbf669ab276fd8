"""Datasets: uploaded archives of images, immutable, reusable; two uploads of the same bytes are one row."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, Timestamp


class Dataset(Base):
    __tablename__ = "datasets"
    __table_args__ = (sa.UniqueConstraint("tenant_id", "sha256"),)

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    name: Mapped[str | None] = mapped_column(sa.String(200))
    sha256: Mapped[str] = mapped_column(sa.String(64))
    """Of the archive."""
    size: Mapped[int] = mapped_column(sa.BigInteger)
    format: Mapped[str] = mapped_column(sa.String(20))
    """zip | tar | tar.gz."""
    images: Mapped[int]
    unpacked_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    """Of its images, lists and CSV files."""
    blob_key: Mapped[str] = mapped_column(sa.String(200))
    listing_key: Mapped[str] = mapped_column(sa.String(200))
    """Of app.listing's file, which says what is in it."""
    listing_size: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp)

    @hybrid_property
    def stored_bytes(self) -> int:
        """Of its blobs."""
        return self.size + self.listing_size

    @property
    def blob_keys(self) -> list[str]:
        return [self.blob_key, self.listing_key]
