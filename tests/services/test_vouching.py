"""What a person's word changes of a run and its gate, what it leaves, and what of it outlives a restart."""

import asyncio
from typing import Any

import pytest

from omni_rl.bridge.seam import ClusterState
from omni_rl.consistency.actions import Cause
from omni_rl.errors import ReplicaDeadError
from omni_rl.ledger.types import NewIncident
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge
from tests.services.posted import CALM, DRIFTED, GATED, RUN, post, rest, seal
from tests.services.test_incidents import incidents
from tests.services.test_verdicts import RUN as MATH
from tests.services.test_verdicts import SHIFTED, step

pytestmark = pytest.mark.anyio


async def gate(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = (await served.http.get("/v1/state")).json()["gate"]
    return found


async def halted(served: Served) -> None:
    served.bridge.cause = Cause.MEDIA_MISMATCH
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    assert (await rest(served))["drift"]["gate"] == "halted"


async def test_a_run_that_waits_for_a_person_holds_the_gate_over_a_restart(serve: Serve) -> None:
    bridge = FakeBridge()
    async with serve(bridge) as served:
        await halted(served)
    bridge.open_gate = True
    async with serve(bridge) as served:
        assert not bridge.open_gate, "from the first moment on"
        found = await gate(served)
        assert (found["gate"], [hold["holder"] for hold in found["holds"]]) == ("closed", ["run:digits"])
        assert found["holds"][0]["reason"] == "the drift of run digits"
        assert (await served.http.post("/v1/resume", json={"run": "digits"})).json()["gate"] == "open"
        assert (await served.http.get("/v1/runs/digits")).json()["drift"]["severity"] == "ok"
    async with serve(bridge) as served:
        assert ((await gate(served))["gate"], bridge.open_gate) == ("open", True)


async def test_the_newest_word_of_a_person_counts_after_a_restart(serve: Serve) -> None:
    for words, held in (
        (("pause", "resume", "pause"), "third (by local)"),
        (("pause", "pause", "resume"), None),
        (("resume",), None),
    ):
        async with serve() as served:
            for number, word in zip(("first", "second", "third"), words, strict=False):
                body = {"reason": number} if word == "pause" else {}
                assert (await served.http.post(f"/v1/{word}", json=body)).status_code == 200
        async with serve() as served:
            holds = (await gate(served))["holds"]
            assert [hold["reason"] for hold in holds] == ([] if held is None else [held])
            await served.http.post("/v1/resume")


async def test_resuming_a_run_whose_gate_is_open_changes_nothing_of_it(served: Served) -> None:
    await served.http.post("/v1/runs", json=MATH)
    await step(served, 0, SHIFTED)
    before = (await served.http.get("/v1/runs/math")).json()
    for body in ({"run": "math"}, {}):
        assert (await served.http.post("/v1/resume", json=body)).json()["gate"] == "open"
    assert (await served.http.get("/v1/runs/math")).json() == before
    assert [one["ended"] for one in await incidents(served)] == [None]


async def test_without_a_name_the_persons_own_hold_and_the_one_runs_end_together(served: Served) -> None:
    await halted(served)
    await served.http.post("/v1/pause", json={"reason": "maintenance"})
    assert [hold["holder"] for hold in (await gate(served))["holds"]] == ["run:digits", "person"]
    answer = (await served.http.post("/v1/resume")).json()
    assert (answer["gate"], answer["confirmed"], answer["holds"]) == ("open", True, [])


async def test_a_run_is_resumed_by_its_name_and_a_persons_hold_stays(served: Served) -> None:
    await halted(served)
    await served.http.post("/v1/pause", json={"reason": "maintenance"})
    answer = (await served.http.post("/v1/resume", json={"run": "digits"})).json()
    assert (answer["gate"], [hold["holder"] for hold in answer["holds"]]) == ("closed", ["person"])
    assert not served.bridge.open_gate


async def test_an_incident_that_is_over_is_ended_again_without_a_word_on_its_run(served: Served) -> None:
    await served.http.post("/v1/runs", json=MATH)
    await step(served, 0, SHIFTED)
    first = (await served.http.post("/v1/incidents/1/end")).json()
    await step(served, 1, SHIFTED)
    again = (await served.http.post("/v1/incidents/1/end")).json()
    assert again == first
    assert (await served.http.get("/v1/runs/math")).json()["drift"]["severity"] == "pause"
    assert [one["incident"] for one in await incidents(served, open=True)] == [2]


async def test_ending_an_incident_of_another_kind_vouches_for_no_run(served: Served) -> None:
    await served.http.post("/v1/runs", json=MATH)
    await step(served, 0, SHIFTED)
    store = served.coordinator.store
    await store.see_incident("math", NewIncident(2, "No step came.", kind="silence"))
    await store.see_incident(None, NewIncident(2, "Of no run.", kind="drift"))
    for number in (2, 3):
        ended = (await served.http.post(f"/v1/incidents/{number}/end")).json()
        assert ended["ended"] is not None
    assert (await served.http.get("/v1/runs/math")).json()["drift"]["severity"] == "pause"
    assert [one["incident"] for one in await incidents(served, open=True)] == [1]


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 200), ("rl.example", 200), ("rl.example:99", 200), ("evil.example", 403)]
)
async def test_names_that_the_operator_allows_are_the_coordinators_too(serve: Serve, host: str, status: int) -> None:
    async with serve(allowed_hosts=("rl.example",)) as served:
        assert (await served.http.get("/v1/state", headers={"Host": host})).status_code == status


async def test_a_cluster_whose_gate_stands_open_is_closed_at_the_next_look(served: Served) -> None:
    await served.http.post("/v1/pause", json={"reason": "maintenance"})
    served.bridge.open_gate = True  # a replica that came up anew
    await served.coordinator._watch()
    assert not served.bridge.open_gate
    await served.http.post("/v1/resume")
    served.bridge.open_gate = False
    await served.coordinator._watch()
    assert served.bridge.open_gate


class Flaky(FakeBridge):
    """Its cluster is away at every second look."""

    looks = 0

    async def state(self) -> ClusterState:
        self.looks += 1
        self.down = "gone" if self.looks % 2 == 0 else None
        return await super().state()


async def test_a_cluster_is_told_of_at_each_change_and_at_no_other_look(serve: Serve) -> None:
    async with serve(Flaky()) as served:
        for _ in range(3):
            await served.coordinator._look_at_cluster()
        served.bridge.down = "gone"
        events = [one["data"] for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "cluster"]
    assert [one["connected"] for one in events] == [True, False, True, False]


async def test_a_calm_run_does_not_hold_the_gate_and_several_calm_ones_are_resumed_at_once(served: Served) -> None:
    for name in ("a", "b"):
        await served.http.post("/v1/runs", json={**RUN, "run": name})
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    await seal(served)
    await served.http.post("/v1/pause", json={"reason": "maintenance"})
    answer = await served.http.post("/v1/resume")
    assert (answer.status_code, answer.json()["gate"]) == (200, "open")


async def paused(served: Served) -> None:
    """Have a run whose weights are being brought again."""
    served.bridge.cause = Cause.STALE_WEIGHTS
    served.bridge.go.clear()
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    async with asyncio.timeout(10):
        while not served.bridge.requests:
            await asyncio.sleep(0.005)
    run = (await served.http.get("/v1/runs/digits")).json()
    assert (run["drift"]["gate"], run["drift"]["pursuit"]) == ("paused", "resyncing")


async def test_an_incident_whose_run_is_paused_ends_by_resuming_the_run(served: Served) -> None:
    await paused(served)
    refused = await served.http.post("/v1/incidents/1/end")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert refused.json()["detail"] == "the gate of run digits is paused: resume the run, which ends it"
    assert [one["ended"] for one in await incidents(served)] == [None]
    answer = (await served.http.post("/v1/resume")).json()
    assert (answer["gate"], answer["confirmed"]) == ("open", True)
    (over,) = await incidents(served)
    assert over["actions"][-1]["what"] == "resumed by local"
    served.bridge.go.set()
    run = (await served.http.get("/v1/runs/digits")).json()
    assert (run["drift"]["gate"], run["drift"]["severity"]) == ("open", "ok"), "what was under way changes it no more"


async def test_a_run_that_is_paused_is_resumed_by_its_name(served: Served) -> None:
    await paused(served)
    answer = (await served.http.post("/v1/resume", json={"run": "digits"})).json()
    assert (answer["gate"], answer["holds"], served.bridge.open_gate) == ("open", [], True)
    assert (await served.http.get("/v1/runs/digits")).json()["drift"]["pursuit"] == "nothing"
    served.bridge.go.set()


async def test_a_run_that_is_paused_holds_the_gate_over_a_restart(serve: Serve) -> None:
    bridge = FakeBridge()
    async with serve(bridge) as served:
        await paused(served)
    bridge.open_gate, bridge.down = True, "connecting"
    async with serve(bridge) as served:
        assert not bridge.open_gate
        assert [hold["holder"] for hold in (await gate(served))["holds"]] == ["run:digits"]
        bridge.down = None
        await served.http.post("/v1/resume")


async def test_an_incident_that_opens_between_two_steps_is_of_the_latest(served: Served) -> None:
    """A step at warn is none; that it cannot be healed is one."""
    limits = {"overall": {"gen_kl_error": {"warn": 1e-9, "mask": 10.0, "pause": 20.0}}}
    served.bridge.cause, served.bridge.sync_error = Cause.STALE_WEIGHTS, ReplicaDeadError("rollout-0 is gone")
    await served.http.post("/v1/runs", json={**GATED, "limits": limits})
    await post(served, CALM)
    assert (await seal(served))["severity"] == "warn"
    assert (await rest(served))["drift"]["gate"] == "halted"
    (found,) = await incidents(served, kind="drift")
    assert (found["attempt"], found["step"], found["severity"], found["cause"]) == (1, 12, "pause", "stale_weights")
    assert "the resync failed: rollout-0 is gone" in found["what"].lower()
    assert found["actions"][-1]["what"] == "generation is stopped until a person resumes it"
