"""Runs the weight syncs of one run: one at a time, each key once, and whatever a crash interrupted is settled."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from omni_rl.errors import (
    FencedError,
    NonFiniteWeightsError,
    QuarantinedError,
    SyncRolledBackError,
    SyncRunningError,
    WeightUpdateError,
)
from omni_rl.sync.journal import Journal
from omni_rl.sync.recovery import Convergence, bring_forward, roll_back
from omni_rl.sync.replica import Command, Deadline, HoldGate, InFlight, Release, Replica, SlabRef
from omni_rl.sync.replica_group import Deadlines, ReplicaGroup
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Decision, Machine, Observer, Phase, SyncEvent
from omni_rl.sync.transaction import Probe, Slabs, Transaction

CRASHED = "its coordinator ended before anything was decided"


@dataclass
class _Running:
    """The operation that holds the lock: a sync, or the opening of the run."""

    sync: str
    key: str | None
    phase: Phase = Phase.IDLE
    result: "Future[SyncResult]" = field(default_factory=Future)


class WeightSync:
    """Brings weights from sources to all replicas of a run. `open` comes first, `close` last; any thread may call."""

    def __init__(
        self,
        journal: Journal,
        slabs: Slabs,
        replicas: Sequence[Replica],
        *,
        deadlines: Deadlines | None = None,
        observe: Observer = lambda event: None,
    ) -> None:
        self._journal = journal
        self._slabs = slabs
        self._observer = observe
        self._replicas = ReplicaGroup(replicas, deadlines or Deadlines(), self._observe)
        self._turn = threading.Lock()
        self._running: _Running | None = None
        self._epoch = 0
        self._transaction: Transaction | None = None

    @property
    def running(self) -> tuple[str, Phase] | None:
        """The sync under way and its phase, or None."""
        running = self._running
        return None if running is None else (running.sync, running.phase)

    @property
    def version(self) -> str:
        """The committed version: every replica serves it, or samples nothing."""
        return self._committed().version

    def open(self, initial: Any) -> SyncResult:
        """Take over the run: finish or roll back what a crash left, and let every replica serve the committed weights.

        A run that has none yet starts with those of the source `initial`.

        Raises:
            WeightUpdateError: the committed weights are lost, and `initial` has others.
            NonFiniteWeightsError: the run has no weights yet, and those of `initial` hold NaN or infinity.
            QuarantinedError: no replica could be brought to them.
        """
        with self._alone(_Running(f"open-{uuid.uuid4().hex[:8]}", None)) as running:
            self._epoch = self._journal.next_epoch(None)
            if self._journal.committed() is None:
                self._start(running.sync, initial)
            elif not self._slabs.holds(self._committed()):
                self._restore(self._committed(), initial)
            return self._serving(self._settle(running.sync))

    def sync(
        self,
        source: Any,
        *,
        name: str | None = None,
        key: str | None = None,
        mode: InFlight = "recompute",
        probe: Probe | None = None,
        allow_nonfinite: bool = False,
    ) -> SyncResult:
        """Serve the weights of `source` on every replica.

        The sync is called `name`, which must be new; without it, it gets a name. `allow_nonfinite`: serve the weights
        even if they hold NaN or infinity. The same `key` is the same operation: it runs once, and its result, or its
        failure, is what every caller gets.

        Raises:
            SyncRunningError: another sync is under way; the message names it.
            SyncRolledBackError: it failed; those replicas that serve anything serve what they served before. A
                `NonFiniteWeightsError` if that was because the weights hold NaN or infinity.
            SyncUndecidedError: the journal could not be written at the moment of decision; gates stay closed until the
                next `sync` or `open` settles it.
            FencedError: another coordinator took over; nothing more is done here.
            QuarantinedError: it was committed, and then no replica was left to serve it.
        """
        other = self._running
        if key is not None and other is not None and other.key == key:
            return self._told(other.result.result())
        with self._alone(_Running(name or uuid.uuid4().hex[:12], key)) as running:
            if self._journal.unfinished() is not None:
                self._settle(running.sync)
            known = self._journal.by_key(key) if key is not None else None
            if known is not None and known.result is not None:
                result = SyncResult.from_json(known.result)
            else:
                transaction = Transaction(
                    sync=running.sync,
                    key=key,
                    previous=self._committed(),
                    epoch=self._journal.next_epoch(self._epoch),
                    journal=self._journal,
                    slabs=self._slabs,
                    replicas=self._replicas,
                    observe=self._observe,
                    allow_nonfinite=allow_nonfinite,
                )
                self._transaction = transaction
                try:
                    result = transaction.run(source, mode, probe)
                finally:
                    self._epoch, self._transaction = transaction.epoch, None
            running.result.set_result(result)
        return self._told(result)

    def hold(self, reason: str) -> None:
        """Let no replica generate anything until `release`; syncs go on, and open no gate. It may be called again.

        Raises:
            WeightUpdateError: a replica did not confirm the hold; the message names it.
            FencedError: another coordinator took over.
        """
        self._order(lambda epoch: HoldGate(epoch, "hold", reason))

    def release(self) -> None:
        """End the hold; replicas whose weights are not proven stay closed. Raises what `hold` raises."""
        self._order(lambda epoch: Release(epoch, "release"))

    def repair(self, *, name: str | None = None) -> SyncResult:
        """Replace replicas that died, and bring all to the committed weights; those that serve them go on serving.

        The repair is called `name`, as a sync is; the journal records nothing of it.

        Raises:
            SyncRunningError: a sync is under way, which does the same.
            QuarantinedError: no replica could be brought to them.
        """
        with self._alone(_Running(name or f"repair-{uuid.uuid4().hex[:8]}", None)) as running:
            self._epoch = self._journal.next_epoch(self._epoch)
            return self._serving(self._settle(running.sync))

    def close(self) -> None:
        """Stop handling the run. Replicas go on serving; another coordinator may open the run."""
        self._replicas.close()

    @property
    def _present_epoch(self) -> int:
        """The epoch of the sync under way, which takes another for its rollback, or else of the last one."""
        under_way = self._transaction
        return self._epoch if under_way is None else under_way.epoch

    def _order(self, command: Callable[[int], Command]) -> None:
        deadline = Deadline("answer", self._replicas.deadlines.answer)
        while True:
            epoch = self._present_epoch
            try:
                answers = self._replicas.order({name: command(epoch) for name in self._replicas.names}, deadline)
                break
            except FencedError:
                if epoch == self._present_epoch:
                    raise  # by another coordinator; our own rollback has another epoch by now
        if answers.failed:
            raise WeightUpdateError("; ".join(f"{name}: {error}" for name, error in sorted(answers.failed.items())))

    def _start(self, sync: str, initial: Any) -> None:
        """Bring the run's first weights to the replicas: nothing serves yet, so there is nothing to go back to."""
        if (earlier := self._journal.unfinished()) is not None:
            self._journal.decide(earlier.sync, self._epoch, "abort")
            given_up = SyncResult(earlier.sync, "rolled_back", earlier.slab.version, "", reason=CRASHED)
            self._journal.finish(earlier.sync, self._epoch, given_up.to_json())
        path = self._slabs.idle(None)
        self._journal.begin(sync, None, self._epoch, path, "recompute")
        filled = self._slabs.fill(path, initial)
        self._journal.prepared(sync, self._epoch, filled.slab.version)
        self._journal.decide(sync, self._epoch, "commit")

    def _restore(self, target: SlabRef, initial: Any) -> None:
        # The other slab is filled first, since a version is known once all weights were read: a source of other weights
        # would else write over what is left of these, or over all of them where only another host lacks them.
        for path in (self._slabs.idle(target), target.path):
            # These weights were committed, so that somebody has allowed them if they are not finite.
            filled = self._slabs.fill(path, initial, allow_nonfinite=True)
            if filled.slab.version != target.version:
                raise WeightUpdateError(
                    f"the run's weights {target.version} are lost: {target.path} does not hold them any more, and the "
                    f"source given has {filled.slab.version}; open with the source that has them, or start a new "
                    "attempt"
                )

    def _settle(self, sync: str) -> SyncResult:
        """Finish or roll back what the journal has not finished, and bring every replica to the committed weights."""
        left = self._journal.unfinished()
        decision: Decision = "commit"
        if left is not None:
            sync = left.sync
            decision = left.decision or self._journal.decide(sync, self._epoch, "abort")
        target = self._committed()
        machine = Machine(sync, self._observe)
        convergence = Convergence(self._replicas, self._replicas.names, target, self._epoch, sync)
        machine.decide(decision)
        commit = decision == "commit"
        settled = bring_forward(machine, convergence) if commit else roll_back(machine, convergence, {})
        result = SyncResult(
            sync=sync,
            outcome="committed" if commit else "rolled_back",
            version=left.slab.version if left is not None else target.version,
            serving=target.version,
            seconds=dict(machine.seconds),
            reason="" if commit else CRASHED,
            replaced=settled.replaced,
            out=settled.out,
        )
        if left is not None:
            self._journal.finish(sync, self._epoch, result.to_json())
        return result

    def _told(self, result: SyncResult) -> SyncResult:
        if result.outcome == "rolled_back":
            refused = bool(result.nonfinite) and not result.allow_nonfinite
            raise (NonFiniteWeightsError if refused else SyncRolledBackError)(
                f"sync {result.sync} to {result.version or 'new weights'} was rolled back, replicas serve "
                f"{result.serving}: {result.reason}"
            )
        return self._serving(result)

    def _serving(self, result: SyncResult) -> SyncResult:
        if set(result.out) == set(self._replicas.names):
            raise QuarantinedError(
                f"no replica serves {result.serving}: "
                + "; ".join(f"{name}: {why}" for name, why in sorted(result.out.items()))
            )
        return result

    def _committed(self) -> SlabRef:
        committed = self._journal.committed()
        assert committed is not None, "open() comes first"
        return committed

    def _observe(self, event: SyncEvent) -> None:
        running = self._running
        if running is not None and event.what == "entered":
            running.phase = event.phase
        self._observer(event)

    @contextmanager
    def _alone(self, running: _Running) -> Iterator[_Running]:
        if not self._turn.acquire(blocking=False):
            other = self._running
            raise SyncRunningError(f"sync {other.sync if other else '?'} is under way; wait for it, or for its result")
        self._running = running
        try:
            yield running
        except BaseException as error:
            # Callers with the same key wait for this result.
            running.result.set_exception(error)
            raise
        finally:
            self._running = None
            self._turn.release()
