"""An operator's task: where its prompts come from and what rewards the answers. This module imports no torch."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from omni_rl.errors import ConfigError
from omni_rl.files.toml import read_toml
from omni_rl.kinds import Modality
from omni_rl.media.types import Prompt
from omni_rl.settings import StrictSettings
from omni_rl.tasks.rewards import RewardFunction

DIRECTORY = "OMNI_RL_TASKS"
"""The variable that names the directory of task files; without it, they are in the source tree's deploy/jobs."""
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
Split = Literal["train", "held_out"]


class Prompts(Protocol):
    """The prompts of a split, by number."""

    def __len__(self) -> int: ...
    def prompt(self, index: int) -> Prompt: ...


class TaskSettings(StrictSettings):
    """A task file. `prompts` names a function from split to `Prompts`, and `reward` a `RewardFunction`, as
    `module:name`.

    `media` are the modalities that every prompt must have. With `shuffled` the task is a control: the answers to one
    prompt get each other's rewards.
    """

    prompts: str = Field(pattern=IMPORT_PATH)
    reward: str = Field(pattern=IMPORT_PATH)
    media: tuple[Modality, ...] = ()
    shuffled: bool = False


@dataclass(frozen=True)
class Task:
    """A task whose functions are imported, ready to use."""

    name: str
    train: Prompts
    held_out: Prompts
    reward: RewardFunction
    media: tuple[Modality, ...]
    shuffled: bool

    def prompts(self, split: Split, numbers: list[int]) -> list[Prompt]:
        """Return the prompts of these numbers. Raises `ConfigError` for a prompt that lacks a modality of `media`."""
        found = [(self.train if split == "train" else self.held_out).prompt(number) for number in numbers]
        for prompt in found:
            lacking = [modality for modality in self.media if not prompt.media[modality]]
            if lacking:
                raise ConfigError(f"task {self.name}: prompt {prompt.id!r} has no {' and no '.join(lacking)}")
        return found


def require_task(name: str) -> None:
    """Raise `ConfigError` where this host has a directory of task files, and none of that name is in it."""
    if _directory().is_dir():
        _file(name)


def load_task(name: str) -> Task:
    """Return the task of `NAME.toml`.

    Raises:
        ConfigError: there is no such file, it is not right, or what it names cannot be imported or has no prompts.
    """
    path = _file(name)
    settings = TaskSettings(**read_toml(path))
    split: Callable[[Split], Prompts] = _imported(path, settings.prompts)
    task = Task(
        name=name,
        train=split("train"),
        held_out=split("held_out"),
        reward=_imported(path, settings.reward),
        media=settings.media,
        shuffled=settings.shuffled,
    )
    if len(task.train) == 0:
        raise ConfigError(f"task {name}: {settings.prompts} has no prompts to learn from")
    task.prompts("train", [0])
    return task


def _file(name: str) -> Path:
    path = _directory() / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _directory().glob("*.toml"))) or "none"
        raise ConfigError(f"no task {name!r} in {_directory()}; there are: {known}")
    return path


def _directory() -> Path:
    return Path(os.environ.get(DIRECTORY) or Path(__file__).parents[2] / "deploy" / "jobs")


def _imported(path: Path, name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}: {name} cannot be imported: {error}") from error
