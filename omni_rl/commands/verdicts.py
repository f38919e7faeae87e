"""Writes a verdict as a line for the terminal."""

from omni_rl.api.steps import Verdict
from omni_rl.counting import counted


def verdict_line(verdict: Verdict) -> str:
    """Return the step, its severity, and why."""
    why = "; ".join(filter(None, (verdict.cause, verdict.sentence or verdict.reason)))
    return f"step {verdict.step:<5} {verdict.severity:<8} {counted(verdict.tokens, 'token')}; {why}"
