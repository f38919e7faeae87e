"""A verdict as a line of a terminal."""

from omni_rl.api.steps import Verdict


def verdict_line(verdict: Verdict) -> str:
    """Returns the step, what it amounts to, and why."""
    why = "; ".join(filter(None, (verdict.cause, verdict.sentence or verdict.reason)))
    return f"step {verdict.step:<5} {verdict.severity:<8} {verdict.tokens} tokens; {why}"
