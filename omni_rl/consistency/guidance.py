"""What each kind of incident without a cause means, and what a person does about any incident."""

from collections.abc import Mapping
from dataclasses import dataclass

from omni_rl.consistency.actions import CAUSES, Cause
from omni_rl.consistency.incidents import IncidentKind

GUIDE = "docs/operating.md"
"""The page on which every cause, and every kind of incident without one, has a section of its own."""


@dataclass(frozen=True)
class Guidance:
    """What a kind of incident means.

    `remedy` says what a person does, where the service does not do it itself.
    """

    meaning: str
    remedy: str


OF_KIND: Mapping[IncidentKind, Guidance] = {
    "drift": Guidance(
        "The two policies part, and the cause is not known yet.",
        "Look at the run's worst samples and its figures by kind of prompt.",
    ),
    "update": Guidance(
        "An engine did not take an update of weights, or keeps what older ones computed.",
        "Look whether the update, or the adapter, reaches the engine.",
    ),
    "sync": Guidance(
        "A sync of weights failed, or is not proven. The engines serve the weights from before, which is safe and "
        "makes the data older.",
        "Ask for the sync again (`omni-rl sync`).",
    ),
    "engine": Guidance(
        "An engine, the trainer or the cluster does not answer, or a trainer ended and another took its place.",
        "A dead engine is replaced by the next sync, `omni-rl sync --source served` at once, a dead cluster by "
        "`omni-rl up`, a dead trainer by itself: with the weights of the checkpoint, so resume its job from the last "
        "saved state before the next sync.",
    ),
    "silence": Guidance(
        "The run's steps stopped coming: it ended without saying so, it hangs, or its hook posts no more.",
        "Look whether the run still runs. If it is over, say so (`POST /v1/runs/{run}/end`); if it hangs, or its hook "
        "posts no more, start it again.",
    ),
}
"""The guidance for incidents that have no cause, or none yet."""


def remedy(kind: IncidentKind, cause: str | None) -> str:
    """Return what to do about an incident."""
    return OF_KIND[kind].remedy if cause is None else CAUSES[Cause(cause)].remedy


def section(kind: IncidentKind, cause: str | None) -> str:
    """Return the section of the guide that explains an incident, by the name that links use."""
    return kind if cause is None else cause
