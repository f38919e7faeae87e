"""The answers of a posted step made again, so that both sides can be asked about the very tokens that it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from omni_rl.errors import ConfigError, OmniRLError
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.rollout.types import Rollout, VersionSpan
from omni_rl.sync.version import same_weights

Render = Callable[[Sequence[Prompt]], Sequence[RenderedPrompt]]
Read = Callable[[Mapping[str, Any]], Prompt | None]
"""The prompt of a row whose media are still kept, by the row; None if they are not, or not as they were."""


def answers_of(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], render: Render, read: Read = lambda row: None
) -> dict[str, Rollout]:
    """The answers that can be made again, by their names: those of prompts without media from their ids alone; others
    are rendered anew, and are the same where ids and digests prove it."""
    found = {}
    for name, row in zip(names, rows, strict=True):
        if not row["ids"] or not row["prompt_ids"]:
            continue
        prompt = _prompt(name, row, render, read)
        if prompt is not None:
            found[name] = _answer(prompt, row)
    return found


def same_as_now(row: Mapping[str, Any], engine: str, trainer: str) -> bool:
    """Whether a row was sampled with the weights that the engine serves, and scored with those that the trainer has."""
    sampled = list({span["version"] for span in row["version_spans"] or []})
    try:
        return (
            len(sampled) == 1
            and same_weights(sampled[0], engine)
            and bool(row["train_version"])
            and same_weights(row["train_version"], trainer)
        )
    except ConfigError:  # another framework's name of its weights
        return False


def _prompt(name: str, row: Mapping[str, Any], render: Render, read: Read) -> RenderedPrompt | None:
    ids = np.array(row["prompt_ids"], np.int64)
    kind = row["kind"] or "text"
    if kind == "text":
        return RenderedPrompt(name, "text", ids)
    prompt = read(row)
    if prompt is None:
        return None
    try:
        (rendered,) = render([prompt])
    except OmniRLError:  # what was kept for the eye need not be what was rendered
        return None
    return replace(rendered, id=name) if _is_same(rendered, row) else None


def _is_same(rendered: RenderedPrompt, row: Mapping[str, Any]) -> bool:
    """Whether a prompt that was rendered again has the ids and the media tensors of the step's."""
    wanted = [{tensor["name"]: tensor["rendered"] for tensor in item["tensors"] or []} for item in row["media"] or []]
    return rendered.ids.tolist() == row["prompt_ids"] and [item.digests for item in rendered.items] == wanted


def _answer(prompt: RenderedPrompt, row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        prompt=prompt,
        ids=np.array(row["ids"], np.int64),
        logprobs=np.array(row["rollout_logprobs"], np.float64),
        temperature=row["temperature"] if row["temperature"] is not None else 1.0,
        version_spans=tuple(
            VersionSpan(span["version"], span["start"], span["end"], bool(span["mixed_state"]))
            for span in row["version_spans"] or []
        ),
        engine_digests=tuple(item.digests for item in prompt.items),
        experts=None,
        finish_reason="posted",
    )
