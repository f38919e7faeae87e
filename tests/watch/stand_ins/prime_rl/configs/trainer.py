"""The configurations of a loss."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class DefaultLossConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["default"] = "default"
    kl_tau: float = 1e-3


class CustomLossConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["custom"] = "custom"
    import_path: str
    kwargs: dict[str, Any] = Field(default_factory=dict)


LossConfig = Annotated[DefaultLossConfig | CustomLossConfig, Field(discriminator="type")]
