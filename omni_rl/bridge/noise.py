"""Measures the usual differences of a run's modules once, while both policies agree, and stores them by checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from omni_rl.consistency.attribution import legs
from omni_rl.consistency.bands import Bands, calibrated, noise_of
from omni_rl.consistency.evidence import Finding
from omni_rl.consistency.localisation import ModuleDifference
from omni_rl.errors import ConfigError
from omni_rl.settings import Numerics

Localise = Callable[[str], tuple[str, list[ModuleDifference]]]


class Noise:
    """The tolerances (bands) of a run's modules. `checkpoint` is the digest of what the engines were loaded from,
    `numerics` the trainer's. The bands lie in `folder`, one file for each checkpoint and numerics."""

    def __init__(self, folder: Path, dtype: str, checkpoint: str, numerics: Numerics) -> None:
        self._path = folder / f"bands-{dtype}-{numerics}-{checkpoint[:32]}.json"
        self._noise = noise_of(dtype, numerics)
        self._checkpoint = checkpoint

    @property
    def bands(self) -> Bands:
        """The calibrated bands, or the dtype's own where there are none."""
        try:
            return Bands.load(self._path, self._checkpoint)
        except ConfigError:
            return self._noise

    def calibrate(self, samples: Sequence[str], localise: Localise) -> list[Finding]:
        """Measure the modules on samples that agree, and store the bands; return what each sample shows."""
        found = [localise(sample) for sample in samples]
        profiles = [{module.module: module.relative for module in modules} for _, modules in found]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        bands = calibrated(self._noise, profiles, self._checkpoint)
        bands.save(self._path)
        return [
            legs.localisation([replace(module, band=bands.of(module.module)) for module in modules], sample)
            for sample, modules in found
        ]
