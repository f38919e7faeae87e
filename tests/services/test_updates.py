"""Updates of weights in engines that are not ours: what is told of them, and what becomes of it."""

import threading
from typing import Any

import pytest

from tests.services.conftest import Served
from tests.services.update_calls import (
    alarms,
    announce,
    announcement,
    make_run,
    receipt,
    share,
    tell,
    trained,
)

pytestmark = pytest.mark.anyio


async def test_an_update_that_arrived_is_equal_and_rings_nothing(served: Served) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    found = await tell(served, 1, receipt(trained(1), of=1))
    assert (found["equal"], found["different"], found["findings"]) == (3, 0, [])
    assert await alarms(served) == []
    lines = (await served.http.get("/v1/runs/trl/updates")).json()
    assert [(line["engine"], line["of"]) for line in lines] == [("e0", 1), (None, 1)]


async def test_an_update_that_changed_nothing_rings_at_once_and_ends_with_the_next(served: Served) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    await tell(served, 1, receipt(trained(1), of=1))
    await announce(served, 2, trained(2))
    found = await tell(served, 2, receipt(trained(1), trained(1), of=2))
    sentence = "update 2 changed 0 of 3 tensors: the engine holds update 1"
    assert [one["sentence"] for one in found["findings"]] == [sentence]
    assert found["findings"][0]["cause"] == "stale_weights"
    assert await alarms(served) == [sentence]
    # Still the same fault: it is not rung for again.
    await announce(served, 3, trained(3))
    await tell(served, 3, receipt(trained(1), trained(1), of=3))
    assert len(await alarms(served)) == 1
    await announce(served, 4, trained(4))
    await tell(served, 4, receipt(trained(4), trained(1), of=4))
    assert await alarms(served) == []


async def test_several_engines_with_the_same_fault_are_counted_in_one_alarm(served: Served) -> None:
    await make_run(served)
    adapter = {"name": "policy", "rank": 4, "parts": {"layers.0.q_proj.lora_A": [["float32", 4, "00000000000000ff"]]}}
    await announce(served, 1, trained(1), adapters=[adapter])
    for engine in ("e0", "e1", "e2", "e3"):
        loaded = [adapter] if engine in ("e0", "e1") else []
        await tell(served, 1, receipt(trained(1), of=1, adapters=loaded), engine)
    assert await alarms(served) == ["update 1: adapter `policy` is not loaded, in 2 of 4 engines"]


async def test_an_adapter_with_more_matrices_than_the_trainers_is_another(served: Served) -> None:
    await make_run(served)
    part = [["float32", 4, "00000000000000ff"]]
    adapter: dict[str, Any] = {"name": "policy", "rank": 4, "parts": {"layers.0.q_proj.lora_A": part}}
    more = {**adapter, "parts": {**adapter["parts"], "layers.1.q_proj.lora_A": part}}
    await announce(served, 1, trained(1), adapters=[adapter])
    await tell(served, 1, receipt(trained(1), of=1, adapters=[more]))
    (sentence,) = await alarms(served)
    assert sentence == (
        "update 1: adapter `policy` has 1 matrices that the trainer's has not, layers.1.q_proj.lora_A first"
    )


async def test_the_trainers_word_may_come_after_the_engines(served: Served) -> None:
    await make_run(served)
    await announce(served, 1, trained(1), at=1.0)
    await tell(served, 1, receipt(trained(1), at=1.5))
    # Sent after the trainer's second update, which is still on its way.
    await tell(served, 2, receipt(trained(2), at=2.5))
    await announce(served, 2, trained(2), at=2.0)
    assert await alarms(served) == []
    lines = (await served.http.get("/v1/runs/trl/updates")).json()
    assert {line["number"]: line["of"] for line in lines if line["engine"]} == {1: 1, 2: 2}


async def test_a_lag_that_the_run_declares_is_allowed(served: Served) -> None:
    await make_run(served, lag=1)
    for number in (1, 2, 3):
        await announce(served, number, trained(number))
    found = await tell(served, 1, receipt(trained(2), of=3))
    assert (found["of"], found["findings"]) == (2, [])
    found = await tell(served, 2, receipt(trained(1), of=3))
    assert found["findings"][0]["sentence"] == "update 3: the engine holds the weights of update 1"


async def test_a_cache_that_outlives_an_update_is_named(served: Served) -> None:
    await make_run(served)
    for number in (1, 2):
        await announce(served, number, trained(number))
        found = await tell(served, number, receipt(trained(number), of=number, caches={"prefix": 1}))
    cause, sentence = found["findings"][0]["cause"], found["findings"][0]["sentence"]
    assert cause == "stale_cache"
    assert sentence.startswith("prefix cache not reset since update 1")
    assert await alarms(served) == [sentence]


@pytest.mark.parametrize(("since", "when"), [(0, "the engine started"), (1, "an earlier update")])
async def test_a_cache_that_outlives_many_updates_is_as_old_as_it_is_known_to_be(
    served: Served, since: int, when: str
) -> None:
    """The engine's first updates are forgotten by then."""
    await make_run(served)
    for number in range(1, 40):
        await announce(served, number, trained(number))
        found = await tell(served, number, receipt(trained(number), of=number, caches={"prefix": since}))
    assert found["findings"][0]["sentence"].startswith(f"prefix cache not reset since {when}: ")


async def test_the_same_again_is_fine_and_other_content_a_conflict(served: Served) -> None:
    await make_run(served)
    for _ in range(2):
        await announce(served, 1, trained(1))
        await tell(served, 1, receipt(trained(1), of=1))
    assert (await served.http.put("/v1/runs/trl/updates/1", json=announcement(trained(2)))).status_code == 409
    url = "/v1/runs/trl/engines/e0/updates/1"
    assert (await served.http.put(url, json=receipt(trained(2), of=1))).status_code == 409
    assert len((await served.http.get("/v1/runs/trl/updates")).json()) == 2


async def test_what_is_no_receipt_is_refused_and_says_why(served: Served) -> None:
    await make_run(served)
    url = "/v1/runs/trl/engines/e0/updates/1"
    for body, said in (
        ({**receipt(trained(1)), "worker": -1}, "worker"),
        ({**receipt(trained(1)), "parts": {"a": [["float32", 1, "xyz"]]}}, "parts.a"),
        ({**receipt(trained(1)), "surprise": 1}, "surprise"),
    ):
        answer = await served.http.put(url, json=body)
        assert answer.status_code == 422
        assert said in answer.json()["detail"]
    assert (await served.http.put("/v1/runs/none/engines/e0/updates/1", json=receipt(trained(1)))).status_code == 404
    async with served.http.stream("PUT", url, content=b"[" * (33 << 20)) as refused:
        assert refused.status_code == 413


async def test_updates_are_listed_the_newest_first_and_one_for_all_workers(served: Served) -> None:
    await make_run(served)
    for update in (1, 2):
        await announce(served, update, trained(update))
        for number in (0, 1):
            await tell(served, update, share(trained(update), number, of=update))
    found = (await served.http.get("/v1/runs/trl/updates")).json()
    assert [(one["engine"], one["number"]) for one in found] == [("e0", 2), (None, 2), ("e0", 1), (None, 1)]
    assert [one["reported"] for one in found if one["engine"]] == [2, 2]
    assert len((await served.http.get("/v1/runs/trl/updates?limit=1")).json()) == 1
    events = [one for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "update"]
    assert {one["run"] for one in events} == {"trl"}
    assert [one["data"] for one in events if one["data"]["number"] == 2][-1] == {"engine": "e0", "number": 2, "of": 2}
    assert (await served.http.get("/v1/runs/none/updates")).status_code == 404


async def test_a_run_without_updates_has_nothing_to_say_of_its_steps(served: Served) -> None:
    await make_run(served)
    assert await served.coordinator.updates.before_seal(await served.coordinator.run("trl")) is None


@pytest.mark.parametrize(("size", "aside"), [(0, False), (64 << 10, False), ((64 << 10) + 1, True)])
async def test_more_than_64_kib_are_looked_through_in_a_thread_of_their_own(
    served: Served, size: int, aside: bool
) -> None:
    thread = await served.coordinator.updates._workers.run(size, threading.get_ident)
    assert (thread != threading.get_ident()) is aside
