"""Projects the towers' features to the language model's embeddings."""

import torch
from torch import nn

from omni_rl.models.nemotron_omni.layers import RMSNorm, SquaredReLU


class VisionProjector(nn.Module):
    """Applies norm, linear, relu², linear, without biases: [..., vit_hidden · r²] to [..., llm_hidden].

    r = 1 / downsample_ratio, the number of patches merged along each axis.
    """

    def __init__(
        self, vit_hidden_size: int, projector_hidden_size: int, llm_hidden_size: int, downsample_ratio: float = 0.5
    ) -> None:
        super().__init__()
        shuffled = vit_hidden_size * round(1 / downsample_ratio) ** 2
        self.norm = RMSNorm(shuffled, eps=1e-5)
        self.linear1 = nn.Linear(shuffled, projector_hidden_size, bias=False)
        self.activation = SquaredReLU()
        self.linear2 = nn.Linear(projector_hidden_size, llm_hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.linear2(self.activation(self.linear1(self.norm(x))))
        return projected


class SoundProjection(nn.Module):
    """Applies the same to sound: [..., sound_hidden] to [..., llm_hidden]. `bias` applies to both linears."""

    def __init__(
        self, sound_hidden_size: int, projection_hidden_size: int, llm_hidden_size: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(sound_hidden_size, eps=1e-5)
        self.linear1 = nn.Linear(sound_hidden_size, projection_hidden_size, bias=bias)
        self.activation = SquaredReLU()
        self.linear2 = nn.Linear(projection_hidden_size, llm_hidden_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.linear2(self.activation(self.linear1(self.norm(x))))
        return projected
