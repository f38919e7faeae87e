"""A gate that a person holds, over restarts."""

import asyncio

import pytest

from tests.services.conftest import Serve
from tests.services.fake_bridge import FakeBridge
from tests.services.posted import RUN

pytestmark = pytest.mark.anyio


async def test_a_person_holds_the_gate_over_a_restart(serve: Serve) -> None:
    bridge = FakeBridge()
    async with serve(bridge) as served:
        gate = (await served.http.post("/v1/pause", json={"reason": "maintenance"})).json()
        assert (gate["gate"], gate["confirmed"], bridge.open_gate) == ("closed", True, False)
        assert gate["holds"][0]["reason"] == "maintenance (by local)"
    bridge.open_gate = True  # a cluster that came up anew knows of no hold
    async with serve(bridge) as served:
        assert (await served.http.get("/v1/state")).json()["gate"]["gate"] == "closed"
        async with asyncio.timeout(10):
            while bridge.open_gate:
                await asyncio.sleep(0.05)
        gate = (await served.http.post("/v1/resume")).json()
        assert (gate["gate"], gate["holds"], bridge.open_gate) == ("open", [], True)
    async with serve(bridge) as served:
        assert (await served.http.get("/v1/state")).json()["gate"]["gate"] == "open"


async def test_a_person_holds_the_gate_over_a_restart_after_a_run_was_resumed_by_its_name(serve: Serve) -> None:
    async with serve() as served:
        (await served.http.post("/v1/runs", json=RUN)).raise_for_status()
        await served.http.post("/v1/pause", json={"reason": "maintenance"})
        gate = (await served.http.post("/v1/resume", json={"run": RUN["run"]})).json()
        assert [hold["holder"] for hold in gate["holds"]] == ["person"]
    async with serve() as served:
        gate = (await served.http.get("/v1/state")).json()["gate"]
        assert [hold["holder"] for hold in gate["holds"]] == ["person"]
