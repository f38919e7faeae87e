"""Every setting in one frozen tree, read from a TOML file, then the environment, then flags. This module imports no
torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from omni_rl.files.toml import read_toml
from omni_rl.policies.settings import NodesSettings
from omni_rl.service.settings import SMALL_CHECKPOINT as SMALL_CHECKPOINT
from omni_rl.service.settings import ServeSettings, UpSettings
from omni_rl.settings import NumericsSettings, validated

PREFIX = "OMNI_RL_"


class DemoSettings(NumericsSettings):
    """The demo: each step samples `prompts_per_kind` prompts of each of the five kinds, with `max_tokens` tokens each.

    `replicas` engines share the prompts of a step, `world_size` ranks train.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = SMALL_CHECKPOINT
    steps: int = Field(default=6, ge=1)
    seed: int = Field(default=0, ge=0)
    out: Path = Path("runs/demo")
    prompts_per_kind: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=32, ge=1)
    replicas: int = Field(default=1, ge=1)
    world_size: int = Field(default=2, ge=1)
    nodes: NodesSettings = NodesSettings()
    learning_rate: float = Field(default=1e-3, gt=0)
    port: int = Field(default=8400, ge=0, le=65535)
    """The dashboard's port with `--serve`; 0 takes any that is free."""


class Settings(BaseModel):
    """The whole tree of settings, with one section for each command that has settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    demo: DemoSettings = DemoSettings()
    up: UpSettings = UpSettings()
    serve: ServeSettings = ServeSettings()


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of `file` (TOML), overridden by `OMNI_RL_SECTION__NAME` variables, and those by `flags`
    ({"section.name": value}; None leaves a setting as it is).

    Raises `ConfigError`, which lists every unknown or invalid setting by name.
    """
    tree = {} if file is None else read_toml(file)
    for name, value in os.environ.items():
        if name.startswith(PREFIX) and "__" in name:
            _set(tree, name.removeprefix(PREFIX).lower().split("__"), value)
    for path, value in (flags or {}).items():
        if value is not None:
            _set(tree, path.split("."), value)
    return validated(Settings, tree)


def _set(tree: dict[str, Any], path: list[str], value: object) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
