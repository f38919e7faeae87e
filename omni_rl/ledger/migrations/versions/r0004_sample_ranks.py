"""A kept sample is known by its rank and its name: two ranks may name theirs alike."""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"

KEY = ["attempt_id", "step", "sample", "rank"]


def upgrade() -> None:
    op.add_column("samples", sa.Column("rank", sa.Integer, nullable=False, server_default="0"))
    # SQLite changes no primary key in place: the table is copied there, with its rows.
    with op.batch_alter_table("samples") as table:
        table.drop_constraint("pk_samples", type_="primary")
        table.create_primary_key("pk_samples", KEY)
