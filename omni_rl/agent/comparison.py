"""Compares a trainer's fingerprints with those of an engine's workers: equal, different, or not comparable, part by
part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from omni_rl.agent import summed
from omni_rl.agent.fingerprint import Fingerprint, total
from omni_rl.agent.names import Renames, members
from omni_rl.agent.workers import Disagreement, EngineParts, WorkerParts
from omni_rl.counting import counted
from omni_rl.once import once

ROUNDED = "~"
"""The sign between two dtypes in a fingerprint's dtype: values of the first that were rounded to the second on the
way."""
Announced = Mapping[str, Sequence[Fingerprint]]
"""A trainer's parts, each with fingerprints in several dtypes."""
NO_PART = "the engine has no part of that name"


@dataclass(frozen=True)
class Different:
    """A part that the engine holds otherwise than the trainer.

    `is_of` is the trainer's earlier update whose part it is; `is_part` is another part of the trainer's that it is;
    `rounded` is the dtype that its values went through. `workers` are those that alone are off, if only some are;
    `kept`: these workers hold what they held before the update. `touched`: the update changed something of the part.
    """

    name: str
    zero: bool = False
    nonfinite: int = 0
    rounded: str = ""
    is_of: int | None = None
    is_part: str | None = None
    workers: tuple[int, ...] = ()
    kept: bool = True
    touched: bool = True


@dataclass
class WeightComparison:
    """The parts that are equal, those that differ, and why the others are not comparable, by the engine's names."""

    equal: set[str] = field(default_factory=set)
    different: list[Different] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)


def compare(
    announced: Announced,
    workers: Sequence[WorkerParts],
    renames: Renames,
    earlier: Mapping[int, Announced] | None = None,
) -> WeightComparison:
    """Compare every part of the trainer's with the engine's.

    `earlier` has the announcements before this one, by number, which tell a stale part from a wrong one. Parts that
    only the engine has are left out: they are nobody's weights, or frozen ones.
    """
    earlier = earlier or {}
    told = (announced, *earlier.values(), *(worker.parts for worker in workers))
    if any(summed.is_summed(parts) for parts in told):
        # A side with more parts than a body takes reports sums over experts: the other side is summed to compare.
        announced = summed.announced(announced)
        earlier = {number: summed.announced(parts) for number, parts in earlier.items()}
        workers = [summed.of_worker(worker) for worker in workers]
    return _Comparer(announced, EngineParts(workers), renames, earlier).result()


class _Comparer:
    """The comparison of one announcement. `theirs` has the trainer's names for each of the engine's parts: one name, or
    those that are fused in the part."""

    def __init__(
        self, announced: Announced, engine: EngineParts, renames: Renames, earlier: Mapping[int, Announced]
    ) -> None:
        self.announced, self.engine, self.earlier = announced, engine, earlier
        self.found = WeightComparison()
        self.theirs: dict[str, list[str]] = {}
        for name in announced:
            key = engine.find(renames.candidates(name))
            if key is None:
                self.found.opaque[name] = NO_PART
            else:
                self.theirs.setdefault(key, []).append(name)

    def result(self) -> WeightComparison:
        """Compare every part and return the result."""
        for key, names in self.theirs.items():
            self._compare(key, names)
        for name, why in self.found.opaque.items():
            # A head that is the embedding again: the engine has one tensor for both.
            if why == NO_PART and (same := self._part_that_is(self.announced[name], "")) is not None:
                self.found.opaque[name] = f"tied to {same}"
        return self.found

    def _compare(self, key: str, names: Sequence[str]) -> None:
        wanted, opaque = _expected(self.announced, names), self.found.opaque
        if (why := self.engine.why_not(key)) is not None:
            opaque[key] = why
        elif len(names) > 1 and len(names) != len(members(key)):
            opaque[key] = "the trainer announced only some of the parts that are fused in it"
        elif not wanted:
            opaque[key] = "the trainer announced the parts that are fused in it in different dtypes"
        else:
            held = self.engine.sum_of(key, wanted)
            mine = next((one for one in wanted if isinstance(held, Fingerprint) and one.dtype == held.dtype), None)
            if isinstance(held, Disagreement):
                self.found.different.append(Different(key, workers=held.workers, kept=held.kept))
            elif isinstance(held, str):
                opaque[key] = held
            elif mine is None:
                dtypes = ", ".join(sorted(one.dtype for one in wanted if ROUNDED not in one.dtype))
                opaque[key] = f"the engine holds {held.dtype}, the trainer announced {dtypes}"
            elif mine.hashes == held.hashes and held.elements >= mine.elements:
                self.found.equal.add(key)  # elements beyond the trainer's are zeros that fill up
            elif held.elements != mine.elements:
                opaque[key] = f"the engine holds {counted(held.elements, 'element')}, the trainer {mine.elements}"
            else:
                self.found.different.append(self._different(key, names, held, wanted))

    def _different(self, key: str, names: Sequence[str], held: Fingerprint, wanted: Sequence[Fingerprint]) -> Different:
        passed = (one.dtype.partition(ROUNDED)[2] for one in wanted if one.hashes == held.hashes)
        newest_first = sorted(self.earlier, reverse=True)
        was = (number for number in newest_first if _any_same(_expected(self.earlier[number], names), held))
        is_of = next(was, None)
        is_part = None if held.vanishes or is_of is not None else self._part_that_is([held], key)
        rounded = next(filter(None, passed), "")
        workers, touched = self.engine.unchanged_in(key), self.engine.was_touched(key)
        return Different(key, held.vanishes, held.nonfinite, rounded, is_of, is_part, workers, touched=touched)

    def _part_that_is(self, sums: Sequence[Fingerprint], but: str) -> str | None:
        """Return another part of the trainer's that has the same elements; None if there is none."""
        found = (self._by_content.get(_content(one)) for one in sums)
        return next((key for key in found if key not in (None, but)), None)

    @once
    def _by_content(self) -> dict[tuple[str, int, int], str]:
        return {
            _content(one): key
            for key, names in self.theirs.items()
            for one in _expected(self.announced, names)
            if not one.zero
        }


def _content(one: Fingerprint) -> tuple[str, int, int]:
    return one.dtype, one.elements, one.hashes


def _expected(announced: Announced, names: Sequence[str]) -> list[Fingerprint]:
    """Return the sum of the parts of these names, in each dtype that all of them come in."""
    if any(name not in announced for name in names):
        return []
    if len(names) == 1:
        return list(announced[names[0]])
    by_dtype = [{one.dtype: one for one in announced[name]} for name in names]
    shared = [dtype for dtype in by_dtype[0] if all(dtype in sums for sums in by_dtype)]
    return [total(sums[dtype] for sums in by_dtype) for dtype in shared]


def _any_same(sums: Sequence[Fingerprint], held: Fingerprint) -> bool:
    return any(one.same(held) for one in sums)
