"""Adds up experts layer by layer, for models that have more parts than a body takes.

A sum has each expert's fingerprint times a number of its own, so that two experts in each other's place change it; it
does not say which experts they are.
"""

from collections.abc import Iterable, Mapping, Sequence

from omni_rl.agent.fingerprint import Fingerprint
from omni_rl.agent.names import ALL_EXPERTS, expert_of, of_all_experts
from omni_rl.agent.workers import Held, WorkerParts


def announced(parts: Mapping[str, Sequence[Fingerprint]]) -> dict[str, tuple[Fingerprint, ...]]:
    """Return a trainer's parts with those of experts added up, in each dtype."""
    found: dict[str, dict[str, Fingerprint]] = {}
    for name, sums in parts.items():
        into, number = of_all_experts(name) or name, expert_of(name)
        for one in sums:
            _add(found.setdefault(into, {}), one.dtype, one if number is None else one.at(number))
    return {name: tuple(each.values()) for name, each in found.items()}


def held(parts: Mapping[str, Held]) -> dict[str, Held]:
    """Return a worker's parts with those of its experts added up. The sizes say which share of all experts the worker
    has."""
    found: dict[str, Held] = {}
    for name, one in parts.items():
        into, number = of_all_experts(name), expert_of(name)
        if into is None or number is None:
            found[name] = one
            continue
        share = one.sum.at(number)
        found[into] = Held(share if into not in found else found[into].sum + share)
    return found


def of_worker(worker: WorkerParts) -> WorkerParts:
    """Return what a worker reported, with its experts added up."""
    changed = worker.changed
    if changed is not None:
        changed = frozenset(of_all_experts(name) or name for name in changed)
    return worker._replace(parts=held(worker.parts), changed=changed)


def is_summed(names: Iterable[str]) -> bool:
    """Return whether experts are added up under any of these names."""
    return any(ALL_EXPERTS in name for name in names)


def _add(sums: dict[str, Fingerprint], dtype: str, one: Fingerprint) -> None:
    sums[dtype] = sums[dtype] + one if dtype in sums else one
