"""Syncs through the API, against a hand-written cluster."""

import asyncio
from typing import Any

import pytest

from omni_rl.bridge.seam import SyncRequest
from omni_rl.errors import NonFiniteWeightsError, SyncRolledBackError
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Observer
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import LOST, FakeBridge

pytestmark = pytest.mark.anyio


async def test_a_sync_that_is_waited_for_answers_with_what_was_proven(served: Served) -> None:
    answer = await served.http.post("/v1/syncs?wait=true", json={})
    assert answer.status_code == 200
    sync = answer.json()
    assert (sync["state"], sync["outcome"]) == ("finished", "committed")
    assert sync["elements_proven"] == sync["elements"] == 1_480_704
    assert sync["agreement"]["image"]["logprob_abs_diff_mean"] == 8e-7
    assert (sync["bytes"], sync["stall"], sync["seconds"]["verify"]) == (2_961_408, 0.12, 0.08)
    assert [phase["phase"] for phase in sync["phases"]] == [
        "prepare",
        "pause",
        "apply",
        "verify",
        "commit",
        "resume",
        "idle",
    ]
    assert answer.headers["location"] == f"/v1/syncs/{sync['sync']}"
    assert (await served.http.get(answer.headers["location"])).json() == sync


async def test_whoever_hears_that_a_sync_is_over_finds_its_weights_in_the_state(served: Served) -> None:
    answer = (await served.http.post("/v1/syncs", json={}, params={"wait": True})).json()
    state = (await served.http.get("/v1/state")).json()
    assert {member["version"] for member in state["cluster"]["members"]} == {answer["serving"]}


async def test_one_sync_at_a_time_and_the_refusal_names_the_other(served: Served) -> None:
    served.bridge.go.clear()
    begun = await served.http.post("/v1/syncs", json={})
    assert (begun.status_code, begun.json()["state"]) == (202, "running")
    name = begun.json()["sync"]
    while (await served.http.get(f"/v1/syncs/{name}")).json()["phase"] != "apply":
        await asyncio.sleep(0.01)
    refused = await served.http.post("/v1/syncs", json={})
    assert (refused.status_code, refused.json()["code"], refused.json()["sync"]) == (409, "sync_running", name)
    assert refused.headers["location"] == f"/v1/syncs/{name}"
    assert (await served.http.get("/v1/state")).json()["sync"] == name
    served.bridge.go.set()
    while (await served.http.get(f"/v1/syncs/{name}")).json()["state"] == "running":
        await asyncio.sleep(0.01)
    assert (await served.http.post("/v1/syncs?wait=true", json={})).status_code == 200


@pytest.mark.parametrize(("kind", "status"), [("sync_started", 503), ("sync_ended", 200)])
async def test_a_sync_that_the_ledger_took_no_event_of_is_over_and_the_next_one_begins(
    served: Served, kind: str, status: int
) -> None:
    """The ledger refuses as on a full disk: nothing that is written about the sync is kept."""

    def write(statement: str) -> "asyncio.Future[object]":
        writer = served.coordinator.store._ledger.writer
        return asyncio.wrap_future(writer.submit(lambda connection: connection.exec_driver_sql(statement).close()))

    full = f"NEW.kind = '{kind}' BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
    await write(f"CREATE TRIGGER full BEFORE INSERT ON events WHEN {full}")
    key = {"Idempotency-Key": "step-12"}
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).status_code == status
    await write("DROP TRIGGER full")
    assert (await served.http.get("/v1/state")).json()["sync"] is None
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()["outcome"] == "committed"
    assert (await served.http.post("/v1/syncs?wait=true", json={})).json()["outcome"] == "committed"


async def test_a_sync_that_was_rolled_back_says_so(served: Served) -> None:
    served.bridge.sync_error = SyncRolledBackError("3 elements of mixer.D differ; replicas serve what they served")
    answer = await served.http.post("/v1/syncs?wait=true", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "sync_rolled_back")
    assert "mixer.D" in answer.json()["detail"]
    (listed,) = (await served.http.get("/v1/syncs")).json()
    assert (listed["outcome"], listed["state"]) == ("failed", "finished")
    served.bridge.sync_error = None
    assert (await served.http.post("/v1/syncs?wait=true", json={})).status_code == 200


async def test_weights_that_are_not_finite_have_a_code_of_their_own(served: Served) -> None:
    served.bridge.sync_error = NonFiniteWeightsError("layers.3.A_log: 17 NaN of 64 elements")
    answer = await served.http.post("/v1/syncs?wait=true", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "non_finite_weights")
    assert "layers.3.A_log: 17 NaN of 64 elements" in answer.json()["detail"]


async def test_what_is_not_finite_and_was_allowed_is_in_the_proof(serve: Serve) -> None:
    async with serve() as served:
        assert served.bridge.requests == []
        served.bridge.nonfinite = ("layers.3.A_log: 17 NaN of 64 elements",)
        body = {"allow_nonfinite": True, "source": "published", "version": "digits/1/7/abc"}
        sync = (await served.http.post("/v1/syncs?wait=true", json=body)).json()
        assert served.bridge.requests[0].allow_nonfinite
        assert (sync["allow_nonfinite"], sync["nonfinite"]) == (True, ["layers.3.A_log: 17 NaN of 64 elements"])
        events = (await served.http.get("/v1/events/page")).json()
        assert [one["data"]["nonfinite"] for one in events if one["kind"] == "sync_ended"] == [sync["nonfinite"]]
    async with serve() as served:  # as the ledger has it
        (kept,) = (await served.http.get("/v1/syncs")).json()
        assert (kept["nonfinite"], kept["source"]) == (sync["nonfinite"], "published")


async def test_a_figure_that_is_not_a_number_is_null_in_a_sync_and_a_check(serve: Serve) -> None:
    bridge = FakeBridge(figures=LOST)
    async with serve(bridge) as served:
        begun = (await served.http.post("/v1/syncs?wait=true", json={})).json()
        check = (await served.http.post("/v1/checks", json={})).json()
        assert check["severity"] == "pause"
        assert "overall: logprob_abs_diff_mean is not a number" in check["reason"]
        for figures in (begun["agreement"], check["figures"]):
            assert figures["overall"]["logprob_abs_diff_mean"] is figures["image"]["logprob_abs_diff_mean"] is None
    async with serve() as served:
        assert (await served.http.get(f"/v1/syncs/{begun['sync']}")).json()["agreement"] == begun["agreement"]


async def test_successors_come_without_new_weights(served: Served) -> None:
    before = (await served.http.post("/v1/syncs?wait=true", json={})).json()
    shown = "omni_rl_sync_bytes 2.961408e+06"
    assert shown in (await served.http.get("/metrics")).text
    answer = (await served.http.post("/v1/syncs?wait=true", json={"source": "served"})).json()
    assert (answer["source"], answer["version"]) == ("served", before["version"])
    assert shown in (await served.http.get("/metrics")).text


async def test_weights_come_only_from_where_the_operator_said(serve: Serve, tmp_path: Any) -> None:
    inside, outside = tmp_path / "weights" / "step-3", tmp_path / "elsewhere"
    async with serve(weight_roots=(tmp_path / "weights",)) as served:
        for path in (outside, f"{inside}/../../elsewhere"):
            answer = await served.http.post("/v1/syncs", json={"source": "directory", "path": str(path)})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        answer = await served.http.post("/v1/syncs?wait=true", json={"source": "directory", "path": str(inside)})
        assert answer.status_code == 200
        assert served.bridge.requests[0].path == str(inside)


@pytest.mark.parametrize(
    "body",
    [
        {"source": "published"},
        {"source": "trainer", "path": "/etc"},
        {"source": "http://example.com/weights"},
        {"surprise": 1},
    ],
)
async def test_sync_bodies_that_are_refused(served: Served, body: dict[str, Any]) -> None:
    answer = await served.http.post("/v1/syncs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


class Broken(FakeBridge):
    """Its syncs end with an error that nobody foresaw, once."""

    broken = True

    async def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        if self.broken:
            self.broken = False
            raise KeyError("rollout-0")
        return await super().sync(request, observe)


async def test_a_sync_that_ends_unexpectedly_keeps_no_other_from_beginning(serve: Serve) -> None:
    async with serve(Broken()) as served:
        assert (await served.http.post("/v1/syncs?wait=true", json={})).status_code == 500
        (failed,) = (await served.http.get("/v1/syncs")).json()
        assert (failed["state"], failed["outcome"]) == ("finished", "failed")
        assert "KeyError('rollout-0')" in failed["reason"]
        answer = await served.http.post("/v1/syncs?wait=true", json={})
        assert (answer.status_code, answer.json()["outcome"]) == (200, "committed")
