"""Runs among many: found by a part of their name, sorted by how much they need a person, each in a line."""

import asyncio
from typing import Any

import pytest

from omni_rl.errors import RayUnavailableError
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge
from tests.services.posted import GATED
from tests.services.test_verdicts import CLEAN, EMPTY, RUN, SHIFTED, step

pytestmark = pytest.mark.anyio


async def listed(served: Served, **query: Any) -> list[dict[str, Any]]:
    answer = await served.http.get("/v1/runs", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


async def several(served: Served) -> None:
    posted = {"calm": CLEAN, "Broken": SHIFTED, "mute": EMPTY, "new": None, "over_100%": CLEAN}
    for name, rows in posted.items():
        await served.http.post("/v1/runs", json={**RUN, "run": name.rstrip("%")})
        if rows is not None:
            await step(served, 0, rows, run=name.rstrip("%"))
    await served.http.post("/v1/runs/over_100/end")


async def test_the_most_urgent_come_first(served: Served) -> None:
    await several(served)
    found = await listed(served, sort="need")
    assert [(run["run"], run["need"]) for run in found] == [
        ("Broken", "pause"),
        ("mute", "unjudged"),
        ("new", "waiting"),
        ("calm", "ok"),
        ("over_100", "ended"),
    ]
    assert [run["run"] for run in await listed(served)] == ["over_100", "new", "mute", "Broken", "calm"]
    counts = (await served.http.get("/v1/state")).json()["needs"]
    assert counts == {"pause": 1, "unjudged": 1, "waiting": 1, "ok": 1, "ended": 1}


async def test_a_search_takes_a_part_of_a_name_as_it_is_written(served: Served) -> None:
    await several(served)
    assert [run["run"] for run in await listed(served, search="ROK")] == ["Broken"]
    assert [run["run"] for run in await listed(served, search="_")] == ["over_100"]
    assert await listed(served, search="%") == []


async def test_pages_and_what_is_filtered(served: Served) -> None:
    await several(served)
    answer = await served.http.get("/v1/runs", params={"sort": "need", "limit": 2, "offset": 1})
    assert [run["run"] for run in answer.json()] == ["mute", "new"]
    assert answer.headers["Total-Count"] == "5"
    answer = await served.http.get("/v1/runs", params={"need": ["ok", "pause"], "sort": "need"})
    assert [run["run"] for run in answer.json()] == ["Broken", "calm"]
    assert answer.headers["Total-Count"] == "2"
    assert (await served.http.get("/v1/runs?need=nothing")).status_code == 422


async def test_a_reward_that_comes_after_the_seal_is_in_the_line(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    for number in range(3):
        await step(served, number, CLEAN)
    for number, figures in ((1, {"reward": 0.5, "kl": 0.1}), (2, {"kl": 0.2}), (0, {"reward": None})):
        answer = await served.http.put(f"/v1/runs/math/attempts/1/steps/{number}/training", json={"training": figures})
        assert answer.status_code == 200
    (line,) = await listed(served)
    assert line["recent"]["reward"] == [None, 0.5, None]
    await step(served, 3, CLEAN)
    for _ in range(2):
        await served.http.put("/v1/runs/math/attempts/1/steps/3/training", json={"training": {"reward": 0.75}})
    assert (await listed(served))[0]["recent"]["reward"] == [None, 0.5, None, 0.75]


async def test_a_line_has_what_the_first_screen_shows(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    for number in range(3):
        await step(served, number, CLEAN)
    verdict = await step(served, 3, SHIFTED)
    (line,) = await listed(served)
    assert line["good"] == {"attempt": 1, "step": 2, "weights": ""}
    assert line["figure"]["value"] > line["figure"]["limit"]
    assert line["recent"]["step"] == [0, 1, 2, 3]
    assert line["recent"]["reward"] == [None] * 4
    assert line["recent"]["drift"][3] == pytest.approx(verdict["figures"]["overall"]["logprob_abs_diff_mean"])
    assert (line["incident"], line["acknowledged"]) == (1, None)
    assert (line["step"], line["drift"]["cause"]) == (3, None)
    assert (await served.http.get("/v1/runs/math")).json() == line
    for number in range(4, 7):
        await step(served, number, CLEAN)
    (line,) = await listed(served)
    assert (line["need"], line["figure"], line["incident"], line["good"]["step"]) == ("ok", None, None, 6)


async def test_lines_are_the_same_after_a_restart(serve: Serve) -> None:
    async with serve() as served:
        await several(served)
        before = await listed(served, sort="need")
    async with serve() as served:
        assert await listed(served, sort="need") == before


async def test_a_run_whose_cluster_cannot_be_seen_is_unknown(serve: Serve) -> None:
    bridge = FakeBridge()
    async with serve(bridge) as served:
        await served.http.post("/v1/runs", json=GATED)
        await served.http.post("/v1/runs", json={**RUN, "run": "elsewhere"})
        for run in ("digits", "elsewhere"):
            await step(served, 0, CLEAN, run=run)
        assert {run["need"] for run in await listed(served)} == {"ok"}
        bridge.down = str(RayUnavailableError("the head of Ray is gone"))
        await served.coordinator._look_at_cluster()
        assert {run["run"]: run["need"] for run in await listed(served)} == {"digits": "unknown", "elsewhere": "ok"}
        assert (await served.http.get("/v1/state")).json()["needs"] == {"unknown": 1, "ok": 1}


async def test_the_starts_of_a_run(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    for attempt, numbers in ((1, (0, 1, 2)), (2, (2, 3))):
        for number in numbers:
            await step(served, number, CLEAN, attempt=attempt)
    found = (await served.http.get("/v1/runs/math/attempts")).json()
    assert [(one["attempt"], one["first"], one["last"]) for one in found] == [(1, 0, 2), (2, 2, 3)]
    assert (await served.http.get("/v1/runs/nobody/attempts")).status_code == 404


async def test_a_run_that_left_memory_is_silent_in_its_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from omni_rl_services.coordinator import roster

    monkeypatch.setattr(roster, "KEPT", 2)
    monkeypatch.setattr(roster, "NEWEST", 1)
    await served.http.post("/v1/runs", json={**RUN, "silent_after": 0.01})
    await step(served, 0, CLEAN)
    for name in ("x", "y", "z"):
        await served.http.post("/v1/runs", json={**RUN, "run": name})
    assert "math" not in [run.name for run in served.coordinator._runs]
    await asyncio.sleep(0.02)
    assert await served.coordinator.silence.look()
    (line,) = await listed(served, need="silent")
    assert line["run"] == "math"
    (found,) = (await served.http.get("/v1/incidents")).json()
    assert (found["kind"], found["run"], found["step"]) == ("silence", "math", 0)
    await step(served, 1, CLEAN)
    assert (await served.http.get("/v1/incidents?open=true")).json() == []
