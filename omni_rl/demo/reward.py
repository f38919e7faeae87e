"""The demo's reward."""

from omni_rl.tasks.rewards import exact_digit, length


def reward(text: str, answer: str | None) -> float:
    """Exact digit where the prompt has an answer, else the answer's length."""
    return length(text, answer) if answer is None else exact_digit(text, answer)
