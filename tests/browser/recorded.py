"""A real run, as the demo played it (`omni-rl demo --serve --dtype bfloat16`, two prompts a kind): its records and some
of its media, posted through the API as any framework would."""

import gzip
import json
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent / "recorded"
STEPS = 6
TYPES = {b"\x89PNG": "image/png", b"RIFF": "audio/wav"}


def post_recorded(url: str, run: str = "recorded", *, steps: int = STEPS, **config: Any) -> None:
    about = json.loads((HERE / "run.json").read_text())
    with httpx.Client(base_url=url, timeout=30) as http:
        body = {"run": run, "model": about["model"], "dtype": about["dtype"], **config}
        http.post("/v1/runs", json=body).raise_for_status()
        for path in sorted((HERE / "media").iterdir()):
            content = path.read_bytes()
            kind = TYPES.get(content[:4], "video/mp4")
            http.put(f"/v1/media/{path.name}", content=content, headers={"Content-Type": kind}).raise_for_status()
        for step in range(steps):
            post_step(http, run, step, records_of(step), about["training"][str(step)])


def records_of(step: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gzip.decompress((HERE / f"step-{step}.json.gz").read_bytes()))["records"]
    return found


def post_step(
    http: httpx.Client, run: str, step: int, records: list[dict[str, Any]], training: dict[str, float] | None = None
) -> dict[str, Any]:
    path = f"/v1/runs/{run}/attempts/1/steps/{step}"
    body = {"schema": "omni_rl.step/1", "records": records}
    http.put(f"{path}/parts/0", json=body).raise_for_status()
    verdict: dict[str, Any] = http.post(f"{path}/seal", json={"training": training or {}}).raise_for_status().json()
    return verdict


def drifted(records: list[dict[str, Any]], by: float, kind: str = "image") -> list[dict[str, Any]]:
    """The same records, with the trainer's logprobs of one kind of prompt moved."""
    return [
        {**record, "train_logprobs": [value - by for value in record["train_logprobs"]]}
        if record["kind"] == kind
        else record
        for record in records
    ]
