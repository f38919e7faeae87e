"""Lets one job at a time use the trainer: two jobs would update the same weights."""

import contextlib
from collections.abc import Iterator

import ray
from ray.exceptions import RayError

from omni_rl.actors import kill, place
from omni_rl.errors import ConfigError
from omni_rl.policies.settings import namespace_of

NAME = "job"
ANSWER_SECONDS = 10.0
"""The seconds in which a holder says whose it is; it has nothing else to do."""


class Holder:
    """An actor that lives as long as its job's driver, and holds the name `NAME` meanwhile."""

    def __init__(self, run: str) -> None:
        self._run = run

    def run(self) -> str:
        return self._run


@contextlib.contextmanager
def claimed(service: str, run: str) -> Iterator[None]:
    """Reserve the policies of `service` for `run` inside the block; they are free again if the driver dies.

    Raises:
        ConfigError: another job has the policies; the message names its run.
    """
    options = {"name": NAME, "namespace": namespace_of(service)}
    try:
        holder = place(ray.remote(num_cpus=0, max_restarts=0)(Holder).options(**options), run)
    except ValueError:
        holds = _run_of_holder(namespace_of(service))
        raise ConfigError(f"the policies are learning for {holds}: wait for that job, or stop it") from None
    try:
        yield
    finally:
        kill(holder)


def _run_of_holder(namespace: str) -> str:
    try:
        run = ray.get(ray.get_actor(NAME, namespace).run.remote(), timeout=ANSWER_SECONDS)
    except (ValueError, RayError):  # the job has just ended, or its holder is stopped
        return "another job"
    return f"run {run}"
