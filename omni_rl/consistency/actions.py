"""What is done about a cause: one table of cause and severity."""

from enum import StrEnum

from omni_rl.consistency.limits import Severity


class Cause(StrEnum):
    """Why the two policies parted. `unknown` also where the search for the cause ran out of time."""

    STALE  # A sync resets the caches too.


_WEIGHTS = (Cause.STALE_WEIGHTS, Cause.CORRUPT_WEIGHTS, Cause.STALE_CACHE)
_FAULTS = (
    Cause.MEDIA_MISMATCH,
    Cause.PROMPT_MISMATCH,
    Cause.LOGPROB_POSTPROCESSING,
    Cause.TOKEN_SHIFT,
    Cause.SAMPLING_SUPPORT,
)
_ENGINE = (Cause.DECODE_PREFILL, Cause.BATCH_VARIANCE, Cause.KERNEL)
_NOISE = (Cause.ROUNDING, Cause.ROUTER)
_UNKNOWN = (Cause.UNKNOWN,)


def _row(causes: tuple[Cause, ...], warn: Action, mask: Action, pause: Action) -> dict[tuple[Cause, Severity], Action]:
    columns = {Severity.OK: Action.NONE, Severity.WARN: warn, Severity.MASK: mask, Severity.PAUSE: pause}
    return {(cause, severity): action for cause in causes for severity, action in columns.items()}


ACTIONS: dict[tuple[Cause, Severity], Action] = {
    # Bringing the weights anew is safe and takes seconds, so it need not wait for worse.
    **_row(_WEIGHTS, Action.RESYNC, Action.RESYNC, Action.RESYNC),
    # No sync mends what the two sides were given, or how logprobs were made from it.
    **_row(_FAULTS, Action.NONE, Action.HALT, Action.HALT),
    # An engine that disagrees with itself: weights can bear a little of that.
    **_row(_ENGINE, Action.NONE, Action.MASK, Action.HALT),
    **_row(_NOISE, Action.NONE, Action.MASK, Action.MASK),
    # At PAUSE: once, then halt if it persists.
    **_row(_UNKNOWN, Action.NONE, Action.MASK, Action.RESYNC),
}
