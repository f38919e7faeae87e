"""Bodies that are too large, nested too deep or full of bad values, and numbers beyond all."""

from typing import Any

import pytest
from omni_rl_services.coordinator.settings import Bounds

from omni_rl.api.runs import LIMITED
from omni_rl.kinds import KINDS
from tests.services.conftest import Serve, Served
from tests.services.posted import ARROW, RUN, STEP

pytestmark = pytest.mark.anyio


def nested(depth: int) -> bytes:
    return b'{"reason": ' + b'{"a": [' * depth + b"0" + b"]}" * depth + b"}"


@pytest.mark.parametrize("depth", [100, 300, 450, 10_000])
async def test_a_body_that_is_nested_too_deep_is_refused(served: Served, depth: int) -> None:
    json_type = {"Content-Type": "application/json"}
    refused = await served.http.post("/v1/pause", content=nested(depth), headers=json_type)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    "more",
    [
        {"kinds": [0] * 4_000},
        {"kinds": [0] * 300_000},
        {"limits": {f"k{n}": {"a": 0} for n in range(2_000)}},
        {"limits": {f"k{n}": {} for n in range(60_000)}},
        {"limits": {f"k{n}": {} for n in range(7_000)}},
        {f"k{n}": 0 for n in range(5_000)},
        {"k" * 500_000: 0},
    ],
)
async def test_of_many_bad_values_not_every_one_is_told(served: Served, more: dict[str, Any]) -> None:
    """A megabyte would otherwise be answered with thirty, and the event loop would stand for seconds."""
    refused = await served.http.post("/v1/runs", json={**RUN, "run": "other", **more})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert len(refused.content) < 20_000


async def test_the_largest_run_there_may_be_is_described(served: Served) -> None:
    kinds = [f"kind-{n}" for n in range(32)]
    limits = {"warn": 1.5, "mask": 2.0, "pause": 3.0}
    buckets = ("overall", "mixed_state", *KINDS, *kinds)
    described = {
        **RUN,
        "run": "large",
        "kinds": kinds,
        "limits": {one: dict.fromkeys(LIMITED, limits) for one in buckets},
    }
    made = await served.http.post("/v1/runs", json=described)
    assert made.status_code == 201, made.text


async def test_every_whole_number_that_is_sent_has_a_bound(served: Served) -> None:
    """No database keeps larger ones than 64 bits, and no browser counts beyond 2**53."""
    document = (await served.http.get("/openapi.json")).json()
    unbounded: set[str] = set()

    def look(schema: Any, where: str) -> None:
        if isinstance(schema, list):
            for one in schema:
                look(one, where)
        elif isinstance(schema, dict):
            if "$ref" in schema:
                name = schema["$ref"].rpartition("/")[2]
                if name not in seen:
                    seen.add(name)
                    look(document["components"]["schemas"][name], name)
            if schema.get("type") == "integer" and schema.get("maximum", 2**64) > 2**53:
                unbounded.add(where)
            for key, one in schema.get("properties", {}).items():
                look(one, key)
            for key in ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties", "patternProperties"):
                look(schema.get(key), where)

    seen = {"Records"}  # its columns are held to their own types
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                look(parameter["schema"], parameter["name"])
            for body in operation.get("requestBody", {}).get("content", {}).values():
                look(body["schema"], "body")
    assert unbounded == set()


@pytest.mark.parametrize("number", [2**31, 2**63, 10**400], ids=["2**31", "2**63", "10**400"])
async def test_a_check_of_a_step_beyond_all_is_refused(served: Served, number: int) -> None:
    for body in ({"run": "digits", "attempt": 1, "step": number}, {"run": "digits", "attempt": number, "step": 1}):
        await served.http.post("/v1/runs", json=RUN)
        refused = await served.http.post("/v1/checks", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/runs/a%00b", None),
        ("GET", "/v1/runs?search=%00", None),
        ("POST", "/v1/runs", {"run": "digits", "model": "a\0b", "dtype": "bfloat16", "framework": "trl"}),
        ("POST", "/v1/pause", {"reason": "\0"}),
    ],
)
async def test_a_nul_is_refused_wherever_it_stands(served: Served, method: str, path: str, body: Any) -> None:
    answer = await served.http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "NUL" in answer.json()["detail"]


SMALL = Bounds(body=1000, part=3000, json_part=2000, media=2500)


@pytest.mark.parametrize(
    ("path", "content_type", "limit"),
    [
        ("/v1/runs", "application/json", 1000),
        (f"{STEP}/parts/0", "application/json", 2000),
        (f"{STEP}/parts/0", ARROW, 3000),
        (f"/v1/media/{'0' * 64}", "image/png", 2500),
    ],
)
@pytest.mark.parametrize("announced", [True, False])
async def test_bodies_are_bounded(serve: Serve, path: str, content_type: str, limit: int, announced: bool) -> None:
    method = "POST" if path == "/v1/runs" else "PUT"
    headers = {"Content-Type": content_type}
    async with serve(bounds=SMALL) as served:
        await served.http.post("/v1/runs", json=RUN)

        async def send(size: int) -> Any:
            body = b" " * size

            async def pieces() -> Any:
                yield body[: size // 2]
                yield body[size // 2 :]

            content = body if announced else pieces()
            return await served.http.request(method, path, content=content, headers=headers)

        assert (await send(limit)).status_code != 413
        refused = await send(limit + 1)
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
