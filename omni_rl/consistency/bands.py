"""How far apart two correct computations of the same thing come to lie: by dtype, and by module once calibrated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from omni_rl.errors import ConfigError
from omni_rl.settings import Numerics

FACTOR = 4.0
"""A module's band is this many times the widest difference of clean runs."""


@dataclass(frozen=True)
class Bands:
    """What counts as noise.

    `mean` and `token`: of abs d of a leg, over all tokens and of one. `relative`: of a module's output, the norm of the
    difference over the output's own; `modules` has those that were calibrated, for the weights of digest `checkpoint`.
    """

    dtype: str
    mean: float
    token: float
    relative: float
    modules: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str = ""

    def of(self, module: str) -> float:
        return self.modules.get(module, self.relative)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, checkpoint: str) -> "Bands":
        """Raises `ConfigError` if they were calibrated for other weights, or are no bands."""
        try:
            bands = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} holds no noise bands ({error}); calibrate them again") from None
        if bands.checkpoint != checkpoint:
            raise ConfigError(
                f"{path} was calibrated for weights {bands.checkpoint[:12]}, these are {checkpoint[:12]}; calibrate "
                "again"
            )
        return bands


# float32: an order of magnitude above clean runs, as the demo's own limits. bfloat16: the engine's prefill lies 0.018
# to 0.027 from its own decode, and single tokens up to 0.37.
NOISE: Mapping[str, Bands] = {
    "float32": Bands("float32", mean=1e-5, token=1e-4, relative=1e-4),
    "bfloat16": Bands("bfloat16", mean=0.05, token=0.4, relative=0.05),
}


def noise_of(dtype: str, numerics: Numerics) -> Bands:
    """Before anything is calibrated.

    Of matched numerics every module's parity with the engine is 1, so that no difference of a module is noise; the legs
    keep theirs, because the engine's decode parts from its own prefill. Of batch-invariant ones it does not: decode,
    prefill, any batch and the trainer have the same bits, and are held to what float32 is held to.
    """
    match numerics:
        case "reference":
            return NOISE[dtype]
        case "matched":
            return replace(NOISE[dtype], relative=0.0)
        case "batch_invariant":
            return replace(NOISE[dtype], mean=NOISE["float32"].mean, token=NOISE["float32"].token, relative=0.0)


def calibrated(noise: Bands, profiles: Sequence[Mapping[str, float]], checkpoint: str) -> Bands:
    """Bands of each module from the `profiles` (module to relative difference) of clean runs."""
    names = dict.fromkeys(name for profile in profiles for name in profile)
    # A module that happened to be equal bit for bit must not be held to that.
    modules = {
        name: max(FACTOR * max(profile.get(name, 0.0) for profile in profiles), noise.relative / 10) for name in names
    }
    return Bands(noise.dtype, noise.mean, noise.token, noise.relative, modules, checkpoint)
