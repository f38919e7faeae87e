"""What TRL's batches hold, in the form that a step's table takes."""

from collections.abc import Sequence
from typing import Any


def padded(rows: Sequence[Sequence[float | None]], like: Any) -> Any:
    """Returns rows of logprobs as a float32 tensor of `like`'s shape [B, T], padded on the right; NaN for None."""
    found = like.new_zeros(like.shape).float()
    for number, row in enumerate(rows):
        known = [float("nan") if value is None else value for value in row]
        found[number, : len(known)] = found.new_tensor(known)
    return found


def sample_names(trainer: Any, count: int) -> list[str]:
    """Returns prompt/generation for this process's answers: TRL lays groups out over all processes in their order, so
    that one may begin on a process and end on the next."""
    first = trainer.accelerator.process_index * count
    return ["/".join(map(str, divmod(first + n, trainer.num_generations))) for n in range(count)]


def prompt_text(prompt: Any) -> str:
    """Returns a prompt as text: itself, or the texts of its messages, a line each."""
    if isinstance(prompt, str):
        return prompt
    lines = []
    for message in prompt:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content or ""}]
        texts = [part.get("text") or f"<{part.get('type')}>" for part in parts]
        lines.append(f"{message.get('role')}: {' '.join(texts)}")
    return "\n".join(lines)
