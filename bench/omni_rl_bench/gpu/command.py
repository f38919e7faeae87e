"""Compares the training copy and the trainer on a CUDA device with the CPU, and measures a wide model (writes
`gpu.json`).

No engine runs here: the same code on two devices is compared, so a difference comes from a device.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.consistency.limits import limits_for
from omni_rl.kinds import OVERALL
from omni_rl_bench.result import BenchmarkError, Goal, write_result

COMPARED = ("agreement", "gradients", "trainer")
"""The parts that run in both dtypes. Nothing in them is timed, so they run beside each other."""
PARTS = ("card", *COMPARED, "scoring", "step", "weights")
"""All parts. Each of them, and each dtype, has a process of its own: a device that one left in error harms no other."""
DTYPES = ("float32", "bfloat16")
SECONDS = 600.0
"""The seconds that a part may take; mamba-ssm's backward kernels alone take minutes to compile on a new machine."""
UNTUNED = {"MAMBA_DETERMINISTIC": "1"}
"""The environment of what is not timed: mamba-ssm compiles one variant of each of its kernels, instead of trying
all."""
GRADIENT = 1e-3
"""The largest relative L2 error of a parameter's float32 gradient: sums run in another order through all layers; a
fault is near 1."""


def bench_gpu(out: Path, parts: Sequence[str], say: Callable[[str], None], checkpoint: Path = SMALL_CHECKPOINT) -> Path:
    """Run the `parts`, all if there are none; one that fails is in the result with its error, beside the others.

    The file is written anew after each part: if the machine goes away, what was measured until then is left.

    Raises:
        BenchmarkError: an unknown part, or every part failed.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise BenchmarkError(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    results: dict[str, Any] = {}
    path = out / "gpu.json"

    def take(part: str, result: dict[str, Any]) -> None:
        results[part] = result
        write_result(path, "omni-rl bench gpu", list(goals(results)), results)
        say(f"{part}: {'done' if _ran(result) else json.dumps(result)}")

    wanted = [part for part in PARTS if part in parts or not parts]
    beside = [part for part in wanted if part in COMPARED]
    for part in wanted:
        if part not in COMPARED:
            take(part, _run([part], checkpoint))
        elif part == beside[0]:
            for name, result in _run_beside(beside, checkpoint).items():
                take(name, result)
    if not any(_ran(result) for result in results.values()):
        raise BenchmarkError(f"every part failed: {json.dumps(results)}")
    return path


def _run_beside(parts: Sequence[str], checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Return the results by part and by dtype."""
    processes = len(parts) * len(DTYPES)
    # Threads that wait for each other spin: more of them than cores, and nothing gets done.
    environment = UNTUNED | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    with ThreadPoolExecutor(processes) as pool:
        running = {
            part: {dtype: pool.submit(_run, [part, dtype], checkpoint, environment) for dtype in DTYPES}
            for part in parts
        }
        return {part: {dtype: each.result() for dtype, each in found.items()} for part, found in running.items()}


def _run(what: Sequence[str], checkpoint: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "omni_rl_bench.gpu.worker", str(checkpoint), *what]
    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=SECONDS)  # noqa: S603 - ours
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {SECONDS:g} s"}
    if done.returncode:
        sys.stderr.write(done.stderr)
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"error": last[0]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _ran(result: Mapping[str, Any]) -> bool:
    """Return whether there are figures in the result, of one dtype at least."""
    if result.keys() <= set(DTYPES):
        return any("error" not in each for each in result.values())
    return "error" not in result


def goals(results: Mapping[str, Any]) -> Iterator[Goal]:
    """Yield the goals of the parts that ran; the limits are those of the demo, where trainer and engine are
    compared."""
    exact = {part: results[part]["float32"] for part in COMPARED if part in results}
    limits = limits_for("float32")[OVERALL]
    if "device_against_host" in exact.get("agreement", {}):
        kinds = exact["agreement"]["device_against_host"].values()
        for name in ("logprob_abs_diff_mean", "logprob_abs_diff_max"):
            worst = max(kind[name] for kind in kinds)
            yield Goal(f"float32, device against host: {name}", worst, limits[name].warn, "lower")
    if "device_against_host" in exact.get("gradients", {}):
        worst = exact["gradients"]["device_against_host"][0]["error"]
        yield Goal("float32 gradients, device against host: relative error of the worst", worst, GRADIENT, "lower")
    for dtype, found in results.get("trainer", {}).items():
        if "equal" in found:
            same = list(found["equal"].values())
            name = f"{dtype} trainer: share of what must be equal bit for bit and is"
            yield Goal(name, sum(same) / len(same), 1.0, "higher")
