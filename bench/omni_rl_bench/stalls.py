"""Measures what clients that stall cost the others: 50 that post and seal, alone and beside 200 that send a byte a
second, half a head, or half a body."""

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from omni_rl.api.runs import RunBody
from omni_rl.client import AsyncClient
from omni_rl.ledger.records import StepRecords
from omni_rl.watch.table import step_rows
from omni_rl_bench.coordinator import coordinator
from omni_rl_bench.result import Goal, write_result

HONEST, STALLED = 50, 200
SECONDS = 15.0
"""The seconds of each half of a round."""
ROUNDS = 3
PAUSE = 0.2
"""Seconds between two steps of an honest client."""
BAR = 2.0
_BODY = (
    b"PUT /v1/runs/run-0/attempts/2/steps/0/parts/0 HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\n"
    b"Content-Length: %d\r\n\r\n"
)
_ARROW = b"application/vnd.apache.arrow.stream"
STALLS = (
    b"GET /healthz HTTP/1.1\r\nHost: loc",
    _BODY % (_ARROW, 64 << 20) + b"x" * 1000,
    _BODY % (b"application/json", 1 << 20) + b'{"schema": "omni_rl.step/1", "records": [',
)
"""What a stalled client sends at once; after it a byte a second, and the same again on a new connection once the server
ends the old one."""


def bench_stalls(out: Path) -> Path:
    """Measure, and write `stalls.json`: each round is both halves, one after the other, on one coordinator."""
    with tempfile.TemporaryDirectory() as folder, coordinator(Path(folder)) as running:
        rounds = asyncio.run(_rounds(running.url))
    ratios = [one["beside"]["p99"] / one["alone"]["p99"] for one in rounds]
    goals = [
        Goal("p99 beside stalled clients over p99 alone, the worst of the rounds", max(ratios), BAR, "lower"),
        Goal("posts that failed beside them", sum(one["beside"]["failed"] for one in rounds), 0, "lower"),
    ]
    found = {"honest": HONEST, "stalled": STALLED, "seconds": SECONDS, "ratios": ratios, "rounds": rounds}
    return write_result(out / "stalls.json", "omni-rl bench stalls", goals, found)


async def _rounds(url: str) -> list[dict[str, Any]]:
    steps = itertools.count()
    async with AsyncClient(url, timeout=60) as client:
        for n in range(HONEST):
            await client.create_run(RunBody(run=f"run-{n}", model="none", dtype="bfloat16", framework="bench"))
    await _honest(url, steps, 2.0)  # what is made once is made
    rounds = []
    for _ in range(ROUNDS):
        alone = await _honest(url, steps, SECONDS)
        async with _stalled(url):
            rounds.append({"alone": alone, "beside": await _honest(url, steps, SECONDS)})
    return rounds


async def _honest(url: str, steps: "itertools.count[int]", seconds: float) -> dict[str, Any]:
    """Return the seconds of a step's part and seal together, over all honest clients."""
    rng = np.random.default_rng(0)
    train = -rng.exponential(1, (8, 128))
    part = StepRecords.of(step_rows({"rollout_logprobs": train + 1e-3, "train_logprobs": train}))
    took: list[float] = []
    failed = 0
    ends = time.monotonic() + seconds

    async def one(number: int) -> None:
        nonlocal failed
        async with AsyncClient(url, timeout=60) as client:
            await asyncio.sleep(PAUSE * number / HONEST)
            while time.monotonic() < ends:
                step, began = next(steps), time.perf_counter()
                try:
                    await client.put_part(f"run-{number}", 1, step, 0, part)
                    await client.seal(f"run-{number}", 1, step, parts=1)
                except Exception:  # whatever it is, it is what is counted here
                    failed += 1
                took.append(time.perf_counter() - began)
                await asyncio.sleep(PAUSE)

    await asyncio.gather(*(one(number) for number in range(HONEST)))
    p50, p99 = np.percentile(took, [50, 99]).tolist()
    return {"steps": len(took), "failed": failed, "p50": p50, "p99": p99}


@contextlib.asynccontextmanager
async def _stalled(url: str) -> AsyncIterator[None]:
    at = httpx.URL(url)

    async def one(number: int) -> None:
        while True:
            _, writer = await asyncio.open_connection(at.host, at.port)
            try:
                writer.write(STALLS[number % len(STALLS)])
                while not writer.is_closing():
                    await writer.drain()
                    await asyncio.sleep(1.0)
                    writer.write(b"x")
            except OSError:
                continue  # let go of
            finally:
                writer.close()

    tasks = [asyncio.create_task(one(number)) for number in range(STALLED)]
    await asyncio.sleep(1.0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
