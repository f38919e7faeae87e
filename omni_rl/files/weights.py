"""Which files of a checkpoint directory hold its weights: the one rule for every reader."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from omni_rl.errors import CheckpointError
from omni_rl.files.writer import set_aside

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONSOLIDATED = "consolidated*"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files with the weights of a checkpoint, as vLLM chooses them: those that an index names,
    or all of them where there is no index.

    Raises:
        CheckpointError: there are none, an index does not fit its files, or a tensor is stored twice: then readers that
            choose other files would get other weights, and it is not known which are meant.
    """
    if not directory.is_dir():
        if aside := set_aside(directory):
            raise CheckpointError(
                f"a save to {directory} was killed before its end; {aside} is what was there: rename it back, or save "
                "again"
            )
        raise CheckpointError(f"{directory} is not a directory; give a local checkpoint directory")
    # Without hidden files, as vLLM's pattern has it: some archivers leave `._model.safetensors`.
    found = {path.name: path for path in sorted(directory.glob("*.safetensors")) if not path.name.startswith(".")}
    index = directory / INDEX
    placed = read_index(index) if index.is_file() else None
    if not found and placed is None:
        raise _without_weights(directory)
    if absent := sorted(set((placed or {}).values()) - found.keys()):
        raise CheckpointError(f"{index} names files that are not there: {', '.join(absent)}")
    names = {file: tensor_names(path) for file, path in found.items()}
    lacking = [f"{name} (in {file})" for name, file in (placed or {}).items() if name not in names[file]]
    if lacking:
        raise CheckpointError(f"{index} names tensors that their files lack: {', '.join(sorted(lacking))}; save again")
    _refuse_doubles(directory, names)
    return [path for file, path in found.items() if placed is None or file in placed.values()]


def open_weights(path: Path, framework: str = "pt") -> Any:
    """Open a safetensors file, as a context manager. Raises `CheckpointError` for any other file, such as a pickle of
    that name."""
    try:
        return safe_open(path, framework=framework)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is no safetensors file, or is damaged ({error}); pickled weights can run code and are never "
            "loaded, whatever their file is called"
        ) from error


def tensor_names(path: Path) -> set[str]:
    """Return the tensors' names in a safetensors file, from its header. Raises as `open_weights` does."""
    with open_weights(path, framework="np") as stored:  # no tensor is read, and torch need not be there
        return set(stored.keys())


def read_index(index: Path) -> dict[str, str]:
    """Return the index's map from released names to file names. Raises `CheckpointError` if the file is no index."""
    try:
        placed = json.loads(index.read_text())["weight_map"]
        return {str(name): str(file) for name, file in placed.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of a checkpoint's files: {error}; copy it again") from error


def _refuse_doubles(directory: Path, names: dict[str, set[str]]) -> None:
    """Raise `CheckpointError` where vLLM's two ways of choosing files would choose different ones (consolidated files
    beside others), or where a tensor is in two files, of which the last one would win."""
    consolidated = [file for file in names if fnmatchcase(file, CONSOLIDATED)]
    if consolidated and len(consolidated) < len(names):
        raise CheckpointError(
            f"{directory} has {', '.join(consolidated)} beside other weights, and vLLM takes the one or the others "
            "depending on its load_format; delete what is out of date"
        )
    holder: dict[str, str] = {}
    for file, held in names.items():
        if twice := sorted(held & holder.keys()):
            raise CheckpointError(
                f"{directory} has {twice[0]} twice, in {holder[twice[0]]} and in {file} ({len(twice)} tensors are); "
                "delete the file, or the index and its files, that is out of date"
            )
        holder |= dict.fromkeys(held, file)


def _without_weights(directory: Path) -> CheckpointError:
    pickled = sorted(path.name for pattern in PICKLED for path in directory.glob(pattern))
    if pickled:
        return CheckpointError(
            f"{directory} has pickled weights only ({', '.join(pickled)}), which can run code; convert to safetensors"
        )
    return CheckpointError(f"{directory} has no *.safetensors; give the directory of a saved checkpoint")
