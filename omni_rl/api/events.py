"""Defines events: what happened, in order; their numbers rise, and a client that knows the last one it saw misses
none."""

from typing import Any

from pydantic import Field

from omni_rl.api.base import Answer, example


class EventAnswer(Answer):
    """One event. `kind` says what happened, and so what `data` holds."""

    id: int
    at: float = Field(description="Unix seconds.")
    kind: str
    run: str | None = None
    data: dict[str, Any]

    model_config = example(
        id=4711,
        at=1795500000.0,
        kind="severity",
        run="digits-grpo",
        data={"step": 12, "before": "ok", "after": "warn", "reason": "image: gen_kl_error 0.0102 is over 0.01 (warn)"},
    )
