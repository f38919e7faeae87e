"""What the search for a cause looks at beside logprobs, and what a check finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.actions import Cause

NAMES_IN_SENTENCE = 3
NAMED = ("tensors", "samples", "layers", "modalities")
"""What a finding may name, by the names of its fields."""


class Check(StrEnum):
    """In the order of the search: cheap ones first."""

    VALUES = "values"
    IMPOSSIBLE = "impossible"
    PLACEHOLDERS = "placeholders"
    VERSIONS = "versions"
    MEDIA = "media"
    PROMPT = "prompt"
    WEIGHTS = "weights"
    TRAINER_WEIGHTS = "trainer_weights"
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
    PACKED_AGAINST_ALONE = "packed_vs_alone"
    TRAINER_REPORTED = "trainer_reported"
    ENGINE_REPORTED = "engine_reported"
    BATCH_AGAINST_ALONE = "batch_vs_alone"
    PREFILL_AGAINST_DECODE = "prefill_vs_decode"
    TRAIN_AGAINST_PREFILL = "train_vs_prefill"
    REFERENCE = "reference"
    ROUTER = "router"
    LOCALISATION = "localisation"


PATTERNS = frozenset({Check.PENALTY, Check.TEMPERATURE, Check.SUPPORT, Check.GROWTH, Check.ROUNDING})
"""Checks of a posted step that know a cause by a pattern of its logprobs: other faults can show it too, so that what
our own pair can be asked goes before them."""
UNREAD = PATTERNS | {Check.VALUES}
"""Checks of a posted step that leave open what our own pair can say for sure: values that are no numbers may come of
weights that are none."""
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
            **{name: list(getattr(self, name)) for name in NAMED},
            "modules": {name: [_short(value) for value in found] for name, found in self.modules.items()},
        }
        found = {"check": str(self.check), "result": self.result, "sentence": self.sentence}
        return found | {name: value for name, value in parts.items() if value not in (None, [], {})}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> "Finding":
        """The finding that `as_dict` made an entry of."""
        check, cause = Check(found["check"]), found.get("cause")
        lists = {name: tuple(found.get(name, ())) for name in NAMED}
        return cls(
            check,
            found["result"],
            found["sentence"],
            None if cause is None else Cause(cause),
            {name: value for name, value in found.items() if isinstance(value, int | float)},
            modules={name: (relative, band) for name, (relative, band) in found.get("modules", {}).items()},
            **lists,
        )


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


@dataclass(frozen=True)
class TrainerAudit:
    """The trainer's weights, read again. `version`: what it says that it scores with; `held`: the version of the
    weights that it holds. `tensors`: those that are not the reported version's, where these could still be read."""

    version: str
    held: str
    tensors: tuple[str, ...] = ()


def named(names: Sequence[str]) -> str:
    """The first few, for a sentence."""
    more = len(names) - NAMES_IN_SENTENCE
    return ", ".join(names[:NAMES_IN_SENTENCE]) + (f" and {more} more" if more > 0 else "")


def _short(value: float) -> float:
    """Of hundreds of modules: more digits say nothing."""
    return float(f"{value:.4g}")


def mean_abs(values: NDArray[np.float64]) -> float:
    """The mean of the absolute values: 0.0 for no values, and NaN if any value is NaN."""
    return float(np.abs(values).mean()) if len(values) else 0.0
