"""Fixtures of this room: vLLM's front end without an engine behind it, and rendered prompts of every kind."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from omni_rl.media.renderer import Renderer
from omni_rl.media.types import Prompt


@pytest.fixture(scope="session")
def start_front_end(small_checkpoint: Path) -> Callable[..., Any]:
    """Makes the part of vLLM that renders, for a context length, in float32; no model is loaded.

    `video_pruning_rate` is vLLM's engine argument.
    """
    from vllm import EngineArgs
    from vllm.renderers import renderer_from_config

    from omni_rl.rollout.registration import register

    register()

    def start(max_model_len: int, video_pruning_rate: float | None = None) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about settings that only matter to an engine
            config = EngineArgs(
                model=str(small_checkpoint),
                dtype="float32",
                max_model_len=max_model_len,
                enforce_eager=True,
                limit_mm_per_prompt={"image": 3, "audio": 2, "video": 2},
                kv_cache_memory_bytes=2**28,
                video_pruning_rate=video_pruning_rate,
            ).create_engine_config()
        return SimpleNamespace(renderer=renderer_from_config(config))

    return start


@pytest.fixture(scope="session")
def front_end(start_front_end: Callable[..., Any]) -> Any:
    return start_front_end(1024)


@pytest.fixture(scope="session")
def renderer(front_end: Any) -> Renderer:
    return Renderer(front_end)


@pytest.fixture(scope="session")
def raw() -> Callable[[Prompt], dict[str, Any]]:
    """A prompt as a user of vLLM would write it: what our rendering is compared with."""

    def as_vllm_takes_it(prompt: Prompt) -> dict[str, Any]:
        clips = [
            (
                clip.frames,
                {"fps": clip.fps, "frames_indices": list(clip.indices), "total_num_frames": clip.total_frames},
            )
            for clip in prompt.videos
        ]
        sounds = [(sound.samples, sound.rate) for sound in prompt.sounds]
        media = {"image": list(prompt.images), "audio": sounds, "video": clips}
        return {"prompt": prompt.text, "multi_modal_data": {name: items for name, items in media.items() if items}}

    return as_vllm_takes_it
