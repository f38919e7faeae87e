"""Turns a step's stored records into the form in which the checks of a posted step read them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import TensorSeen
from omni_rl.consistency.posted.step import LogprobsOf, PostedStep, Proofs, Spans, Top
from omni_rl.ledger.lists import Lists, lists, numbers, single
from omni_rl.ledger.records import StepRecords


def posted_step(parts: Mapping[int, StepRecords], columns: StepColumns) -> PostedStep:
    """Return the parts of all ranks (by rank) as one step. `columns` are the parts' columns, joined in the same order.
    A sample's name tells its rank where there are several ranks."""
    tables = [part.table for part in parts.values()]
    table = tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()
    ids, prompts = lists(single(table, "ids")), lists(single(table, "prompt_ids"))
    names = columns.samples
    if len(parts) > 1:
        names = [f"{name} of rank {rank}" for rank, part in parts.items() for name in part.samples]
    return replace(
        PostedStep.of(columns),
        samples=names,
        temperatures=numbers(pc.fill_null(single(table, "temperature"), 1.0)).astype(np.float64),
        ids=ids.numbers().astype(np.int64) if len(table) and ids.present.all() else None,
        prompts=_each(prompts) if len(table) and prompts.present.all() else None,
        proofs=_proofs(table),
        logprobs_of=_logprobs_of(table),
        filtered=not _is_empty(table, "filtered"),
        entropies=_entropies(table),
        top=_top(table, columns.tokens),
    )


def _entropies(table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the entropies of the engine and of the trainer for all tokens of the step, or None where an answer has
    none of one side."""
    names = ("rollout_entropy", "train_entropy")
    if any(single(table, name).null_count for name in names):
        return None
    engine, trainer = (lists(single(table, name)).numbers().astype(np.float64) for name in names)
    return engine, trainer


def _top(table: pa.Table, tokens: int) -> Top | None:
    """Return the engine's likeliest ids for all tokens of the step, or None where an answer has none or ranks posted
    different numbers of ids."""
    ids, logprobs = (single(table, name) for name in ("rollout_top_ids", "rollout_top_logprobs"))
    if ids.null_count or logprobs.null_count or not tokens:
        return None
    flat = lists(ids).numbers()
    k, left = divmod(len(flat), tokens)
    each = np.diff(lists(ids).offsets) == k * lists(single(table, "rollout_logprobs")).lengths
    if left or not each.all():
        return None
    return Top(flat.reshape(tokens, k), lists(logprobs).numbers().reshape(tokens, k))


def _logprobs_of(table: pa.Table) -> LogprobsOf:
    """Return which distribution the step's logprobs are of: "unknown" where its records say different things."""
    if _is_empty(table, "logprobs_of"):
        return "processed"
    said: list[LogprobsOf] = pc.fill_null(single(table, "logprobs_of"), "processed").unique().to_pylist()
    return said[0] if len(said) == 1 else "unknown"


def _each(values: Lists) -> list[NDArray[np.int64]]:
    flat = values.numbers().astype(np.int64)
    return [flat[a:b] for a, b in zip(values.offsets[:-1].tolist(), values.offsets[1:].tolist(), strict=True)]


def _proofs(table: pa.Table) -> Proofs:
    seen, apart = _tensors(table)
    return Proofs(_spans(table), _scored_by(table), seen, apart, _prompts(table), _dtypes(table))


def _dtypes(table: pa.Table) -> tuple[str, str] | None:
    """Return the engine's and the trainer's dtype in this step, or None where its records do not all say the same."""
    said = [single(table, name).drop_null().unique().to_pylist() for name in ("rollout_dtype", "train_dtype")]
    return (said[0][0], said[1][0]) if all(len(each) == 1 for each in said) else None


def _is_empty(table: pa.Table, name: str) -> bool:
    return bool(table.column(name).null_count == len(table))


def _spans(table: pa.Table) -> Spans | None:
    if _is_empty(table, "version_spans"):
        return None
    spans = lists(single(table, "version_spans"))
    answers = np.repeat(np.arange(len(table)), spans.lengths)
    first, last = (numbers(spans.flat.field(name)).astype(np.int64) for name in ("start", "end"))
    return Spans(answers, first, last, spans.flat.field("version").to_pylist())


def _scored_by(table: pa.Table) -> list[str] | None:
    if _is_empty(table, "train_version"):
        return None
    found: list[str] = pc.fill_null(single(table, "train_version"), "").to_pylist()
    return found


def _prompts(table: pa.Table) -> list[tuple[str | None, str | None]] | None:
    names = ("rollout_prompt_digest", "train_prompt_digest")
    if any(_is_empty(table, name) for name in names):
        return None
    engine, trainer = (single(table, name).to_pylist() for name in names)
    return list(zip(engine, trainer, strict=True))


def _tensors(table: pa.Table) -> tuple[int, list[tuple[int, TensorSeen]]]:
    """Return how many digests there are, and those that are not the same on both sides, each with its answer's
    number."""
    if _is_empty(table, "media"):
        return 0, []
    items = lists(single(table, "media"))
    tensors = lists(items.flat.field("tensors"))
    answers = np.repeat(np.repeat(np.arange(len(table)), items.lengths), tensors.lengths)
    places = np.concatenate([np.arange(length) for length in items.lengths]) if len(items.lengths) else np.empty(0)
    item = np.repeat(np.arange(len(tensors.lengths)), tensors.lengths)
    rendered, engine, train = (tensors.flat.field(name) for name in ("rendered", "engine", "train"))
    # Only some frameworks keep a digest of what was rendered.
    same = pc.and_(_equal(engine, train), pc.or_(pc.is_null(rendered), _equal(rendered, engine)))
    modalities = items.flat.field("modality")
    found = [
        (
            int(answers[n]),
            TensorSeen(
                modalities[int(item[n])].as_py(),
                int(places[item[n]]),
                tensors.flat.field("name")[n].as_py(),
                rendered[n].as_py(),
                engine[n].as_py(),
                train[n].as_py(),
            ),
        )
        for n in np.flatnonzero(~same.to_numpy(zero_copy_only=False)).tolist()
    ]
    return len(tensors.flat), found


def _equal(one: Any, other: Any) -> Any:
    """Return which digests are equal; two that are missing are equal too."""
    return pc.or_(pc.fill_null(pc.equal(one, other), False), pc.and_(pc.is_null(one), pc.is_null(other)))
