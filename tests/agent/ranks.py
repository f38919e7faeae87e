"""Ranks of FSDP2, and what each of them says of the model's fingerprints: `torchrun ranks.py OUT [FAILING]`.

`FAILING` is the rank that cannot hash one of its tensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from omni_rl.agent import trainer
from omni_rl.agent.bodies import Sums
from omni_rl.agent.trainer import fingerprints


class Experts(nn.Module):
    """Fused experts as transformers names them, with a number of them that ranks do not share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 6))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 4))


class Model(nn.Module):
    """A linear whose rows ranks do not share evenly, experts, a bias, a vector of fewer elements than there are ranks,
    and parameters that are replicated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.mlp = nn.ModuleDict({"experts": Experts()})
        self.norm = nn.LayerNorm(3, bias=False)
        self.last = nn.Linear(5, 3, bias=False)


class Sent(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what goes through torch.distributed's collectives: their names, and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.names.add(func.name())
            self.bytes += sum(one.nbytes for one in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(one))
        return func(*args, **(kwargs or {}))


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def spelled(sums: Sums) -> dict[str, list[list[object]]]:
    return {name: [[one.dtype, one.elements, one.hashes, one.nonfinite] for one in each] for name, each in sums.items()}


def fail(*_: object) -> Any:
    raise MemoryError("no room for a piece")


def main() -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    sharded = model()
    for module in (sharded.first, sharded.mlp["experts"], sharded.norm):
        fully_shard(module, mesh=mesh)
    if len(sys.argv) > 2 and int(sys.argv[2]) == rank:
        vars(trainer)["fingerprint"] = fail
    said: dict[str, object]
    with Sent() as sent:
        try:
            said = {"sums": spelled(fingerprints(sharded, dtype=torch.bfloat16))}
        except (MemoryError, RuntimeError) as error:
            said = {"error": str(error)}
    said |= {"collectives": sorted(sent.names), "bytes": sent.bytes}
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(said))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
