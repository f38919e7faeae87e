"""Replays a bundle, a zip file with the record of one sample and its media, on a vLLM engine and a trainer of one rank
that both load one checkpoint."""

import uuid
from contextlib import AbstractContextManager
from pathlib import Path

from omni_rl.bridge.experiments import modules
from omni_rl.consistency.bands import NOISE
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Judgement, Severity, judge
from omni_rl.consistency.localisation import first_outside
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.media.types import RenderedPrompt
from omni_rl.policies.local import LocalPair, started
from omni_rl.replay import comparing
from omni_rl.replay.findings import Replay, Sides
from omni_rl.replay.reading import Bundle
from omni_rl.replay.time_stamps import timed
from omni_rl.rollout.settings import Dtype, EngineSettings
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.train import pairing
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import Score

CONTEXT = 2048
"""The tokens of context, as an engine has by default: with a longer context, pictures would be rendered larger."""
BATCH = 4096
"""The least tokens that a prefill chunk of the engine, and a pack of the trainer, have room for."""


def replay_pair(model: Path, dtype: Dtype, tokens: int) -> AbstractContextManager[LocalPair]:
    """Return a context that starts both policies from the checkpoint `model`, with space for a sequence of `tokens`
    tokens; see `omni_rl.policies.local.started`.

    Raises `CheckpointError` if the checkpoint cannot be loaded.
    """
    room = max(BATCH, tokens + 1)  # one chunk and one pack: the logits of the whole answer can be compared
    engine = EngineSettings(
        model=model,
        dtype=dtype,
        run=f"replay-{uuid.uuid4().hex[:8]}",
        max_model_len=max(CONTEXT, tokens + 1),
        max_num_batched_tokens=room,
    )
    return started(engine, TrainSettings(world_size=1, dtype=dtype, max_pack_tokens=room))


def replay(bundle: Bundle, pair: LocalPair) -> Replay:
    """Render the bundle's prompt again and score its recorded answer on both sides, at temperature 1.

    Raises:
        PromptError: the prompt is rendered to other ids than those recorded, or is too long.
        MediaError: a media item is refused.
    """
    dtype = pair.settings.dtype
    (prompt,) = pair.render([timed(bundle, pair.settings.model)])
    comparing.require_recorded_ids(prompt, bundle)
    answer = _answer(prompt, bundle)
    (engine,) = pair.rescore([answer], alone=True)
    (score,) = pair.score([answer])
    judgement = _judged(answer, score, engine, dtype)
    differences = modules(pair.rollouts[0], pair.trainer, answer, NOISE[dtype])
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
    """Return the recorded answer as a rollout, which is what both sides score."""
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
    """Judge the answer by the limits of its prompt's kind."""
    records = pairing.train_against_prefill([answer], [score], [engine])
    yardstick = Yardstick.of(dtype)
    of_kind = yardstick.compare(StepColumns.of(records)).by_kind[answer.prompt.kind]
    return judge({answer.prompt.kind: of_kind.figures}, yardstick.limits)
