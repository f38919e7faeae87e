"""The pair that replays a bundle: a vLLM engine and a trainer of one rank, both from one checkpoint."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import ray

from omni_rl.bridge.experiments import modules
from omni_rl.consistency.bands import NOISE
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Judgement, Severity, judge
from omni_rl.consistency.localisation import first_outside
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.demo.cluster import start_ray
from omni_rl.media.types import RenderedPrompt
from omni_rl.replay import comparing
from omni_rl.replay.findings import Replay, Sides
from omni_rl.replay.reading import Bundle
from omni_rl.replay.time_stamps import timed
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.settings import Dtype, EngineSettings
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.train import pairing
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import Score

CONTEXT = 2048
"""As an engine's own default: a longer context would let pictures be larger."""
BATCH = 4096


class Pair(NamedTuple):
    """Both policies with the same weights."""

    engine: RolloutHandle
    trainer: TrainerGroup


@contextmanager
def started(model: Path, dtype: Dtype, tokens: int) -> Iterator[Pair]:
    """Ray and both policies, with room for a sequence of `tokens`; nothing of them is left behind.

    Raises `CheckpointError` if the checkpoint cannot be loaded.
    """
    run = f"replay-{uuid.uuid4().hex[:8]}"
    room = max(BATCH, tokens + 1)  # one chunk and one pack: the logits of the whole answer can be compared
    engine = EngineSettings(
        model=model, dtype=dtype, run=run, max_model_len=max(CONTEXT, tokens + 1), max_num_batched_tokens=room
    )
    train = TrainSettings(world_size=1, dtype=dtype, max_pack_tokens=room)
    with ExitStack() as stack:
        start_ray()
        stack.callback(ray.shutdown)
        handle = stack.enter_context(RolloutHandle.start(engine))
        yield Pair(handle, stack.enter_context(TrainerGroup.start(model, train, run)))


def replay(bundle: Bundle, pair: Pair) -> Replay:
    """Render the prompt and score the answer on both sides, at temperature 1.

    Raises:
        PromptError: the prompt is rendered to other ids than those recorded, or is too long.
        MediaError: a media item is refused.
    """
    dtype = pair.engine.settings.dtype
    (prompt,) = pair.engine.render([timed(bundle, pair.engine.settings.model)])
    comparing.require_recorded_ids(prompt, bundle)
    answer = _answer(prompt, bundle)
    (engine,) = pair.engine.rescore([answer], alone=True)
    (score,) = pair.trainer.score([answer])
    judgement = _judged(answer, score, engine, dtype)
    differences = modules(pair.engine, pair.trainer, answer, NOISE[dtype])
    return Replay(
        sample=bundle.sample,
        step=bundle.step,
        kind=prompt.kind,
        dtype=dtype,
        weights=comparing.weights(bundle, pair.trainer.version().digest),
        prompt_tokens=len(prompt.ids),
        media=comparing.items(prompt, bundle),
        ids=tuple(bundle.ids.tolist()),
        texts=bundle.texts,
        temperature=bundle.temperature,
        recorded=Sides.of(bundle.rollout_logprobs, bundle.train_logprobs),
        now=Sides.of(engine.logprobs, score.logprobs),
        agree=judgement.severity == Severity.OK,
        reason=judgement.reason,
        first_outside=first_outside(differences),
        modules=differences,
    )


def _answer(prompt: RenderedPrompt, bundle: Bundle) -> Rollout:
    """The recorded ids as an answer that nobody sampled here."""
    return Rollout(
        prompt=prompt,
        ids=bundle.ids,
        logprobs=bundle.rollout_logprobs,
        temperature=1.0,
        version_spans=(),
        engine_digests=tuple(item.digests for item in prompt.items),
        experts=None,
        finish_reason="replay",
    )


def _judged(answer: Rollout, score: Score, engine: Rescore, dtype: Dtype) -> Judgement:
    """By the limits of the prompt's kind."""
    records = pairing.train_against_prefill([answer], [score], [engine])
    yardstick = Yardstick.of(dtype)
    of_kind = yardstick.compare(StepColumns.of(records)).by_kind[answer.prompt.kind]
    return judge({answer.prompt.kind: of_kind.figures}, yardstick.limits)
