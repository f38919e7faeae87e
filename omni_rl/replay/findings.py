"""Defines what a replay found, as `omni-rl replay --json` prints it. A replay renders the prompt of a recorded sample
again, and scores its answer on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.localisation import ModuleDifference


@dataclass(frozen=True)
class TensorFound:
    """A tensor of a media item: its digest in the record and as rendered now, None where there is none. `equal` is None
    where no digest was recorded."""

    name: str
    recorded: str | None
    rendered: str | None
    equal: bool | None


@dataclass(frozen=True)
class ItemFound:
    """A media item, number `index` of its modality in the prompt. `note` says what it means that a digest differs, and
    is empty where none does."""

    modality: str
    index: int
    tensors: tuple[TensorFound, ...]
    note: str


@dataclass(frozen=True)
class WeightsFound:
    """Whether the checkpoint is the recorded one. `checkpoint` is the digest of its weights as they are served;
    `recorded` are the weight versions that the record names. `equal` is None where those have no digest."""

    checkpoint: str
    recorded: tuple[str, ...]
    equal: bool | None


@dataclass(frozen=True)
class Sides:
    """The engine's (`rollout`) and the trainer's (`train`) logprob of each sampled token in nats, `d` = train -
    rollout, and the mean and maximum of |d|."""

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
    """The result of a replay whose prompt was rendered to the recorded ids. `ids` and `texts` are the sampled tokens.
    `recorded` has the logprobs of the record, at `temperature`; `now` has those of the replay, at temperature 1, where
    the engine's are of its prefill.

    `agree` says whether the figures of `now` are within the limits of `dtype`, and `reason` says why in a sentence.
    `modules` are in the order of the forward; `first_outside` is the first whose difference exceeds its tolerance.
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
