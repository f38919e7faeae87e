"""What is said of GPUs, with a stand-in for nvidia-smi: no test machine has one."""

from pathlib import Path

import pytest

from omni_rl.doctor.finding import DoctorFinding
from omni_rl.doctor.gpu import cuda_devices, gpus

H100 = "{index}, NVIDIA H100 80GB HBM3, 570.86.15, 81559, 9.0, {mig}"


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    folder = tmp_path / "gpus"
    for number in range(2):
        (folder / f"0000:{number}").mkdir(parents=True)
    return folder


def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Let nvidia-smi be a shell script that does this."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")


def by_item(found: list[DoctorFinding]) -> dict[str, DoctorFinding]:
    return {finding.item: finding for finding in found}


def test_a_machine_without_a_device_needs_nothing(tmp_path: Path) -> None:
    assert [finding.level for finding in gpus(tmp_path / "none")] == ["ok"]


def test_devices_are_counted_without_asking_them(devices: Path, tmp_path: Path) -> None:
    assert cuda_devices(devices) == 2
    assert cuda_devices(tmp_path / "none") == 0


def test_each_device_is_listed_and_a_partitioned_one_has_a_fix(
    devices: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = "\n".join(H100.format(index=n, mig=mig) for n, mig in enumerate(("Disabled", "Enabled")))
    told(monkeypatch, tmp_path, f"cat <<'END'\n{lines}\nEND")
    found = by_item(gpus(devices))
    assert found["gpu 0"].level == "ok"
    assert "80 GiB" in found["gpu 0"].detail
    assert found["gpu 1"].level == "warn"
    assert "-mig 0" in found["gpu 1"].fix
    assert found["gpu driver"].level == "ok"


@pytest.mark.parametrize(
    ("line", "item", "level"),
    [
        ("0, Tesla V100-SXM2-32GB, 550.54, 32768, 7.0, [N/A]", "gpu 0", "missing"),
        ("0, NVIDIA A100-SXM4-40GB, 550.54, 40960, 8.0, Disabled", "gpu 0", "warn"),
        ("0, NVIDIA A100-SXM4-80GB, 470.82, 81920, 8.0, Disabled", "gpu driver", "missing"),
    ],
)
def test_what_does_not_do_is_named(
    devices: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, item: str, level: str
) -> None:
    told(monkeypatch, tmp_path, f"echo '{line}'")
    finding = by_item(gpus(devices))[item]
    assert finding.level == level
    assert finding.fix


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "true"])
def test_devices_that_do_not_answer_are_missing(
    devices: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    told(monkeypatch, tmp_path, script)
    (finding,) = gpus(devices)
    assert finding.level == "missing"
    assert "nvidia-smi" in finding.detail
