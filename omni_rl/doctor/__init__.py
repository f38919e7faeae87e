"""What this machine has, what is missing, and the fix. It looks at what is installed, and imports no heavy package."""

from omni_rl.doctor.finding import DoctorFinding
from omni_rl.doctor.gpu import gpus
from omni_rl.doctor.machine import machine

__all__ = ["DoctorFinding", "examine"]


def examine() -> list[DoctorFinding]:
    """Return all findings, in the order to read them."""
    return [*machine(), *gpus()]
