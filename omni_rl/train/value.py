"""PPO's value head, which estimates an answer's worth from the hidden state in which a token is chosen.

Every rank holds the whole head, hundreds of numbers, and learns from the gradients of all ranks.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from omni_rl.train.device import CPU
from omni_rl.train.moments import MOMENTS, beside
from omni_rl.train.settings import TrainSettings


class ValueHead(nn.Module):
    """A linear layer that begins at 0. It has an AdamW of its own, with the `weight_decay` that the model's has."""

    def __init__(self, hidden: int, settings: TrainSettings, device: torch.device = CPU) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1, device=device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self._max_norm = settings.max_grad_norm
        self._optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=settings.value_learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the values, float32 [N], of hidden states [N, hidden] in any dtype."""
        values: torch.Tensor = self.linear(hidden.float()).squeeze(-1)
        return values

    def step(self) -> None:
        """Make an optimiser step with the mean of all ranks' gradients; a collective."""
        for parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if dist.is_initialized():
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        nn.utils.clip_grad_norm_(self.parameters(), self._max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def forget_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights as `weight/parameter`, and AdamW's state as `moment/parameter`."""
        found = {f"weight/{name}": parameter.detach() for name, parameter in self.named_parameters()}
        for name, parameter in self.named_parameters():
            found |= {f"{moment}/{name}": value for moment, value in self._optimizer.state[parameter].items()}
        return found

    def load(self, path: Path) -> None:
        """Load from a safetensors file what `tensors` returned."""
        stored = load_file(path)
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                parameter.copy_(stored[f"weight/{name}"])
            moments = {moment: stored[key] for moment in MOMENTS if (key := f"{moment}/{name}") in stored}
            if moments:
                self._optimizer.state[parameter] = {
                    moment: beside(parameter, moment, value) for moment, value in moments.items()
                }
