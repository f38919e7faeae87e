"""The canonical probe: the same everywhere, one answer of each kind, and the worst replica is the one that counts."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from omni_rl.bridge import check
from omni_rl.errors import EngineDeadError, ReplicaStoppedError
from omni_rl.kinds import MODALITIES
from omni_rl.media.types import RenderedPrompt
from omni_rl.policies.probe import ANSWER_TOKENS, AgreementProbe, probe_answers, probe_prompts
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.train.types import Score

KINDS_HERE = ("text", "image")


def answers() -> tuple[Rollout, ...]:
    rendered = [
        RenderedPrompt(id=kind, kind=kind, ids=np.arange(100, 110, dtype=np.int64))  # type: ignore[arg-type]
        for kind in KINDS_HERE
    ]
    return probe_answers(rendered)


def scored(shift: float) -> list[Rescore]:
    return [Rescore(np.full(ANSWER_TOKENS, -2.0 + shift), None, "run/1/1/aa") for _ in KINDS_HERE]


def trained(rollouts: object) -> list[Score]:
    return [Score(np.full(ANSWER_TOKENS, -2.0), None, None, (), "run/1/1/aa") for _ in KINDS_HERE]


def test_one_prompt_of_each_modality_and_always_the_same() -> None:
    first, again = probe_prompts(), probe_prompts()
    assert [prompt.kind for prompt in first] == ["text", *MODALITIES, "mixed"]
    for one, other in zip(first, again, strict=True):
        assert one.text == other.text
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
        assert all(np.array_equal(a.samples, b.samples) for a, b in zip(one.sounds, other.sounds, strict=True))
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(one.videos, other.videos, strict=True))


def test_answers_are_made_of_ordinary_ids() -> None:
    made = answers()
    assert all(set(answer.ids) <= set(range(100, 110)) for answer in made)
    assert [answer.ids.tolist() for answer in made] == [answer.ids.tolist() for answer in answers()]


def test_the_trainer_scores_the_very_answers() -> None:
    asked: list[object] = []

    def score(rollouts: object) -> list[Score]:
        asked.append(rollouts)
        return trained(rollouts)

    probe = AgreementProbe(answers, score, "float32")
    probe.prepare()
    assert asked == [probe.command]


def test_the_first_engine_that_is_not_lost_renders_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(dtype="float32")
    dead, stopped, living = (SimpleNamespace(settings=settings, name=name) for name in ("dead", "stopped", "living"))

    def rendered(handle: SimpleNamespace) -> tuple[Rollout, ...]:
        if handle is dead:
            raise EngineDeadError("its process ended; replace it")
        if handle is stopped:
            raise ReplicaStoppedError("its process is stopped")
        return answers()

    monkeypatch.setattr(check, "render_probe", rendered)
    checks = check.Checks(cast(Any, [dead, stopped, living]), cast(Any, None), "matched")
    assert len(checks.probe) == len(answers())
    with pytest.raises(ReplicaStoppedError):
        _ = check.Checks(cast(Any, [dead, stopped]), cast(Any, None), "matched").probe


def test_it_is_rendered_once_lost_engines_were_replaced() -> None:
    """A sync is what replaces them, and it has the probe before."""
    rendered: list[bool] = []

    def render() -> tuple[Rollout, ...]:
        rendered.append(True)
        return answers()

    probe = AgreementProbe(render, trained, "float32")
    assert not rendered
    probe.prepare()
    assert rendered == [True]


def test_the_worst_replica_counts() -> None:
    probe = AgreementProbe(answers, trained, "float32")
    probe.prepare()
    off = scored(0.0)
    off[1] = replace(off[1], logprobs=off[1].logprobs + 0.25)
    figures = probe.agreement({"r0": scored(1e-6), "r1": off})
    assert set(figures) == set(KINDS_HERE)
    assert figures["text"]["logprob_abs_diff_mean"] == pytest.approx(1e-6)
    assert figures["image"]["logprob_abs_diff_mean"] == pytest.approx(0.25)
    assert figures["image"]["tokens"] == ANSWER_TOKENS
