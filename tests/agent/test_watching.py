"""How the agent notices that an engine's weights were written to, without a look at every expert."""

import torch
from torch import nn

from omni_rl import torchvision_schemas

torchvision_schemas.install()  # vLLM imports transformers, which imports torchvision

from omni_rl.agent.held import ModelPart  # noqa: E402
from omni_rl.agent.watching import _one_of_each, _writes  # noqa: E402

EXPERTS = 128


def test_a_write_to_one_expert_shows_in_the_one_view_that_is_looked_at() -> None:
    weights, norm = nn.Parameter(torch.zeros(EXPERTS, 4, 8)), nn.Parameter(torch.ones(8))
    with torch.inference_mode():  # as the agent takes them
        parts = [ModelPart(f"experts.{n}.down_proj.weight", "experts.w2_weight", one) for n, one in enumerate(weights)]
    parts += [ModelPart("norm.weight", "norm.weight", norm), ModelPart("head", "head", None, why="packed")]
    looked_at = _one_of_each(parts)
    assert len(looked_at) == 2
    for mode in (torch.no_grad(), torch.inference_mode()):
        before = _writes(looked_at)
        with mode:
            weights[EXPERTS // 2].add_(1.0)
        assert _writes(looked_at) == before + 1
