"""Makes the answers of a posted step again, so that both sides can be asked about the very tokens that it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from omni_rl.errors import ConfigError
from omni_rl.media.types import RenderedPrompt
from omni_rl.rollout.types import Rollout, VersionSpan
from omni_rl.sync.version import same_weights

Recall = Callable[[Sequence[str]], Sequence[Rollout]]
"""Returns the answers to prompts of these names that the trainer scored last, as far as it still has them."""


def answers_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str], recall: Recall) -> dict[str, Rollout]:
    """Return the answers that can be made again, by `names`: those that the trainer still has, where ids and digests
    prove it; and answers to prompts of text alone, from their ids. Greedy answers (temperature 0) are none of them: no
    logits give their logprobs."""
    wanted = [
        (name, row)
        for name, row in zip(names, rows, strict=True)
        if row["ids"] and row["prompt_ids"] and row["temperature"] != 0
    ]
    had = {answer.prompt.id: answer.prompt for answer in recall([row["sample"] for _, row in wanted])} if wanted else {}
    found = {}
    for name, row in wanted:
        prompt = had.get(row["sample"])
        if prompt is not None and _is_same(prompt, row):
            found[name] = _answer(replace(prompt, id=name), row)
        elif (row["kind"] or "text") == "text":
            found[name] = _answer(RenderedPrompt(name, "text", np.array(row["prompt_ids"], np.int64)), row)
    return found


def same_as_now(row: Mapping[str, Any], engine: str, trainer: str) -> bool:
    """Return whether a row was sampled with the weights that the engine serves, and scored with those that the trainer
    has."""
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


def _is_same(prompt: RenderedPrompt, row: Mapping[str, Any]) -> bool:
    """Return whether a prompt has the ids and the media tensors of the row's prompt."""
    wanted = [
        {tensor["name"]: tensor["rendered"] for tensor in item["tensors"] or [] if tensor["rendered"] is not None}
        for item in row["media"] or []
    ]
    return prompt.ids.tolist() == row["prompt_ids"] and [item.digests for item in prompt.items] == wanted


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
