"""The updates of weights that are in memory for each run, and the faults in them that have an incident."""

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from omni_rl.agent.faults import UpdateFault
from omni_rl.agent.judging import Kept, RunUpdates
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check
from omni_rl.consistency.limits import Severity
from omni_rl.errors import TooLargeError, TooManyError
from omni_rl.ledger.types import NewIncident
from omni_rl.ledger.updates import UpdateKey
from omni_rl_services.coordinator.memory import UPDATES
from omni_rl_services.coordinator.settings import MIB

NAMED = 16
"""The number of a fault's parts that are remembered."""
RUNS = 64
"""The number of runs whose newest updates are in memory; the ledger has them again for a run that comes back."""


@dataclass
class OpenFault:
    """A fault that has an incident, whose number is `incident`; `engines` are those that have the fault."""

    fault: UpdateFault
    incident: int
    engines: set[str]


@dataclass
class LiveUpdates:
    """A run's updates in memory. `turn` is held by whoever changes them."""

    of: RunUpdates
    open: dict[str, OpenFault] = field(default_factory=dict)
    keys: dict[str, UpdateKey] = field(default_factory=dict)
    """The ledger's key of each engine's newest answer."""
    arrived: dict[int, float] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)
    """When each engine's newest receipt came."""
    over: dict[int, str] = field(default_factory=dict)
    """Why incidents end whose faults are no longer in `open`: by their numbers, until the ledger has stored it."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class LiveRuns:
    """The runs in memory, which take at most `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._runs: OrderedDict[str, LiveUpdates] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """The bytes of all runs in memory."""
        return sum(live.of.nbytes() for live in self._runs.values())

    def get(self, run: str) -> LiveUpdates | None:
        """Return a run's updates, or None if they are not in memory."""
        return self._runs.get(run)

    def add(self, run: str, live: LiveUpdates) -> LiveUpdates:
        """Put a run's updates into memory unless there are some, and return those that are there. The run counts as the
        one that was used last."""
        live = self._runs.setdefault(run, live)
        self._runs.move_to_end(run)
        while len(self._runs) > RUNS:
            self._runs.popitem(last=False)
        return live

    def make_room(self, run: str, live: LiveUpdates, more: Kept) -> None:
        """Drop other runs, and engines that are gone, until there is memory for `more` of this run.

        Raises:
            TooLargeError: this run alone would take more than there is.
            TooManyError: runs that are being compared take it.
        """
        if live.of.nbytes(more) > self._limit:
            live.of.forget_gone()
        needed = live.of.nbytes(more)
        if needed > self._limit:
            raise TooLargeError(
                f"the fingerprints of run {run} would take {-(-needed // MIB):,} MiB, and there is memory for "
                f"{self._limit // MIB:,}: give the coordinator more (bounds.memory = {-(-UPDATES * needed // MIB)} MiB)"
            )
        over = needed + self.nbytes - live.of.nbytes() - self._limit
        for name, other in list(self._runs.items()):
            if over <= 0:
                return
            if other is not live and not other.turn.locked():
                over -= other.of.nbytes()
                del self._runs[name]
        if over > 0:
            raise TooManyError("other runs' weights are compared, and there is no memory for more; send this again")


def left(live: LiveUpdates, present: Collection[str]) -> list[OpenFault]:
    """Remove and return the faults that end because no engine that has them is there any more."""
    for one in live.open.values():
        one.engines.intersection_update(present)
    return [live.open.pop(key) for key, one in list(live.open.items()) if not one.engines]


def with_engine(live: LiveUpdates, fault: UpdateFault, engine: str) -> OpenFault:
    """Return the fault with one more engine."""
    before = live.open.get(fault.key)
    others = before.engines if before else set()
    return OpenFault(replace(fault, parts=fault.parts[:NAMED]), before.incident if before else 0, {engine, *others})


def sentence_of(one: OpenFault, engines: int) -> str:
    """Return the sentence about a fault where there are so many engines."""
    if engines == 1:
        return one.fault.sentence
    if len(one.engines) == 1:
        return f"{one.fault.sentence} (engine {next(iter(one.engines))}, 1 of {engines})"
    return f"{one.fault.sentence}, in {len(one.engines)} of {engines} engines"


def incident_of(one: OpenFault, engines: int, update: int | None) -> NewIncident:
    """Return the fault as an incident. `update` is the number of the trainer's update."""
    severity = Severity.MASK if one.fault.cause is Cause.STALE_CACHE else Severity.PAUSE
    evidence = {
        "result": "explains",
        "sentence": one.fault.sentence,
        "update": update,
        "engines": sorted(one.engines),
        "tensors": list(one.fault.parts),
    }
    return NewIncident(
        int(severity),
        sentence_of(one, engines),
        str(one.fault.cause),
        evidence={str(Check.WEIGHTS): evidence},
        kind="update",
        subject=one.fault.key,
    )
