"""Checks whether this host can send weights by vLLM's own transfer, before anything starts, and without torch."""

from omni_rl.bridge.settings import Hosts
from omni_rl.doctor.gpu import cpu_build, cuda_devices
from omni_rl.errors import ConfigError
from omni_rl.settings import WITHOUT_DEVICES


def require_devices(hosts: Hosts, replicas: int) -> None:
    """Raise `ConfigError` if the transport needs CUDA devices that this host, which is the bridge's, does not have."""
    if hosts.weight_transfer is not None:
        why = refusal(hosts, replicas, cuda_devices(), cpu_build())
        if why is not None:
            raise ConfigError(f'transport "{hosts.transport}": {why}')


def refusal(hosts: Hosts, replicas: int, devices: int, cpu_build: str | None) -> str | None:
    """Return why a host of so many `devices` cannot send weights with vLLM's transfer, and what to do; None if it can.

    `cpu_build` is the version of the host's torch, if that was built without CUDA.
    """
    if not devices:
        return f"it sends weights between CUDA devices, and this host has none; {WITHOUT_DEVICES}"
    if cpu_build is not None:
        return (
            f"it sends weights between CUDA devices, and this torch {cpu_build} was built without CUDA (docs/gpu.md "
            f"says what to install); {WITHOUT_DEVICES}"
        )
    if hosts.rollout_resources.get("GPU", 0) < 1:
        return (
            "it sends weights to the engines' CUDA devices, and rollout_resources gives them none; set it to "
            f"{{ GPU = 1 }}, or {WITHOUT_DEVICES}"
        )
    if hosts.weight_transfer == "nccl" and devices <= replicas:
        return (
            f"nccl takes one device for each of {replicas} engine(s) and one to send from, and this host has "
            f"{devices}; lower replicas, or {WITHOUT_DEVICES}"
        )
    if hosts.weight_transfer == "ipc" and replicas > 1:
        return (
            "ipc hands over memory of one device, so it reaches one engine, and replicas is "
            f'{replicas}; take "vllm_nccl", or {WITHOUT_DEVICES}'
        )
    return None
