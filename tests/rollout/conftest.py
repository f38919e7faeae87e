"""Engines and prompts for the tests that start vLLM."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omni_rl.media.types import Prompt, Sound, Video
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.sync.fill import fill, places_of
from omni_rl.sync.manifest import end
from omni_rl.sync.released import Released
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def hiss(seed: int, samples: int) -> Sound:
    return Sound((np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32), 16000)


def prompts(seed: int = 0) -> list[Prompt]:
    """Every kind; two images of different shapes in one prompt, sounds of different lengths in one batch."""
    wide, tall = Image.fromarray(noise(seed, 100, 150, 3)), Image.fromarray(noise(seed + 1, 300, 40, 3))
    long, short = hiss(seed, 32000), hiss(seed + 1, 11000)
    video = Video(noise(seed + 2, 5, 96, 96, 3), 2.0, tuple(range(5)), 5)
    return [
        Prompt("text", "def hello world how are you doing"),
        Prompt("images", "look <image> now <image>", images=(wide, tall)),
        Prompt("long sound", "hear <so_embedding> now", sounds=(long,)),
        Prompt("short sound", "hear <so_embedding> now", sounds=(short,)),
        Prompt("video", "see <video> now", videos=(video,)),
        Prompt(
            "mixed", "see <video> and <image> and <so_embedding> ok", images=(wide,), sounds=(short,), videos=(video,)
        ),
    ]


def sealed(tensors: dict[str, torch.Tensor], dtype: str, number: int, path: Path) -> SlabRef:
    """Tensors in a new slab at `path`, as version `number` of run "run"."""
    released = [Released(name, tensor) for name, tensor in tensors.items()]
    places = places_of(released, getattr(torch, dtype), RELEASED)
    slab = Slab.create(path, end(places))
    manifest = fill(slab, released, places, run="run", attempt=1, number=number, origin="trainer")
    slab.close()
    return SlabRef(str(path), str(manifest.version))


def update(engine: Any, slab: SlabRef) -> None:
    """What a replica does between its pause and its resumption."""
    engine.apply(slab)
    proof = engine.verify(slab)
    assert not proof.mismatches
    assert proof.elements_proven == proof.elements > 0
    engine.serve_as(slab.version)


@pytest.fixture
def start(small_checkpoint: Path) -> Iterator[Callable[..., Any]]:
    """Starts engines on the small checkpoint (or on `model`), and closes them after the test."""
    from omni_rl.rollout.engine import RolloutEngine
    from omni_rl.rollout.settings import EngineSettings

    engines: list[RolloutEngine] = []

    def begin(dtype: str = "float32", **settings: Any) -> RolloutEngine:
        given = {"model": small_checkpoint, "dtype": dtype} | settings
        engines.append(RolloutEngine(EngineSettings.model_validate(given)))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()
