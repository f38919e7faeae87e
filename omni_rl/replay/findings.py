"""What a replay found, as `--json` prints it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.localisation import ModuleDifference


@dataclass(frozen=True)
class TensorFound:
    """One tensor of a media item by its digests; `equal` is None where none was recorded."""

    name: str
    recorded: str | None
    rendered: str | None
    equal: bool | None


@dataclass(frozen=True)
class ItemFound:
    """One media item; `note` says what it means that a digest differs."""

    modality: str
    index: int
    tensors: tuple[TensorFound, ...]
    note: str


@dataclass(frozen=True)
class WeightsFound:
    """`checkpoint`: digest of its weights as they are served; `equal` is None where the record names no digest."""

    checkpoint: str
    recorded: tuple[str, ...]
    equal: bool | None


@dataclass(frozen=True)
class Sides:
    """Both policies' logprobs of each sampled token, `d` the trainer's less the engine's, and what |d| comes to."""

    rollout: tuple[float, ...]
    train: tuple[float, ...]
    d: tuple[float, ...]
    abs_diff_mean: float
    abs_diff_max: float

    @classmethod
    def of(cls, rollout: NDArray[np.float64], train: NDArray[np.float64]) -> "Sides":
        d = train - rollout
        lists = tuple(rollout.tolist()), tuple(train.tolist()), tuple(d.tolist())
        return cls(*lists, float(np.abs(d).mean()), float(np.abs(d).max()))


@dataclass(frozen=True)
class Replay:
    """The prompt was rendered to the recorded ids. `recorded` at `temperature`; `now` at temperature 1: the engine's
    prefill, and the trainer.

    `agree`: whether the figures of `now` are within the limits of `dtype`; `reason` in a sentence. `modules` in the
    order of the forward; `first_outside` is the first that is outside its band.
    """

    sample: str
    step: str
    kind: str
    dtype: str
    weights: WeightsFound
    prompt_tokens: int
    media: tuple[ItemFound, ...]
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    temperature: float
    recorded: Sides
    now: Sides
    agree: bool
    reason: str
    first_outside: ModuleDifference | None
    modules: Sequence[ModuleDifference]
