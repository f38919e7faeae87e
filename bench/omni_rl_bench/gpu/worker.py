"""Runs in the GPU benchmark's processes.

`python -m omni_rl_bench.gpu.worker CHECKPOINT PART [DTYPE]` prints one line of JSON.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main(checkpoint: str, part: str, *dtype: str) -> dict[str, Any]:
    """Run a part, which is a module with a function `measure`; what a part does not need is not imported."""
    measured: dict[str, Any] = import_module(f"omni_rl_bench.gpu.{part}").measure(Path(checkpoint), *dtype)
    return measured


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(*sys.argv[1:])) + "\n")
