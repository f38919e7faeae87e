"""Updates of weights in engines that are not ours: receipts and announcements, compared as they come."""

import asyncio
import logging
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import TypeVar

from omni_rl.agent import answers, judging
from omni_rl.agent.faults import UpdateFault
from omni_rl.agent.judging import EngineUpdates, JudgedUpdate, Receipt, RunUpdates
from omni_rl.api.updates import UpdateAnswer
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.errors import ConflictError, LedgerError, TakenOverError
from omni_rl.ledger.types import Incident, NewEvent
from omni_rl.ledger.updates import TOLD_KEPT, NewUpdate, StoredReport, UpdateKey
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.live_updates import (
    LiveRuns,
    LiveUpdates,
    OpenFault,
    incident_of,
    left,
    sentence_of,
    with_engine,
)
from omni_rl_services.coordinator.responder import RECORD_SECONDS
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.update_bodies import at_once, read_announcement, read_receipt
from omni_rl_services.coordinator.workers import Workers

logger = logging.getLogger("omni_rl.coordinator")
T = TypeVar("T")
SMALL = 64 << 10
"""Bytes up to which a body is read, or weights are compared, at once: the way to another thread and back would take
longer."""
SETTLE_SECONDS = 1.0
"""Seconds for which an engine that does not say which update it took may differ from the newest: the trainer's
announcement of another update may be on its way."""
QUIET_SECONDS = 2.0
"""How old an update is, in seconds, before an engine's silence about it is a fault: its receipt may be on its way."""
RIGHT = "a later update was right"
GONE = "the engine that had it is taken for gone"
AGAIN = "the trainer was started again, and its engines are judged anew"
"""The reasons why an incident ends."""


class Updates:
    """Receives, compares and stores the updates of all runs. A large model's receipt is megabytes, and parsing it holds
    the interpreter in any thread. So it is read in pieces, one such body at a time, and other threads run between two
    pieces.

    `memory` is the bytes for what is known of all runs.
    """

    def __init__(self, store: Store, events: Events, memory: int) -> None:
        self._store = store
        self._events = events
        self._runs = LiveRuns(memory)
        self._reading = asyncio.Lock()
        self._workers = Workers(1, "updates", SMALL)
        self._later: set[asyncio.Task[None]] = set()

    @property
    def memory(self) -> int:
        """The bytes that what is known of all runs takes."""
        return self._runs.nbytes

    async def take_up(self, run: LiveRun) -> None:
        """Read a run from the ledger whose faults an earlier coordinator reported, before any of its engines reports
        more."""
        await self._live(run)

    async def forget(self, ended: Incident) -> None:
        """Forget the fault whose incident a person ended: if the next update has it too, that opens another."""
        live = None if ended.run is None or ended.kind != "update" else self._runs.get(ended.run)
        if live is not None:
            async with live.turn:
                live.open = {key: one for key, one in live.open.items() if one.incident != ended.id}

    async def close(self) -> None:
        """Cancel what waits, and end the worker thread."""
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)
        self._workers.close()

    async def receive(self, run: LiveRun, engine: str, number: int, body: bytes) -> UpdateAnswer:
        """Take one worker's receipt, and judge the update once all workers' have come.

        Raises:
            ConflictError: the same worker reported something else of the same update.
        """
        receipt = await self._read(read_receipt(number, body), len(body))
        told = await self._workers.run(len(body), StoredReport.of, body)
        key = UpdateKey(run.name, engine, receipt.body.session, number, receipt.body.worker)
        live = await self._live(run)
        async with live.turn:
            if (known := await self._known(key, told)) is not None:
                return known
            self._runs.make_room(run.name, live, receipt)
            state = live.of.engine(engine)
            size = live.of.nbytes(receipt)
            newest, judged, answer = await self._workers.run(size, _taken, live.of, state, receipt)
            if newest:
                live.keys[engine] = key
                live.heard[engine] = asyncio.get_running_loop().time()
            new = NewUpdate(key, told, answer.model_dump(mode="json"))
            if judged.pending:
                self._settle(run, live, state)
                await self._change(live, new)
            else:
                await self._tell(live, state, judged, new)
        self._events.poke()
        return answer

    async def announce(self, run: LiveRun, number: int, body: bytes) -> UpdateAnswer:
        """Take the trainer's announcement of its weights, and judge what engines have reported already.

        Raises:
            ConflictError: something else was announced under the number.
        """
        announcement = await self._read(read_announcement(number, body), len(body))
        told = await self._workers.run(len(body), StoredReport.of, body)
        key = UpdateKey(run.name, "", announcement.session, number, 0)
        live = await self._live(run)
        async with live.turn:
            if (known := await self._known(key, told)) is not None:
                return known
            self._runs.make_room(run.name, live, announcement)
            again = live.of.announce(announcement)
            live.arrived[number] = asyncio.get_running_loop().time()
            for old in live.arrived.keys() - live.of.announced.keys():
                del live.arrived[old]
            answer = answers.announced_answer(announcement)
            for one in left(live, set() if again else live.of.present):
                live.over[one.incident] = AGAIN if again else GONE
            # After a restart an engine may be as far behind as before it.
            reports = TOLD_KEPT + live.of.lag
            new = NewUpdate(key, told, answer.model_dump(mode="json"), reports=reports, gone=judging.GONE + 1)
            await self._change(live, new)
            for state in live.of.engines.values():
                if live.of.concerns(state, number):
                    await self._judge_now_or_later(run, live, state)
        self._events.poke()
        return answer

    async def before_seal(self, run: LiveRun) -> Finding | None:
        """Return what is known to be wrong with the weights or caches of the run's engines, silence among it; None if
        nothing.

        This is called before a step is judged, so that whatever is wrong with the step's update has its incident first.
        """
        live = self._runs.get(run.name)
        if live is None:
            return None
        async with live.turn:
            newest = live.of.newest
            now = asyncio.get_running_loop().time()
            if newest is not None and now - live.arrived.get(newest, now) > QUIET_SECONDS:
                for name, state in live.of.engines.items():
                    quiet = now - live.heard.get(name, now) > QUIET_SECONDS
                    if quiet and await self._workers.run(live.of.nbytes(), state.fill):
                        await self._judge_now_or_later(run, live, state, last=True)
                    if (fault := live.of.silent(name)) is not None and name in live.keys:
                        await self._tell_faults(live, state, (fault,), live.keys[name])
            if not live.open:
                return None
            worst = max(live.open.values(), key=lambda one: one.fault.cause is not Cause.STALE_CACHE)
            sentence = sentence_of(worst, len(live.of.present))
            return Finding(Check.WEIGHTS, "explains", sentence, worst.fault.cause, tensors=worst.fault.parts[:8])

    async def newest(self, run: str, limit: int) -> list[UpdateAnswer]:
        """Return a run's updates, the newest first; where there are several workers, the answer to the last one, which
        covers all."""
        rows = await self._store.updates(run, limit=limit)
        found: dict[tuple[str, str, int], UpdateAnswer] = {}
        for row in rows:
            found.setdefault(row.key[1:4], UpdateAnswer.model_validate(row.answer))
        return list(found.values())

    async def _known(self, key: UpdateKey, told: StoredReport) -> UpdateAnswer | None:
        kept = await self._store.update(key)
        if kept is None:
            return None
        if kept.digest != told.digest:
            raise ConflictError(f"update {key.number} of worker {key.worker} was told of with other content")
        return UpdateAnswer.model_validate(kept.answer)

    def _settle(self, run: LiveRun, live: LiveUpdates, state: EngineUpdates) -> None:
        """Judge again in `SETTLE_SECONDS`, and until the ledger takes what came of it, unless the engine has reported
        another update by then."""
        number, session = state.number, state.session

        async def later() -> None:
            await asyncio.sleep(SETTLE_SECONDS)
            while True:
                try:
                    async with live.turn:
                        newest = (state.session, state.number) == (session, number)
                        if newest and state.confirmed != state.of.get(number):
                            await self._judge_again(live, state, last=True)
                    self._events.poke()
                    return
                except TakenOverError:
                    return  # another coordinator is at work
                except LedgerError as error:
                    logger.warning("an update of run %s was not recorded, and is tried again: %s", run.name, error)
                await asyncio.sleep(RECORD_SECONDS)

        task = asyncio.create_task(later(), name=f"updates of {run.name}")
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _judge_now_or_later(
        self, run: LiveRun, live: LiveUpdates, state: EngineUpdates, *, last: bool = False
    ) -> None:
        """Judge again, and once more later if the ledger did not take what came of it: nobody else would ask."""
        try:
            await self._judge_again(live, state, last=last)
        except LedgerError:
            self._settle(run, live, state)
            raise

    async def _judge_again(self, live: LiveUpdates, state: EngineUpdates, *, last: bool = False) -> None:
        judged = await self._workers.run(live.of.nbytes(), live.of.judge, state)
        if judged is judging.NOTHING or (judged.pending and not last):
            return
        answer = await self._workers.run(live.of.nbytes(), answers.answer, state, judged)
        again = NewUpdate(live.keys[state.name], None, answer.model_dump(mode="json"))
        await self._tell(live, state, judged, again)

    async def _tell(self, live: LiveUpdates, state: EngineUpdates, judged: JudgedUpdate, new: NewUpdate) -> None:
        """Make an answer durable with the incidents that it opens and those that it ends."""
        faults = self._changed(live, state, judged)
        told = NewEvent("update", {"engine": state.name, "number": state.number, "of": judged.of}, new.key.run)
        await self._change(live, replace(new, events=[told]), faults, state.name, judged.of)
        if judged.confirmed is not None:  # only now: what the ledger did not take is judged again
            state.confirmed = max(state.confirmed or 0, judged.confirmed)

    def _changed(self, live: LiveUpdates, state: EngineUpdates, judged: JudgedUpdate) -> list[UpdateFault]:
        """End the faults that this update ends in this engine, and return those that are new in it."""
        if judged is judging.NOTHING:
            return []
        now = {fault.key for fault in judged.found}
        for key, one in list(live.open.items()):
            if state.name in one.engines and key not in now:
                one.engines.discard(state.name)
                if not one.engines:
                    live.over[live.open.pop(key).incident] = RIGHT
        return [one for one in judged.found if state.name not in getattr(live.open.get(one.key), "engines", ())]

    async def _tell_faults(
        self, live: LiveUpdates, state: EngineUpdates, faults: Iterable[UpdateFault], key: UpdateKey
    ) -> None:
        new = [one for one in faults if state.name not in getattr(live.open.get(one.key), "engines", ())]
        if not new:
            return
        kept = await self._store.update(key)
        change = NewUpdate(key, None, {} if kept is None else kept.answer)
        await self._change(live, change, new, state.name, live.of.newest)

    async def _change(
        self,
        live: LiveUpdates,
        new: NewUpdate,
        faults: Iterable[UpdateFault] = (),
        engine: str = "",
        update: int | None = None,
    ) -> None:
        """Make a change durable with the incidents that end, those whose end the ledger did not store before among
        them, and with those of the faults that are new in an engine at a trainer's update."""
        opened = [with_engine(live, fault, engine) for fault in faults]
        seen = [incident_of(one, len(live.of.present), update) for one in opened]
        change = replace(new, over=dict(live.over), seen=seen)
        store = self._store.change_update if new.told is None else self._store.put_update
        numbers = await store(change)
        live.over.clear()
        for one, number in zip(opened, numbers, strict=True):
            one.incident = number
            live.open[one.fault.key] = one

    async def _live(self, run: LiveRun) -> LiveUpdates:
        live = self._runs.get(run.name) or await self._from_ledger(run)
        return self._runs.add(run.name, live)

    async def _from_ledger(self, run: LiveRun) -> LiveUpdates:
        """Return what an earlier coordinator knew of the run's newest updates."""
        live = LiveUpdates(RunUpdates(run.body.lag or 0))
        for row in await self._store.remembered_updates(run.name):
            if (body := await self._store.told_update(row.key)) is None:
                if not row.key.engine:  # a start of the trainer, whose engines may be others than those before
                    live.of.start_again()
                continue
            if not row.key.engine:
                live.of.announce(await self._read(read_announcement(row.key.number, body), len(body)))
                continue
            state = live.of.engine(row.key.engine)
            receipt = await self._read(read_receipt(row.key.number, body), len(body))
            if await self._workers.run(len(body), state.take, receipt):
                live.keys[row.key.engine] = row.key
                answer = UpdateAnswer.model_validate(row.answer)
                if answer.of is not None:
                    state.of[row.key.number] = answer.of
                    state.heard = max(state.heard, answer.of)
                    state.confirmed = answer.of if not answer.different else state.confirmed
        # All of it counts as told of now: whatever is missing may have been on its way to the earlier coordinator.
        now = asyncio.get_running_loop().time()
        live.arrived, live.heard = dict.fromkeys(live.of.announced, now), dict.fromkeys(live.keys, now)
        for incident in await self._store.incidents(still_open=True, run=run.name, kind="update"):
            found = incident.evidence[Check.WEIGHTS]
            fault = UpdateFault(
                Cause(incident.cause or Cause.UNKNOWN), found["sentence"], tuple(found["tensors"]), incident.subject
            )
            live.open[incident.subject] = OpenFault(fault, incident.id, set(found["engines"]))
        return live

    async def _read(self, reading: Generator[None, None, T], size: int) -> T:
        """Read a body of `size` bytes, and return the reading's result."""
        if size <= SMALL:
            return at_once(reading)
        found: list[T] = []
        async with self._reading:
            while not await self._workers.run(size, _next_piece, reading, found):
                pass
        return found[0]


def _next_piece(reading: Generator[None, None, T], found: list[T]) -> bool:
    """Read one piece, and return whether it was the last; then the reading's result is in `found`."""
    try:
        next(reading)
    except StopIteration as done:
        found.append(done.value)
        return True
    return False


def _taken(run: RunUpdates, engine: EngineUpdates, receipt: Receipt) -> tuple[bool, JudgedUpdate, UpdateAnswer]:
    """Take a receipt; return whether it is the engine's newest, its judgement, and the answer."""
    newest = engine.take(receipt)
    if run.newest is not None:
        engine.heard = max(engine.heard, run.newest)
    judged = run.judge(engine) if newest else judging.NOTHING
    return newest, judged, answers.answer(engine, judged)
