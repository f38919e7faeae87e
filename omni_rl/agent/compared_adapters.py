"""Compares the trainer's LoRA adapters with those that an engine's workers have loaded."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from omni_rl.agent.columns import SumColumns
from omni_rl.agent.comparison import Announced
from omni_rl.agent.faults import UpdateFault
from omni_rl.agent.names import canonical
from omni_rl.consistency.actions import Cause
from omni_rl.counting import counted


class Loaded(NamedTuple):
    """An adapter of the trainer or of a worker. `norm` is that of all its matrices together."""

    name: str
    norm: float
    parts: SumColumns


Adapters = Mapping[str, Loaded]


def adapters(
    update: int, ours: Adapters, workers: Mapping[int, Adapters], earlier: Mapping[int, Adapters]
) -> list[UpdateFault]:
    """Return what is wrong with the adapters of an engine.

    `workers` has the adapters of each worker, by its number; `earlier` those of the trainer's earlier updates, by
    number.
    """
    return [one for name, adapter in ours.items() for one in _adapter(update, name, adapter, workers, earlier)]


def _adapter(
    update: int, name: str, ours: Loaded, workers: Mapping[int, Adapters], earlier: Mapping[int, Adapters]
) -> Iterator[UpdateFault]:
    missing = [number for number, theirs in workers.items() if name not in theirs]
    if missing:
        others = (one.name for theirs in workers.values() for one in theirs.values() if _same(ours.parts, one.parts))
        other = next(others, None)
        if other is not None:
            said = f"adapter `{name}` is loaded under the name `{other}`"
        else:
            said = f"adapter `{name}` is not loaded"
        if len(missing) < len(workers):
            said += f" in {len(missing)} of {counted(len(workers), 'worker')}"
        yield UpdateFault(Cause.STALE_WEIGHTS, f"update {update}: {said}", key=said)
        return
    for theirs in workers.values():
        wrong = _wrong(theirs[name], ours, {number: was.get(name) for number, was in earlier.items()})
        if wrong is not None:
            cause, what = wrong
            yield UpdateFault(cause, f"update {update}: adapter `{name}` {what}", key=f"adapter {name} {what}")
            return


def _wrong(theirs: Loaded, ours: Loaded, earlier: Mapping[int, Loaded | None]) -> tuple[Cause, str] | None:
    if _same(ours.parts, theirs.parts):
        return None
    for number in sorted(earlier, reverse=True):
        was = earlier[number]
        if was is not None and _same(was.parts, theirs.parts):
            return Cause.STALE_WEIGHTS, f"is that of update {number}"
    mine, held = _by_name(ours.parts), _by_name(theirs.parts)
    unheard = [part for part in mine if part not in held]
    if unheard:
        return Cause.CORRUPT_WEIGHTS, f"lacks {len(unheard)} of {len(mine)} matrices, {unheard[0]} first"
    off = [part for part in mine if not mine[part] & held[part]]
    if not off:
        strange = [part for part in held if part not in mine]
        return Cause.CORRUPT_WEIGHTS, f"has {len(strange)} matrices that the trainer's has not, {strange[0]} first"
    if all(part.endswith("lora_B") for part in off):
        zero = all(one.vanishes for part, sums in theirs.parts.items() if part.endswith("lora_B") for one in sums)
        if zero:
            return Cause.CORRUPT_WEIGHTS, "has a scale of 0: its B matrices are zeros, and the trainer's are not"
        return Cause.CORRUPT_WEIGHTS, (
            f"has another scale, or other B matrices: the norm of its matrices is {theirs.norm:.3g}, the trainer's "
            f"{ours.norm:.3g}"
        )
    return Cause.CORRUPT_WEIGHTS, f"differs in {len(off)} of {len(mine)} matrices, {off[0]} first"


def _by_name(parts: Announced) -> dict[str, set[tuple[str, int, int]]]:
    return {canonical(name): {(one.dtype, one.elements, one.hashes) for one in sums} for name, sums in parts.items()}


def _same(ours: Announced, theirs: Announced) -> bool:
    mine, held = _by_name(ours), _by_name(theirs)
    return mine.keys() == held.keys() and all(mine[name] & held[name] for name in mine)
