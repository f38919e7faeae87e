"""The search for a cause, the resync and the recheck, one by one: what each makes of what it is told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from omni_rl_services.coordinator import responder
from omni_rl_services.coordinator.checks import Checked, Explained, judged
from omni_rl_services.coordinator.gate import Gate
from omni_rl_services.coordinator.problems import SyncIsRunningError
from omni_rl_services.coordinator.responder import Responder
from omni_rl_services.coordinator.runs import LiveRun

from omni_rl.api.runs import RunBody
from omni_rl.bridge.seam import CheckRequest, CheckResult
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.limits import Limit, Severity
from omni_rl.consistency.policy import Drift, DriftCommand, Outcome, Transition
from omni_rl.errors import LedgerError, RayUnavailableError, SyncRolledBackError, TakenOverError
from omni_rl.sync.result import SyncResult
from tests.services.fake_bridge import FakeBridge

pytestmark = pytest.mark.anyio
MASK, PAUSE = Severity.MASK, Severity.PAUSE
ATTRIBUTING = Drift(PAUSE, gate="paused", pursuit="attributing", at=PAUSE)
RESYNCING = Drift(PAUSE, gate="paused", pursuit="resyncing", at=PAUSE, cause=Cause.STALE_WEIGHTS)
RECHECKING = Drift(PAUSE, gate="paused", pursuit="rechecking", at=PAUSE, cause=Cause.STALE_WEIGHTS)
GOOD = CheckResult("v", {"overall": {"tokens": 100.0, "gen_kl_error": 0.0}})
LIMITS = {"overall": {"gen_kl_error": Limit(0.1, 0.2, 0.3)}}


class World:
    """Checks, syncs and a ledger that answer as they are told to, with a record of what they were asked."""

    def __init__(self, drift: Drift, **said: Any) -> None:
        self.known: Explained | Exception | None = None
        self.found: CheckResult | Exception = GOOD
        self.syncs: list[SyncResult | Exception] = []
        self.ledger: list[Exception] = []
        self.asked: list[Any] = []
        self.drifts: list[Drift] = []
        self.bridge = FakeBridge()
        self.gate = Gate(self.bridge)
        fake: Any = self
        self.responder = Responder(fake, self.gate, fake, self.record)
        self.run = LiveRun.of(RunBody(run="math", model="m", dtype="bfloat16", gated=True, **said), 1.0, 3)
        self.run.drift, self.run.latest = drift, (2, 9)

    async def explained(self, key: Any) -> Explained | None:
        self.asked.append(("explained", *key))
        if isinstance(self.known, Exception):
            raise self.known
        return self.known

    async def make(self, request: CheckRequest, limits: Any) -> Checked:
        self.asked.append(request)
        assert limits is self.run.yardstick.limits
        if isinstance(self.found, Exception):
            raise self.found
        answer: Any = None
        return Checked(self.found, judged(self.found, LIMITS), answer)

    async def begin(self, body: Any, key: str | None, *, heal: bool) -> str:
        self.asked.append(("begin", body.probe, body.source, key, heal))
        if isinstance(running := self.syncs[0], SyncIsRunningError):
            del self.syncs[0]
            raise running
        return "s1"

    async def result(self, sync: str) -> SyncResult:
        found = self.syncs.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def over(self, sync: str) -> None:
        self.asked.append(("over", sync))

    async def record(self, run: LiveRun, outcome: Outcome, evidence: Any) -> None:
        assert run.turn.locked()
        if self.ledger:
            raise self.ledger.pop(0)
        self.evidence = evidence
        self.drifts.append(outcome.drift)
        run.drift = outcome.drift

    async def pursue(self) -> Drift:
        self.responder.pursue(self.run)
        async with asyncio.timeout(10):
            while self.responder._pursuits:
                await asyncio.sleep(0)
        return self.run.drift

    async def pursue_to_its_end(self) -> Drift:
        """Pursue it where nobody else is at work."""
        self.responder.pursue(self.run)
        await asyncio.gather(*self.responder._pursuits.values())
        return self.run.drift


def explained(cause: Cause, proven: bool) -> Explained:
    return Explained(cause, "the records say so", [{"check": "media", "result": "explains"}], proven)


@pytest.mark.parametrize(
    ("known", "found", "cause", "asks"),
    [
        (explained(Cause.TOKEN_SHIFT, True), GOOD, "token_shift", False),
        (explained(Cause.NONFINITE_LOGPROBS, False), RayUnavailableError("gone"), "nonfinite_logprobs", True),
        (None, RayUnavailableError("gone"), "unknown", True),
        (None, CheckResult("v", {}, cause=Cause.MEDIA_MISMATCH, sentence="so"), "media_mismatch", True),
        (explained(Cause.ROUNDING, False), CheckResult("v", {}, cause=Cause.KERNEL, sentence="so"), "kernel", True),
        (LedgerError("disk"), CheckResult("v", {}, cause=Cause.MEDIA_MISMATCH), "media_mismatch", True),
        (None, CheckResult("v", {}, sentence="nothing found"), "unknown", True),
    ],
)
async def test_the_records_are_asked_first_and_the_pair_where_they_do_not_prove_it(
    known: Explained | Exception | None, found: CheckResult | Exception, cause: str, asks: bool
) -> None:
    world = World(ATTRIBUTING)
    world.known, world.found = known, found
    world.syncs = [SyncRolledBackError("not now")]
    await world.pursue()
    assert str(world.drifts[0].cause) == cause
    assert world.asked[0] == ("explained", "math", 2, 9)
    requests = [one for one in world.asked if isinstance(one, CheckRequest)]
    assert (
        requests[:1]
        == [CheckRequest(run="math", attempt=2, step=9, legs=True, reference=True, localise=True, seconds=60.0)] * asks
    )


@pytest.mark.parametrize(
    ("known", "found", "says", "evidence"),
    [
        (explained(Cause.TOKEN_SHIFT, True), GOOD, "the records say so", {"media": {"result": "explains"}}),
        (
            explained(Cause.NONFINITE_LOGPROBS, False),
            RayUnavailableError("gone"),
            "the records say so; the search for the cause failed: gone",
            {"media": {"result": "explains"}},
        ),
        (None, RayUnavailableError("gone"), "the search for the cause failed: gone", {}),
        (None, CheckResult("v", {}), "no check explained it", {}),
        (None, CheckResult("v", {}, sentence="nothing found"), "nothing found", {}),
        (
            None,
            CheckResult("v", {}, cause=Cause.KERNEL, sentence="so", evidence=({"check": "router", "result": "clear"},)),
            "so",
            {"router": {"result": "clear"}},
        ),
    ],
)
async def test_a_cause_comes_with_its_sentence_and_evidence(
    known: Explained | None, found: CheckResult | Exception, says: str, evidence: dict[str, Any]
) -> None:
    world = World(ATTRIBUTING)
    world.known, world.found = known, found
    _, sentence, told = await world.responder._attribute(world.run, 2, 9)
    assert (sentence, told) == (says, evidence)


COMMITTED = SyncResult("s1", "committed", "v", "v")


@pytest.mark.parametrize(
    ("syncs", "failure", "begun"),
    [
        ([COMMITTED], None, 1),
        ([SyncResult("s1", "rolled_back", "v", "u", reason="3 elements differ")], "3 elements differ", 1),
        ([SyncRolledBackError("rollout-0 is gone")], "rollout-0 is gone", 1),
        ([SyncIsRunningError("s0"), COMMITTED], None, 2),
        ([SyncIsRunningError("s0"), SyncIsRunningError("s2"), SyncRolledBackError("gone")], "gone", 3),
    ],
)
async def test_a_resync_follows_one_that_is_under_way_and_says_why_it_failed(
    syncs: list[SyncResult | Exception], failure: str | None, begun: int
) -> None:
    world = World(RESYNCING)
    world.syncs = list(syncs)
    assert await world.responder._resync() == failure
    assert [one for one in world.asked if one[0] == "begin"] == [("begin", False, "trainer", None, True)] * begun
    waited = [one.sync for one in syncs if isinstance(one, SyncIsRunningError)]
    assert [one[1] for one in world.asked if one[0] == "over"] == waited


APART = CheckResult("v", {"overall": {"tokens": 100.0, "gen_kl_error": 0.5}})
THEIRS = CheckResult("v", {}, compared=False, sentence="only their own trainer can tell")


@pytest.mark.parametrize(
    ("drift", "found", "severity"),
    [
        (RECHECKING, GOOD, Severity.OK),
        (RECHECKING, APART, PAUSE),
        (RECHECKING, RayUnavailableError("gone"), None),
        (RECHECKING, THEIRS, None),
        (Drift(PAUSE, pursuit="rechecking", cause=Cause.CORRUPT_WEIGHTS), THEIRS, Severity.OK),
        (RECHECKING, CheckResult("v", {}, cause=Cause.CORRUPT_WEIGHTS, compared=False, sentence="wrong"), PAUSE),
    ],
)
async def test_a_recheck_looks_at_the_probe_and_at_the_steps_own_prompts(
    drift: Drift, found: CheckResult | Exception, severity: Severity | None
) -> None:
    world = World(drift)
    world.found = found
    judgement = await world.responder._recheck(world.run, 2, 9)
    assert (None if judgement is None else judgement.severity) == severity
    (request,) = world.asked
    assert request == CheckRequest(run="math", attempt=2, step=9, legs=False, resample=True)


async def test_a_pursuit_goes_from_its_cause_to_an_open_gate() -> None:
    world = World(ATTRIBUTING)
    world.gate.hold("run:math", "drift")
    world.known, world.syncs = None, [COMMITTED]
    world.found = CheckResult("v", {"overall": {"tokens": 100.0, "gen_kl_error": 0.0}}, cause=Cause.STALE_WEIGHTS)
    drift = await world.pursue()
    assert [one.pursuit for one in world.drifts] == ["resyncing", "rechecking", "nothing"]
    assert (drift.gate, drift.severity, world.gate.closed) == ("open", Severity.OK, False)
    assert world.bridge.calls == ["resume"]


async def test_a_pursuit_is_recorded_once_the_ledger_takes_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(responder, "RECORD_SECONDS", 0.001)
    world = World(RECHECKING)
    world.ledger = [LedgerError("the disk is full")] * 2
    assert (await world.pursue()).gate == "open"
    assert caplog.text.count("run math's pursuit was not recorded, again in 0 s: the disk is full") == 2


@pytest.mark.parametrize("error", [TakenOverError("another is at work"), KeyError("nobody foresaw it")])
async def test_a_pursuit_that_cannot_go_on_leaves_the_gate_and_is_in_the_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(RECHECKING)
    world.gate.hold("run:math", "drift")
    world.ledger = [error]
    assert await world.pursue() == RECHECKING
    assert (world.gate.closed, world.drifts) == (True, [])
    assert "the pursuit of what parts run math's policies failed" in caplog.text


@pytest.mark.parametrize("how", ["connected", "never", "before"])
async def test_after_a_restart_a_pursuit_waits_for_the_cluster_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(responder, "CONNECT_SECONDS", 0.01 if how == "never" else 60.0)
    world, connected = World(RECHECKING), asyncio.Event()
    if how == "before":
        connected.set()
    world.responder.pursue(world.run, connected)
    for _ in range(3):
        await asyncio.sleep(0)
    assert bool(world.asked) is (how == "before")
    if how == "connected":
        connected.set()
    async with asyncio.timeout(10):
        while world.run.drift.pursuit != "nothing":
            await asyncio.sleep(0.001)
    assert len(world.asked) == 1


async def test_another_pursuit_takes_the_place_of_the_first_and_a_persons_word_ends_it() -> None:
    world = World(RECHECKING)
    never = asyncio.Event()
    for _ in range(2):
        world.responder.pursue(world.run, never)
    first, *_ = world.responder._pursuits.values()
    await asyncio.sleep(0)
    assert len(world.responder._pursuits) == 1
    await world.responder.forget(world.run)
    await world.responder.forget(world.run)
    assert (first.cancelled() or first.done(), world.responder._pursuits) == (True, {})
    world.responder.pursue(world.run, never)
    await world.responder.close()
    assert (world.asked, world.run.drift) == ([], RECHECKING)


def outcome(*commands: DriftCommand) -> Outcome:
    return Outcome(RECHECKING, commands, (Transition("gate", "open", "paused", "too far apart"),))


@pytest.mark.parametrize(
    ("commands", "calls", "pursues"),
    [
        ((), [], False),
        ((DriftCommand.CLOSE,), ["pause"], False),
        ((DriftCommand.CLOSE, DriftCommand.ATTRIBUTE), ["pause"], True),
        ((DriftCommand.ATTRIBUTE,), [], True),
        ((DriftCommand.OPEN,), ["resume"], False),
        ((DriftCommand.RESYNC,), [], False),
    ],
)
async def test_the_gate_moves_before_the_answer_and_the_cause_is_looked_for_after_it(
    commands: tuple[DriftCommand, ...], calls: list[str], pursues: bool
) -> None:
    world = World(RECHECKING)
    await world.responder.respond(world.run, outcome(*commands))
    assert (world.bridge.calls, bool(world.responder._pursuits)) == (calls, pursues)
    if "pause" in calls:
        assert world.gate.reason == "too far apart"
    await world.responder.close()


class Stuck(FakeBridge):
    async def pause(self, reason: str) -> None:
        await asyncio.Event().wait()


def failing() -> FakeBridge:
    return FakeBridge(gate_error=RayUnavailableError("gone"))


@pytest.mark.parametrize("bridge", [Stuck, failing])
async def test_an_answer_does_not_wait_for_a_gate_that_does_not_move(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bridge: Callable[[], FakeBridge]
) -> None:
    monkeypatch.setattr(responder, "GATE_SECONDS", 0.01)
    world = World(RECHECKING)
    gate = Gate(bridge())
    world.responder._gate = gate
    async with asyncio.timeout(5):
        await world.responder.respond(world.run, outcome(DriftCommand.CLOSE))
    assert (gate.closed, gate.answer().confirmed) == (True, False)
    assert "the gate did not move for run math yet" in caplog.text
