"""The first module that parts, in a forward of numbers; bands that belong to one checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from omni_rl.consistency.bands import NOISE, Bands, calibrated
from omni_rl.consistency.localisation import first_outside, flips_by_layer, profile
from omni_rl.consistency.records import SampleRecord
from omni_rl.errors import ConfigError

BANDS = NOISE["float32"]
NAMES = ("vision.patches", "vision.layers.0", "embeddings", "layers.0", "layers.1", "norm")


def forward(seed: int, fault_at: str | None = None) -> dict[str, np.ndarray]:
    """Six chained random modules on 12 rows; with float32's noise of this seed, and a fault that later ones inherit."""
    weights = np.random.default_rng(0)
    noise = np.random.default_rng(seed)
    rows = weights.standard_normal((12, 16))
    found = {}
    for name in NAMES:
        rows = np.tanh(rows @ weights.standard_normal((16, 16)))
        rows = rows * (1 + 1e-7 * noise.standard_normal(rows.shape))
        if name == fault_at:
            rows[5] *= 1.5
        found[name] = rows.astype(np.float32)
    return found


@pytest.mark.parametrize("fault", NAMES)
def test_the_first_module_and_the_row_of_a_fault_are_found(fault: str) -> None:
    found = first_outside(profile(forward(1), forward(2, fault), BANDS))
    assert found is not None
    assert (found.module, found.row) == (fault, 5)


def test_noise_is_inside_every_band() -> None:
    modules = profile(forward(1), forward(2), BANDS)
    assert [module.module for module in modules] == list(NAMES)
    assert first_outside(modules) is None


def test_what_is_not_finite_is_outside_every_band() -> None:
    broken = forward(2)
    broken["layers.0"][7, 3] = np.nan
    found = first_outside(profile(forward(1), broken, BANDS))
    assert found is not None
    assert (found.module, found.row) == ("layers.0", 7)


def test_a_calibrated_module_finds_what_the_wide_band_misses() -> None:
    clean = [{module.module: module.relative for module in profile(forward(1), forward(s), BANDS)} for s in (2, 3, 4)]
    bands = calibrated(NOISE["bfloat16"], clean, "digest")
    assert first_outside(profile(forward(1), forward(5), bands)) is None
    faint = forward(5)
    faint["layers.1"] *= 1.02
    assert first_outside(profile(forward(1), faint, NOISE["bfloat16"])) is None
    found = first_outside(profile(forward(1), faint, bands))
    assert found is not None
    assert found.module == "layers.1"


def test_a_shape_of_its_own_is_left_out_unless_clean_runs_had_one_shape() -> None:
    longer = forward(2)
    longer["vision.layers.0"] = np.zeros((20, 16), np.float32)
    assert first_outside(profile(forward(1), longer, BANDS)) is None
    bands = calibrated(BANDS, [dict.fromkeys(NAMES, 1e-7)], "digest")
    found = first_outside(profile(forward(1), longer, bands))
    assert found is not None
    assert found.module == "vision.layers.0"


def test_bands_come_back_for_their_own_checkpoint_only(tmp_path: Path) -> None:
    bands = calibrated(BANDS, [{"embeddings": 1e-6}], "0123456789abcdef")
    bands.save(tmp_path / "bands.json")
    assert Bands.load(tmp_path / "bands.json", "0123456789abcdef") == bands
    with pytest.raises(ConfigError, match="calibrated for weights 0123456789ab"):
        Bands.load(tmp_path / "bands.json", "another")
    (tmp_path / "bands.json").write_text("[1]")
    with pytest.raises(ConfigError, match="no noise bands"):
        Bands.load(tmp_path / "bands.json", "another")


def test_flips_are_counted_by_layer() -> None:
    experts = np.zeros((6, 3, 2), np.int16)
    experts[..., 1] = 1
    other = experts.copy()
    other[2, 1] = (0, 3)
    other[4, 1] = (3, 0)
    other[5, 2] = (1, 0)  # the same set
    record = SampleRecord("a", "text", 4, np.zeros(3), np.zeros(3), experts, other, np.zeros((6, 3), np.float32))
    assert flips_by_layer([record]) == {1: 2}
