"""How far apart two correct computations of the same thing may lie: by dtype, and by module once calibrated."""

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
    """The differences that count as noise.

    `mean` and `token` bound the abs d of a leg: its mean over all tokens, and that of a single token. `relative` bounds
    a module's output: the norm of the difference over the norm of the output. `modules` has the bounds of the modules
    that were calibrated, for the weights of digest `checkpoint`.
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
        """Read the bands that `save` wrote.

        Raises:
            ConfigError: The file holds no bands, or they were calibrated for other weights than `checkpoint`.
        """
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
    """Return the bands of a dtype before anything is calibrated.

    With matched numerics every module must agree with the engine's exactly, so that no difference of a module is noise;
    the legs keep their bands, because the engine's decode parts from its own prefill. With batch-invariant numerics it
    does not: decode, prefill, any batch and the trainer have the same bits, and are held to what float32 is held to.
    """
    match numerics:
        case "reference":
            return NOISE[dtype]
        case "matched":
            return replace(NOISE[dtype], relative=0.0)
        case "batch_invariant":
            return replace(NOISE[dtype], mean=NOISE["float32"].mean, token=NOISE["float32"].token, relative=0.0)


def calibrated(noise: Bands, profiles: Sequence[Mapping[str, float]], checkpoint: str) -> Bands:
    """Return bands for each module, from the `profiles` (module to relative difference) of clean runs."""
    names = dict.fromkeys(name for profile in profiles for name in profile)
    # A module that happened to be equal bit for bit must not be held to that.
    modules = {
        name: max(FACTOR * max(profile.get(name, 0.0) for profile in profiles), noise.relative / 10) for name in names
    }
    return Bands(noise.dtype, noise.mean, noise.token, noise.relative, modules, checkpoint)
