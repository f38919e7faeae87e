"""Carries out what the policy commands for a gated run, and feeds the results back until nothing is under way."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from omni_rl.api.syncs import SyncBody
from omni_rl.bridge.seam import CheckRequest
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.limits import Judgement, Severity
from omni_rl.consistency.policy import Drift, DriftCommand, Outcome
from omni_rl.errors import LedgerError, OmniRLError, TakenOverError
from omni_rl.ledger.types import StepKey
from omni_rl_services.coordinator.checks import PolicyChecks, proven
from omni_rl_services.coordinator.gate import Gate
from omni_rl_services.coordinator.incidents import by_check
from omni_rl_services.coordinator.problems import SyncIsRunningError
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.syncs import Syncs

logger = logging.getLogger("omni_rl.coordinator")
GATE_SECONDS = 5.0
"""Seconds that the answer to a step waits for the gate to move; if it has not moved by then, it is moved later."""
ATTRIBUTION_SECONDS = 60.0
"""Seconds after which the search for a cause gives up."""
CONNECT_SECONDS = 300.0
"""Seconds for which a pursuit waits after a restart until the cluster is connected: its bridge is a process that starts
anew, and a resync without it would fail and halt the run."""
RECORD_SECONDS = 2.0
"""Seconds between two tries to record a result in a ledger that cannot be written."""

Evidence = Mapping[str, Any]
"""What each check found, by the check's name."""
Record = Callable[[LiveRun, Outcome, Evidence], Awaitable[None]]
"""Makes an outcome durable with its events and incident, and sets the run's drift. The caller holds the run's
`turn`."""


class Responder:
    """Runs one pursuit (the search for a cause, a resync and its recheck) for a run at a time; a person's word ends
    it."""

    def __init__(self, checks: PolicyChecks, gate: Gate, syncs: Syncs, record: Record) -> None:
        self._checks = checks
        self._gate = gate
        self._syncs = syncs
        self._record = record
        self._pursuits: dict[str, asyncio.Task[None]] = {}

    async def respond(self, run: LiveRun, outcome: Outcome) -> None:
        """Move the gate before this returns, and pursue the cause in a task."""
        await self._move(run, outcome)
        if DriftCommand.ATTRIBUTE in outcome.commands:
            self.pursue(run)

    def pursue(self, run: LiveRun, connected: asyncio.Event | None = None) -> None:
        """Begin what the run's drift says is under way, in place of an earlier pursuit. After a restart it is continued
        once the cluster is `connected`, unless a person resumes the run before."""
        assert run.latest is not None, "a run that drifted has a step"
        if (before := self._pursuits.get(run.name)) is not None:
            before.cancel()
        self._pursuits[run.name] = pursuit = asyncio.create_task(self._pursue(run, *run.latest, connected))
        pursuit.add_done_callback(partial(self._ended, run.name))

    async def forget(self, run: LiveRun) -> None:
        """End the pursuit of a run."""
        if (task := self._pursuits.pop(run.name, None)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        for task in self._pursuits.values():
            task.cancel()
        await asyncio.gather(*self._pursuits.values(), return_exceptions=True)

    def _ended(self, run: str, pursuit: "asyncio.Task[None]") -> None:
        if self._pursuits.get(run) is pursuit:
            del self._pursuits[run]

    async def _pursue(self, run: LiveRun, attempt: int, step: int, connected: asyncio.Event | None) -> None:
        try:
            if connected is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await connected.wait()
            under_way = run.drift.pursuit
            while under_way != "nothing":
                advance, evidence = await self._finish(run, attempt, step)
                outcome = await self._recorded(run, advance, evidence)
                # What the run's drift says once this is over and the gate has moved may be another step's pursuit.
                under_way = outcome.drift.pursuit
                await self._move(run, outcome)
        except Exception:
            # The task's end would go unseen. The gate stays as it is: closed, if the drift had closed it.
            logger.exception("the pursuit of what parts run %s's policies failed", run.name)

    async def _recorded(self, run: LiveRun, advance: Callable[[Drift], Outcome], evidence: Evidence) -> Outcome:
        """Record and return what comes of a result, once the ledger takes it: a pursuit that ended over it would leave
        the gate closed, and nobody at work. Raises `TakenOverError`: another coordinator is at work."""
        while True:
            try:
                async with run.turn:
                    # Steps may have been judged meanwhile: the result is applied to the drift as it is now.
                    outcome = advance(run.drift)
                    await self._record(run, outcome, evidence)
                    return outcome
            except TakenOverError:
                raise
            except LedgerError as error:
                logger.warning(
                    "run %s's pursuit was not recorded, again in %.0f s: %s", run.name, RECORD_SECONDS, error
                )
            await asyncio.sleep(RECORD_SECONDS)

    async def _finish(self, run: LiveRun, attempt: int, step: int) -> tuple[Callable[[Drift], Outcome], Evidence]:
        match run.drift.pursuit:
            case "attributing":
                cause, sentence, evidence = await self._attribute(run, attempt, step)
                return partial(run.policy.attributed, cause=cause, evidence=sentence), evidence
            case "resyncing":
                return partial(run.policy.resynced, failure=await self._resync()), {}
            case _:
                return partial(run.policy.rechecked, judgement=await self._recheck(run, attempt, step)), {}

    async def _attribute(self, run: LiveRun, attempt: int, step: int) -> tuple[Cause, str, Evidence]:
        try:
            known = await self._checks.explained(StepKey(run.name, attempt, step))
        except LedgerError as error:  # the pair may still say what it was
            logger.warning("the records of run %s's step %d were not read: %s", run.name, step, error)
            known = None
        if known is not None and known.proven:
            return known.cause, known.sentence, by_check(known.evidence)
        request = CheckRequest(
            run=run.name,
            attempt=attempt,
            step=step,
            legs=True,
            reference=True,
            localise=True,
            seconds=ATTRIBUTION_SECONDS,
        )
        try:
            found = (await self._checks.make(request, run.yardstick.limits)).found
        except OmniRLError as error:
            failed = f"the search for the cause failed: {error}"
            if known is None:
                return Cause.UNKNOWN, failed, {}
            return known.cause, f"{known.sentence}; {failed}", by_check(known.evidence)
        evidence = by_check(found.evidence)
        if found.cause is None:
            return Cause.UNKNOWN, found.sentence or "no check explained it", evidence
        return found.cause, found.sentence, evidence

    async def _resync(self) -> str | None:
        """Sync the weights again, and return None if that went through, else why not. A sync that runs already may have
        begun before the cause was found, so another follows it.

        Weights that were published, or came from a directory, are brought anew: the trainer's do not take their place.
        """
        while True:
            try:
                result = await self._syncs.result(await self._syncs.begin(SyncBody(probe=False), None, heal=True))
            except SyncIsRunningError as running:
                await self._syncs.over(running.sync)
                continue
            except OmniRLError as error:
                return str(error)
            return None if result.outcome == "committed" else result.reason

    async def _recheck(self, run: LiveRun, attempt: int, step: int) -> Judgement | None:
        """Compare the policies again, on the probe and on the step's own samples and prompts, which may show what the
        probe does not. Return None if they could not be compared."""
        request = CheckRequest(run=run.name, attempt=attempt, step=step, legs=False, resample=True)
        try:
            checked = await self._checks.make(request, run.yardstick.limits)
        except OmniRLError as error:
            logger.warning("the recheck of run %s could not be made: %s", run.name, error)
            return None
        if checked.found.compared or checked.found.cause is not None:
            return checked.judgement
        if run.drift.cause is Cause.CORRUPT_WEIGHTS:
            return proven(Severity.OK)  # right bytes heal wrong ones
        # Whether anything else is healed, only the scores of their own trainer can tell.
        logger.warning("the recheck of run %s could not be made: %s", run.name, checked.found.sentence)
        return None

    async def _move(self, run: LiveRun, outcome: Outcome) -> None:
        if DriftCommand.CLOSE in outcome.commands:
            self._gate.hold(run.holder, outcome.transitions[0].reason)
        elif DriftCommand.OPEN in outcome.commands:
            self._gate.release(run.holder)
        else:
            return
        try:
            async with asyncio.timeout(GATE_SECONDS):
                await self._gate.settle()
        except (OmniRLError, TimeoutError) as error:
            logger.warning("the gate did not move for run %s yet: %s", run.name, error)
