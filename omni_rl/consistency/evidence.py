"""What the search for a cause looks at beside logprobs, and the findings that its checks return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.actions import Cause

NAMES_IN_SENTENCE = 3
NAMED = ("tensors", "samples", "layers", "modalities")
"""The fields of a finding that list names."""


class Check(StrEnum):
    """The checks, in the order of the search: cheap ones first."""

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
"""The checks of a posted step that know a cause by a pattern of its logprobs. Other faults can show the same pattern,
so that the experiments on our own pair go before these checks."""
UNREAD = PATTERNS | {Check.VALUES}
"""The checks of a posted step whose findings do not end the search on our own pair, which can tell for sure: NaN
logprobs, for instance, may come of NaN weights."""
Result = Literal["clear", "suspicious", "explains", "not_done"]
"""The result of a check. suspicious: something is wrong there, and a later check says what it is."""


@dataclass(frozen=True)
class Finding:
    """The result of one check: a sentence, the numbers behind it, and what it names.

    `modules` has, in the order of the forward, how far each module's outputs lie apart relative to their norm, and up
    to which value that is noise.
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
        """Return the finding as JSON has it: what is empty is left out."""
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
        """Return the finding that `as_dict` made `found` of."""
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
    """The digests of one media tensor: as rendered (None: not said), as the engine's model received it and as the
    trainer's did (None: it did not)."""

    modality: str
    item: int
    name: str
    rendered: str | None
    engine: str | None
    train: str | None

    @property
    def agreed(self) -> bool:
        return self.engine == self.train and self.rendered in (None, self.engine)


@dataclass(frozen=True)
class WrongTensor:
    """A released tensor of which an engine holds `elements` otherwise than they were sent.

    `stale`: the engine holds those of the version before. `tensor` is the engine's parameter where no released tensor
    fills it.
    """

    tensor: str
    elements: int
    stale: bool


@dataclass(frozen=True)
class Audit:
    """The comparison of every byte of a replica with the weights that it says it serves."""

    replica: str
    version: str
    elements: int
    wrong: tuple[WrongTensor, ...] = ()


@dataclass(frozen=True)
class TrainerAudit:
    """The comparison of the trainer's weights, read again, with its version.

    `version` is what the trainer says that it scores with; `held` is the version of the weights that it holds.
    `tensors` are those that are not the reported version's, where these could still be read.
    """

    version: str
    held: str
    tensors: tuple[str, ...] = ()


def named(names: Sequence[str]) -> str:
    """Return the first few names for a sentence, and how many more there are."""
    more = len(names) - NAMES_IN_SENTENCE
    return ", ".join(names[:NAMES_IN_SENTENCE]) + (f" and {more} more" if more > 0 else "")


def _short(value: float) -> float:
    """Round to four digits: of hundreds of modules, more digits say nothing."""
    return float(f"{value:.4g}")


def mean_abs(values: NDArray[np.float64]) -> float:
    """Return the mean of the absolute values: 0.0 for no values, and NaN if any value is NaN."""
    return float(np.abs(values).mean()) if len(values) else 0.0
