"""Makes a step's records from a trainer's arrays, for live hooks and for readers of dumps alike."""

import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Required, TypeAlias, TypedDict

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from omni_rl.consistency.dtypes import Dtype
from omni_rl.consistency.posted.step import LogprobsOf
from omni_rl.counting import counted
from omni_rl.errors import RecordError
from omni_rl.ledger.schema import RecordLimits
from omni_rl.watch.values import Numbers, as_array, floats_of, rows_of

EACH_TOKEN = (
    "rollout_logprobs",
    "train_logprobs",
    "ids",
    "tool_mask",
    "token_texts",
    "rollout_entropy",
    "train_entropy",
    "rollout_top_ids",
    "rollout_top_logprobs",
)
"""The values that have one entry for each token of an answer."""
TOP = ("rollout_top_ids", "rollout_top_logprobs")
"""The values whose entry for a token is k numbers."""
UNKEPT = re.compile("[\0\ud800-\udfff]")
"""The characters that the schema takes in no text: NUL, and the halves of surrogate pairs."""
LONGEST = RecordLimits().text
"""The most bytes of a text."""
Versions: TypeAlias = str | int | Sequence[str | int]
"""The name or number of the weights that all answers are of, or one an answer."""


class StepValues(TypedDict, total=False):
    """What a trainer knows of a step of B answers. Arrays may be numpy, torch or lists; see `watch.values`.

    `rollout_logprobs`, `train_logprobs` are of each sampled token by the engine and by the trainer, at the temperature.
    `mask` says which columns hold a token that counts; what lies before the first and after the last of a row is
    padding. Rows of their own lengths need none. `tool_mask` is 1 where the policy sampled the token, 0 where a tool or
    the environment wrote it. `ids` are the tokens. `prompt_ids` with `prompt_mask` are the prompts as the trainer ran
    them; `rollout_prompt_ids` as the engine ran them, where that is known by itself. `groups` says which prompt an
    answer is of; `samples` are the answers' own names, which else are prompt/generation, or the row numbers. `kinds`,
    `temperature`, `logprobs_of`, `filtered`, `train_version` have one value for all, or one an answer; so has
    `rollout_version`, the weights that sampled; versions are names or numbers. `rollout_entropy`, `train_entropy` are
    of each side's distribution at each token, in nats. `rollout_top_ids`, `rollout_top_logprobs` [B, T, k] are the
    engine's k likeliest ids for each token and their logprobs. `rollout_dtype`, `train_dtype` are what each side
    computed in, as it says itself. `rewards` is [B]; `prompt_text` has B texts, which are cut to 1 MiB, and
    `token_texts` one for each token. `media` is a list of items an answer, as `omni_rl.ledger.schema` has them.
    """

    rollout_logprobs: Required[Numbers]
    train_logprobs: Required[Numbers]
    mask: Numbers | None
    tool_mask: Numbers | None
    ids: Numbers | None
    prompt_ids: Numbers | None
    prompt_mask: Numbers | None
    rollout_prompt_ids: Numbers | None
    rollout_entropy: Numbers | None
    train_entropy: Numbers | None
    rollout_top_ids: Numbers | None
    rollout_top_logprobs: Numbers | None
    groups: Sequence[Any] | Numbers | None
    samples: Sequence[str] | None
    kinds: str | Sequence[str]
    rewards: Any
    temperature: Any
    logprobs_of: LogprobsOf | Sequence[LogprobsOf] | None
    filtered: str | Sequence[str] | None
    rollout_dtype: Dtype | None
    train_dtype: Dtype | None
    rollout_version: Versions | None
    train_version: Versions | None
    prompt_text: Sequence[str | None] | None
    token_texts: Sequence[Sequence[str]] | None
    media: Sequence[Sequence[Mapping[str, Any]]] | None


def step_rows(values: StepValues) -> list[dict[str, Any]]:
    """Return a record of the published schema (`omni_rl.ledger.schema`) for each answer; padding is left out.

    Raises:
        RecordError: Values do not fit together; the error names the values and the row.
    """
    if unknown := sorted(values.keys() - StepValues.__annotations__.keys()):
        raise RecordError(f"a step has no {', '.join(unknown)}; it may have {', '.join(StepValues.__annotations__)}")
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    for name in ("rollout_logprobs", "train_logprobs"):
        if name not in given:
            raise RecordError(f"{name} is missing")
    rollout = rows_of("rollout_logprobs", given["rollout_logprobs"])
    count = len(rollout)
    tokens: dict[str, list[Any]] = {name: _token_rows(name, given[name]) for name in EACH_TOKEN if name in given}
    mask = [row.astype(np.bool_) for row in rows_of("mask", given["mask"])] if "mask" in given else None
    for name, rows in (*tokens.items(), *([("mask", mask)] if mask is not None else [])):
        _fits(name, rows, rollout)
    names, kinds = _names(given, count), _each("kinds", given.get("kinds", "text"), count)
    records: list[dict[str, Any]] = [{"sample": names[n], "kind": kinds[n]} for n in range(count)]
    if mask is None:
        mask = [np.ones(len(row), np.bool_) for row in rollout]
    for n, record in enumerate(records):
        span = _span(mask[n])
        for name, rows in tokens.items():
            if name != "tool_mask":
                record[name] = rows[n][span].ravel() if name in TOP else rows[n][span]
        counts = mask[n][span]
        if "tool_mask" in tokens:
            counts = counts & tokens["tool_mask"][n][span].astype(np.bool_)
        if not counts.all():
            record["loss_mask"] = counts
    _add_prompts(records, given)
    _add_versions(records, given)
    for name, column in (("rewards", "reward"), ("temperature", "temperature")):
        if name in given:
            _add(records, column, floats_of(name, given[name], count))
    for name in ("logprobs_of", "filtered", "rollout_dtype", "train_dtype"):
        if name in given:
            _add(records, name, _each(name, given[name], count))
    if "prompt_text" in given:
        _add(records, "prompt_text", [_kept_text(text) for text in _each("prompt_text", given["prompt_text"], count)])
    if "media" in given:
        _add(records, "media", [list(items) or None for items in _each("media", given["media"], count)])
    return records


def prompt_digest(ids: NDArray[Any]) -> str:
    """Return the digest that names a prompt by its token ids, whatever integers they are held in."""
    return blake3(np.ascontiguousarray(ids, np.int64).tobytes()).hexdigest()


def _token_rows(name: str, values: Any) -> list[Any]:
    if name == "token_texts":
        return [list(row) for row in values]
    return rows_of(name, values, dimensions=2 if name in TOP else 1)


def _fits(name: str, rows: Sequence[Any], rollout: Sequence[Any]) -> None:
    if len(rows) != len(rollout):
        raise RecordError(f"{name} has {counted(len(rows), 'row')}, rollout_logprobs {len(rollout)}")
    for n, (row, other) in enumerate(zip(rows, rollout, strict=True)):
        if len(row) != len(other):
            raise RecordError(f"{name} has {counted(len(row), 'value')} in row {n}, rollout_logprobs {len(other)}")


def _span(mask: NDArray[np.bool_]) -> slice:
    """Return the columns of the answer: from the first that counts to the last. A tool's tokens between them are part
    of it."""
    at = np.flatnonzero(mask)
    return slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)


def _names(given: Mapping[str, Any], count: int) -> list[str]:
    if "samples" in given:
        return [str(name) for name in _each("samples", given["samples"], count)]
    if "groups" not in given:
        return [str(n) for n in range(count)]
    groups = given["groups"]
    groups = groups if isinstance(groups, list | tuple) else as_array(groups).tolist()
    if len(groups) != count:
        raise RecordError(f"{counted(len(groups), 'group')} for {counted(count, 'answer')}")
    names, seen = [], dict.fromkeys(groups, 0)
    for group in groups:
        names.append(f"{group}/{seen[group]}")
        seen[group] += 1
    return names


def _add_prompts(records: Sequence[dict[str, Any]], given: Mapping[str, Any]) -> None:
    trainer = _prompts(given["prompt_ids"], given.get("prompt_mask")) if "prompt_ids" in given else None
    engine = rows_of("rollout_prompt_ids", given["rollout_prompt_ids"]) if "rollout_prompt_ids" in given else None
    for name, digests, prompts in (
        ("rollout_prompt_ids", "rollout_prompt_digest", engine),
        ("prompt_ids", "train_prompt_digest", trainer),
    ):
        if prompts is not None:
            if len(prompts) != len(records):
                raise RecordError(f"{name} has {counted(len(prompts), 'row')} for {counted(len(records), 'answer')}")
            _add(records, "prompt_ids", prompts)
            if engine is not None:
                _add(records, digests, [prompt_digest(row) for row in prompts])


def _prompts(ids: Any, mask: Any) -> list[NDArray[Any]]:
    rows = rows_of("prompt_ids", ids)
    if mask is None:
        return rows
    there = rows_of("prompt_mask", mask)
    _fits("prompt_mask", there, rows)
    return [row[here.astype(np.bool_)] for row, here in zip(rows, there, strict=True)]


def _add_versions(records: Sequence[dict[str, Any]], given: Mapping[str, Any]) -> None:
    if "train_version" in given:
        _add(records, "train_version", _versions("train_version", given["train_version"], len(records)))
    if "rollout_version" not in given:
        return
    versions = _versions("rollout_version", given["rollout_version"], len(records))
    for record, version in zip(records, versions, strict=True):
        if length := len(record["rollout_logprobs"]):
            record["version_spans"] = [{"version": version, "start": 0, "end": length}]


def _versions(name: str, values: Any, count: int) -> list[Any]:
    """Return one version an answer; numbers become text."""
    if not isinstance(values, str | list | tuple):
        values = as_array(values).tolist()
    if isinstance(values, Real):
        values = str(values)
    return [str(value) if isinstance(value, Real) else value for value in _each(name, values, count)]


def _kept_text(text: Any) -> Any:
    """Return a text as the schema takes it: an odd text of a data set must not cost the step. What is no text stays as
    it is."""
    if not isinstance(text, str):
        return text
    content = UNKEPT.sub("\ufffd", text).encode()
    return content[:LONGEST].decode(errors="ignore")


def _add(records: Sequence[dict[str, Any]], column: str, values: Sequence[Any]) -> None:
    for record, value in zip(records, values, strict=True):
        record[column] = value


def _each(name: str, values: Any, count: int) -> list[Any]:
    """Return one value an answer, from that many or from one word for all."""
    if isinstance(values, str):
        return [values] * count
    if len(values) != count:
        raise RecordError(f"{name} has {counted(len(values), 'value')} for {counted(count, 'answer')}")
    return list(values)
