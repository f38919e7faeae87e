"""A coordinator with 2 GiB under the largest load that it permits: it lives, and keeps what it acknowledged."""

import asyncio
import contextlib
import json
import random
import re
import resource
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from blake3 import blake3
from omni_rl_services.coordinator.memory import SHARE, Memory
from omni_rl_services.coordinator.settings import MIB

from omni_rl.api.updates import MAX_PARTS
from omni_rl.ledger.export import export
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from tests.services.posted import ARROW
from tests.services.test_large_updates import announced, held
from tests.services.test_memory import part, peak

WHOLE = 2 << 30
TEXTS = "/v1/runs/texts/attempts/1/steps/{step}/parts/0"
JSON, PNG = "application/json", "image/png"
LOOKED_AT = ("/", "/metrics", "/v1/state", "/v1/runs", "/v1/incidents", "/v1/runs/long-0/timeline", "/openapi.json")
pytestmark = pytest.mark.slow


@dataclass
class Load:
    """What is sent to `url`, and how often what came back; `over` once there is no more."""

    url: str
    client: httpx.AsyncClient
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    over: bool = False

    async def put(self, path: str, content: bytes, kind: str = JSON) -> dict[str, Any]:
        """Until it is acknowledged: whoever is told to come back comes back."""
        return await self._until(lambda: self.client.put(path, content=content, headers={"Content-Type": kind}), path)

    async def post(self, path: str, body: Any, accept: str = JSON) -> dict[str, Any]:
        """The same."""
        return await self._until(lambda: self.client.post(path, json=body, headers={"Accept": accept}), path)

    async def _until(self, send: Callable[[], Awaitable[httpx.Response]], path: str) -> dict[str, Any]:
        while True:
            try:
                answer = await send()
            except httpx.TransportError:  # refused before its body was read: the answer is lost with the connection
                self.answers[0, "ended"] += 1
                await asyncio.sleep(0.2)
                continue
            code = answer.json().get("code", "") if answer.is_error else ""
            self.answers[answer.status_code, code] += 1
            if answer.is_success:
                found: dict[str, Any] = answer.json() if answer.headers["Content-Type"] == JSON else {}
                return found
            assert answer.status_code == 429, f"{path}: {answer.status_code} {answer.text[:300]}"
            await asyncio.sleep(float(answer.headers["Retry-After"]))


@contextlib.contextmanager
def limited(folder: Path) -> Iterator[tuple[str, int]]:
    """A coordinator's address and process, which has 2 GiB: of memory of its own, beyond what it only reserves.

    A limit on all mappings would count what libraries reserve and never touch, a gigabyte of it Arrow's, and threads'
    stacks; a control group is not to be had everywhere. So the kernel refuses memory of its own (RLIMIT_DATA) beyond
    2 GiB and what was reserved at the start, and the peak of what was really there is looked at in the end.
    """
    address, settings = folder / "address", folder / "settings.json"
    chosen = {"ledger": f"sqlite:///{folder}/ledger.db", "media": {"directory": f"{folder}/media"}, "port": 0}
    bounds = {"memory": int(SHARE * WHOLE)}  # as it finds by itself where its control group has 2 GiB
    settings.write_text(json.dumps({**chosen, "address_file": str(address), "bounds": bounds}))
    command = [sys.executable, "-m", "omni_rl_services.coordinator", str(settings)]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            while not address.exists():
                assert server.poll() is None
                time.sleep(0.05)
            status = Path(f"/proc/{server.pid}/status").read_text()
            reserved, there = (_kib(status, name) << 10 for name in ("VmData", "RssAnon"))
            limit = reserved - there + WHOLE
            resource.prlimit(server.pid, resource.RLIMIT_DATA, (limit, limit))
            yield address.read_text(), server.pid
            assert server.poll() is None, "it was ended"
        finally:
            server.kill()


def _kib(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_the_largest_load_that_it_permits(tmp_path: Path) -> None:
    with limited(tmp_path) as (url, pid):
        asyncio.run(crowd(url, tmp_path))
        assert peak(pid) <= WHOLE
    log = (tmp_path / "log").read_text()
    assert "MemoryError" not in log
    assert "ERROR" not in log
    assert "Traceback" not in log


async def crowd(url: str, folder: Path) -> None:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        load = Load(url, client)
        for run in ("long-0", "long-1", "texts", "json", "updates"):
            await load.post("/v1/runs", {"run": run, "model": "m", "dtype": "float32"})
        tokens = Memory(int(SHARE * WHOLE)).step_tokens
        parts = [part(tokens // 4, answers=256, off=1.0, seed=n).to_arrow() for n in range(4)]
        steps = {"long-0": parts, "long-1": parts[:2]}  # as much as is judged at once, and half of it
        texts = [texts_of(250), texts_of(100, 1.0)]
        spoken = json.dumps(part(128_000).to_json()).encode()
        pictures = [picture(n) for n in range(4)]
        async with stalled(url), asyncio.TaskGroup() as group:
            beside = [group.create_task(look(load, path)) for path in LOOKED_AT]
            beside += [group.create_task(read_slowly(load, pictures[0])) for _ in range(8)]
            senders = [
                *(seal(load, run, of) for run, of in steps.items()),
                *(
                    load.put(f"/v1/runs/texts/attempts/1/steps/{n}/parts/0", body, ARROW)
                    for n, body in enumerate(texts)
                ),
                *(load.put(f"/v1/runs/json/attempts/1/steps/{n}/parts/0", spoken) for n in range(3)),
                *(load.put(f"/v1/media/{blake3(one).hexdigest()}", one, PNG) for one in pictures),
                *(load.post("/v1/runs", described(n)) for n in range(4)),
                update(load),
                exported(folder),
            ]
            await asyncio.gather(*(group.create_task(one) for one in senders))
            load.over = True
            await asyncio.gather(*beside)
        assert load.answers.keys() <= {(200, ""), (201, ""), (0, "ended"), (429, "too_many")}, load.answers
        await everything_is_there(load, steps, texts, spoken, pictures)


async def seal(load: Load, run: str, parts: list[bytes]) -> None:
    where = f"/v1/runs/{run}/attempts/1/steps/0"
    await asyncio.gather(*(load.put(f"{where}/parts/{rank}", body, ARROW) for rank, body in enumerate(parts)))
    await load.post(f"{where}/seal", {"parts": len(parts)}, ARROW)  # with a weight for every token


async def update(load: Load) -> None:
    for number in (1, 2):
        await load.put(f"/v1/runs/updates/updates/{number}", announced(MAX_PARTS, number))
        receipts = [held(MAX_PARTS, number, number, engine_length) for engine_length in (24, 256)]
        await asyncio.gather(
            *(load.put(f"/v1/runs/updates/engines/e{n}/updates/{number}", body) for n, body in enumerate(receipts))
        )


async def exported(folder: Path) -> None:
    """By another process, in fact by this one, while the coordinator writes."""

    def write() -> None:
        with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
            for n in range(3):
                export(ledger, "json", folder / f"exported-{n}")

    await asyncio.to_thread(write)


async def look(load: Load, path: str) -> None:
    while not load.over:
        answer = await load.client.get(path)
        assert answer.status_code == 200, answer.text
        await asyncio.sleep(0.2)


async def read_slowly(load: Load, content: bytes) -> None:
    """Somebody who reads a picture over a slow line."""
    digest = blake3(content).hexdigest()
    while not load.over:
        async with load.client.stream("GET", f"/v1/media/{digest}") as answer:
            if answer.status_code == 200:
                async for _ in answer.aiter_raw(4 * MIB):
                    await asyncio.sleep(0.1)
        await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def stalled(url: str) -> AsyncIterator[None]:
    """Uploads that never end: as many small ones as may wait, and two that say that they are the largest."""
    at = httpx.URL(url)
    head = "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    part_of = "/v1/runs/json/attempts/1/steps/9/parts/0"
    heads = [head.format(path="/v1/runs", kind=JSON, size=MIB)] * 64
    heads += [head.format(path=part_of, kind=ARROW, size=256 * MIB)] * 2
    writers = []
    for one in heads:
        _, writer = await asyncio.open_connection(at.host, at.port)
        writer.write(one.encode() + b"{" * 60_000)
        writers.append(writer)
    try:
        yield
    finally:
        for writer in writers:
            writer.close()


async def everything_is_there(
    load: Load, steps: dict[str, list[bytes]], texts: list[bytes], spoken: bytes, pictures: list[bytes]
) -> None:
    for run, parts in steps.items():
        step = (await load.client.get(f"/v1/runs/{run}/attempts/1/steps/0")).json()
        assert step["verdict"]["severity"] == "pause"
        assert step["verdict"]["samples"] == 256 * len(parts)
    for n, body in enumerate(texts):
        again = await load.put(TEXTS.format(step=n), body, ARROW)
        assert again["stored"] == "same"
    for n in range(3):
        assert (await load.put(f"/v1/runs/json/attempts/1/steps/{n}/parts/0", spoken))["stored"] == "same"
    for one in pictures:
        assert (await load.client.get(f"/v1/media/{blake3(one).hexdigest()}")).content == one
    for n in range(4):
        assert (await load.client.get(f"/v1/runs/{described(n)['run']}")).json()["config"]["kinds"]
    told = (await load.client.get("/v1/runs/updates/updates")).json()
    found = {(one["engine"], one["number"], one["equal"]) for one in told}
    assert found == {(None, n, 0) for n in (1, 2)} | {("e0", n, MAX_PARTS) for n in (1, 2)} | {
        ("e1", n, 0) for n in (1, 2)
    }


def texts_of(count: int, reward: float = 0.0) -> bytes:
    """Records of a mebibyte each."""
    values = {"rollout_logprobs": [-1.0], "train_logprobs": [-1.0], "reward": reward}
    return StepRecords.of(
        [{"sample": f"p{n}/0", "prompt_text": "x" * (MIB - 1), **values} for n in range(count)]
    ).to_arrow()


def picture(number: int) -> bytes:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 64, 64, 8, 2, 0, 0, 0)
    return head + random.Random(number).randbytes(32 * MIB - len(head))


def described(number: int) -> dict[str, Any]:
    """The longest description of a run."""
    kinds = [f"kind-{n}" for n in range(32)]
    limit = {"warn": 1.5, "mask": 2.0, "pause": 3.0}
    metrics = ("logprob_abs_diff_mean", "token_mult_prob_error")
    return {
        "run": f"described-{number}",
        "model": "m" * 1024,
        "dtype": "float32",
        "kinds": kinds,
        "limits": {kind: dict.fromkeys(metrics, limit) for kind in kinds},
    }
