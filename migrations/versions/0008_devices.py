"""Jobs that need a CUDA device, and workers that have one.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("needs_cuda", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("workers", sa.Column("takes_cuda", sa.Boolean(), nullable=False, server_default=sa.false()))
    jobs = sa.table("jobs", sa.column("status"), sa.column("request", sa.JSON), sa.column("needs_cuda"))
    # By an index: the table is locked meanwhile. A job that is over is looked at again when it is retried.
    wanted = sa.and_(jobs.c.status.in_(["queued", "running", "cancelling"]), jobs.c.request["device"].as_string() == "cuda")
    op.execute(jobs.update().where(wanted).values(needs_cuda=sa.true()))


def downgrade() -> None:
    # Not in a batch: SQLite would make the table anew, and with the old one go all rows that belong to a job.
    op.drop_column("workers", "takes_cuda")
    op.drop_column("jobs", "needs_cuda")
