"""What MLflow is still to be told, and when each metric point was written down.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("job_metrics", sa.Column("at", TIMESTAMP, nullable=True))
    op.create_table(
        "mlflow_exports",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("run_id", sa.String(256), nullable=True),
        sa.Column("sent_until", TIMESTAMP, nullable=True),
        sa.Column("claims", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_at", TIMESTAMP, nullable=False),
        sa.Column("error", sa.String(500), nullable=True),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_mlflow_exports")),
    )


def downgrade() -> None:
    op.drop_table("mlflow_exports")
    op.drop_column("job_metrics", "at")
