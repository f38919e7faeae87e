"""Bands are measured while both policies agree, and found again for the same checkpoint only."""

from pathlib import Path

from omni_rl.bridge.noise import Noise
from omni_rl.consistency.bands import NOISE
from omni_rl.consistency.localisation import ModuleDifference


def test_bands_are_kept_for_their_checkpoint(tmp_path: Path) -> None:
    noise = Noise(tmp_path / "cache", "bfloat16", "a" * 64)
    assert noise.bands == NOISE["bfloat16"]

    def localise(sample: str) -> tuple[str, list[ModuleDifference]]:
        return sample, [ModuleDifference("layers.2.mixer", 0.06 if sample == "video" else 0.01, 3, 0.05)]

    findings = noise.calibrate(["text", "video"], localise)
    assert [finding.result for finding in findings] == ["clear", "clear"]
    again = Noise(tmp_path / "cache", "bfloat16", "a" * 64).bands
    assert 0.06 < again.of("layers.2.mixer") < 1
    assert again.of("norm") == NOISE["bfloat16"].relative
    assert Noise(tmp_path / "cache", "bfloat16", "b" * 64).bands == NOISE["bfloat16"]
