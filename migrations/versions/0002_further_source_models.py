"""Several source models of one job.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_further_source_models",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("source_model_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_further_source_models_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["source_model_id"], ["source_models.id"], name=op.f("fk_job_further_source_models_source_model_id")
        ),
        sa.PrimaryKeyConstraint("job_id", "place", name=op.f("pk_job_further_source_models")),
    )
    op.create_index("ix_job_further_source_models_model", "job_further_source_models", ["source_model_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_job_further_source_models_model", table_name="job_further_source_models")
    op.drop_table("job_further_source_models")
