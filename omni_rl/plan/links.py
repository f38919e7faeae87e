"""What hardware can do at most, in bytes or operations a second, as its maker publishes it.

NVIDIA, H100 Tensor Core GPU data sheet (SXM): memory 3.35 TB/s, NVLink 900 GB/s in both directions together, PCIe 5.0
128 GB/s in both together, 989 TFLOP/s in bfloat16 without sparsity. ConnectX-7 (NDR): 400 Gb/s a port; a DGX H100 has
one for each GPU.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Links:
    """Bandwidths in bytes a second, in one direction. `pcie` is between a GPU and its host, `network` from a GPU's port
    to other hosts. `device_flops` is in operations a second."""

    name: str
    gpus_per_host: int
    pcie: float
    network: float
    device_flops: float
    device_memory: int
    """The bytes of memory of one GPU."""


H100 = Links("H100 SXM, PCIe 5.0, NDR", 8, 64e9, 50e9, 989e12, 80 * 10**9)
