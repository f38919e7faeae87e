"""Bad input through real actors: refused by name, and the same processes answer the next good request."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omni_rl.errors import CheckpointError, MediaError, OmniRLError, PromptError
from omni_rl.media.types import Prompt
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings

from .broken import BROKEN
from .conftest import clip, cut_off, hiss, noise, silence

pytestmark = pytest.mark.slow

CONTEXT = 256
TRAIN = TrainSettings(world_size=2, collective_timeout=60.0)


@dataclass
class Actors:
    """A rollout engine and two trainer ranks, and their processes as they were at the start."""

    engine: RolloutHandle
    trainer: TrainerGroup
    pids: list[int | None]

    def sample(self, prompts: list[Prompt], tokens: int = 4) -> list[Rollout]:
        return self.engine.sample(self.engine.render(prompts), SamplingSettings(max_tokens=tokens, ignore_eos=True))

    def assert_alive(self) -> None:
        """The same processes sample and score, and agree."""
        prompt = Prompt("good", "look <image> now", images=(Image.fromarray(noise(0, 40, 50, 3)),))
        rollouts = self.sample([prompt])
        (score,) = self.trainer.score(rollouts)
        assert np.abs(score.logprobs - rollouts[0].logprobs).max() < 1e-4
        assert [self.engine.pid, *self.trainer.pids] == self.pids


@pytest.fixture(scope="module")
def actors(local_ray: None, small_checkpoint: Path) -> Iterator[Actors]:
    settings = EngineSettings(model=small_checkpoint, max_model_len=CONTEXT, run="test")
    with (
        RolloutHandle.start(settings) as engine,
        TrainerGroup.start(small_checkpoint, TRAIN, run="test") as trainer,
    ):
        yield Actors(engine, trainer, [engine.pid, *trainer.pids])


PROMPTS: dict[str, tuple[Prompt, type[OmniRLError], str]] = {
    "a picture that is cut off": (Prompt("p", "<image>", (cut_off(),)), MediaError, "image 0.*damaged"),
    "a picture without pixels": (Prompt("p", "<image>", (Image.new("RGB", (5, 0)),)), MediaError, "no pixels"),
    "20000 x 1 pixels": (Prompt("p", "<image>", (Image.new("RGB", (20_000, 1)),)), MediaError, "20000 x 1 .*elongated"),
    "a sound without samples": (Prompt("p", "<so_embedding>", sounds=(hiss(0, 0),)), MediaError, "audio 0.*empty"),
    "three hours of sound": (Prompt("p", "<so_embedding>", sounds=(silence(10_800, 16_000),)), MediaError, "10800"),
    "a sound longer than the context": (
        Prompt("p", "<so_embedding>", sounds=(hiss(0, 16_000 * 30),)),
        MediaError,
        "30.0 s, which is .* tokens; the context holds 255",
    ),
    "a sound that overflows": (
        Prompt("p", "<so_embedding>", sounds=(replace(hiss(0, 9_000), samples=np.full(9_000, 1e30, np.float32)),)),
        MediaError,
        "audio 0: its values are too large",
    ),
    "a video without frames": (Prompt("p", "<video>", videos=(clip(0, 0, 8, 8),)), MediaError, "video 0.*no frames"),
    "a text longer than the context": (Prompt("p", "word " * 2_000), PromptError, "256|255"),
    "media longer than the context": (
        Prompt("p", "<video><video>", videos=(clip(0, 16, 64, 64), clip(1, 16, 64, 64))),
        PromptError,
        "at most 255",
    ),
    "no room for the answer": (Prompt("p", "<image>" + "a " * 150, (Image.new("RGB", (64, 64)),)), PromptError, "256"),
    "a placeholder too many": (Prompt("p", "<image> <image>", (Image.new("RGB", (9, 9)),)), PromptError, "2 <image>"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_bad_prompt_is_refused_and_a_good_one_follows(actors: Actors, name: str) -> None:
    prompt, error, words = PROMPTS[name]
    good = Prompt("good", "hello")
    with pytest.raises(error, match=words) as caught:
        actors.sample([good, prompt], tokens=100)
    assert "'p'" in str(caught.value)
    actors.assert_alive()


def _one_slot_less(rollout: Rollout) -> Rollout:
    (item,) = rollout.prompt.items
    return replace(rollout, prompt=replace(rollout.prompt, items=(replace(item, positions=item.positions[:-1]),)))


CALLS: dict[str, Callable[[Actors, Rollout], Any]] = {
    "sampling": lambda actors, bad: actors.engine.sample([bad.prompt], SamplingSettings(max_tokens=2)),
    "rescoring": lambda actors, bad: actors.engine.rescore([bad]),
    "scoring": lambda actors, bad: actors.trainer.score([bad]),
    "learning": lambda actors, bad: actors.trainer.update([bad], [1.0]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("modality", "prompt"),
    [
        ("image", Prompt("p", "<image>", images=(Image.fromarray(noise(1, 70, 90, 3)),))),
        ("audio", Prompt("p", "<so_embedding>", sounds=(hiss(1, 9_000),))),
        ("video", Prompt("p", "<video>", videos=(clip(1, 3, 40, 40),))),
    ],
)
def test_slots_and_features_that_differ_are_refused_by_every_call(
    actors: Actors, modality: str, prompt: Prompt, call: str
) -> None:
    (rollout,) = actors.sample([prompt])
    with pytest.raises(PromptError, match=rf"'p', {modality} 0 has \d+ slots .* \d+ features"):
        CALLS[call](actors, _one_slot_less(rollout))
    actors.assert_alive()


@pytest.mark.parametrize("name", ["tensors of every room missing", "a foreign tensor", "pickled under another name"])
def test_actors_do_not_start_on_a_broken_checkpoint(
    local_ray: None, small_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    broken = BROKEN[name].make(small_checkpoint, tmp_path)
    with pytest.raises(CheckpointError) as by_engine:
        RolloutHandle.start(EngineSettings(model=broken))
    with pytest.raises(CheckpointError) as by_trainer:
        TrainerGroup.start(broken, TRAIN.model_copy(update={"world_size": 1}), run="test")
    for error in (by_engine, by_trainer):
        assert all(word in str(error.value) for word in BROKEN[name].named)
