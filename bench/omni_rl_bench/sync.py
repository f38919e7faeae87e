"""Compares weight syncs with a plain copy of the same bytes, with saving and reloading, and with Ray's object store."""

import os
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.models.nemotron_omni.checkpoint import released_state
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import SamplingSettings
from omni_rl.sync.digest import shapes
from omni_rl.sync.layout.cache import VARIABLE
from omni_rl.sync.manifest import Manifest, arrange
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.slab import Slab
from omni_rl_bench.result import Goal, write_result
from omni_rl_bench.rivals import Rivals
from omni_rl_bench.weights import weights_of

DTYPE = torch.bfloat16
RIVAL_TRIES = 5
BUSY_SYNCS = 10
SAVE_AND_RELOAD = "save_pretrained_and_reload_weights"
STORE_BYTES = 3 * 10**9  # Ray's: one set of weights, and the one before it until it is freed
PROMPTS = 4
STEPS = 32
GOAL_MEGABYTES = 1000
STALL_COPIES = 2.5
STALL_P90_COPIES = 3.0
RIVAL_TIMES = 5.0

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
            written = slab.write_all(tensors)
            manifest = Manifest.seal(
                places,
                written.checksums,
                run=self._run,
                attempt=1,
                number=self.number,
                nonfinite=written.nonfinite,
                origin="trainer",
            )
            slab.seal(manifest)
        return manifest


def bench_sync(
    out: Path, sizes: Sequence[int], syncs: int, progress: Callable[[str], None] = lambda line: None
) -> Path:
    """Measure at each of `sizes` (MB, see `omni_rl_bench.weights.SHAPES`); write `sync.json` to `out`."""
    results: dict[str, Any] = {
        "setting": "seconds; the training model in this process, one engine in a Ray actor, bfloat16",
        "torch_threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder, _ray(Path(folder) / "cache"):
        for megabytes in sizes:
            progress(f"{megabytes} MB: making weights")
            checkpoint = weights_of(megabytes, Path(folder) / str(megabytes))
            results[f"{megabytes} MB"] = _measure(checkpoint, syncs, partial(_tell, progress, megabytes))
    reached = goals(GOAL_MEGABYTES, results[f"{GOAL_MEGABYTES} MB"]) if GOAL_MEGABYTES in sizes else []
    return write_result(out / "sync.json", "omni-rl bench sync", reached, results)


def _tell(progress: Callable[[str], None], megabytes: int, line: str) -> None:
    progress(f"{megabytes} MB: {line}")


@contextmanager
def _ray(cache: Path) -> Iterator[None]:
    """Start a Ray of our own, whose actors find no layout map of an earlier run."""
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


def _measure(checkpoint: Path, syncs: int, progress: Callable[[str], None]) -> dict[str, Any]:
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
        folder = stack.enter_context(tempfile.TemporaryDirectory())  # on a disk, as a run's own journal
        journal = stack.enter_context(opened_journal(Path(folder) / "ledger.db", run))
        sync = stack.enter_context(weight_sync([handle], journal))
        prompts = handle.render([Prompt(str(number), "weights move while nobody looks") for number in range(PROMPTS)])
        step = _engine_step(handle, prompts)
        results, busy, whole = [], [], []
        for number in range(syncs):
            source.learn()
            copies.time()
            started = time.perf_counter()
            results.append(sync.sync(source))
            whole.append(time.perf_counter() - started)
            progress(f"sync {number + 1} of {syncs}: stall {results[-1].stall:.3f} s")
        progress("syncs while the engine generates")
        with _generating(handle, prompts):
            for _ in range(BUSY_SYNCS):
                source.learn()
                busy.append(sync.sync(source))
        started = time.perf_counter()
        handle.replace(closed=True)
        second_start = time.perf_counter() - started
    progress("save and reload; Ray put and load")
    with closing(Rivals(settings)) as rivals:
        others = [_rivals(rivals, source, model) for _ in range(RIVAL_TRIES)]
    last = results[-1]
    return {
        "bytes": last.bytes,
        "tensors": last.tensors,
        "elements_proven": min(result.elements_proven for result in results),
        "elements": last.elements,
        "roofline_copy": spread(copies.seconds),
        "engine_step": step,
        "stall": spread([result.stall for result in results]),
        "stall_while_generating": spread([result.stall for result in busy]),
        "phases": _columns([result.seconds for result in results]),
        "whole_sync": spread(whole),
        **{name: _columns([one[name] for one in others]) for name in others[0]},
        "engine_start": {"layout_map_derived": first_start, "layout_map_from_cache": second_start},
    }


def _rivals(
    rivals: Rivals, source: ModelSource, model: NemotronOmniForConditionalGeneration
) -> dict[str, dict[str, float]]:
    source.learn()
    return {
        SAVE_AND_RELOAD: rivals.save_and_reload(model, None),
        f"{SAVE_AND_RELOAD}_in_memory": rivals.save_and_reload(model, SHARED_MEMORY),
        "ray_put_get_and_load_weights": rivals.ray_put_and_load(source.tensors),
    }


class Copies:
    """Makes warm copies of as many bytes as a sync moves, one after each other sync: what memory gives at that
    moment."""

    def __init__(self, nbytes: int) -> None:
        self._one, self._other = np.full(nbytes, 1, np.uint8), np.full(nbytes, 2, np.uint8)
        self.seconds: list[float] = []

    def time(self) -> None:
        started = time.perf_counter()
        np.copyto(self._other, self._one)
        self.seconds.append(time.perf_counter() - started)


def spread(values: Sequence[float]) -> Spread:
    """Return count, least, median, 90th percentile and greatest."""
    figures = {
        "min": min(values),
        "p50": statistics.median(values),
        "p90": float(np.percentile(values, 90)),
        "max": max(values),
    }
    return {"n": len(values)} | {name: round(value, 5) for name, value in figures.items()}


def goals(megabytes: int, measured: Mapping[str, Any]) -> list[Goal]:
    """Return what was aimed at for weights of 1 GB."""
    copy, stall = measured["roofline_copy"], measured["stall"]
    allowed = STALL_COPIES * copy["p50"] + measured["engine_step"]
    faster = measured[SAVE_AND_RELOAD]["whole"]["p50"] / measured["whole_sync"]["p50"]
    return [
        Goal(f"{megabytes} MB: stall, of {STALL_COPIES:g} copies and a step", stall["p50"] / allowed, 1.0, "lower"),
        Goal(f"{megabytes} MB: p90 stall, in p90 copies", stall["p90"] / copy["p90"], STALL_P90_COPIES, "lower"),
        Goal(f"{megabytes} MB: faster than save and reload, times", faster, RIVAL_TIMES, "higher"),
        Goal(
            f"{megabytes} MB: elements read back, of all",
            measured["elements_proven"] / measured["elements"],
            1.0,
            "higher",
        ),
    ]


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


@contextmanager
def _generating(handle: RolloutHandle, prompts: Sequence[RenderedPrompt]) -> Iterator[None]:
    """Give the engine answers to sample all the time."""
    end = threading.Event()

    def sample() -> None:
        while not end.is_set():
            handle.sample(prompts, SamplingSettings(max_tokens=STEPS, ignore_eos=True))

    with ThreadPoolExecutor(1) as thread:
        sampling = thread.submit(sample)
        try:
            yield
        finally:
            end.set()
            sampling.result()


def _engine_step(handle: RolloutHandle, prompts: Sequence[RenderedPrompt]) -> float:
    """Return the seconds of one decoding step: a long batch less a short one."""

    def batch(tokens: int) -> float:
        started = time.perf_counter()
        handle.sample(prompts, SamplingSettings(max_tokens=tokens, ignore_eos=True))
        return time.perf_counter() - started

    batch(1)
    short, long = (statistics.median(batch(tokens) for _ in range(3)) for tokens in (1, 1 + STEPS))
    return round((long - short) / STEPS, 5)
