"""Takes in steps: parts are read and stored, a seal judges them, and a verdict is durable before it is sent."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from omni_rl.api.steps import PartAnswer, SealBody, Verdict
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Outcome
from omni_rl.counting import agreeing, counted
from omni_rl.errors import ConflictError, NotFoundError, TooLargeError
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import RecordLimits
from omni_rl.ledger.types import NewEvent, NewState, NewStep, StepKey
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.followers import Followers
from omni_rl_services.coordinator.incidents import over_at, seen_at
from omni_rl_services.coordinator.judging import Judged, Ranks, StepWeights, judge_step, proven, weigh
from omni_rl_services.coordinator.lines import REWARD
from omni_rl_services.coordinator.memory import Room, budget
from omni_rl_services.coordinator.recent import RecentParts
from omni_rl_services.coordinator.responder import Responder
from omni_rl_services.coordinator.runs import LiveRun, transition_events
from omni_rl_services.coordinator.settings import MIB, CoordinatorSettings
from omni_rl_services.coordinator.sinks import AttemptStart, SinkStep
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.telemetry import Telemetry
from omni_rl_services.coordinator.updates import Updates
from omni_rl_services.coordinator.verdicts import severity_of, verdict_of
from omni_rl_services.coordinator.workers import Workers

T = TypeVar("T")
SMALL = 2**19
"""Bytes of records up to which work is done in the event loop: for fewer, the way to another thread and back takes
longer than the work, which is a few milliseconds."""
JSON = 16
"""How many bytes of Arrow a byte of JSON counts for: it is parsed into objects, one for each number."""


@dataclass(frozen=True)
class SealedStep:
    """A sealed step: its verdict, and the weights that the verdict asks for. `columns` are empty where the step's
    records were dropped."""

    verdict: Verdict
    columns: StepColumns
    ranks: Ranks
    weights: StepWeights | None


class Steps:
    """Takes in and seals the steps of all runs. Reading and judging many bytes runs in threads of their own: numpy and
    Arrow let the event loop go on meanwhile."""

    def __init__(
        self,
        settings: CoordinatorSettings,
        store: Store,
        events: Events,
        telemetry: Telemetry,
        followers: Followers,
        responder: Responder,
        updates: Updates,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._store = store
        self._events = events
        self._telemetry = telemetry
        self._followers = followers
        self._responder = responder
        self._updates = updates
        self.workers = Workers(settings.metrics_threads, "metrics", SMALL)
        self._memory = budget(settings.bounds.memory)
        self._recent = RecentParts(self._memory.recent)
        self._judging = Room(self._memory.judging)

    def close(self) -> None:
        self.workers.close()

    async def put(self, run: LiveRun, key: StepKey, rank: int, body: bytes, *, arrow: bool) -> PartAnswer:
        """Take in one rank's records. Raises `RecordError`, `NotFoundError`, `ConflictError`; `TooLargeError` where the
        step would have more tokens than there is memory to judge."""
        size = len(body) if arrow else JSON * len(body)
        records = await self.workers.run(size, _read, body, RecordLimits(kinds=run.body.every_kind), arrow)
        stored = await self._store.put_part(key, rank, records, partial(self._fits, key))
        self._telemetry.parts.labels(stored).inc()
        if stored == "new":
            self._recent.put(key, rank, records)
            if size <= SMALL:  # while whoever posts is on its way back
                asyncio.get_running_loop().call_soon(_prepare, records)
            self._telemetry.tokens.inc(records.tokens)
        return PartAnswer(
            **key._asdict(),
            rank=rank,
            samples=len(records),
            tokens=records.tokens,
            digest=records.digest,
            stored=stored,
        )

    async def seal(self, run: LiveRun, key: StepKey, body: SealBody) -> SealedStep:
        """Judge a step, once: the same seal again gives the same verdict.

        Raises:
            NotFoundError: no rank has posted.
            ConflictError: not as many ranks have posted as `body.parts` says, or one posted while the step was judged.
            TooLargeError: the step has more tokens than there is memory to judge.
            TooManyError: other steps are judged, and this one found no memory in time.
        """
        began = time.perf_counter()
        async with run.turn, AsyncExitStack() as room:
            try:
                parts = await self._parts(key, body.parts, room)
            except NotFoundError as gone:
                return await self._long_ago(key, gone)
            if body.parts is not None and len(parts) != body.parts:
                raise ConflictError(
                    f"{len(parts)} of {counted(body.parts, 'rank')} {agreeing(len(parts), 'has', 'have')} posted for "
                    f"{key}: {', '.join(map(str, parts))}; seal it when all have"
                )
            judged = await self.workers.run(
                sum(part.nbytes for part in parts.values()),
                judge_step,
                parts,
                run.yardstick,
                run.history_of(key.attempt),
                self._settings.worst_samples,
            )
            judged = proven(judged, await self._updates.before_seal(run))
            # An attempt that a newer one has replaced is judged, and moves nothing.
            live = run.is_live(key.attempt)
            outcome = run.policy.judged(run.drift, judged.judgement) if live else Outcome(run.drift)
            history = judged.history if live else run.history
            weights = None
            if run.weighs(outcome.drift.severity):
                weights = await self.workers.run(judged.columns.nbytes, weigh, judged.columns, run.correction)
            verdict = verdict_of(key, judged, outcome.drift, weights, run.policy.settle, live=live)
            severity = severity_of(judged, outcome.drift, live=live)
            digests = {rank: part.digest for rank, part in parts.items()}
            line = run.line.after(key, judged, outcome.drift, body.training, self._clock()) if live else run.line
            after = run.after(
                drift=outcome.drift,
                history=history,
                line=line,
                activity="live" if live else run.activity,
                key=key,
                events=_events(run, key, outcome, verdict, live=live),
                seen=seen_at(run, key, judged, outcome.drift, verdict) if live else (),
                over=over_at(run, outcome.drift, judged.judgement.reason) if live else (),
            )
            try:
                stored = await self._store.seal(_new_step(key, body, digests, judged, severity, verdict, after))
            except ConflictError:
                self._recent.forget(key)  # other parts are there than here
                raise
            before, now = run.latest or (0, 0), (key.attempt, key.step)
            # A newer step than any in memory is in the ledger by a seal whose acknowledgement was lost: this one is the
            # first that may act on it.
            lost = stored == "same" and now > before
            if stored == "same" and not lost:
                return await self._again(run, key, judged)
            run.drift, run.history, run.line = outcome.drift, history, line
            run.latest = max(before, now)
            if live:
                run.activity = "live"
        self._events.poke()
        self._recent.forget(key)
        self._tell(run, key, body, judged, live=live)
        await self._responder.respond(run, outcome)
        self._telemetry.seal_seconds.observe(time.perf_counter() - began)
        if lost:
            return await self._again(run, key, judged)
        return SealedStep(verdict, judged.columns, judged.ranks, weights)

    async def learnt(self, run: LiveRun, key: StepKey, training: Mapping[str, float | None]) -> None:
        """Store the trainer's figures of a sealed step, and send them to the sinks. Raises `NotFoundError`."""
        await self._store.add_training(key, training)
        if REWARD in training:
            async with run.turn:
                line = run.line.rewarded(key, training)
                if line != run.line:
                    await self._store.put_state(run.name, run.after(line=line))
                    run.line = line
        self._telemetry.runs.learnt(run.name, key.attempt, training)
        self._followers.learnt(AttemptStart(run.name, key.attempt, run.created), key.step, training)

    def _fits(self, key: StepKey, tokens: int, size: int) -> None:
        needed = self._memory.to_judge(tokens, size)
        if needed > self._memory.judging:
            raise TooLargeError(
                f"{key} has {tokens:,} tokens and {size // MIB:,} MiB of records, and there is memory to judge "
                f"{self._memory.step_tokens:,} tokens, or fewer with texts and router choices: give the coordinator "
                f"more (bounds.memory = {-(-2 * needed // MIB)} MiB), or post its answers as several steps"
            )

    async def _parts(self, key: StepKey, expected: int | None, room: AsyncExitStack) -> dict[int, StepRecords]:
        """Return a step's parts by rank, once `room` holds the memory to judge them: those in memory where all are
        still there (the ledger confirms that as it takes the seal), else those of the ledger."""
        parts = self._recent.of(key)
        tokens, size = sum(part.tokens for part in parts.values()), sum(part.nbytes for part in parts.values())
        if len(parts) != expected:
            posted = await self._store.parts(key)
            tokens, size = sum(part.tokens for part in posted), sum(part.size for part in posted)
            if {rank: part.digest for rank, part in parts.items()} != {part.rank: part.digest for part in posted}:
                parts = {}
        self._fits(key, tokens, size)
        await room.enter_async_context(self._judging.taken(self._memory.to_judge(tokens, size)))
        return parts or await self._store.records(key)

    async def _long_ago(self, key: StepKey, gone: NotFoundError) -> SealedStep:
        """Return the verdict of a step whose records were dropped since, without weights. Raises `gone` if there is
        none."""
        try:
            step = await self._store.step(key)
        except NotFoundError:
            raise gone from None
        return SealedStep(Verdict.model_validate(step.verdict), StepColumns.of([]), np.empty(0, np.int64), None)

    async def _again(self, run: LiveRun, key: StepKey, judged: Judged) -> SealedStep:
        """Return the verdict that was given before; weights come from the same records, so they are the same."""
        verdict = Verdict.model_validate((await self._store.step(key)).verdict)
        columns, weights = judged.columns, None
        if verdict.weights is not None:
            weights = await self.workers.run(columns.nbytes, weigh, columns, run.correction)
        return SealedStep(verdict, columns, judged.ranks, weights)

    def _tell(self, run: LiveRun, key: StepKey, body: SealBody, judged: Judged, *, live: bool) -> None:
        step = SinkStep(
            AttemptStart(key.run, key.attempt, run.created),
            key.step,
            run.drift.severity,
            judged.comparison.figures,
            dict(body.training),
            self._clock(),
            run.yardstick.limits,
        )
        self._telemetry.seals.labels(step.severity.label).inc()
        if live:
            self._telemetry.runs.step(step)
        self._followers.step(step)


def _read(body: bytes, limits: RecordLimits, arrow: bool) -> StepRecords:
    records = StepRecords.from_arrow(body, limits) if arrow else StepRecords.from_json(body, limits)
    # Both are computed once and kept: here, where the event loop does not wait for it.
    _ = records.digest, records.tokens
    return records


def _prepare(records: StepRecords) -> None:
    """Compute what a seal first asks of a part; the part remembers it."""
    _ = records.columns


def _began_again(run: LiveRun) -> Iterator[NewEvent]:
    """Yield an event where a step ends a silence, or comes after the run said that it was over."""
    if run.activity in ("silent", "ended"):
        yield NewEvent("activity", {"before": run.activity, "after": "live"}, run.name)


def _events(run: LiveRun, key: StepKey, outcome: Outcome, verdict: Verdict, *, live: bool) -> tuple[NewEvent, ...]:
    where = {"attempt": key.attempt, "step": key.step}
    sealed = {**where, "severity": verdict.severity, "tokens": verdict.tokens, "reason": verdict.reason}
    moved = transition_events(key.run, outcome, **where)
    return (NewEvent("step", sealed, key.run), *moved, *(_began_again(run) if live else ()))


def _new_step(
    key: StepKey,
    body: SealBody,
    digests: dict[int, str],
    judged: Judged,
    severity: Severity,
    verdict: Verdict,
    after: NewState,
) -> NewStep:
    return NewStep(
        key,
        digests,
        int(severity),
        judged.comparison,
        verdict.samples,
        verdict.tokens,
        verdict=verdict.model_dump(mode="json"),
        training=dict(body.training),
        weight_version=", ".join(judged.versions),
        kept=judged.kept,
        flips=judged.flips,
        after=after,
    )
