"""How urgently a run needs a person, which is the order in which runs are shown."""

from enum import IntEnum
from typing import Literal, get_args

from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Drift

NeedName = Literal["ended", "ok", "waiting", "unjudged", "warn", "mask", "unknown", "silent", "pause", "halted"]


class Need(IntEnum):
    """How urgently a run needs a person, the least urgent first. waiting: no step came yet. unjudged: nothing in its
    latest step was judged. unknown: the coordinator cannot see the cluster that samples for it. silent: its steps
    stopped coming."""

    ENDED = 0
    OK = 1
    WAITING = 2
    UNJUDGED = 3
    WARN = 4
    MASK = 5
    UNKNOWN = 6
    SILENT = 7
    PAUSE = 8
    HALTED = 9

    @property
    def label(self) -> NeedName:
        """The name that answers of the API have for it."""
        return NAMES[self]


NAMES: tuple[NeedName, ...] = get_args(NeedName)
OF_SEVERITY = {Severity.OK: Need.OK, Severity.WARN: Need.WARN, Severity.MASK: Need.MASK, Severity.PAUSE: Need.PAUSE}


def need_of(drift: Drift, activity: str, own: Severity | None) -> Need:
    """Return the need of a run by its drift, its `activity`, and the severity of its latest step (None: there was
    none)."""
    if drift.gate == "halted":
        return Need.HALTED
    need = OF_SEVERITY[drift.severity]
    if activity == "silent":
        return max(need, Need.SILENT)
    if need is not Need.OK:
        return need
    if activity == "ended":
        return Need.ENDED
    if own is None:
        return Need.WAITING
    return Need.UNJUDGED if own is Severity.UNJUDGED else Need.OK
