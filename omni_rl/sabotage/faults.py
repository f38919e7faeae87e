"""The faults, and what is right to say and to do about each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from omni_rl.consistency.actions import Cause
from omni_rl.sabotage import inputs, outputs, weights

Moment = Literal["before VERIFY", "vouched for", "after VERIFY", "from then on"]
"""before VERIFY: the next sync goes wrong, and its proof is asked. vouched for: the same, but the proof is replaced by
one that finds nothing. after VERIFY: a serving engine is damaged. from then on: until it is taken out."""
Put = Callable[[Any, int], None]


@dataclass(frozen=True)
class Fault:
    """`put` takes an engine, or a rank of the trainer, and a seed. `causes`: what it may be called.

    `replicas`: all engines, or the last one. `proven`: digests or bytes show it, whatever the logprobs do.
    """

    name: str
    causes: tuple[Cause, ...]
    put: Put
    moment: Moment = "from then on"
    side: Literal["engine", "trainer"] = "engine"
    replicas: Literal["all", "last"] = "all"
    temperature: float = 1.0
    proven: bool = True

    @property
    def key(self) -> str:
        return f"{self.name} ({self.moment})"


def _in_sync(name: str, put: Put, cause: Cause, replicas: Literal["all", "last"] = "all") -> list[Fault]:
    """A sync that goes wrong: once with its proof, once past it."""

    def vouched(engine: Any, seed: int) -> None:
        put(engine, seed)
        weights.vouch(engine)

    return [
        Fault(name, (cause,), put, "before VERIFY", replicas=replicas),
        Fault(name, (cause,), vouched, "vouched for", replicas=replicas),
    ]


def _damage(name: str, damage: Put) -> list[Fault]:
    """Weights that are damaged while a sync writes them, and while they are served."""
    return [
        Fault(name, (Cause.CORRUPT_WEIGHTS,), partial(weights.before_verify, damage), "before VERIFY"),
        Fault(name, (Cause.CORRUPT_WEIGHTS,), damage, "after VERIFY"),
    ]


def _trainer(name: str, cause: Cause, put: Put, *, proven: bool = True) -> Fault:
    return Fault(name, (cause,), put, side="trainer", proven=proven)


STALE, MEDIA, PROMPT = Cause.STALE_WEIGHTS, Cause.MEDIA_MISMATCH, Cause.PROMPT_MISMATCH

FAULTS: tuple[Fault, ...] = (
    *_in_sync("one replica stale", weights.skip, STALE, "last"),
    *_in_sync("sync skipped", weights.skip, STALE),
    *_in_sync("mixer.D not written", partial(weights.never_written, ".mixer.D"), STALE),
    *_in_sync("projector left stale", partial(weights.never_written, "mlp1."), STALE),
    *_in_sync("half an update", weights.half, STALE),
    *_damage("tensor zeroed", weights.zero),
    *_damage("conv weights overwritten", weights.overwrite_conv),
    *_damage("query and key swapped", weights.swap_query_and_key),
    *_damage("experts permuted", weights.permute_experts),
    *_damage("router bias rounded", weights.round_router_bias),
    *_damage("one bit flipped", weights.flip_bit),
    *_damage("NaN in one weight", weights.not_a_number),
    Fault("encoder cache stale", (Cause.STALE_CACHE,), outputs.encoder_cache_kept, "before VERIFY", proven=False),
    _trainer("image dropped", MEDIA, inputs.image_dropped, proven=False),
    _trainer("fixed grid, not dynamic", MEDIA, inputs.other_grid),
    _trainer("normalised twice", MEDIA, inputs.normalised_twice, proven=False),
    _trainer("one frame missing", MEDIA, inputs.frame_missing),
    _trainer("audio scaled", MEDIA, inputs.audio_scaled),
    _trainer("audio a frame longer", MEDIA, inputs.audio_longer),
    _trainer("placeholder off by one", PROMPT, inputs.placeholder_off),
    _trainer("another chat template", PROMPT, inputs.other_template),
    _trainer("sound encoder scales its input", Cause.KERNEL, inputs.sound_rescaled, proven=False),
    Fault("raw logprobs", (Cause.LOGPROB_POSTPROCESSING,), outputs.raw_logprobs, temperature=0.7, proven=False),
    Fault("logprobs shifted by one", (Cause.TOKEN_SHIFT,), outputs.shifted, proven=False),
    Fault("top-p, untold", (Cause.SAMPLING_SUPPORT,), outputs.top_p, proven=False),
    Fault("decode state in bfloat16", (Cause.DECODE_PREFILL,), outputs.rounded_state, proven=False),
)

UNPROVEN = {
    "prefix cache stale": "vLLM's prefix cache crashes with Mamba on CPU, so engines run without one: there is nothing "
    "to be stale"
}
"""What is asked for and cannot be put into a run here."""
