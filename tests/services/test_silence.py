"""A run whose steps stop coming is silent until its next step, and told of once."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from omni_rl.api.runs import RunAnswer
from omni_rl.commands.service import _doing
from tests.services.conftest import Served
from tests.services.fake_bridge import FakeBridge
from tests.services.test_telemetry import samples
from tests.services.test_verdicts import CLEAN, EMPTY, RUN, SHIFTED, step

pytestmark = pytest.mark.anyio
AFTER = 600.0


class Clock:
    """Unix seconds that pass when a test says so, or that somebody sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self._set = 0.0

    def __call__(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - self._set

    def set(self, seconds: float) -> None:
        self.now += seconds
        self._set += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(tmp_path: Path, clock: Clock) -> Callable[[], FastAPI]:
    """A coordinator of that clock, on one ledger."""

    def made() -> FastAPI:
        ledger, media = f"sqlite:///{tmp_path / 'ledger.db'}", MediaSettings(directory=tmp_path / "media")
        settings = CoordinatorSettings(ledger=ledger, media=media, silent_after=AFTER)
        return create_app(settings, bridge=FakeBridge(), clock=clock, monotonic=clock.monotonic)

    return made


@pytest.fixture
async def served(app: Callable[[], FastAPI]) -> AsyncIterator[Served]:
    running = app()
    transport = httpx.ASGITransport(running, raise_app_exceptions=False)
    async with (
        running.router.lifespan_context(running),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield Served(running, http, running.state.coordinator, FakeBridge())


async def of(served: Served, run: str = "math") -> dict[str, Any]:
    found: dict[str, Any] = (await served.http.get(f"/v1/runs/{run}")).json()
    return found


async def silent(served: Served) -> bool:
    """Whether `/metrics` has it."""
    found = samples((await served.http.get("/metrics")).text)
    return any(name == "omni_rl_incident_open" and ("incident_kind", "silence") in labels for name, labels in found)


async def told(served: Served) -> list[dict[str, Any]]:
    return [
        event.data for event in await served.coordinator.store.events(after=0, limit=500) if event.kind == "activity"
    ]


async def test_a_run_is_silent_after_its_time_without_a_step_and_until_the_next_one(
    served: Served, clock: Clock
) -> None:
    await served.http.post("/v1/runs", json=RUN)
    assert (await of(served))["activity"] == "waiting"
    clock.now += 10 * AFTER
    assert not await served.coordinator.silence.look(), "no step came yet"
    verdict = await step(served, 0, CLEAN)
    clock.now += AFTER
    assert not await served.coordinator.silence.look(), "not for longer than that"
    clock.now += 1
    assert await served.coordinator.silence.look()
    assert not await served.coordinator.silence.look(), "told once"
    run = await of(served)
    assert (run["activity"], run["step"], run["drift"]) == ("silent", 0, verdict["drift"])
    assert run["sealed"] == clock.now - AFTER - 1
    assert _doing(RunAnswer.model_validate(run)).startswith("silent (step 0 was at 20")
    assert await silent(served)
    await step(served, 1, CLEAN)
    assert (await of(served))["activity"] == "live"
    await served.coordinator.silence.look()
    assert not await silent(served)
    assert await told(served) == [{"before": "live", "after": "silent"}, {"before": "silent", "after": "live"}]


@pytest.mark.parametrize("far", [10 * AFTER, -10 * AFTER])
async def test_a_clock_that_is_set_makes_no_run_silent_and_keeps_none_from_it_for_ever(
    served: Served, clock: Clock, far: float
) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, CLEAN)
    clock.set(far)
    assert not await served.coordinator.silence.look()
    clock.now += AFTER
    assert not await served.coordinator.silence.look()
    clock.now += AFTER if far > 0 else AFTER - far
    assert await served.coordinator.silence.look()


async def test_silence_neither_raises_nor_calms(served: Served, clock: Clock) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, SHIFTED)
    for number in range(1, 6):
        clock.now += AFTER + 1
        await served.coordinator.silence.look()
        assert (await of(served))["drift"]["severity"] == "pause"
        await step(served, number, EMPTY)
    assert (await of(served))["drift"]["severity"] == "pause"


async def test_a_run_that_ended_is_never_silent(served: Served, clock: Clock) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, CLEAN)
    assert (await served.http.post("/v1/runs/math/end")).json()["activity"] == "ended"
    clock.now += 10 * AFTER
    assert not await served.coordinator.silence.look()
    assert (await of(served))["activity"] == "ended"
    assert (await served.http.post("/v1/runs/nobody/end")).status_code == 404
    await step(served, 0, CLEAN, attempt=2)
    assert (await of(served))["activity"] == "live", "it was started again"


async def test_the_end_of_a_silent_run_ends_its_silence(served: Served, clock: Clock) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, CLEAN)
    clock.now += AFTER + 1
    assert await served.coordinator.silence.look()
    (incident,) = (await served.http.get("/v1/incidents", params={"open": True})).json()
    assert (incident["kind"], incident["run"]) == ("silence", "math")
    await served.http.post("/v1/runs/math/end")
    assert (await served.http.get("/v1/incidents", params={"open": True})).json() == []
    (over,) = (await served.http.get("/v1/incidents", params={"run": "math"})).json()
    assert (over["incident"], over["actions"][-1]["what"]) == (incident["incident"], "the run is ended")


async def test_a_stale_attempts_step_is_no_sign_of_life(served: Served, clock: Clock) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, CLEAN, attempt=2)
    clock.now += AFTER + 1
    await step(served, 5, CLEAN, attempt=1)
    assert await served.coordinator.silence.look()


async def test_a_run_states_its_own_time(served: Served, clock: Clock) -> None:
    await served.http.post("/v1/runs", json={**RUN, "silent_after": 5 * AFTER})
    await step(served, 0, CLEAN)
    clock.now += 2 * AFTER
    assert not await served.coordinator.silence.look()
    clock.now += 4 * AFTER
    assert await served.coordinator.silence.look()
    refused = await served.http.post("/v1/runs", json={**RUN, "run": "other", "silent_after": 0})
    assert refused.status_code == 422


async def test_a_gated_run_whose_gate_is_closed_is_held_and_not_silent(served: Served, clock: Clock) -> None:
    await served.http.post("/v1/runs", json={**RUN, "gated": True})
    await step(served, 0, CLEAN)
    await served.http.post("/v1/pause", json={"reason": "maintenance"})
    clock.now += 2 * AFTER
    assert not await served.coordinator.silence.look()
    await served.http.post("/v1/resume", json={})
    assert not await served.coordinator.silence.look()
    clock.now += AFTER
    assert not await served.coordinator.silence.look(), "it has its full time again"
    clock.now += 1
    assert await served.coordinator.silence.look()


async def test_a_gate_that_was_closed_gives_no_time_to_a_run_that_it_did_not_hold(served: Served, clock: Clock) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, CLEAN)
    await served.http.post("/v1/pause", json={"reason": "maintenance"})
    clock.now += AFTER / 2
    assert not await served.coordinator.silence.look()
    await served.http.post("/v1/resume", json={})
    clock.now += AFTER / 2 + 1
    assert await served.coordinator.silence.look()


async def test_what_a_run_does_is_kept_over_a_restart(app: Callable[[], FastAPI], clock: Clock) -> None:
    for expected in ("silent", "silent", "ended"):
        running = app()
        transport = httpx.ASGITransport(running, raise_app_exceptions=False)
        async with (
            running.router.lifespan_context(running),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
        ):
            served = Served(running, http, running.state.coordinator, FakeBridge())
            if (await http.get("/v1/runs")).json() == []:
                await http.post("/v1/runs", json=RUN)
                await step(served, 0, CLEAN)
                # The ledger's own clock is the machine's, from which the run is dated after a restart.
                clock.now = 4_000_000_000.0
                await served.coordinator.silence.look()
            elif expected == "ended":
                await http.post("/v1/runs/math/end")
            await served.coordinator.silence.look()
            assert (await of(served))["activity"] == expected
            assert len(await told(served)) == (2 if expected == "ended" else 1)
