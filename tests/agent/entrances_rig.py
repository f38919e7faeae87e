"""One engine, and every way by which others change its weights: `python -m tests.agent.entrances_rig DIRECTORY`."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from omni_rl import runtime, torchvision_schemas
from tests.agent.rig import Rig
from tests.agent.tiny import Tensors


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing is needed."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the weights are."""

    file: str


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):  # type: ignore[misc]
    """vLLM's weight transfer by files: its own ones are for devices."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing is to be connected."""

    def start_weight_update(self) -> None:
        """Weights are loaded in place."""

    def finish_weight_update(self) -> None:
        """Weights are loaded in place."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load a file. The parent's ends in waiting for a device."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load a file."""
        self.model.load_weights(load_file(update_info.file).items())

    def shutdown(self) -> None:
        """Nothing is open."""


class Entrances:
    """Each method is one way for weights into the engine."""

    def __init__(self, root: Path) -> None:
        WeightTransferEngineFactory.register_engine("file", FileTransfer)
        self.root = root
        self.rig = Rig(
            "qwen2",
            torch.float32,
            root / "model",
            weight_transfer_config=WeightTransferConfig(backend="file"),
            worker_extension_cls="tests.agent.extension.Extension",
        )
        self.rig.llm.collective_rpc("init_weight_transfer_engine", args=({},))

    def file(self, weights: Tensors) -> str:
        """The weights in a file of their own."""
        path = self.root / f"{self.rig.number}.safetensors"
        save_file(weights, path)
        return str(path)

    def reload(self, weights: Tensors) -> None:
        """vLLM's worker reads a checkpoint again."""
        directory = self.root / f"reload-{self.rig.number}"
        directory.mkdir()
        save_file(weights, directory / "model.safetensors")
        self.rig.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})

    def transfer(self, weights: Tensors) -> None:
        """vLLM's sessions of weight transfer, of two chunks."""
        rpc = self.rig.llm.collective_rpc
        rpc("start_weight_update")
        names = sorted(weights)
        for number, some in enumerate((names[::2], names[1::2])):
            path = self.root / f"{self.rig.number}-{number}.safetensors"
            save_file({name: weights[name] for name in some}, path)
            rpc("update_weights", args=({"file": str(path)},))
        rpc("finish_weight_update")

    def extension(self, weights: Tensors) -> None:
        """A method that somebody's extension adds to the worker."""
        self.rig.llm.collective_rpc("take_weights", args=(self.file(weights), -1))

    def in_place(self, weights: Tensors) -> None:
        """Somebody copies into the engine's parameters."""
        self._copy(weights, lambda held, value: held.copy_(value))

    def behind(self, weights: Tensors) -> None:
        """The same by `.data`, which torch counts no write for."""
        self._copy(weights, lambda held, value: held.data.copy_(value))

    def woken(self, weights: Tensors) -> None:
        """The engine sleeps and wakes, and is sent weights then."""
        self.rig.llm.sleep(1)
        self.rig.llm.wake_up()
        self.rig.load(weights)

    def _copy(self, weights: Tensors, copy: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        held = dict(self.rig.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                if name in held:
                    copy(held[name], value)
            for layer in range(2):
                path = f"model.layers.{layer}"
                for fused, names in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", ("gate", "up"))):
                    parent = fused.partition(".")[0]
                    for leaf in ("weight", "bias"):
                        if f"{path}.{fused}.{leaf}" in held:
                            parts = [weights[f"{path}.{parent}.{name}_proj.{leaf}"] for name in names]
                            copy(held[f"{path}.{fused}.{leaf}"], torch.cat(parts))


def main() -> None:
    entrances = Entrances(Path(sys.argv[1]))
    rig = entrances.rig

    def step(name: str, send: Callable[[Tensors], None], stale: bool) -> None:
        told = rig.step(lambda _, before, after: send(before if stale else after))
        sys.stdout.write(json.dumps([name, told]) + "\n")

    for way in ("extension", "transfer", "in_place", "behind", "woken", "reload"):
        send = getattr(entrances, way)
        step(f"clean {way}", send, False)
        step(f"stale {way}", send, True)
        step(f"after {way}", send, False)
    # A write that nobody announces, and that goes through no entrance.
    with torch.no_grad():
        (norm,) = (value for name, value in rig.model.named_parameters() if name.endswith("model.norm.weight"))
        norm.mul_(1.5)
    rig.generate()
    sys.stdout.write(json.dumps(["unannounced", rig.told()]) + "\n")
    norm.data.div_(1.5).mul_(1.25)
    for _ in range(4):
        rig.generate()
    sys.stdout.write(json.dumps(["unseen", rig.told()]) + "\n")


if __name__ == "__main__":
    runtime.prepare()
    torchvision_schemas.install()
    main()
