"""Brings new weights to all replicas, or to none: one sync, from its source to the opened gates."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from omni_rl.errors import (
    EngineDeadError,
    FencedError,
    JournalError,
    NonFiniteWeightsError,
    OmniRLError,
    QuarantinedError,
    ReplicaDeadError,
    ReplicaSilentError,
    ReplicaStoppedError,
    SyncUndecidedError,
)
from omni_rl.sync.journal import Journal
from omni_rl.sync.manifest import Origin
from omni_rl.sync.recovery import Convergence, Settled, defects, end, roll_back
from omni_rl.sync.replica import Apply, Command, Deadline, InFlight, Pause, Proof, ScoreProbe, SlabRef, Verify
from omni_rl.sync.replica_group import ReplicaAnswers, ReplicaGroup
from omni_rl.sync.result import Outcome, SyncResult
from omni_rl.sync.roofline import copy_rate
from omni_rl.sync.states import Decision, Machine, Observer, Phase, SyncEvent

DECIDE_PAUSE = 0.2
"""The seconds between two tries of a decision that could not be written."""
UNREACHABLE = (ReplicaDeadError, ReplicaStoppedError, ReplicaSilentError, EngineDeadError)
"""The errors after which a replica is not asked again: the others would wait for it with their gates closed."""


@dataclass(frozen=True)
class Filled:
    """A sealed slab: where it is, which version and how much it holds, and whose weights. `nonfinite` has a sentence
    for each tensor that holds NaN or infinity."""

    slab: SlabRef
    tensors: int
    bytes: int
    origin: Origin | None = None
    nonfinite: tuple[str, ...] = ()


class Slabs(Protocol):
    """The run's two slabs; a source is whatever can fill one with weights."""

    def idle(self, active: SlabRef | None) -> str:
        """Return the path of the slab that may be overwritten: the one that does not hold `active`."""

    def fill(self, path: str, source: Any, *, allow_nonfinite: bool = False) -> Filled:
        """Let `source` write all its weights and seal them.

        Raises an `OmniRLError`, and seals nothing, if that fails: a `NonFiniteWeightsError` where the weights hold NaN
        or infinity, unless that is allowed.
        """

    @property
    def pushes(self) -> bool:
        """Whether `push` writes into the engines, which then have no way back; else they copy from the slab."""

    def push(self) -> None:
        """Write what was filled last into the engines, which stand still. Raises `WeightUpdateError`."""

    def holds(self, slab: SlabRef) -> bool:
        """Return whether the slab is there, sealed with that version, and undamaged."""


class Probe(Protocol):
    """The canonical probe, for one sync."""

    @property
    def command(self) -> Any:
        """The prompts that a replica's engine must score."""

    def prepare(self) -> None:
        """Do the trainer's part, while generation runs."""

    def agreement(self, scores: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
        """Return figures by kind of prompt, the worst of all replicas, from the scores of each."""


class PhaseFailedError(OmniRLError, RuntimeError):
    """Some replicas did not do their part: `failed` has the reasons by name. It never leaves the transaction."""

    def __init__(self, phase: Phase, failed: Mapping[str, OmniRLError | str], mismatches: tuple[str, ...] = ()) -> None:
        super().__init__(f"{phase}: " + "; ".join(f"replica {name}: {why}" for name, why in sorted(failed.items())))
        self.failed = dict(failed)
        self.mismatches = mismatches


@dataclass
class Transaction:
    """One sync of `replicas`, whose committed weights are `previous`. `run` is called once.

    `epoch` is the coordinator's; a rollback takes a newer one, so that commands which are still on their way to a
    replica that missed a deadline are refused when they arrive.
    """

    sync: str
    key: str | None
    previous: SlabRef
    epoch: int
    journal: Journal
    slabs: Slabs
    replicas: ReplicaGroup
    observe: Observer
    allow_nonfinite: bool = False
    machine: Machine = field(init=False)
    _proofs: dict[str, Proof] = field(default_factory=dict)
    _joined: Settled = field(default_factory=Settled)
    _filled: Filled | None = None
    _agreement: Mapping[str, Mapping[str, float]] | None = None
    _touched: bool = False

    def __post_init__(self) -> None:
        self.machine = Machine(self.sync, self.observe)

    def run(self, source: Any, mode: InFlight, probe: Probe | None) -> SyncResult:
        """Run the sync. Every `OmniRLError` on the way ends in a result; any other error is raised after the rollback.

        Raises `FencedError` and `SyncUndecidedError`: replicas are then left as they are, for another coordinator, or
        the next sync, to settle.
        """
        self.machine.enter(Phase.PREPARE)
        try:
            self._joined = self._join()
            names = [name for name in self.replicas.names if name not in self._joined.out]
            filled = self._prepare(source, mode, probe)
        except FencedError:
            raise
        except BaseException as error:
            return self._finish(self._nothing_touched(error), error)
        failure: BaseException | None = None
        try:
            self._move(names, filled.slab, mode, probe)
            self.machine.enter(Phase.COMMIT)
            decision = self._decide_commit()
        except (FencedError, SyncUndecidedError):
            raise
        except BaseException as error:
            decision, failure = self._decide_abort(), error
        if decision == "abort":
            return self._finish(self._back(failure, names), failure)
        self.machine.decide("commit")
        return self._finish(self._forward(filled.slab, names), None)

    def _join(self) -> Settled:
        """Let replicas that do not serve the committed weights (replaced ones, those left out before) join first."""
        convergence = Convergence(self.replicas, self.replicas.names, self.previous, self.epoch, self.sync)
        convergence.run(Phase.PREPARE)
        settled = convergence.replace_lost()
        if set(settled.out) == set(self.replicas.names):
            raise QuarantinedError("; ".join(f"replica {name}: {why}" for name, why in sorted(settled.out.items())))
        return settled

    def _prepare(self, source: Any, mode: InFlight, probe: Probe | None) -> Filled:
        path = self.slabs.idle(self.previous)
        self.journal.begin(self.sync, self.key, self.epoch, path, mode)
        self._filled = filled = self.slabs.fill(path, source, allow_nonfinite=self.allow_nonfinite)
        self.journal.prepared(self.sync, self.epoch, filled.slab.version)
        if probe is not None:
            probe.prepare()
        return filled

    def _move(self, names: list[str], slab: SlabRef, mode: InFlight, probe: Probe | None) -> None:
        """Pass PAUSE, APPLY and VERIFY. Raises `PhaseFailedError` if a single replica fails one of them."""
        limits = self.replicas.deadlines
        drain = limits.drain if mode == "drain" else 0.0
        pause = Deadline("pause", limits.answer + drain)
        self._all(Phase.PAUSE, names, Pause(self.epoch, self.sync, mode, drain), pause)
        self._touched = True
        apply = Apply(self.epoch, self.sync, slab, self.slabs.pushes)
        self._all(Phase.APPLY, names, apply, Deadline("apply", limits.write))
        if self.slabs.pushes:
            self.slabs.push()
        verified = self._all(Phase.VERIFY, names, Verify(self.epoch, self.sync, slab), Deadline("verify", limits.prove))
        self._proofs = verified.done
        if wrong := defects(self._proofs):
            found = (mismatch for proof in self._proofs.values() for mismatch in proof.mismatches)
            raise PhaseFailedError(Phase.VERIFY, wrong, tuple(dict.fromkeys(found)))
        if probe is not None:
            score = ScoreProbe(self.epoch, self.sync, probe.command)
            scores = self._tell(Phase.VERIFY, names, score, Deadline("score", limits.score))
            self._agreement = probe.agreement(scores.done)

    def _all(self, phase: Phase, names: list[str], command: Command, deadline: Deadline) -> ReplicaAnswers:
        self.machine.enter(phase)
        return self._tell(phase, names, command, deadline)

    def _tell(self, phase: Phase, names: list[str], command: Command, deadline: Deadline) -> ReplicaAnswers:
        answers = self.replicas.tell(phase, dict.fromkeys(names, command), deadline)
        if answers.failed:
            raise PhaseFailedError(phase, answers.failed)
        return answers

    def _decide_commit(self) -> Decision:
        try:
            return self.journal.decide(self.sync, self.epoch, "commit")
        except JournalError:
            # It is not known now whether the row is there. The first row stands, so an "abort" which went in, or the
            # "commit" it met, is certain.
            return self._decide_abort()

    def _decide_abort(self) -> Decision:
        """Write that the sync is given up, trying again while the deadline allows; return the decision that stands."""
        deadline = time.monotonic() + self.replicas.deadlines.decide
        while True:
            try:
                return self.journal.decide(self.sync, self.epoch, "abort")
            except JournalError as error:
                if time.monotonic() > deadline:
                    raise SyncUndecidedError(
                        f"sync {self.sync} could not be decided: {error}. Its replicas stay paused; once the journal "
                        "can be written, the next sync, or opening the run again, settles it"
                    ) from error
            time.sleep(DECIDE_PAUSE)

    def _nothing_touched(self, error: BaseException) -> SyncResult:
        """End a sync whose source, journal or join failed: no replica has heard of the new weights."""
        self.machine.decide("abort")
        if self.journal.record(self.sync) is not None:
            self._decide_abort()
        self.machine.enter(Phase.IDLE)
        return self._result("rolled_back", Settled(), error)

    def _forward(self, slab: SlabRef, names: list[str]) -> SyncResult:
        self.machine.enter(Phase.RESUME)
        convergence = Convergence(self.replicas, names, slab, self.epoch, self.sync)
        convergence.assume_proven()
        convergence.open(Phase.RESUME)
        return self._result("committed", end(self.machine, convergence), None)

    def _back(self, error: BaseException | None, names: list[str]) -> SyncResult:
        self.machine.decide("abort")
        self.epoch = self.journal.next_epoch(self.epoch)
        failed = error.failed if isinstance(error, PhaseFailedError) else {}
        lost = {name: str(why) for name, why in failed.items() if isinstance(why, UNREACHABLE)}
        if self._touched and self.slabs.pushes:
            lost |= dict.fromkeys(names, f"its transport has no way back: {_reason(error)}") | lost
        convergence = Convergence(self.replicas, names, self.previous, self.epoch, self.sync)
        return self._result("rolled_back", roll_back(self.machine, convergence, lost), error)

    def _result(self, outcome: Outcome, settled: Settled, error: BaseException | None) -> SyncResult:
        filled = self._filled
        proofs = self._proofs.values()
        version = filled.slab.version if filled else ""
        refused = error.tensors if isinstance(error, NonFiniteWeightsError) else ()
        return SyncResult(
            sync=self.sync,
            outcome=outcome,
            version=version,
            serving=version if outcome == "committed" else self.previous.version,
            tensors=filled.tensors if filled else 0,
            bytes=filled.bytes if filled else 0,
            elements_proven=min((proof.elements_proven for proof in proofs), default=0),
            elements=min((proof.elements for proof in proofs), default=0),
            seconds=dict(self.machine.seconds),
            stall=max((resumed.stall for resumed in settled.resumed.values()), default=0.0),
            copy_rate=copy_rate(),
            agreement=self._agreement,
            reason="" if outcome == "committed" else _reason(error),
            mismatches=error.mismatches if isinstance(error, PhaseFailedError) else (),
            replaced=self._joined.replaced | settled.replaced,
            out=self._joined.out | settled.out,
            origin=filled.origin if filled else None,
            nonfinite=filled.nonfinite if filled else refused,
            allow_nonfinite=self.allow_nonfinite,
        )

    def _finish(self, result: SyncResult, error: BaseException | None) -> SyncResult:
        try:
            if self.journal.record(self.sync) is not None:
                self.journal.finish(self.sync, self.epoch, result.to_json())
        except JournalError as failure:
            # The sync is over all the same. The journal has it as unfinished, and the next sync settles that.
            self.observe(SyncEvent(self.sync, Phase.IDLE, "failed", detail=str(failure)))
        if error is not None and not isinstance(error, OmniRLError):
            raise error
        return result


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "the decision could not be written in time"
    return str(error) if isinstance(error, OmniRLError) else f"{type(error).__name__}: {error}"
