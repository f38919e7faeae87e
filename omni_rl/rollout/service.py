"""Serves one replica of the policy: an engine in its loop, and the rules by which its weights may change."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from omni_rl.errors import EngineDeadError, FencedError, OmniRLError, QuarantinedError, WeightUpdateError
from omni_rl.rollout.loop import EngineLoop, SteppedEngine
from omni_rl.sync.replica import (
    Apply,
    Command,
    Fence,
    HoldGate,
    InFlight,
    Pause,
    Proof,
    Quarantine,
    Release,
    ReplicaStatus,
    Resume,
    Resumed,
    ScoreProbe,
    SlabRef,
    Standing,
    Verify,
)


class UpdatableEngine(SteppedEngine, Protocol):
    """An engine whose weights can be replaced between two steps."""

    @property
    def weight_version(self) -> str: ...

    def apply(self, slab: SlabRef, mode: InFlight, *, pushed: bool = False) -> None:
        """Write the slab's weights, unless a transport writes them (`pushed`), and drop everything computed from older
        ones, except, with mode `keep`, the state of requests under way. Raises `SlabError` or `LayoutError` before
        anything is written if the slab is not a sealed set of the engine's weights in that version."""

    def verify(self, slab: SlabRef) -> Proof:
        """Compare every byte that the engine holds with the slab, and the slab with its checksums."""

    def serve_as(self, version: str) -> None:
        """Set the version of the weights: every token sampled from now on is of `version`."""

    def score(self, probe: Any) -> Any:
        """Return the scores of the canonical probe, whatever else is under way."""


E = TypeVar("E", bound=UpdatableEngine)


class ReplicaService(Generic[E]):
    """Hosts an engine and obeys a coordinator. The gate of a replica that starts `closed` stays closed until its
    weights are proven and a Resume comes.

    The gate is open while the replica is serving and is not held. `held` is the reason for a hold from the start, or
    None.
    """

    def __init__(self, name: str, build: Callable[[], E], *, closed: bool, held: str | None = None) -> None:
        self._name = name
        self._held = held
        self._standing: Standing = "closed" if closed else "serving"
        self._holds: str | None = None
        self._reason = ""
        self._epoch = 0
        self._mode: InFlight = "recompute"
        self._stopped_at: float | None = None
        self.loop = EngineLoop(build, gate_open=not closed and held is None)
        self._holds = self.loop.ready.result().weight_version

    @property
    def status(self) -> ReplicaStatus:
        """The replica's present status, for any thread, whatever the engine is doing."""
        return ReplicaStatus(
            self._name, os.getpid(), self._epoch, self._standing, self._holds, self._reason, self._held
        )

    def obey(self, command: Command) -> "Future[Any]":
        """Carry out a command between two steps; the answers are those of `omni_rl.sync.replica.Replica.call`.

        The future raises `FencedError`, `QuarantinedError`, `WeightUpdateError` (the command does not fit the replica's
        standing, or failed), `SlabError` or `LayoutError` (the slab cannot be used), or `EngineDeadError`.
        """
        return self.loop.command(lambda engine: self._obey_or_die(engine, command))

    def check(self, probe: Any) -> "Future[Any]":
        """Score the canonical probe with the weights that are held, whether the gate is open or not.

        The future raises `WeightUpdateError` while the weights are not proven.
        """
        return self.loop.command(lambda engine: self._check(engine, probe))

    def close(self) -> None:
        """End the engine and its thread."""
        self.loop.close()

    def _obey_or_die(self, engine: E, command: Command) -> Any:
        try:
            return self._obey(engine, command)
        except OmniRLError:
            raise
        except Exception as error:  # nobody foresaw it, so nobody knows what the engine holds now
            raise EngineDeadError(
                f"replica {self._name}: {type(command).__name__} ended in {type(error).__name__}: {error}; replace it"
            ) from error

    def _obey(self, engine: E, command: Command) -> Any:
        if command.epoch < self._epoch:
            raise FencedError(
                f"replica {self._name}: {type(command).__name__} of sync {command.sync} has epoch {command.epoch}, a "
                f"newer coordinator took over with {self._epoch}"
            )
        self._epoch = command.epoch
        if isinstance(command, Quarantine):
            return self._quarantine(command.reason)
        if isinstance(command, Fence):
            return self.status
        if isinstance(command, HoldGate | Release):
            self._held = command.reason if isinstance(command, HoldGate) else None
            self._set_gate()
            return self.status
        if self._standing == "quarantined":
            raise QuarantinedError(f"replica {self._name} is quarantined: {self._reason}; replace it")
        if isinstance(command, Pause):
            return self._pause(engine, command)
        if isinstance(command, Apply):
            return self._apply(engine, command)
        if isinstance(command, Verify):
            return self._verify(engine, command)
        if isinstance(command, ScoreProbe):
            self._require(command, "proven")
            return engine.score(command.probe)
        assert isinstance(command, Resume)
        return self._resume(engine, command)

    def _pause(self, engine: E, command: Pause) -> ReplicaStatus:
        if self._standing != "serving":
            return self.status
        if command.mode == "drain" and self._held is not None and engine.busy:
            raise WeightUpdateError(
                f"replica {self._name}: requests under way cannot be finished while it is held ({self._held}); resume "
                "it first, or use the mode recompute"
            )
        self.loop.close_gate()
        self._mode = command.mode
        deadline = time.monotonic() + command.drain_seconds
        if command.mode == "drain" and not self.loop.finish_under_way(engine, lambda: time.monotonic() < deadline):
            self._set_gate()
            raise WeightUpdateError(
                f"replica {self._name}: requests under way were not finished within the {command.drain_seconds:g} s "
                "given to drain; it goes on serving. Allow more, or use the mode recompute"
            )
        self._stopped_at = time.monotonic()
        self._standing = "paused"
        return self.status

    def _apply(self, engine: E, command: Apply) -> ReplicaStatus:
        self._require(command, "closed", "paused", "unproven", "proven")
        self._standing, self._holds = "unproven", None
        engine.apply(command.slab, self._mode, pushed=command.pushed)
        return self.status

    def _verify(self, engine: E, command: Verify) -> Proof:
        self._require(command, "closed", "paused", "unproven", "proven")
        self._standing, self._holds = "unproven", None
        proof = engine.verify(command.slab)
        if not proof.mismatches:
            engine.serve_as(proof.version)
            self._standing, self._holds = "proven", proof.version
        return proof

    def _resume(self, engine: E, command: Resume) -> Resumed:
        if self._standing == "serving" and self._holds == command.version:
            return Resumed(command.version, 0.0)
        self._require(command, "proven")
        if self._holds != command.version:
            raise WeightUpdateError(
                f"replica {self._name}: Resume with {command.version}, but what was proven is {self._holds}"
            )
        stall = 0.0 if self._stopped_at is None else time.monotonic() - self._stopped_at
        self._standing, self._mode, self._stopped_at = "serving", "recompute", None
        self._set_gate()
        return Resumed(command.version, stall)

    def _quarantine(self, reason: str) -> ReplicaStatus:
        self._standing, self._holds, self._reason = "quarantined", None, reason
        self.loop.refuse(QuarantinedError(f"replica {self._name} is quarantined: {reason}; replace it"))
        return self.status

    def _check(self, engine: E, probe: Any) -> Any:
        if self._holds is None:
            raise WeightUpdateError(f"replica {self._name} is {self._standing}: the weights it holds are not proven")
        return engine.score(probe)

    def _set_gate(self) -> None:
        if self._standing == "serving" and self._held is None:
            self.loop.open_gate()
        else:
            self.loop.close_gate()

    def _require(self, command: Command, *standings: Standing) -> None:
        if self._standing not in standings:
            raise WeightUpdateError(
                f"replica {self._name}: {type(command).__name__} of sync {command.sync} does not fit: the replica is "
                f"{self._standing}, not {' or '.join(standings)}"
            )
