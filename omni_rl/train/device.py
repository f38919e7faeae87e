"""Where a rank computes, and what carries its collectives; docs/gpu.md says what of it has met a GPU."""

import torch

from omni_rl.cuda import why_no_cuda
from omni_rl.errors import ConfigError
from omni_rl.settings import DeviceKind

CPU = torch.device("cpu")
BACKENDS: dict[DeviceKind, str] = {
    "cpu": "gloo",
    # Objects and what lies on the host go over gloo, tensors of devices over nccl.
    "cuda": "cpu:gloo,cuda:nccl",
}
"""torch.distributed's, by the kind of device."""


def own_device(kind: DeviceKind) -> torch.device:
    """This process's: on a CUDA machine the first that it sees, for Ray shows a rank those alone that it set aside.

    It becomes the current one, which nccl and FSDP's streams take.

    Raises:
        ConfigError: no CUDA device, or a torch that was built without CUDA.
    """
    if kind == "cpu":
        return CPU
    why = why_no_cuda()
    if why is not None:
        raise ConfigError(
            f'the trainer is to be on CUDA devices, but {why}; set device = "cpu", or see what omni-rl doctor says'
        )
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    # float32 means float32: left alone, torch lets cuDNN's convolutions, the sound tower's, round to TF32's ten bits.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device
