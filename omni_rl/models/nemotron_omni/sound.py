"""Builds the sound tower, Parakeet. Shapes: c clips of up to M mel frames of B bins; D tower width."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ParakeetEncoder, ParakeetEncoderConfig
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderBlock

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.recomputing import Recomputable

# The encoder does not take these fields: they describe the projection and the extractor.
_NOT_ENCODER = ("projection_hidden_size", "projection_bias", "sampling_rate", "model_type", "transformers_version")


class FrozenBatchNorm(nn.BatchNorm1d):
    """Batch norm by its running statistics, which are rounded to the input's dtype, as the engine holds them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, variance, weight, bias = (tensor.to(x.dtype) for tensor in tensors)  # under autocast x is narrower
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=self.eps)


class RelativePositions(nn.Module):
    """Returns sines and cosines of the distances between frames, from frequencies that are rounded as the engine holds
    them.

    [c, M, D] become [c, 2M - 1, D]; Dai et al. 2019 (Transformer-XL), appendix B, sine and cosine interleaved.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        frames, device = hidden_states.shape[1], hidden_states.device
        channel = torch.arange(0, self.hidden_size, 2, dtype=torch.float32, device=device)
        frequency = (1.0 / 10000.0 ** (channel / self.hidden_size)).to(hidden_states.dtype)
        distance = torch.arange(frames - 1, -frames, -1, dtype=torch.float32, device=device)
        angle = distance.unsqueeze(1) * frequency.float()
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(hidden_states.dtype)
        return waves.expand(len(hidden_states), -1, -1)


class SoundLayer(Recomputable, ParakeetEncoderBlock):  # type: ignore[misc]
    """Parakeet's layer, which may be recomputed in backward though it is in eval."""


class SoundEncoder(ParakeetEncoder):  # type: ignore[misc]
    """Parakeet's encoder, always in eval: dropout, layer drop and batch statistics would make it differ from the
    engine."""

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.conv.norm = FrozenBatchNorm(config.hidden_size)
            layer.__class__ = SoundLayer
        self.encode_positions = RelativePositions(config.hidden_size)
        self.eval()

    def train(self, mode: bool = True) -> "SoundEncoder":
        """Stay in eval, whatever `mode` asks for."""
        super().train(False)
        return self


def build_encoder(config: NemotronOmniConfig) -> SoundEncoder:
    """Return the encoder that a released `sound_config` describes, without input scaling and attention biases."""
    section = {name: value for name, value in config.sound_config.to_dict().items() if name not in _NOT_ENCODER}
    settings = ParakeetEncoderConfig(**section, scale_input=False, attention_bias=False, attn_implementation="sdpa")
    return SoundEncoder(settings)


def subsampled_lengths(encoder: SoundEncoder, frames: torch.Tensor) -> torch.Tensor:
    """Return the feature counts, int64, of clips with `frames` int64 mel frames: three times floor((n - 1) / 2) + 1."""
    lengths: torch.Tensor = encoder._get_subsampling_output_length(frames)
    return lengths.long()


def sound_features(
    encoder: SoundEncoder, mel: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ([c, M', D], valid counts int64 [c]) of [c, M, B] with `mask` bool [c, M]; features past a count are
    padding."""
    features: torch.Tensor = encoder(input_features=mel, attention_mask=mask).last_hidden_state
    frames = mel.new_full((len(mel),), mel.shape[1], dtype=torch.int64) if mask is None else mask.sum(1)
    return features, subsampled_lengths(encoder, frames)
