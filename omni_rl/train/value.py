"""PPO's value head: what an answer is worth, read off the hidden state in which a token is chosen.

Every rank holds all of it, hundreds of numbers, and learns from the sum of the ranks' gradients.
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
    """A linear layer that begins at 0, with an AdamW of its own."""

    def __init__(self, hidden: int, settings: TrainSettings, device: torch.device = CPU) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1, device=device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self._max_norm = settings.max_grad_norm
        self._optimizer = torch.optim.AdamW(
            self.parameters(), lr=settings.value_learning_rate, betas=settings.betas, eps=settings.epsilon
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, hidden] in any dtype to float32 [N]."""
        values: torch.Tensor = self.linear(hidden.float()).squeeze(-1)
        return values

    def step(self) -> None:
        """Learn from the gradients of all ranks, whose mean it takes; a collective."""
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
        """Weights and AdamW's state, by `kind/parameter`."""
        found = {f"weight/{name}": parameter.detach() for name, parameter in self.named_parameters()}
        for name, parameter in self.named_parameters():
            found |= {f"{moment}/{name}": value for moment, value in self._optimizer.state[parameter].items()}
        return found

    def load(self, path: Path) -> None:
        """What `tensors` gave, from a safetensors file."""
        stored = load_file(path)
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                parameter.copy_(stored[f"weight/{name}"])
            moments = {moment: stored[key] for moment in MOMENTS if (key := f"{moment}/{name}") in stored}
            if moments:
                self._optimizer.state[parameter] = {
                    moment: beside(parameter, moment, value) for moment, value in moments.items()
                }
