"""Priorities, and shares that take turns.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("rank", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("share", sa.String(300), nullable=False, server_default=""))
    op.execute("UPDATE jobs SET share = tenant_id WHERE status IN ('queued', 'running', 'cancelling')")
    op.create_index("ix_jobs_turns", "jobs", ["status", "share", "rank", "queued_at", "id"])
    op.create_table(
        "turns",
        sa.Column("share", sa.String(300), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("turns")
    op.drop_index("ix_jobs_turns", "jobs")
    # Not in a batch: SQLite would make the table anew, and with the old one go all rows that belong to a job.
    op.drop_column("jobs", "share")
    op.drop_column("jobs", "rank")
