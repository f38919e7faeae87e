"""The demo's loop: vLLM actors, one trainer group, the same prompts through both, at every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from omni_rl.config import DemoSettings
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import Comparison, compare
from omni_rl.consistency.left_out import Ties
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.look import Terms
from omni_rl.consistency.posted.verdict import JudgedStep, judge_posted
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.demo.display import Display
from omni_rl.demo.report import Report, StepReport
from omni_rl.demo.reward import reward
from omni_rl.jobs.clock import Clock
from omni_rl.kinds import KINDS
from omni_rl.media.samples import demo_prompts
from omni_rl.media.types import Prompt
from omni_rl.policies.types import Placed, Policies
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.train import pairing
from omni_rl.train.advantages import group_advantages
from omni_rl.train.evidence import posted_step
from omni_rl.train.settings import PLAIN
from omni_rl.train.types import Score

PHASES = 4  # sample, score, learn, update: units of progress a step


class LocalPolicies(Policies, Protocol):
    """The two policies as the loop needs them; `omni_rl.policies.local.LocalPair` is the real pair."""

    @property
    def engine_version(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def weight_version(self) -> str: ...
    @property
    def actors(self) -> Sequence[Placed]:
        """Where they are now."""

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool) -> list[Rescore]: ...
    def sync(self) -> object:
        """Bring the trainer's weights to the engines."""


@dataclass(frozen=True)
class Played:
    """One step as it was: answers, scores and rewards in the order of its prompts."""

    step: int
    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    rewards: Sequence[float]


class Keeper(Protocol):
    """Whoever keeps the steps beyond the report."""

    def keep(self, played: Played, policies: LocalPolicies) -> None: ...


def run(settings: DemoSettings, pair: LocalPolicies, display: Display, keeper: Keeper | None = None) -> Report:
    """Run every step and the legs; the report says whether the two policies agreed. Writes nothing."""
    yardstick, terms, history = Yardstick.of(settings.dtype), Terms.of(settings.dtype, lag=0), History()
    report = Report(
        dtype=settings.dtype,
        seed=settings.seed,
        engine={"name": "vllm", "version": pair.engine_version},
        train={"world_size": settings.world_size, "sharding": "fsdp2"},
        parameters=pair.parameters,
    )
    for step in range(settings.steps):
        clock = Clock()
        display.phase(f"step {step}: sampling")
        with clock.time("sample"):
            prompts = step_prompts(settings, step)
            rollouts = pair.sample(pair.render(prompts), step_sampling(settings, step))
        display.advance()
        display.phase(f"step {step}: scoring the same tokens")
        with clock.time("score"):
            scores = pair.score(rollouts)
        display.advance()
        pairs = pairing.train_against_decode(rollouts, scores)
        last = step == settings.steps - 1
        if last:
            display.phase(f"step {step}: three legs")
            with clock.time("legs"):
                report.legs = legs(pair, rollouts, scores, yardstick.ties)
        rewards = [reward(pair.decode(rollout.ids), rollout.prompt.answer) for rollout in rollouts]
        version = pair.weight_version
        if keeper is not None:
            keeper.keep(Played(step, prompts, rollouts, scores, rewards), pair)
        # What was learnt in the last step would be sampled by nobody.
        if not last:
            display.phase(f"step {step}: learning")
            with clock.time("learn"):
                advantages = group_advantages(rewards, [rollout.prompt.kind for rollout in rollouts])
                pair.update(rollouts, advantages.tolist(), PLAIN)
        display.advance()
        if not last:
            display.phase(f"step {step}: new weights into the engine")
            with clock.time("update"):
                pair.sync()
        display.advance()
        columns = StepColumns.of(pairs)
        judged = judge_posted(columns, posted_step(columns, rollouts, scores), yardstick, terms, history)
        history = judged.history
        report.steps.append(told(step, version, judged, float(np.mean(rewards)), clock.seconds))
        display.step(report.steps[-1])
    report.actors = list(pair.actors)
    return report


def step_prompts(settings: DemoSettings, step: int) -> list[Prompt]:
    """`prompts_per_kind` prompts of each kind; other ones in every step."""
    seed = settings.seed + step
    return [prompt for kind in KINDS for prompt in demo_prompts(kind, settings.prompts_per_kind, seed)]


def step_sampling(settings: DemoSettings, step: int) -> SamplingSettings:
    requests = settings.prompts_per_kind * len(KINDS)
    return SamplingSettings(
        max_tokens=settings.max_tokens, temperature=1.0, seed=(settings.seed + step) * requests, ignore_eos=True
    )


def told(
    step: int,
    version: str,
    judged: JudgedStep,
    mean_reward: float,
    seconds: dict[str, float],
) -> StepReport:
    """Agreement means: same weights, same media, and a step in which the service finds nothing to look at."""
    comparison, judgement = judged.comparison, judged.judgement
    found = [
        *(str(breach) for breach in judgement.breaches),
        *(one.sentence for one in judgement.told),
    ]
    if not found and judgement.severity is not Severity.OK:
        found.append(judgement.reason)
    return StepReport(
        step=step,
        weight_version=version,
        verdict="disagree" if found else "agree",
        reward=mean_reward,
        overall=comparison.overall,
        by_modality=dict(comparison.by_kind),
        with_flips=comparison.with_flips,
        breaches=tuple(found),
        seconds=seconds,
    )


def legs(
    pair: LocalPolicies, rollouts: Sequence[Rollout], scores: Sequence[Score], ties: Ties
) -> dict[str, Comparison]:
    """Trainer against prefill, prefill against decode, batch against alone; all at temperature 1."""
    batch, alone = pair.rescore(rollouts, alone=False), pair.rescore(rollouts, alone=True)
    decode = pairing.decode_as_leg(rollouts)
    sides = {
        "train_vs_prefill": pairing.train_against_prefill(rollouts, scores, batch),
        "prefill_vs_decode": pairing.engine_against_itself(rollouts, decode, batch, scores),
        "batch_vs_alone": pairing.engine_against_itself(rollouts, batch, alone, scores),
    }
    return {leg: compare(pairs, ties) for leg, pairs in sides.items()}
