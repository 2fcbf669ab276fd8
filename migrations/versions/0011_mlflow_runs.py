"""What MLflow was told of a job is kept after its end: its run, and how far it has heard.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("mlflow_exports") as table:
        table.alter_column("next_at", existing_type=TIMESTAMP, nullable=True)
    op.create_index("ix_mlflow_exports_due", "mlflow_exports", ["next_at"])


def downgrade() -> None:
    op.execute("DELETE FROM mlflow_exports WHERE next_at IS NULL")
    op.drop_index("ix_mlflow_exports_due", "mlflow_exports")
    with op.batch_alter_table("mlflow_exports") as table:
        table.alter_column("next_at", existing_type=TIMESTAMP, nullable=False)
