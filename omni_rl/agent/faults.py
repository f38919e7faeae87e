"""Writes the sentences about an update that did not do what it should have done."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from omni_rl.agent.comparison import Different, WeightComparison
from omni_rl.agent.names import ALL_EXPERTS, expert_of, layer_of, tower_of
from omni_rl.consistency.actions import Cause
from omni_rl.counting import agreeing, counted

NAMED = 3
"""How many parts a sentence names; of more it says the number."""
TOLD_APART = 16
"""How many pairs of parts in each other's place are faults of their own, each with an incident; more are one fault."""
CACHES = {"prefix": "prefix cache", "encoder": "encoder cache"}
"""The names of the caches of what weights computed. vLLM's multimodal cache holds inputs, which no update makes
stale."""
START: Literal["start"] = "start"
LastReset = int | Literal["start"] | None
"""When a cache was last reset: after an update of the trainer, at the engine's start, or, None, after an update whose
number is not known any more."""
_SINCE: dict[LastReset, str] = {START: "the engine started", None: "an earlier update"}


@dataclass(frozen=True)
class UpdateFault:
    """What is wrong with an update, in a sentence.

    `parts` are the parts that it is wrong for, by the engine's names. `key` is the same for the same fault in several
    engines.
    """

    cause: Cause
    sentence: str
    parts: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class UpdateReport:
    """What all workers of an engine reported of an update, beside its parts. `update` is the trainer's number of the
    update."""

    update: int
    tensors: int
    changed: int
    workers: int
    stale_caches: Mapping[str, LastReset] = field(default_factory=dict)
    """The caches that hold what earlier weights computed, and when each was last reset."""


def weights(report: UpdateReport, found: WeightComparison) -> list[UpdateFault]:
    """Return what is wrong with the weights."""
    stale: dict[int, list[Different]] = {}
    swapped: dict[str, Different] = {}
    rest: list[Different] = []
    for one in found.different:
        # Zeros that nobody wrote now are what they were, as a bias that was not trained yet.
        if one.is_of is not None and not (one.zero and one.touched):
            stale.setdefault(one.is_of, []).append(one)
        elif one.is_part is not None:
            swapped[one.name] = one
        else:
            rest.append(one)
    findings = [_stale(report, number, some, found) for number, some in stale.items()]
    findings += _swapped(report, swapped)
    if kept := [one for one in rest if one.workers and one.kept]:
        findings.append(_some_workers(report, kept))
    if torn := [one for one in rest if one.workers and not one.kept]:
        who = _workers(report, torn)
        findings.append(_wrong(report, _names(torn), f"not the same in {who} as in the others"))
    others = [one for one in rest if not one.workers]
    if zero := _names(one for one in others if one.zero):
        findings.append(_wrong(report, zero, "zero in the engine and not in the trainer"))
    if broken := [one for one in others if one.nonfinite]:
        count = sum(one.nonfinite for one in broken)
        findings.append(_wrong(report, _names(broken), f"not finite in {counted(count, 'element')} in the engine"))
    for dtype in sorted({one.rounded for one in others if one.rounded}):
        of = _names(one for one in others if one.rounded == dtype)
        findings.append(_wrong(report, of, f"the trainer's rounded to {dtype}"))
    if plain := _names(one for one in others if not (one.zero or one.nonfinite or one.rounded)):
        findings.append(_wrong(report, plain, "neither the trainer's nor those of an update before"))
    return findings


def caches(report: UpdateReport) -> list[UpdateFault]:
    """Return the caches that outlived a change of weights: what they hold was computed with other weights."""
    findings = []
    for cache, reset in report.stale_caches.items():
        since = _SINCE.get(reset, f"update {reset}")
        sentence = (
            f"{CACHES[cache]} not reset since {since}: it holds what was computed with weights before update "
            f"{report.update}"
        )
        findings.append(UpdateFault(Cause.STALE_CACHE, sentence, key=cache))
    return findings


def silent(update: int, engine: str, confirmed: int | None, lag: int) -> UpdateFault:
    """Return the fault of an engine that has not confirmed an update within the declared lag."""
    last = "no update" if confirmed is None else f"update {confirmed}"
    allowed = f"the run declares a lag of {lag}" if lag else "the run declares no lag"
    sentence = f"engine {engine} has confirmed {last}, and the trainer is at update {update}: {allowed}"
    return UpdateFault(Cause.STALE_WEIGHTS, sentence, key="silent")


def _stale(report: UpdateReport, number: int, some: Sequence[Different], found: WeightComparison) -> UpdateFault:
    names = _names(some)
    every = len(some) == len(found.different)
    whole = every and not found.equal
    if every and report.changed == 0:
        sentence = (
            f"update {report.update} changed 0 of {counted(report.tensors, 'tensor')}: the engine holds update {number}"
        )
    elif whole:
        sentence = f"update {report.update}: the engine holds the weights of update {number}"
    else:
        sentence = f"update {report.update}: {described(names)} {_are(names)} of update {number}"
    return UpdateFault(Cause.STALE_WEIGHTS, sentence, names, f"stale {number}")


def _are(names: Sequence[str]) -> str:
    return agreeing(len(names), "is that", "are those")


def _swapped(report: UpdateReport, swapped: Mapping[str, Different]) -> list[UpdateFault]:
    findings: list[UpdateFault] = []
    done: set[str] = set()
    experts: dict[tuple[str, int | None, frozenset[int]], list[str]] = {}
    for name, one in swapped.items():
        other = one.is_part or ""
        if name in done:
            continue
        mutual = other in swapped and swapped[other].is_part == name
        done.update({name, other} if mutual else {name})
        pair = {expert for expert in (expert_of(name), expert_of(other)) if expert is not None}
        if mutual and len(pair) == 2 and layer_of(name) == layer_of(other):
            experts.setdefault((tower_of(name), layer_of(name), frozenset(pair)), []).extend((name, other))
            continue
        verb = "are swapped" if mutual else f"differ: the first holds what is {other}'s"
        names = (name, other)
        sentence = f"update {report.update}: {name} and {other} {verb}"
        findings.append(UpdateFault(Cause.CORRUPT_WEIGHTS, sentence, names, f"swapped {name}"))
    for (tower, layer, both), names_of in experts.items():
        low, high = sorted(both)
        sentence = f"update {report.update}: {_layer(tower, layer)}'s experts {low} and {high} are swapped"
        findings.append(UpdateFault(Cause.CORRUPT_WEIGHTS, sentence, tuple(names_of), f"swapped {layer} {low} {high}"))
    if len(findings) <= TOLD_APART:
        return findings
    more = tuple(name for one in findings[TOLD_APART:] for name in one.parts)
    sentence = f"update {report.update}: {described(more)} {agreeing(len(more), 'holds', 'hold')} what other parts are"
    return [*findings[:TOLD_APART], UpdateFault(Cause.CORRUPT_WEIGHTS, sentence, more, "swapped more")]


def _some_workers(report: UpdateReport, kept: Sequence[Different]) -> UpdateFault:
    numbers = _numbers(kept)
    names = _names(kept)
    verb = agreeing(len(numbers), "has", "have")
    sentence = (
        f"update {report.update}: {_workers(report, kept)} {verb} not taken {described(names)}, which the others have"
    )
    return UpdateFault(Cause.STALE_WEIGHTS, sentence, names, f"workers {numbers}")


def _workers(report: UpdateReport, some: Sequence[Different]) -> str:
    numbers = _numbers(some)
    who = f"worker {numbers[0]}" if len(numbers) == 1 else f"workers {', '.join(map(str, numbers))}"
    return f"{who} of {report.workers}"


def _numbers(some: Sequence[Different]) -> list[int]:
    return sorted({number for one in some for number in one.workers})


def _wrong(report: UpdateReport, names: tuple[str, ...], how: str) -> UpdateFault:
    verb = agreeing(len(names), "is", "are")
    said = f"{described(names)} {verb} {how}"
    return UpdateFault(Cause.CORRUPT_WEIGHTS, f"update {report.update}: {said}", names, said)


def _names(some: Iterable[Different]) -> tuple[str, ...]:
    return tuple(one.name for one in some)


def _layer(tower: str, layer: int | None) -> str:
    if layer is None:
        return tower or "the model"
    return f"{tower} layer {layer}" if tower else f"layer {layer}"


def described(names: Sequence[str]) -> str:
    """Describe the parts in few words: one by its name, one layer's as such, experts as such, or the first of many."""
    if len(names) == 1:
        return names[0]
    places = {(tower_of(name), layer_of(name)) for name in names}
    experts = {expert_of(name) for name in names}
    every_expert = all(ALL_EXPERTS in name for name in names)
    if len(places) == 1 and (place := next(iter(places)))[1] is not None:
        here = _layer(*place)
        if every_expert or None not in experts:
            return f"{here}'s experts" if every_expert or len(experts) > 1 else f"{here}'s expert {experts.pop()}"
        leaves = [name.split(f".{place[1]}.", 1)[1] for name in names]
        if len(leaves) <= NAMED:
            return f"{here}'s {' and '.join(leaves)}"
        return f"{len(names)} parts of {here}"
    towers = {tower for tower, _ in places}
    if len(towers) == 1 and all(layer is not None for _, layer in places):
        numbers = sorted(layer for _, layer in places if layer is not None)
        tower = towers.pop()
        where = f"{tower} layers" if tower else "layers"
        what = "experts" if every_expert or None not in experts else f"{len(names)} parts"
        listed = ", ".join(map(str, numbers[:NAMED])) + (
            f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        )
        return f"{what} of {where} {listed}"
    first = ", ".join(names[:NAMED])
    return first if len(names) <= NAMED else f"{first} and {counted(len(names) - NAMED, 'more part')}"
