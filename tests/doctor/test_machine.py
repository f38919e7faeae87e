"""What the machine lacks is told with the command that brings it."""

import pytest

from omni_rl.doctor.finding import DoctorFinding
from omni_rl.doctor.machine import NUMA, machine


def test_vllm_cannot_do_without_libnuma(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> DoctorFinding:
        (one,) = (finding for finding in machine() if finding.item == NUMA)
        return one

    def nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    assert found().level == "ok"
    monkeypatch.setattr("ctypes.CDLL", nothing)
    assert found().level == "missing"
    assert found().fix == "apt-get install libnuma1"
