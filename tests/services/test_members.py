"""Syncs that fail and engines that die are incidents, until a later sync or the engine itself says otherwise."""

import asyncio
from dataclasses import replace

import pytest
from omni_rl_services.coordinator.members import AWAY_SECONDS, DEAD_SECONDS, Members, fallen
from omni_rl_services.coordinator.webhooks import PagerSettings, WebhookSettings
from pydantic import SecretStr

from omni_rl.bridge.seam import ClusterState, ReplicaState, SyncRequest
from omni_rl.errors import LedgerError, ReplicaDeadError
from omni_rl.ledger.types import IncidentEnd, NewIncident
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Observer
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge
from tests.services.posted import RUN
from tests.services.receiver import receiving
from tests.services.test_incidents import incidents

pytestmark = pytest.mark.anyio
WELL = ClusterState(
    True, "", "127.0.0.1:6379", "digits", "open", (ReplicaState("rollout-0", "rollout", "v1", "serving"),)
)
DEAD = replace(WELL, members=(ReplicaState("rollout-0", "rollout", "", "dead", "it was killed"),))
AWAY = replace(WELL, connected=False, reason="the head is gone", members=())


class Unproven(FakeBridge):
    """Its syncs are committed without all of their proof."""

    async def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        return replace(await super().sync(request, observe), elements_proven=1_480_700)


async def test_a_failed_sync_is_one_until_another_is_committed(served: Served) -> None:
    served.bridge.sync_error = ReplicaDeadError("rollout-0 is gone")
    for _ in range(2):
        await served.http.post("/v1/syncs?wait=true", json={})
    (found,) = await incidents(served)
    assert (found["kind"], found["run"], found["severity"]) == ("sync", "digits", "mask")
    assert found["what"] == "A sync of weights failed: rollout-0 is gone."
    assert found["actions"][0]["what"] == "the engines serve the weights from before"
    assert "omni-rl sync" in found["remedy"]
    served.bridge.sync_error = None
    await served.http.post("/v1/syncs?wait=true", json={})
    assert (await incidents(served))[0]["ended"] is not None


async def test_a_sync_without_all_of_its_proof_is_one(serve: Serve) -> None:
    async with serve(Unproven()) as served:
        await served.http.post("/v1/runs", json={**RUN, "run": "digits"})
        await served.http.post("/v1/syncs?wait=true", json={})
        (found,) = await incidents(served)
        assert found["severity"] == "pause"
        assert found["what"] == "A sync was committed with 4 of 1480704 storage elements not proven."
        assert (await served.http.get("/v1/runs/digits")).json()["need"] == "pause"


async def test_an_engine_that_stays_dead_is_one_until_it_answers(served: Served) -> None:
    now = [0.0]
    members = Members(served.coordinator.store, lambda: now[0])
    assert not await members.look(DEAD)
    now[0] += DEAD_SECONDS - 1
    assert not await members.look(WELL), "it was replaced"
    assert not await members.look(DEAD)
    now[0] += DEAD_SECONDS
    assert await members.look(DEAD)
    assert not await members.look(DEAD), "told once"
    (found,) = await incidents(served)
    assert (found["kind"], found["what"]) == ("engine", "rollout-0 is dead: it was killed.")
    members = Members(served.coordinator.store, lambda: now[0])
    assert not await members.look(AWAY), "what cannot be seen is not known to be well"
    assert await members.look(WELL), "told by a coordinator before"
    assert (await incidents(served))[0]["ended"] is not None


class Seen(FakeBridge):
    """Its cluster is as it is told."""

    def __init__(self, seen: ClusterState) -> None:
        super().__init__()
        self.seen = seen

    async def state(self) -> ClusterState:
        return self.seen


@pytest.mark.parametrize("state", ["dead", "stopped", "quarantined"])
async def test_the_service_is_not_ready_while_a_member_is_not_well(serve: Serve, state: str) -> None:
    trainer = ReplicaState("trainer", "trainer", "v1", state, "rank 1 (process 7 on 10.0.0.2)")
    bridge = Seen(replace(WELL, members=(*WELL.members, trainer)))
    async with serve(bridge) as served:
        answer = await served.http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reason"] == f"trainer is {state}: rank 1 (process 7 on 10.0.0.2)"
        bridge.seen = WELL
        await served.coordinator._look_at_cluster()
        assert (await served.http.get("/readyz")).json() == {"ready": True, "reason": ""}


async def test_a_trainer_that_was_replaced_is_one_until_a_person_ends_it(served: Served) -> None:
    now = [0.0]
    members = Members(served.coordinator.store, lambda: now[0])
    first, second, third = (replace(WELL, trainer=f"process {pid} on 10.0.0.2") for pid in (7, 8, 9))
    for seen in (AWAY, first, AWAY, first):
        assert not await members.look(seen)
    assert await members.look(second)
    assert not await members.look(second), "told once"
    (found,) = await incidents(served)
    assert (found["kind"], found["severity"], found["run"]) == ("engine", "pause", "digits")
    assert found["what"].startswith(
        "A trainer (process 7 on 10.0.0.2) ended, and with it what it learnt since its last"
    )
    assert found["ended"] is None, "that it answers brings nothing back"
    # Another one while nobody has looked at the first: one incident, which says in the end what was lost.
    stopped = replace(second, members=(ReplicaState("trainer", "trainer", "v1", "stopped", "rank 1"),))
    await members.look(stopped)
    now[0] += DEAD_SECONDS
    assert await members.look(stopped)
    assert await members.look(third)
    members = Members(served.coordinator.store, lambda: now[0])
    await members.look(third)
    own, replaced = await incidents(served)
    assert own["what"] == "trainer is stopped: rank 1."
    assert own["ended"] is not None
    assert replaced["incident"] == found["incident"]
    assert replaced["what"].startswith("A trainer (process 8 on 10.0.0.2) ended")
    assert replaced["ended"] is None
    ended = (await served.http.post(f"/v1/incidents/{found['incident']}/end")).json()
    assert ended["ended"] is not None
    await members.look(first)
    assert (await incidents(served))[0]["incident"] not in (own["incident"], replaced["incident"]), "a new one"


async def test_a_trainer_that_was_replaced_is_told_of_again_if_it_could_not_be_written(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = served.coordinator.store
    members = Members(store)
    first, second = (replace(WELL, trainer=f"process {pid} on 10.0.0.2") for pid in (7, 8))
    await members.look(first)

    async def failing(run: str | None, new: NewIncident) -> int:
        raise LedgerError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(store, "see_incident", failing)
        with pytest.raises(LedgerError):
            await members.look(second)
    assert await members.look(second)
    assert len(await incidents(served, open=True)) == 1


async def test_somebody_is_paged_when_a_trainer_was_replaced(serve: Serve) -> None:
    first, second = (replace(WELL, trainer=f"process {pid} on 10.0.0.2") for pid in (7, 8))
    bridge = Seen(first)
    with receiving() as receiver:
        pager = PagerSettings(webhooks=(WebhookSettings(name="ops", url=SecretStr(receiver.url)),))
        async with serve(bridge) as served:
            bridge.seen = second
            await served.coordinator._look_at_cluster()
        # Whoever is paged late is paged all the same: the trainer that answers now has not ended it.
        async with serve(bridge, pager=pager) as served:
            await asyncio.to_thread(receiver.wait, 1)
            while not (await served.coordinator.store.incident(1)).told:
                await asyncio.sleep(0.01)
    (only,) = receiver.got
    assert only.json["state"] == "open"
    assert only.json["incident"]["what"].startswith("A trainer (process 7 on 10.0.0.2) ended")


async def test_a_cluster_that_stays_away_is_one(served: Served) -> None:
    now = [0.0]
    members = Members(served.coordinator.store, lambda: now[0])
    await members.look(AWAY)
    now[0] += AWAY_SECONDS
    assert await members.look(AWAY)
    (found,) = await incidents(served)
    assert found["what"] == "The Ray cluster does not answer: the head is gone."
    await members.look(WELL)
    assert await incidents(served, open=True) == []


async def test_a_coordinator_without_a_cluster_refuses_to_pause_and_changes_nothing(serve: Serve) -> None:
    async with serve() as served:
        served.coordinator._alone = True
        answer = await served.http.post("/v1/pause", json={"reason": "maintenance"})
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith("nothing can be paused: ")
        assert (await served.http.get("/v1/state")).json()["gate"]["gate"] == "open"
        events = (await served.http.get("/v1/events/page")).json()
        assert "hold" not in {event["kind"] for event in events}


async def test_a_pause_while_the_cluster_is_away_holds_and_is_not_confirmed(served: Served) -> None:
    served.bridge.down = "the head is gone"
    answer = await served.http.post("/v1/pause", json={"reason": "maintenance"})
    assert (answer.status_code, answer.json()["gate"], answer.json()["confirmed"]) == (200, "closed", False)
    answer = await served.http.post("/v1/resume")
    assert (answer.status_code, answer.json()["gate"], answer.json()["confirmed"]) == (200, "open", False)


async def test_a_pause_while_an_engine_is_dead_holds_and_is_not_confirmed(served: Served) -> None:
    served.bridge.gate_error = ReplicaDeadError("rollout-1: its process ended during Hold; replace it")
    answer = await served.http.post("/v1/pause", json={"reason": "maintenance"})
    assert (answer.status_code, answer.json()["gate"], answer.json()["confirmed"]) == (200, "closed", False)
    served.bridge.gate_error = None
    await served.coordinator.gate.observe("open")
    gate = (await served.http.get("/v1/state")).json()["gate"]
    assert (gate["gate"], gate["confirmed"], served.bridge.open_gate) == ("closed", True, False)


async def test_a_service_whose_weights_are_gone_is_not_ready() -> None:
    assert fallen(WELL) == ""
    assert fallen(replace(WELL, slabs="slab-0 was cut")) == "slab-0 was cut"
    assert fallen(replace(DEAD, slabs="slab-0 was cut")) == "rollout-0 is dead: it was killed; slab-0 was cut"


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_cluster_that_was_away_from_the_start_is_over_when_it_answers(served: Served, restarted: bool) -> None:
    now = [0.0]
    members = Members(served.coordinator.store, lambda: now[0])
    never = replace(AWAY, run=None)
    await members.look(never)
    now[0] += AWAY_SECONDS
    assert await members.look(never)
    assert [one["ended"] for one in await incidents(served)] == [None]
    assert await (Members(served.coordinator.store) if restarted else members).look(WELL)
    (over,) = await incidents(served)
    assert over["ended"] is not None


async def test_an_engine_that_is_still_dead_opens_another_after_a_person_ended_the_first(served: Served) -> None:
    now = [0.0]
    served.coordinator._members = members = Members(served.coordinator.store, lambda: now[0])
    await members.look(DEAD)
    now[0] += DEAD_SECONDS
    assert await members.look(DEAD)
    (first,) = await incidents(served)
    await served.http.post(f"/v1/incidents/{first['incident']}/end")
    assert not await members.look(DEAD), "who ended it knows of it"
    now[0] += DEAD_SECONDS
    assert await members.look(DEAD)
    (second,) = await incidents(served, open=True)
    assert second["incident"] != first["incident"]


async def test_two_looks_at_once_end_an_incident_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    store = served.coordinator.store
    now = [0.0]
    members = Members(store, lambda: now[0])
    await members.look(DEAD)
    now[0] += DEAD_SECONDS
    await members.look(DEAD)
    end, go = store.end_incidents, asyncio.Event()

    async def slow(run: str | None, over: IncidentEnd) -> None:
        await go.wait()
        await end(run, over)

    monkeypatch.setattr(store, "end_incidents", slow)
    looks = asyncio.gather(members.look(WELL), members.look(WELL))
    await asyncio.sleep(0.05)
    go.set()
    first, second = await looks
    assert (first, second) == (True, False)
    assert await incidents(served, open=True) == []
