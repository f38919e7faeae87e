"""A rollout engine and its renderer in a process of their own, and the driver's hold on them."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from omni_rl.actors import ReservedBundle, kill, place, share
from omni_rl.agent.settings import for_actor
from omni_rl.errors import EngineDeadError, ReplicaDeadError, WeightUpdateError
from omni_rl.media.prompts import plain
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.processes import PLACEMENT_TIMEOUT, ended
from omni_rl.rollout.service import ReplicaService
from omni_rl.rollout.settings import EngineSettings, require_checkpoint, require_vllm
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.sync.replica import Command, Deadline, ReplicaStatus, SlabRef
from omni_rl.sync.waiting import FOUND, Waiter

if TYPE_CHECKING:
    from omni_rl.rollout.engine import RolloutEngine

T = TypeVar("T")
CPUS = 0.5
"""Ray's share for one engine: asking for whole CPUs, a few actors on a small machine would wait for ever."""


class RolloutActor:
    """What runs in the engine's process. `start` comes first: errors of a constructor lose their type on the way.

    Its methods only wait: the work is done in the engine's own thread, so that a command, or a ping, never queues
    behind a batch. What comes while the engine starts waits for it, but `status`.
    """

    def __init__(self) -> None:
        self._started: tuple[EngineSettings, int] | None = None
        self._up = asyncio.Event()
        self._service: ReplicaService[RolloutEngine] | None = None

    async def process(self) -> tuple[str, int]:
        """Address of the node, and process id; answers as soon as Ray has placed the actor."""
        return ray.util.get_node_ip_address(), os.getpid()

    async def alive(self) -> None:
        """Answers whatever the engine is doing, unless the process is stopped."""

    async def started(self) -> tuple[EngineSettings, int] | None:
        """Settings and number of parameters, for a driver that finds the actor; None until `start` is through."""
        return self._started

    async def start(self, settings: EngineSettings, name: str, closed: bool, held: str | None) -> int:
        """Load the checkpoint; returns its number of parameters. Raises `CheckpointError`, `ConfigError`."""
        require_checkpoint(settings.model)
        require_vllm()
        from omni_rl.media.renderer import Renderer
        from omni_rl.rollout.engine import RolloutEngine

        def build() -> RolloutEngine:
            return RolloutEngine(settings)

        loop = asyncio.get_running_loop()
        service: ReplicaService[RolloutEngine] = await loop.run_in_executor(
            None, lambda: ReplicaService(name, build, closed=closed, held=held)
        )
        engine = service.loop.ready.result()
        self._renderer = await asyncio.wrap_future(service.loop.command(lambda engine: Renderer(engine.llm_engine)))
        self._service = service
        self._started = settings, engine.parameters
        self._up.set()
        return engine.parameters

    async def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        def each(engine: "RolloutEngine") -> Iterator[RenderedPrompt]:
            for prompt in prompts:
                yield from self._renderer.render([prompt])

        return await asyncio.wrap_future((await self._there()).loop.task(each, gated=False))

    async def sample(
        self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings, places: Sequence[int] | None
    ) -> list[Rollout]:
        loop = (await self._there()).loop
        return await asyncio.wrap_future(loop.requests(lambda engine: engine.submit(prompts, sampling, places)))

    async def rescore(self, rollouts: Sequence[Rollout], alone: bool) -> list[Rescore]:
        loop = (await self._there()).loop
        if alone:
            return await asyncio.wrap_future(
                loop.task(lambda engine: (engine.rescore_alone(rollout) for rollout in rollouts), gated=True)
            )
        return await asyncio.wrap_future(loop.requests(lambda engine: engine.submit_rescoring(rollouts)))

    async def check(self, probe: Sequence[Rollout]) -> list[Rescore]:
        return await asyncio.wrap_future((await self._there()).check(probe))

    async def obey(self, command: Command) -> Any:
        return await asyncio.wrap_future((await self._there()).obey(command))

    async def between_steps(self, run: "Callable[[RolloutEngine], Any]") -> Any:
        return await asyncio.wrap_future((await self._there()).loop.command(run))

    async def status(self) -> ReplicaStatus:
        if self._service is None:
            return ReplicaStatus("", os.getpid(), 0, "closed", None, "the engine is starting")
        return self._service.status

    async def _there(self) -> "ReplicaService[RolloutEngine]":
        await self._up.wait()
        assert self._service is not None, "start() sets it first"
        return self._service


@dataclass
class _Hold:
    """One engine process: a handle has one after the other. `end` says why it cannot be used any more."""

    actor: Any = None
    pid: int | None = None
    end: str | None = "it was not started"
    address: str = ""


class RolloutHandle:
    """One rollout engine in a Ray actor. Make it with `start`; close it, or use it as a context.

    Any thread may call; requests of several callers share the engine's steps.

    If the engine dies (it threw inside a step, or its process ended), the calls under way and every later one raise
    `EngineDeadError`, until `replace` has started another engine. `pid` is the engine's process if it runs on this
    node, else None. `slabs`: where its host has the run's slabs, None if it maps those of this host.
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
        """Start an engine with its checkpoint's weights; `name` and `namespace` let other drivers `attach` to it, and a
        `detached` one outlives this driver. It, and who takes its place, has the room in `bundle`, if there is one.

        A `closed` one answers no request until a weight sync has brought it to the run's weights, a `held` one until it
        is released as well. Raises `CheckpointError` if the checkpoint cannot be served, `ConfigError` if the node's
        vLLM is not one that the engine was proven with, `EngineDeadError` if Ray could not start it.
        """
        handle = cls(settings.model_copy(update={"model": settings.model.resolve()}), name, namespace, detached, bundle)
        handle._start(closed, held)
        return handle

    @classmethod
    def attach(cls, name: str, namespace: str, bundle: ReservedBundle | None = None) -> "RolloutHandle | None":
        """The engine that another driver started under that name, or None if there is none, or none that is complete.

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
        """False once the handle knows that its engine died or was closed, until `replace` has started another."""
        return self._hold.end is None

    @property
    def address(self) -> str:
        """Of the engine's node."""
        return self._hold.address

    def local(self, slab: SlabRef) -> SlabRef:
        """The same weights on the engine's host."""
        return slab if self.slabs is None else replace(slab, path=str(self.slabs / Path(slab.path).name))

    def replace(self, *, closed: bool = False, held: str | None = None) -> None:
        """End this engine, dead, stopped or alive, and start a fresh one, which has the checkpoint's weights.

        Without `closed` or `held` it serves them.
        """
        self.close()
        self._start(closed, held)

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        """Each prompt rendered once, for both sides; see `omni_rl.media.renderer.Renderer.render`."""
        # A damaged picture would fail while it is pickled, without a name: media become plain data here.
        rendered: list[RenderedPrompt] = self._call("render", [plain(prompt) for prompt in prompts])
        return rendered

    def sample(
        self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings, places: Sequence[int] | None = None
    ) -> list[Rollout]:
        """One answer per prompt, in their order; see `RolloutEngine.sample`."""
        rollouts: list[Rollout] = self._call("sample", prompts, sampling, places)
        return rollouts

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool = False) -> list[Rescore]:
        """Answers scored by prefill at temperature 1, in their order; see `RolloutEngine.rescore`."""
        scores: list[Rescore] = self._call("rescore", rollouts, alone)
        return scores

    def check(self, probe: Sequence[Rollout]) -> list[Rescore]:
        """The canonical probe scored with the engine's weights, at once, whether its gate is open or not.

        Raises `WeightUpdateError` while they are not proven.
        """
        scores: list[Rescore] = self._call("check", probe)
        return scores

    def between_steps(self, run: "Callable[[RolloutEngine], T]") -> T:
        """What a function that is known in both processes gives of the engine, in its thread, whatever the gate is."""
        found: T = self._call("between_steps", run)
        return found

    def obey(self, command: Command, deadline: Deadline) -> Any:
        """Carry out a command of a weight sync; see `omni_rl.sync.replica.Replica.call`."""
        return self._call("obey", command, deadline=deadline)

    def status(self, deadline: Deadline | None = None) -> ReplicaStatus:
        """Where the replica stands, answered at once whatever the engine is doing."""
        status: ReplicaStatus = self._call("status", deadline=deadline)
        return status

    @property
    def weight_version(self) -> str:
        """The version of the weights that the engine samples with. Raises `WeightUpdateError` while it has none."""
        status = self.status()
        if status.holds is None:
            raise WeightUpdateError(f"{self.name} is {status.standing}: the weights it holds are not proven")
        return status.holds

    def close(self) -> None:
        """End the engine's process and wait until it is gone. Idempotent."""
        hold = self._hold
        hold.end = hold.end or "it was closed"
        if hold.actor is not None:
            kill(hold.actor)
        if hold.pid is not None:
            ended(hold.pid)
        hold.actor = hold.pid = None

    def __enter__(self) -> "RolloutHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        """Have Ray start a process. Raises `RayActorError` if it ended at once, or never was."""
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
        """Without this, Ray would quietly start a cluster of its own on the next call."""
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
