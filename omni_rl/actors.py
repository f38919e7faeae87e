"""What all drivers of Ray actors do alike."""

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
"""Of the resource that each node has one of, named by its address: enough to be put there."""


@dataclass(frozen=True)
class Spot:
    """A bundle of a placement group: room for one actor, which Ray moves to another node when its node is gone."""

    group: PlacementGroup
    bundle: int


def place(actor: Any, *arguments: Any) -> Any:
    """Start an actor with `arguments`. Ray lets go of a dead one's name a moment after its process is gone.

    Raises `ValueError` if a living one has the name.
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
    cpus: float, resources: Mapping[str, float], spot: Spot | None = None, agent: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The options of an engine's or a trainer's actor. `resources`, by Ray's names, are set aside for it (GPU is the
    one with devices behind it). Its process has the environment that both sides compute in before it imports torch, and
    the variables of its `agent`."""
    others = {name: amount for name, amount in resources.items() if name != "GPU"}
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": resources.get("GPU", 0), "resources": others}
    options["runtime_env"] = {"env_vars": {**runtime.variables(), **(agent or {})}}
    if spot is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(spot.group, spot.bundle)
    return options


def reserve(
    needs: Sequence[Mapping[str, float]], strategy: Strategy, *, first_here: bool, detached: str | None = None
) -> list[Spot]:
    """Room for as many actors as there are `needs`, by Ray's names, CPU among them; the first on this process's node if
    `first_here`. It goes with this process, unless it is `detached`: then it has a name, by which a successor finds it.

    Raises `ConfigError` if the cluster has no such room.
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
    return [Spot(group, number) for number in range(len(bundles))]


def _found(name: str) -> PlacementGroup | None:
    try:
        return get_placement_group(name)
    except ValueError:
        return None


def clear(name: str, namespace: str) -> None:
    """End the actor of that name, if there is one: one that cannot be used keeps it from a successor."""
    with contextlib.suppress(ValueError):
        kill(ray.get_actor(name, namespace))


def kill(actor: Any) -> None:
    """End an actor's process. One of an earlier connection to Ray ended with that connection."""
    if ray.is_initialized():
        with contextlib.suppress(ActorHandleNotFoundError):
            ray.kill(actor)
