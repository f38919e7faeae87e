"""What all bodies share."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from omni_rl.consistency.limits import Label

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_INT = 2**31 - 1
NO_NUL = r"^[^\x00]*$"
"""Of texts: what `Body` refuses, as the published schema says it."""

Name = Annotated[str, StringConstraints(pattern=NAME, max_length=64)]
Text = Annotated[str, StringConstraints(pattern=NO_NUL, max_length=1024)]
SeverityName = Label
GateName = Literal["open", "paused", "halted"]
Figures = dict[str, dict[str, float | None]]
"""Bucket to the field's metric names to values; null where a figure is not a number, or infinite."""


class Body(BaseModel):
    """A request: unknown names are refused, and so is a NUL in any text, which PostgreSQL does not take."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_nul(cls, given: Any) -> Any:
        if _has_nul(given):
            raise ValueError("a text has a NUL")
        return given


class Answer(BaseModel):
    """A response."""

    model_config = ConfigDict(frozen=True)


def _has_nul(given: Any) -> bool:
    if isinstance(given, str):
        return "\0" in given
    if isinstance(given, Mapping):
        return any(_has_nul(part) for pair in given.items() for part in pair)
    return isinstance(given, (list, tuple)) and any(map(_has_nul, given))


def example(**values: Any) -> ConfigDict:
    """For a model's `model_config`: its example in the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [values]})


def finite(figures: Mapping[str, Mapping[str, float]]) -> Figures:
    """JSON has no NaN or infinity: such a figure is null."""
    return {
        bucket: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for bucket, metrics in figures.items()
    }
