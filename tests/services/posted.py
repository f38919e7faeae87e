"""Runs, and steps of a few answers each, as a trainer posts them."""

import asyncio
from typing import Any

from tests.services.conftest import Served

ARROW = "application/vnd.apache.arrow.stream"
STEP = "/v1/runs/digits/attempts/1/steps/12"
RUN = {"run": "digits", "model": "small", "dtype": "bfloat16", "framework": "verl"}


def sample(name: str, kind: str, shift: float, tokens: int = 4) -> dict[str, Any]:
    rollout = [-2.5 - 0.25 * n for n in range(tokens)]
    return {
        "sample": name,
        "kind": kind,
        "prompt_tokens": 3,
        "ids": list(range(tokens)),
        "rollout_logprobs": rollout,
        "train_logprobs": [value + shift for value in rollout],
    }


CALM = [sample("a", "text", 0.001), sample("b", "image", -0.002)]
DRIFTED = [sample("a", "text", 0.001), sample("b", "image", 1.0)]


async def post(served: Served, records: list[dict[str, Any]], step: int = 12, rank: int = 0) -> dict[str, Any]:
    path = f"/v1/runs/digits/attempts/1/steps/{step}/parts/{rank}"
    answer = await served.http.put(path, json={"schema": "omni_rl.step/1", "records": records})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def seal(served: Served, step: int = 12, **body: Any) -> dict[str, Any]:
    answer = await served.http.post(f"/v1/runs/digits/attempts/1/steps/{step}/seal", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


GATED = {**RUN, "gated": True, "framework": "omni-rl"}


async def rest(served: Served, name: str = "digits") -> dict[str, Any]:
    """The run, when nothing is pursued any more and the cluster, unless it is down, has followed its gate."""
    async with asyncio.timeout(10):
        while True:
            run: dict[str, Any] = (await served.http.get(f"/v1/runs/{name}")).json()
            gate = (await served.http.get("/v1/state")).json()["gate"]
            followed = gate["confirmed"] and (gate["gate"] == "open") == (run["drift"]["gate"] == "open")
            if run["drift"]["pursuit"] == "nothing" and (followed or served.bridge.down is not None):
                return run
            await asyncio.sleep(0.01)
