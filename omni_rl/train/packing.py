"""Packs rollouts of different lengths back to back, under a token budget and evenly over the ranks."""

import heapq
from collections.abc import Sequence
from typing import TypeVar

import torch

from omni_rl.errors import ConfigError
from omni_rl.media.types import MediaItem
from omni_rl.models.packed import PackedMedia, PackedPruning, PackedSequences
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


def pack(rollouts: Sequence[Rollout], *, replay: bool = False) -> PackedSequences:
    """Pack prompt and answer of every rollout back to back, with the answers' tokens to be scored. With `replay`, the
    experts are the ones that the engine used.

    Without rollouts, return the smallest sequence that can be scored, for a rank that must run along with the others.
    Its score counts for nothing.
    """
    if not rollouts:
        return PackedSequences(
            ids=torch.zeros(2, dtype=torch.int64),
            cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
            score_mask=torch.tensor([False, True]),
        )
    ids: list[torch.Tensor] = []
    score_mask: list[torch.Tensor] = []
    media: list[PackedMedia] = []
    starts = [0]
    for rollout in rollouts:
        prompt = rollout.prompt
        # Copied: arrays that crossed a process may be read-only.
        ids += [torch.tensor(prompt.ids), torch.tensor(rollout.ids)]
        score_mask += [torch.zeros(len(prompt.ids), dtype=torch.bool), torch.ones(len(rollout.ids), dtype=torch.bool)]
        media += [_placed(rollout, index, item, starts[-1]) for index, item in enumerate(prompt.items)]
        starts.append(starts[-1] + sequence_length(rollout))
    return PackedSequences(
        ids=torch.cat(ids),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        score_mask=torch.cat(score_mask),
        media=tuple(media),
        experts=torch.cat([_routed(rollout) for rollout in rollouts]) if replay else None,
    )


def _routed(rollout: Rollout) -> torch.Tensor:
    """Return the engine's choices of experts, int16 [P + T, L, K]. The last token's row is -1, so that the model
    chooses by itself: the engine never computes that token."""
    assert rollout.experts is not None, "the driver lets no rollout without choices pass"
    _, layers, chosen = rollout.experts.shape
    return torch.cat([torch.tensor(rollout.experts), torch.full((1, layers, chosen), -1, dtype=torch.int16)])


def _placed(rollout: Rollout, index: int, item: MediaItem, start: int) -> PackedMedia:
    """Return media item `index` of a rollout whose prompt begins at packed position `start`."""
    pruning = None
    if item.pruning is not None:
        # What the engine kept is part of what it conditioned the answer on: near ties may fall the other way here.
        mask = rollout.kept[index] if rollout.kept else None
        first = start + item.offset
        pruning = PackedPruning(
            rate=item.pruning.rate,
            span=(first, first + item.length),
            text_before=torch.tensor(item.pruning.text_before),
            kept=None if mask is None else torch.tensor(mask),
        )
    return PackedMedia(item.modality, torch.tensor(item.positions) + start, item.tensors, rollout.prompt.id, pruning)


def temperatures(rollouts: Sequence[Rollout]) -> torch.Tensor:
    """Return the sampling temperature of each scored token of `pack(rollouts)`, float32 [scored tokens]."""
    if not rollouts:
        return torch.ones(1)
    return torch.cat([torch.full((len(rollout.ids),), rollout.temperature) for rollout in rollouts])
