"""Names RADIO's sizes: checkpoints name their vision tower's size instead of giving it.

Imports nothing, because the rollout side reads it too, before it loads anything heavy.
"""

RADIO_SIZES: dict[str, tuple[int, int, int, int]] = {
    # name: (hidden, layers, heads, MLP width)
    "vit_small_patch16_224": (384, 12, 6, 1536),
    "vit_base_patch16_224": (768, 12, 12, 3072),
    "vit_large_patch16_224": (1024, 24, 16, 4096),
    "vit_huge_patch16_224": (1280, 32, 16, 5120),
    # This size is ours, for checkpoints that a CPU samples and trains in seconds.
    "omni_tiny": (64, 2, 2, 256),
}
