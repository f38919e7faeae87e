"""Whom a check asks, by which limits it is judged, and what the state and readiness say beside it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.core import Coordinator
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from omni_rl.bridge.seam import ClusterState, ReplicaState
from omni_rl.consistency.actions import Cause
from omni_rl.errors import LedgerError
from tests.ledgers import open_ledger
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import MODULES, PART, THEIRS, FakeBridge
from tests.services.posted import CALM, RUN, post, seal
from tests.services.test_members import WELL, Seen

pytestmark = pytest.mark.anyio
STEP = {"run": "digits", "attempt": 1, "step": 12}


@pytest.mark.parametrize(
    ("gated", "down", "body", "asks"),
    [
        (False, False, {}, True),
        (False, False, STEP, False),
        (False, False, {**STEP, "reference": True}, True),
        (False, False, {**STEP, "localise": True}, True),
        (True, False, STEP, True),
        (True, True, STEP, False),
        (False, True, {**STEP, "localise": True}, False),
        (False, False, {**STEP, "legs": False}, False),
    ],
)
async def test_the_pair_is_asked_where_it_can_say_more_than_the_records(
    serve: Serve, gated: bool, down: bool, body: dict[str, Any], asks: bool
) -> None:
    async with serve(FakeBridge(down="the head is gone" if down else None)) as served:
        await served.http.post("/v1/runs", json={**RUN, "gated": gated})
        await post(served, CALM)
        await seal(served)
        answer = await served.http.post("/v1/checks", json=body)
        assert answer.status_code == 200, answer.text
        assert ("check" in served.bridge.calls) is asks
        check = answer.json()
        assert check["step"] == body.get("step")
        if not asks:
            assert (check["legs"], check["answers"], check["seconds"]) == ({}, [], 0.0)
            assert check["figures"]["overall"]["tokens"] == 8


LOW = {"overall": {"logprob_abs_diff_mean": {"warn": 1e-9, "mask": 1e-8, "pause": 1.0}}}


@pytest.mark.parametrize(
    ("run", "body", "severity"),
    [
        (None, {}, "ok"),
        ("digits", {}, "mask"),  # the cluster's run
        ("other", {}, "ok"),
        ("other", {"run": "other", "attempt": 1, "step": 3, "reference": True}, "mask"),
    ],
)
async def test_a_check_is_judged_by_the_limits_of_the_run_that_is_named_or_else_the_clusters(
    served: Served, run: str | None, body: dict[str, Any], severity: str
) -> None:
    if run is not None:
        await served.http.post("/v1/runs", json={**RUN, "run": run, "dtype": "float32", "limits": LOW})
    answer = await served.http.post("/v1/checks", json=body)
    assert (answer.status_code, answer.json()["severity"]) == (200, severity)


async def test_a_cluster_that_hosts_no_run_is_judged_by_its_dtype(serve: Serve) -> None:
    async with serve(Seen(replace(WELL, run=None))) as served:
        assert (await served.http.post("/v1/checks", json={})).json()["severity"] == "ok"
        assert (await served.http.get("/v1/state")).json()["cluster"]["run"] is None


@pytest.mark.parametrize("body", [{"run": "digits"}, {"run": "digits", "step": 3}, {"attempt": 1, "step": 3}])
async def test_a_check_of_half_a_step_is_refused(served: Served, body: dict[str, Any]) -> None:
    await served.http.post("/v1/runs", json=RUN)
    answer = await served.http.post("/v1/checks", json=body)
    assert (answer.status_code, "check" in served.bridge.calls) == (422, False)


async def test_a_check_of_a_run_that_is_not_there_is_not_found(served: Served) -> None:
    assert (await served.http.post("/v1/checks", json={**STEP, "reference": True})).status_code == 404


async def test_a_check_is_told_as_an_event_of_its_run(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    await seal(served)
    for body in ({}, STEP):
        await served.http.post("/v1/checks", json=body)
    events = [one for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "check"]
    assert [(one["run"], one["data"]) for one in events] == [
        (None, {"check": 1, "severity": "ok", "cause": None, "step": None}),
        ("digits", {"check": 2, "severity": "ok", "cause": None, "step": 12}),
    ]


async def test_the_state_has_the_cluster_as_it_was_seen_last(serve: Serve) -> None:
    members = (ReplicaState("rollout-0", "rollout", "v1", "dead", "it was killed"),)
    bridge = Seen(replace(WELL, members=members))
    async with serve(bridge) as served:
        cluster = (await served.http.get("/v1/state")).json()["cluster"]
        assert cluster == {
            "expected": True,
            "connected": True,
            "reason": "",
            "address": "127.0.0.1:6379",
            "run": "digits",
            "members": [
                {"name": "rollout-0", "role": "rollout", "version": "v1", "state": "dead", "detail": "it was killed"}
            ],
        }
        bridge.seen = ClusterState(connected=False, reason="the head is gone")
        await served.coordinator._look_at_cluster()
        away = (await served.http.get("/v1/state")).json()["cluster"]
        assert away == {**cluster, "connected": False, "reason": "the head is gone"}
        metrics = (await served.http.get("/metrics")).text
        assert "omni_rl_ray_up 0.0" in metrics
        assert "omni_rl_cluster_members{" not in metrics


async def test_a_service_whose_ledger_cannot_be_written_is_not_ready(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ready() -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(served.coordinator.store, "ready", ready)
    answer = await served.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": "the disk is full"})


async def test_a_coordinator_without_a_cluster_is_ready_and_expects_none(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    settings = CoordinatorSettings(ledger=url, media=MediaSettings(directory=tmp_path / "media"))
    app = create_app(settings, ledger=open_ledger(url))
    coordinator: Coordinator = app.state.coordinator
    async with app.router.lifespan_context(app):
        assert (await coordinator.ready()).model_dump() == {"ready": True, "reason": ""}
        state = await coordinator.state()
        assert (state.cluster.expected, state.cluster.connected) == (False, False)
        assert "without a Ray cluster" in state.cluster.reason
        assert coordinator._unseen == ()
        assert not coordinator.gate.closed
        assert await coordinator.store.incidents() == []


@pytest.mark.parametrize(
    ("connected", "run", "unseen"), [(True, "digits", ()), (False, "digits", ("digits",)), (False, None, ())]
)
async def test_the_run_of_a_cluster_that_does_not_answer_is_unseen(
    serve: Serve, connected: bool, run: str | None, unseen: tuple[str, ...]
) -> None:
    bridge = Seen(replace(WELL, run=run))
    async with serve(bridge) as served:
        bridge.seen = replace(bridge.seen, connected=connected, reason="gone")
        await served.coordinator._look_at_cluster()
        assert served.coordinator._unseen == unseen


async def test_a_gate_that_is_held_is_shown_with_the_cluster(served: Served) -> None:
    async def closed() -> bool:
        await served.coordinator._look_at_cluster()
        return "omni_rl_gate_closed 1.0" in (await served.http.get("/metrics")).text

    assert not await closed()
    await served.http.post("/v1/pause", json={"reason": "maintenance"})
    assert await closed()
    await served.http.post("/v1/resume")
    assert not await closed()


async def test_pausing_and_resuming_are_told_with_who_did_it(served: Served) -> None:
    await served.http.post("/v1/pause", json={"reason": "maintenance"})
    await served.http.post("/v1/resume")
    await served.http.post("/v1/resume", json={})
    events = [one["data"] for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "hold"]
    released = {"what": "released", "reason": "resumed by local"}
    assert events == [{"what": "held", "reason": "maintenance (by local)"}, released, released]
    missing = await served.http.post("/v1/resume", json={"run": "nobody"})
    assert missing.status_code == 404


async def test_a_run_is_told_of_once_when_it_is_made(served: Served) -> None:
    for status in (201, 200):
        answer = await served.http.post("/v1/runs", json=RUN)
        assert (answer.status_code, answer.headers["location"]) == (status, "/v1/runs/digits")
    events = [one for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "run"]
    assert [(one["run"], one["data"]) for one in events] == [
        ("digits", {"what": "created", "framework": "verl", "dtype": "bfloat16"})
    ]


async def test_a_run_is_ended_once(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    await seal(served)
    for _ in range(2):
        assert (await served.http.post("/v1/runs/digits/end")).json()["activity"] == "ended"
    await asyncio.sleep(0)
    events = [one["data"] for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "activity"]
    assert events == [{"before": "live", "after": "ended"}]


async def test_a_check_is_judged_and_says_the_cause(served: Served) -> None:
    calm = (await served.http.post("/v1/checks", json={})).json()
    assert (calm["severity"], calm["cause"]) == ("ok", None)
    served.bridge.figures, served.bridge.cause = PART, Cause.MEDIA_MISMATCH
    found = (await served.http.post("/v1/checks", json={})).json()
    assert (found["severity"], found["cause"]) == ("pause", "media_mismatch")
    assert found["legs"]["train_vs_prefill"]["image"]["gen_kl_error"] == 5.2


async def test_checks_are_kept_with_what_they_found(serve: Serve) -> None:
    about = {"run": "digits", "attempt": 1, "step": 12, "localise": True}
    async with serve() as served:
        probe = (await served.http.post("/v1/checks", json={"localise": True, "legs": False})).json()
        served.bridge.cause = Cause.KERNEL
        await served.http.post("/v1/runs", json={**RUN, "gated": True})
        step = (await served.http.post("/v1/checks", json=about)).json()
    async with serve() as served:
        assert (await served.http.get(f"/v1/checks/{step['check']}")).json() == step
        listed = (await served.http.get("/v1/checks")).json()
        assert [one["check"] for one in listed] == [step["check"], probe["check"]]
        assert (listed[0]["step"], listed[1]["step"]) == (12, None)
        (found,) = listed[0]["evidence"]
        assert list(found["modules"]) == list(MODULES)
        assert found["modules"]["layers.1.mixer"] == [0.5, 1e-5]
        assert found["modules"]["logits"][0] is None
        assert listed[0]["legs"] == {}
        assert step["answers"][1]["legs"]["batch_vs_alone"][-2:] == [pytest.approx(6e-7), None]
        for query in ("run=digits&step=12", "run=digits&attempt=1"):
            (only,) = (await served.http.get(f"/v1/checks?{query}")).json()
            assert only["check"] == step["check"]
        assert (await served.http.get("/v1/checks?run=digits&step=13")).json() == []
        missing = await served.http.get("/v1/checks/99")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        events = (await served.http.get("/v1/events/page", params={"after": 0})).json()
        told = [(event["run"], event["data"]["check"]) for event in events if event["kind"] == "check"]
        assert told == [(None, probe["check"]), ("digits", step["check"])]


async def test_a_check_of_published_weights_says_what_was_proven(served: Served) -> None:
    served.bridge.published = True
    check = (await served.http.post("/v1/checks", json={})).json()
    assert (check["severity"], check["cause"], check["figures"], check["compared"]) == ("unjudged", None, {}, False)
    assert (
        check["reason"]
        == "nothing was compared: the engines hold, byte for byte, the weights that were brought to them"
    )
    assert check["sentence"] == THEIRS
    served.bridge.cause = Cause.CORRUPT_WEIGHTS
    broken = (await served.http.post("/v1/checks", json={})).json()
    assert (broken["severity"], broken["cause"]) == ("pause", "corrupt_weights")
