"""Extremes of figures over 4 steps, 16, 64 and so on, made from the steps that are there."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"

WIDTHS = (4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
FIGURES = [
    "tokens",
    "logprob_abs_diff_mean",
    "logprob_abs_diff_max",
    "logprob_abs_diff_p50",
    "logprob_abs_diff_p95",
    "logprob_abs_diff_p99",
    "token_mult_prob_error",
    "gen_kl_error",
    "policy_kl_error",
    "js_divergence_error",
    "rollout_probs_diff_mean",
    "rollout_probs_diff_max",
    "rollout_probs_diff_std",
    "chi2_token",
    "chi2_seq",
    "ess",
    "seq_mult_prob_error_mean",
    "seq_mult_prob_error_max",
    "router_flips",
    "excluded_tokens",
]
CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "timeline",
        sa.Column("attempt_id", number, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("width", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("bucket", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("steps", sa.BigInteger, nullable=False),
        sa.Column("severity", sa.SmallInteger, nullable=False),
        sa.Column("broken", sa.BigInteger, nullable=False),
        *(sa.Column(f"{name}_{end}", sa.Double) for name in FIGURES for end in ("low", "high")),
        sa.PrimaryKeyConstraint("attempt_id", "kind", "width", "bucket", name="pk_timeline"),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_timeline_attempts"),
        **CLUSTERED,
    )
    extremes = ", ".join(f"min(f.{name}), max(f.{name})" for name in FIGURES)
    for width in WIDTHS:
        op.execute(
            f"INSERT INTO timeline SELECT f.attempt_id, f.kind, {width}, f.step / {width}, count(*), max(s.severity), "  # noqa: S608
            f"sum(CASE WHEN f.tokens > 0 AND f.logprob_abs_diff_mean IS NULL THEN 1 ELSE 0 END), {extremes} "
            "FROM figures f JOIN steps s ON s.attempt_id = f.attempt_id AND s.step = f.step "
            f"GROUP BY f.attempt_id, f.kind, f.step / {width}"
        )
