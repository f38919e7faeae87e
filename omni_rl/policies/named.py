"""Finds a run's engines by their Ray names, and ends those that the run no longer has."""

from collections.abc import Collection

import ray

from omni_rl.actors import clear
from omni_rl.policies.settings import ROLLOUT


def engines(namespace: str) -> list[str]:
    """Return the names of the engines that live in a Ray namespace, in the order of their numbers."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in actors if actor["namespace"] == namespace and actor["name"].startswith(ROLLOUT)]
    return sorted(names, key=lambda name: int(name.removeprefix(ROLLOUT)))


def end_others(namespace: str, names: Collection[str]) -> None:
    """End the engines whose names are not in `names`, because the run no longer has them: no sync would reach them, and
    a job would find them."""
    for name in engines(namespace):
        if name not in names:
            clear(name, namespace)
