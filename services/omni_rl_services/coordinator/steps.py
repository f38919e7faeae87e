"""Steps on their way in: parts are taken in, a seal judges them, and what was judged is durable before it is told."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from omni_rl.api.steps import PartAnswer, SealBody, Verdict
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Outcome
from omni_rl.errors import ConflictError, NotFoundError, TooLargeError
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import RecordLimits
from omni_rl.ledger.types import NewEvent, NewState, NewStep, StepKey
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.followers import Followers
from omni_rl_services.coordinator.incidents import over_at, seen_at
from omni_rl_services.coordinator.judging import Judged, Ranks, StepWeights, judge_step, proven, weigh
from omni_rl_services.coordinator.memory import PER_TOKEN, Room, budget
from omni_rl_services.coordinator.recent import RecentParts
from omni_rl_services.coordinator.responder import Responder
from omni_rl_services.coordinator.runs import Run, transition_events
from omni_rl_services.coordinator.settings import MIB, CoordinatorSettings
from omni_rl_services.coordinator.sinks import JudgedStep, Start
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.telemetry import Telemetry
from omni_rl_services.coordinator.updates import Updates
from omni_rl_services.coordinator.verdicts import severity_of, verdict_of

T = TypeVar("T")
SMALL = 2**19
"""Bytes of records that are worked on at once: for fewer, the way to another thread and back takes longer than the
work, which is then a few milliseconds."""


@dataclass(frozen=True)
class Sealed:
    """A verdict, and the weights it asks for; `columns` None where there are none and nobody needs the samples."""

    verdict: Verdict
    columns: StepColumns
    ranks: Ranks
    weights: StepWeights | None


class Steps:
    """Reading and judging much runs in threads of their own: numpy and Arrow let the event loop go on meanwhile."""

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
        self._workers = ThreadPoolExecutor(settings.metrics_threads, "metrics")
        self._memory = budget(settings.bounds.memory)
        self._recent = RecentParts(self._memory.recent)
        self._judging = Room(self._memory.judging)

    def close(self) -> None:
        self._workers.shutdown(cancel_futures=True)

    async def put(self, run: Run, key: StepKey, rank: int, body: bytes, *, arrow: bool) -> PartAnswer:
        """Take in one rank's records. Raises `RecordError`, `NotFoundError`, `ConflictError`; `TooLargeError` where the
        step would have more tokens than there is memory to judge."""
        records = await self.work(len(body), _read, body, RecordLimits(kinds=run.body.every_kind), arrow)
        self._fits(key, records.tokens + await self._tokens(key, beside=rank))
        stored = await self._store.put_part(key, rank, records)
        self._telemetry.parts.labels(stored).inc()
        if stored == "new":
            self._recent.put(key, rank, records)
            self._telemetry.tokens.inc(records.tokens)
        return PartAnswer(
            **key._asdict(),
            rank=rank,
            samples=len(records),
            tokens=records.tokens,
            digest=records.digest,
            stored=stored,
        )

    async def seal(self, run: Run, key: StepKey, body: SealBody) -> Sealed:
        """Judge a step, once: the same seal again gives the same verdict.

        Raises:
            NotFoundError: no rank has posted.
            ConflictError: not as many ranks have posted as `body.parts` says, or one posted while this judged.
            TooLargeError: the step has more tokens than there is memory to judge.
            TooManyError: others are judged, and it did not come to its turn.
        """
        began = time.perf_counter()
        async with run.turn, self._judging.taken(PER_TOKEN * await self._tokens(key)):
            try:
                parts = await self._parts(key)
            except NotFoundError as gone:
                return await self._long_ago(key, gone)
            self._fits(key, sum(part.tokens for part in parts.values()))
            if body.parts is not None and len(parts) != body.parts:
                raise ConflictError(
                    f"{len(parts)} of {body.parts} ranks have posted for {key}: {', '.join(map(str, parts))}; seal it "
                    "when all have"
                )
            judged = await self.work(
                sum(part.table.nbytes for part in parts.values()),
                judge_step,
                parts,
                run.yardstick,
                run.terms,
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
                weights = await self.work(judged.columns.nbytes, weigh, judged.columns, run.correction)
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
            if await self._store.seal(_new_step(key, body, digests, judged, severity, verdict, after)) == "same":
                return await self._again(run, key, judged)
            run.drift, run.history, run.line = outcome.drift, history, line
            run.latest = max(run.latest or (0, 0), (key.attempt, key.step))
            if live:
                run.activity = "live"
        self._events.poke()
        self._recent.forget(key)
        self._tell(run, key, body, judged, live=live)
        await self._responder.respond(run, outcome)
        self._telemetry.seal_seconds.observe(time.perf_counter() - began)
        return Sealed(verdict, judged.columns, judged.ranks, weights)

    async def learnt(self, run: Run, key: StepKey, training: Mapping[str, float | None]) -> None:
        """Keep what the trainer knows of a sealed step, and tell whoever follows. Raises `NotFoundError`."""
        await self._store.add_training(key, training)
        self._telemetry.runs.learnt(run.name, key.attempt, training)
        self._followers.learnt(Start(run.name, key.attempt, run.created), key.step, training)

    async def work(self, size: int, function: Callable[..., T], *args: object) -> T:
        """Run what reads `size` bytes of records, in a worker thread unless they are few."""
        if size <= SMALL:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._workers, partial(function, *args))

    def _fits(self, key: StepKey, tokens: int) -> None:
        if tokens > self._memory.step_tokens:
            needed = -(-2 * PER_TOKEN * tokens // MIB)
            raise TooLargeError(
                f"{key} has {tokens:,} tokens, and there is memory to judge {self._memory.step_tokens:,}: give the "
                f"coordinator more (bounds.memory = {needed} MiB), or post its answers as several steps"
            )

    async def _tokens(self, key: StepKey, *, beside: int | None = None) -> int:
        """Of the parts of a step, but for that of the rank `beside`."""
        try:
            return sum(part.tokens for part in await self._store.parts(key) if part.rank != beside)
        except NotFoundError:
            return 0

    async def _parts(self, key: StepKey) -> dict[int, StepRecords]:
        """By rank: those of the ledger, from memory where they are still there."""
        parts = {}
        for part in await self._store.parts(key):
            found = self._recent.get(key, part.rank, part.digest)
            if found is None:
                return await self._store.records(key)
            parts[part.rank] = found
        if not parts:
            raise NotFoundError(f"{key} has no parts; post them before it is sealed")
        return parts

    async def _long_ago(self, key: StepKey, gone: NotFoundError) -> Sealed:
        """The verdict of a step whose records were dropped since, without weights. Raises `gone` if there is none."""
        try:
            step = await self._store.step(key)
        except NotFoundError:
            raise gone from None
        return Sealed(Verdict.model_validate(step.verdict), StepColumns.of([]), np.empty(0, np.int64), None)

    async def _again(self, run: Run, key: StepKey, judged: Judged) -> Sealed:
        """The verdict that was given before; weights come from the same records, so they are the same."""
        verdict = Verdict.model_validate((await self._store.step(key)).verdict)
        columns, weights = judged.columns, None
        if verdict.weights is not None:
            weights = await self.work(columns.nbytes, weigh, columns, run.correction)
        return Sealed(verdict, columns, judged.ranks, weights)

    def _tell(self, run: Run, key: StepKey, body: SealBody, judged: Judged, *, live: bool) -> None:
        step = JudgedStep(
            Start(key.run, key.attempt, run.created),
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


def _began_again(run: Run) -> Iterator[NewEvent]:
    """What is told where a step ends a silence, or what a run had said of its end."""
    if run.activity in ("silent", "ended"):
        yield NewEvent("activity", {"before": run.activity, "after": "live"}, run.name)


def _events(run: Run, key: StepKey, outcome: Outcome, verdict: Verdict, *, live: bool) -> tuple[NewEvent, ...]:
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
