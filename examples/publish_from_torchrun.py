"""A trainer that knows nothing of omni-rl hands its sharded weights to a run, each rank its own shards.

    torchrun --nproc-per-node 2 examples/publish_from_torchrun.py --checkpoint DIR

The run must be on this host: omni-rl up starts one. What this prints, omni-rl sync --source published --version brings
to its engines. The model here is a plain
module whose parameters are a checkpoint's tensors under their released names, sharded with FSDP2; a real trainer
gives `publish` its state dict under the same names.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from omni_rl.client import publish


class Weights(nn.Module):
    """Every tensor of a checkpoint as a parameter or buffer; torch takes no dots in their names."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        tensors = load_file(checkpoint / "model.safetensors")
        self.names = {name.replace(".", "/"): name for name in tensors}
        for own, name in self.names.items():
            if tensors[name].is_floating_point():
                self.register_parameter(own, nn.Parameter(tensors[name].float()))
            else:
                self.register_buffer(own, tensors[name])

    def released(self) -> dict[str, torch.Tensor]:
        """The state dict in released names: DTensors, of which this rank holds some rows, and whole buffers."""
        return {self.names[own]: tensor for own, tensor in self.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--into", metavar="RUN", help="as omni-rl status prints it; needed where this host has several")
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--slabs", type=Path, default=Path("/dev/shm"), help="where the run's slabs are")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    model = Weights(options.checkpoint)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    published = publish(model.released(), run=options.into, number=options.number, directory=options.slabs)
    if dist.get_rank() == 0:
        print(f"{published.version} in {published.path}")
    # gloo's threads live to the process's end, which they abort if they still hold tensors of the last collective then.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
