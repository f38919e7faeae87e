"""Rollouts made by hand, as the media path and the engine would hand them over."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import ray
import torch

from omni_rl.media.digests import tensor_digest
from omni_rl.media.types import MediaItem, RenderedPrompt
from omni_rl.rollout.types import Rollout, VersionSpan

MakeRollout = Callable[..., Rollout]

IMAGE_TOKEN = 18


def _image(index: int, offset: int, height: int, width: int, rng: np.random.Generator) -> MediaItem:
    """A normalised image of `height` x `width` pixels: 16-pixel patches, merged 2 x 2 into one token."""
    tokens = (height // 32) * (width // 32)
    pixels = torch.from_numpy(rng.standard_normal((3, height, width)).astype(np.float32))
    return MediaItem(
        modality="image",
        index=index,
        offset=offset,
        length=tokens,
        positions=np.arange(offset, offset + tokens),
        tensors={"pixel_values_flat": pixels},
        digests={"pixel_values_flat": tensor_digest(pixels)},
        content_hash=f"image-{index}",
    )


@pytest.fixture
def make_rollout() -> MakeRollout:
    """`make_rollout(seed, prompt=P, answer=T, images=[(height, width), ...])`: images stand after the first token."""

    def make(
        seed: int,
        *,
        prompt: int = 6,
        answer: int = 4,
        images: Sequence[tuple[int, int]] = (),
        temperature: float = 1.0,
    ) -> Rollout:
        rng = np.random.default_rng(seed)
        ids = list(rng.integers(40, 500, 2))
        items = []
        for index, (height, width) in enumerate(images):
            items.append(_image(index, len(ids), height, width, rng))
            ids += [IMAGE_TOKEN] * items[-1].length + [int(rng.integers(40, 500))]
        ids += list(rng.integers(40, 500, prompt - 2))
        return Rollout(
            prompt=RenderedPrompt(
                id=f"prompt-{seed}",
                kind="image" if items else "text",
                ids=np.asarray(ids, dtype=np.int64),
                items=tuple(items),
            ),
            ids=rng.integers(40, 500, answer).astype(np.int64),
            logprobs=np.zeros(answer),
            temperature=temperature,
            version_spans=(VersionSpan("run/1/0/abc", 0, answer),),
            engine_digests=(),
            experts=None,
            finish_reason="length",
        )

    return make


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this module's own."""
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()
