"""An engine's receipts and a trainer's announcements, judged as they come: what each update really did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from omni_rl.agent import compared_adapters, faults
from omni_rl.agent.compared_adapters import Adapters, Loaded
from omni_rl.agent.comparison import Announced, Comparison, compare
from omni_rl.agent.faults import Told, UpdateFault
from omni_rl.agent.fingerprint import Fingerprint
from omni_rl.agent.names import Renames
from omni_rl.agent.workers import Held, WorkerParts
from omni_rl.api.updates import Adapter, AnnouncementBody, FindingAnswer, ReceiptBody, Sum, UpdateAnswer

KEPT = 4
"""Announcements that are compared with, beside those within the lag."""
GONE = 16
"""Updates without a word from an engine after which it is taken for gone."""
_TRUNK = frozenset({"embed_tokens", "embeddings", "layers", "lm_head", "norm", "norm_f"})
"""How parts of a language model begin; others are of towers, whose outputs the encoder cache holds."""


@dataclass(frozen=True)
class Announcement:
    """The trainer's weights as of an update."""

    number: int
    at: float
    parts: Announced
    adapters: Adapters
    engines: tuple[str, ...]
    session: str = ""

    @classmethod
    def of(cls, number: int, body: AnnouncementBody) -> "Announcement":
        """What a body says."""
        parts = {name: tuple(map(_fingerprint, sums)) for name, sums in body.parts.items()}
        return cls(number, body.at, parts, _adapters(body.adapters), body.engines, body.session)


@dataclass
class EngineUpdates:
    """What an engine's workers reported of its newest update. `of`: the trainer's update by the engine's own number;
    `confirmed`: the trainer's newest that it was found to hold; `changed`: the engine's last update that changed its
    weights, `encoders` of them those of its encoders; `past`: it has told of nothing since the trainer was started
    again, and took updates of it before."""

    name: str
    session: str = ""
    number: int = -1
    receipts: dict[int, ReceiptBody] = field(default_factory=dict)
    of: dict[int, int] = field(default_factory=dict)
    confirmed: int | None = None
    changed: int = 0
    encoders: int = 0
    heard: int = -1
    past: bool = False
    before: dict[int, ReceiptBody] = field(default_factory=dict)
    """What each worker told of last, before the newest update."""

    def take(self, number: int, body: ReceiptBody) -> bool:
        """Take a worker's receipt; returns whether it is of the newest update, or of a new start of the engine."""
        if body.session == self.session and number < self.number:
            return False
        if body.session != self.session:
            self.of, self.confirmed, self.changed, self.encoders = {}, None, 0, 0
            self.before, self.receipts = {}, {}
        if (body.session, number) != (self.session, self.number):
            self.before |= self.receipts
            self.session, self.number, self.receipts = body.session, number, {}
        self.past = False
        self.receipts[body.worker] = body
        if number and body.changed:
            self.changed = number
            if any(part.changed and name.split(".")[0] not in _TRUNK for name, part in body.parts.items()):
                self.encoders = number
        return True

    def fill(self) -> bool:
        """Take workers that have not told of the newest update for holding what they told of last; returns whether
        all are known now, and were not before."""
        if not self.receipts or self.complete:
            return False
        for worker, body in self.before.items():
            if worker not in self.receipts:
                parts = {name: part._replace(changed=False) for name, part in body.parts.items()}
                self.receipts[worker] = body.model_copy(update={"changed": 0, "parts": parts})
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether all workers have reported."""
        return len(self.receipts) == max(receipt.workers for receipt in self.receipts.values())


@dataclass(frozen=True)
class JudgedUpdate:
    """An engine's update compared with the trainer's. `confirmed`: the trainer's update that the engine holds; None if
    it holds none. `pending`: it may yet turn out to be an update that the trainer has not told of."""

    comparison: Comparison
    found: tuple[UpdateFault, ...]
    of: int | None
    confirmed: int | None
    pending: bool = False


NOTHING = JudgedUpdate(Comparison(), (), None, None)


@dataclass
class RunUpdates:
    """A run's updates. `lag`: how many an engine may be behind."""

    lag: int = 0
    announced: dict[int, Announcement] = field(default_factory=dict)
    engines: dict[str, EngineUpdates] = field(default_factory=dict)

    def announce(self, announcement: Announcement) -> bool:
        """Take the trainer's word; only the newest few are kept, and none of an earlier start of the trainer. Returns
        whether this is the first word of a new start."""
        again = any(one.session != announcement.session for one in self.announced.values())
        if again:
            self.announced.clear()
            for engine in self.engines.values():
                engine.past = engine.past or bool(engine.of)
                engine.of, engine.confirmed, engine.heard = {}, None, -1
        self.announced[announcement.number] = announcement
        for number in sorted(self.announced)[: -(KEPT + self.lag)]:
            del self.announced[number]
        return again

    @property
    def present(self) -> frozenset[str]:
        """Names of the engines that are not taken for gone: for many updates without a word, or since the trainer was
        started again with others."""
        newest = -1 if self.newest is None else self.newest
        heard = [one for one in self.engines.values() if newest - one.heard <= GONE]
        current = [one for one in heard if not one.past]
        return frozenset(one.name for one in current or heard)

    @property
    def newest(self) -> int | None:
        """The trainer's newest update."""
        return max(self.announced, default=None)

    def engine(self, name: str) -> EngineUpdates:
        """What is known of an engine, from now on if nothing was."""
        return self.engines.setdefault(name, EngineUpdates(name))

    def judge(self, engine: EngineUpdates) -> JudgedUpdate:
        """Compare an engine's newest update with what it is to hold, once all of its workers have reported."""
        if not engine.complete or not self.announced:
            return NOTHING
        wanted = self._wanted(engine)
        if wanted is None:
            return NOTHING
        engine.of[engine.number] = wanted
        for number in sorted(engine.of)[: -8 * KEPT]:
            del engine.of[number]
        told = self._told(engine, wanted)
        stale = tuple(faults.caches(told))
        newest = self._compare(engine, wanted)
        if not newest.different:
            return self._with_adapters(engine, wanted, newest, stale)
        for number in range(wanted - 1, wanted - self.lag - 1, -1):
            if number in self.announced and not (other := self._compare(engine, number)).different:
                return self._with_adapters(engine, number, other, stale)
        known = any(receipt.of is not None for receipt in engine.receipts.values())
        wrong = (*faults.weights(told, newest), *self._of_adapters(engine, wanted), *stale)
        return JudgedUpdate(newest, wrong, wanted, None, pending=not known)

    def concerns(self, engine: EngineUpdates, number: int) -> bool:
        """Whether an announcement that has just come is what an engine told of before it came."""
        if engine.past or not engine.receipts or not engine.complete:
            return False
        return self._wanted(engine) == number and engine.of.get(engine.number) != number

    def silent(self, name: str) -> UpdateFault | None:
        """Whether an engine has not confirmed the trainer's newest update within the lag."""
        newest, engine = self.newest, self.engines[name]
        if newest is None or name not in self.present:
            return None
        asked = self.announced[newest].engines
        if asked and name not in asked:
            return None
        if engine.confirmed is not None and engine.confirmed >= newest - self.lag:
            return None
        if engine.of.get(engine.number, -1) >= newest - self.lag:
            return None  # it has reported, and what is wrong was told
        return faults.silent(newest, name, engine.confirmed, self.lag)

    def _wanted(self, engine: EngineUpdates) -> int | None:
        """The trainer's update that an engine is to hold: what it says itself, or the newest one that was announced
        before the receipt, by the clocks of both."""
        said = max((one.of for one in engine.receipts.values() if one.of is not None), default=None)
        if said is not None:
            return said if said in self.announced else None
        at = max(one.at for one in engine.receipts.values())
        return max((number for number, one in self.announced.items() if one.at <= at), default=None)

    def _compare(self, engine: EngineUpdates, number: int) -> Comparison:
        earlier = {other: one.parts for other, one in self.announced.items() if other < number}
        renames = next(iter(engine.receipts.values())).renames
        rules = Renames(renames.substrings, renames.prefixes, renames.suffixes)
        return compare(self.announced[number].parts, _workers(engine), rules, earlier)

    def _told(self, engine: EngineUpdates, update: int) -> Told:
        receipts = list(engine.receipts.values())
        changed = {"prefix": engine.changed, "encoder": engine.encoders}
        stale: dict[str, int | None] = {}
        for receipt in receipts:
            for cache, since in receipt.caches.items():
                if since < changed.get(cache, 0):
                    stale[cache] = engine.of.get(since)
        return Told(
            update,
            max(receipt.tensors for receipt in receipts),
            max(receipt.changed for receipt in receipts),
            max(receipt.workers for receipt in receipts),
            stale,
        )

    def _with_adapters(
        self, engine: EngineUpdates, number: int, comparison: Comparison, stale: tuple[UpdateFault, ...]
    ) -> JudgedUpdate:
        wrong = (*self._of_adapters(engine, number), *stale)
        return JudgedUpdate(comparison, wrong, number, number)

    def _of_adapters(self, engine: EngineUpdates, number: int) -> list[UpdateFault]:
        ours = self.announced[number].adapters
        theirs = {worker: _adapters(receipt.adapters or ()) for worker, receipt in engine.receipts.items()}
        earlier = {other: one.adapters for other, one in self.announced.items() if other < number}
        return compared_adapters.adapters(number, ours, theirs, earlier)


def answer(engine: EngineUpdates, judged: JudgedUpdate) -> UpdateAnswer:
    """An engine's update as it is told."""
    receipts = list(engine.receipts.values())
    reasons: dict[str, int] = {}
    for why in judged.comparison.opaque.values():
        reasons[why] = reasons.get(why, 0) + 1
    return UpdateAnswer(
        number=engine.number,
        engine=engine.name,
        at=max(one.at for one in receipts),
        of=judged.of,
        workers=max(one.workers for one in receipts),
        reported=len(receipts),
        how=list(dict.fromkeys(how for one in receipts for how in one.how)),
        version=next((one.version for one in receipts if one.version is not None), None),
        tensors=max(one.tensors for one in receipts),
        changed=max(one.changed for one in receipts),
        equal=len(judged.comparison.equal),
        different=len(judged.comparison.different),
        not_comparable=len(judged.comparison.opaque),
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])[:8]),
        adapters=sorted({one.name for receipt in receipts for one in receipt.adapters or ()}),
        findings=[
            FindingAnswer(cause=one.cause, sentence=one.sentence, parts=list(one.parts[:16])) for one in judged.found
        ],
        seconds=max(one.seconds for one in receipts),
    )


def announced_answer(announcement: Announcement) -> UpdateAnswer:
    """The trainer's update as it is told."""
    return UpdateAnswer(
        number=announcement.number,
        engine=None,
        at=announcement.at,
        of=announcement.number,
        workers=0,
        reported=0,
        how=[],
        version=None,
        tensors=len(announcement.parts),
        changed=0,
        equal=0,
        different=0,
        not_comparable=0,
        reasons={},
        adapters=sorted(announcement.adapters),
        findings=[],
        seconds=0.0,
    )


def _workers(engine: EngineUpdates) -> list[WorkerParts]:
    return [
        WorkerParts(
            number,
            {name: Held(_fingerprint(part.sum), part.shard) for name, part in receipt.parts.items()},
            receipt.opaque,
            frozenset(name for name, part in receipt.parts.items() if part.changed) if engine.number else None,
        )
        for number, receipt in engine.receipts.items()
    ]


def _adapters(bodies: Sequence[Adapter]) -> Mapping[str, Loaded]:
    return {
        one.name: Loaded(one.name, one.norm, {name: tuple(map(_fingerprint, sums)) for name, sums in one.parts.items()})
        for one in bodies
    }


def _fingerprint(one: Sum) -> Fingerprint:
    return Fingerprint(one.dtype, one.elements, int(one.hashes, 16), one.squares, one.nonfinite)
