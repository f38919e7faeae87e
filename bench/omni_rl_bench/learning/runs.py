"""Runs one case with one seed in a service of the benchmark's own."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omni_rl.api.jobs import GrpoParameters, JobAnswer, PpoParameters
from omni_rl.api.steps import StepLine
from omni_rl.client.blocking import Client
from omni_rl.errors import ServiceError
from omni_rl.jobs.following import follow
from omni_rl.jobs.plot import plot
from omni_rl.service.state import ServiceState
from omni_rl.service.up import environment
from omni_rl_bench.learning.cases import Case
from omni_rl_bench.own_service import OwnService
from omni_rl_bench.result import BenchmarkError, commit


@dataclass(frozen=True)
class Runs:
    """Runs cases in `service`, through `client`."""

    service: OwnService
    client: Client

    def run(self, case: Case, seed: int) -> tuple[dict[str, Any], str]:
        """Return what a run came to, and its curve."""
        if not case.mismatch:
            return self._run(case, seed)
        with self._hotter():
            result, drawing = self._run(case, seed)
        parameters = case.of(seed)
        more = {"steps": parameters.steps + 1, "resume": True}
        self._job(parameters.model_copy(update=more))
        (step,) = self.client.steps(parameters.run, attempt=2)
        return result | {"held_out_reward_mended": step.training["held_out_reward"]}, drawing

    def _run(self, case: Case, seed: int) -> tuple[dict[str, Any], str]:
        parameters = case.of(seed)
        began = time.monotonic()
        self._job(parameters)
        seconds = time.monotonic() - began
        steps = self.client.steps(parameters.run)
        held_out = {step.step: step.training["held_out_reward"] for step in steps if "held_out_reward" in step.training}
        result = {
            "commit": commit(),
            "parameters": parameters.model_dump(mode="json"),
            "seconds": round(seconds, 1),
            "held_out_reward": held_out,
            "reward": [None if (reward := step.training["reward"]) is None else round(reward, 4) for step in steps],
            "steps_not_ok": sum(step.severity != "ok" for step in steps),
            "logprob_abs_diff_mean": {"largest of a step": max(_apart(steps))},
            "tokens": sum(step.tokens for step in steps),
        }
        return result, plot(parameters.run, steps)

    def _job(self, parameters: GrpoParameters | PpoParameters) -> JobAnswer:
        job = follow(self.client, self.client.submit(parameters).job, None)
        if job.status != "succeeded":
            log = self.client.logs(job.job)[-2000:]
            raise BenchmarkError(f"{job.job} {job.status}: {job.message}; its log ends: {log}")
        return job

    @contextmanager
    def _hotter(self) -> Iterator[None]:
        """Have every engine sample at twice the temperature that it is asked for inside the context; it reports the
        logprobs that it sampled with."""
        directory = self.service.directory
        state = ServiceState.read(directory)
        if state is None:
            raise ServiceError(f"no service in {directory}")
        os.environ |= {**environment(directory, state), **self.service.address}
        import ray

        from omni_rl.policies.attach import attach
        from omni_rl_bench.sabotage import patches, sampling

        with attach(state.name) as policies:
            try:
                for engine in policies.rollouts:
                    engine.between_steps(lambda engine: sampling.hotter(engine, 0))
                yield
            finally:
                for engine in policies.rollouts:
                    engine.between_steps(patches.take_out)
                ray.shutdown()


def _apart(steps: Sequence[StepLine]) -> Iterator[float]:
    for step in steps:
        value = step.figures["logprob_abs_diff_mean"]
        yield float("nan") if value is None else value
