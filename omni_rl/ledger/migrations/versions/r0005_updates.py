"""What engines and trainers told of updates of weights."""

import sqlalchemy as sa
from alembic import op

revision = "r0005"
down_revision = "r0004"

KEY = ("run", "engine", "session", "number", "worker")


def upgrade() -> None:
    op.create_table(
        "updates",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("told", sa.LargeBinary),
        sa.Column("answer", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.run"], name="fk_updates_run_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_updates"),
        sa.UniqueConstraint(*KEY, name=f"uq_updates_{'_'.join(KEY)}"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_updates_run_id", "updates", ["run", "id"])
