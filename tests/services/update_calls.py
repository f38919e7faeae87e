"""What a trainer and its engines report of updates of weights, and what the service makes of it."""

import asyncio
from typing import Any

import pytest
import torch
from omni_rl_services.coordinator.live_updates import LiveUpdates

from omni_rl.agent.bodies import sum_body
from omni_rl.agent.tensors import fingerprint
from omni_rl.agent.trainer import of_tensors
from omni_rl.errors import LedgerError
from omni_rl.ledger.updates import NewUpdate
from tests.services.conftest import Served

RUN = {"run": "trl", "model": "tiny", "dtype": "float32", "framework": "trl"}
Q, K, NORM = "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight", "norm.weight"
Weights = dict[str, torch.Tensor]
STALE = "update 2 changed 0 of 3 tensors: the engine holds update 1"


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


def share(weights: Weights, number: int, **said: Any) -> dict[str, Any]:
    """What one of two workers tells of its half."""
    body = receipt({name: value.chunk(2)[number] for name, value in weights.items()}, worker=number, workers=2, **said)
    for part in body["parts"].values():
        part[1] = f"{number + 1}/2"
    return body


def announcement(weights: Weights, at: float = 0.0, **said: Any) -> dict[str, Any]:
    parts = {name: [[*sum_body(one)] for one in sums] for name, sums in of_tensors(weights.items()).items()}
    return {"at": at, "parts": parts, **said}


async def make_run(served: Served, **said: Any) -> None:
    assert (await served.http.post("/v1/runs", json={**RUN, **said})).status_code == 201


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


async def go_stale(served: Served, *engines: str) -> None:
    """Have engines take update 1 and keep it at update 2."""
    await make_run(served)
    for number, weights in ((1, trained(1)), (2, trained(1))):
        await announce(served, number, trained(number))
        for engine in engines:
            await tell(served, number, receipt(weights, trained(1), of=number), engine)


async def seal(served: Served, number: int = 1) -> dict[str, Any]:
    """The verdict of a step whose sides differ."""
    step = f"/v1/runs/trl/attempts/1/steps/{number}"
    record = {"sample": "a", "rollout_logprobs": [-0.5] * 32, "train_logprobs": [-1.5] * 32}
    await served.http.put(f"{step}/parts/0", json={"schema": "omni_rl.step/1", "records": [record]})
    verdict: dict[str, Any] = (await served.http.post(f"{step}/seal", json={})).json()
    return verdict


async def alarms(served: Served) -> list[str]:
    found = (await served.http.get("/v1/runs/trl/alarms")).json()
    return [one["sentence"] for one in found if one["closed"] is None]


async def first_alarms(served: Served) -> list[str]:
    """What rings, once anything does."""
    async with asyncio.timeout(10):
        while not (found := await alarms(served)):
            await asyncio.sleep(0.01)
    return found


async def wrong(served: Served) -> list[str]:
    """What is told of the run's updates, of steps beside them or not."""
    found = (await served.http.get("/v1/incidents?run=trl&kind=update&open=true")).json()
    return [one["what"] for one in found]


async def ended(served: Served) -> list[str]:
    """Why each of the run's incidents that are over ended, the newest first."""
    found = (await served.http.get("/v1/incidents?run=trl&kind=update&open=false")).json()
    return [one["actions"][-1]["what"] for one in found]


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


async def live(served: Served) -> LiveUpdates:
    return await served.coordinator.updates._live(await served.coordinator.run("trl"))
