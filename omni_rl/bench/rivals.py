"""What one does without a transaction: save and let vLLM reload, or send by Ray and load. Nothing is verified."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from omni_rl.rollout.settings import EngineSettings

if TYPE_CHECKING:
    import torch

    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration


class LoadingEngine:
    """An actor: vLLM's engine alone, which loads weights by vLLM's own ways."""

    def start(self, settings: EngineSettings) -> None:
        from omni_rl.rollout import startup

        self._engine = startup.start(settings)
        self._model = startup.model_runner(self._engine).model

    def reload(self, directory: Path) -> float:
        """Seconds that vLLM's `reload_weights` takes, caches included."""
        started = time.perf_counter()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        return self._reset(started)

    def load(self, tensors: "Mapping[str, torch.Tensor]") -> float:
        """Seconds that loading tensors out of Ray's object store takes, caches included."""
        import torch

        started = time.perf_counter()
        with torch.no_grad():
            self._model.load_weights(iter(tensors.items()))
        return self._reset(started)

    def _reset(self, started: float) -> float:
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        self._engine.reset_prefix_cache(reset_running_requests=True)
        return time.perf_counter() - started


class Rivals:
    """The other ways, for one checkpoint's shape. Close it."""

    def __init__(self, settings: EngineSettings, memory: Path) -> None:
        """`memory` is a directory in memory: a disk would only make saving slower."""
        self._memory = memory
        self._actor: Any = ray.remote(num_cpus=0.5)(LoadingEngine).remote()
        ray.get(self._actor.start.remote(settings))

    def save_and_reload(self, model: "NemotronOmniForConditionalGeneration") -> dict[str, float]:
        """Seconds of `save_pretrained`, of `reload_weights`, and of both with what lies between."""
        with tempfile.TemporaryDirectory(dir=self._memory) as folder:
            started = time.perf_counter()
            model.save_pretrained(folder)
            saved = time.perf_counter() - started
            loaded = ray.get(self._actor.reload.remote(Path(folder)))
            return {"save": saved, "reload": loaded, "whole": time.perf_counter() - started}

    def ray_put_and_load(self, tensors: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Seconds of `ray.put`, of loading in the engine, and of both with the `ray.get` between them."""
        started = time.perf_counter()
        reference = ray.put(dict(tensors))
        put = time.perf_counter() - started
        loaded = ray.get(self._actor.load.remote(reference))
        return {"put": put, "load": loaded, "whole": time.perf_counter() - started}

    def close(self) -> None:
        ray.kill(self._actor)
