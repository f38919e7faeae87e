"""Runs a rollout engine and its renderer in a process of their own, and gives the driver a handle on them."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray

from omni_rl.heap import uncollected
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.rollout.service import ReplicaService
from omni_rl.rollout.settings import EngineSettings, require_checkpoint, require_vllm
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.sync.replica import Command, ReplicaStatus

if TYPE_CHECKING:
    from omni_rl.rollout.engine import RolloutEngine


class RolloutActor:
    """The Ray actor in the engine's process. `start` must be called first; it is no constructor, because the errors of
    a constructor lose their type on the way.

    The methods only wait: the engine's own thread does the work, so that a command or a ping never queues behind a
    batch. A call that comes while the engine starts waits for it, except `process`, `alive`, `started` and `status`.
    """

    def __init__(self) -> None:
        self._started: tuple[EngineSettings, int] | None = None
        self._up = asyncio.Event()
        self._service: ReplicaService[RolloutEngine] | None = None

    async def process(self) -> tuple[str, int]:
        """Return the node's address and the process id; answers as soon as Ray has placed the actor."""
        return ray.util.get_node_ip_address(), os.getpid()

    async def alive(self) -> None:
        """Answer whatever the engine is doing, unless the process is stopped."""

    async def started(self) -> tuple[EngineSettings, int] | None:
        """Return the settings and the number of parameters, for a driver that finds the actor; None until `start` is
        through."""
        return self._started

    async def start(self, settings: EngineSettings, name: str, closed: bool, held: str | None) -> int:
        """Load the checkpoint and return its number of parameters. Raises `CheckpointError` or `ConfigError`."""
        require_checkpoint(settings.model)
        with uncollected():
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
