"""Judges an engine's receipts and a trainer's announcements as they come: what each update really did."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from omni_rl.agent import compared_adapters, faults
from omni_rl.agent.columns import HeldColumns, Names, SumColumns
from omni_rl.agent.compared_adapters import Adapters
from omni_rl.agent.comparison import WeightComparison, compare
from omni_rl.agent.faults import START, LastReset, UpdateFault, UpdateReport
from omni_rl.agent.names import Renames
from omni_rl.agent.workers import WorkerParts
from omni_rl.api.updates import ReceiptBody

KEPT = 4
"""How many announcements are stored to compare with, beside those within the lag."""
GONE = 16
"""How many updates may pass without a receipt from an engine before the engine is taken for gone."""
_TRUNK = frozenset({"embed_tokens", "embeddings", "layers", "lm_head", "norm", "norm_f"})
"""The first segments of names of a language model's parts; other parts are of towers, whose outputs the encoder cache
holds."""


@dataclass(frozen=True)
class Announcement:
    """The trainer's weights as of an update."""

    number: int
    at: float
    parts: SumColumns
    adapters: Adapters
    engines: tuple[str, ...]
    session: str = ""
    nbytes: int = 0
    """The bytes that it takes in memory, without names."""


@dataclass(frozen=True)
class Receipt:
    """Holds what a worker has after an update, whose `number` is the engine's. `body` has the rest of what it reported,
    without its parts and adapters."""

    number: int
    body: ReceiptBody
    parts: HeldColumns
    adapters: Adapters
    nbytes: int = 0
    """The bytes that it takes in memory, without names."""


Kept = Announcement | Receipt


@dataclass
class EngineUpdates:
    """What an engine's workers reported of its newest update.

    `number` is the engine's newest update, by its own numbers, and `of` has the trainer's update for each of these.
    `confirmed` is the trainer's newest update that the engine was found to hold. `changed` is the engine's last update
    that changed its weights, and `encoders` the last that changed those of its encoders. `past`: the engine has
    reported nothing since the trainer was started again, and took updates of it before.
    """

    name: str
    session: str = ""
    number: int = -1
    receipts: dict[int, Receipt] = field(default_factory=dict)
    of: dict[int, int] = field(default_factory=dict)
    confirmed: int | None = None
    changed: int = 0
    encoders: int = 0
    heard: int = -1
    past: bool = False
    before: dict[int, Receipt] = field(default_factory=dict)
    """The newest receipt of each worker that has not reported the newest update."""

    @property
    def bodies(self) -> list[ReceiptBody]:
        """What the workers reported of the newest update, beside its parts."""
        return [receipt.body for receipt in self.receipts.values()]

    def take(self, receipt: Receipt) -> bool:
        """Take a worker's receipt; return whether it is of the newest update, or of a new start of the engine."""
        body, number = receipt.body, receipt.number
        if body.session == self.session and number < self.number:
            known = self.receipts.get(body.worker) or self.before.get(body.worker)
            if known is None or known.number < number:
                # Each worker posts for itself, so one worker's receipt may come after a newer one of another's. If
                # `fill` has assumed meanwhile that the worker holds what it reported before, that ends.
                self.receipts.pop(body.worker, None)
                self.before[body.worker] = receipt
            return False
        if body.session != self.session:
            self.of, self.confirmed, self.changed, self.encoders = {}, None, 0, 0
            self.before, self.receipts = {}, {}
        if (body.session, number) != (self.session, self.number):
            self.before |= self.receipts
            self.session, self.number, self.receipts = body.session, number, {}
        self.past = False
        self.receipts[body.worker] = receipt
        self.before.pop(body.worker, None)
        if number and body.changed:
            self.changed = number
            if any(name.split(".")[0] not in _TRUNK for name in receipt.parts.changed):
                self.encoders = number
        return True

    def fill(self) -> bool:
        """Assume that workers that have not reported the newest update hold what they reported last; return whether all
        are known now, and were not before."""
        if not self.receipts or self.complete:
            return False
        for worker, before in self.before.items():
            body = before.body.model_copy(update={"changed": 0})
            self.receipts[worker] = replace(before, body=body, parts=before.parts.unchanged())
        self.before = {}
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether all workers have reported."""
        return len(self.receipts) == max(body.workers for body in self.bodies)


@dataclass(frozen=True)
class JudgedUpdate:
    """An engine's update compared with the trainer's.

    `of` is the trainer's update that it was compared with, and `confirmed` the one that the engine holds; None if it
    holds none. `pending`: it may yet turn out to be an update that the trainer has not announced.
    """

    comparison: WeightComparison
    found: tuple[UpdateFault, ...]
    of: int | None
    confirmed: int | None
    pending: bool = False


NOTHING = JudgedUpdate(WeightComparison(), (), None, None)


@dataclass
class RunUpdates:
    """The updates of a run. `lag` is how many updates an engine may be behind."""

    lag: int = 0
    announced: dict[int, Announcement] = field(default_factory=dict)
    engines: dict[str, EngineUpdates] = field(default_factory=dict)

    def nbytes(self, more: Kept | None = None) -> int:
        """Return the bytes that all of this takes in memory, or would take with `more`."""
        kept = [*self._kept(), *([] if more is None else [more])]
        names = {each for one in kept for each in _names(one)}
        return sum(one.nbytes for one in kept) + sum(each.nbytes for each in names)

    def forget_gone(self) -> None:
        """Drop what is known of engines that are taken for gone."""
        present = self.present
        self.engines = {name: engine for name, engine in self.engines.items() if name in present}

    def _kept(self) -> Iterator[Kept]:
        yield from self.announced.values()
        for engine in self.engines.values():
            yield from engine.receipts.values()
            yield from engine.before.values()

    def announce(self, announcement: Announcement) -> bool:
        """Take the trainer's announcement; return whether it is the first of a new start of the trainer.

        Only the newest few are stored, and none of an earlier start of the trainer.
        """
        again = any(one.session != announcement.session for one in self.announced.values())
        if again:
            self.start_again()
        self.announced[announcement.number] = announcement
        for number in sorted(self.announced)[: -(KEPT + self.lag)]:
            del self.announced[number]
        return again

    def start_again(self) -> None:
        """Forget the announcements, and count all engines as those of an earlier start of the trainer until they report
        again."""
        self.announced.clear()
        for engine in self.engines.values():
            engine.past = engine.past or bool(engine.of)
            engine.of, engine.confirmed, engine.heard = {}, None, -1

    @property
    def present(self) -> frozenset[str]:
        """The names of the engines that are not taken for gone: for many updates without a receipt, or since the
        trainer was started again with others."""
        newest = -1 if self.newest is None else self.newest
        heard = [one for one in self.engines.values() if newest - one.heard <= GONE]
        current = [one for one in heard if not one.past]
        return frozenset(one.name for one in current or heard)

    @property
    def newest(self) -> int | None:
        """The number of the trainer's newest update; None before the first."""
        return max(self.announced, default=None)

    def engine(self, name: str) -> EngineUpdates:
        """Return what is known of an engine; one that was not known is added."""
        return self.engines.setdefault(name, EngineUpdates(name))

    def judge(self, engine: EngineUpdates) -> JudgedUpdate:
        """Compare an engine's newest update with what the engine must hold, once all of its workers have reported."""
        if not engine.complete or not self.announced:
            return NOTHING
        wanted = self._wanted(engine)
        if wanted is None:
            return NOTHING
        engine.of[engine.number] = wanted
        for number in sorted(engine.of)[: -8 * KEPT]:
            del engine.of[number]
        report = self._report(engine, wanted)
        stale = tuple(faults.caches(report))
        newest = self._compare(engine, wanted)
        if not newest.different:
            return self._with_adapters(engine, wanted, newest, stale)
        for number in range(wanted - 1, wanted - self.lag - 1, -1):
            if number in self.announced and not (other := self._compare(engine, number)).different:
                return self._with_adapters(engine, number, other, stale)
        known = any(body.of is not None for body in engine.bodies)
        wrong = (*faults.weights(report, newest), *self._of_adapters(engine, wanted), *stale)
        return JudgedUpdate(newest, wrong, wanted, None, pending=not known)

    def concerns(self, engine: EngineUpdates, number: int) -> bool:
        """Return whether an announcement that has just come is of the update that an engine reported before it came."""
        if engine.past or not engine.receipts or not engine.complete:
            return False
        return self._wanted(engine) == number and engine.of.get(engine.number) != number

    def silent(self, name: str) -> UpdateFault | None:
        """Return the fault if an engine has not confirmed the trainer's newest update within the lag; None
        otherwise."""
        newest, engine = self.newest, self.engines[name]
        if newest is None or name not in self.present:
            return None
        asked = self.announced[newest].engines
        if asked and name not in asked:
            return None
        if engine.confirmed is not None and engine.confirmed >= newest - self.lag:
            return None
        if engine.of.get(engine.number, -1) >= newest - self.lag:
            return None  # the engine has reported, and its faults are known
        return faults.silent(newest, name, engine.confirmed, self.lag)

    def _wanted(self, engine: EngineUpdates) -> int | None:
        """Return the trainer's update that an engine must hold: what it says itself, or the newest one that was
        announced before the receipt, by the clocks of both."""
        said = max((body.of for body in engine.bodies if body.of is not None), default=None)
        if said is not None:
            return said if said in self.announced else None
        at = max(body.at for body in engine.bodies)
        return max((number for number, one in self.announced.items() if one.at <= at), default=None)

    def _compare(self, engine: EngineUpdates, number: int) -> WeightComparison:
        earlier = {other: one.parts for other, one in self.announced.items() if other < number}
        renames = engine.bodies[0].renames
        rules = Renames(renames.substrings, renames.prefixes, renames.suffixes)
        return compare(self.announced[number].parts, _workers(engine), rules, earlier)

    def _report(self, engine: EngineUpdates, update: int) -> UpdateReport:
        receipts = engine.bodies
        changed = {"prefix": engine.changed, "encoder": engine.encoders}
        stale: dict[str, LastReset] = {}
        for receipt in receipts:
            for cache, since in receipt.caches.items():
                if since < changed.get(cache, 0):
                    stale[cache] = engine.of.get(since, None if since else START)
        return UpdateReport(
            update,
            max(receipt.tensors for receipt in receipts),
            max(receipt.changed for receipt in receipts),
            max(receipt.workers for receipt in receipts),
            stale,
        )

    def _with_adapters(
        self, engine: EngineUpdates, number: int, comparison: WeightComparison, stale: tuple[UpdateFault, ...]
    ) -> JudgedUpdate:
        wrong = (*self._of_adapters(engine, number), *stale)
        return JudgedUpdate(comparison, wrong, number, number)

    def _of_adapters(self, engine: EngineUpdates, number: int) -> list[UpdateFault]:
        ours = self.announced[number].adapters
        theirs = {worker: receipt.adapters for worker, receipt in engine.receipts.items()}
        earlier = {other: one.adapters for other, one in self.announced.items() if other < number}
        return compared_adapters.adapters(number, ours, theirs, earlier)


def _workers(engine: EngineUpdates) -> list[WorkerParts]:
    return [
        WorkerParts(
            number,
            receipt.parts,
            receipt.body.opaque,
            frozenset(receipt.parts.changed) if engine.number else None,
        )
        for number, receipt in engine.receipts.items()
    ]


def _names(kept: Kept) -> Iterator[Names]:
    yield kept.parts.names
    for one in kept.adapters.values():
        yield one.parts.names
