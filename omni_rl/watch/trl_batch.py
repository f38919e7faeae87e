"""Reads TRL's batches into the form that a step's table takes."""

from collections.abc import Mapping, Sequence
from typing import Any


def padded(rows: Sequence[Sequence[float | None]], like: Any) -> Any:
    """Return rows of logprobs as a float32 tensor of `like`'s shape [B, T], padded on the right; NaN for None."""
    found = like.new_zeros(like.shape).float()
    for number, row in enumerate(rows):
        known = [float("nan") if value is None else value for value in row]
        found[number, : len(known)] = found.new_tensor(known)
    return found


def sample_names(trainer: Any, count: int) -> list[str]:
    """Return prompt/generation for this process's answers: TRL lays groups out over all processes in their order, so
    that one may begin on a process and end on the next."""
    first = trainer.accelerator.process_index * count
    return ["/".join(map(str, divmod(first + n, trainer.num_generations))) for n in range(count)]


def prompt_text(prompt: Any) -> str:
    """Return a prompt as text: itself, or the texts of its messages, a line each."""
    if isinstance(prompt, str):
        return prompt
    lines = []
    for message in prompt:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content or ""}]
        texts = [part if isinstance(part, str) else part.get("text") or f"<{part.get('type')}>" for part in parts]
        lines.append(f"{message.get('role')}: {' '.join(texts)}")
    return "\n".join(lines)


def pictures_of(handed: Sequence[Any] | None, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return each prompt's pictures: those that vLLM was handed, or, where a `rollout_func` asked vLLM in a way of its
    own, those of the data set."""
    if handed is not None and len(handed) == len(rows):
        return list(handed)
    single = ([row["image"]] if row.get("image") is not None else None for row in rows)
    return [row.get("images") or alone for row, alone in zip(rows, single, strict=True)]


def picture_token(config: Any) -> int | None:
    """Return the id whose places in a prompt's ids the model gives to its pictures; None where its configuration has
    none. A processor's own name may be another token's: Gemma 3's is that of what comes before a picture."""
    found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((token for token in found if token is not None), None)
