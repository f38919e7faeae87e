"""For how many seconds everybody waits for everything, in an event loop whose time passes at once."""

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from omni_rl_services.coordinator import repeating, supervisor
from omni_rl_services.coordinator.bodies import Bodies
from omni_rl_services.coordinator.gate import Gate
from omni_rl_services.coordinator.memory import Room
from omni_rl_services.coordinator.pager import Pager
from omni_rl_services.coordinator.settings import Bounds
from omni_rl_services.coordinator.supervisor import SupervisedBridge
from omni_rl_services.coordinator.telemetry import Telemetry
from omni_rl_services.coordinator.updates import Updates
from omni_rl_services.coordinator.webhooks import PagerSettings
from starlette.exceptions import HTTPException
from starlette.types import Message

from omni_rl.agent.judging import EngineUpdates, RunUpdates
from omni_rl.consistency.policy import DriftCommand
from omni_rl.errors import LedgerError, TooManyError
from tests.services.asgi import echo
from tests.services.conftest import Serve
from tests.services.test_bodies import put
from tests.services.test_event_stream import Pages, event, made
from tests.services.test_pager_rules import OPEN, Kept, webhook
from tests.services.test_pursuits import RECHECKING, Stuck, World, outcome
from tests.services.test_supervised_calls import SETTINGS
from tests.services.virtual import now, run


async def never(*_: object) -> Any:
    await asyncio.Event().wait()


async def taken(message: Message) -> None:
    return None


def test_the_next_bytes_of_a_body_have_ten_seconds() -> None:
    async def look() -> None:
        with pytest.raises(HTTPException, match="nothing came of the body for 10 s"):
            await Bodies(echo, Bounds(), lambda request: True)(put("/v1/runs", 10), never, taken)
        assert now() == 10

    run(look())


def test_memory_is_waited_for_twenty_seconds() -> None:
    async def look() -> None:
        room = Room(10)
        async with room.taken(1):
            with pytest.raises(TooManyError, match="send this again"):
                async with room.taken(10):
                    pass
        assert (now(), room.is_waited_for, room._free) == (20, False, 10)

    run(look())


def test_a_stream_in_which_nothing_happens_has_a_heartbeat_every_fifteen_seconds() -> None:
    async def look() -> None:
        stream, _ = made(Pages())
        follower = await stream.stream(0)
        for seconds in (15, 30):
            assert await anext(follower) is None
            assert now() == seconds

    run(look())


def test_a_stream_of_one_run_has_its_heartbeats_while_other_runs_are_busy() -> None:
    async def look() -> None:
        stream, _ = made(Pages())
        follower = await stream.stream(0, "math")

        async def busy() -> None:
            while True:
                await asyncio.sleep(7.0)
                await stream.publish("step", "another")

        others = [asyncio.create_task(stream.pump()), asyncio.create_task(busy())]
        for seconds in (15, 30):
            assert await anext(follower) is None
            assert now() == seconds
        for other in others:
            other.cancel()

    run(look())


def test_events_of_another_process_are_looked_for_every_second_and_after_a_failure_too() -> None:
    async def look() -> None:
        pages = Pages()
        pages.failures = [LedgerError("disk I/O error")]
        stream, _ = made(pages)
        heard: list[float] = []
        stream.hear(lambda event: heard.append(now()))
        pumping = asyncio.create_task(stream.pump())
        for number in (1, 2, 3):
            await asyncio.sleep(0.3 if number == 1 else 1.0)
            pages.kept.append(event(number))
        await asyncio.sleep(1.0)
        pumping.cancel()
        assert heard == [1, 2, 3]

    run(look())


def test_a_webhook_looks_for_news_every_five_seconds_and_its_receiver_has_ten() -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200)

    async def look() -> None:
        looks: list[float] = []

        class Looked(Kept):
            async def incidents_since(self, when: float) -> Any:
                looks.append(now())
                return await super().incidents_since(when)

        kept: Any = Looked(OPEN)
        paging = Pager(PagerSettings(webhooks=(webhook(),)), kept, Telemetry(1), httpx.MockTransport(answer))
        paging.open()
        await asyncio.sleep(12)
        await paging.close()
        assert looks == [0, 5, 10]

    run(look())
    (request,) = requests
    assert set(request.extensions["timeout"].values()) == {10}


def test_an_answer_waits_for_the_gate_for_five_seconds() -> None:
    async def look() -> None:
        world = World(RECHECKING)
        world.responder._gate = Gate(Stuck())
        await world.responder.respond(world.run, outcome(DriftCommand.CLOSE))
        assert now() == 5

    run(look())


def test_after_a_restart_a_pursuit_waits_for_the_cluster_for_five_minutes() -> None:
    async def look() -> None:
        world = World(RECHECKING)
        world.responder.pursue(world.run, asyncio.Event())
        await asyncio.sleep(299.9)
        assert world.asked == []
        await asyncio.sleep(0.2)
        assert len(world.asked) == 1

    run(look())


def test_a_result_that_the_ledger_does_not_take_is_recorded_again_every_two_seconds() -> None:
    async def look() -> None:
        world = World(RECHECKING)
        world.ledger = [LedgerError("the disk is full")] * 3
        assert (await world.pursue_to_its_end()).gate == "open"
        assert now() == 6

    run(look())


def test_a_bridge_has_ten_seconds_to_say_how_the_cluster_is_and_five_to_end() -> None:
    async def look() -> None:
        bridge = SupervisedBridge(SETTINGS)
        writer: Any = SimpleNamespace(write=lambda line: None)
        bridge._writer = writer
        seen = await bridge.state()
        assert (seen.connected, seen.reason, now()) == (False, "the bridge did not answer within 10 s", 10)
        killed = asyncio.Event()
        process: Any = SimpleNamespace(wait=killed.wait, kill=killed.set)
        assert await supervisor._ended(process) is True
        assert now() == 15

    run(look())


def test_an_engine_that_does_not_say_which_update_it_took_is_judged_after_a_second() -> None:
    async def look() -> None:
        poked: list[float] = []
        fake: Any = SimpleNamespace(poke=lambda: poked.append(now()))
        updates = Updates(fake, fake, 1000)
        of: Any = SimpleNamespace(name="trl")
        live: Any = SimpleNamespace(of=RunUpdates(0), turn=asyncio.Lock())
        state = EngineUpdates("e0", session="s", number=3)
        state.of, state.confirmed = {3: 7}, 7
        updates._settle(of, live, state)
        await asyncio.sleep(2)
        assert poked == [1]
        await updates.close()

    run(look())


@pytest.mark.anyio
async def test_the_cluster_is_looked_at_every_two_seconds_and_old_media_every_ten_minutes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await never()

    monkeypatch.setattr(repeating, "asyncio", SimpleNamespace(sleep=sleep))
    async with serve():
        await asyncio.sleep(0)
    assert sorted(waits) == [2, 600]
