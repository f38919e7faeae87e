"""Reads what verl's batches hold of a step's answers. Shapes: B answers, P prompt and T answer columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omni_rl.kinds import Kind, Modality
from omni_rl.watch.table import StepValues
from omni_rl.watch.values import as_array
from omni_rl.watch.verl_config import VerlRun

MEDIA: Mapping[str, Modality] = {
    "pixel_values": "image",
    "pixel_values_videos": "video",
    "input_features": "audio",
    "audio_features": "audio",
}
"""The tensors that processors make, and the modality that each is of."""


@dataclass(frozen=True)
class Rows:
    """What the V1 trainer keeps of the rows of a batch beside their tensors: a key, uid_session_output, and tags."""

    keys: Sequence[str]
    tags: Sequence[Mapping[str, Any]]


def step_values(data: Any, run: VerlRun | None, step: int | None, rows: Rows | None) -> StepValues:
    """Return what a `DataProto` that holds both logprobs says of a step. The older trainer's has prompts, groups and
    rewards too; for the V1 trainer's, `rows` knows the groups and the weights that sampled. Tensors are the batch's
    own."""
    batch = data.batch
    answers = batch["responses"]
    width = answers.shape[1]
    values = StepValues(
        rollout_logprobs=batch["rollout_log_probs"],
        train_logprobs=batch["old_log_probs"],
        ids=answers,
    )
    mask, attention = batch.get("response_mask", None), batch.get("attention_mask", None)
    if mask is not None:
        values["mask"] = mask
    elif attention is not None:
        values["mask"] = attention[:, -width:]
    if attention is not None and (prompts := batch.get("prompts", None)) is not None:
        values["prompt_ids"], values["prompt_mask"] = prompts, attention[:, :-width]
    if (scores := batch.get("rm_scores", None)) is not None:
        # By numpy: torch's own sum wakes its threads, which then spin at the expense of what comes next.
        values["rewards"] = as_array(scores).sum(-1)
    if run is not None:
        values["temperature"] = run.temperature
        values["logprobs_of"] = run.logprobs_of
        values["filtered"] = run.filtered
    others = data.non_tensor_batch
    if "multi_modal_inputs" in others:
        values["kinds"] = [_kind(inputs) for inputs in others["multi_modal_inputs"]]
    if rows is not None:
        values["samples"] = list(rows.keys)
        values["rollout_version"] = list(_sampled_by(rows.tags))
        if step is not None:
            # A step's answers are scored with the weights that the step before has left.
            values["train_version"] = str(step - 1)
    elif "uid" in others:
        values["groups"] = others["uid"].tolist()
    return values


def pictures_of(data: Any) -> list[list[Any]] | None:
    """Return the pictures of each answer's prompt as the data set has them, from the messages that the older trainer's
    batch holds; None where there are none."""
    prompts = data.non_tensor_batch.get("raw_prompt", ())
    found = [[part.get("image") for message in prompt for part in _images(message)] for prompt in prompts]
    return found if any(found) else None


def _images(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if part.get("type") == "image"] if isinstance(content, list) else []


def _sampled_by(tags: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the weights that sampled each answer; empty where several did, because the tags do not say which sampled
    which token."""
    for tag in tags:
        first, last = tag.get("min_global_steps"), tag.get("max_global_steps")
        yield str(first) if first is not None and first == last else ""


def _kind(inputs: Mapping[str, Any]) -> Kind:
    media = {MEDIA[name] for name in inputs if name in MEDIA}
    return "text" if not media else media.pop() if len(media) == 1 else "mixed"
