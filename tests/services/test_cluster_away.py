"""A cluster that is there, is away, comes back or cannot be looked at: what the API answers and tells."""

import asyncio

import pytest
from omni_rl_services.coordinator import core

from omni_rl.bridge.seam import ClusterState
from omni_rl.errors import (
    BridgeProtocolError,
)
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge

pytestmark = pytest.mark.anyio


async def test_ready_when_the_actors_answer(served: Served) -> None:
    assert (await served.http.get("/readyz")).json() == {"ready": True, "reason": ""}
    members = (await served.http.get("/v1/state")).json()["cluster"]["members"]
    assert [(member["name"], member["role"]) for member in members] == [
        ("rollout-0", "rollout"),
        ("trainer", "trainer"),
    ]


async def test_without_ray_the_api_answers_and_says_what_is_missing(serve: Serve) -> None:
    async with serve(FakeBridge(down="the head of Ray at 127.0.0.1:6379 is gone")) as served:
        for method, path, body in (
            ("POST", "/v1/syncs", {}),
            ("POST", "/v1/checks", {}),
            ("GET", "/v1/jobs", None),
            ("GET", "/v1/jobs/grpo-1/logs", None),
            ("DELETE", "/v1/jobs/grpo-1", None),
            ("POST", "/v1/jobs", {"kind": "grpo", "parameters": {"run": "digits"}}),
        ):
            answer = await served.http.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "ray_unavailable"), path
            assert "127.0.0.1:6379 is gone" in answer.json()["detail"]
        state = (await served.http.get("/v1/state")).json()
        assert (state["cluster"]["connected"], state["cluster"]["reason"]) == (False, served.bridge.down)
        ready = await served.http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert (await served.http.get("/healthz")).status_code == 200
        assert (await served.http.get("/v1/syncs")).json() == []


async def test_a_cluster_that_goes_and_comes_back_is_told_of_once_each(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "WATCH_SECONDS", 0.02)
    gone = "the head of Ray is gone"
    async with serve() as served:
        for down in (None, gone, None):
            served.bridge.down = down
            async with asyncio.timeout(10):
                while (await served.http.get("/v1/state")).json()["cluster"]["connected"] is (down is not None):
                    await asyncio.sleep(0.01)
        events = (await served.http.get("/v1/events/page")).json()
    told = [(event["data"]["connected"], event["data"]["reason"]) for event in events if event["kind"] == "cluster"]
    assert told == [(True, ""), (False, gone), (True, "")]


class Stumbling(FakeBridge):
    """Cannot be looked at while it `stumbles`."""

    stumbles = 0

    async def state(self) -> ClusterState:
        if self.stumbles > 0:
            self.stumbles -= 1
            raise BridgeProtocolError("no ClusterState")
        return await super().state()


async def test_the_cluster_is_looked_at_again_after_a_look_that_failed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "WATCH_SECONDS", 0.01)
    bridge = Stumbling()
    async with serve(bridge) as served:
        bridge.stumbles = 2
        bridge.version = "digits/1/7/0badf00d"
        async with asyncio.timeout(10):
            while (await served.http.get("/v1/state")).json()["cluster"]["members"][0]["version"] != bridge.version:
                await asyncio.sleep(0.01)
