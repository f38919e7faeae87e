"""Bands are measured while both policies agree, and found again for the same checkpoint only."""

from pathlib import Path

from omni_rl.bridge.noise import Noise
from omni_rl.consistency.bands import NOISE
from omni_rl.consistency.localisation import ModuleDifference


def test_bands_are_kept_for_their_checkpoint(tmp_path: Path) -> None:
    noise = Noise(tmp_path / "cache", "bfloat16", "a" * 64, "reference")
    assert noise.bands == NOISE["bfloat16"]

    def localise(sample: str) -> tuple[str, list[ModuleDifference]]:
        return sample, [ModuleDifference("layers.2.mixer", 0.06 if sample == "video" else 0.01, 3, 0.05)]

    findings = noise.calibrate(["text", "video"], localise)
    assert [finding.result for finding in findings] == ["clear", "clear"]
    again = Noise(tmp_path / "cache", "bfloat16", "a" * 64, "reference").bands
    assert 0.06 < again.of("layers.2.mixer") < 1
    assert again.of("norm") == NOISE["bfloat16"].relative
    assert Noise(tmp_path / "cache", "bfloat16", "b" * 64, "reference").bands == NOISE["bfloat16"]


def test_in_the_matched_mode_nothing_that_a_module_gives_is_noise(tmp_path: Path) -> None:
    noise = Noise(tmp_path, "bfloat16", "a" * 64, "matched")
    assert noise.bands.relative == 0
    assert noise.bands.mean == NOISE["bfloat16"].mean  # the engine's decode parts from its own prefill
    equal, apart = (ModuleDifference(name, relative, 0, 0.0) for name, relative in (("norm", 0.0), ("mixer", 1e-6)))
    assert not equal.outside
    assert apart.outside
    (clear,) = noise.calibrate(["text"], lambda sample: (sample, [equal]))
    assert clear.result == "clear"
    assert noise.bands.of("norm") == 0
    assert (
        Noise(tmp_path, "bfloat16", "a" * 64, "reference").bands == NOISE["bfloat16"]
    )  # measured for the other numerics
