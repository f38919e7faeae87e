"""Defines faults of how the trainer scores: its packs, its weights, its temperature. A fault takes a rank and a
seed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from omni_rl.consistency.actions import Cause
from omni_rl.models.nemotron_omni.language.attention import Attention
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mamba import MambaMixer
from omni_rl.train import scoring
from omni_rl.train import worker as worker_room
from omni_rl.train.types import Score
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault

TEMPERATURES = (0.6, 0.8, 1.2, 1.3)
STRAY = 1e-3
"""The part of each weight by which an update that is not counted moves it."""


def temperature_ignored(worker: Any, seed: int) -> None:
    """Score answers at temperature 1, whatever they were sampled at."""
    patches.replace(scoring, "temperatures", lambda original: lambda rollouts: torch.ones_like(original(rollouts)))


def leaking(kind: type[torch.nn.Module], worker: Any, seed: int) -> None:
    """Have modules of a kind take a whole pack for one sequence."""

    def whole(original: Any) -> Callable[..., Any]:
        def forward(states: torch.Tensor, layout: PackedLayout) -> Any:
            return original(states, PackedLayout.of(torch.tensor([0, len(states)], device=states.device)))

        return forward

    for module in worker.model.modules():
        if isinstance(module, kind):
            patches.replace(module, "forward", whole)


def stray_update(worker: Any, seed: int) -> None:
    """Move the weights without a new version."""
    with torch.no_grad():
        for parameter in worker.model.parameters():
            parameter.mul_(1 + STRAY)


def scores_swapped(worker: Any, seed: int) -> None:
    """Swap the scores of two answers of a pack that are equally long."""

    def instead(original: Any) -> Callable[..., list[Score]]:
        return lambda *given, **named: _swapped(original(*given, **named))

    patches.replace(worker_room, "score_pack", instead)


def _swapped(scores: Sequence[Score]) -> list[Score]:
    found = list(scores)
    for first in range(0, len(found) - 1, 2):
        pair = found[first], found[first + 1]
        if len(pair[0].logprobs) == len(pair[1].logprobs):
            found[first] = replace(pair[0], logprobs=pair[1].logprobs)
            found[first + 1] = replace(pair[1], logprobs=pair[0].logprobs)
    return found


POSTPROCESSING, PACKING = (Cause.LOGPROB_POSTPROCESSING,), (Cause.TRAIN_PACKING,)
FAULTS = (
    *(
        Fault(f"temperature {at:g}, ignored", POSTPROCESSING, temperature_ignored, side="trainer", temperature=at)
        for at in TEMPERATURES
    ),
    Fault("attention leaks over a pack", PACKING, partial(leaking, Attention), side="trainer"),
    Fault("state leaks over a pack", PACKING, partial(leaking, MambaMixer), side="trainer"),
    Fault(
        "stray trainer update",
        (Cause.CORRUPT_WEIGHTS, Cause.STALE_WEIGHTS),
        stray_update,
        "after VERIFY",
        side="trainer",
        proven=True,
    ),
    Fault("samples' scores swapped", (Cause.SAMPLE_PAIRING,), scores_swapped, side="trainer"),
)
