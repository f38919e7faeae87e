"""Input that fits nothing is refused in words, as an error of this package, never by an index or in silence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from omni_rl.errors import ConfigError, MediaError, PromptError
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.packed import PackedMedia, PackedSequences

from .conftest import CONFIG, LANGUAGE

Model = NemotronOmniForConditionalGeneration
IDS = torch.full((1, 10), 50)
CALLS: dict[str, tuple[Callable[[Model], Any], str]] = {
    "no tiles": (lambda m: m.extract_feature(torch.zeros(0, 3, 64, 64)), "tiles have the shape"),
    "an empty list of tiles": (lambda m: m.extract_feature([]), "empty list"),
    "no images": (lambda m: m.extract_feature_dynamic(torch.zeros(0, 3, 64, 64), []), "no image"),
    "no frames": (lambda m: m.extract_video_feature(torch.zeros(0, 3, 64, 64)), "video frames have the shape"),
    "two videos": (lambda m: m.extract_video_feature(torch.zeros(2, 4, 3, 64, 64)), "one video at a time"),
    "two videos forward": (lambda m: m(input_ids=IDS, pixel_values_videos=torch.zeros(2, 4, 3, 64, 64)), "one video"),
    "grey tiles": (lambda m: m.extract_feature(torch.zeros(1, 1, 64, 64)), "tile 0 has the shape"),
    "frames with alpha": (lambda m: m.extract_video_feature(torch.zeros(2, 4, 64, 64)), "video frame 0 has the shape"),
    "grey images": (lambda m: m.extract_feature_dynamic(torch.zeros(1, 1, 64, 64), [(64, 64)]), "image 0 has"),
    "no clips": (lambda m: m.extract_sound_feature(torch.zeros(0, 40, 16)), "none empty"),
    "no mel frames": (lambda m: m.extract_sound_feature(torch.zeros(1, 0, 16)), "none empty"),
    "other mel bins": (lambda m: m.extract_sound_feature(torch.zeros(1, 40, 80)), "16 mel bins"),
    "a clip of padding": (
        lambda m: m.extract_sound_feature(torch.zeros(2, 40, 16), torch.tensor([[True] * 40, [False] * 40])),
        "clip 1 is padding alone",
    ),
    "an empty batch": (lambda m: m(input_ids=torch.zeros(0, 5, dtype=torch.int64)), "no tokens"),
    "no tokens": (lambda m: m(input_ids=torch.zeros(2, 0, dtype=torch.int64)), "no tokens"),
    "padding alone": (lambda m: m(input_ids=IDS, attention_mask=torch.zeros_like(IDS)), "no tokens"),
    "an empty pack": (lambda m: m.score_packed(_pack([], [0], [])), "no tokens"),
    "a scored first token": (lambda m: m.score_packed(_pack([50] * 4, [0, 4], [0, 2])), "first token"),
    "bounds of other tokens": (lambda m: m.score_packed(_pack([50] * 4, [0, 5], [2])), "do not go from 0 to 4"),
    "bounds that go back": (lambda m: m.score_packed(_pack([50] * 4, [0, 3, 2, 4], [1])), "in order"),
}


def _pack(ids: list[int], bounds: list[int], scored: list[int]) -> PackedSequences:
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[scored] = True
    return PackedSequences(torch.tensor(ids, dtype=torch.int64), torch.tensor(bounds), mask)


@pytest.mark.parametrize("case", CALLS)
def test_the_message_says_what_is_wrong(omni: Model, case: str) -> None:
    call, reason = CALLS[case]
    with pytest.raises((MediaError, PromptError), match=reason):
        call(omni)


def test_a_place_that_two_items_claim_is_named(omni: Model, media: Callable[..., PackedMedia]) -> None:
    items = (media("image", [3, 4]), media("audio", [4, 5, 6, 7, 8], seed=1))
    with pytest.raises(PromptError, match="position 4 is claimed twice, by image of sample sample-0 and by audio"):
        omni(input_ids=IDS, media=items)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"sliding_window": 128}, "sliding_window is 128"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7, with 6 experts"),
        ({"n_group": 4}, "n_group 4"),
        ({"n_group": 2, "topk_group": 3}, "topk_group 3"),
    ],
)
def test_a_language_model_that_is_not_computed_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Model(NemotronOmniConfig(**CONFIG | {"llm_config": LANGUAGE | change}))
