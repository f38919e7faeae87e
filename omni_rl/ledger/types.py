"""The types of what goes into the ledger and what comes out; steps are numbered within an attempt, attempts within a
run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omni_rl.api.incidents import AcknowledgementAnswer, ActionAnswer, NoteAnswer
from omni_rl.api.steps import PositionBin
from omni_rl.api.syncs import SyncPhase
from omni_rl.consistency.comparison import StepComparison
from omni_rl.consistency.figures import Metrics
from omni_rl.consistency.incidents import Figure, GoodStep, IncidentKind
from omni_rl.ledger.records import StepRecords
from omni_rl.sync.journal import SyncRecord

Stored = Literal["new", "same"]


class StepKey(NamedTuple):
    run: str
    attempt: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step} of {self.run}, attempt {self.attempt}"


@dataclass(frozen=True)
class SortKeys:
    """The values by which runs are found and sorted: how much a run needs a person (`omni_rl.consistency.need`), when
    its latest step was `sealed`, and when it is `due` to count as silent unless another step comes (None: never); times
    in Unix seconds."""

    need: int
    sealed: float | None = None
    due: float | None = None


@dataclass(frozen=True)
class Run:
    """A registered run. `config` is what it was registered with, `state` what its policy carries from one step to the
    next. `sealed` is when its `latest` step was sealed, in Unix seconds."""

    run: str
    created: float
    config: Mapping[str, Any]
    state: Any = None
    latest: StepKey | None = None
    sealed: float | None = None


@dataclass(frozen=True)
class Part:
    """One rank's records of a step, as they were acknowledged. `size` is their bytes, 0 where they were dropped."""

    rank: int
    digest: str
    samples: int
    tokens: int
    received: float
    size: int


@dataclass(frozen=True)
class NewEvent:
    kind: str
    data: Mapping[str, Any]
    run: str | None = None


@dataclass(frozen=True)
class NewIncident:
    """What was seen of an incident: a new one, or more of the open one of the same run, kind and `subject`.

    `headline` says what it is about, `why` what causes it, `action` what was done about it. `excess` is how many times
    its limit `figure` is. `attributed` says that the cause was looked for, and replaces one that was found before;
    otherwise only a worse figure brings another cause.
    """

    severity: int
    headline: str
    cause: str | None = None
    action: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    kind: IncidentKind = "drift"
    subject: str = ""
    why: str = ""
    figure: Figure | None = None
    excess: float = 0.0
    good: GoodStep | None = None
    attributed: bool = False


@dataclass(frozen=True)
class IncidentEnd:
    """The end of a run's open incidents of a `kind`, and `why` they end: those of one `subject`, or all."""

    kind: IncidentKind
    why: str
    subject: str | None = None


@dataclass(frozen=True)
class Incident:
    """An incident as the ledger has it. `told` has, by webhook, the state that was sent there last."""

    id: int
    run: str | None
    kind: IncidentKind
    subject: str
    attempt: int | None
    step: int | None
    opened: float
    changed: float
    ended: float | None
    severity: int
    cause: str | None
    headline: str
    why: str
    figure: Figure | None
    excess: float
    good: GoodStep | None
    evidence: Mapping[str, Any]
    actions: tuple[ActionAnswer, ...]
    acknowledged: AcknowledgementAnswer | None
    notes: tuple[NoteAnswer, ...]
    told: Mapping[str, str]

    @property
    def what(self) -> str:
        """What happened and why, in a few sentences."""
        return f"{self.headline} {self.why}".strip()


@dataclass(frozen=True)
class KeptCheck:
    """A stored comparison of both policies. `found` is what the check answered. `key` is the step that it was about, or
    None for the probe."""

    id: int
    at: float
    key: StepKey | None
    found: Mapping[str, Any]


@dataclass(frozen=True)
class NewState:
    """What a run's policy carries from here on, and what tells why: events, incidents that it opens or lets grow (with
    the step of `key`), and those that it ends. `place` is where the run stands among the others."""

    state: Any
    place: SortKeys
    events: tuple[NewEvent, ...] = ()
    seen: tuple[NewIncident, ...] = ()
    over: tuple[IncidentEnd, ...] = ()
    key: StepKey | None = None


@dataclass(frozen=True)
class WorstSamples:
    """The samples of a step to be stored, worst first: the rank that posted each, its figures, and their rows."""

    ranks: tuple[int, ...]
    figures: tuple[Metrics, ...]
    records: StepRecords


@dataclass(frozen=True)
class NewStep:
    """A step to be sealed. `parts` has the digest of each rank's part that it was judged from. `flips` are by MoE
    layer. `after` is what the run carries from it on, with what tells of it; None leaves the run as it is."""

    key: StepKey
    parts: Mapping[int, str]
    severity: int
    comparison: StepComparison
    samples: int
    tokens: int
    verdict: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, float | None] = field(default_factory=dict)
    weight_version: str = ""
    kept: WorstSamples | None = None
    flips: tuple[int, ...] | None = None
    after: NewState | None = None


@dataclass(frozen=True)
class StepRow:
    """A sealed step in one line; `figures` are those of all its tokens."""

    key: StepKey
    sealed: float
    severity: int
    samples: int
    tokens: int
    weight_version: str
    training: Mapping[str, float | None]
    figures: Metrics


@dataclass(frozen=True)
class KeptSample:
    """A stored sample without its tokens, known by the rank that posted it and its name; `place` 0 is the worst of its
    step."""

    rank: int
    sample: str
    kind: str
    place: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """A sealed step whole: figures by kind (`overall` among them) and by position, and the samples that are stored of
    it."""

    row: StepRow
    verdict: Mapping[str, Any]
    by_kind: Mapping[str, Metrics]
    by_position: Mapping[str, tuple[PositionBin, ...]]
    samples: tuple[KeptSample, ...]
    parts: tuple[Part, ...]
    flips: tuple[int, ...] | None


@dataclass(frozen=True)
class Sample:
    """A stored sample with its tokens: `record` has one row."""

    key: StepKey
    kept: KeptSample
    record: StepRecords


@dataclass(frozen=True)
class Timeline:
    """Figures over steps, in B buckets of `width` steps each (1: every step by itself), in order, empty ones left out.

    `first` and `last` int64 [B] are the steps that a bucket covers, inclusive; `steps` is how many sealed steps it has.
    `sealed` float64 [B] is when the last of them was sealed, in Unix seconds. `low` and `high` float64 [B] are, by
    figure, the least and the greatest value, NaN where there is none. `severity` is the worst; `broken` is the number
    of steps with logprobs that are NaN.
    """

    kind: str
    width: int
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    steps: NDArray[np.int64]
    sealed: NDArray[np.float64]
    severity: NDArray[np.int64]
    broken: NDArray[np.int64]
    low: Mapping[str, NDArray[np.float64]]
    high: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Sync:
    """A weight sync of a run, numbered in the order in which syncs began."""

    number: int
    run: str
    record: SyncRecord
    transitions: tuple[SyncPhase, ...]
