"""The sentence that says what an incident is about."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from omni_rl.consistency.limits import Judgement
from omni_rl.consistency.shown import shown

IncidentKind = Literal["drift", "update", "sync", "engine", "silence"]
"""The kinds of incidents. drift: the two policies differ. update: an engine did not take an update of weights, or keeps
what older ones computed. sync: a sync of weights failed, or is not proven. engine: an engine, the trainer or the
cluster does not answer, or a trainer was replaced. silence: a run's steps stopped coming."""
KINDS: tuple[IncidentKind, ...] = get_args(IncidentKind)


@dataclass(frozen=True)
class Figure:
    """A figure and the limit that it is over. `kind` is the kind of prompt, or `overall`."""

    kind: str
    metric: str
    value: float
    limit: float


@dataclass(frozen=True)
class GoodStep:
    """The last step of a run that was ok, and the weights that sampled it."""

    attempt: int
    step: int
    weights: str


def figure_of(judgement: Judgement) -> Figure | None:
    """Return the figure of a step that is furthest over its limit; None where none is over one."""
    worst = judgement.worst
    return None if worst is None else Figure(worst.kind, worst.metric, worst.value, worst.limit)


def headline(step: int, judgement: Judgement, kinds: Collection[str], good: GoodStep | None) -> str:
    """Return what a step shows, in a sentence. `kinds` are the kinds of prompt that the step has."""
    worst = judgement.worst
    clean = "" if good is None else f"; clean to step {good.step}"
    if worst is None or worst.severity < judgement.severity:
        return f"Step {step}: {judgement.reason}{clean}."
    where = _where({breach.kind for breach in judgement.breaches}, kinds)
    return f"Step {step}, {where}: {worst.metric} {shown(worst.value, '.3g')}, limit {worst.limit:g}{clean}."


def _where(over: Collection[str], kinds: Collection[str]) -> str:
    of = sorted(set(over) & set(kinds))
    if not of:
        return "all kinds together"
    if len(of) < len(kinds):
        return f"{', '.join(of)} only"
    return of[0] if len(of) == 1 else "every kind"
