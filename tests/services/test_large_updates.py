"""What a large model's engine and trainer tell of an update: megabytes, beside which everybody else is answered."""

import asyncio
import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from omni_rl_services.coordinator.memory import budget
from omni_rl_services.coordinator.settings import MIB, Bounds
from omni_rl_services.coordinator.update_bodies import at_once, read_receipt

from omni_rl.api.runs import MAX_LAG
from omni_rl.api.updates import MAX_ALL_PARTS, MAX_PARTS
from omni_rl.errors import InvalidRequestError
from omni_rl.ledger.ledger import Ledger
from omni_rl.pieces import PIECE
from tests.services.conftest import Serve, Served

RUN = {"model": "tiny", "dtype": "float32", "framework": "mine"}
SAID = {"session": "s", "at": 1.0, "began": 0.0, "how": ["load_weights"], "tensors": 1, "changed": 1}
LEAST = 64 * MIB
pytestmark = pytest.mark.anyio


def numbered(count: int, value: Any) -> dict[str, Any]:
    return dict.fromkeys(map(str, range(count)), value)


def sums(count: int, seed: int = 0, length: int = 24) -> dict[str, list[Any]]:
    rng = random.Random(seed)
    return {
        f"layers.{n}.".ljust(length, "x"): ["float32", 4096, f"{rng.getrandbits(64):016x}", rng.random(), 0]
        for n in range(count)
    }


def announced(count: int, seed: int = 0, **said: Any) -> bytes:
    return json.dumps({"at": 0.0, "parts": {name: [one] for name, one in sums(count, seed).items()}, **said}).encode()


def held(count: int, seed: int = 0, of: int = 1, length: int = 24, **said: Any) -> bytes:
    parts = {name: [one, "1/1", True] for name, one in sums(count, seed, length).items()}
    return json.dumps({**SAID, "of": of, "parts": parts, **said}).encode()


async def make_run(served: Served, name: str, **said: Any) -> int:
    return (await served.http.post("/v1/runs", json={"run": name, **RUN, **said})).status_code


async def announce(served: Served, run: str, number: int, body: bytes) -> Any:
    return await served.http.put(f"/v1/runs/{run}/updates/{number}", content=body)


async def tell(served: Served, run: str, number: int, body: bytes, engine: str = "e0") -> Any:
    return await served.http.put(f"/v1/runs/{run}/engines/{engine}/updates/{number}", content=body)


async def test_while_the_largest_receipt_is_read_others_are_answered(served: Served) -> None:
    for run in ("large", "small"):
        assert await make_run(served, run) == 201
    await announce(served, "small", 1, announced(1))
    body = held(MAX_PARTS, length=256)
    assert len(body) > 20 * MIB
    sending = asyncio.create_task(tell(served, "large", 1, body))
    turns = answered = 0
    while not sending.done():
        await asyncio.sleep(0)
        turns += 1
        if turns % 100 == 0:
            answered += 1
            assert (await tell(served, "small", answered, held(1))).json()["equal"] == 1
    assert sending.result().status_code == 200
    assert turns > len(body) / PIECE
    assert answered > 1


def test_a_receipt_is_read_in_pieces() -> None:
    body = held(MAX_PARTS, opaque={f"packed.{n}": "packed for a kernel" for n in range(MAX_PARTS)})
    assert sum(1 for _ in read_receipt(1, body)) > len(body) / PIECE
    receipt = at_once(read_receipt(1, body))
    name, one = next(iter(sums(1).items()))
    assert len(receipt.parts) == len(receipt.body.opaque) == MAX_PARTS
    assert receipt.parts[name].sum.hashes == int(one[2], 16)
    assert receipt.parts[name].shard == "1/1"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (lambda: {"version": "x" * (2 * PIECE)}, "version"),
        (lambda: {"opaque": {"a": "x" * (2 * PIECE)}}, "opaque"),
        (lambda: {"opaque": numbered(MAX_PARTS + 1, "")}, "opaque"),
        (lambda: {"adapters": [{"name": "a", "rank": 1, "surprise": numbered(20_000, [])}]}, "surprise"),
        (
            lambda: {
                "adapters": [
                    {"name": str(n), "rank": 1, "parts": numbered(MAX_PARTS, [])}
                    for n in range(MAX_ALL_PARTS // MAX_PARTS)
                ]
            },
            "adapters.parts",
        ),
        (lambda: {"parts": numbered(60_000, [])}, "parts"),
        (lambda: {"parts": [0] * 300_000}, "expected"),
    ],
)
async def test_what_is_too_long_is_refused_by_its_name(
    served: Served, said: Callable[[], dict[str, Any]], why: str
) -> None:
    """What is said is made in the test: every process that collects it would make it otherwise, and keep it."""
    assert await make_run(served, "large") == 201
    answer = await tell(served, "large", 1, held(1, **said()))
    assert answer.status_code == 422
    assert why in answer.json()["detail"]


async def test_long_adapters_are_compared(served: Served) -> None:
    assert await make_run(served, "lora") == 201
    adapter = {"name": "a", "rank": 8, "parts": {f"{name}.lora_A": [one] for name, one in sums(4000).items()}}
    await announce(served, "lora", 1, announced(1, adapters=[adapter]))
    assert (await tell(served, "lora", 1, held(1, adapters=[adapter]))).json()["findings"] == []
    other = {**adapter, "parts": {f"{name}.lora_A": [one] for name, one in sums(4000, seed=1).items()}}
    found = (await tell(served, "lora", 2, held(1, adapters=[{"name": "b", "rank": 1}, other]))).json()
    assert found["adapters"] == ["a", "b"]
    assert "4000 of 4000 matrices" in found["findings"][0]["sentence"]


async def test_parts_in_each_others_place_are_few_incidents(served: Served) -> None:
    assert await make_run(served, "swapped") == 201
    parts = sums(2000)
    await announce(served, "swapped", 1, announced(2000))
    others = {name: [one, "1/1", True] for name, one in zip(parts, reversed(parts.values()), strict=True)}
    found = (await tell(served, "swapped", 1, held(1, parts=others))).json()
    assert found["different"] == 2000
    incidents = (await served.http.get("/v1/incidents", params={"run": "swapped"})).json()
    assert len(incidents) == len(found["findings"]) < 20
    assert "1968 parts" in found["findings"][-1]["sentence"]


async def test_a_lag_is_bounded(served: Served) -> None:
    answer = await served.http.post("/v1/runs", json={"run": "late", **RUN, "lag": MAX_LAG + 1})
    assert answer.status_code == 422
    assert answer.json()["fields"][0]["where"] == "body.lag"
    assert await make_run(served, "late", lag=MAX_LAG) == 201


async def test_a_run_of_an_older_version_keeps_no_more_announcements_than_there_may_be(
    serve: Serve, tmp_path: Any
) -> None:
    async with serve() as served:
        assert await make_run(served, "late", lag=1) == 201
        config = (await served.http.get("/v1/runs/late")).json()["config"]
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        ledger.put_run("older", {**config, "run": "older", "lag": 10**9}).result()
    async with serve() as served:
        assert (await served.http.get("/v1/runs/older")).json()["config"]["lag"] == MAX_LAG


async def test_fingerprints_stay_within_their_memory(serve: Serve) -> None:
    """A run that alone has too many is refused with what would help; of several the one used last stays."""
    async with serve(bounds=Bounds(memory=LEAST)) as served:
        for run in ("first", "second", "huge"):
            assert await make_run(served, run) == 201
        fits = 6_000
        answer = await announce(served, "huge", 1, announced(3 * fits))
        assert answer.status_code == 413
        enough = re.search(r"bounds\.memory = (\d+) MiB", answer.json()["detail"])
        assert enough is not None
        for number in range(1, 4):
            for run in ("first", "second"):
                assert (await announce(served, run, number, announced(fits, number))).status_code == 200
                found = (await tell(served, run, number, held(fits, number, number))).json()
                assert (found["of"], found["equal"]) == (number, fits)
        kept = served.coordinator.updates.memory
        assert 0 < kept <= budget(LEAST).updates
    for memory, status in ((int(enough[1]) - 1, 413), (int(enough[1]), 200)):
        async with serve(bounds=Bounds(memory=memory * MIB)) as served:
            assert (await announce(served, "huge", 1, announced(3 * fits))).status_code == status


def test_parts_that_are_told_of_twice_are_refused() -> None:
    body = held(4000)
    again = b", " + json.dumps({"layers.0.".ljust(24, "x"): [["float32", 1, "0" * 16]]}).encode()[1:-1]
    with pytest.raises(InvalidRequestError, match="twice"):
        at_once(read_receipt(1, body[:-2] + again + body[-2:]))
