"""A job's steps against a policy that is a table: it learns, in the right order, from the right answers."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.api.jobs import GrpoParameters, PpoParameters
from omni_rl.api.steps import Verdict
from omni_rl.errors import TrainerDeadError
from omni_rl.jobs.environment import TaskEnvironment
from omni_rl.jobs.grpo import Grpo
from omni_rl.jobs.loop import Loop, LoopSettings, StepDone
from omni_rl.jobs.ppo import Ppo
from omni_rl.media.types import RenderedPrompt
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.tasks.rewards import RewardFunction, exact_digit
from omni_rl.tasks.settings import Task
from omni_rl.train.settings import Objective
from omni_rl.train.targets import Targets
from omni_rl.train.types import StepStats

from .fakes import Questions, Tabular

QUESTIONS = 6
PHASES = ["sample", "score", "judge", "learn", "sync"]
STEP = ["sample", "score", "judge", "update", "sync"]
"""What the policies are asked for in each."""


def task(reward: RewardFunction = exact_digit, *, shuffled: bool = False) -> Task:
    questions = Questions(QUESTIONS)
    return Task("digits", questions, questions, reward, (), shuffled)


def grpo(**values: object) -> GrpoParameters:
    chosen = {"run": "run", "steps": 1, "prompts": QUESTIONS, "group": 8, "max_tokens": 2, "learning_rate": 1.0}
    return GrpoParameters.model_validate(chosen | values)


def ppo(**values: object) -> PpoParameters:
    chosen = {"run": "run", "steps": 1, "prompts": 48, "max_tokens": 2, "learning_rate": 1.0}
    return PpoParameters.model_validate(chosen | values)


def loop(
    parameters: GrpoParameters | PpoParameters,
    policies: Tabular,
    its: Task,
    *,
    learn_last: bool = True,
    on_phase: Callable[[int, str], None] = lambda step, phase: None,
) -> Loop[Verdict]:
    algorithm = Grpo(parameters) if isinstance(parameters, GrpoParameters) else Ppo(parameters)
    environment = TaskEnvironment(parameters, its, algorithm.answers_per_prompt)
    settings = replace(LoopSettings.of(parameters), learn_last=learn_last)
    return Loop(settings, environment, algorithm, policies, policies, save=policies.save, on_phase=on_phase)


def run(parameters: GrpoParameters | PpoParameters, policies: Tabular, its: Task) -> list[StepDone[Verdict]]:
    return list(loop(parameters, policies, its).run())


@pytest.mark.parametrize(
    "parameters",
    [
        grpo(steps=60),
        grpo(steps=60, aggregation="sequence"),
        ppo(steps=60, epochs=2, minibatches=2),
    ],
    ids=["grpo", "grpo-sequence", "ppo"],
)
def test_the_reward_rises(parameters: GrpoParameters | PpoParameters) -> None:
    policies = Tabular(QUESTIONS)
    done = run(parameters.model_copy(update={"evaluate_every": 59}), policies, task())
    assert done[0].figures["held_out_reward"] <= 0.5
    assert done[-1].figures["held_out_reward"] == 1.0
    assert [step.figures for step in done] == policies.training
    assert {"reward", "kl", "clipped", "loss", "grad_norm"} <= policies.training[0].keys()
    assert [step.step for step in done] == list(range(60))


def test_held_out_prompts_are_answered_as_often_as_asked_with_the_same_seeds_every_time() -> None:
    policies = Tabular(QUESTIONS)
    run(grpo(steps=3, learning_rate=0.0, evaluate_every=1, evaluate_answers=4), policies, task())
    evaluations, steps = policies.sampled[::2], policies.sampled[1::2]
    assert [len(rollouts) for rollouts in evaluations] == 3 * [4 * QUESTIONS]
    assert [len(rollouts) for rollouts in steps] == 3 * [8 * QUESTIONS]
    answers = [[(rollout.prompt.id, rollout.ids.tolist()) for rollout in rollouts] for rollouts in evaluations]
    assert answers[0] == answers[1] == answers[2]
    assert len({name for name, _ in answers[0]}) == 4 * QUESTIONS


def test_nothing_is_learnt_from_shuffled_rewards_or_at_rate_0() -> None:
    still, shuffled = Tabular(QUESTIONS), Tabular(QUESTIONS)
    run(grpo(steps=5, learning_rate=0.0), still, task())
    assert not still.logits.any()
    run(grpo(steps=60), shuffled, task(shuffled=True))
    right = np.exp(shuffled.logits[range(QUESTIONS), range(QUESTIONS)]) / np.exp(shuffled.logits).sum(1)
    assert right.mean() < 0.35


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0]),
        ({"learning_rate_decay": 1.0}, [1.0, 0.75, 0.5, 0.25]),
        ({"learning_rate_warmup": 3}, [0.25, 0.5, 0.75, 1.0]),
        ({"learning_rate_warmup": 1, "learning_rate_decay": 0.5}, [0.5, 0.875, 0.75, 0.625]),
    ],
)
def test_the_learning_rate_rises_and_falls_over_the_steps(schedule: dict[str, float], rates: list[float]) -> None:
    policies = Tabular(QUESTIONS)
    run(grpo(steps=4, **schedule), policies, task())
    assert policies.rates == rates


def test_a_step_is_judged_before_it_is_learnt_and_learnt_before_it_is_served() -> None:
    policies = Tabular(QUESTIONS)
    run(grpo(steps=3), policies, task())
    assert policies.events == ["sync", *3 * STEP]


def test_a_last_step_that_nobody_learns_from_is_judged_alone() -> None:
    policies = Tabular(QUESTIONS)
    done = list(loop(grpo(steps=3), policies, task(), learn_last=False).run())
    assert policies.events == ["sync", *2 * STEP, "sample", "score", "judge"]
    assert [set(step.seconds) for step in done] == [*2 * [{*PHASES}], {*PHASES[:3]}]


def test_whoever_watches_hears_of_each_phase_before_it_is_over() -> None:
    policies = Tabular(QUESTIONS)
    heard: list[tuple[int, str, int]] = []
    whole = loop(grpo(steps=2), policies, task(), on_phase=lambda *phase: heard.append((*phase, len(policies.events))))
    list(whole.run())
    assert [(step, phase) for step, phase, _ in heard] == [(step, phase) for step in range(2) for phase in PHASES]
    assert [policies.events[at] for _, _, at in heard] == 2 * STEP


def test_the_verdicts_weights_reach_the_gradient_by_sample() -> None:
    policies = Tabular(QUESTIONS)
    run(grpo(group=64), policies, task())
    names = [rollout.prompt.id for rollout in policies.posted[0].rollouts]
    assert len(set(names)) == len(names)
    weighed = Tabular(QUESTIONS, {(0, name): np.full(2, number, np.float32) for number, name in enumerate(names)})
    run(grpo(group=64), weighed, task())
    assert [target.weights.tolist() for target in weighed.taught[0]] == [[n, n] for n in range(len(names))]


def test_answers_to_one_prompt_are_compared_among_themselves() -> None:
    policies = Tabular(QUESTIONS)
    run(grpo(group=64), policies, task())
    advantages = np.array([target.advantages[0] for target in policies.taught[0]]).reshape(QUESTIONS, 64)
    assert advantages.sum(1) == pytest.approx(np.zeros(QUESTIONS), abs=1e-9)
    prompts = [prompt.id for prompt in policies.posted[0].prompts]
    assert prompts == [prompt for prompt in dict.fromkeys(prompts) for _ in range(64)]


def test_a_reward_that_fails_drops_its_sample_and_says_so() -> None:
    def fragile(text: str, expected: str | None) -> float:
        if text == "3":
            raise KeyError("three")
        return float("nan") if text == "4" else exact_digit(text, expected)

    policies = Tabular(QUESTIONS)
    (done,) = run(grpo(group=32), policies, task(fragile))
    bad = [rollout.prompt.id for rollout in policies.posted[0].rollouts if policies.decode(rollout.ids) in ("3", "4")]
    assert done.figures["samples_dropped"] == len(bad) > 0
    assert [line.split(":")[0] for line in done.dropped] == [f"sample {name}" for name in bad]
    assert any("KeyError" in line for line in done.dropped)
    assert any("is nan" in line for line in done.dropped)
    rewards = np.array([np.nan if r is None else r for r in policies.posted[0].rewards]).reshape(QUESTIONS, 32)
    mixed = np.nanmin(rewards, 1) < np.nanmax(rewards, 1)
    assert 1 <= mixed.sum() < QUESTIONS
    assert len(policies.taught[0]) == np.isfinite(rewards[mixed]).sum()
    assert all(np.isfinite(target.advantages).all() for target in policies.taught[0])


def test_a_step_of_equal_rewards_updates_nothing() -> None:
    policies = Tabular(QUESTIONS)
    (done,) = run(grpo(), policies, task(lambda text, expected: 1.0))
    assert done.figures["groups_dropped"] == QUESTIONS
    assert "update" not in policies.events
    assert policies.events[-1] == "sync"


def test_truncated_answers_can_be_left_out() -> None:
    policies = Tabular(QUESTIONS)
    (done,) = run(grpo(max_tokens=1, mask_truncated=True), policies, task())
    assert done.figures["truncated"] == 8 * QUESTIONS
    assert "update" not in policies.events


def test_a_later_start_has_the_prompts_and_seeds_of_an_uninterrupted_run() -> None:
    whole, late = Tabular(QUESTIONS), Tabular(QUESTIONS)
    parameters = grpo(steps=4, prompts=4, learning_rate=0.0)
    run(parameters, whole, task())
    list(loop(parameters, late, task()).run(first=2))
    for ours, theirs in zip(late.posted, whole.posted[2:], strict=True):
        assert [rollout.prompt.id for rollout in ours.rollouts] == [rollout.prompt.id for rollout in theirs.rollouts]
        assert [rollout.ids.tolist() for rollout in ours.rollouts] == [r.ids.tolist() for r in theirs.rollouts]


def test_ppo_goes_through_the_answers_in_minibatches_every_epoch() -> None:
    policies = Tabular(QUESTIONS)
    (done,) = run(ppo(epochs=3, minibatches=4), policies, task())
    assert [len(batch) for batch in policies.taught] == 12 * [12]
    assert done.figures["learnt_tokens"] == 3 * 48 * 2
    for batch in policies.taught:
        assert sum(target.shares.sum() for target in batch) == pytest.approx(1.0)


def test_ppo_returns_the_reward_at_the_end() -> None:
    policies = Tabular(QUESTIONS)
    policies.values[:] = 0.5
    run(ppo(gamma=1.0, gae_lambda=1.0), policies, task())
    rewards = {
        rollout.prompt.id: reward
        for rollout, reward in zip(policies.posted[0].rollouts, policies.posted[0].rewards, strict=True)
    }
    returns = sorted(tuple(target.returns.tolist()) for target in policies.taught[0] if target.returns is not None)
    assert returns == sorted((reward, reward) for reward in rewards.values() if reward is not None)
    flat = np.concatenate([target.advantages for target in policies.taught[0]])
    assert (flat.mean(), flat.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1, rel=1e-6))


def test_every_epoch_of_prompts_has_each_once() -> None:
    policies = Tabular(QUESTIONS)
    run(grpo(steps=3, prompts=4, learning_rate=0.0), policies, task())
    seen = [prompt.id for answers in policies.posted for prompt in answers.prompts[::8]]
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(f"question-{number}" for number in range(QUESTIONS))
    assert seen[:6] != seen[6:]


def test_generation_runs_ahead_as_far_as_it_may_and_stale_tokens_have_their_own_weights() -> None:
    policies = Tabular(QUESTIONS)
    done = run(grpo(steps=5, max_staleness=2), policies, task())
    assert [step.figures["staleness"] <= 2 for step in done] == [True] * 5
    assert len(policies.snapshots) == 3
    for answers in policies.posted:
        for rollout, score in zip(answers.rollouts, answers.scores, strict=True):
            assert score.version == rollout.version_spans[0].version
            assert score.logprobs == pytest.approx(rollout.logprobs)


class ByUpdates(Tabular):
    """Its weights have the number of updates that made them, as a trainer's have."""

    def sync(self, step: int) -> str:
        super().sync(step)
        self.version = f"run/1/{self.events.count('update')}/abc"
        self._served = self.logits.copy(), self.version
        return self.version


def test_stale_answers_are_scored_after_a_step_that_taught_nothing() -> None:
    rated = 0

    def reward(text: str, expected: str | None) -> float:
        nonlocal rated
        rated += 1
        return 1.0 if rated <= 8 * QUESTIONS else exact_digit(text, expected)

    policies = ByUpdates(QUESTIONS)
    done = run(grpo(steps=6, max_staleness=1), policies, task(reward))
    assert done[0].figures["groups_dropped"] == QUESTIONS
    assert policies.events.count("update") > 2
    assert len(policies.snapshots) <= 2


def test_answers_by_weights_between_two_updates_are_asked_for_again() -> None:
    class SyncedMeanwhile(Tabular):
        """Somebody else syncs after the first of a step's updates, just before the next step's answers are sampled."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.synced, self.answered = threading.Event(), threading.Event()

        def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]:
            if self.sampled:
                assert self.synced.wait(30)
            found = super().sample(prompts, sampling)
            if self.synced.is_set():
                self.answered.set()
            return found

        def update(
            self, rollouts: Sequence[Rollout], targets: Sequence[float | Targets], objective: Objective
        ) -> StepStats:
            stats = super().update(rollouts, targets, objective)
            if not self.synced.is_set():
                self._served = self.logits.copy(), "run/1/1/between"
                self.synced.set()
                assert self.answered.wait(30)
            return stats

    def versions(rollouts: Sequence[Rollout]) -> set[str]:
        return {span.version for rollout in rollouts for span in rollout.version_spans}

    policies = SyncedMeanwhile(QUESTIONS)
    done = run(ppo(steps=3, max_staleness=1, epochs=2, minibatches=2), policies, task())
    assert versions(policies.sampled[1]) == {"run/1/1/between"}
    assert [step.step for step in done] == [0, 1, 2]
    assert [versions(answers.rollouts) for answers in policies.posted[:2]] == [{"run/1/0/abc"}, {"run/1/1/abc"}]


def test_an_error_is_told_while_the_gate_is_closed_for_what_is_sampled_ahead() -> None:
    opened = threading.Event()

    class Closed(Tabular):
        def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]:
            if self.sampled:
                opened.wait(30)
            return super().sample(prompts, sampling)

        def learnt(self, step: int, training: Mapping[str, float]) -> None:
            raise TrainerDeadError("a rank died")

    began = time.monotonic()
    with pytest.raises(TrainerDeadError):
        run(grpo(steps=4, max_staleness=2), Closed(QUESTIONS), task())
    assert time.monotonic() - began < 20
    opened.set()


def test_what_teaches_nothing_is_not_computed() -> None:
    policies = Tabular(QUESTIONS)
    (done,) = run(grpo(), policies, task())
    assert 0 < done.figures["groups_dropped"] < QUESTIONS
    assert len(policies.taught[0]) == 8 * QUESTIONS - 8 * done.figures["groups_dropped"]


def test_the_reference_is_what_the_run_began_with() -> None:
    policies = Tabular(QUESTIONS)
    policies.take_snapshot("reference")
    run(grpo(steps=3, kl=0.1), policies, task())
    for target in policies.taught[-1]:
        assert target.reference is not None
        assert target.reference[0] == pytest.approx(np.log(0.1))
    assert any(target.old is not None and target.old[0] != pytest.approx(np.log(0.1)) for target in policies.taught[-1])


def test_states_are_saved_after_the_steps_they_follow() -> None:
    policies = Tabular(QUESTIONS)
    run(grpo(steps=5, save_every=2), policies, task())
    assert sorted(policies.saved) == [2, 4]
