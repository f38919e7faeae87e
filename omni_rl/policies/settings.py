"""Defines how a pair's actors are named, and the Ray nodes that a local pair may have; imports neither torch nor
Ray."""

from pydantic import BaseModel, ConfigDict, Field

from omni_rl.settings import Strategy

TRAINER = "trainer"
"""The name of the trainer's actor."""
ROLLOUT = "rollout-"
"""The beginning of the names of rollout actors; a number follows."""


def namespace_of(run: str) -> str:
    """Return the Ray namespace in which the actors of a run that a service hosts have their names."""
    return f"omni-rl-{run}"


def rollout_names(replicas: int) -> tuple[str, ...]:
    """Return the names of `replicas` rollout actors."""
    return tuple(f"{ROLLOUT}{number}" for number in range(replicas))


class NodesSettings(BaseModel):
    """The demo's Ray cluster on this machine. With a `count` above 1 each node has an address of the loopback network,
    and is treated as a host of its own: weights get to it through the object store alone.

    `cpus` and `object_store` (bytes) are each node's; `strategy` says how ranks and engines are dealt to the nodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(default=1, ge=1, le=100)
    cpus: int = Field(default=2, ge=1)
    object_store: int = Field(default=256 * 2**20, ge=80 * 2**20)
    strategy: Strategy = "SPREAD"
