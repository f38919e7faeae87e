"""From a step that drifts to a gate that is closed, a cause, and what is done: through the API, on a gated run."""

import asyncio

import pytest
from omni_rl_services.coordinator import responder

from omni_rl.bridge.seam import SyncRequest
from omni_rl.consistency.actions import Cause
from omni_rl.errors import ReplicaDeadError
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Observer
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import AGREE, PART, FakeBridge
from tests.services.posted import CALM, DRIFTED, GATED, RUN, post, rest, seal

pytestmark = pytest.mark.anyio


class Mended(FakeBridge):
    """What is wrong with its weights ends with a sync."""

    async def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        result = await super().sync(request, observe)
        self.cause = None
        return result


async def told(served: Served) -> list[tuple[str, str, str]]:
    """Kind, before and after of every transition."""
    page = (await served.http.get("/v1/events/page")).json()
    return [
        (event["kind"], event["data"]["before"], event["data"]["after"])
        for event in page
        if event["kind"] in ("severity", "gate", "pursuit") and "before" in event["data"]
    ]


async def test_stale_weights_heal_themselves(served: Served) -> None:
    served.bridge.cause = Cause.STALE_WEIGHTS
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    verdict = await seal(served)
    assert (verdict["severity"], verdict["drift"]["gate"]) == ("pause", "paused")
    # The gate is closed before the trainer hears of it.
    assert served.bridge.calls[0] == "pause"
    run = await rest(served)
    assert run["drift"] == {"severity": "ok", "gate": "open", "pursuit": "nothing", "cause": None}
    assert served.bridge.calls == ["pause", "check", "sync", "check", "resume"]
    assert served.bridge.open_gate
    assert await told(served) == [
        ("severity", "ok", "pause"),
        ("gate", "open", "paused"),
        ("pursuit", "nothing", "attributing"),
        ("pursuit", "attributing", "resyncing"),
        ("pursuit", "resyncing", "rechecking"),
        ("severity", "pause", "ok"),
        ("gate", "paused", "open"),
        ("pursuit", "rechecking", "nothing"),
    ]
    assert (await served.http.get("/v1/state")).json()["alarms"] == []
    asked, again = served.bridge.checks
    assert (asked.step, asked.resample) == (12, False)
    assert (asked.legs, asked.reference, asked.localise) == (True, True, True)
    # What the probe does not show, the step's own samples and prompts do.
    assert (again.run, again.attempt, again.step, again.resample) == ("digits", 1, 12, True)
    recheck, search = (await served.http.get("/v1/checks")).json()
    assert (search["step"], search["cause"]) == (12, "stale_weights")
    assert (recheck["step"], recheck["severity"]) == (None, "ok")


async def test_a_media_fault_halts_and_rings_until_a_person_comes(served: Served) -> None:
    served.bridge.cause = Cause.MEDIA_MISMATCH
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    run = await rest(served)
    assert (run["drift"]["gate"], run["drift"]["cause"]) == ("halted", "media_mismatch")
    assert not served.bridge.open_gate
    (alarm,) = (await served.http.get("/v1/state")).json()["alarms"]
    assert (alarm["cause"], alarm["step"]) == ("media_mismatch", 12)
    assert "check found it" in alarm["sentence"]
    assert alarm["action"] == "generation is stopped until a person resumes it"
    alarms = (await served.http.get("/v1/runs/digits/alarms")).json()
    assert [(one["cause"], one["closed"]) for one in alarms] == [("media_mismatch", None)]
    gate = (await served.http.post("/v1/resume")).json()
    assert (gate["gate"], served.bridge.open_gate) == ("open", True)
    state = (await served.http.get("/v1/state")).json()
    assert state["alarms"] == []
    assert state["runs"][0]["drift"]["severity"] == "ok"


async def test_what_nobody_can_explain_is_resynced_once_and_halts_if_it_persists(served: Served) -> None:
    served.bridge.figures = PART
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    run = await rest(served)
    assert (run["drift"]["gate"], run["drift"]["cause"]) == ("halted", "unknown")
    assert served.bridge.calls == ["pause", "check", "sync", "check"]


@pytest.mark.parametrize(
    ("cause", "gate", "calls"),
    [
        # Bytes that are not those that were sent: they are brought again, and proven.
        (Cause.CORRUPT_WEIGHTS, "open", ["pause", "check", "sync", "check", "resume"]),
        # What it was, only the next step of their own trainer could tell: a person looks.
        (Cause.UNKNOWN, "halted", ["pause", "check", "sync", "check"]),
        (Cause.STALE_WEIGHTS, "halted", ["pause", "check", "sync", "check"]),
    ],
)
async def test_published_weights_are_brought_again_and_never_overwritten(
    serve: Serve, cause: Cause, gate: str, calls: list[str]
) -> None:
    async with serve(Mended(published=True, version="digits/1/7/abc", cause=cause)) as served:
        await served.http.post("/v1/runs", json=GATED)
        await post(served, DRIFTED)
        await seal(served)
        assert (await rest(served))["drift"]["gate"] == gate
        assert served.bridge.calls == calls
        assert (served.bridge.version, served.bridge.published) == ("digits/1/7/abc", True)
        (sync,) = (await served.http.get("/v1/syncs")).json()
        assert (sync["outcome"], sync["source"]) == ("committed", "published")


async def test_a_failed_resync_halts(served: Served) -> None:
    served.bridge.cause, served.bridge.sync_error = Cause.CORRUPT_WEIGHTS, ReplicaDeadError("rollout-0 is gone")
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    run = await rest(served)
    assert run["drift"]["gate"] == "halted"
    (alarm,) = (await served.http.get("/v1/state")).json()["alarms"]
    assert "rollout-0 is gone" in alarm["sentence"]


async def test_what_comes_back_after_its_resync_halts_at_the_next_step(served: Served) -> None:
    served.bridge.cause = Cause.STALE_CACHE
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    assert (await rest(served))["drift"]["gate"] == "open"
    await post(served, DRIFTED, step=13)
    await seal(served, step=13)
    run = await rest(served)
    assert (run["drift"]["gate"], run["drift"]["cause"]) == ("halted", "stale_cache")
    assert served.bridge.calls.count("sync") == 1
    (alarm,) = (await served.http.get("/v1/state")).json()["alarms"]
    assert "it persists after a resync" in alarm["sentence"]


async def test_a_pattern_of_the_records_stands_where_the_pair_cannot_be_asked(serve: Serve) -> None:
    """Values that are no numbers may be the weights': the pair's bytes are asked first."""
    bridge = FakeBridge(cause=Cause.CORRUPT_WEIGHTS)
    lost = [{**sample, "rollout_logprobs": [None] * len(sample["rollout_logprobs"])} for sample in CALM]
    async with serve(bridge) as served:
        await served.http.post("/v1/runs", json=GATED)
        await post(served, lost)
        assert (await seal(served))["cause"] == "nonfinite_logprobs"
        await rest(served)
        assert bridge.calls == ["pause", "check", "sync", "check", "resume"]
        bridge.down = "the head of Ray is gone"
        await post(served, lost, step=13)
        await seal(served, step=13)
        run = await rest(served)
        assert (run["drift"]["gate"], run["drift"]["cause"]) == ("halted", "nonfinite_logprobs")


async def test_noise_is_masked_and_generation_goes_on(served: Served) -> None:
    served.bridge.cause = Cause.ROUNDING
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    assert (await seal(served))["weights"]["method"] == "tis"
    run = await rest(served)
    assert run["drift"] == {"severity": "mask", "gate": "open", "pursuit": "nothing", "cause": "rounding"}
    assert served.bridge.open_gate


class Slow(FakeBridge):
    """Its engines take until `moved` to open their gates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.moved = asyncio.Event()

    async def resume(self) -> None:
        await self.moved.wait()
        await super().resume()


async def test_a_search_that_is_over_takes_no_part_in_the_next(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate opens slowly after the first step's search, and a step that was under way is worse."""
    monkeypatch.setattr(responder, "GATE_SECONDS", 0.2)
    bridge = Slow(cause=Cause.ROUNDING)
    async with serve(bridge) as served:
        await served.http.post("/v1/runs", json=GATED)
        await post(served, DRIFTED)
        await seal(served)
        async with asyncio.timeout(10):
            while (await served.http.get("/v1/runs/digits")).json()["drift"]["pursuit"] != "nothing":
                await asyncio.sleep(0.01)
        await post(served, DRIFTED, step=13)
        await seal(served, step=13)
        bridge.moved.set()
        assert (await rest(served))["drift"]["gate"] == "halted", "noise does not do that twice"
        assert [check.step for check in bridge.checks] == [12, 13]


async def test_a_run_that_is_not_ours_is_advised_only(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    verdict = await seal(served)
    assert (verdict["severity"], verdict["drift"]["gate"]) == ("pause", "open")
    assert served.bridge.calls == []
    (alarm,) = (await served.http.get("/v1/state")).json()["alarms"]
    assert (alarm["severity"], alarm["action"]) == ("pause", "the trainer was told")
    for step in (13, 14, 15):
        await post(served, CALM, step=step)
        last = await seal(served, step=step)
    assert last["severity"] == "ok"
    assert (await served.http.get("/v1/state")).json()["alarms"] == []


async def test_figures_of_the_probe_are_those_the_run_is_judged_by(served: Served) -> None:
    strict = {"overall": {"logprob_abs_diff_mean": {"warn": 1e-9, "mask": 1e-8, "pause": 1.0}}}
    await served.http.post("/v1/runs", json={**GATED, "dtype": "float32", "limits": strict})
    served.bridge.figures = AGREE
    body = {"run": "digits", "attempt": 1, "step": 12}
    assert (await served.http.post("/v1/checks", json=body)).json()["severity"] == "mask"
