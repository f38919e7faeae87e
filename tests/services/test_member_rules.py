"""Members of the cluster by themselves: which of them are incidents, when, and until when."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from omni_rl_services.coordinator.members import Members, fallen

from omni_rl.bridge.seam import ClusterState, ReplicaState
from omni_rl.ledger.types import Incident, IncidentEnd, NewIncident
from tests.services.test_members import AWAY, WELL

pytestmark = pytest.mark.anyio


class Noted:
    """A ledger's open incidents of engines, and what was written."""

    def __init__(self, *open_: Incident) -> None:
        self.open, self.seen, self.ended = open_, list[Any](), list[Any]()

    async def incidents(self, *, still_open: bool, kind: str) -> Sequence[Incident]:
        assert (still_open, kind) == (True, "engine")
        return self.open

    async def see_incident(self, run: str | None, new: NewIncident) -> int:
        self.seen.append((run, new.subject, new.headline, new.severity))
        return len(self.seen)

    async def end_incidents(self, run: str | None, over: IncidentEnd) -> None:
        self.ended.append((run, over.subject, over.why))


def member(state: str, name: str = "rollout-0", detail: str = "") -> ReplicaState:
    return ReplicaState(name, "rollout", "v1", state, detail)


@pytest.mark.parametrize(
    ("seen", "seconds", "opens"),
    [
        (replace(WELL, members=(member("dead"),)), 9.5, []),
        (replace(WELL, members=(member("dead"),)), 10.0, ["rollout-0"]),
        (replace(WELL, members=(member("stopped"), member("quarantined", "b"))), 10.0, ["rollout-0", "b"]),
        (replace(WELL, members=(member("serving"), member("starting", "b"))), 1e6, []),
        (AWAY, 59.5, []),
        (AWAY, 60.0, ["cluster"]),
    ],
)
async def test_what_is_not_well_for_its_time_is_an_incident(
    seen: ClusterState, seconds: float, opens: list[str]
) -> None:
    now, noted = [100.0], Noted()
    fake: Any = noted
    members = Members(fake, lambda: now[0])
    assert not await members.look(seen)
    now[0] += seconds
    assert await members.look(seen) is bool(opens)
    assert [(run, subject, severity) for run, subject, _, severity in noted.seen] == [
        ("digits", subject, 3) for subject in opens
    ]
    assert not await members.look(seen), "told once"


async def test_one_that_was_well_in_between_has_its_time_again() -> None:
    now, noted = [0.0], Noted()
    fake: Any = noted
    members = Members(fake, lambda: now[0])
    dead = replace(WELL, members=(member("dead"), member("dead", "b")))
    half = replace(WELL, members=(member("serving"), member("dead", "b")))
    for seen, at in ((dead, 0.0), (half, 5.0), (dead, 9.0), (dead, 10.0)):
        now[0] = at
        await members.look(seen)
    assert [one[1] for one in noted.seen] == ["b"]
    now[0] = 19.0
    await members.look(dead)
    assert [one[1] for one in noted.seen] == ["b", "rollout-0"]
    assert await members.look(half)
    assert noted.ended == [("digits", "rollout-0", "rollout-0 answers again")]
    assert not await members.look(half)


async def test_what_cannot_be_seen_stays_open_and_the_cluster_ends_when_it_answers() -> None:
    about: Any = (
        "engine",
        "rollout-0",
        None,
        None,
        1.0,
        1.0,
        None,
        3,
        None,
        "a",
        "",
        None,
        0.0,
        None,
        {},
        (),
        None,
        (),
        {},
    )
    known = Incident(1, "digits", *about)
    noted = Noted(known, replace(known, id=2, subject="cluster", run=None), replace(known, subject="trainer replaced"))
    fake: Any = noted
    members = Members(fake, lambda: 0.0)
    assert not await members.look(AWAY)
    assert await members.look(WELL)
    assert noted.ended == [
        (None, "cluster", "cluster answers again"),
        ("digits", "rollout-0", "rollout-0 answers again"),
    ]


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (WELL, ""),
        (AWAY, "the head is gone"),
        (replace(AWAY, reason=""), "the cluster does not answer"),
        (replace(AWAY, slabs="slab-0 was cut"), "the head is gone"),
        (replace(WELL, members=(member("dead", detail="killed"), member("idle", "t"))), "rollout-0 is dead: killed"),
        (
            replace(WELL, members=(member("dead"), member("stopped", "t")), slabs="slab-0 was cut"),
            "rollout-0 is dead; t is stopped; slab-0 was cut",
        ),
    ],
)
def test_what_keeps_a_service_from_being_ready(seen: ClusterState, why: str) -> None:
    assert fallen(seen) == why


async def test_a_cluster_that_does_not_say_why_is_told_of_all_the_same() -> None:
    now, noted = [0.0], Noted()
    fake: Any = noted
    members = Members(fake, lambda: now[0])
    for seconds in (0.0, 60.0):
        now[0] = seconds
        await members.look(replace(AWAY, reason=""))
    assert noted.seen[0][2] == "The Ray cluster does not answer: it does not say why."
