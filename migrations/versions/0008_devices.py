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
    # Those that may still be claimed, some of them after a retry.
    wanted = sa.and_(jobs.c.status != "succeeded", jobs.c.request["device"].as_string() == "cuda")
    op.execute(jobs.update().where(wanted).values(needs_cuda=sa.true()))


def downgrade() -> None:
    for table, column in (("workers", "takes_cuda"), ("jobs", "needs_cuda")):
        with op.batch_alter_table(table) as changed:
            changed.drop_column(column)
