"""One root error; every class has a stable code, which reports and the API return."""

from typing import ClassVar


class OmniRLError(Exception):
    """The root of every error that this package raises on purpose. The message names what is wrong and the fix."""

    code: ClassVar[str] = "omni_rl_error"


class ConfigError(OmniRLError, ValueError):
    """A setting is unknown, out of range or contradicts another."""

    code = "invalid_config"


class NotInstalledError(OmniRLError, ImportError):
    """A command needs a package that this installation was made without."""

    code = "not_installed"


class MediaError(OmniRLError, ValueError):
    """An image, sound or video cannot be read, or does not fit its prompt."""

    code = "invalid_media"


class PromptError(OmniRLError, ValueError):
    """A prompt is too long, or its placeholders and media do not match."""

    code = "invalid_prompt"


class CheckpointError(OmniRLError, ValueError):
    """A checkpoint lacks tensors, has extra ones, or is not safetensors; or it cannot be saved where it should be."""

    code = "invalid_checkpoint"


class SamplingError(OmniRLError, ValueError):
    """The sampling parameters would make the behaviour logprobs incomparable."""

    code = "invalid_sampling"


class WeightUpdateError(OmniRLError, RuntimeError):
    """New weights could not be applied, or the engine does not hold what was sent."""

    code = "weight_update_failed"


class LayoutError(OmniRLError, RuntimeError):
    """It cannot be stated where an engine keeps its weights, or the engine does not keep them where it was stated."""

    code = "layout_refused"


class EngineDeadError(OmniRLError, RuntimeError):
    """The engine threw inside a step; it must be replaced, never reused."""

    code = "engine_dead"


class TrainerDeadError(OmniRLError, RuntimeError):
    """A trainer rank died or failed inside a collective; the group must be started anew."""

    code = "trainer_dead"


class TrainerStoppedError(OmniRLError, RuntimeError):
    """A process of the trainer exists but is stopped or frozen: it is not dead, and goes on once it is woken up."""

    code = "trainer_stopped"


class GradientError(OmniRLError, ArithmeticError):
    """A gradient was not finite; the weights were left as they were."""

    code = "non_finite_gradient"


class SyncRunningError(OmniRLError, RuntimeError):
    """A weight sync is under way; only one runs at a time."""

    code = "sync_running"


class WeightsMovedError(OmniRLError, RuntimeError):
    """The trainer learnt while both policies were compared, again and again or without a sync after it."""

    code = "weights_moved"


class SyncRolledBackError(WeightUpdateError):
    """A weight sync did not go through: every replica that serves has the weights from before."""

    code = "sync_rolled_back"


class NonFiniteWeightsError(SyncRolledBackError):
    """New weights hold NaN or infinity, which their sync did not allow: nothing serves them."""

    code = "non_finite_weights"

    def __init__(self, message: str, tensors: tuple[str, ...] = ()) -> None:
        """`tensors` has one sentence for each tensor that holds NaN or infinity."""
        super().__init__(message)
        self.tensors = tensors


class SyncUndecidedError(OmniRLError, RuntimeError):
    """The journal could not say whether a sync was decided; gates stay closed until recovery reads it."""

    code = "sync_undecided"


class FencedError(OmniRLError, RuntimeError):
    """A command or decision came from a coordinator that a newer one has replaced."""

    code = "fenced"


class CoordinatorRunningError(OmniRLError, RuntimeError):
    """Another live process coordinates the syncs of this journal, or keeps this ledger."""

    code = "coordinator_running"


class JournalError(OmniRLError, RuntimeError):
    """The journal of weight syncs cannot be read or written."""

    code = "journal_failed"


class ReplicaDeadError(EngineDeadError):
    """A replica's process is gone."""

    code = "replica_dead"


class ReplicaStoppedError(OmniRLError, RuntimeError):
    """A replica's process exists but is stopped or frozen: it is not dead, and may wake up."""

    code = "replica_stopped"


class ReplicaSilentError(OmniRLError, TimeoutError):
    """A replica runs but did not answer a command in time."""

    code = "replica_silent"


class QuarantinedError(OmniRLError, RuntimeError):
    """A replica's weights could not be proven; the replica samples nothing until it is replaced."""

    code = "replica_quarantined"


class SlabError(OmniRLError, RuntimeError):
    """A slab is missing, not sealed, damaged, or of another run."""

    code = "slab_unusable"


class SlabFullError(SlabError):
    """Weights do not fit: the slab is too small, or its file system is full."""

    code = "slab_full"


class SlabBusyError(SlabError):
    """Another process is writing the slab."""

    code = "slab_busy"


class SlabOwnerDeadError(OmniRLError, RuntimeError):
    """The process that owns a run's slabs on a host is gone; the slabs are not, and another one adopts them."""

    code = "slab_owner_dead"


class SourceError(OmniRLError, RuntimeError):
    """A source of weights failed or died before they were complete; nothing was sealed."""

    code = "source_failed"


class UnauthenticatedError(OmniRLError, PermissionError):
    """A request came without a token, or with one that the coordinator does not know."""

    code = "unauthenticated"


class ForbiddenError(OmniRLError, PermissionError):
    """The token is known, but its scope does not reach that far."""

    code = "forbidden"


class NotFoundError(OmniRLError, LookupError):
    """There is no run, step, sample, sync or job of that name."""

    code = "not_found"


class InvalidRequestError(OmniRLError, ValueError):
    """A request's body, path or query does not say what it has to."""

    code = "invalid_request"


class TooSlowError(OmniRLError, TimeoutError):
    """A request's body comes more slowly than the coordinator waits for it."""

    code = "too_slow"


class TooLargeError(OmniRLError, ValueError):
    """A request has more bytes, pixels, frames or samples than the coordinator takes."""

    code = "too_large"


class UnsupportedMediaTypeError(OmniRLError, ValueError):
    """A request's content type is none that the route reads."""

    code = "unsupported_media_type"


class IdempotencyError(OmniRLError, ValueError):
    """An idempotency key came again with another request."""

    code = "idempotency_mismatch"


class TooManyError(OmniRLError, RuntimeError):
    """More connections, or more work at once, than the coordinator takes; try again later."""

    code = "too_many"


class RayUnavailableError(OmniRLError, ConnectionError):
    """The Ray cluster does not answer: nothing can be synced, checked, paused or submitted until it does."""

    code = "ray_unavailable"


class CoordinatorUnreachableError(OmniRLError, ConnectionError):
    """No coordinator answers at that address."""

    code = "coordinator_unreachable"


class AddressError(CoordinatorUnreachableError):
    """What answers at that address is no coordinator, nobody vouches for its certificate, or its host is unknown."""

    code = "wrong_address"


class SchemeError(AddressError):
    """The address says https where a server speaks plain HTTP, or http where it speaks https."""

    code = "wrong_scheme"


class ApiError(OmniRLError, RuntimeError):
    """The coordinator answered with an error that this client does not know."""

    code = "api_error"


class LedgerError(OmniRLError, RuntimeError):
    """The ledger cannot be opened, read or written; what was not acknowledged may or may not be in it."""

    code = "ledger_failed"


class TakenOverError(LedgerError):
    """Another coordinator keeps this ledger by now; nothing was written."""

    code = "taken_over"


class LedgerVersionError(LedgerError):
    """The ledger was written by a newer omni-rl."""

    code = "ledger_too_new"


class MediaStoreError(OmniRLError, RuntimeError):
    """Media of kept samples cannot be read or written."""

    code = "media_store_failed"


class ConflictError(OmniRLError, ValueError):
    """The same thing is already in the ledger with other content."""

    code = "conflict"


class RecordError(OmniRLError, ValueError):
    """Records of a step do not follow the published schema, or contradict themselves."""

    code = "invalid_records"


class RunPausedError(OmniRLError, RuntimeError):
    """A watched run was asked to stop where the coordinator's verdict is `pause`, and this step's verdict is."""

    code = "run_paused"


class BridgeProtocolError(OmniRLError, ValueError):
    """The coordinator and its bridge do not understand each other."""

    code = "bridge_protocol"


class ServiceError(OmniRLError, RuntimeError):
    """The service on this machine did not start, or is not running."""

    code = "service_failed"


def error_class(code: str) -> type[OmniRLError]:
    """Return the class of a code, or the root class for a code that only a newer version knows."""
    waiting = [OmniRLError]
    while waiting:
        known = waiting.pop()
        if known.__dict__.get("code") == code:
            return known
        waiting += known.__subclasses__()
    return OmniRLError
