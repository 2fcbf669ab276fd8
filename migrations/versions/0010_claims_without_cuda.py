"""A worker without a CUDA device finds its next job however many wait for one.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Writers wait while the two are built: some seconds for a million jobs.
    op.create_index("ix_jobs_turns_by_device", "jobs", ["status", "share", "needs_cuda", "rank", "queued_at", "id"])
    op.drop_index("ix_jobs_claim", "jobs")
    op.create_index("ix_jobs_claim", "jobs", ["status", "needs_cuda", "queued_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_claim", "jobs")
    op.create_index("ix_jobs_claim", "jobs", ["status", "queued_at", "id"])
    op.drop_index("ix_jobs_turns_by_device", "jobs")
