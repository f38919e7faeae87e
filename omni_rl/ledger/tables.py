"""The ledger's tables, the same on SQLite and PostgreSQL; `migrations` makes them.

Times are Unix seconds. A figure that is not a number is NULL, on both databases: SQLite knows no NaN. Documents are
JSON as text, because PostgreSQL's own JSON types refuse NaN.
"""

import json
import math
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from omni_rl.consistency.figures import Metrics

COUNTS = ("tokens", "router_flips", "excluded_tokens")
FIGURES = tuple(field.name for field in fields(Metrics))
BIN_FIGURES = (
    "tokens",
    "logprob_abs_diff_mean",
    "logprob_abs_diff_max",
    "logprob_abs_diff_p99",
    "gen_kl_error",
    "token_mult_prob_error",
    "router_flips",
    "excluded_tokens",
)
"""The figures that are stored by position: a run of five kinds has more than a hundred bins in a step."""


class Document(sa.TypeDecorator[Any]):
    """A JSON document, stored as text."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        return None if value is None else json.loads(value)


class FigureColumn(sa.TypeDecorator[float]):
    """A double; NaN goes in as NULL and NULL comes out as NaN."""

    impl = sa.Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> float | None:
        return None if value is None or math.isnan(value) else value

    def process_result_value(self, value: float | None, dialect: sa.Dialect) -> float:
        return math.nan if value is None else value


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""The type of row numbers: SQLite numbers rows by itself only where the type is INTEGER."""


def figure_columns(names: tuple[str, ...]) -> list[sa.Column[Any]]:
    return [
        sa.Column(name, sa.BigInteger, nullable=False) if name in COUNTS else sa.Column(name, FigureColumn)
        for name in names
    ]


def _of_attempt() -> sa.Column[Any]:
    return sa.Column("attempt_id", Number, sa.ForeignKey("attempts.id"), primary_key=True, autoincrement=False)


def _of_step() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["attempt_id", "step"], ["steps.attempt_id", "steps.step"], ondelete="CASCADE")


def _step() -> sa.Column[Any]:
    return sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False)


# Rows are read by ranges of their primary key, so SQLite keeps them in its order.
_CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("config", Document, nullable=False),
    sa.Column("state", Document),  # What the policy carries from one step to the next
    sa.Column("need", sa.SmallInteger, nullable=False, server_default="2"),  # omni_rl.consistency.need
    sa.Column("sealed", sa.Double),  # its latest step
    sa.Column("due", sa.Double),  # when it is silent unless a step comes
    # Runs are searched and sorted by what these have alone.
    sa.Index(None, "need", "sealed", "run", "created"),
    sa.Index(None, "created", "run"),
    sa.Index(None, "due"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("run", sa.Text, sa.ForeignKey("runs.run"), nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("started", sa.Double, nullable=False),
    sa.UniqueConstraint("run", "attempt"),
)

parts = sa.Table(
    "parts",
    metadata,
    _of_attempt(),
    _step(),
    sa.Column("rank", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("samples", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("received", sa.Double, nullable=False),
    **_CLUSTERED,
)

payloads = sa.Table(
    "payloads",
    metadata,
    sa.Column("attempt_id", Number, primary_key=True, autoincrement=False),
    _step(),
    sa.Column("rank", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("records", sa.LargeBinary, nullable=False),  # An Arrow stream; gone some steps after the seal
    sa.ForeignKeyConstraint(
        ["attempt_id", "step", "rank"], ["parts.attempt_id", "parts.step", "parts.rank"], ondelete="CASCADE"
    ),
)

steps = sa.Table(
    "steps",
    metadata,
    _of_attempt(),
    _step(),
    sa.Column("sealed", sa.Double, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),  # One digest over its parts' digests, rank by rank
    sa.Column("severity", sa.SmallInteger, nullable=False),
    sa.Column("samples", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("weight_version", sa.Text, nullable=False),
    sa.Column("verdict", Document, nullable=False),
    sa.Column("training", Document, nullable=False),  # The trainer's own figures
    sa.Column("flips", Document),  # Router flips by layer
    **_CLUSTERED,
)

figures = sa.Table(
    "figures",
    metadata,
    sa.Column("attempt_id", Number, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, primary_key=True),
    _step(),
    *figure_columns(FIGURES),
    _of_step(),
    **_CLUSTERED,
)

timeline = sa.Table(
    "timeline",
    metadata,
    _of_attempt(),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("width", sa.Integer, primary_key=True, autoincrement=False),  # steps of a bucket
    sa.Column("bucket", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("steps", sa.BigInteger, nullable=False),  # how many of them there are
    sa.Column("severity", sa.SmallInteger, nullable=False),
    sa.Column("broken", sa.BigInteger, nullable=False),  # steps with logprobs that are no numbers
    *(sa.Column(f"{name}_{end}", FigureColumn) for name in FIGURES for end in ("low", "high")),
    **_CLUSTERED,
)

bins = sa.Table(
    "bins",
    metadata,
    sa.Column("attempt_id", Number, primary_key=True, autoincrement=False),
    _step(),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("first", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("last", sa.Integer, nullable=False),
    *figure_columns(BIN_FIGURES),
    _of_step(),
    **_CLUSTERED,
)

samples = sa.Table(
    "samples",
    metadata,
    sa.Column("attempt_id", Number, primary_key=True, autoincrement=False),
    _step(),
    sa.Column("sample", sa.Text, primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),  # 0: the worst of its step
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("figures", Document, nullable=False),
    # An Arrow stream: of this sample, or of all of its step by place, if it is the first; then the others' are empty
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("rank", sa.Integer, primary_key=True, autoincrement=False, server_default="0"),
    _of_step(),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("run", sa.Text),
    sa.Column("data", Document, nullable=False),
    sa.Index(None, "run", "id"),
    sqlite_autoincrement=True,
)

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("run", sa.Text),  # NULL: of no run, as a cluster that nobody samples with
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),  # a run has one open incident of a kind and a subject
    sa.Column("attempt", sa.BigInteger),
    sa.Column("step", sa.BigInteger),
    sa.Column("opened", sa.Double, nullable=False),
    sa.Column("changed", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sa.Column("severity", sa.SmallInteger, nullable=False),
    sa.Column("cause", sa.Text),
    sa.Column("headline", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("figure", Document),  # the worst one, with its limit
    sa.Column("excess", sa.Double, nullable=False),  # how many times its limit the figure is
    sa.Column("good", Document),  # the last step before it that was ok
    sa.Column("evidence", Document, nullable=False),
    sa.Column("actions", Document, nullable=False),
    sa.Column("acknowledged", Document),
    sa.Column("notes", Document, nullable=False),
    sa.Column("told", Document, nullable=False),  # by webhook, the state that was sent to it last
    sa.Index(None, "run", "opened"),
    sa.Index(None, "ended", "run"),
    sqlite_autoincrement=True,
)

checks = sa.Table(
    "checks",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("run", sa.Text),  # Whose step it was about; NULL: the probe
    sa.Column("attempt", sa.BigInteger),
    sa.Column("step", sa.BigInteger),
    sa.Column("found", Document, nullable=False),
    sa.Index(None, "run", "attempt", "step"),
    sqlite_autoincrement=True,
)

updates = sa.Table(
    "updates",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("run", sa.Text, sa.ForeignKey("runs.run"), nullable=False),
    sa.Column("engine", sa.Text, nullable=False),  # '': the trainer's own
    sa.Column("session", sa.Text, nullable=False),  # of the engine's start, in which its numbers rise
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("worker", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),  # of the report
    sa.Column("told", sa.LargeBinary),  # JSON, deflated; gone after some newer ones
    sa.Column("answer", Document, nullable=False),
    sa.UniqueConstraint("run", "engine", "session", "number", "worker"),
    sa.Index(None, "run", "id"),
    sqlite_autoincrement=True,
)

fence = sa.Table(
    "fence",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)

syncs = sa.Table(
    "syncs",
    metadata,
    sa.Column("number", Number, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),  # Whose weights; it need not be a run with steps
    sa.Column("sync", sa.Text, nullable=False, unique=True),
    sa.Column("key", sa.Text),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("slab", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("previous_slab", sa.Text),
    sa.Column("previous_version", sa.Text),
    sa.Column("mode", sa.Text, nullable=False),
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("finished", sa.Double),
    sa.Column("result", Document),
    sa.UniqueConstraint("run", "key"),
    sa.Index(None, "run", "number"),
    sqlite_autoincrement=True,
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("sync", sa.Text, sa.ForeignKey("syncs.sync"), primary_key=True),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.CheckConstraint("decision IN ('commit', 'abort')", name="known"),
)

transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("sync", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("replica", sa.Text),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index(None, "sync", "id"),
    sqlite_autoincrement=True,
)
