"""Describes what a caller receives of a weight sync, and what the journal stores of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from omni_rl.sync.manifest import Origin

Outcome = Literal["committed", "rolled_back"]


@dataclass(frozen=True)
class SyncResult:
    """One sync that is over. `committed`: every replica that samples has `version`, proven byte by byte.

    `version` is what the sync was to bring (empty if its source failed), `serving` what replicas sample with now.
    `elements_proven` of `elements` storage elements of an engine were read back (the smallest proof of all replicas).
    `seconds` is by phase; `stall` is the longest time without a step on a replica that took part from beginning to end.
    `agreement` is by kind of prompt, if a probe was asked for. `replaced` and `out` say why a replica was replaced, or
    samples nothing; `reason` says why the sync was rolled back. `copy_rate` is the bytes a second of a plain copy on
    the source's host, to compare with.

    `origin` says whose weights they are (None: their source did not say). `nonfinite` has a sentence for each of their
    tensors that holds NaN or infinity, which is why the sync was rolled back unless `allow_nonfinite` was set.
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
    origin: Origin | None = None
    nonfinite: tuple[str, ...] = ()
    allow_nonfinite: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SyncResult":
        """Read a result that this version wrote, or an earlier one, which had fewer fields."""
        sentences = {name: tuple(values.get(name, ())) for name in ("mismatches", "nonfinite")}
        return cls(**{**values, **sentences})
