"""What all bodies share."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_INT = 2**31 - 1

Name = Annotated[str, StringConstraints(pattern=NAME, max_length=64)]
Text = Annotated[str, StringConstraints(max_length=1024)]
Bucket = Literal["overall", "text", "image", "audio", "video", "mixed"]
SeverityName = Literal["ok", "warn", "mask", "pause"]
GateName = Literal["open", "paused", "halted"]
Figures = dict[str, dict[str, float | None]]
"""Bucket to the field's metric names to values; null where a figure is not a number, or infinite."""

RunPath = Annotated[str, Path(pattern=NAME, description="The run's name.", examples=["digits-grpo"])]
AttemptPath = Annotated[int, Path(ge=0, le=MAX_INT, description="Which start of the run, from 1.", examples=[1])]
StepPath = Annotated[int, Path(ge=0, le=MAX_INT, description="The step's number.", examples=[12])]
RankPath = Annotated[int, Path(ge=0, le=65535, description="The data-parallel rank.", examples=[0])]
Limit = Annotated[int, Query(ge=1, le=10_000, description="At most so many.")]


class Body(BaseModel):
    """A request: unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Answer(BaseModel):
    """A response."""

    model_config = ConfigDict(frozen=True)


def example(**values: Any) -> ConfigDict:
    """For a model's `model_config`: its example in the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [values]})


def finite(figures: Mapping[str, Mapping[str, float]]) -> Figures:
    """JSON has no NaN or infinity: such a figure is null."""
    return {
        bucket: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for bucket, metrics in figures.items()
    }


Page = Annotated[int, Field(ge=0, le=2**53)]
