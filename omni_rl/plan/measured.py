"""The constants of the cost model, taken from the committed results of the benchmarks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_rl.errors import ConfigError

PHASES = ("prepare", "apply", "verify")
"""The phases whose time grows with the weights; the others cost the same whatever the size."""


@dataclass(frozen=True)
class StraightLine:
    """Seconds as a function of bytes: `fixed + bytes / rate`."""

    fixed: float
    rate: float

    def seconds(self, size: float) -> float:
        return self.fixed + size / self.rate

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> "StraightLine":
        """Return the line through two measured pairs of (bytes, seconds)."""
        rate = (large[0] - small[0]) / (large[1] - small[1])
        return cls(small[1] - small[0] / rate, rate)


@dataclass(frozen=True)
class MeasuredConstants:
    """The model's constants. `phases` are the seconds of a sync's phases by bytes; `still` the seconds of those that do
    not grow. `check_rate` is the tokens a second of one core, from ingest to verdict. `sync` and `ingest` are the
    results themselves."""

    phases: dict[str, StraightLine]
    still: float
    check_rate: float
    sync: dict[str, Any]
    ingest: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> "MeasuredConstants":
        """Read `sync.json` and `ingest.json` in `directory`. Raises `ConfigError` if either is absent or is not one of
        ours."""
        sync, ingest = (_results(directory / name) for name in ("sync.json", "ingest.json"))
        sizes = sorted((case for case in sync.values() if isinstance(case, dict)), key=lambda case: case["bytes"])
        if len(sizes) < 2:
            raise ConfigError(f"{directory / 'sync.json'} has one size; run omni-rl bench sync for both")
        small, large = sizes[0], sizes[-1]
        phases = {
            name: StraightLine.through(*((case["bytes"], case["phases"][name]["p50"]) for case in (small, large)))
            for name in PHASES
        }
        others = [name for name in large["phases"] if name not in PHASES]
        still = sum(case["phases"][name]["p50"] for case in (small, large) for name in others) / 2
        return cls(phases, still, ingest["tokens_per_cpu_second"], {str(c["bytes"]): c for c in sizes}, ingest)


def published() -> Path:
    """Return the directory of the results that came with this version: beside this module in an installed package,
    which has those that a plan is made of, and `bench/` in a checkout."""
    installed = Path(__file__).with_name("results")
    return installed if installed.is_dir() else Path(__file__).parents[2] / "bench"


def _results(path: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads(path.read_text())["results"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} has no results ({error}); run omni-rl bench all, or give --bench") from None
    return results
