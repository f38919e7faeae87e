"""The sound path against vLLM's Parakeet with the same weights."""

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.models.parakeet import ProjectedParakeet

from omni_rl.models.nemotron_omni import sound
from omni_rl.models.nemotron_omni.features import sound_embeddings
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration


def _clips(frames: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(frames)
    mask = torch.arange(longest) < torch.tensor(frames)[:, None]
    return torch.randn(len(frames), longest, 16) * mask[..., None], mask


@pytest.fixture(scope="module")
def reference(omni: NemotronOmniForConditionalGeneration) -> ProjectedParakeet:
    with set_current_vllm_config(VllmConfig()):
        model = ProjectedParakeet(
            omni.config.sound_config, dtype=torch.float32, llm_hidden_size=64, max_model_len=128
        ).eval()
    released = omni.state_dict_adapter.to_hf(omni.state_dict())
    model.load_weights((name, tensor) for name, tensor in released.items() if name.startswith("sound"))
    return model


def test_features_equal_vllm_and_each_clip_is_trimmed_to_its_own_length(
    omni: NemotronOmniForConditionalGeneration, reference: ProjectedParakeet
) -> None:
    mel, mask = _clips([10, 200, 77, 1])
    with torch.no_grad():
        clips = sound_embeddings(omni, mel, mask)
        theirs = reference.projection(reference.encoder(mel, mask).last_hidden_state)
    for clip, expected, frames in zip(clips, theirs, [10, 200, 77, 1], strict=True):
        length = frames
        for _ in range(3):
            length = (length - 1) // 2 + 1
        assert len(clip) == length
        assert (clip - expected[:length]).norm() / expected[:length].norm() < 1e-5


def test_a_clips_padding_does_not_reach_it(omni: NemotronOmniForConditionalGeneration) -> None:
    mel, mask = _clips([40, 160])
    with torch.no_grad():
        together, _ = sound_embeddings(omni, mel, mask)
        (alone,) = sound_embeddings(omni, mel[:1, :40], mask[:1, :40])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_training_mode_changes_nothing(omni: NemotronOmniForConditionalGeneration) -> None:
    mel, mask = _clips([64])
    with torch.no_grad():
        (before,) = sound_embeddings(omni, mel, mask)
        omni.train()
        (during,) = sound_embeddings(omni, mel, mask)
        omni.eval()
    assert torch.equal(before, during)


def test_lengths_follow_the_three_strides(omni: NemotronOmniForConditionalGeneration) -> None:
    assert omni.sound_encoder is not None
    frames = torch.arange(1, 500)
    expected = frames
    for _ in range(3):
        expected = (expected - 1) // 2 + 1
    assert torch.equal(sound.subsampled_lengths(omni.sound_encoder, frames), expected)
