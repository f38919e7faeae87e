"""Updates of weights in engines that are not ours: what is told of them, and what becomes of it."""

import asyncio
from typing import Any

import pytest
import torch
from omni_rl_services.coordinator import updates as service

from omni_rl.agent.bodies import sum_body
from omni_rl.agent.tensors import fingerprint
from omni_rl.agent.trainer import of_tensors
from omni_rl.errors import LedgerError
from omni_rl.ledger.types import NewIncident
from omni_rl.ledger.updates import NewUpdate
from tests.services.conftest import Serve, Served

RUN = {"run": "trl", "model": "tiny", "dtype": "float32", "framework": "trl"}
Q, K, NORM = "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight", "norm.weight"
Weights = dict[str, torch.Tensor]
pytestmark = pytest.mark.anyio


def trained(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {f"model.{name}": torch.randn(4, 4, generator=generator) for name in (Q, K)} | {
        f"model.{NORM}": torch.randn(4, generator=generator)
    }


def receipt(weights: Weights, before: Weights | None = None, **said: Any) -> dict[str, Any]:
    parts: dict[str, list[Any]] = {}
    for name, value in weights.items():
        changed = before is None or not torch.equal(before[name], value)
        parts[name.removeprefix("model.")] = [[*sum_body(fingerprint(value))], "", changed]
    count = sum(part[2] for part in parts.values())
    body = {"session": "s", "at": 100.0, "began": 99.0, "how": ["load_weights"], "tensors": 3, "changed": count}
    return {**body, "parts": parts, **said}


def announcement(weights: Weights, at: float = 0.0, **said: Any) -> dict[str, Any]:
    parts = {name: [[*sum_body(one)] for one in sums] for name, sums in of_tensors(weights.items()).items()}
    return {"at": at, "parts": parts, **said}


async def announce(served: Served, number: int, weights: Weights, **said: Any) -> dict[str, Any]:
    answer = await served.http.put(f"/v1/runs/trl/updates/{number}", json=announcement(weights, **said))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def tell(served: Served, number: int, body: dict[str, Any], engine: str = "e0") -> dict[str, Any]:
    answer = await served.http.put(f"/v1/runs/trl/engines/{engine}/updates/{number}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def alarms(served: Served) -> list[str]:
    found = (await served.http.get("/v1/runs/trl/alarms")).json()
    return [one["sentence"] for one in found if one["closed"] is None]


async def make_run(served: Served, **said: Any) -> None:
    assert (await served.http.post("/v1/runs", json={**RUN, **said})).status_code == 201


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


async def test_a_fault_that_goes_on_after_a_person_ended_its_incident_opens_another(served: Served) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    await tell(served, 1, receipt(trained(1), of=1))
    await announce(served, 2, trained(2))
    await tell(served, 2, receipt(trained(1), trained(1), of=2))
    (first,) = (await served.http.get("/v1/incidents")).json()
    await served.http.post(f"/v1/incidents/{first['incident']}/end")
    assert await alarms(served) == []
    await announce(served, 3, trained(3))
    await tell(served, 3, receipt(trained(1), trained(1), of=3))
    (second,) = (await served.http.get("/v1/incidents?open=true")).json()
    assert (second["kind"], second["cause"]) == ("update", "stale_weights")
    assert second["incident"] != first["incident"]


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


def share(weights: Weights, number: int, **said: Any) -> dict[str, Any]:
    """What one of two workers tells of its half."""
    body = receipt({name: value.chunk(2)[number] for name, value in weights.items()}, worker=number, workers=2, **said)
    for part in body["parts"].values():
        part[1] = f"{number + 1}/2"
    return body


async def seal(served: Served, number: int = 1) -> dict[str, Any]:
    """The verdict of a step whose sides differ."""
    step = f"/v1/runs/trl/attempts/1/steps/{number}"
    record = {"sample": "a", "rollout_logprobs": [-0.5] * 32, "train_logprobs": [-1.5] * 32}
    await served.http.put(f"{step}/parts/0", json={"schema": "omni_rl.step/1", "records": [record]})
    verdict: dict[str, Any] = (await served.http.post(f"{step}/seal", json={})).json()
    return verdict


async def test_workers_are_compared_once_all_have_told(served: Served) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    first = await tell(served, 1, share(trained(1), 0, of=1))
    assert (first["reported"], first["equal"]) == (1, 0)
    last = await tell(served, 1, share(trained(1), 1, of=1))
    assert (last["reported"], last["equal"], last["findings"]) == (2, 3, [])


async def test_a_worker_that_an_update_passes_by_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing touched it, so it tells of nothing: it holds what it told of last."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1))
    for number in (0, 1):
        await tell(served, 1, share(trained(1), number, of=1))
    await announce(served, 2, trained(2))
    await tell(served, 4, share(trained(2), 0, of=2))
    verdict = await seal(served)
    sentence = verdict["evidence"][0]["sentence"]
    assert sentence.startswith("update 2: worker 1 of 2 has not taken ")
    assert all(name in sentence for name in (Q, K, NORM))
    assert verdict["cause"] == "stale_weights"
    assert sentence in await alarms(served)
    await announce(served, 3, trained(3))
    for number in (0, 1):
        found = await tell(served, 7, share(trained(3), number, of=3))
    assert (found["equal"], found["findings"]) == (3, [])
    assert sentence not in await alarms(served)


@pytest.mark.parametrize("known", [True, False])
async def test_a_receipt_that_comes_after_a_newer_one_of_another_worker_counts(
    served: Served, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Worker 1 took the update with worker 0, and its receipt was on its way for longer."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1))
    for number in (0, 1) if known else (0,):
        await tell(served, 0, share(trained(1), number, of=1))
    await announce(served, 2, trained(2))
    for number in (5, 9):
        await tell(served, number, share(trained(2), 0, of=2))
    await tell(served, 5, share(trained(2), 1, of=2))
    await tell(served, 3, share(trained(1), 1, of=1))  # older than what is known of it by now
    await seal(served)
    assert await wrong(served) == []


async def test_a_late_receipt_ends_what_was_assumed_of_its_worker(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1))
    for number in (0, 1):
        await tell(served, 0, share(trained(1), number, of=1))
    await announce(served, 2, trained(2))
    for number in (5, 9):
        await tell(served, number, share(trained(2), 0, of=2))
    await seal(served)
    (sentence,) = await wrong(served)
    assert sentence.startswith("update 2: worker 1 of 2 has not taken ")
    await tell(served, 5, share(trained(2), 1, of=2))
    await seal(served)
    assert await wrong(served) == []


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


async def test_an_engine_that_does_not_say_which_update_it_took_is_told_of_a_little_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SETTLE_SECONDS", 0.05)
    await make_run(served)
    await announce(served, 1, trained(1), at=1.0)
    broken = {**trained(1), f"model.{Q}": trained(1)[f"model.{K}"], f"model.{K}": trained(1)[f"model.{Q}"]}
    await tell(served, 1, receipt(broken, at=1.5))
    assert await alarms(served) == []
    while not await alarms(served):
        await asyncio.sleep(0.01)
    assert await alarms(served) == [f"update 1: {Q} and {K} are swapped"]


async def test_a_lag_that_the_run_declares_is_allowed(served: Served) -> None:
    await make_run(served, lag=1)
    for number in (1, 2, 3):
        await announce(served, number, trained(number))
    found = await tell(served, 1, receipt(trained(2), of=3))
    assert (found["of"], found["findings"]) == (2, [])
    found = await tell(served, 2, receipt(trained(1), of=3))
    assert found["findings"][0]["sentence"] == "update 3: the engine holds the weights of update 1"


async def test_silence_is_told_before_the_next_step_is_judged(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1))
    await tell(served, 1, receipt(trained(1), of=1))
    await announce(served, 2, trained(2))
    verdict = await seal(served)
    sentence = "engine e0 has confirmed update 1, and the trainer is at update 2: the run declares no lag"
    assert sentence in await alarms(served)
    assert verdict["cause"] == "stale_weights"
    assert verdict["evidence"][0]["sentence"] == sentence


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


async def test_a_coordinator_that_is_started_again_knows_the_newest_updates(serve: Serve) -> None:
    async with serve() as served:
        await make_run(served)
        await announce(served, 1, trained(1))
        await tell(served, 1, receipt(trained(1), of=1))
    async with serve() as served:
        await announce(served, 2, trained(2))
        found = await tell(served, 2, receipt(trained(1), trained(1), of=2))
        assert found["findings"][0]["sentence"] == "update 2 changed 0 of 3 tensors: the engine holds update 1"


async def test_a_trainer_that_is_started_again_numbers_its_updates_anew(served: Served) -> None:
    await make_run(served)
    for number in (1, 2):
        await announce(served, number, trained(number), session="a")
        await tell(served, number, receipt(trained(number), of=number))
    await announce(served, 1, trained(7), session="b")
    found = await tell(served, 0, receipt(trained(7), of=1, session="t"))
    assert (found["of"], found["equal"], found["findings"]) == (1, 3, [])
    assert await alarms(served) == []


STALE = "update 2 changed 0 of 3 tensors: the engine holds update 1"


async def go_stale(served: Served, *engines: str) -> None:
    """Have engines take update 1 and keep it at update 2."""
    await make_run(served)
    for number, weights in ((1, trained(1)), (2, trained(1))):
        await announce(served, number, trained(number))
        for engine in engines:
            await tell(served, number, receipt(weights, trained(1), of=number), engine)


async def wrong(served: Served) -> list[str]:
    """What is told of the run's updates, of steps beside them or not."""
    found = (await served.http.get("/v1/incidents?run=trl&kind=update&open=true")).json()
    return [one["what"] for one in found]


async def ended(served: Served) -> list[str]:
    """Why each of the run's incidents that are over ended, the newest first."""
    found = (await served.http.get("/v1/incidents?run=trl&kind=update&open=false")).json()
    return [one["actions"][-1]["what"] for one in found]


async def test_what_an_earlier_coordinator_told_of_ends_with_a_right_update(serve: Serve) -> None:
    async with serve() as served:
        await go_stale(served, "e0", "e1")
        assert await wrong(served) == [f"{STALE}, in 2 of 2 engines"]
    async with serve() as served:
        # Nothing came since: the step's cause is known all the same.
        verdict = await seal(served)
        assert verdict["cause"] == "stale_weights"
        assert verdict["evidence"][0]["sentence"] == f"{STALE}, in 2 of 2 engines"
        await announce(served, 3, trained(3))
        await tell(served, 3, receipt(trained(3), trained(1), of=3), "e0")
        assert await wrong(served) == [f"{STALE}, in 2 of 2 engines"]
    async with serve() as served:
        await tell(served, 3, receipt(trained(3), trained(1), of=3), "e1")
        await announce(served, 4, trained(4))
        await tell(served, 4, receipt(trained(4), trained(3), of=4), "e0")
        assert await wrong(served) == []
        assert await ended(served) == ["a later update was right"]


async def test_what_was_told_of_before_many_other_faults_is_known_after_a_restart(serve: Serve) -> None:
    async with serve() as served:
        await go_stale(served, "e0")
        await make_run(served, run="other")
        store = served.coordinator.store
        (stale,) = await store.incidents(run="trl", kind="update")
        for number in range(101):
            seen = NewIncident(2, "stale", stale.cause, evidence=stale.evidence, kind="update", subject=f"{number}")
            await store.see_incident("other", seen)
    async with serve() as served:
        assert (await seal(served))["cause"] == "stale_weights"


async def test_what_is_wrong_with_an_engine_that_is_gone_ends(served: Served) -> None:
    await go_stale(served, "e0")
    for number in range(3, 3 + 16):
        await announce(served, number, trained(number))
        await tell(served, number, receipt(trained(number), trained(number - 1), of=number), "e1")
        assert len(await wrong(served)) == 1
    await announce(served, 19, trained(19))
    assert await wrong(served) == []
    assert await ended(served) == ["the engine that had it is taken for gone"]


async def test_engines_of_a_trainers_earlier_start_are_accused_while_no_other_has_told_of_an_update(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await go_stale(served, "old")
    await announce(served, 1, trained(7), session="b")
    assert await wrong(served) == []
    assert await ended(served) == ["the trainer was started again, and its engines are judged anew"]
    await seal(served)
    (sentence,) = await wrong(served)
    assert sentence.startswith("engine old has confirmed no update, and the trainer is at update 1")
    await tell(served, 1, receipt(trained(7), of=1, session="t"), "new")
    await announce(served, 2, trained(8), session="b")
    await tell(served, 2, receipt(trained(8), trained(7), of=2, session="t"), "new")
    await seal(served)
    assert await wrong(served) == []
    assert (await ended(served))[0] == "the engine that had it is taken for gone"


def fail(served: Served, monkeypatch: pytest.MonkeyPatch, write: str, times: int) -> None:
    """Let the ledger refuse a kind of write so many times."""
    store = served.coordinator.store
    known, failures = getattr(store, write), [LedgerError("the disk is full")] * times

    async def failing(new: NewUpdate) -> list[int]:
        if failures:
            raise failures.pop()
        numbers: list[int] = await known(new)
        return numbers

    monkeypatch.setattr(store, write, failing)


async def test_a_fault_ends_with_a_right_update_that_the_ledger_takes_at_the_second_try(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await go_stale(served, "e0")
    await announce(served, 3, trained(3))
    fail(served, monkeypatch, "put_update", 1)
    body = receipt(trained(3), trained(1), of=3)
    assert (await served.http.put("/v1/runs/trl/engines/e0/updates/3", json=body)).status_code == 503
    assert await wrong(served) == [STALE]
    await tell(served, 3, body)
    assert await wrong(served) == []
    assert await ended(served) == ["a later update was right"]


async def test_what_a_trainers_new_start_ends_is_over_once_the_ledger_takes_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await go_stale(served, "e0")
    fail(served, monkeypatch, "put_update", 1)
    body = announcement(trained(7), session="b")
    assert (await served.http.put("/v1/runs/trl/updates/1", json=body)).status_code == 503
    await announce(served, 1, trained(7), session="b")
    assert await wrong(served) == []
    assert await ended(served) == ["the trainer was started again, and its engines are judged anew"]


async def test_a_fault_of_a_trainers_new_start_is_another_than_that_of_the_start_before(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger did not take the new start, so that its first fault comes before the old one's end was stored."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1), session="a")
    await tell(served, 1, receipt(trained(1), of=1))
    await announce(served, 2, trained(2), session="a")
    await seal(served)
    assert len(await wrong(served)) == 1
    fail(served, monkeypatch, "put_update", 1)
    body = announcement(trained(7), session="b")
    assert (await served.http.put("/v1/runs/trl/updates/1", json=body)).status_code == 503
    await seal(served, 2)
    await announce(served, 1, trained(7), session="b")
    (sentence,) = await wrong(served)
    assert sentence.startswith("engine e0 has confirmed no update, and the trainer is at update 1")
    assert await ended(served) == ["the trainer was started again, and its engines are judged anew"]


async def test_what_is_told_of_a_little_later_is_told_once_the_ledger_takes_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(service, "RECORD_SECONDS", 0.01)
    await make_run(served)
    await announce(served, 1, trained(1), at=1.0)
    fail(served, monkeypatch, "change_update", 2)
    await tell(served, 1, receipt({**trained(1), f"model.{NORM}": torch.zeros(4)}, at=1.5))
    async with asyncio.timeout(10):
        while not (found := await alarms(served)):
            await asyncio.sleep(0.01)
    assert found == [f"update 1: {NORM} is zero in the engine and not in the trainer"]


async def test_a_worker_that_an_update_did_not_concern_is_not_silent_after_a_restart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 1's half is as it was, so that only worker 0 tells of the second update."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    second = {name: torch.cat((value.chunk(2)[0], trained(1)[name].chunk(2)[1])) for name, value in trained(2).items()}
    async with serve() as served:
        await make_run(served)
        await announce(served, 1, trained(1))
        for number in (0, 1):
            await tell(served, 1, share(trained(1), number, of=1))
        await announce(served, 2, second)
        await tell(served, 2, share(second, 0, of=2))
    async with serve() as served:
        await announce(served, 2, second)  # again: the answer was lost
        await seal(served)
        assert await wrong(served) == []


async def test_an_engine_may_be_as_far_behind_after_a_restart_as_the_run_declares(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    async with serve() as served:
        await make_run(served, lag=8)
        for number in range(1, 17):
            await announce(served, number, trained(number))
            if number > 8:
                await tell(served, number, receipt(trained(number - 8), of=number - 8))
    async with serve() as served:
        await announce(served, 17, trained(17))
        await tell(served, 17, receipt(trained(9), trained(8), of=9))
        await seal(served)
        assert await wrong(served) == []
