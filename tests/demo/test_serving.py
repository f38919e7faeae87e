"""`omni-rl demo --serve` against hand-written policies: what the dashboard then has of each step."""

import hashlib
import wave
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from omni_rl.client.blocking import Client
from omni_rl.config import DemoSettings
from omni_rl.demo.environment import DemoEnvironment
from omni_rl.demo.run import run
from omni_rl.demo.serving import serving
from omni_rl.errors import ServiceError
from omni_rl.jobs.posting import Posting
from omni_rl.media.formats import FORMATS, in_order
from omni_rl.media.types import MediaItem, Prompt, RenderedPrompt
from tests.demo.test_demo_loop import FakePolicies, Silent

SETTINGS: dict[str, Any] = {"steps": 2, "prompts_per_kind": 2, "max_tokens": 8, "port": 0}


class Faithful(FakePolicies):
    """Answers with an item for each of the prompt's media, in their order, each of a digest of its own."""

    def _rendered(self, prompt: Prompt) -> RenderedPrompt:
        items = tuple(
            MediaItem(modality, index, place, 1, np.array([1]), {}, {"tensor": digest(prompt, modality, index)}, "hash")
            for place, (kind, index, _) in enumerate(in_order(prompt))
            for modality in [FORMATS[kind].modality]
        )
        return replace(super()._rendered(prompt), items=items)


def digest(prompt: Prompt, modality: str, index: int) -> str:
    return hashlib.sha256(f"{prompt.id} {modality} {index}".encode()).hexdigest()


def test_every_step_is_in_the_ledger_with_its_samples_and_media(tmp_path: Path) -> None:
    settings = DemoSettings(**SETTINGS, out=tmp_path)
    with serving(settings) as served, Client(served.address) as client:
        policies = Faithful()
        report = run(settings, policies, Silent(), Posting(served.client, served.run, 1, policies.decode))
        lines = client.steps(served.run)
        assert [line.step for line in lines] == [0, 1]
        for line, step in zip(lines, report.steps, strict=True):
            assert line.figures["logprob_abs_diff_mean"] == pytest.approx(step.overall.metrics.logprob_abs_diff_mean)
            assert line.training["reward"] == pytest.approx(step.reward)
            assert line.weight_version == step.weight_version
        assert ["grad_norm" in line.training for line in lines] == [True, False]
        prompts = {prompt.id: prompt for prompt in DemoEnvironment(settings).asked(1).prompts}
        seen = 0
        for worst in client.step(served.run, 1, 1).verdict.worst:
            record = client.sample(served.run, 1, 1, worst.sample).record
            assert record["prompt_text"] == prompts[worst.sample].text
            assert len(record["token_texts"]) == len(record["ids"])
            for item in record.get("media") or []:
                seen += _checks(item["modality"], client.media(item["content"]), prompts[worst.sample])
        assert seen


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with serving(DemoSettings(**SETTINGS, out=tmp_path / "one")) as served:
        port = int(served.address.rsplit(":", 1)[1])
        taken = DemoSettings(**{**SETTINGS, "port": port}, out=tmp_path / "two")
        with pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is taken"), serving(taken):
            pass


def _checks(modality: str, content: bytes, prompt: Prompt) -> int:
    """The bytes are the prompt's own picture, sound or frames."""
    if modality == "image":
        with Image.open(BytesIO(content)) as picture:
            assert any(np.array_equal(np.asarray(picture), np.asarray(one)) for one in prompt.images)
    elif modality == "audio":
        with wave.open(BytesIO(content)) as file:
            assert (file.getframerate(), file.getnframes()) == (16_000, prompt.sounds[0].samples.shape[-1])
    else:
        with av.open(BytesIO(content)) as container:
            assert sum(1 for _ in container.decode(video=0)) == len(prompt.videos[0].frames)
    return 1
