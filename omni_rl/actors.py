"""How every driver of Ray actors places, names and ends them."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorHandleNotFoundError
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from omni_rl import runtime
from omni_rl.errors import ConfigError
from omni_rl.processes import EXIT_TIMEOUT, PLACEMENT_TIMEOUT
from omni_rl.settings import Strategy

NAME_PAUSE = 0.1
"""Seconds between two tries to take the name of an actor that ended."""
PIN = 0.001
"""The share that an actor takes of its node's `node:ADDRESS` resource, of which Ray gives each node 1.0: any share
keeps the actor on that node."""


@dataclass(frozen=True)
class ReservedBundle:
    """A bundle of a placement group, which holds one actor. Ray moves the bundle to another node when its node is
    gone."""

    group: PlacementGroup
    number: int


def place(actor: Any, *arguments: Any) -> Any:
    """Start an actor with `arguments` and return its handle, waiting until Ray has freed the name of a dead one: Ray
    does so a moment after the process is gone.

    Raises `ValueError` if a living actor has the name.
    """
    deadline = time.monotonic() + EXIT_TIMEOUT
    while True:
        try:
            return actor.remote(*arguments)
        except ValueError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(NAME_PAUSE)


def share(
    cpus: float,
    resources: Mapping[str, float],
    bundle: ReservedBundle | None = None,
    agent: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the Ray options of an engine's or a trainer's actor.

    `resources`, by Ray's names, are set aside for the actor (GPU is the one with devices behind it). The actor's
    process has, before it imports torch, the environment that both sides compute in, and the variables of its `agent`.
    """
    others = {name: amount for name, amount in resources.items() if name != "GPU"}
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": resources.get("GPU", 0), "resources": others}
    options["runtime_env"] = {"env_vars": {**runtime.variables(), **(agent or {})}}
    if bundle is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(bundle.group, bundle.number)
    return options


def reserve(
    needs: Sequence[Mapping[str, float]], strategy: Strategy, *, first_here: bool, detached: str | None = None
) -> list[ReservedBundle]:
    """Reserve a placement group with one bundle for each of `needs` (amounts by Ray's names, CPU among them), and
    return the bundles in that order. The first is on this process's node if `first_here`.

    The group ends with this process unless it is `detached`: then that is the group's name, by which a successor finds
    it.

    Raises `ConfigError` if the cluster has no room for the bundles.
    """
    bundles = [dict(need) for need in needs]
    if first_here:
        bundles[0][f"node:{ray.util.get_node_ip_address()}"] = PIN
    group = _found(detached) if detached else None
    if group is None:
        group = placement_group(bundles, strategy, **({"name": detached, "lifetime": "detached"} if detached else {}))
        if not group.wait(PLACEMENT_TIMEOUT):
            remove_placement_group(group)
            raise ConfigError(
                f"the cluster has no room for {bundles} ({strategy}): give its nodes more, ask for less, or choose "
                "another strategy"
            )
    elif group.bundle_count != len(bundles):
        raise ConfigError(f"the run has room for {group.bundle_count} actors, not {len(bundles)}; give it another name")
    return [ReservedBundle(group, number) for number in range(len(bundles))]


def _found(name: str) -> PlacementGroup | None:
    try:
        return get_placement_group(name)
    except ValueError:
        return None


def clear(name: str, namespace: str) -> None:
    """End the actor of that name, if there is one: an actor that cannot be used keeps the name from its successor."""
    with contextlib.suppress(ValueError):
        kill(ray.get_actor(name, namespace))


def kill(actor: Any) -> None:
    """End an actor's process. An actor of an earlier connection to Ray ended with that connection, and is left
    alone."""
    if ray.is_initialized():
        with contextlib.suppress(ActorHandleNotFoundError):
            ray.kill(actor)
