"""Plans which rank scores or learns which rollouts, in packs under a token budget."""

import heapq
from collections.abc import Sequence
from typing import TypeVar

from omni_rl.errors import ConfigError
from omni_rl.rollout.types import Rollout

Item = TypeVar("Item")

Plan = list[list[list[int]]]
"""The packs of each rank, and in each pack the indices of its sequences. Every rank has the same number of packs."""


def sequence_length(rollout: Rollout) -> int:
    """Return the number of tokens in a rollout's prompt and answer together."""
    return len(rollout.prompt.ids) + len(rollout.ids)


def plan_packs(lengths: Sequence[int], budget: int, world_size: int) -> Plan:
    """Deal sequences of `lengths` tokens into packs of at most `budget` tokens, the same number for every rank.

    The longest sequences come first, each into the emptiest pack, and there are as few packs as hold them all. So packs
    come out about equally long, most of all the n-th packs of the ranks, which run in lockstep. A pack may be empty.

    Raises:
        ConfigError: a single sequence is longer than the budget.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if lengths and lengths[longest_first[0]] > budget:
        index = longest_first[0]
        raise ConfigError(
            f"sequence {index} has {lengths[index]} tokens, more than max_pack_tokens = {budget}; raise "
            "max_pack_tokens or shorten the prompt"
        )
    rounds = max(1, -(-sum(lengths) // (budget * world_size)))
    while (packs := _deal(longest_first, lengths, budget, rounds * world_size)) is None:
        rounds += 1
    packs.sort(key=lambda pack: -sum(lengths[index] for index in pack))
    return [packs[rank::world_size] for rank in range(world_size)]


def _deal(order: list[int], lengths: Sequence[int], budget: int, count: int) -> list[list[int]] | None:
    """Return `count` packs, or None if a sequence does not fit even into the emptiest of them."""
    packs: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, pack) for pack in range(count)]
    for index in order:
        used, pack = emptiest[0]
        if used + lengths[index] > budget:
            return None
        packs[pack].append(index)
        heapq.heapreplace(emptiest, (used + lengths[index], pack))
    return packs


def distribute(plan: Plan, items: Sequence[Item]) -> list[list[list[Item]]]:
    """Return the plan with each index replaced by the item of that index."""
    return [[[items[index] for index in pack] for pack in packs] for packs in plan]


def restore(plan: Plan, results: Sequence[Sequence[Sequence[Item]]]) -> list[Item]:
    """Return results that have the plan's shape in the order of the sequences again."""
    by_index = {
        index: result
        for packs, rank_results in zip(plan, results, strict=True)
        for pack, pack_results in zip(packs, rank_results, strict=True)
        for index, result in zip(pack, pack_results, strict=True)
    }
    return [by_index[index] for index in range(len(by_index))]
