"""What each tenant has in the blob store. Housekeeping counts it: here that would hold up everybody.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("stored_bytes", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("stored_counted_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    # Not in a batch: SQLite would make the table anew, and with the old one go all rows that belong to a tenant.
    op.drop_column("tenants", "stored_counted_at")
    op.drop_column("tenants", "stored_bytes")
