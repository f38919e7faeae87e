"""Turns a step's records into figures, a judgement and weights; runs in a worker thread, with numpy alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omni_rl.api.steps import VERDICT_KEY, SampleWeights
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import StepComparison, compare_each
from omni_rl.consistency.corrections import Correction, weights
from omni_rl.consistency.evidence import Finding
from omni_rl.consistency.limits import Judgement
from omni_rl.consistency.posted.explain import Explanation
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.verdict import judge_posted
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.ledger.lists import single
from omni_rl.ledger.posted import posted_step
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import WorstSamples
from omni_rl.ledger.wire import as_stream

LEFT_OVER = frozenset({Cause.UNKNOWN, Cause.STALE_WEIGHTS, Cause.ROUNDING, Cause.KERNEL, Cause.ROUTER})
"""The causes that nothing in a step's records proves."""
Ranks = NDArray[np.int64]
"""Which rank posted each sample of a step, int64 [N]."""


@dataclass(frozen=True)
class Judged:
    """A judged step. `worst` are the numbers of the samples that are furthest apart, worst first. `explanation` is
    there for a step that is not ok. `history` is the attempt's, with this step. `flips` are by MoE layer, None where no
    choices were posted. `versions` are the weights that sampled the step."""

    columns: StepColumns
    ranks: Ranks
    comparison: StepComparison
    judgement: Judgement
    explanation: Explanation | None
    history: History
    worst: tuple[int, ...]
    kept: WorstSamples
    flips: tuple[int, ...] | None
    versions: tuple[str, ...]


@dataclass(frozen=True)
class StepWeights:
    """The weights of a step's tokens. `values` is float32, token by token of the step's columns; 0 where the loss mask
    is."""

    method: str
    values: NDArray[np.float32]
    clipped_fraction: float
    effective_sample_size: float


def judge_step(parts: Mapping[int, StepRecords], yardstick: Yardstick, history: History, worst: int) -> Judged:
    """Reduce the parts of all ranks, in the order given, judge them, explain what is wrong, and pick the `worst`
    samples to store."""
    columns = StepColumns.joined([part.columns for part in parts.values()])
    ranks = np.repeat(np.array(list(parts), np.int64), [len(part) for part in parts.values()])
    found = judge_posted(columns, posted_step(parts, columns), yardstick, history)
    numbers = found.comparison.worst(worst)
    alone = compare_each(columns.take(numbers), yardstick.ties)
    kept = WorstSamples(tuple(ranks[numbers].tolist()), tuple(alone), _rows(tuple(parts.values()), numbers))
    versions = sorted({version for part in parts.values() for version in _versions(part)})
    flips = _flips(columns, found.comparison)
    return Judged(
        columns,
        ranks,
        found.comparison,
        found.judgement,
        found.explanation,
        found.history,
        tuple(numbers),
        kept,
        flips,
        tuple(versions),
    )


def proven(judged: Judged, fault: Finding | None) -> Judged:
    """Return the same step whose cause is `fault`, what is known to be wrong with the update that its engine sampled
    with, unless the step's records themselves prove another cause."""
    explained = judged.explanation
    if fault is None or fault.cause is None or explained is None or explained.cause not in LEFT_OVER:
        return judged
    found = Explanation(fault.cause, fault.sentence, (fault, *explained.findings))
    return replace(judged, explanation=found)


def _rows(parts: Sequence[StepRecords], numbers: Sequence[int]) -> StepRecords:
    """Return the samples of these numbers among those of all parts."""
    ends = np.cumsum([len(part) for part in parts])
    rows = [parts[0].table.slice(0, 0)]
    for number, of in zip(numbers, np.searchsorted(ends, numbers, side="right").tolist(), strict=True):
        rows.append(parts[of].table.slice(number - int(ends[of]) + len(parts[of]), 1))
    return StepRecords(pa.concat_tables(rows).combine_chunks())


def _versions(part: StepRecords) -> list[str]:
    spans = single(part.table, "version_spans").flatten()
    return [version for version in spans.field("version").unique().to_pylist() if version]


def _flips(columns: StepColumns, comparison: StepComparison) -> tuple[int, ...] | None:
    """Return the number of sequences whose first flip is in each MoE layer, or None without choices."""
    layers = max((choices.margins.shape[1] for choices in columns.choices.values()), default=None)
    if layers is None:
        return None
    at = np.array([flip.layer for flip in comparison.overall.flips], np.int64)
    return tuple(np.bincount(at, minlength=layers).tolist())


def weigh(columns: StepColumns, correction: Correction) -> StepWeights:
    """Return the weights of a step's tokens, what share of those that count was clipped or masked, and Kish's sample
    size."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity is no number, and gets no weight
        d = columns.train_logprobs - columns.rollout_logprobs
    counted = np.ones(len(d), np.bool_) if columns.loss_mask is None else columns.loss_mask
    values = weights(d, columns.offsets, counted, correction)
    used = values[counted]
    with np.errstate(over="ignore"):
        changed = used != np.exp(d[counted])
    squares = float((used**2).sum())
    size = float(used.sum()) ** 2 / (len(used) * squares) if squares > 0 else 0.0
    return StepWeights(correction.method, values.astype(np.float32), float(changed.mean()) if len(used) else 0.0, size)


def sample_weights(columns: StepColumns, ranks: Ranks, found: StepWeights) -> list[SampleWeights]:
    """Return the weights of a step's tokens, sample by sample."""
    values = found.values.tolist()
    starts, ends = columns.offsets[:-1].tolist(), columns.offsets[1:].tolist()
    bounds = zip(ranks.tolist(), columns.samples, starts, ends, strict=True)
    return [SampleWeights(rank=rank, sample=sample, weights=values[a:b]) for rank, sample, a, b in bounds]


def weights_stream(columns: StepColumns, ranks: Ranks, found: StepWeights | None, verdict: str) -> bytes:
    """Return an Arrow stream with a row for each sample: `rank`, `sample`, `weights` (null: all 1), and the verdict in
    the metadata."""
    names = pa.array(columns.samples, pa.string())
    if found is None:
        lists = pa.nulls(len(columns.samples), pa.list_(pa.float32()))
    else:
        lists = pa.ListArray.from_arrays(pa.array(columns.offsets, pa.int32()), pa.array(found.values))
    table = pa.table({"rank": ranks, "sample": names, "weights": lists})
    return as_stream(table.replace_schema_metadata({VERDICT_KEY: verdict.encode()}))
