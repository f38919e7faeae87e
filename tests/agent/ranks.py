"""Two ranks of FSDP2, and what each of them says of the model's fingerprints: `torchrun ranks.py OUT`."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from omni_rl.agent.bodies import Sums
from omni_rl.agent.trainer import fingerprints


class Experts(nn.Module):
    """Fused experts as transformers names them, with an odd number of them over two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 6))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 4))


class Model(nn.Module):
    """A linear whose rows two ranks do not share evenly, experts, a bias, and a parameter that is replicated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.mlp = nn.ModuleDict({"experts": Experts()})
        self.last = nn.Linear(5, 3, bias=False)


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def spelled(sums: Sums) -> dict[str, list[list[object]]]:
    return {name: [[one.dtype, one.elements, one.hashes, one.nonfinite] for one in each] for name, each in sums.items()}


def main() -> None:
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    sharded = model()
    fully_shard(sharded.first, mesh=mesh)
    fully_shard(sharded.mlp["experts"], mesh=mesh)
    found = spelled(fingerprints(sharded, dtype=torch.bfloat16))
    Path(sys.argv[1], f"{distributed.get_rank()}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
