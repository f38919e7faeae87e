"""Puts the workers of one engine together: what they hold of a part, and where they disagree."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from omni_rl.agent.fingerprint import Fingerprint, total
from omni_rl.agent.names import members, whole


class Held(NamedTuple):
    """A part in one worker. `shard` says which of how many equal shares it is, as 2/4; empty where that is not
    known."""

    sum: Fingerprint
    shard: str = ""


class WorkerParts(NamedTuple):
    """What one worker of an engine reported. `changed` has the names of parts that its update changed, None at its
    first."""

    number: int
    parts: Mapping[str, Held]
    opaque: Mapping[str, str]
    changed: frozenset[str] | None


class Disagreement(NamedTuple):
    """The workers whose copy of a part is not that of the others, though all must hold the same. `kept`: none of these
    workers changed it at its last update."""

    workers: tuple[int, ...]
    kept: bool


class EngineParts:
    """The parts of all workers, by the engine's names for them."""

    def __init__(self, workers: Sequence[WorkerParts]) -> None:
        # Receipts come in any order, on which no finding may depend.
        self.workers = sorted(workers, key=lambda worker: worker.number)
        self._pieces = whole(dict.fromkeys(name for worker in workers for name in worker.parts))
        self._opaque = {name: why for worker in workers for name, why in worker.opaque.items()}
        for name in list(self._opaque):
            # The reason for a packed part that is fused holds for its members too.
            self._opaque.update((part, self._opaque[name]) for part in members(name))
        # Packed experts are reported as a whole.
        self._packed_experts = {
            name.partition(".experts.")[0]: why for name, why in self._opaque.items() if ".experts.w" in name
        }
        self._fused = {part: name for name in self._pieces for part in members(name)}

    def find(self, candidates: Iterable[str]) -> str | None:
        """Return the engine's part for the first of a trainer's names that leads to one; None if none does.

        A name leads to a part of that name; to the members of a fused part, which the engine holds apart; or to the
        engine's fused part that it is a member of.
        """
        names = list(candidates)
        for name in names:
            if name in self._pieces or self.why_not(name) is not None:
                return name
        for name in names:
            inner = members(name)
            if inner and all(part in self._pieces for part in inner):
                self._pieces[name] = [piece for part in inner for piece in self._pieces[part]]
                return name
        return next((self._fused[name] for name in names if name in self._fused), None)

    def why_not(self, name: str) -> str | None:
        """Return why a part cannot be compared; None if it can."""
        if name in self._opaque:
            return self._opaque[name]
        head, experts, _ = name.partition(".experts.")
        return self._packed_experts.get(head) if experts else None

    def sum_of(self, name: str, wanted: Sequence[Fingerprint]) -> Fingerprint | Disagreement | str:
        """Return the part's fingerprint over all workers, or which workers disagree, or why there is no such sum.
        `wanted` has the trainer's fingerprints of it, one for each dtype."""
        shares: list[Fingerprint] = []
        elements, right = wanted[0].elements, {one.hashes for one in wanted}
        for piece in self._pieces[name]:
            holders = [(worker.number, worker.parts[piece]) for worker in self.workers if piece in worker.parts]
            # A module that does not say how it is shared out: every worker holds all of it if the size says so.
            alike = all(not held.shard and held.sum.elements == elements for _, held in holders)
            groups: dict[str, list[tuple[int, Fingerprint]]] = {}
            for number, held in holders:
                share = "1/1" if alike else held.shard or f"worker {number}"
                groups.setdefault(share, []).append((number, held.sum))
            for group in groups.values():
                if odd := self._odd_ones(piece, group, right):
                    return Disagreement(odd, set(odd) <= self._kept(piece))
                shares.append(group[0][1])
        try:
            return total(shares)
        except ValueError as error:
            return str(error)

    def _kept(self, piece: str) -> set[int]:
        """Return the workers that hold a piece and did not change it at their last update."""
        told = (worker for worker in self.workers if worker.changed is not None and piece in worker.parts)
        return {worker.number for worker in told if piece not in (worker.changed or ())}

    def _odd_ones(self, piece: str, group: Sequence[tuple[int, Fingerprint]], right: set[int]) -> tuple[int, ...]:
        """Return the workers whose copy is not the right one, which is the trainer's, or else the most frequent; of
        equally frequent ones, that of the workers which took the update."""
        copies: dict[int, list[int]] = {}
        for number, one in group:
            copies.setdefault(one.hashes, []).append(number)
        kept = self._kept(piece)
        usual = max(copies, key=lambda one: (one in right, len(copies[one]), not kept.issuperset(copies[one])))
        return tuple(number for one, numbers in copies.items() if one != usual for number in numbers)

    def was_touched(self, name: str) -> bool:
        """Return whether the update changed a worker's share of a part, as far as is known."""
        pieces = set(self._pieces[name])
        return any(worker.changed is None or worker.changed & pieces for worker in self.workers)

    def unchanged_in(self, name: str) -> tuple[int, ...]:
        """Return the workers whose share of a part stayed as it was at an update that changed others'; empty if none or
        all did."""
        pieces = set(self._pieces[name])
        holders = [worker for worker in self.workers if pieces & worker.parts.keys()]
        kept = [worker for worker in holders if worker.changed is not None and not worker.changed & pieces]
        return tuple(worker.number for worker in kept) if len(kept) < len(holders) else ()
