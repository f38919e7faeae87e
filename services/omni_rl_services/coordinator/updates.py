"""Updates of weights in engines that are not ours: receipts and announcements, compared as they come."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ParamSpec, TypeVar

from pydantic import BaseModel, ValidationError

from omni_rl.agent import judging
from omni_rl.agent.faults import UpdateFault
from omni_rl.agent.judging import Announcement, EngineUpdates, JudgedUpdate, RunUpdates
from omni_rl.api.updates import AnnouncementBody, ReceiptBody, UpdateAnswer
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.evidence import Check, Finding
from omni_rl.consistency.limits import Severity
from omni_rl.errors import ConflictError, InvalidRequestError
from omni_rl.ledger.types import NewEvent, NewIncident
from omni_rl.ledger.updates import NewUpdate, UpdateKey, digest_of
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.runs import Run
from omni_rl_services.coordinator.store import Store

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
RUNS = 64
"""Runs whose newest updates are in memory; the ledger has them again for a run that comes back."""
SETTLE_SECONDS = 1.0
"""How long an engine that does not say which update it took may differ from the newest: the trainer's word on another
may be on its way."""
QUIET_SECONDS = 2.0
"""How old an update is before an engine's silence about it is told: its receipt may be on its way."""
RIGHT = "a later update was right"
GONE = "the engine that had it is taken for gone"
AGAIN = "the trainer was started again, and its engines are judged anew"
"""Why an incident ends."""


@dataclass
class OpenFault:
    """A fault that is told of. `incident`: its number; `engines`: those that have it."""

    fault: UpdateFault
    incident: int
    engines: set[str]


@dataclass
class LiveUpdates:
    """A run's updates in memory. `turn` is held by whoever changes them."""

    of: RunUpdates
    open: dict[str, OpenFault] = field(default_factory=dict)
    keys: dict[str, UpdateKey] = field(default_factory=dict)
    """Where the ledger has each engine's newest answer."""
    arrived: dict[int, float] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)
    """When each engine's newest receipt came."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Updates:
    """Reading and comparing are done in a thread: a large model's receipt is megabytes."""

    def __init__(self, store: Store, events: Events) -> None:
        self._store = store
        self._events = events
        self._runs: OrderedDict[str, LiveUpdates] = OrderedDict()
        self._workers = ThreadPoolExecutor(1, "updates")
        self._later: set[asyncio.Task[None]] = set()

    async def take_up(self, run: Run) -> None:
        """Know of a run whose faults an earlier coordinator told of, before any of its engines says more."""
        await self._live(run)

    async def close(self) -> None:
        """Let go of what waits."""
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)
        self._workers.shutdown()

    async def receive(self, run: Run, engine: str, number: int, body: bytes) -> UpdateAnswer:
        """Take one worker's receipt, and judge the update once all of them have come.

        Raises:
            ConflictError: something else was told of the same update by the same worker.
        """
        receipt = await self._work(_read, ReceiptBody, body)
        key = UpdateKey(run.name, engine, receipt.session, number, receipt.worker)
        live = await self._live(run)
        async with live.turn:
            if (known := await self._known(key, body)) is not None:
                return known
            state = live.of.engine(engine)
            newest = state.take(number, receipt)
            if live.of.newest is not None:
                state.heard = max(state.heard, live.of.newest)
            judged = await self._work(live.of.judge, state) if newest else judging.NOTHING
            answer = judging.answer(state, judged)
            if newest:
                live.keys[engine] = key
                live.heard[engine] = asyncio.get_running_loop().time()
            if judged.pending:
                self._settle(run, live, state)
                await self._store.put_update(NewUpdate(key, body, answer.model_dump(mode="json"), {}))
            else:
                await self._tell(live, state, judged, NewUpdate(key, body, answer.model_dump(mode="json"), {}))
        self._events.poke()
        return answer

    async def announce(self, run: Run, number: int, body: bytes) -> UpdateAnswer:
        """Take the trainer's word on its weights, and judge what engines have told already.

        Raises:
            ConflictError: something else was announced under the number.
        """
        announced = await self._work(_read, AnnouncementBody, body)
        key = UpdateKey(run.name, "", announced.session, number, 0)
        live = await self._live(run)
        async with live.turn:
            if (known := await self._known(key, body)) is not None:
                return known
            announcement = await self._work(Announcement.of, number, announced)
            again = live.of.announce(announcement)
            live.arrived[number] = asyncio.get_running_loop().time()
            for old in live.arrived.keys() - live.of.announced.keys():
                del live.arrived[old]
            answer = judging.announced_answer(announcement)
            over = {one.incident: AGAIN if again else GONE for one in _left(live, set() if again else live.of.present)}
            await self._store.put_update(NewUpdate(key, body, answer.model_dump(mode="json"), {}, over))
            for state in live.of.engines.values():
                if live.of.concerns(state, number):
                    await self._judge_again(live, state)
        self._events.poke()
        return answer

    async def before_seal(self, run: Run) -> Finding | None:
        """What is known to be wrong with the weights or caches of the run's engines, silence among it; None if nothing.

        A step is about to be judged: whatever is wrong with its update is told before.
        """
        live = self._runs.get(run.name)
        if live is None:
            return None
        async with live.turn:
            newest = live.of.newest
            now = asyncio.get_running_loop().time()
            if newest is not None and now - live.arrived.get(newest, now) > QUIET_SECONDS:
                for name, state in live.of.engines.items():
                    if now - live.heard.get(name, now) > QUIET_SECONDS and state.fill():
                        await self._judge_again(live, state, last=True)
                    if (fault := live.of.silent(name)) is not None and name in live.keys:
                        await self._tell_faults(live, state, (fault,), live.keys[name])
            if not live.open:
                return None
            worst = max(live.open.values(), key=lambda one: one.fault.cause is not Cause.STALE_CACHE)
            sentence = _sentence(worst, len(live.of.present))
            return Finding(Check.WEIGHTS, "explains", sentence, worst.fault.cause, tensors=worst.fault.parts[:8])

    async def newest(self, run: str, limit: int) -> list[UpdateAnswer]:
        """The newest first; of several workers the last one's answer, which has all."""
        rows = await self._store.updates(run, limit)
        found: dict[tuple[str, str, int], UpdateAnswer] = {}
        for row in rows:
            found.setdefault(row.key[1:4], UpdateAnswer.model_validate(row.answer))
        return list(found.values())

    async def _known(self, key: UpdateKey, body: bytes) -> UpdateAnswer | None:
        kept = await self._store.update(key)
        if kept is None:
            return None
        if kept.digest != digest_of(body):
            raise ConflictError(f"update {key.number} of worker {key.worker} was told of with other content")
        return UpdateAnswer.model_validate(kept.answer)

    def _settle(self, run: Run, live: LiveUpdates, state: EngineUpdates) -> None:
        """Judge again in a while, unless the engine has told of another update by then."""
        number, session = state.number, state.session

        async def later() -> None:
            await asyncio.sleep(SETTLE_SECONDS)
            async with live.turn:
                if (state.session, state.number) == (session, number) and state.confirmed != state.of.get(number):
                    await self._judge_again(live, state, last=True)
            self._events.poke()

        task = asyncio.create_task(later(), name=f"updates of {run.name}")
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _judge_again(self, live: LiveUpdates, state: EngineUpdates, *, last: bool = False) -> None:
        judged = await self._work(live.of.judge, state)
        if judged is judging.NOTHING or (judged.pending and not last):
            return
        answer = judging.answer(state, judged)
        again = NewUpdate(live.keys[state.name], b"", answer.model_dump(mode="json"), {})
        await self._tell(live, state, judged, again, kept=True)

    async def _tell(
        self, live: LiveUpdates, state: EngineUpdates, judged: JudgedUpdate, new: NewUpdate, *, kept: bool = False
    ) -> None:
        """Make an answer durable with the incidents that it opens and those that it ends."""
        if judged.confirmed is not None:
            state.confirmed = max(state.confirmed or 0, judged.confirmed)
        over, faults = self._changed(live, state, judged)
        opened = [_with_engine(live, fault, state.name) for fault in faults]
        count = len(live.of.present)
        change = replace(
            new,
            over={one.incident: RIGHT for one in over},
            seen=[_incident(one, count, judged.of) for one in opened],
            events=[NewEvent("update", {"engine": state.name, "number": state.number, "of": judged.of}, new.key.run)],
        )
        numbers = await (self._store.change_update(change) if kept else self._store.put_update(change))
        for one, number in zip(opened, numbers, strict=True):
            one.incident = number
            live.open[one.fault.key] = one

    def _changed(
        self, live: LiveUpdates, state: EngineUpdates, judged: JudgedUpdate
    ) -> tuple[list[OpenFault], list[UpdateFault]]:
        """Faults that end with this update in this engine, and those that are new in it."""
        if judged is judging.NOTHING:
            return [], []
        now = {fault.key for fault in judged.found}
        over = []
        for key, one in list(live.open.items()):
            if state.name in one.engines and key not in now:
                one.engines.discard(state.name)
                if not one.engines:
                    over.append(live.open.pop(key))
        new = [one for one in judged.found if state.name not in getattr(live.open.get(one.key), "engines", ())]
        return over, new

    async def _tell_faults(
        self, live: LiveUpdates, state: EngineUpdates, faults: Iterable[UpdateFault], key: UpdateKey
    ) -> None:
        new = [one for one in faults if state.name not in getattr(live.open.get(one.key), "engines", ())]
        if not new:
            return
        opened = [_with_engine(live, fault, state.name) for fault in new]
        kept = await self._store.update(key)
        change = NewUpdate(
            key,
            b"",
            {} if kept is None else kept.answer,
            {},
            seen=[_incident(one, len(live.of.present), live.of.newest) for one in opened],
        )
        for one, number in zip(opened, await self._store.change_update(change), strict=True):
            one.incident = number
            live.open[one.fault.key] = one

    async def _live(self, run: Run) -> LiveUpdates:
        live = self._runs.get(run.name)
        if live is None:
            live = await self._from_ledger(run)
            live = self._runs.setdefault(run.name, live)
        self._runs.move_to_end(run.name)
        while len(self._runs) > RUNS:
            self._runs.popitem(last=False)
        return live

    async def _from_ledger(self, run: Run) -> LiveUpdates:
        """What an earlier coordinator knew of the run's newest updates."""
        live = LiveUpdates(RunUpdates(run.body.lag or 0))
        for row in await self._store.remembered_updates(run.name):
            if row.told is None:
                continue
            if not row.key.engine:
                body = await self._work(_read, AnnouncementBody, row.told)
                live.of.announce(await self._work(Announcement.of, row.key.number, body))
                live.arrived[row.key.number] = asyncio.get_running_loop().time()
                continue
            state = live.of.engine(row.key.engine)
            if state.take(row.key.number, await self._work(_read, ReceiptBody, row.told)):
                live.keys[row.key.engine] = row.key
                answer = UpdateAnswer.model_validate(row.answer)
                if answer.of is not None:
                    state.of[row.key.number] = answer.of
                    state.heard = max(state.heard, answer.of)
                    state.confirmed = answer.of if not answer.different else state.confirmed
        for incident in await self._store.incidents(still_open=True, run=run.name, kind="update"):
            found = incident.evidence[Check.WEIGHTS]
            fault = UpdateFault(
                Cause(incident.cause or Cause.UNKNOWN), found["sentence"], tuple(found["tensors"]), incident.subject
            )
            live.open[incident.subject] = OpenFault(fault, incident.id, set(found["engines"]))
        return live

    async def _work(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, partial(function, *args, **named))


def _read(model: type[M], body: bytes) -> M:
    """Raises `InvalidRequestError` for what is no such body, with its first fault."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidRequestError(f"{where[:200]}: {first['msg'][:200]}") from None


def _left(live: LiveUpdates, present: Collection[str]) -> list[OpenFault]:
    """Faults that end because no engine that has them is there any more."""
    for one in live.open.values():
        one.engines.intersection_update(present)
    return [live.open.pop(key) for key, one in list(live.open.items()) if not one.engines]


def _with_engine(live: LiveUpdates, fault: UpdateFault, engine: str) -> OpenFault:
    """The fault with one more engine."""
    before = live.open.get(fault.key)
    return OpenFault(fault, before.incident if before else 0, {engine, *(before.engines if before else ())})


def _sentence(one: OpenFault, engines: int) -> str:
    if engines == 1:
        return one.fault.sentence
    if len(one.engines) == 1:
        return f"{one.fault.sentence} (engine {next(iter(one.engines))}, 1 of {engines})"
    return f"{one.fault.sentence}, in {len(one.engines)} of {engines} engines"


def _incident(one: OpenFault, engines: int, update: int | None) -> NewIncident:
    severity = Severity.MASK if one.fault.cause is Cause.STALE_CACHE else Severity.PAUSE
    evidence = {
        "result": "explains",
        "sentence": one.fault.sentence,
        "update": update,
        "engines": sorted(one.engines),
        "tensors": list(one.fault.parts[:16]),
    }
    sentence = _sentence(one, engines)
    return NewIncident(
        int(severity),
        sentence,
        str(one.fault.cause),
        evidence={str(Check.WEIGHTS): evidence},
        kind="update",
        subject=one.fault.key,
    )
