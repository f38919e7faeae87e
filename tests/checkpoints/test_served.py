"""vLLM serves the committed files: the digits are answered as often as the figures promise."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from omni_rl.checkpoints.make import held_out_examples
from omni_rl.media.renderer import Renderer
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.digits import load_digits
from omni_rl.tasks.rewards import exact_digit
from tests.checkpoints.known import known_figures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(small_checkpoint: Path) -> Iterator[RolloutEngine]:
    engine = RolloutEngine(EngineSettings(model=small_checkpoint, max_num_seqs=64))
    yield engine
    engine.close()


def test_sampled_accuracy_is_that_of_the_figures(engine: RolloutEngine, small_checkpoint: Path) -> None:
    digits = load_digits("held_out")
    prompts = Renderer(engine.llm_engine).render([digits.prompt(index) for index in range(len(digits))])

    rollouts = engine.sample(prompts, SamplingSettings(max_tokens=2, temperature=1.0, seed=7, ignore_eos=True))

    tokenizer = AutoTokenizer.from_pretrained(small_checkpoint)
    answers = [tokenizer.decode(rollout.ids) for rollout in rollouts]
    accuracy = sum(exact_digit(a, str(p.answer)) for a, p in zip(answers, prompts, strict=True)) / len(prompts)
    assert 0.35 <= accuracy <= 0.60
    # Three standard deviations of 397 answers.
    assert accuracy == pytest.approx(known_figures(small_checkpoint).sampled_accuracy, abs=0.075)


def test_training_saw_the_ids_that_the_engine_sees(engine: RolloutEngine, small_checkpoint: Path) -> None:
    digits = load_digits("held_out")
    rendered = Renderer(engine.llm_engine).render([digits.prompt(index) for index in range(3)])

    for prompt, example in zip(rendered, held_out_examples(small_checkpoint), strict=False):
        assert example.media is not None
        assert prompt.ids.tolist() == example.ids[: example.scored_from].tolist()
        assert prompt.items[0].positions.tolist() == example.media.positions.tolist()
