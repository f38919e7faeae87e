"""What runs in the scoring benchmark's processes: timing of all methods in turn, and the peak memory of one.

`python -m omni_rl.bench.scoring.worker JSON`, with what `main` takes, prints one line of JSON.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from omni_rl.bench.scoring.policies import Method, Policy, load, with_method
from omni_rl.bench.scoring.workload import Sample, workload
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig

Mode = Literal["forward", "forward+backward"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward")
KINDS = ("text", "images")
LAYOUTS = ("one_by_one", "bucketed", "padded")
CHUNKS = (16, 32, 64, 128, 256)
EXPERTS = ("eager", "grouped_mm", "batched_mm")
ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one method on one workload, of the processor and by the clock."""

    kind: str
    mode: Mode
    method: Method
    tokens: int
    rounds: list["Seconds"]

    @property
    def tokens_per_second(self) -> float:
        """Of the fastest round, in the processor's seconds: with one thread they are those of the clock on a machine
        that does nothing else, and on any other they leave out what was taken away."""
        return self.tokens / min(seconds.processor for seconds in self.rounds)


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
    """Score every sample; with "forward+backward", also the gradient of the mean logprob. Scores by sample."""
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


def best_of_theirs(theirs: Policy, samples: list[Sample], mode: Mode) -> list[Method]:
    """For each layout: the checkpoint's chunk_size and the fastest one, with the fastest experts. One round each."""
    experts = min(
        EXPERTS, key=lambda name: _screen(theirs, Method("transformers", "bucketed", None, name), samples, mode)
    )
    chosen = []
    for layout in LAYOUTS:
        same = Method("transformers", layout, None, experts)
        best = min((replace(same, chunk=chunk) for chunk in CHUNKS), key=lambda m: _screen(theirs, m, samples, mode))
        chosen += [same, best]
    return chosen


def _screen(theirs: Policy, method: Method, samples: list[Sample], mode: Mode) -> float:
    return seconds_of(with_method(theirs, method), samples, mode).processor


def measure_time(checkpoint: Path) -> dict[str, Any]:
    """Every method in turn, `ROUNDS` times, so that what else happens on the machine meets all of them alike."""
    ours, theirs = load(checkpoint, Method("ours")), load(checkpoint, Method("transformers"))
    timings: list[Timing] = []
    difference = 0.0
    for kind in KINDS:
        samples = samples_of(checkpoint, kind)
        for mode in MODES:
            methods = [Method("ours"), *best_of_theirs(theirs, samples, mode)]
            reference = run(ours, samples, "forward")
            for method in methods[1:]:
                scores = run(with_method(theirs, method), samples, "forward")
                difference = max(
                    difference, *((a - b).abs().max().item() for a, b in zip(reference, scores, strict=True))
                )
            rounds: dict[Method, list[Seconds]] = {method: [] for method in methods}
            for _ in range(ROUNDS):
                for method, measured in rounds.items():
                    policy = ours if method.policy == "ours" else with_method(theirs, method)
                    measured.append(seconds_of(policy, samples, mode))
            tokens = sum(len(sample.ids) for sample in samples)
            timings += [Timing(kind, mode, method, tokens, measured) for method, measured in rounds.items()]
    return {
        "threads": torch.get_num_threads(),
        "logprob_max_difference": difference,
        "timings": [
            {
                "kind": timing.kind,
                "mode": timing.mode,
                "method": asdict(timing.method),
                "tokens": timing.tokens,
                "tokens_per_second": round(timing.tokens_per_second, 1),
                "rounds": [asdict(seconds) for seconds in timing.rounds],
            }
            for timing in timings
        ],
    }


def measure_memory(checkpoint: Path, kind: str, mode: Mode, method: Method) -> dict[str, Any]:
    """Bytes by which one pass raises the process's resident memory at its highest; the model is loaded already.

    Resident memory and not torch's allocations: scratch of the matrix library counts too. The shortest sequence goes
    first, so that libraries have set themselves up, and gradients exist.
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
