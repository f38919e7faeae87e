"""One job at a time has the trainer: two would learn into the same weights."""

import contextlib
from collections.abc import Iterator

import ray

from omni_rl.actors import kill, place
from omni_rl.errors import ConfigError
from omni_rl.policies.settings import namespace_of

NAME = "job"


class Holder:
    """Lives as long as its job's driver, and with it the name."""

    def __init__(self, run: str) -> None:
        self._run = run

    def run(self) -> str:
        return self._run


@contextlib.contextmanager
def claimed(service: str, run: str) -> Iterator[None]:
    """The policies of `service` are those of `run` inside the block; a driver that dies lets go of them.

    Raises:
        ConfigError: another job has them, which is named.
    """
    options = {"name": NAME, "namespace": namespace_of(service)}
    try:
        holder = place(ray.remote(num_cpus=0, max_restarts=0)(Holder).options(**options), run)
    except ValueError:
        other = ray.get(ray.get_actor(NAME, namespace_of(service)).run.remote())
        raise ConfigError(f"the policies are learning for run {other}: wait for that job, or stop it") from None
    try:
        yield
    finally:
        kill(holder)
