"""The constants of the cost model, taken from the committed results of the benchmarks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_rl.errors import ConfigError

PHASES = ("prepare", "apply", "verify")
"""Those that grow with the weights; the others cost the same whatever the size."""


@dataclass(frozen=True)
class Line:
    """Seconds as a function of bytes: `fixed + bytes / rate`."""

    fixed: float
    rate: float

    def seconds(self, size: float) -> float:
        return self.fixed + size / self.rate

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> "Line":
        """Through two measured (bytes, seconds)."""
        rate = (large[0] - small[0]) / (large[1] - small[1])
        return cls(small[1] - small[0] / rate, rate)


@dataclass(frozen=True)
class Measured:
    """`phases`: seconds of a sync's phases by bytes. `still`: of those that do not grow. `check_rate`: tokens a second
    of one core, from ingest to verdict. `sync` and `ingest` are the results themselves."""

    phases: dict[str, Line]
    still: float
    check_rate: float
    sync: dict[str, Any]
    ingest: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> "Measured":
        """From `sync.json` and `ingest.json`. Raises `ConfigError` if there are none, or none of ours."""
        sync, ingest = (_results(directory / name) for name in ("sync.json", "ingest.json"))
        sizes = sorted((case for case in sync.values() if isinstance(case, dict)), key=lambda case: case["bytes"])
        if len(sizes) < 2:
            raise ConfigError(f"{directory / 'sync.json'} has one size; run omni-rl bench sync for both")
        small, large = sizes[0], sizes[-1]
        phases = {
            name: Line.through(*((case["bytes"], case["phases"][name]["p50"]) for case in (small, large)))
            for name in PHASES
        }
        others = [name for name in large["phases"] if name not in PHASES]
        still = sum(case["phases"][name]["p50"] for case in (small, large) for name in others) / 2
        return cls(phases, still, ingest["tokens_per_cpu_second"], {str(c["bytes"]): c for c in sizes}, ingest)


def _results(path: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads(path.read_text())["results"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} has no results ({error}); run omni-rl bench all, or give --bench") from None
    return results
