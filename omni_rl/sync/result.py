"""What a caller is told about a weight sync, and what the journal keeps of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["committed", "rolled_back"]


@dataclass(frozen=True)
class SyncResult:
    """One sync that is over. `committed`: every replica that samples has `version`, proven byte by byte.

    `version` is what the sync was to bring (empty if its source failed), `serving` what replicas sample with now.
    `elements_proven` of `elements` storage elements of an engine were read back (the smallest proof of all replicas).
    `seconds` by phase; `stall`: the longest time without a step on a replica that was in step throughout. `agreement`
    by kind of prompt, if a probe was asked for. `replaced` and `out` say why a replica was replaced, or samples
    nothing; `reason` why the sync was rolled back. `copy_rate`: bytes a second of a plain copy on the source's host, to
    compare with.
    """

    sync: str
    outcome: Outcome
    version: str
    serving: str
    tensors: int = 0
    bytes: int = 0
    elements_proven: int = 0
    elements: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    stall: float = 0.0
    agreement: Mapping[str, Mapping[str, float]] | None = None
    reason: str = ""
    mismatches: tuple[str, ...] = ()
    replaced: Mapping[str, str] = field(default_factory=dict)
    out: Mapping[str, str] = field(default_factory=dict)
    copy_rate: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SyncResult":
        return cls(**{**values, "mismatches": tuple(values["mismatches"])})
