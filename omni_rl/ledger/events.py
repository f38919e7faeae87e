"""Events, each written within the transaction of what it tells of."""

import time
from collections.abc import Iterable

import sqlalchemy as sa

from omni_rl.ledger.tables import events
from omni_rl.ledger.types import NewEvent

_ADD_EVENT = sa.insert(events).returning(events.c.id)


def add_events(connection: sa.Connection, what: Iterable[NewEvent]) -> list[int]:
    """Write events, and return their numbers, which rise."""
    return [
        connection.execute(
            _ADD_EVENT, {"at": time.time(), "kind": event.kind, "run": event.run, "data": event.data}
        ).scalar_one()
        for event in what
    ]
