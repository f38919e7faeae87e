"""Makes what the scoring benchmark scores: sequences of mixed lengths, some with images, the same for every policy.

Shapes: T tokens, H x W pixels, p patches.
"""

from dataclasses import dataclass

import torch

from omni_rl.models.packed import PackedMedia, PackedSequences

SEQUENCES = 16
LENGTHS = (32, 1024)  # tokens of the shortest and the longest; the others lie evenly between
IMAGE_SIDES = (64, 96, 128, 160, 192, 256)
LEAD = 4  # tokens before the first image


@dataclass(frozen=True)
class Sample:
    """One sequence: `ids` int64 [T]; `images` float32 [3, H, W] each, whose placeholders follow the first `LEAD`
    tokens."""

    ids: torch.Tensor
    images: tuple[torch.Tensor, ...] = ()

    def slots(self, cell: int) -> list[int]:
        """Return the number of placeholder tokens of each image, one per square of `cell` pixels."""
        return [image.shape[1] * image.shape[2] // cell**2 for image in self.images]


def workload(kind: str, vocabulary: int, placeholder: int, cell: int, seed: int = 0) -> list[Sample]:
    """Return the samples of `kind` "text", or "images": every other sequence holds one or two images of different
    shapes, if they fit."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(*LENGTHS, SEQUENCES).round().long()
    lengths = lengths[torch.randperm(SEQUENCES, generator=generator)]
    samples = []
    for number, length in enumerate(lengths.tolist()):
        ids = torch.randint(32, vocabulary, (length,), generator=generator)
        images: list[torch.Tensor] = []
        if kind == "images" and number % 2 == 0:
            for _ in range(1 + number // 2 % 2):
                height, width = (IMAGE_SIDES[i] for i in torch.randint(len(IMAGE_SIDES), (2,), generator=generator))
                images.append(torch.randn(3, height, width, generator=generator))
        sample = Sample(ids, tuple(images))
        slots = sum(sample.slots(cell))
        if slots + LEAD + 1 > length:
            sample, slots = Sample(ids), 0
        ids[LEAD : LEAD + slots] = placeholder
        samples.append(sample)
    return samples


def packed(samples: list[Sample], cell: int) -> PackedSequences:
    """Return the samples back to back, every token but a sequence's first to be scored."""
    starts = [0]
    media, masks = [], []
    for number, sample in enumerate(samples):
        position = starts[-1] + LEAD
        for image, slots in zip(sample.images, sample.slots(cell), strict=True):
            places = torch.arange(position, position + slots)
            media.append(PackedMedia("image", places, {"pixel_values_flat": image}, f"sample {number}"))
            position += slots
        masks.append(torch.arange(len(sample.ids)) > 0)
        starts.append(starts[-1] + len(sample.ids))
    return PackedSequences(
        ids=torch.cat([sample.ids for sample in samples]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        score_mask=torch.cat(masks),
        media=tuple(media),
    )
