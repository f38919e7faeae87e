"""Holds one engine process for a driver: starts it, calls it, tells its death, and replaces it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from omni_rl.actors import ReservedBundle, kill, place, share
from omni_rl.agent.settings import for_actor
from omni_rl.closing import Closing
from omni_rl.errors import EngineDeadError, ReplicaDeadError, WeightUpdateError
from omni_rl.media.prompts import plain
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.processes import PLACEMENT_TIMEOUT, ended
from omni_rl.rollout.actor import RolloutActor
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.sync.replica import Command, Deadline, ReplicaStatus, SlabRef
from omni_rl.sync.waiting import FOUND, Waiter

if TYPE_CHECKING:
    from omni_rl.rollout.engine import RolloutEngine

T = TypeVar("T")
CPUS = 0.5
"""Ray's share of a CPU for one engine: with whole CPUs, a few actors on a small machine would wait for ever."""


@dataclass
class _Hold:
    """One engine process; a handle holds one after the other. `end` says why the process cannot be used any more, and
    is None while it can."""

    actor: Any = None
    pid: int | None = None
    end: str | None = "it was not started"
    address: str = ""


class RolloutHandle(Closing):
    """One rollout engine in a Ray actor. Make the handle with `start` or `attach`; close it, or use it as a context.

    Any thread may call its methods; requests of several callers share the engine's steps.

    If the engine dies (it threw inside a step, or its process ended), the calls under way and every later one raise
    `EngineDeadError`, until `replace` has started another engine. `pid` is the engine's process if it runs on this
    node, else None. `slabs` is where the engine's host has the run's slabs, or None if the engine maps those of this
    host.
    """

    def __init__(
        self,
        settings: EngineSettings,
        name: str | None,
        namespace: str | None,
        detached: bool,
        bundle: ReservedBundle | None,
    ) -> None:
        self.settings = settings
        self.name = name or "rollout"
        self._options = {"name": name, "namespace": namespace} if name else {}
        if detached:
            self._options["lifetime"] = "detached"
        self._bundle = bundle
        self._hold = _Hold()
        self.slabs: Path | None = None

    @classmethod
    def start(
        cls,
        settings: EngineSettings,
        *,
        name: str | None = None,
        namespace: str | None = None,
        detached: bool = False,
        closed: bool = False,
        held: str | None = None,
        bundle: ReservedBundle | None = None,
    ) -> "RolloutHandle":
        """Start an engine with the weights of its checkpoint and return a handle on it.

        `name` and `namespace` let other drivers `attach` to the engine, and a `detached` engine outlives this driver.
        With a `bundle`, the engine and each engine that replaces it run in that bundle. A `closed` engine answers no
        request to sample or rescore until a weight sync has brought it to the run's weights, and one with a reason in
        `held` not until it is released.

        Raises `CheckpointError` if the checkpoint cannot be served, `ConfigError` if the node's vLLM is not one that
        the engine was proven with, `EngineDeadError` if Ray could not start it.
        """
        handle = cls(settings.model_copy(update={"model": settings.model.resolve()}), name, namespace, detached, bundle)
        handle._start(closed, held)
        return handle

    @classmethod
    def attach(cls, name: str, namespace: str, bundle: ReservedBundle | None = None) -> "RolloutHandle | None":
        """Return a handle on the engine that another driver started under that name, or None if there is no such
        engine, it died or it has not finished starting.

        Raises `ReplicaDeadError` if its process does not answer.
        """
        try:
            actor = ray.get_actor(name, namespace)
            address, pid = ray.get(actor.process.remote(), timeout=FOUND)
            started = ray.get(actor.started.remote(), timeout=FOUND)
        except (ValueError, RayActorError):
            return None
        except RayError as error:
            raise ReplicaDeadError(f"{name}: its process does not answer: {error}; replace it") from error
        if started is None:
            return None
        settings, parameters = started
        handle = cls(settings, name, namespace, detached=True, bundle=bundle)
        handle._hold = _Hold(actor, pid if address == ray.util.get_node_ip_address() else None, None, address)
        handle.parameters = parameters
        return handle

    @property
    def pid(self) -> int | None:
        return self._hold.pid

    @property
    def usable(self) -> bool:
        """Whether the engine can be used: False once the handle knows that it died or was closed, until `replace` has
        started another."""
        return self._hold.end is None

    @property
    def address(self) -> str:
        """The address of the engine's node."""
        return self._hold.address

    def local(self, slab: SlabRef) -> SlabRef:
        """Return the reference to the same weights on the engine's host."""
        return slab if self.slabs is None else replace(slab, path=str(self.slabs / Path(slab.path).name))

    def replace(self, *, closed: bool = False, held: str | None = None) -> None:
        """End this engine, dead, stopped or alive, and start a fresh one with the checkpoint's weights.

        Without `closed` or `held` the fresh engine serves these weights at once.
        """
        self.close()
        self._start(closed, held)

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        """Render each prompt once, for the engine and the trainer; see `omni_rl.media.renderer.Renderer.render`."""
        # A damaged picture would fail while it is pickled, without a name: media become plain data here.
        rendered: list[RenderedPrompt] = self._call("render", [plain(prompt) for prompt in prompts])
        return rendered

    def sample(
        self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings, places: Sequence[int] | None = None
    ) -> list[Rollout]:
        """Sample one answer for each prompt, in the order of the prompts; see `RolloutEngine.sample`."""
        rollouts: list[Rollout] = self._call("sample", prompts, sampling, places)
        return rollouts

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool = False) -> list[Rescore]:
        """Score answers by prefill at temperature 1, in their order; see `RolloutEngine.rescore`."""
        scores: list[Rescore] = self._call("rescore", rollouts, alone)
        return scores

    def check(self, probe: Sequence[Rollout]) -> list[Rescore]:
        """Score the canonical probe with the engine's weights at once, whether the engine's gate is open or not.

        Raises `WeightUpdateError` while the weights are not proven.
        """
        scores: list[Rescore] = self._call("check", probe)
        return scores

    def between_steps(self, run: "Callable[[RolloutEngine], T]") -> T:
        """Call `run` with the engine, in the engine's thread between two steps, and return the result.

        The engine's gate may be open or closed. Both processes must be able to import the function `run`.
        """
        found: T = self._call("between_steps", run)
        return found

    def obey(self, command: Command, deadline: Deadline) -> Any:
        """Carry out a command of a weight sync; see `omni_rl.sync.replica.Replica.call`."""
        return self._call("obey", command, deadline=deadline)

    def status(self, deadline: Deadline | None = None) -> ReplicaStatus:
        """Return where the replica stands; answered at once whatever the engine is doing."""
        status: ReplicaStatus = self._call("status", deadline=deadline)
        return status

    @property
    def weight_version(self) -> str:
        """The version of the weights that the engine samples with. Raises `WeightUpdateError` while its weights are not
        proven."""
        status = self.status()
        if status.holds is None:
            raise WeightUpdateError(f"{self.name} is {status.standing}: the weights it holds are not proven")
        return status.holds

    def close(self) -> None:
        """End the engine's process and, if it runs on this node, wait until it is gone. Idempotent."""
        hold = self._hold
        hold.end = hold.end or "it was closed"
        if hold.actor is not None:
            kill(hold.actor)
        if hold.pid is not None:
            ended(hold.pid)
        hold.actor = hold.pid = None

    def _start(self, closed: bool, held: str | None) -> None:
        self._require_ray()
        try:
            try:
                self._place()
            except RayActorError:
                # Ray takes a while to notice that a node is gone, and may have put the actor there; now it knows.
                self.close()
                self._place()
            self.parameters: int = self._call("start", self.settings, self.name, closed, held)
        except BaseException:
            self._hold.end = "it failed to start"
            self.close()
            raise

    def _place(self) -> None:
        """Have Ray start a process for the engine. Raises `RayActorError` if the process ended at once or could not be
        started, `EngineDeadError` if its name is taken or Ray does not place it in time."""
        agent = for_actor(self.settings.run, self.name)
        options = {**self._options, **share(CPUS, self.settings.resources, self._bundle, agent), "max_restarts": 0}
        try:
            actor = place(ray.remote(RolloutActor).options(**options))
        except ValueError as error:
            raise EngineDeadError(f"{self.name}: another engine has that name: {error}") from error
        self._hold = hold = _Hold(actor, None, None)
        try:
            hold.address, pid = ray.get(actor.process.remote(), timeout=PLACEMENT_TIMEOUT)
        except GetTimeoutError:
            raise EngineDeadError(
                f"Ray did not start the rollout actor within {PLACEMENT_TIMEOUT:g} s; it needs {CPUS} of a CPU"
                + "".join(f" and {amount:g} of {name}" for name, amount in self.settings.resources.items())
            ) from None
        if hold.address == ray.util.get_node_ip_address():
            hold.pid = pid

    def _require_ray(self) -> None:
        """Raise `ReplicaDeadError` if this process has no connection to Ray: on the next call, Ray would quietly start
        a cluster of its own."""
        if not ray.is_initialized():
            raise ReplicaDeadError(
                f"{self.name}: this process has no connection to Ray; connect, and start engines anew"
            )

    def _call(self, method: str, *arguments: Any, deadline: Deadline | None = None) -> Any:
        hold = self._hold
        if hold.end is not None:
            raise EngineDeadError(f"{self.name}: the engine cannot be used: {hold.end}; replace() starts another")
        self._require_ray()
        waiter = Waiter(hold.actor, self.name, hold.pid)
        try:
            return waiter.get(getattr(hold.actor, method).remote(*arguments), method, deadline)
        except EngineDeadError as error:
            hold.end = hold.end or str(error)
            raise
