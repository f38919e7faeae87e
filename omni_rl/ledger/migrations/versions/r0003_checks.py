"""Checks, with what they found: legs, evidence and profiles by module."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"


def upgrade() -> None:
    op.create_table(
        "checks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("attempt", sa.BigInteger),
        sa.Column("step", sa.BigInteger),
        sa.Column("found", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_checks"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_checks_run_attempt_step", "checks", ["run", "attempt", "step"])
