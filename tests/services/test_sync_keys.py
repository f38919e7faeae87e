"""A sync's key: one operation however often it is sent, over restarts and lost answers."""

import asyncio

import pytest

from omni_rl.errors import (
    RayUnavailableError,
)
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge

pytestmark = pytest.mark.anyio


async def test_a_key_is_one_operation_however_often_it_is_sent(served: Served) -> None:
    served.bridge.go.clear()
    key = {"Idempotency-Key": "step-12"}
    waiting = [asyncio.create_task(served.http.post("/v1/syncs?wait=true", json={}, headers=key)) for _ in range(3)]
    await asyncio.sleep(0.05)
    served.bridge.go.set()
    answers = [(await task).json() for task in waiting]
    assert len({answer["sync"] for answer in answers}) == 1
    assert len(served.bridge.requests) == 1
    again = await served.http.post("/v1/syncs", json={}, headers=key)
    assert (again.status_code, again.json()["sync"]) == (200, answers[0]["sync"])
    other = await served.http.post("/v1/syncs", json={"mode": "drain"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


async def test_a_key_outlives_the_coordinator(serve: Serve) -> None:
    key = {"Idempotency-Key": "step-12"}
    async with serve() as served:
        first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    async with serve() as served:
        again = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
        assert again["sync"] == first["sync"]
        assert (again["outcome"], again["elements_proven"]) == ("committed", 1_480_704)
        assert [phase["phase"] for phase in again["phases"]] == [phase["phase"] for phase in first["phases"]]
        assert again["phase"] == first["phase"] == "idle"
        assert served.bridge.requests == []
        (listed,) = (await served.http.get("/v1/syncs")).json()
        assert listed["sync"] == first["sync"]


async def test_a_key_of_another_run_of_the_cluster_is_another_sync(serve: Serve) -> None:
    key = {"Idempotency-Key": "step-12"}
    async with serve(FakeBridge(run="first")) as served:
        first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    async with serve(FakeBridge(run="second")) as served:
        second = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
        assert second["sync"] != first["sync"]
        assert [(request.sync, request.key) for request in served.bridge.requests] == [(second["sync"], "step-12")]
    async with serve(FakeBridge(run="first")) as served:
        assert (await served.http.post("/v1/syncs", json={}, headers=key)).json()["sync"] == first["sync"]
        assert served.bridge.requests == []


async def test_a_cluster_that_hosts_another_run_by_now_takes_the_key_again(served: Served) -> None:
    key = {"Idempotency-Key": "step-12"}
    first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    journal, served.bridge.run, served.bridge.journal = served.bridge.journal, "another", None
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()["sync"] != first["sync"]
    served.bridge.journal = journal


async def test_a_key_is_known_while_the_cluster_is_away(serve: Serve) -> None:
    key = {"Idempotency-Key": "step-12"}
    async with serve() as served:
        first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
        served.bridge.down = "the head of Ray is gone"
        assert (await served.http.post("/v1/syncs", json={}, headers=key)).json()["sync"] == first["sync"]
    down = FakeBridge(down="connecting")
    for run, status in (("digits", 200), ("another", 503)):
        cluster = {"address": "127.0.0.1:6379", "dashboard": "", "run": run, "model": "model", "ledger": ""}
        async with serve(down, cluster=cluster) as served:
            assert (await served.http.post("/v1/syncs", json={}, headers=key)).status_code == status


async def test_a_bridge_that_died_over_a_sync_is_asked_again_under_the_same_key(served: Served) -> None:
    key = {"Idempotency-Key": "step-3"}
    bridge = served.bridge
    bridge.sync_error, journal = RayUnavailableError("the bridge to Ray ended"), bridge.journal
    bridge.journal = None  # it ended before it wrote a word
    lost = await served.http.post("/v1/syncs?wait=true", json={}, headers=key)
    assert (lost.status_code, lost.json()["code"]) == (503, "ray_unavailable")
    bridge.sync_error, bridge.journal = None, journal
    again = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    assert (again["outcome"], again["key"]) == ("committed", "step-3")
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()["sync"] == again["sync"]
    assert bridge.calls.count("sync") == 2


async def test_what_the_successor_made_of_it_counts_where_the_bridge_had_begun(served: Served) -> None:
    key = {"Idempotency-Key": "step-3"}
    served.bridge.sync_error = RayUnavailableError("the bridge to Ray ended")
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).status_code == 503
    served.bridge.sync_error = None
    again = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    assert (again["state"], again["outcome"]) == ("finished", "rolled_back")
    assert served.bridge.calls.count("sync") == 1


async def test_a_sync_that_the_bridge_died_over_is_listed_as_it_is_shown(served: Served) -> None:
    served.bridge.sync_error = RayUnavailableError("the bridge to Ray ended")
    await served.http.post("/v1/syncs?wait=true", json={})
    (listed,) = (await served.http.get("/v1/syncs")).json()
    shown = (await served.http.get(f"/v1/syncs/{listed['sync']}")).json()
    assert listed["outcome"] == shown["outcome"] == "rolled_back", "as its successor left it in the ledger"
