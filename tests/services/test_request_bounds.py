"""Every parameter of a path, a query and a header at its bounds, and one past them."""

import asyncio
from typing import Any

import pytest

from omni_rl.consistency.need import NAMES
from omni_rl.ledger.types import NewIncident
from tests.services.conftest import Served
from tests.services.posted import CALM, RUN, post, seal

pytestmark = pytest.mark.anyio
INT = 2**31 - 1
ID = 2**53
RUNS = "/v1/runs/digits"
STEP = f"{RUNS}/attempts/1/steps/12"


async def asked(served: Served, paths: list[str], **more: Any) -> dict[str, int]:
    return {path[:80]: (await served.http.get(path, **more)).status_code for path in paths}


async def begun(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    await seal(served)


@pytest.mark.parametrize(
    ("path", "least", "most"),
    [
        ("/v1/runs?limit={}", 1, 10_000),
        ("/v1/runs?offset={}", 0, INT),
        ("/v1/incidents?limit={}", 1, 10_000),
        ("/v1/incidents?before={}", 1, ID),
        ("/v1/checks?limit={}", 1, 10_000),
        ("/v1/checks?attempt={}", 0, INT),
        ("/v1/checks?step={}", 0, INT),
        ("/v1/syncs?limit={}", 1, 10_000),
        ("/v1/jobs?limit={}", 1, 10_000),
        ("/v1/events/page?limit={}", 1, 10_000),
        ("/v1/events/page?after={}", 0, ID),
        (RUNS + "/steps?limit={}", 1, 10_000),
        (RUNS + "/steps?after={}", -1, INT),
        (RUNS + "/steps?points=5&last={}", 0, INT),
        (RUNS + "/steps?points={}", 1, 4096),
        (RUNS + "/timeline?first={}", 0, INT),
        (RUNS + "/timeline?last={}", 0, INT),
        (RUNS + "/timeline?points={}", 1, 4096),
        (RUNS + "/alarms?limit={}", 1, 10_000),
        (RUNS + "/updates?limit={}", 1, 10_000),
    ],
)
async def test_a_number_in_a_query_has_its_bounds(served: Served, path: str, least: int, most: int) -> None:
    await begun(served)
    within, beyond = [path.format(least), path.format(most)], [path.format(least - 1), path.format(most + 1)]
    assert await asked(served, within) == dict.fromkeys(within, 200)
    assert await asked(served, beyond) == dict.fromkeys(beyond, 422)


@pytest.mark.parametrize(
    ("path", "least", "most"),
    [
        ("/v1/incidents/{}", 1, ID),
        ("/v1/checks/{}", 1, ID),
        (RUNS + "/attempts/{}/steps/99", 0, INT),
        (RUNS + "/attempts/9/steps/{}", 0, INT),
        (STEP + "/samples/none?rank={}", 0, INT),
        (RUNS + "/steps?attempt={}", 0, INT),
        (RUNS + "/timeline?attempt={}", 0, INT),
    ],
)
async def test_a_number_of_what_is_not_there_is_looked_for_within_its_bounds(
    served: Served, path: str, least: int, most: int
) -> None:
    await begun(served)
    within, beyond = [path.format(least), path.format(most)], [path.format(least - 1), path.format(most + 1)]
    assert await asked(served, within) == dict.fromkeys(within, 404)
    assert await asked(served, beyond) == dict.fromkeys(beyond, 422)


@pytest.mark.parametrize(
    ("path", "most"),
    [
        (RUNS + "/attempts/{}/steps/1/parts/0", INT),
        (RUNS + "/attempts/1/steps/{}/parts/0", INT),
        (RUNS + "/attempts/1/steps/1/parts/{}", 65_535),
        ("/v1/runs/none/engines/e/updates/{}", INT),
        ("/v1/runs/none/updates/{}", INT),
    ],
)
async def test_a_number_in_the_path_of_what_is_posted_has_its_bounds(served: Served, path: str, most: int) -> None:
    """There is no such run: nothing is stored, whatever the number."""
    for number, refused in ((0, False), (most, False), (-1, True), (most + 1, True)):
        answer = await served.http.put(path.format(number).replace("digits", "none"), content=b"{}", headers=JSON)
        assert (answer.status_code == 422 and "path." in answer.json()["detail"]) is refused, answer.text


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "longest", "status"),
    [
        ("/v1/runs?search={}", 64, 200),
        ("/v1/runs/{}", 64, 404),
        ("/v1/incidents?run={}", 64, 200),
        ("/v1/checks?run={}", 64, 200),
        ("/v1/syncs/{}", 64, 404),
        ("/v1/jobs/{}", 64, 404),
        (STEP + "/samples/{}", 512, 404),
    ],
)
async def test_a_name_has_its_greatest_length(served: Served, path: str, longest: int, status: int) -> None:
    await begun(served)
    for length, expected in ((1, status), (longest, status), (longest + 1, 422)):
        assert (await served.http.get(path.format("z" * length))).status_code == expected, length


async def test_a_filter_names_each_need_and_each_metric_once_at_most(served: Served) -> None:
    await begun(served)
    every: list[tuple[str, Any]] = [("need", name) for name in NAMES]
    assert (await served.http.get("/v1/runs", params=every)).status_code == 200
    assert (await served.http.get("/v1/runs", params=[*every, every[0]])).status_code == 422
    document = (await served.http.get("/openapi.json")).json()
    parameters = document["paths"]["/v1/runs/{run}/timeline"]["get"]["parameters"]
    (schema,) = (one["schema"] for one in parameters if one["name"] == "metric")
    names = next(one for one in schema["anyOf"] if one.get("type") == "array")["items"]["enum"]
    metrics = [("metric", name) for name in names]
    assert (await served.http.get(f"{RUNS}/timeline", params=metrics)).status_code == 200
    assert (await served.http.get(f"{RUNS}/timeline", params=[*metrics, metrics[0]])).status_code == 422


@pytest.mark.parametrize("path", ["/v1/syncs", "/v1/jobs"])
@pytest.mark.parametrize(
    ("key", "taken"),
    [("k", True), ("~" * 128, True), ("k" * 129, False), ("", False), ("a b", False), ("a\tb", False), ("!", True)],
)
async def test_an_idempotency_key_is_128_printable_characters_at_most(
    served: Served, path: str, key: str, taken: bool
) -> None:
    body = {} if path == "/v1/syncs" else {"kind": "grpo", "parameters": {"run": "digits"}}
    answer = await served.http.post(path, json=body, headers={"Idempotency-Key": key})
    assert (answer.status_code in (200, 201, 202)) is taken, answer.text


@pytest.mark.parametrize(("number", "status"), [("-1", 422), (str(ID + 1), 422), ("x", 422)])
async def test_the_number_that_a_browser_comes_back_with_has_bounds(served: Served, number: str, status: int) -> None:
    for answer in (
        await served.http.get("/v1/events", headers={"Last-Event-ID": number}),
        await served.http.get("/v1/events", params={"after": number}),
    ):
        assert answer.status_code == status


async def test_lists_have_as_many_entries_as_they_say_where_nobody_asks_for_a_number(served: Served) -> None:
    await begun(served)
    store = served.coordinator.store
    check: dict[str, Any] = {
        "version": "v",
        "severity": "ok",
        "reason": "",
        "cause": None,
        "sentence": "",
        "seconds": 0.0,
    }
    check |= {"figures": {}, "legs": {}, "answers": [], "evidence": []}
    drifts = (NewIncident(2, "A fault.", kind="drift", subject=str(number)) for number in range(101))
    await asyncio.gather(*(store.see_incident("digits", seen) for seen in drifts))
    await asyncio.gather(*(store.add_check(check, None) for _ in range(101)))
    await asyncio.gather(*(store.add_event("step", "digits", {}) for _ in range(500)))
    lengths = {}
    for path in ("/v1/incidents", f"{RUNS}/alarms", "/v1/checks", "/v1/events/page", "/v1/incidents?limit=10000"):
        lengths[path] = len((await served.http.get(path)).json())
    assert list(lengths.values()) == [100, 100, 100, 512, 101]
    assert len((await served.http.get("/v1/state")).json()["incidents"]) == 100
    incidents = (await served.http.get("/v1/incidents")).json()
    (rest,) = (await served.http.get("/v1/incidents", params={"before": incidents[-1]["incident"]})).json()
    assert rest["incident"] == incidents[-1]["incident"] - 1
    page = (await served.http.get("/v1/events/page")).json()
    assert page[-1]["id"] == await store.last_event()
    (newest,) = (await served.http.get("/v1/events/page?limit=1")).json()
    assert newest == page[-1]
