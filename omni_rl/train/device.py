"""Chooses the device on which a rank computes, and the backend of its collectives. docs/gpu.md says what of this was
run on a GPU."""

import torch

from omni_rl.cuda import why_no_cuda
from omni_rl.errors import ConfigError
from omni_rl.settings import DeviceKind

CPU = torch.device("cpu")
BACKENDS: dict[DeviceKind, str] = {
    "cpu": "gloo",
    # Python objects and tensors on the host go over gloo, tensors on devices over nccl.
    "cuda": "cpu:gloo,cuda:nccl",
}
"""The backend of torch.distributed for each kind of device."""


def own_device(kind: DeviceKind) -> torch.device:
    """Return the device of this process. For CUDA it is the first device that the process sees, because Ray shows a
    rank only the devices that it set aside for the rank.

    A CUDA device becomes the current one, which nccl and FSDP's streams use.

    Raises:
        ConfigError: there is no CUDA device, or torch was built without CUDA.
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
