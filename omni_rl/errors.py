"""One root error; every class has a stable code, which reports and the API return."""

from typing import ClassVar


class OmniRLError(Exception):
    """Root of everything this package raises on purpose. The message names the item and the fix."""

    code: ClassVar[str] = "omni_rl_error"


class ConfigError(OmniRLError, ValueError):
    """A setting is unknown, out of range or contradicts another."""

    code = "invalid_config"


class MediaError(OmniRLError, ValueError):
    """An image, sound or video cannot be read, or does not fit its prompt."""

    code = "invalid_media"


class PromptError(OmniRLError, ValueError):
    """A prompt is too long, or its placeholders and media do not match."""

    code = "invalid_prompt"


class CheckpointError(OmniRLError, ValueError):
    """A checkpoint lacks tensors, has extra ones, or is not safetensors."""

    code = "invalid_checkpoint"


class SamplingError(OmniRLError, ValueError):
    """Sampling parameters that would make behaviour logprobs incomparable."""

    code = "invalid_sampling"


class WeightUpdateError(OmniRLError, RuntimeError):
    """New weights could not be applied, or the engine does not hold what was sent."""

    code = "weight_update_failed"


class EngineDeadError(OmniRLError, RuntimeError):
    """The engine threw inside a step; it must be replaced, never reused."""

    code = "engine_dead"


class TrainerDeadError(OmniRLError, RuntimeError):
    """A trainer rank died or failed inside a collective; the group must be started anew."""

    code = "trainer_dead"


class GradientError(OmniRLError, ArithmeticError):
    """A gradient was not finite; the weights were left as they were."""

    code = "non_finite_gradient"
