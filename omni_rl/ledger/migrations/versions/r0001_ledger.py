"""Runs, steps, kept samples, events, alarms and weight syncs."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None

INTEGERS = ("tokens", "router_flips", "excluded_tokens")
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
BIN_FIGURES = [
    "tokens",
    "logprob_abs_diff_mean",
    "logprob_abs_diff_max",
    "logprob_abs_diff_p99",
    "gen_kl_error",
    "token_mult_prob_error",
    "router_flips",
    "excluded_tokens",
]
CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    in_step = ["attempt_id", "step"]
    op.create_table(
        "runs",
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("state", sa.Text),
        sa.PrimaryKeyConstraint("run", name="pk_runs"),
    )
    op.create_table(
        "attempts",
        sa.Column("id", number, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.ForeignKeyConstraint(["run"], ["runs.run"], name="fk_attempts_runs"),
        sa.UniqueConstraint("run", "attempt", name="uq_attempts_run_attempt"),
    )
    op.create_table(
        "parts",
        *_keys(number, "step"),
        sa.Column("rank", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("samples", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("received", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint(*in_step, "rank", name="pk_parts"),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_parts_attempts"),
        **CLUSTERED,
    )
    op.create_table(
        "payloads",
        *_keys(number, "step"),
        sa.Column("rank", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("records", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint(*in_step, "rank", name="pk_payloads"),
        sa.ForeignKeyConstraint(
            [*in_step, "rank"],
            ["parts.attempt_id", "parts.step", "parts.rank"],
            name="fk_payloads_parts",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "steps",
        *_keys(number, "step"),
        sa.Column("sealed", sa.Double, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("severity", sa.SmallInteger, nullable=False),
        sa.Column("samples", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("weight_version", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("training", sa.Text, nullable=False),
        sa.Column("flips", sa.Text),
        sa.PrimaryKeyConstraint(*in_step, name="pk_steps"),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_steps_attempts"),
        **CLUSTERED,
    )
    op.create_table(
        "figures",
        *_keys(number),
        sa.Column("kind", sa.Text, nullable=False),
        *_keys(None, "step"),
        *_figures(FIGURES),
        sa.PrimaryKeyConstraint("attempt_id", "kind", "step", name="pk_figures"),
        _of_step("figures"),
        **CLUSTERED,
    )
    op.create_table(
        "bins",
        *_keys(number, "step"),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("first", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("last", sa.Integer, nullable=False),
        *_figures(BIN_FIGURES),
        sa.PrimaryKeyConstraint(*in_step, "kind", "first", name="pk_bins"),
        _of_step("bins"),
        **CLUSTERED,
    )
    op.create_table(
        "samples",
        *_keys(number, "step"),
        sa.Column("sample", sa.Text, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("figures", sa.Text, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint(*in_step, "sample", name="pk_samples"),
        _of_step("samples"),
    )
    op.create_table(
        "events",
        sa.Column("id", number, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_run_id", "events", ["run", "id"])
    op.create_table(
        "alarms",
        sa.Column("id", number, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger),
        sa.Column("step", sa.BigInteger),
        sa.Column("opened", sa.Double, nullable=False),
        sa.Column("closed", sa.Double),
        sa.Column("severity", sa.SmallInteger, nullable=False),
        sa.Column("cause", sa.Text),
        sa.Column("sentence", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alarms"),
        sa.ForeignKeyConstraint(["run"], ["runs.run"], name="fk_alarms_runs"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alarms_run_opened", "alarms", ["run", "opened"])
    op.create_table(
        "fence",
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", name="pk_fence"),
    )
    op.create_table(
        "syncs",
        sa.Column("number", number, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("sync", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("slab", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("previous_slab", sa.Text),
        sa.Column("previous_version", sa.Text),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("finished", sa.Double),
        sa.Column("result", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_syncs"),
        sa.UniqueConstraint("sync", name="uq_syncs_sync"),
        sa.UniqueConstraint("run", "key", name="uq_syncs_run_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_syncs_run_number", "syncs", ["run", "number"])
    op.create_table(
        "decisions",
        sa.Column("sync", sa.Text, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("sync", name="pk_decisions"),
        sa.ForeignKeyConstraint(["sync"], ["syncs.sync"], name="fk_decisions_syncs"),
        sa.CheckConstraint("decision IN ('commit', 'abort')", name="ck_decisions_known"),
    )
    op.create_table(
        "transitions",
        sa.Column("id", number, nullable=False),
        sa.Column("sync", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("replica", sa.Text),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_transitions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_transitions_sync_id", "transitions", ["sync", "id"])
    if op.get_context().dialect.name == "postgresql":
        # Logprobs do not compress; trying costs more than writing them.
        op.execute("ALTER TABLE payloads ALTER COLUMN records SET STORAGE EXTERNAL")


def _keys(number: Any, *names: str) -> list[sa.Column[Any]]:
    attempt = [sa.Column("attempt_id", number, autoincrement=False, nullable=False)] if number is not None else []
    return attempt + [sa.Column(name, sa.BigInteger, autoincrement=False, nullable=False) for name in names]


def _figures(names: list[str]) -> list[sa.Column[Any]]:
    return [
        sa.Column(name, sa.BigInteger, nullable=False) if name in INTEGERS else sa.Column(name, sa.Double)
        for name in names
    ]


def _of_step(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["attempt_id", "step"], ["steps.attempt_id", "steps.step"], name=f"fk_{table}_steps", ondelete="CASCADE"
    )
