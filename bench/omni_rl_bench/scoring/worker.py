"""Runs in the scoring benchmark's processes: timing of all methods in turn, and the peak memory of one.

`python -m omni_rl_bench.scoring.worker JSON`, with what `main` takes, prints one line of JSON.
"""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl_bench.scoring.policies import Method, Policy, load, with_method
from omni_rl_bench.scoring.workload import Sample, workload

Mode = Literal["forward", "forward+backward"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward")
KINDS = ("text", "images")
LAYOUTS = ("one_by_one", "bucketed", "padded")
CHUNKS = (16, 32, 64, 128, 256)
EXPERTS = ("eager", "grouped_mm", "batched_mm")
FINALISTS = 2
ROUNDS = 5


@dataclass(frozen=True)
class Seconds:
    """How long one round took."""

    processor: float
    clock: float


def samples_of(checkpoint: Path, kind: str) -> list[Sample]:
    config = NemotronOmniConfig.from_pretrained(checkpoint)
    cell = round(config.patch_size / config.downsample_ratio)
    return workload(kind, config.llm_config.vocab_size, config.img_context_token_id, cell)


def run(policy: Policy, samples: list[Sample], mode: Mode) -> list[torch.Tensor]:
    """Score every sample, and return the scores by sample; with "forward+backward", also compute the gradient of the
    mean logprob."""
    tokens = sum(len(sample.ids) - 1 for sample in samples)
    scores: dict[int, torch.Tensor] = {}
    with torch.set_grad_enabled(mode != "forward"):
        for batch in policy.batches(samples):
            scored = policy.score([samples[index] for index in batch])
            if mode != "forward":
                (scored.sum() / tokens).backward()  # type: ignore[no-untyped-call]
            lengths = [len(samples[index].ids) - 1 for index in batch]
            scores |= dict(zip(batch, torch.split(scored.detach(), lengths), strict=True))
    return [scores[index] for index in range(len(samples))]


def seconds_of(policy: Policy, samples: list[Sample], mode: Mode) -> Seconds:
    clock, processor = time.perf_counter(), time.process_time()
    run(policy, samples, mode)
    seconds = Seconds(round(time.process_time() - processor, 4), round(time.perf_counter() - clock, 4))
    for parameter in policy.parameters():
        parameter.grad = None
    return seconds


def screen(theirs: Policy, samples: list[Sample], mode: Mode) -> dict[Method, float]:
    """Return the processor seconds of one pass of each of transformers' methods that may be its best.

    One choice is made after the other: the experts and then the chunk where nothing is padded, then the layouts, which
    are tried with the checkpoint's chunk_size as well.
    """
    seconds: dict[Method, float] = {}

    def fastest(methods: Iterable[Method]) -> Method:
        tried = list(methods)
        for method in tried:
            if method not in seconds:
                seconds[method] = seconds_of(with_method(theirs, method), samples, mode).processor
        return min(tried, key=seconds.__getitem__)

    plain = Method("transformers", "one_by_one")
    best = fastest(replace(plain, experts=experts) for experts in EXPERTS)
    best = fastest(replace(best, chunk=chunk) for chunk in CHUNKS)
    fastest(replace(best, layout=layout, chunk=chunk) for layout in LAYOUTS for chunk in {best.chunk, None})
    return seconds


def measure_time(checkpoint: Path) -> dict[str, Any]:
    """Time transformers' fastest methods and ours in turn for each workload and mode, `ROUNDS` times, so that what else
    happens on the machine meets all of them alike."""
    ours, theirs = load(checkpoint, Method("ours")), load(checkpoint, Method("transformers"))
    timings = []
    difference = 0.0
    for kind in KINDS:
        samples = samples_of(checkpoint, kind)
        reference = run(ours, samples, "forward")
        for mode in MODES:
            for policy in (ours, theirs):  # the first pass sets libraries up
                run(policy, samples, mode)
            screened = screen(theirs, samples, mode)
            finalists = sorted(screened, key=screened.__getitem__)[:FINALISTS]
            for method in finalists:
                scores = run(with_method(theirs, method), samples, "forward")
                gaps = [(a - b).abs().max().item() for a, b in zip(reference, scores, strict=True)]
                difference = max(difference, *gaps)
            rounds: dict[Method, list[Seconds]] = {method: [] for method in (Method("ours"), *finalists)}
            for _ in range(ROUNDS):
                for method, measured in rounds.items():
                    policy = ours if method.policy == "ours" else with_method(theirs, method)
                    measured.append(seconds_of(policy, samples, mode))
            timings.append(
                {
                    "kind": kind,
                    "mode": mode,
                    "tokens": sum(len(sample.ids) for sample in samples),
                    "screened": [
                        {"method": asdict(method), "processor": screened[method]}
                        for method in sorted(screened, key=screened.__getitem__)
                    ],
                    "measured": [
                        {"method": asdict(method), "rounds": [asdict(seconds) for seconds in measured]}
                        for method, measured in rounds.items()
                    ],
                }
            )
            sys.stderr.write(f"{kind}, {mode}: timed, transformers' best is {finalists[0].name}\n")
    return {"threads": torch.get_num_threads(), "logprob_max_difference": difference, "timings": timings}


def measure_memory(checkpoint: Path, kind: str, mode: Mode, method: Method) -> dict[str, Any]:
    """Return the bytes by which one pass raises the process's resident memory at its highest; the model is loaded
    already.

    Resident memory is measured and not torch's allocations: scratch of the matrix library counts too. The shortest
    sequence goes first, so that libraries have set themselves up, and gradients exist.
    """
    policy = load(checkpoint, method)
    samples = samples_of(checkpoint, kind)
    run(policy, [min(samples, key=lambda sample: len(sample.ids))], mode)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    run(policy, samples, mode)
    return {"kind": kind, "mode": mode, "method": asdict(method), "peak_bytes": _resident("VmHWM") - before}


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, value = line.split(":", 1)
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


def main(arguments: dict[str, Any]) -> dict[str, Any]:
    checkpoint = Path(arguments["checkpoint"])
    if arguments["measure"] == "time":
        return measure_time(checkpoint)
    return measure_memory(checkpoint, arguments["kind"], arguments["mode"], Method(**arguments["method"]))


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(json.loads(sys.argv[1]))) + "\n")
