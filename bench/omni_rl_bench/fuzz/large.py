"""Sends the largest valid bodies, and measures what they cost a client that sends small ones beside them."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from omni_rl.api.updates import MAX_PARTS
from omni_rl.ledger.schema import VERSION
from omni_rl_bench.coordinator import coordinator
from omni_rl_bench.fuzz.watched import BLOCKS

RECEIPT, PART = 20 << 20, 7 << 20
"""The least bytes of a body: of what an engine or a trainer reports of an update, and of records as JSON."""
MEMORY = 2 << 30
RUN, OTHER = "large", "small"
PAUSE = 0.01
"""The seconds between two small requests."""


@dataclass(frozen=True)
class Beside:
    """What was measured, in milliseconds: `waits` are how long each small request took; `blocks` are how long the event
    loop was blocked."""

    waits: list[float]
    blocks: list[float]

    @property
    def longest(self) -> float:
        """The longest block, 0 where none was worth writing down."""
        return max(self.blocks, default=0.0)

    def summary(self) -> dict[str, Any]:
        p50, p99 = np.percentile(self.waits, [50, 99]).tolist()
        waits = {"requests": len(self.waits), "p50": p50, "p99": p99, "longest": max(self.waits)}
        return {"waits_ms": waits, "longest_block_ms": self.longest}


def beside_large(folder: Path, module: str, rounds: int = 3) -> Beside:
    """Send announcements, receipts and records to a coordinator whose files are in `folder`, and small receipts beside
    them.

    `module` is what is run as the coordinator. Raises `httpx.HTTPStatusError` for a body that is refused.
    """
    with coordinator(folder, settings={"bounds": {"memory": MEMORY}}, module=module) as running:
        waits = _sent(running.url, rounds)
    return Beside(waits, [json.loads(line)["ms"] for line in (folder / BLOCKS).read_text().splitlines()])


def _sent(url: str, rounds: int) -> list[float]:
    with httpx.Client(base_url=url, timeout=300) as large, ThreadPoolExecutor(1) as beside:
        for run in (RUN, OTHER):
            body = {"run": run, "model": "none", "dtype": "bfloat16"}
            large.post("/v1/runs", json=body).raise_for_status()
        large.put(f"/v1/runs/{OTHER}/updates/1", json={"at": 0.0, "parts": _announced(1, 40, 1)}).raise_for_status()
        bodies = [one for number in range(1, rounds + 1) for one in _bodies(number)]  # made before anybody waits
        ended: list[bool] = []
        waits = beside.submit(_small, url, ended)
        try:
            for path, content in bodies:
                large.put(path, content=content, headers={"Content-Type": "application/json"}).raise_for_status()
        finally:
            ended.append(True)
        return waits.result()


def _bodies(number: int) -> list[tuple[str, bytes]]:
    said = {"session": "s", "at": 1.0, "began": 0.0, "how": ["load_weights"], "of": number, "tensors": 1, "changed": 1}
    announced = {"at": 0.0, "parts": _announced(MAX_PARTS, 40, number)}
    receipt = {**said, "parts": _held(MAX_PARTS, 240, number)}
    receipt_of_the_same = {**said, "parts": _held(MAX_PARTS, 40, number)}
    return [
        (f"/v1/runs/{RUN}/updates/{number}", _written(announced, RECEIPT)),
        (f"/v1/runs/{RUN}/engines/other/updates/{number}", _written(receipt, RECEIPT)),
        (f"/v1/runs/{RUN}/engines/same/updates/{number}", _written(receipt_of_the_same, 6 << 20)),
        (f"/v1/runs/{RUN}/attempts/1/steps/{number}/parts/0", _written(_records(number), PART)),
    ]


def _written(body: dict[str, Any], least: int) -> bytes:
    text = json.dumps(body).encode()
    assert len(text) >= least, f"{len(text)} bytes"
    return text


def _names(count: int, length: int) -> list[str]:
    return [f"layers.{n}.".ljust(length, "x") for n in range(count)]


def _announced(count: int, length: int, seed: int) -> dict[str, Any]:
    dtypes = ("float32", "bfloat16", "float32~bfloat16", "float16")
    rng = random.Random(seed)  # noqa: S311 - no secrets
    return {name: [_sum(dtype, rng) for dtype in dtypes] for name in _names(count, length)}


def _held(count: int, length: int, seed: int) -> dict[str, Any]:
    rng = random.Random(f"held {seed}")  # noqa: S311 - no secrets
    return {name: [_sum("bfloat16", rng), "1/2", True] for name in _names(count, length)}


def _sum(dtype: str, rng: random.Random) -> list[Any]:
    return [dtype, 16_777_216, f"{rng.getrandbits(64):016x}", rng.random(), 0]


def _records(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)  # noqa: S311 - no secrets
    records = []
    for n in range(128):
        logprobs = [-rng.random() for _ in range(1200)]
        ids = [rng.randrange(50_000) for _ in logprobs]
        same = {"rollout_logprobs": logprobs, "train_logprobs": logprobs, "ids": ids}
        records.append({"sample": f"p{n}/0", "kind": "text", **same})
    return {"schema": VERSION, "records": records}


def _small(url: str, ended: list[bool]) -> list[float]:
    waits = []
    said = {"session": "s", "at": 1.0, "began": 0.0, "how": ["load_weights"], "tensors": 1, "changed": 1}
    with httpx.Client(base_url=url, timeout=300) as client:
        number = 0
        while not ended:
            number += 1
            began = time.perf_counter()
            client.get("/v1/state").raise_for_status()
            receipt = {**said, "parts": _held(1, 40, number)}
            client.put(f"/v1/runs/{OTHER}/engines/e/updates/{number}", json=receipt).raise_for_status()
            waits.append(1e3 * (time.perf_counter() - began) / 2)
            time.sleep(PAUSE)
    return waits
