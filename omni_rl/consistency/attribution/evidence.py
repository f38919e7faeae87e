"""What the search for a cause looks at, and what a check finds.

Shapes: T sampled tokens of one answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.records import SampleRecord

NAMES_IN_SENTENCE = 3


class Check(StrEnum):
    """In the order of the search: cheap ones first."""

    VALUES = "values"
    IMPOSSIBLE = "impossible"
    PLACEHOLDERS = "placeholders"
    VERSIONS = "versions"
    MEDIA = "media"
    PROMPT = "prompt"
    WEIGHTS = "weights"
    TOKEN_SHIFT = "token_shift"  # noqa: S105 - no password
    SAMPLE_PAIRING = "sample_pairing"
    TRANSFORM = "transform"
    PENALTY = "penalty"
    TEMPERATURE = "temperature"
    UNIT_MEAN = "unit_mean"
    BIAS = "bias"
    POSITIONS = "positions"
    ANSWERS = "answers"
    SUPPORT = "support"
    GROWTH = "growth"
    ROUNDING = "rounding"
    BATCH_AGAINST_ALONE = "batch_vs_alone"
    PREFILL_AGAINST_DECODE = "prefill_vs_decode"
    TRAIN_AGAINST_PREFILL = "train_vs_prefill"
    REFERENCE = "reference"
    ROUTER = "router"
    LOCALISATION = "localisation"


Result = Literal["clear", "suspicious", "explains", "not_done"]
"""suspicious: something is wrong there, and a later check says what it is."""


@dataclass(frozen=True)
class Finding:
    """One check: a sentence, the numbers behind it, and what it names.

    `modules`: how far each module's outputs lie apart, relative to their norm, and up to where that is noise; in the
    order of the forward.
    """

    check: Check
    result: Result
    sentence: str
    cause: Cause | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    modules: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For the wire: what is empty is left out."""
        parts = {
            "cause": self.cause and str(self.cause),
            **{name: float(value) for name, value in self.numbers.items()},
            **{name: list(getattr(self, name)) for name in ("tensors", "samples", "layers", "modalities")},
            "modules": {name: [_short(value) for value in found] for name, found in self.modules.items()},
        }
        found = {"check": str(self.check), "result": self.result, "sentence": self.sentence}
        return found | {name: value for name, value in parts.items() if value not in (None, [], {})}


@dataclass(frozen=True)
class TensorSeen:
    """Digests of one media tensor: as rendered, as the engine's model and as the trainer's received it."""

    modality: str
    item: int
    name: str
    rendered: str | None
    engine: str | None
    train: str | None

    @property
    def agreed(self) -> bool:
        return self.rendered == self.engine == self.train


@dataclass(frozen=True)
class SampleEvidence:
    """One answer of the step that is looked into.

    `sampled_under` and `scored_with`: weight versions; empty where they were not recorded. `engine_prompt`,
    `train_prompt`: digests of the prompt's ids and of the places that take media features, as each side ran them.
    """

    record: SampleRecord
    temperature: float = 1.0
    sampled_under: tuple[str, ...] = ()
    scored_with: str = ""
    tensors: tuple[TensorSeen, ...] = ()
    engine_prompt: str | None = None
    train_prompt: str | None = None

    @property
    def d(self) -> NDArray[np.float64]:
        """Trainer's logprobs less the rollout's, [T]."""
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = self.record.train_logprobs - self.record.rollout_logprobs
        return result


@dataclass(frozen=True)
class WrongTensor:
    """`elements` of a released tensor that an engine does not hold as they were sent; `stale`: it holds those of the
    version before. `tensor` is the engine's parameter where no released one fills it."""

    tensor: str
    elements: int
    stale: bool


@dataclass(frozen=True)
class Audit:
    """Every byte of a replica, read against the weights it says it serves."""

    replica: str
    version: str
    elements: int
    wrong: tuple[WrongTensor, ...] = ()


def named(names: Sequence[str]) -> str:
    """The first few, for a sentence."""
    more = len(names) - NAMES_IN_SENTENCE
    return ", ".join(names[:NAMES_IN_SENTENCE]) + (f" and {more} more" if more > 0 else "")


def _short(value: float) -> float:
    """Of hundreds of modules: more digits say nothing."""
    return float(f"{value:.4g}")


def mean_abs(values: NDArray[np.float64]) -> float:
    """Of no values 0; of anything that is not a number, not a number."""
    return float(np.abs(values).mean()) if len(values) else 0.0
