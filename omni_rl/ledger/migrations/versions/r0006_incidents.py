"""Alarms become incidents; a run's row says how much it needs a person, so that runs are sorted without their steps."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "r0006"
down_revision = "r0005"

NEEDS = {"ok": 1, "unjudged": 3, "warn": 4, "mask": 5, "pause": 8}
HALTED, SILENT, WAITING, ENDED = 9, 7, 2, 0


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "incidents",
        sa.Column("id", number, nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger),
        sa.Column("step", sa.BigInteger),
        sa.Column("opened", sa.Double, nullable=False),
        sa.Column("changed", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("severity", sa.SmallInteger, nullable=False),
        sa.Column("cause", sa.Text),
        sa.Column("headline", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("figure", sa.Text),
        sa.Column("excess", sa.Double, nullable=False),
        sa.Column("good", sa.Text),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("actions", sa.Text, nullable=False),
        sa.Column("acknowledged", sa.Text),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("told", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_incidents"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_incidents_run_opened", "incidents", ["run", "opened"])
    op.create_index("ix_incidents_ended_run", "incidents", ["ended", "run"])
    connection = op.get_bind()
    for alarm in connection.execute(sa.text("SELECT * FROM alarms ORDER BY id")).mappings().all():
        _add(connection, _incident(dict(alarm)))
    if connection.dialect.name != "sqlite":
        connection.execute(
            sa.text("SELECT setval('incidents_id_seq', (SELECT coalesce(max(id), 0) + 1 FROM incidents), false)")
        )
    op.drop_table("alarms")
    for column in (
        sa.Column("need", sa.SmallInteger, nullable=False, server_default=str(WAITING)),
        sa.Column("sealed", sa.Double),
        sa.Column("due", sa.Double),
    ):
        op.add_column("runs", column)
    for row in connection.execute(sa.text("SELECT run, state FROM runs")).all():
        _place(connection, row.run, None if row.state is None else json.loads(row.state))
    op.create_index("ix_runs_need_sealed_run_created", "runs", ["need", "sealed", "run", "created"])
    op.create_index("ix_runs_created_run", "runs", ["created", "run"])
    op.create_index("ix_runs_due", "runs", ["due"])


def _incident(alarm: dict[str, Any]) -> dict[str, Any]:
    ended = alarm["closed"]
    of_update = alarm["step"] is None and set(json.loads(alarm["evidence"])) == {"weights"}
    return {
        **{name: alarm[name] for name in ("id", "run", "attempt", "step", "opened", "severity", "cause", "evidence")},
        "kind": "update" if of_update else "drift",
        "subject": "",
        "changed": alarm["opened"] if ended is None else ended,
        "ended": ended,
        "headline": alarm["sentence"],
        "why": "",
        "figure": None,
        "excess": 0.0,
        "good": None,
        "actions": json.dumps([{"at": ended or alarm["opened"], "what": alarm["action"]}] if alarm["action"] else []),
        "acknowledged": None,
        "notes": "[]",
        "told": "{}",
    }


def _add(connection: sa.Connection, values: dict[str, Any]) -> None:
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    connection.execute(sa.text(f"INSERT INTO incidents ({names}) VALUES ({marks})"), values)  # noqa: S608


def _place(connection: sa.Connection, run: str, state: dict[str, Any] | None) -> None:
    """Where a run stands among the others, by its newest step and its policy's state."""
    newest = connection.execute(
        sa.text(
            "SELECT a.attempt, s.step, s.sealed, s.severity FROM attempts a JOIN steps s ON s.attempt_id = a.id "
            "WHERE a.run = :run ORDER BY a.attempt DESC, s.step DESC LIMIT 1"
        ),
        {"run": run},
    ).first()
    if newest is None:
        return
    state = state or {}
    severity = max(int(state.get("severity", 0)), 0)
    need = NEEDS["unjudged"] if newest.severity < 0 and severity == 0 else (1, 4, 5, 8)[severity]
    if state.get("gate") == "halted":
        need = HALTED
    elif state.get("activity") == "silent":
        need = max(need, SILENT)
    elif state.get("activity") == "ended" and need <= NEEDS["unjudged"]:
        need = ENDED
    line = {"attempt": newest.attempt, "step": newest.step, "sealed": newest.sealed}
    values = {"run": run, "need": need, "sealed": newest.sealed}
    connection.execute(sa.text("UPDATE runs SET need = :need, sealed = :sealed WHERE run = :run"), values)
    if state:
        written = json.dumps({**state, "line": line}, separators=(",", ":"))
        connection.execute(sa.text("UPDATE runs SET state = :state WHERE run = :run"), {"run": run, "state": written})
