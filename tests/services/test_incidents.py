"""One incident from its first sign to its end: opened once, grown, acknowledged, ended, and there after a restart."""

import asyncio
from typing import Any

import pytest

from omni_rl.bridge.seam import CheckRequest, CheckResult
from omni_rl.consistency.actions import Cause
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge
from tests.services.posted import CALM, DRIFTED, GATED, post, rest, seal
from tests.services.test_verdicts import CLEAN, RUN, SHIFTED, step

pytestmark = pytest.mark.anyio


async def incidents(served: Served, **query: Any) -> list[dict[str, Any]]:
    answer = await served.http.get("/v1/incidents", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


async def told(served: Served) -> list[str]:
    return [
        event.data["what"]
        for event in await served.coordinator.store.events(after=0, limit=500)
        if event.kind == "incident"
    ]


async def test_the_story_of_a_posted_fault(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 4, CLEAN)
    await step(served, 5, CLEAN)
    verdict = await step(served, 6, SHIFTED)
    (found,) = await incidents(served)
    worst = max(verdict["breaches"], key=lambda breach: breach["value"] / breach["limit"])
    assert found["what"].startswith(f"Step 6, text: {found['figure']['metric']} ")
    assert f", limit {found['figure']['limit']:g}; clean to step 5. " in found["what"]
    assert (found["figure"]["kind"], found["figure"]["metric"]) == (worst["kind"], worst["metric"])
    assert verdict["sentence"][1:] in found["what"]
    assert (found["run"], found["kind"], found["severity"], found["cause"]) == ("math", "drift", "pause", "token_shift")
    assert (found["attempt"], found["step"], found["ended"], found["acknowledged"]) == (1, 6, None, None)
    assert found["good"] == {"attempt": 1, "step": 5, "weights": ""}
    assert found["remedy"].startswith("Align labels")
    assert found["guide"] == "docs/operating.md#token_shift"
    assert [done["what"] for done in found["actions"]] == ["the trainer was told"]
    assert found["evidence"]["token_shift"]["result"] == "explains"
    assert (await served.http.get(f"/v1/incidents/{found['incident']}")).json() == found
    assert (await served.http.get("/v1/state")).json()["incidents"] == [found]


async def test_only_the_kind_that_breaches_is_named(served: Served) -> None:
    await served.http.post("/v1/runs", json={**GATED, "gated": False})
    await post(served, DRIFTED)
    verdict = await seal(served)
    (found,) = await incidents(served)
    over = {breach["kind"] for breach in verdict["breaches"]} & {"text", "image"}
    assert over == {"image"}
    assert found["what"].startswith("Step 12, image only: ")


async def test_it_is_told_once_and_ends_when_steps_are_calm(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    for number in range(3):
        await step(served, number, SHIFTED)
    assert len(await incidents(served)) == 1
    assert await told(served) == ["opened"]
    for number in (3, 4, 5):
        await step(served, number, CLEAN)
    (found,) = await incidents(served)
    assert found["ended"] is not None
    assert await told(served) == ["opened", "ended"]
    await step(served, 6, SHIFTED)
    assert [one["step"] for one in await incidents(served, open=True)] == [6]
    assert [one["step"] for one in await incidents(served, open=False)] == [0]


async def test_persons_take_it_write_to_it_and_end_it(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, SHIFTED)
    (found,) = await incidents(served)
    at = f"/v1/incidents/{found['incident']}"
    for _ in range(2):
        taken = await served.http.post(f"{at}/acknowledge")
        assert taken.json()["acknowledged"]["by"] == "local"
    noted = await served.http.post(f"{at}/notes", json={"text": "a driver was upgraded"})
    assert [(note["by"], note["text"]) for note in noted.json()["notes"]] == [("local", "a driver was upgraded")]
    assert (await served.http.post(f"{at}/notes", json={"text": ""})).status_code == 422
    line = (await served.http.get("/v1/runs/math")).json()
    assert (line["need"], line["incident"], line["acknowledged"]["by"]) == ("pause", found["incident"], "local")
    ended = (await served.http.post(f"{at}/end")).json()
    assert (ended["ended"] is not None, ended["actions"][-1]["what"]) == (True, "ended by local")
    assert (await served.http.get("/v1/runs/math")).json()["drift"]["severity"] == "ok"
    assert (await served.http.post("/v1/incidents/99/end")).status_code == 404
    assert await told(served) == ["opened", "acknowledged", "noted", "ended"]
    await step(served, 1, SHIFTED)
    assert len(await incidents(served, open=True)) == 1, "what is still wrong opens another"


async def test_two_that_want_it_are_told_of_each_other(serve: Serve) -> None:
    async with serve() as served:
        await served.http.post("/v1/runs", json=RUN)
        await step(served, 0, SHIFTED)
        await served.coordinator.store.acknowledge(1, "ann")
        refused = await served.http.post("/v1/incidents/1/acknowledge")
        assert (refused.status_code, refused.json()["detail"]) == (
            409,
            "ann has incident 1 in hand; write a note to it",
        )


async def test_a_halted_run_ends_its_incident_by_being_resumed(served: Served) -> None:
    served.bridge.cause = Cause.MEDIA_MISMATCH
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    await rest(served)
    (found,) = await incidents(served)
    assert (found["cause"], found["severity"]) == ("media_mismatch", "pause")
    assert "check found it" in found["what"]
    assert found["what"].startswith("Step 12, image only: ")
    assert [done["what"] for done in found["actions"]] == [
        "generation is stopped, and the cause is looked for",
        "generation is stopped until a person resumes it",
    ]
    refused = await served.http.post(f"/v1/incidents/{found['incident']}/end")
    assert refused.status_code == 409
    assert "resume the run" in refused.json()["detail"]
    assert (await served.http.get("/v1/runs/digits")).json()["need"] == "halted"
    await served.http.post("/v1/resume")
    (found,) = await incidents(served)
    assert found["actions"][-1]["what"] == "resumed by local"
    assert found["ended"] is not None


CAUSES = {1: Cause.MEDIA_MISMATCH, 2: Cause.ROUNDING}


class Asked(FakeBridge):
    """Answers a check with the cause of its step, once the test says so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.answered = {step: asyncio.Event() for step in CAUSES}

    async def check(self, request: CheckRequest) -> CheckResult:
        assert request.step is not None
        self.calls.append(f"check of step {request.step}")
        await self.answered[request.step].wait()
        self.cause = CAUSES[request.step]
        return await super().check(request)


async def test_the_search_for_an_incidents_cause_ends_with_the_incident(serve: Serve) -> None:
    limits = {"overall": {"gen_kl_error": {"warn": 1e-10, "mask": 1e-9, "pause": 20.0}}}
    bridge = Asked()
    async with serve(bridge) as served, asyncio.timeout(10):
        await served.http.post("/v1/runs", json={**GATED, "limits": limits})
        for number in (1, 2):
            await post(served, CALM, step=number)
            assert (await seal(served, step=number))["severity"] == "mask"
            while f"check of step {number}" not in bridge.calls:
                await asyncio.sleep(0.01)
            if number == 1:
                await served.http.post("/v1/incidents/1/end")
        bridge.answered[1].set()
        await asyncio.sleep(0.1)
        bridge.answered[2].set()
        drift = (await rest(served))["drift"]
        assert drift == {"severity": "mask", "gate": "open", "pursuit": "nothing", "cause": "rounding"}
        assert [one["cause"] for one in await incidents(served)] == ["rounding", "rounding"]


async def test_it_is_there_after_a_restart_and_grows_on(serve: Serve) -> None:
    async with serve() as served:
        await served.http.post("/v1/runs", json=RUN)
        await step(served, 0, SHIFTED)
        before = await incidents(served)
    async with serve() as served:
        assert await incidents(served) == before
        await step(served, 1, SHIFTED)
        assert len(await incidents(served)) == 1
        assert await told(served) == ["opened"]


async def test_they_are_filtered_and_paged(served: Served) -> None:
    for run in ("a", "b", "c"):
        await served.http.post("/v1/runs", json={**RUN, "run": run})
        await step(served, 0, SHIFTED, run=run)
    assert [one["run"] for one in await incidents(served, run="b")] == ["b"]
    assert await incidents(served, kind="silence") == []
    newest, middle = await incidents(served, limit=2)
    assert [one["run"] for one in await incidents(served, before=middle["incident"])] == ["a"]
    assert (newest["run"], middle["run"]) == ("c", "b")
    assert (await served.http.get("/v1/incidents?kind=nothing")).status_code == 422


async def test_a_step_that_is_only_worth_a_look_is_none(served: Served) -> None:
    limits = {"overall": {"gen_kl_error": {"warn": 1e-9, "mask": 10.0, "pause": 20.0}}}
    await served.http.post("/v1/runs", json={**GATED, "gated": False, "limits": limits})
    await post(served, CALM)
    assert (await seal(served))["severity"] == "warn"
    assert await incidents(served) == []
    assert (await served.http.get("/v1/runs/digits")).json()["need"] == "warn"
