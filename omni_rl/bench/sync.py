"""Weight syncs beside a plain copy of the same bytes, beside saving and reloading, and beside Ray's object store."""

import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from omni_rl.bench.machine import machine
from omni_rl.bench.rivals import Rivals
from omni_rl.bench.weights import weights_of
from omni_rl.media.types import Prompt
from omni_rl.models.nemotron_omni.checkpoint import released_state
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import SamplingSettings
from omni_rl.sync.digest import shapes
from omni_rl.sync.layout.cache import VARIABLE
from omni_rl.sync.manifest import Manifest, arrange
from omni_rl.sync.slab import Slab
from omni_rl.sync.slabs import SHARED_MEMORY

DTYPE = torch.bfloat16
RIVAL_TRIES = 5
STORE_BYTES = 3 * 10**9  # Ray's: one set of weights, and the one before it until it is let go
PROMPTS = 4
STEPS = 32
STALL_LIMIT = 2.5  # copies, beside one engine step
STALL_P90_LIMIT = 3.0  # p90 of copies
RIVAL_LIMIT = 5.0

Spread = dict[str, float]


class ModelSource:
    """A training model in this process, as one rank that holds all of it."""

    def __init__(self, model: NemotronOmniForConditionalGeneration, run: str) -> None:
        self._model, self._run = model, run
        self.number = 0

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(released_state(self._model, DTYPE))

    def learn(self) -> None:
        """Change every weight, as an optimiser step does."""
        self.number += 1
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter.mul_(1.01 if self.number % 2 else 1 / 1.01)

    def fill(self, slab: Slab) -> Manifest:
        tensors = self.tensors
        places = arrange(shapes(tensors.items()))
        with slab.writing(places):
            checksums = {name: str(slab.write(name, tensor)) for name, tensor in tensors.items()}
            manifest = Manifest.seal(places, checksums, run=self._run, attempt=1, number=self.number)
            slab.seal(manifest)
        return manifest


def bench_sync(
    out: Path, sizes: Sequence[int], syncs: int, progress: Callable[[str], None] = lambda line: None
) -> Path:
    """Measure at each of `sizes` (MB, see `omni_rl.bench.weights.SHAPES`); write `sync.json` to `out`."""
    result: dict[str, object] = {
        "command": "omni-rl bench sync",
        "machine": machine() | {"torch_threads": torch.get_num_threads()},
        "dtype": "bfloat16",
        "source": "the training model in this process; one engine in a Ray actor",
        "unit": "seconds",
    }
    with tempfile.TemporaryDirectory() as folder, _ray(Path(folder) / "cache"):
        for megabytes in sizes:
            progress(f"{megabytes} MB: making weights")
            checkpoint = weights_of(megabytes, Path(folder) / str(megabytes))
            result[f"{megabytes} MB"] = _measure(checkpoint, syncs, partial(_tell, progress, megabytes))
    path = out / "sync.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _tell(progress: Callable[[str], None], megabytes: int, line: str) -> None:
    progress(f"{megabytes} MB: {line}")


@contextmanager
def _ray(cache: Path) -> Iterator[None]:
    """A Ray of our own, whose actors find no layout map of an earlier run."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(cache)
    try:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=STORE_BYTES)
        yield
    finally:
        ray.shutdown()
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _measure(checkpoint: Path, syncs: int, progress: Callable[[str], None]) -> dict[str, object]:
    model = NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=DTYPE)
    run = f"bench-{uuid.uuid4().hex[:8]}"
    source = ModelSource(model, run)
    settings = EngineSettings(model=checkpoint, dtype="bfloat16", run=run, record_experts=False)
    copies = Copies(sum(tensor.nbytes for tensor in source.tensors.values()))
    with ExitStack() as stack:
        progress("starting an engine, deriving its layout map")
        started = time.perf_counter()
        handle = stack.enter_context(RolloutHandle.start(settings))
        first_start = time.perf_counter() - started
        sync = stack.enter_context(weight_sync([handle]))
        step = _engine_step(handle)
        results = []
        for number in range(syncs):
            source.learn()
            copies.time()
            started = time.perf_counter()
            result = sync.sync(source)
            results.append((time.perf_counter() - started, result))
            progress(f"sync {number + 1} of {syncs}: stall {result.stall:.3f} s")
        started = time.perf_counter()
        handle.replace(closed=True)
        second_start = time.perf_counter() - started
    progress("save and reload; Ray put and load")
    rivals = Rivals(settings, SHARED_MEMORY)
    try:
        saved, sent = [], []
        for _ in range(RIVAL_TRIES):
            source.learn()
            saved.append(rivals.save_and_reload(model))
            sent.append(rivals.ray_put_and_load(source.tensors))
    finally:
        rivals.close()
    whole = spread([seconds for seconds, _ in results])
    last = results[-1][1]
    measured: dict[str, Any] = {
        "bytes": last.bytes,
        "tensors": last.tensors,
        "elements_proven": min(result.elements_proven for _, result in results),
        "elements": last.elements,
        "roofline_copy": spread(copies.seconds),
        "engine_step": step,
        "stall": spread([result.stall for _, result in results]),
        "phases": _columns([result.seconds for _, result in results]),
        "whole_sync": whole,
        "save_pretrained_and_reload_weights": _columns(saved),
        "ray_put_get_and_load_weights": _columns(sent),
        "engine_start": {"layout_map_derived": first_start, "layout_map_from_cache": second_start},
    }
    return measured | {"goals": goals(measured)}


class Copies:
    """Warm copies of as many bytes as a sync moves, one after each other sync: what memory gives at that moment."""

    def __init__(self, nbytes: int) -> None:
        self._one, self._other = np.zeros(nbytes, np.uint8), np.ones(nbytes, np.uint8)
        self.seconds: list[float] = []

    def time(self) -> None:
        started = time.perf_counter()
        np.copyto(self._other, self._one)
        self.seconds.append(time.perf_counter() - started)


def spread(values: Sequence[float]) -> Spread:
    """Count, least, median, 90th percentile and greatest."""
    figures = {
        "min": min(values),
        "p50": statistics.median(values),
        "p90": float(np.percentile(values, 90)),
        "max": max(values),
    }
    return {"n": len(values)} | {name: round(value, 5) for name, value in figures.items()}


def goals(measured: Mapping[str, Any]) -> dict[str, dict[str, float | bool]]:
    """What was aimed at, what was reached."""
    copy, stall = measured["roofline_copy"], measured["stall"]
    rival = measured["save_pretrained_and_reload_weights"]["whole"]["p50"]
    figures = {
        "stall_p50_less_one_step_in_copies": (
            (stall["p50"] - measured["engine_step"]) / copy["p50"],
            STALL_LIMIT,
            "at most",
        ),
        "stall_p90_in_copies_p90": (stall["p90"] / copy["p90"], STALL_P90_LIMIT, "at most"),
        "times_faster_than_save_and_reload": (rival / measured["whole_sync"]["p50"], RIVAL_LIMIT, "at least"),
    }
    return {
        name: {
            "value": round(value, 3),
            "limit": limit,
            "met": value <= limit if which == "at most" else value >= limit,
        }
        for name, (value, limit, which) in figures.items()
    }


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def _engine_step(handle: RolloutHandle) -> float:
    """Seconds of one decoding step of `PROMPTS` answers: a long batch less a short one."""
    prompts = handle.render([Prompt(str(index), "weights are moved while nobody looks") for index in range(PROMPTS)])

    def batch(tokens: int) -> float:
        started = time.perf_counter()
        handle.sample(prompts, SamplingSettings(max_tokens=tokens, ignore_eos=True))
        return time.perf_counter() - started

    batch(1)
    short, long = (statistics.median(batch(tokens) for _ in range(3)) for tokens in (1, 1 + STEPS))
    return round((long - short) / STEPS, 5)
