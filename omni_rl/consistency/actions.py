"""What is done about a cause: one table of cause and severity."""

from enum import StrEnum

from omni_rl.consistency.limits import Severity


class Cause(StrEnum):
    """Why the two policies parted. `unknown` also where the search for the cause ran out of time."""

    STALE_WEIGHTS = "stale_weights"
    CORRUPT_WEIGHTS = "corrupt_weights"
    STALE_CACHE = "stale_cache"
    MEDIA_MISMATCH = "media_mismatch"
    PROMPT_MISMATCH = "prompt_mismatch"
    LOGPROB_POSTPROCESSING = "logprob_postprocessing"
    TOKEN_SHIFT = "token_shift"  # noqa: S105 - no password
    SAMPLING_SUPPORT = "sampling_support"
    SAMPLE_PAIRING = "sample_pairing"
    LOSS_MASK = "loss_mask"
    NONFINITE_LOGPROBS = "nonfinite_logprobs"
    IMPOSSIBLE_LOGPROBS = "impossible_logprobs"
    DECODE_PREFILL = "decode_prefill"
    BATCH_VARIANCE = "batch_variance"
    TRAIN_PACKING = "train_packing"
    KERNEL = "kernel"
    ROUTER = "router"
    ROUNDING = "rounding"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """none: recorded, nothing more. resync: the weights are brought anew, then checked. halt: the gate stays closed
    until a person opens it. mask: the loss gets weights, and the run goes on."""

    NONE = "none"
    MASK = "mask"
    RESYNC = "resync"
    HALT = "halt"


# A sync resets the caches too.
WEIGHTS = (Cause.STALE_WEIGHTS, Cause.CORRUPT_WEIGHTS, Cause.STALE_CACHE)
FAULTS = (
    Cause.MEDIA_MISMATCH,
    Cause.PROMPT_MISMATCH,
    Cause.LOGPROB_POSTPROCESSING,
    Cause.TOKEN_SHIFT,
    Cause.SAMPLING_SUPPORT,
    Cause.SAMPLE_PAIRING,
    Cause.LOSS_MASK,
    Cause.NONFINITE_LOGPROBS,
    Cause.IMPOSSIBLE_LOGPROBS,
    Cause.TRAIN_PACKING,
)
ENGINE = (Cause.DECODE_PREFILL, Cause.BATCH_VARIANCE, Cause.KERNEL)
NOISE = (Cause.ROUNDING, Cause.ROUTER)


def _row(causes: tuple[Cause, ...], warn: Action, mask: Action, pause: Action) -> dict[tuple[Cause, Severity], Action]:
    columns = {
        Severity.UNJUDGED: Action.NONE,
        Severity.OK: Action.NONE,
        Severity.WARN: warn,
        Severity.MASK: mask,
        Severity.PAUSE: pause,
    }
    return {(cause, severity): action for cause in causes for severity, action in columns.items()}


ACTIONS: dict[tuple[Cause, Severity], Action] = {
    # Bringing the weights anew is safe and takes seconds, so it need not wait for worse.
    **_row(WEIGHTS, Action.RESYNC, Action.RESYNC, Action.RESYNC),
    # No sync mends what the two sides were given, how logprobs were made from it, or what a pack's answers leak.
    **_row(FAULTS, Action.NONE, Action.HALT, Action.HALT),
    # An engine that disagrees with itself: weights in the loss can bear a little of that.
    **_row(ENGINE, Action.NONE, Action.MASK, Action.HALT),
    **_row(NOISE, Action.NONE, Action.MASK, Action.MASK),
    # At PAUSE: once, then halt if it persists.
    **_row((Cause.UNKNOWN,), Action.NONE, Action.MASK, Action.RESYNC),
}
