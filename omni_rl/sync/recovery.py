"""Brings every replica to the weights that were decided for: after a failure, a decision, a crash or a replacement."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from omni_rl.sync.replica import (
    Apply,
    Command,
    Deadline,
    Fence,
    Pause,
    Proof,
    Quarantine,
    ReplicaStatus,
    Resume,
    Resumed,
    SlabRef,
    Verify,
)
from omni_rl.sync.replica_group import ReplicaGroup
from omni_rl.sync.states import Machine, Phase

MISMATCHES_IN_REASON = 5
QUARANTINE_SECONDS = 2.0
"""The seconds that a replica has to answer Quarantine. They are few: the replica is about to be ended anyway, and
others wait for its successor."""


@dataclass
class Settled:
    """How each replica ended, by name: it serves the decided weights, or it samples nothing.

    `resumed` holds the answers of the replicas that took part from beginning to end, `replaced` why others were
    replaced (they serve), and `out` why the rest samples nothing until it is replaced.
    """

    resumed: dict[str, Resumed] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    out: dict[str, str] = field(default_factory=dict)


def defects(proofs: dict[str, Proof]) -> dict[str, str]:
    """Return why a replica is not proven, for each that is not, by its name."""
    return {name: mismatch_text(proof) for name, proof in proofs.items() if proof.mismatches}


def mismatch_text(proof: Proof) -> str:
    named = "; ".join(proof.mismatches[:MISMATCHES_IN_REASON])
    more = len(proof.mismatches) - MISMATCHES_IN_REASON
    return f"does not hold {proof.version}: {named}" + (f"; and {more} more" if more > 0 else "")


class Convergence:
    """The way of replicas to `target`, whose stages are called in the order `find`, `write`, `prove`, `open`,
    `replace_lost`.

    A replica that already is where a stage would bring it is left alone; one that fails a stage is lost and takes no
    part in the next. Every stage accepts replicas in any standing, so the whole can be repeated after a crash.
    """

    def __init__(self, replicas: ReplicaGroup, names: Iterable[str], target: SlabRef, epoch: int, sync: str) -> None:
        self._replicas = replicas
        self._names = list(names)
        self._target = target
        self._epoch = epoch
        self._sync = sync
        self._at: dict[str, ReplicaStatus] = {}
        self.lost: dict[str, str] = {}
        self.settled = Settled()

    def find(self, lost: dict[str, str], phase: Phase) -> None:
        """Fence all replicas but those already `lost`, and learn where they stand."""
        self.lost = dict(lost)
        here = [name for name in self._names if name not in lost]
        self._at = self._tell(phase, here, Fence(self._epoch, self._sync), self._answer("fence"))
        for name, status in list(self._at.items()):
            if status.standing == "quarantined":
                self._lose(name, f"it is quarantined: {status.reason}")

    def assume_proven(self) -> None:
        """Take all replicas for proven; instead of `find`, where the caller has just proven the target on all of
        them."""
        self._at = {name: ReplicaStatus(name, 0, self._epoch, "proven", self._target.version) for name in self._names}

    def write(self, phase: Phase) -> None:
        """Stop the replicas that serve something else, and write the target into those that may hold something else."""
        serving = [n for n, at in self._at.items() if at.standing == "serving" and at.holds != self._target.version]
        self._at |= self._tell(phase, serving, Pause(self._epoch, self._sync), self._answer("pause"))
        dirty = [name for name, at in self._at.items() if at.holds != self._target.version]
        apply = Apply(self._epoch, self._sync, self._target)
        self._at |= self._tell(phase, dirty, apply, Deadline("apply", self._replicas.deadlines.write))

    def prove(self, phase: Phase) -> None:
        """Read back every byte of the replicas that do not serve yet."""
        unproven = [name for name, at in self._at.items() if at.standing in ("closed", "paused", "unproven")]
        verify = Verify(self._epoch, self._sync, self._target)
        proofs = self._tell(phase, unproven, verify, Deadline("verify", self._replicas.deadlines.prove))
        for name, reason in defects(proofs).items():
            self._lose(name, reason)

    def open(self, phase: Phase) -> None:
        """Let the replicas that are proven sample again."""
        waiting = [name for name, at in self._at.items() if at.standing != "serving"]
        resume = Resume(self._epoch, self._sync, self._target.version)
        self.settled.resumed |= self._tell(phase, waiting, resume, self._answer("resume"))

    def run(self, phase: Phase) -> None:
        """Go through these stages, from `find` to `open`, as one phase."""
        self.find({}, phase)
        self.write(phase)
        self.prove(phase)
        self.open(phase)

    def replace_lost(self) -> Settled:
        """Quarantine the lost replicas, start a successor for each, and bring those to the target; or leave them
        out."""
        reasons, self.lost = self.lost, {}
        if not reasons:
            return self.settled
        # Most lost replicas are dead and cannot hear this; one that wakes up later must find its gate closed.
        self._replicas.tell(
            Phase.QUARANTINE,
            {name: Quarantine(self._epoch, self._sync, reason) for name, reason in reasons.items()},
            Deadline("quarantine", QUARANTINE_SECONDS),
        )
        started = self._replicas.replace(self._sync, reasons)
        successors = Convergence(self._replicas, started.done, self._target, self._epoch, self._sync)
        successors.run(Phase.QUARANTINE)
        for name, reason in reasons.items():
            if name in successors.settled.resumed:
                self.settled.replaced[name] = reason
            else:
                why = str(started.failed[name]) if name in started.failed else successors.lost[name]
                self.settled.out[name] = f"{reason}; no successor: {why}"
        return self.settled

    def _tell(self, phase: Phase, names: Iterable[str], command: Command, deadline: Deadline) -> dict[str, Any]:
        """Give replicas a command, and return the answers by name; those that fail are lost."""
        answers = self._replicas.tell(phase, dict.fromkeys(names, command), deadline)
        for name, error in answers.failed.items():
            self._lose(name, str(error))
        return answers.done

    def _lose(self, name: str, reason: str) -> None:
        self._at.pop(name, None)
        self.lost[name] = reason

    def _answer(self, name: str) -> Deadline:
        return Deadline(name, self._replicas.deadlines.answer)


def roll_back(machine: Machine, convergence: Convergence, lost: dict[str, str]) -> Settled:
    """Bring every replica back to the convergence's target, the weights from before; `machine` has decided to."""
    machine.enter(Phase.ROLLBACK)
    convergence.find(lost, Phase.ROLLBACK)
    convergence.write(Phase.ROLLBACK)
    machine.enter(Phase.VERIFY)
    convergence.prove(Phase.VERIFY)
    machine.enter(Phase.RESUME)
    convergence.open(Phase.RESUME)
    return end(machine, convergence)


def bring_forward(machine: Machine, convergence: Convergence) -> Settled:
    """Bring every replica to the convergence's target, which is decided for, wherever a crash left them."""
    machine.enter(Phase.RESUME)
    convergence.run(Phase.RESUME)
    return end(machine, convergence)


def end(machine: Machine, convergence: Convergence) -> Settled:
    """Replace the replicas that were lost on the way, and let the sync end."""
    if convergence.lost:
        machine.enter(Phase.QUARANTINE)
    settled = convergence.replace_lost()
    machine.enter(Phase.IDLE)
    return settled
