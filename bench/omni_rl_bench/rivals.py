"""Measures what one does without a transaction: save and let vLLM reload, or send by Ray and load. Nothing is
verified."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from omni_rl.actors import share
from omni_rl.rollout.handle import CPUS
from omni_rl.rollout.settings import EngineSettings

if TYPE_CHECKING:
    import torch

    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration


class LoadingEngine:
    """An actor with vLLM's engine alone, which loads weights by vLLM's own ways."""

    def start(self, settings: EngineSettings) -> None:
        from omni_rl.rollout import startup

        self._engine = startup.start(settings)
        self._model = startup.model_runner(self._engine).model

    def reload(self, directory: Path) -> float:
        """Return the seconds that vLLM's `reload_weights` takes, caches included."""
        started = time.perf_counter()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        return self._reset(started)

    def load(self, arrays: Mapping[str, tuple[str, NDArray[np.uint8]]]) -> float:
        """Return the seconds that loading arrays which lie in Ray's object store takes, caches included."""
        import torch

        started = time.perf_counter()
        tensors = {
            name: torch.from_numpy(array).view(getattr(torch, dtype)).squeeze(-1)
            for name, (dtype, array) in arrays.items()
        }
        with torch.no_grad():
            self._model.load_weights(iter(tensors.items()))
        return self._reset(started)

    def _reset(self, started: float) -> float:
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        self._engine.reset_prefix_cache(reset_running_requests=True)
        return time.perf_counter() - started


class Rivals:
    """The rival ways of a sync, for one checkpoint's shape. Close it."""

    def __init__(self, settings: EngineSettings) -> None:
        self._actor: Any = ray.remote(LoadingEngine).options(**share(CPUS, {})).remote()
        ray.get(self._actor.start.remote(settings))

    def save_and_reload(self, model: "NemotronOmniForConditionalGeneration", base: Path | None) -> dict[str, float]:
        """Return the seconds of saving a checkpoint below `base` (default: the system's place for temporary files), of
        `reload_weights`, and of both with what lies between."""
        from omni_rl.models.nemotron_omni.checkpoint import write_files
        from omni_rl.models.nemotron_omni.shards import stored_tensors

        with tempfile.TemporaryDirectory(dir=base) as folder:
            started = time.perf_counter()
            # Saved without the fsyncs of `save_pretrained`, as its rivals do, whose files do not outlive a power cut.
            dtype = model.language_model.lm_head.weight.dtype
            write_files(Path(folder), model.config, None, stored_tensors(model, dtype), dtype)
            saved = time.perf_counter() - started
            loaded = ray.get(self._actor.reload.remote(Path(folder)))
            return {"save": saved, "reload": loaded, "whole": time.perf_counter() - started}

    def ray_put_and_load(self, tensors: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Return the seconds of `ray.put`, of loading in the engine, and of both with the `ray.get` between them.

        The weights go as arrays, which Ray takes without pickling: tensors would take longer, and a view's whole
        storage with it.
        """
        started = time.perf_counter()
        arrays = {name: _array(tensor) for name, tensor in tensors.items()}
        reference = ray.put(arrays)
        put = time.perf_counter() - started
        loaded = ray.get(self._actor.load.remote(reference))
        return {"put": put, "load": loaded, "whole": time.perf_counter() - started}

    def close(self) -> None:
        ray.kill(self._actor)


def _array(tensor: "torch.Tensor") -> tuple[str, NDArray[np.uint8]]:
    """Return dtype and bytes, shaped so that a view in that dtype has the tensor's shape."""
    import torch

    raw: NDArray[np.uint8] = tensor.contiguous().unsqueeze(-1).view(torch.uint8).numpy()
    return str(tensor.dtype).removeprefix("torch."), raw
