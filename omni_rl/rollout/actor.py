"""A rollout engine and its renderer in a process of their own, and the driver's hold on them."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from omni_rl.errors import EngineDeadError
from omni_rl.media.prompts import plain
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.processes import PLACEMENT_TIMEOUT, wait_until_gone
from omni_rl.rollout.settings import EngineSettings, require_checkpoint
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings, UpdateReport

if TYPE_CHECKING:
    import torch

CPUS = 0.5
"""Ray's share for one engine: asking for whole CPUs, a few actors on a small machine would wait for ever."""


class RolloutActor:
    """What runs in the engine's process. `start` comes first: errors of a constructor lose their type on the way."""

    def process(self) -> tuple[str, int]:
        """Address of the node, and process id; answers as soon as Ray has placed the actor."""
        return ray.util.get_node_ip_address(), os.getpid()

    def start(self, settings: EngineSettings) -> int:
        """Load the checkpoint; returns its number of parameters. Raises `CheckpointError`."""
        require_checkpoint(settings.model)
        from omni_rl.media.renderer import Renderer
        from omni_rl.rollout.engine import RolloutEngine

        self._engine = RolloutEngine(settings)
        self._renderer = Renderer(self._engine.llm_engine)
        return self._engine.parameters

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        return self._renderer.render(prompts)

    def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]:
        return self._engine.sample(prompts, sampling)

    def rescore(self, rollouts: Sequence[Rollout], alone: bool) -> list[Rescore]:
        return self._engine.rescore(rollouts, alone=alone)

    def update_weights(self, tensors: "Mapping[str, torch.Tensor]", version: str) -> UpdateReport:
        return self._engine.update_weights(tensors, version)

    def weight_version(self) -> str:
        return self._engine.weight_version


class RolloutHandle:
    """One rollout engine in a Ray actor. Make it with `start`; close it, or use it as a context.

    If the engine dies (it threw inside a step, or its process ended), the call under way and every later one raise
    `EngineDeadError`, until `replace` has started another engine. `pid` is the engine's process if it runs on this
    node, else None.
    """

    def __init__(self, settings: EngineSettings, name: str | None, namespace: str | None) -> None:
        self.settings = settings
        self._options = {"name": name, "namespace": namespace} if name else {}
        self.pid: int | None = None
        self._actor: Any = None
        self._end: str | None = "it was not started"

    @classmethod
    def start(
        cls, settings: EngineSettings, *, name: str | None = None, namespace: str | None = None
    ) -> "RolloutHandle":
        """Start an engine with its checkpoint's weights; `name` and `namespace` let other drivers find the actor.

        Raises `CheckpointError` if the checkpoint cannot be served, `EngineDeadError` if Ray could not start it.
        """
        handle = cls(settings.model_copy(update={"model": settings.model.resolve()}), name, namespace)
        handle._start()
        return handle

    def replace(self) -> None:
        """End this engine, dead or alive, and start a fresh one, which serves the checkpoint's weights.

        What it had been updated to has to be sent to it again before it samples.
        """
        self.close()
        self._start()

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        """Each prompt rendered once, for both sides; see `omni_rl.media.renderer.Renderer.render`.

        Media are made plain here: a picture that cannot be decoded, or hours of sound, never cross to the engine.
        """
        rendered: list[RenderedPrompt] = self._call("render", [plain(prompt) for prompt in prompts])
        return rendered

    def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]:
        """One answer per prompt, in their order; see `RolloutEngine.sample`."""
        rollouts: list[Rollout] = self._call("sample", prompts, sampling)
        return rollouts

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool = False) -> list[Rescore]:
        """Answers scored by prefill at temperature 1, in their order; see `RolloutEngine.rescore`."""
        scores: list[Rescore] = self._call("rescore", rollouts, alone)
        return scores

    def update_weights(self, tensors: Any, version: str) -> UpdateReport:
        """Serve new weights; see `RolloutEngine.update_weights`.

        `tensors` is the mapping, or a Ray reference to it, which then does not pass through this process.
        """
        report: UpdateReport = self._call("update_weights", tensors, version)
        return report

    @property
    def weight_version(self) -> str:
        """The version of the weights that the engine samples with."""
        version: str = self._call("weight_version")
        return version

    def close(self) -> None:
        """End the engine's process and wait until it is gone. Idempotent."""
        self._end = self._end or "it was closed"
        if self._actor is not None and ray.is_initialized():
            ray.kill(self._actor)
            wait_until_gone([] if self.pid is None else [self.pid])
        self._actor = self.pid = None

    def __enter__(self) -> "RolloutHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._actor = ray.remote(num_cpus=CPUS, max_restarts=0)(RolloutActor).options(**self._options).remote()
        self._end, self.pid = None, None
        try:
            try:
                address, pid = ray.get(self._actor.process.remote(), timeout=PLACEMENT_TIMEOUT)
            except GetTimeoutError:
                raise EngineDeadError(
                    f"Ray did not start the rollout actor within {PLACEMENT_TIMEOUT:g} s; it needs {CPUS} of a CPU"
                ) from None
            if address == ray.util.get_node_ip_address():
                self.pid = pid
            self.parameters: int = self._call("start", self.settings)
        except BaseException:
            self._end = "it failed to start"
            self.close()
            raise

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._end is not None:
            raise EngineDeadError(f"the rollout engine cannot be used: {self._end}; replace() starts another")
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except RayTaskError as error:
            if isinstance(error.cause, EngineDeadError):
                self._end = str(error.cause)
            raise error.cause from None
        except RayActorError as error:
            self._end = f"its process ended during {method}"
            raise EngineDeadError(f"rollout engine: {self._end}; replace() starts another") from error
