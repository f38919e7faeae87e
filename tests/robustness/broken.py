"""Checkpoints that must not be loaded, and what their refusal has to name."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Break:
    """`spoil` turns a good directory into a bad one; `named` are the words its refusal holds."""

    spoil: Callable[[Path], None]
    named: tuple[str, ...]

    def make(self, good: Path, folder: Path) -> Path:
        """A spoilt copy of `good`."""
        copy = Path(shutil.copytree(good, folder / "broken"))
        self.spoil(copy)
        return copy


def _take(directory: Path) -> Tensors:
    """The weights out of a directory, whose file is gone: they are mapped from it, so it cannot be written over."""
    weights: Tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    return weights


def _rewrite(change: Callable[[Tensors], None]) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        weights = _take(directory)
        change(weights)
        save_file(weights, directory / WEIGHTS)

    return spoil


def _lacking(*names: str) -> Break:
    def drop(weights: Tensors) -> None:
        for name in names:
            del weights[name]

    return Break(_rewrite(drop), tuple(f"missing {name}" for name in names))


def _with(name: str, tensor: torch.Tensor, word: str) -> Break:
    return Break(_rewrite(lambda weights: weights.update({name: tensor})), (word, name))


def _pickled_under_another_name(directory: Path) -> None:
    torch.save(_take(directory), directory / WEIGHTS)


def _pickled(directory: Path) -> None:
    torch.save(_take(directory), directory / "pytorch_model.bin")


def _cut_off(directory: Path) -> None:
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[: len(whole) // 2])


BROKEN = {
    "a Mamba tensor missing": _lacking("language_model.backbone.layers.0.mixer.D"),
    "tensors of every room missing": _lacking(
        "mlp1.1.weight",
        "sound_projection.linear1.weight",
        "vision_model.radio_model.model.blocks.0.attn.proj.weight",
        "language_model.backbone.layers.2.mixer.experts.3.up_proj.weight",
    ),
    "a foreign tensor": _with("somebody.elses.weight", torch.zeros(1), "unexpected"),
    "a layer too many": _with("language_model.backbone.layers.99.norm.weight", torch.zeros(128), "unexpected"),
    "another shape": _with("language_model.lm_head.weight", torch.zeros(2, 2), "shape of"),
    "pickled": Break(_pickled, ("pickled", "pytorch_model.bin")),
    "pickled under another name": Break(_pickled_under_another_name, ("pickled", WEIGHTS)),
    "cut off": Break(_cut_off, ("damaged", WEIGHTS)),
}
