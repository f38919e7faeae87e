"""The pair over engines by hand: what is asked for does not depend on how many there are, nor on which of them die."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from omni_rl.errors import EngineDeadError, OmniRLError, ReplicaStoppedError
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.policies.pair import Pair
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.train.trainer import Trainer

SAMPLING = SamplingSettings(max_tokens=4, seed=100)
COPIES = 4


@dataclass(eq=False)
class Engine:
    """Samples ids that are a function of prompt and seed, or fails; who died of it is of no use any more."""

    fails: OmniRLError | None = None
    usable: bool = True
    sampled: list[str] = field(default_factory=list)
    settings: Any = None

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        return [RenderedPrompt(prompt.id, "text", np.array([len(prompt.text)])) for prompt in prompts]

    def sample(
        self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings, places: Sequence[int] | None = None
    ) -> list[Rollout]:
        if self.fails is not None:
            self.usable = not isinstance(self.fails, EngineDeadError)
            raise self.fails
        assert places is not None
        self.sampled += [prompt.id for prompt in prompts]
        return [_answer(prompt, sampling.seed + place) for prompt, place in zip(prompts, places, strict=True)]

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool = False) -> list[Rescore]:
        return [Rescore(rollout.logprobs + alone, None) for rollout in rollouts]


def _answer(prompt: RenderedPrompt, seed: int) -> Rollout:
    rng = np.random.default_rng([int(prompt.ids[0]), seed])
    return Rollout(prompt, rng.integers(0, 1000, 4), -rng.random(4), 1.0, (), (), None, "length")


def pair(*engines: Engine) -> Pair[Trainer]:
    return Pair(cast(Sequence[RolloutHandle], engines), cast(Trainer, None))


def prompts(count: int) -> list[RenderedPrompt]:
    """Groups of `COPIES` equal ones."""
    return [RenderedPrompt(f"p{n // COPIES}.{n % COPIES}", "text", np.array([n // COPIES])) for n in range(count)]


DEAD = EngineDeadError("its process ended during sample; replace it")
STOPPED = ReplicaStoppedError("process 7 is stopped (SIGSTOP or frozen), not dead")


@pytest.mark.parametrize("replicas", [2, 3, 5])
@pytest.mark.parametrize("fails", [None, DEAD, STOPPED])
def test_answers_are_those_of_one_engine(replicas: int, fails: OmniRLError | None) -> None:
    asked = prompts(24)
    expected = pair(Engine()).sample(asked, SAMPLING)
    engines = [Engine(fails if number == 0 else None) for number in range(replicas)]
    found = pair(*engines).sample(asked, SAMPLING)
    assert [answer.prompt.id for answer in found] == [prompt.id for prompt in asked]
    assert [answer.ids.tolist() for answer in found] == [answer.ids.tolist() for answer in expected]
    sampled = [name for engine in engines for name in engine.sampled]
    assert sorted(sampled) == sorted(prompt.id for prompt in asked), "one was sampled twice, or by nobody"


@pytest.mark.parametrize("fails", [DEAD, STOPPED])
def test_where_all_are_lost_their_successors_are_asked(fails: OmniRLError) -> None:
    class Revived(Pair[Trainer]):
        def revive(self) -> None:
            self.rollouts = cast(Sequence[RolloutHandle], successors)

    def revived() -> Pair[Trainer]:
        return Revived(cast(Sequence[RolloutHandle], [Engine(fails), Engine(fails)]), cast(Trainer, None))

    successors = [Engine()]
    expected = pair(Engine()).sample(prompts(8), SAMPLING)
    assert [one.ids.tolist() for one in revived().sample(prompts(8), SAMPLING)] == [
        one.ids.tolist() for one in expected
    ]
    successors = [Engine(fails)]
    with pytest.raises(type(fails)):
        revived().sample(prompts(8), SAMPLING)


def test_every_engine_has_its_part_of_three_steps_and_groups_stay_together() -> None:
    engines = Engine(), Engine()
    both = pair(*engines)
    for _ in range(3):
        both.sample(prompts(64), SAMPLING)
    assert [len(engine.sampled) for engine in engines] == [96, 96]
    groups = [{name.partition(".")[0] for name in engine.sampled} for engine in engines]
    assert not groups[0] & groups[1]


def test_renderings_and_rescores_stand_in_order() -> None:
    three = pair(Engine(), Engine(), Engine())
    rendered = three.render([Prompt(f"p{n}", "x" * n) for n in range(7)])
    assert [int(prompt.ids[0]) for prompt in rendered] == list(range(7))
    answers = three.sample(rendered, SAMPLING)
    for alone in (False, True):
        scores = three.rescore(answers, alone=alone)
        for answer, score in zip(answers, scores, strict=True):
            assert score.logprobs.tolist() == (answer.logprobs + alone).tolist()


def test_ids_are_decoded_by_the_checkpoints_tokenizer(small_checkpoint: Path) -> None:
    one = pair(Engine(settings=SimpleNamespace(model=small_checkpoint)))
    text = one.decode(np.array([65, 66], np.int64))
    assert isinstance(text, str)
    assert text
