"""The parameters in paths and queries, and their bounds."""

from typing import Annotated

from fastapi import Path, Query

from omni_rl.api.base import MAX_INT, NAME

RunPath = Annotated[str, Path(pattern=NAME, description="The run's name.", examples=["digits-grpo"])]
AttemptPath = Annotated[
    int, Path(ge=0, le=MAX_INT, description="The number of the run's attempt, from 1.", examples=[1])
]
StepPath = Annotated[int, Path(ge=0, le=MAX_INT, description="The step's number.", examples=[12])]
EnginePath = Annotated[str, Path(pattern=NAME, description="The engine's name.", examples=["rollout-0"])]
UpdatePath = Annotated[int, Path(ge=0, le=MAX_INT, description="The update's number.", examples=[12])]
MAX_ID = 2**53
"""The greatest number of a row that the ledger numbers: a browser counts exactly no further."""
IncidentPath = Annotated[int, Path(ge=1, le=MAX_ID, description="The incident's number.", examples=[7])]
CheckPath = Annotated[int, Path(ge=1, le=MAX_ID, description="The check's number.", examples=[7])]
RankPath = Annotated[int, Path(ge=0, le=65535, description="The data-parallel rank.", examples=[0])]
SamplePath = Annotated[str, Path(min_length=1, max_length=512, description="The sample's name.", examples=["p7-0"])]
LimitQuery = Annotated[int, Query(ge=1, le=10_000, description="Return at most so many.")]
