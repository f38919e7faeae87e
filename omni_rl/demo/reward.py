"""The demo's reward."""

from omni_rl.tasks.digits import exact_digit

LONGEST = 200  # characters; 32 sampled tokens stay below it


def reward(text: str, answer: str | None) -> float:
    """Exact digit where the prompt has an answer, else the answer's length in characters over `LONGEST`, at most 1."""
    if answer is not None:
        return exact_digit(text, answer)
    return min(len(text) / LONGEST, 1.0)
